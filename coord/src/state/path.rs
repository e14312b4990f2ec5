//! Which paths are well formed, which are reserved, and how a path splits.
//!
//! Paths here are what clients sent: any string. The rules are those of ZooKeeper's `PathUtils` and
//! `PrepRequestProcessor`, including that a create splits its path before it checks it.

use millrace_proto::zookeeper::Error;

/// Parent of what the service keeps for itself.
pub(super) const SYSTEM: &str = "/zookeeper";
/// Where quotas are set.
pub(super) const QUOTA: &str = "/zookeeper/quota";
/// Holds the members of the cluster.
pub(super) const CONFIG: &str = "/zookeeper/config";

/// Refuses a path that no node may have.
///
/// # Errors
///
/// `BadArguments`, as ZooKeeper's `PathUtils.validatePath`.
pub(super) fn validate(path: &str) -> Result<(), Error> {
    if path == "/" {
        return Ok(());
    }
    let inner = path.strip_prefix('/').ok_or(Error::BadArguments)?;
    let is_component = |name: &str| !matches!(name, "" | "." | "..");
    if inner.split('/').all(is_component) && inner.chars().all(is_allowed) {
        Ok(())
    } else {
        Err(Error::BadArguments)
    }
}

fn is_allowed(character: char) -> bool {
    // Java looks at UTF-16 units: the surrogates D800 to DFFF stand for everything above FFFF.
    !matches!(u32::from(character), 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..)
}

/// The path of the parent, empty for a child of the root. The path need not be valid otherwise.
///
/// # Errors
///
/// `BadArguments` for a path without a slash or with a null character.
pub(super) fn parent(path: &str) -> Result<&str, Error> {
    match path.rsplit_once('/') {
        Some((parent, _)) if !path.contains('\0') => Ok(parent),
        _ => Err(Error::BadArguments),
    }
}

/// Whether nobody may delete the node (ZooKeeper's `DataTree.isSpecialPath`).
pub(super) fn is_reserved(path: &str) -> bool {
    matches!(path, "/" | SYSTEM | QUOTA | CONFIG)
}

/// The path and all its ancestors below the root, longest first.
pub(super) fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once('/')?.0))
        .take_while(|prefix| !prefix.is_empty())
}
