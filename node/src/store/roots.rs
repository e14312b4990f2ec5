//! Which sources a node may serve, whatever mounts them: those below its mount roots.
//!
//! A source is a directory of this machine (`file:///DIR`) or a URL of a store elsewhere. Always holds: a
//! source is compared with the roots by whole parts, and a URL has one form only, so that one store has one
//! name on every node.

use std::path::Path;

use millrace_client::source::{Root, Roots};

use super::StoreError;
use crate::config::Config;

/// How sources on this machine begin.
pub const FILE_SCHEME: &str = "file://";
/// Longest name of a source in bytes.
pub(crate) const SOURCE_LENGTH_MAX: usize = 4096;
/// Why a source is not served.
pub(super) const OUTSIDE: &str =
    "the source lies below none of this node's mount roots: start the node with --mount-root";

/// The places below which sources may lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountRoots {
    directories: Roots,
    remote: Vec<String>,
}

/// Where a source lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Directory(Root),
    /// At a store, whose URL is in its one form.
    Remote(String),
}

impl MountRoots {
    /// Returns the roots of a configuration: its source alone if it names none.
    pub(crate) fn of(config: &Config) -> MountRoots {
        let source = Some(&config.source).filter(|it| !it.as_os_str().is_empty());
        match config.mount_roots.is_empty() {
            true => MountRoots::new(source.map(AsRef::as_ref)),
            false => MountRoots::new(config.mount_roots.iter().map(AsRef::as_ref)),
        }
    }

    /// Takes directories and URLs for roots.
    pub(crate) fn new<'a>(roots: impl IntoIterator<Item = &'a Path>) -> MountRoots {
        let (remote, directories): (Vec<_>, Vec<_>) =
            roots.into_iter().partition(|root| is_remote(root));
        let remote = remote.iter().filter_map(|root| normal(root.to_str()?).ok());
        MountRoots {
            remote: remote.collect(),
            directories: Roots::new(directories.into_iter().map(Path::to_owned)),
        }
    }

    /// Finds where a source lies.
    ///
    /// # Errors
    /// [`StoreError::Denied`] for one below no root, [`StoreError::InvalidPath`] for a form that is not known.
    pub(crate) fn find(&self, source: &str) -> Result<Location, StoreError> {
        if let Some(directory) = source.strip_prefix(FILE_SCHEME) {
            let directory = Path::new(directory);
            let root = Some(directory).filter(|it| it.is_absolute());
            let root = root.ok_or(StoreError::InvalidPath("write file:///DIR"))?;
            let found = self.directories.find(root).ok_or(StoreError::Denied(OUTSIDE))?;
            return Ok(Location::Directory(found));
        }
        let source = normal(source)?;
        let is_below = |root: &String| {
            let rest = source.strip_prefix(root.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self.remote.iter().any(is_below) {
            true => Ok(Location::Remote(source)),
            false => Err(StoreError::Denied(OUTSIDE)),
        }
    }
}

/// True if a source is a URL of a store that is not a directory of this machine.
pub fn is_remote(source: impl AsRef<Path>) -> bool {
    let text = source.as_ref().to_str().unwrap_or_default();
    text.contains("://") && !text.starts_with(FILE_SCHEME)
}

/// Returns the one form of a URL: a scheme in small letters, a host or bucket, and parts of a path without a
/// `/` at the end.
///
/// # Errors
/// [`StoreError::InvalidPath`] for a text that is not such a URL, or that carries a password.
pub fn normal(url: &str) -> Result<String, StoreError> {
    let refuse = |message| Err(StoreError::InvalidPath(message));
    let Some((scheme, rest)) = url.split_once("://") else {
        return refuse("not a source: write file:///DIR, or a URL such as s3://BUCKET/PREFIX");
    };
    if !scheme.starts_with(|it: char| it.is_ascii_alphabetic())
        || !scheme.chars().all(|it| it.is_ascii_alphanumeric() || it == '+')
    {
        return refuse("the scheme of the source has letters and digits alone, as in s3://BUCKET");
    }
    if scheme.eq_ignore_ascii_case("file") {
        return refuse("write file:///DIR, with the whole path of the directory");
    }
    if url.len() > SOURCE_LENGTH_MAX {
        return refuse("the name of a source has at most 4096 bytes");
    }
    if url.chars().any(|it| it.is_control() || matches!(it, '?' | '#' | '\\')) {
        return refuse(
            "a source has no '?', '#', '\\' and no control characters: give options by \
                       --source-option KEY=VALUE",
        );
    }
    let rest = rest.trim_end_matches('/');
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return refuse("the source names no bucket or host, as in s3://BUCKET/PREFIX");
    }
    if authority.split_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return refuse(
            "a source carries no password: credentials belong into the node's environment",
        );
    }
    // A web server takes `%2e` for a point.
    let plain = path.to_ascii_lowercase().replace("%2e", ".");
    if !path.is_empty() && plain.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("a part of the source's path is empty, '.' or '..'");
    }
    Ok(format!("{}://{rest}", scheme.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_url_has_one_form() {
        let form = |url| normal(url).map_err(|error| error.to_string());
        assert_eq!(form("S3://bucket/a/b//").unwrap(), "s3://bucket/a/b");
        assert_eq!(form("https://host:8080").unwrap(), "https://host:8080");
        assert_eq!(form("abfss://box@it.example/x").unwrap(), "abfss://box@it.example/x");
        let refused = [
            "/data",
            "file://relative",
            "s3:/b",
            "s3://",
            "s3:///x",
            "://b",
            "3s://b",
            "s3://b/a//c",
            "s3://b/../c",
            "s3://b/./c",
            "https://h/a/%2E%2e/c",
            "https://h/a/.%2e",
            "https://h/?k=v",
            "https://h/#x",
            "https://me:secret@h/x",
            "s3://b/\n",
        ];
        for url in refused {
            assert!(form(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_source_lies_below_a_root_by_whole_parts() {
        let roots = ["/data", "s3://bucket/a/", "https://host:1/"].map(PathBuf::from);
        let roots = MountRoots::new(roots.iter().map(AsRef::as_ref));
        let is_served = |source| roots.find(source).is_ok();
        for source in ["file:///data/x", "s3://bucket/a", "s3://bucket/a/b", "https://host:1/x"] {
            assert!(is_served(source), "{source}");
        }
        let outside =
            ["file:///etc", "s3://bucket/ab", "s3://bucket", "s3://bucket2/a", "gs://bucket/a"];
        for source in outside {
            assert!(!is_served(source), "{source}");
        }
    }
}
