//! Lists of sources and of their options in one text, as a variable has them: joined by `:`, which is also a
//! part of URLs.

use millrace_ops::settings::LIST_SEPARATOR;

/// Splits mount roots: a `:` ends one where an absolute path or another URL follows.
pub(super) fn roots_in(text: &str) -> Vec<&str> {
    split(text, |rest| {
        let is_path = rest.starts_with('/') && !rest.starts_with("//");
        let scheme = rest.split_once("://").map(|(scheme, _)| scheme);
        is_path || scheme.is_some_and(|it| it.chars().all(|it| it.is_ascii_alphanumeric()))
    })
}

/// Splits options such as `endpoint=http://host:9000:region=eu`: a `:` ends one where another `KEY=` follows.
/// None if one has no key or no value.
pub(super) fn options_in(text: &str) -> Option<Vec<(String, String)>> {
    let is_key = |key: &str| {
        !key.is_empty() && key.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
    };
    let starts_option = |rest: &str| rest.split_once('=').is_some_and(|(key, _)| is_key(key));
    let options = split(text, starts_option).into_iter().map(|option| {
        let (key, value) = option.split_once('=').filter(|(key, _)| is_key(key))?;
        Some((key.to_ascii_lowercase(), value.to_owned()))
    });
    options.collect()
}

fn split(text: &str, starts_next: impl Fn(&str) -> bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, _) in text.match_indices(LIST_SEPARATOR) {
        if starts_next(&text[index + 1..]) {
            parts.push(&text[start..index]);
            start = index + 1;
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_ends_a_root_where_another_begins() {
        assert_eq!(roots_in("/a:/b"), ["/a", "/b"]);
        let all = "s3://b/x:/mnt:https://h:8080/y:gs://c";
        assert_eq!(roots_in(all), ["s3://b/x", "/mnt", "https://h:8080/y", "gs://c"]);
        assert_eq!(roots_in(""), [""; 0]);
    }

    #[test]
    fn a_colon_ends_an_option_where_another_begins() {
        let options = options_in("Endpoint=http://127.0.0.1:9000:region=eu").unwrap();
        let expect = [("endpoint", "http://127.0.0.1:9000"), ("region", "eu")];
        assert_eq!(options, expect.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(options_in(""), Some(Vec::new()));
        assert!(options_in("region").is_none() && options_in("=eu").is_none());
    }
}
