//! Names of a directory that a listing leaves out, because no client could ask for them.
//!
//! Owns how they are counted and told. A name that has a place in the order of the listing is told with its page;
//! names that are not UTF-8 have none, and are told with the first page, for the whole directory.

use std::ffi::CStr;

/// Longest text for people about names that were left out, in bytes. Derived: a page leaves 8 KiB of a body.
const EXAMPLE_LENGTH_MAX: usize = 1024;

/// What a page of a directory leaves out. Symbolic links that lead out of the source or nowhere, and what is neither
/// file nor directory, are no part of what is served, and do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Names that could be asked for if the source did not fail there, in the order of the page, and why each is
    /// left out.
    pub named: Vec<(String, String)>,
    /// Names of the whole directory that are not UTF-8; 0 for a page that is not the first.
    pub not_utf8_count: u64,
    /// One of those, as far as it can be shown.
    pub not_utf8_example: String,
}

impl LeftOut {
    /// Counts a name that is not UTF-8.
    pub(super) fn add_not_utf8(&mut self, name: &CStr) {
        if self.not_utf8_count == 0 {
            self.not_utf8_example = name.to_string_lossy().into_owned();
        }
        self.not_utf8_count += 1;
    }

    /// Forgets the names after this one, because the page ends with it.
    pub(crate) fn end_at(&mut self, last: &str) {
        self.named.retain(|(name, _)| name.as_str() <= last);
    }

    /// Returns how many names are left out.
    pub(crate) fn count(&self) -> u64 {
        self.named.len() as u64 + self.not_utf8_count
    }

    /// Returns what is said of the names that are not UTF-8, if there are any.
    pub(crate) fn not_utf8_text(&self) -> Option<String> {
        let LeftOut { not_utf8_count: count, not_utf8_example: example, .. } = self;
        (*count > 0).then(|| {
            let (names, are) = if *count == 1 { ("name", "is") } else { ("names", "are") };
            format!(
                "{count} {names} {are} not UTF-8 and left out, such as {example:?}: rename them to have them served"
            )
        })
    }

    /// Returns one of the names and why it is left out, for people; empty if all are served.
    pub(crate) fn example(&self) -> String {
        let named = self.named.first().map(|(name, reason)| format!("{name:?}: {reason}"));
        let mut text = named.or_else(|| self.not_utf8_text()).unwrap_or_default();
        text.truncate(text.floor_char_boundary(EXAMPLE_LENGTH_MAX));
        text
    }
}
