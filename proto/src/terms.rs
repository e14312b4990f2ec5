//! What a mount asks for beyond its source, in one text with it: `s3://box/it?credential=prod&stale_after_ms=0`.
//!
//! Always holds: a text has one meaning, and a term that is not known is refused, because a node that passed
//! one over would serve what the mount does not allow.

use std::fmt;

/// Longest name of a credential in bytes.
pub const CREDENTIAL_LENGTH_MAX: usize = 64;
/// Stands for a time that never comes.
const NEVER: &str = "never";
const CREDENTIAL: &str = "credential";
const STALE_AFTER: &str = "stale_after_ms";

/// How long what is known of a file is believed before its source is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleAfter {
    /// For this many milliseconds; 0 to ask at each look-up.
    Ms(u64),
    /// Until it is looked for a change on request.
    Never,
}

impl StaleAfter {
    /// Reads `30000` or `never`.
    pub fn parse(text: &str) -> Option<StaleAfter> {
        match text {
            NEVER => Some(StaleAfter::Never),
            text => text.parse().ok().map(StaleAfter::Ms),
        }
    }
}

impl fmt::Display for StaleAfter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StaleAfter::Ms(ms) => ms.fmt(out),
            StaleAfter::Never => out.write_str(NEVER),
        }
    }
}

/// The terms of a mount. The default ones ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Name of the credential that nodes have in their configuration.
    pub credential: Option<String>,
    /// How long look-ups are believed; None for what each node takes for the kind of source.
    pub stale_after: Option<StaleAfter>,
}

impl Terms {
    /// Splits a source and its terms.
    ///
    /// # Errors
    /// With the term that is not known, or whose value is not allowed.
    pub fn split(source: &str) -> Result<(&str, Terms), String> {
        let (bare, text) = parted(source);
        let terms = text.map_or(Ok(Terms::default()), Terms::parse)?;
        Ok((bare, terms))
    }

    /// Returns the source with these terms.
    pub fn join(&self, source: &str) -> String {
        let credential = self.credential.as_ref().map(|it| format!("{CREDENTIAL}={it}"));
        let stale_after = self.stale_after.map(|it| format!("{STALE_AFTER}={it}"));
        let terms: Vec<String> = credential.into_iter().chain(stale_after).collect();
        match terms.is_empty() {
            true => source.to_owned(),
            false => format!("{source}?{}", terms.join("&")),
        }
    }

    fn parse(text: &str) -> Result<Terms, String> {
        let mut terms = Terms::default();
        for term in text.split('&') {
            let (key, value) = term.split_once('=').unwrap_or((term, ""));
            let is_new = match key {
                CREDENTIAL if is_credential(value) => {
                    terms.credential.replace(value.to_owned()).is_none()
                }
                STALE_AFTER => match StaleAfter::parse(value) {
                    Some(it) => terms.stale_after.replace(it).is_none(),
                    None => false,
                },
                _ => false,
            };
            if !is_new {
                return Err(format!(
                    "'{term}' is not an option of a mount here: {CREDENTIAL}=NAME and \
                     {STALE_AFTER}=MS are, each once"
                ));
            }
        }
        Ok(terms)
    }
}

/// Returns a source without its terms: what its files are identified by.
pub fn bare(source: &str) -> &str {
    parted(source).0
}

/// True if this can be the name of a credential: 1 to [`CREDENTIAL_LENGTH_MAX`] letters, digits, `-`, `_` and
/// `.`.
pub fn is_credential(name: &str) -> bool {
    let is_letter = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    (1..=CREDENTIAL_LENGTH_MAX).contains(&name.len()) && name.chars().all(is_letter)
}

/// Cuts a source at the `?` before its terms. The name of a directory may have a `?`, too: there terms have to
/// be ones that are known.
fn parted(source: &str) -> (&str, Option<&str>) {
    let cut = match source.starts_with("file:") {
        true => source.rsplit_once('?').filter(|(_, text)| Terms::parse(text).is_ok()),
        false => source.split_once('?'),
    };
    cut.map_or((source, None), |(bare, text)| (bare, Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_and_its_terms_are_one_text() {
        for (text, bare, credential, stale_after) in [
            ("s3://box/it", "s3://box/it", None, None),
            ("s3://box?credential=a-1", "s3://box", Some("a-1"), None),
            ("s3://box?stale_after_ms=never", "s3://box", None, Some(StaleAfter::Never)),
            ("file:///d?stale_after_ms=5", "file:///d", None, Some(StaleAfter::Ms(5))),
            ("file:///what?", "file:///what?", None, None),
            ("file:///a?b=c", "file:///a?b=c", None, None),
        ] {
            let (found, terms) = Terms::split(text).unwrap();
            let expect = Terms { credential: credential.map(str::to_owned), stale_after };
            assert_eq!((found, &terms), (bare, &expect), "{text}");
            assert_eq!(terms.join(found), text);
            assert_eq!(super::bare(text), bare);
        }
        let both = "https://h?credential=x&stale_after_ms=0";
        let (bare, terms) = Terms::split(both).unwrap();
        assert_eq!(terms.join(bare), both);
    }

    #[test]
    fn a_term_that_is_not_known_is_refused() {
        for text in [
            "s3://b?",
            "s3://b?x=1",
            "s3://b?credential=",
            "s3://b?credential=a/b",
            "s3://b?credential=a&credential=b",
            "s3://b?stale_after_ms=soon",
            "s3://b?stale_after_ms=-1",
            "s3://b?credential=a?credential=b",
        ] {
            assert!(Terms::split(text).is_err(), "{text}");
        }
    }
}
