//! What a mount asks for beyond its source, in one text with it: `s3://box/it?credential=prod&stale_after_ms=0`.
//!
//! Always holds: a text has one meaning, and a term that is not known is refused, because a node that passed
//! one over would serve what the mount does not allow.

use std::fmt;
use std::ops::RangeInclusive;

/// Longest name of a credential in bytes.
pub const CREDENTIAL_LENGTH_MAX: usize = 64;
/// Stands for a time that never comes.
const NEVER: &str = "never";
const CREDENTIAL: &str = "credential";
const STALE_AFTER: &str = "stale_after_ms";
const INCLUDE: &str = "include";
const EXCLUDE: &str = "exclude";
const SIZE_MAX: &str = "file_size_max";
const WRITABLE: &str = "writable";
const TTL: &str = "ttl_ms";
const CACHE: &str = "cache";
/// The value of `cache`: what is there without it has no name.
const NO: &str = "no";
const CONCURRENCY: &str = "concurrency";
const BANDWIDTH: &str = "bandwidth";
const HEDGE: &str = "hedge";
const CACHE_ON_WRITE: &str = "cache_on_write";
/// Most requests that a mount may let be under way at its store.
pub const CONCURRENCY_MAX: u32 = 4096;
/// Fewest bytes a second that a mount may be read with: a block of the default size.
pub const BANDWIDTH_MIN: u64 = 1 << 20;
/// Longest pattern in bytes.
pub const PATTERN_LENGTH_MAX: usize = 256;
/// Most patterns of a mount.
pub const PATTERNS_MAX: usize = 16;

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
    /// Patterns of paths below the mount of which one has to match; none for all files.
    pub include: Vec<String>,
    /// Patterns of which none may match.
    pub exclude: Vec<String>,
    /// Longest file that is shown, in bytes.
    pub size_max: Option<u64>,
    /// True if clients may write there.
    pub writable: bool,
    /// How long blocks of a file stay in memory after the first one came in, in milliseconds, at least 1.
    pub ttl_ms: Option<u64>,
    /// True if blocks are given to those that wait for them, and are not kept.
    pub is_passed_through: bool,
    /// Most requests under way at the store from each node, 1 to [`CONCURRENCY_MAX`].
    pub concurrency: Option<u32>,
    /// Most bytes a second that each node reads there, at least [`BANDWIDTH_MIN`].
    pub bandwidth: Option<u64>,
    /// True if a read that takes unusually long is asked for a second time.
    pub is_hedged: bool,
    /// True if blocks of an object are kept as it is written; not with `is_passed_through`, which keeps nothing.
    pub is_cached_on_write: bool,
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
        let mut terms = Vec::new();
        terms.extend(self.credential.as_ref().map(|it| format!("{CREDENTIAL}={it}")));
        terms.extend(self.stale_after.map(|it| format!("{STALE_AFTER}={it}")));
        terms.extend(self.include.iter().map(|it| format!("{INCLUDE}={}", escaped(it))));
        terms.extend(self.exclude.iter().map(|it| format!("{EXCLUDE}={}", escaped(it))));
        terms.extend(self.size_max.map(|it| format!("{SIZE_MAX}={it}")));
        terms.extend(self.writable.then(|| format!("{WRITABLE}=true")));
        terms.extend(self.ttl_ms.map(|it| format!("{TTL}={it}")));
        terms.extend(self.is_passed_through.then(|| format!("{CACHE}={NO}")));
        terms.extend(self.concurrency.map(|it| format!("{CONCURRENCY}={it}")));
        terms.extend(self.bandwidth.map(|it| format!("{BANDWIDTH}={it}")));
        terms.extend(self.is_hedged.then(|| format!("{HEDGE}=true")));
        terms.extend(self.is_cached_on_write.then(|| format!("{CACHE_ON_WRITE}=true")));
        match terms.is_empty() {
            true => source.to_owned(),
            false => format!("{source}?{}", terms.join("&")),
        }
    }

    fn parse(text: &str) -> Result<Terms, String> {
        let mut terms = Terms::default();
        for term in text.split('&') {
            let (key, value) = term.split_once('=').unwrap_or((term, ""));
            if !terms.take(key, value) {
                return Err(format!(
                    "'{term}' is not an option of a mount here: {CREDENTIAL}=NAME, {STALE_AFTER}=MS, \
                     {SIZE_MAX}=BYTES, {WRITABLE}=true, {CACHE_ON_WRITE}=true, {HEDGE}=true, {TTL}=MS, {CACHE}={NO}, \
                     {CONCURRENCY}=COUNT and {BANDWIDTH}=BYTES are, each once, and {INCLUDE}=PATTERN and \
                     {EXCLUDE}=PATTERN"
                ));
            }
        }
        if terms.is_passed_through && terms.is_cached_on_write {
            return Err(format!(
                "{CACHE}={NO} keeps nothing, and {CACHE_ON_WRITE}=true keeps what is written: leave one of them out"
            ));
        }
        Ok(terms)
    }

    /// Takes a term. True if it is one, with a value that is allowed, and was not there before.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let is_full = self.include.len() + self.exclude.len() >= PATTERNS_MAX;
        match key {
            CREDENTIAL if is_credential(value) => {
                self.credential.replace(value.to_owned()).is_none()
            }
            STALE_AFTER => {
                let value = StaleAfter::parse(value);
                value.is_some_and(|it| self.stale_after.replace(it).is_none())
            }
            WRITABLE => value == "true" && !std::mem::replace(&mut self.writable, true),
            HEDGE => value == "true" && !std::mem::replace(&mut self.is_hedged, true),
            CACHE_ON_WRITE => {
                value == "true" && !std::mem::replace(&mut self.is_cached_on_write, true)
            }
            CACHE => value == NO && !std::mem::replace(&mut self.is_passed_through, true),
            TTL => number(value, 1..=u64::MAX).is_some_and(|it| self.ttl_ms.replace(it).is_none()),
            CONCURRENCY => {
                let value = number(value, 1..=CONCURRENCY_MAX.into()).map(|it| it as u32);
                value.is_some_and(|it| self.concurrency.replace(it).is_none())
            }
            BANDWIDTH => {
                let value = number(value, BANDWIDTH_MIN..=u64::MAX);
                value.is_some_and(|it| self.bandwidth.replace(it).is_none())
            }
            SIZE_MAX => value.parse().is_ok_and(|it| self.size_max.replace(it).is_none()),
            INCLUDE | EXCLUDE if !is_full => {
                let patterns = if key == INCLUDE { &mut self.include } else { &mut self.exclude };
                let pattern = unescaped(value).filter(|it| is_pattern(it));
                pattern.map(|it| patterns.push(it)).is_some()
            }
            _ => false,
        }
    }
}

