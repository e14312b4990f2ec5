//! A source of which a mount shows a part: files by their paths and lengths.
//!
//! Owns what is shown. Always holds: a file that is not shown is not found, whatever asks for it; directories are
//! all shown.

use std::sync::Arc;

use millrace_proto::FileId;
use millrace_proto::message::Kind;
use millrace_proto::terms::Terms;

use super::{
    Condition, Errand, FillError, Found, Page, Part, StoreError, StoreFuture, UnderStore, Upload,
};
use crate::memory::Blank;

/// Which files a mount shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    /// Patterns of which one has to match; none for all files.
    include: Vec<String>,
    /// Patterns of which none may match.
    exclude: Vec<String>,
    /// Longest file in bytes.
    size_max: Option<u64>,
}

impl Filter {
    fn shows_path(&self, path: &str) -> bool {
        let matches = |patterns: &[String]| patterns.iter().any(|it| is_match(it, path));
        (self.include.is_empty() || matches(&self.include)) && !matches(&self.exclude)
    }

    fn shows(&self, path: &str, found: &Found) -> bool {
        let is_short = self.size_max.is_none_or(|max| found.length <= max);
        found.kind == Kind::Directory || (is_short && self.shows_path(path))
    }
}

/// Why nothing is written: what is there may not be shown.
const SHOWS_A_PART: StoreError = StoreError::Denied(
    "a mount that shows a part of its files takes no writes: mount the source without a filter for them",
);

/// See the module.
pub(super) struct Filtered {
    store: Arc<dyn UnderStore>,
    filter: Filter,
}

impl Filtered {
    /// Puts the filter of these terms before a source, if they have one.
    pub(super) fn over(store: Arc<dyn UnderStore>, terms: &Terms) -> Arc<dyn UnderStore> {
        let filter = Filter {
            include: terms.include.clone(),
            exclude: terms.exclude.clone(),
            size_max: terms.size_max,
        };
        match filter == Filter::default() {
            true => store,
            false => Arc::new(Filtered { store, filter }),
        }
    }
}

impl UnderStore for Filtered {
    fn identify(&self, path: &str) -> FileId {
        self.store.identify(path)
    }

    fn is_read_in_parts(&self, path: &str) -> bool {
        self.store.is_read_in_parts(path)
    }

    fn is_stored(&self, path: &str) -> bool {
        self.store.is_stored(path)
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            let found = self.store.stat(Arc::clone(&path)).await?;
            match self.filter.shows(&path, &found) {
                true => Ok(found),
                false => Err(StoreError::NotFound),
            }
        })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        Box::pin(async move {
            let mut page = self.store.list(Arc::clone(&path), after, limit).await?;
            page.entries.retain(|(name, found)| {
                let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                self.filter.shows(&whole, found)
            });
            page.left_out.named.retain(|(name, _)| {
                let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                self.filter.shows_path(&whole)
            });
            Ok(page)
        })
    }

    fn fill(
        &self,
        part: Part,
        blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        if !self.filter.shows_path(&part.path) {
            return Box::pin(async move { (blank, Err(StoreError::NotFound.into())) });
        }
        self.store.fill(part, blank, errand)
    }

    fn compare(&self, part: &Part, blank: &Blank) -> Result<(), StoreError> {
        self.store.compare(part, blank)
    }

    fn put(
        &self,
        _path: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        Box::pin(async { Err(SHOWS_A_PART) })
    }

    fn delete(
        &self,
        _path: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(SHOWS_A_PART) })
    }

    fn rename(
        &self,
        _path: Arc<str>,
        _to: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async { Err(SHOWS_A_PART) })
    }
}

/// True if a pattern matches a path: `*` is any number of letters but `/`, `**` any number of all, `?` one letter
/// but `/`. A pattern without a `/` goes for the name alone.
fn is_match(pattern: &str, path: &str) -> bool {
    let path = match pattern.contains('/') {
        true => path,
        false => path.rsplit('/').next().unwrap_or_default(),
    };
    let (pattern, path): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), path.chars().collect());
    // Which prefixes of the path the pattern so far matches.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    let mut rest = &pattern[..];
    while let Some((first, after)) = rest.split_first() {
        let is_deep = *first == '*' && after.first() == Some(&'*');
        rest = if is_deep { &after[1..] } else { after };
        let mut next = vec![false; path.len() + 1];
        for end in 0..=path.len() {
            let letter = end.checked_sub(1).map(|last| path[last]);
            next[end] = match (first, letter) {
                ('*', None) => reached[end],
                ('*', Some(letter)) => {
                    reached[end] || (next[end - 1] && (is_deep || letter != '/'))
                }
                (_, None) => false,
                ('?', Some(letter)) => reached[end - 1] && letter != '/',
                (first, Some(letter)) => reached[end - 1] && *first == letter,
            };
        }
        reached = next;
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_or_whole_paths() {
        for (pattern, path, is) in [
            ("*.parquet", "a/b.parquet", true),
            ("*.parquet", "b.parquet.tmp", false),
            ("a/*.csv", "a/b.csv", true),
            ("a/*.csv", "a/b/c.csv", false),
            ("a/**", "a/b/c.csv", true),
            ("**/tmp/**", "x/tmp/y/z", true),
            ("?.txt", "ü.txt", true),
            ("?.txt", "ab.txt", false),
            ("*", "", true),
            ("", "a", false),
            ("a*b*c", "a/axxbyyc", true),
        ] {
            assert_eq!(is_match(pattern, path), is, "{pattern} {path}");
        }
        // The cost is that of both lengths, and no more.
        assert!(!is_match(&"*a".repeat(500), &"a".repeat(499)));
    }

    #[test]
    fn an_exclusion_counts_more_than_an_inclusion() {
        let filter = Filter {
            include: vec!["*.csv".to_owned(), "*.txt".to_owned()],
            exclude: vec!["old/**".to_owned()],
            size_max: Some(10),
        };
        let file = |length| Found { kind: Kind::File, version: 1, length, modified_ms: 0 };
        let shows = |path: &str, length| filter.shows(path, &file(length));
        assert!(shows("a.csv", 10) && shows("b/a.txt", 0));
        assert!(!shows("a.csv", 11) && !shows("a.bin", 1) && !shows("old/a.csv", 1));
        let directory = Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 };
        assert!(filter.shows("old", &directory));
    }
}
