//! Directories that are one of those above them: a node follows symbolic links, and a link may lead back.
//!
//! Owns how a walk notices that. The protocol gives a directory no identity, so equal first pages raise the
//! suspicion, and a path that only a circle has settles it: copies of objects have equal pages, too.

use std::hash::{DefaultHasher, Hash, Hasher};

use millrace_proto::Status;

use crate::client::Client;
use crate::error::Error;
use crate::file::{Entry, Kind};

/// How often the way from a directory to itself is gone in a row. Derived: copies that lie in each other so often
/// are none that a person makes, and Linux follows 40 links in a path.
const ROUNDS: usize = 8;

/// Returns a hash of the first page of a directory. None without a file in it, because names of directories alone
/// are equal in many places.
pub fn page_hash(entries: &[Entry]) -> Option<u64> {
    if !entries.iter().any(|entry| entry.kind == Kind::File) {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    for Entry { name, kind, id: _, version, length, modified_ms } in entries {
        (name, *kind == Kind::File, version, length, modified_ms).hash(&mut hasher);
    }
    Some(hasher.finish())
}

impl Client {
    /// Returns whether a directory is the one at `above`, which lies above it and has an equal first page.
    ///
    /// # Errors
    /// Those of [`Client::stat`], but for paths that are not there.
    #[doc(hidden)]
    pub async fn is_circle(&self, above: &str, directory: &str) -> Result<bool, Error> {
        let way = directory.strip_prefix(above).unwrap_or(directory);
        let way = way.trim_start_matches('/');
        let round = format!("/{way}").repeat(ROUNDS);
        match self.stat(format!("{above}{round}").trim_start_matches('/')).await {
            Ok(found) => Ok(found.kind == Kind::Directory),
            Err(error) if is_about_path(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// True if the path cannot be there, whatever becomes of the node.
fn is_about_path(error: &Error) -> bool {
    let about_path =
        [Status::NotFound, Status::PermissionDenied, Status::WrongKind, Status::InvalidArgument];
    matches!(error, Error::InvalidArgument(_))
        || error.status().is_some_and(|status| about_path.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileId;

    #[test]
    fn directories_are_told_apart_by_their_files() {
        let entry = |kind, version| Entry {
            name: "x".to_owned(),
            kind,
            id: FileId(1),
            version,
            length: 1,
            modified_ms: 1,
        };
        let one = page_hash(&[entry(Kind::File, 7), entry(Kind::Directory, 0)]);
        let other = page_hash(&[entry(Kind::File, 8), entry(Kind::Directory, 0)]);
        assert_eq!(page_hash(&[entry(Kind::Directory, 0)]), None);
        assert!(one.is_some() && one != other);
    }
}
