//! From a path of a source to a key of its store.

use millrace_node::under_store::StoreError;
use object_store::path::Path;

/// Returns the key of a path below what all keys of a source begin with.
pub(crate) fn key(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        (prefix, "") => prefix.to_owned(),
        ("", path) => path.to_owned(),
        (prefix, path) => format!("{prefix}/{path}"),
    }
}

/// Returns the same as the store library takes it.
///
/// # Errors
/// [`StoreError::InvalidPath`] for a key that the library cannot name.
pub(crate) fn location(prefix: &str, path: &str) -> Result<Path, StoreError> {
    let invalid = |_| StoreError::InvalidPath("a part of the path is one that stores do not take");
    Path::parse(key(prefix, path)).map_err(invalid)
}
