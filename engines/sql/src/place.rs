//! What a path in a statement means: a URL by which DataFusion finds the store, and a pattern of names.
//!
//! A path without a scheme is one of the nodes that the session has connected to; a `/` in front makes no
//! difference. Several addresses of one URL are one authority, so they are escaped where they stand in it.

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::{DataFusionError, Result};
use url::Url;

/// Scheme of what nodes serve.
pub(crate) const SCHEME: &str = "millrace";
/// Most bytes of a path. Derived: as much as a node takes.
const PATH_MAX: usize = 4096;

/// Returns the URL of a path, and the pattern that it ends with.
///
/// # Errors
/// For another scheme than `millrace` and `file`, and for a path that no node has.
pub(crate) fn parse(text: &str) -> Result<(Url, Option<String>)> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return at_nodes("", text);
    };
    match scheme {
        SCHEME => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            at_nodes(authority, path)
        }
        "file" => match Url::parse(text) {
            Ok(url) => Ok((url, None)),
            Err(error) => Err(refused(format!("'{text}' is not a URL of a file: {error}"))),
        },
        _ => Err(refused(format!(
            "'{text}' is not read here; have a node mount that store (millrace admin mount), and name the \
             path below the mount"
        ))),
    }
}

/// Returns what parsed as a table of DataFusion.
///
/// # Errors
/// As [`parse`], and for what is not a pattern.
pub(crate) fn table(text: &str) -> Result<ListingTableUrl> {
    let (url, glob) = parse(text)?;
    let table = ListingTableUrl::try_new(url, None)?;
    match glob {
        Some(glob) => table.with_glob(&glob),
        None => Ok(table),
    }
}

/// Returns the addresses that an authority was made of; none for the nodes of the session.
pub(crate) fn address(url: &Url) -> Option<String> {
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    (!authority.is_empty()).then(|| authority.replace("%2C", ",").replace("%3A", ":"))
}

fn refused(text: String) -> DataFusionError {
    DataFusionError::Plan(text)
}

fn at_nodes(authority: &str, path: &str) -> Result<(Url, Option<String>)> {
    let authority = match authority.contains(',') {
        true => authority.replace(':', "%3A").replace(',', "%2C"),
        false => authority.to_owned(),
    };
    let url = Url::parse(&format!("{SCHEME}://{authority}/"));
    let mut url = url.map_err(|error| {
        refused(format!(
            "'{authority}' is not an address: {error}; write millrace://HOST:PORT/PATH"
        ))
    })?;
    if path.len() > PATH_MAX {
        return Err(refused(format!("a path of {} bytes is longer than {PATH_MAX}", path.len())));
    }
    let is_pattern = |part: &&str| part.contains(['*', '?', '[']);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if let Some(part) = parts.iter().find(|part| [".", ".."].contains(part)) {
        return Err(refused(format!(
            "'{path}' has the part '{part}', which nodes do not follow; write the path from the root on"
        )));
    }
    let plain_count = parts.iter().position(is_pattern).unwrap_or(parts.len());
    let (plain, pattern) = parts.split_at(plain_count);
    if pattern.len() > 1 {
        return Err(refused(format!(
            "'{path}' has a pattern before its last part; name the directory, and a pattern of the files in it"
        )));
    }
    let is_directory = !pattern.is_empty() || path.ends_with('/') || plain.is_empty();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(plain);
        if is_directory {
            segments.push("");
        }
    }
    Ok((url, (!pattern.is_empty()).then(|| pattern.join("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_of_nodes_and_urls_name_them() {
        let check = |text: &str, url: &str, glob: Option<&str>| {
            let (found, pattern) = parse(text).unwrap();
            assert_eq!((found.as_str(), pattern.as_deref()), (url, glob), "{text}");
        };
        check("a/b.parquet", "millrace:///a/b.parquet", None);
        check("/a//b/", "millrace:///a/b/", None);
        check("", "millrace:///", None);
        check("a/x?.csv", "millrace:///a/", Some("x?.csv"));
        check("50%#x", "millrace:///50%25%23x", None);
        check("millrace://n1:70/a/b", "millrace://n1:70/a/b", None);
        check("millrace://n1:70,n2:70/a", "millrace://n1%3A70%2Cn2%3A70/a", None);
        check("file:///tmp/x", "file:///tmp/x", None);
        let (url, _) = parse("millrace://n1:70,n2:70/a").unwrap();
        assert_eq!(address(&url).as_deref(), Some("n1:70,n2:70"));
        assert_eq!(address(&parse("a").unwrap().0), None);
    }

    #[test]
    fn what_no_node_has_is_refused() {
        for (text, word) in [
            ("s3://b/k", "mount"),
            ("a/../b", "root"),
            ("a/*/b", "pattern"),
            ("millrace://a b/c", "address"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_of_a_table_is_the_path_at_the_nodes() {
        let table = table("dir with blank/50%#x/*.parquet").unwrap();
        assert_eq!(table.prefix().as_ref(), "dir with blank/50%#x");
    }
}