/// Reads a number within bounds.
fn number(text: &str, allowed: RangeInclusive<u64>) -> Option<u64> {
    text.parse().ok().filter(|it| allowed.contains(it))
}

/// True if this can be a pattern: 1 to [`PATTERN_LENGTH_MAX`] bytes.
pub fn is_pattern(text: &str) -> bool {
    (1..=PATTERN_LENGTH_MAX).contains(&text.len())
}

/// Writes every byte that is not a letter, a digit or harmless as `%` and two hex digits.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'/' | b'*' => out.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

/// Undoes [`escaped`]; None if a `%` has no two digits, or it is not UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend(before.bytes());
        let digits = after.get(..2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    bytes.extend(rest.bytes());
    String::from_utf8(bytes).ok()
}

/// Returns a source without its terms: what its files are identified by.
pub fn bare(source: &str) -> &str {
    parted(source).0
}

/// True if this can be the name of a credential: 1 to [`CREDENTIAL_LENGTH_MAX`] letters, digits, `-`, `_` and
/// `.`, and not points alone.
pub fn is_credential(name: &str) -> bool {
    let is_letter = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    let is_named = name.contains(|it: char| it.is_ascii_alphanumeric());
    is_named && name.len() <= CREDENTIAL_LENGTH_MAX && name.chars().all(is_letter)
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
            let credential = credential.map(str::to_owned);
            let expect = Terms { credential, stale_after, ..Terms::default() };
            assert_eq!((found, &terms), (bare, &expect), "{text}");
            assert_eq!(terms.join(found), text);
            assert_eq!(super::bare(text), bare);
        }
        let both = "https://h?credential=x&stale_after_ms=0";
        let (bare, terms) = Terms::split(both).unwrap();
        assert_eq!(terms.join(bare), both);
        let writable = "s3://b?writable=true";
        let (bare, terms) = Terms::split(writable).unwrap();
        assert!(terms.writable && terms.join(bare) == writable);
        let all = "s3://b?ttl_ms=60000&cache=no&concurrency=4096&bandwidth=1048576&hedge=true";
        let (bare, terms) = Terms::split(all).unwrap();
        assert_eq!((terms.ttl_ms, terms.is_passed_through), (Some(60_000), true));
        assert_eq!((terms.concurrency, terms.bandwidth), (Some(4096), Some(1 << 20)));
        assert!(terms.is_hedged);
        assert_eq!(terms.join(bare), all);
        let kept = "s3://b?writable=true&cache_on_write=true";
        let (bare, terms) = Terms::split(kept).unwrap();
        assert!(terms.is_cached_on_write && terms.join(bare) == kept);
        let patterns = Terms {
            include: vec!["**/a?b&c=d%.csv".to_owned(), "ü x".to_owned()],
            exclude: vec!["tmp/**".to_owned()],
            size_max: Some(5),
            ..Terms::default()
        };
        for source in ["s3://b", "file:///d?"] {
            assert_eq!(Terms::split(&patterns.join(source)).unwrap(), (source, patterns.clone()));
        }
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
            "s3://b?include=",
            "s3://b?exclude=%f",
            "s3://b?file_size_max=1&file_size_max=1",
            "s3://b?writable=false",
            "s3://b?ttl_ms=0",
            "s3://b?ttl_ms=1&ttl_ms=1",
            "s3://b?cache=yes",
            "s3://b?cache=no&cache=no",
            "s3://b?hedge=5",
            "s3://b?concurrency=0",
            "s3://b?concurrency=4097",
            "s3://b?bandwidth=1048575",
            "s3://b?writable=true&writable=true",
            "s3://b?cache_on_write=no",
            "s3://b?cache_on_write=true&cache_on_write=true",
            "s3://b?cache=no&cache_on_write=true",
        ] {
            assert!(Terms::split(text).is_err(), "{text}");
        }
    }
}
