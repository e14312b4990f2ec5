//! Writes: what a store takes, and how it says that an object is there.
//!
//! Always holds: an upload that does not finish leaves nothing that is seen, and a store removes what it holds
//! of it. What is not known after a failure is said to be unknown, because the caller would otherwise write
//! again.

use bytes::Bytes;
pub use millrace_proto::write::Condition;

use super::{Found, StoreError, StoreFuture};

/// What a path is by a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What look-ups find.
    pub found: Found,
    /// True if the store itself said that the version is the bytes of this write, and no others.
    pub is_certain: bool,
}

/// How names of files begin that are being written.
const TEMPORARY_PREFIX: &str = ".millrace-";
/// How they end.
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Digits between the two, of a random number.
const TEMPORARY_DIGITS: usize = 16;

/// An object that is being brought to a store. One that is dropped is given up, as by [`Upload::abort`].
pub trait Upload: Send + 'static {
    /// Takes the next bytes, and waits until there is room for them.
    ///
    /// # Errors
    /// Why the store does not take them. Nothing but [`Upload::abort`] makes sense afterwards.
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, Result<(), StoreError>>;

    /// Has the store make the object visible, whole; returns what the path is by it.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if the store may have done it or not. After every other error it has not.
    fn finish(self: Box<Self>) -> StoreFuture<'static, Result<Written, StoreError>>;

    /// Removes what the store has of it.
    fn abort(self: Box<Self>) -> StoreFuture<'static, ()>;
}

/// Returns the name of a file that is being written.
pub(crate) fn temporary_name(random: u64) -> String {
    format!("{TEMPORARY_PREFIX}{random:016x}{TEMPORARY_SUFFIX}")
}

/// True if a file of this name is one that is being written, or was when a node died.
pub(crate) fn is_temporary(name: &str) -> bool {
    let middle =
        name.strip_prefix(TEMPORARY_PREFIX).and_then(|it| it.strip_suffix(TEMPORARY_SUFFIX));
    middle.is_some_and(|digits| {
        let is_digit = |it: u8| it.is_ascii_digit() || (b'a'..=b'f').contains(&it);
        digits.len() == TEMPORARY_DIGITS && digits.bytes().all(is_digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_names_that_are_made_are_temporary() {
        for random in [0, 1, u64::MAX] {
            assert!(is_temporary(&temporary_name(random)));
        }
        let others = [
            "",
            ".millrace-",
            ".millrace-.tmp",
            ".millrace-0123456789abcde.tmp",
            ".millrace-0123456789ABCDEF.tmp",
            ".millrace-0123456789abcdef.tmp2",
            "millrace-0123456789abcdef.tmp",
            ".hidden",
        ];
        for name in others {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
