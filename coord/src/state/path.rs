//! The rules for paths: which are valid, which are reserved, and how a path splits.
//!
//! A path here is any string that a client sent. The rules are those of ZooKeeper's `PathUtils` and
//! `PrepRequestProcessor`, which also splits the path of a create before it checks it.

use millrace_proto::zookeeper::Error;

/// Parent of the service's own nodes.
pub(super) const SYSTEM: &str = "/zookeeper";
/// Where quotas are set.
pub(super) const QUOTA: &str = "/zookeeper/quota";
/// Has the members of the ensemble as its data.
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
    // Java checks UTF-16 units: the surrogates D800 to DFFF stand for everything above FFFF.
    !matches!(u32::from(character), 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..)
}

/// Returns the path of the parent, empty for a child of the root. The path need not be valid otherwise.
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

/// True if no client may delete the node (ZooKeeper's `DataTree.isSpecialPath`).
pub(super) fn is_reserved(path: &str) -> bool {
    matches!(path, "/" | SYSTEM | QUOTA | CONFIG)
}

/// Lists the path and all its ancestors below the root, longest first.
pub(super) fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once('/')?.0))
        .take_while(|prefix| !prefix.is_empty())
}
