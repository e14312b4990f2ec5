//! A source as people name it on the command line: a directory of this machine, or a URL of a store.

use std::path::{Path, PathBuf};

use millrace_node::under_store::{FILE_SCHEME, is_remote, normal};

use crate::failure::Failure;

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A directory; the path is as it was given.
    Directory(PathBuf),
    /// A URL of a store, in its one form.
    Store(String),
}

impl Source {
    /// Reads a name: `DIR`, `file:///DIR`, or a URL such as `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// For a URL of a form that is not known; a usage failure with what to write.
    pub(crate) fn named(name: &Path) -> Result<Source, Failure> {
        let refused = |error: String| Failure::usage(format!("source {}: {error}", name.display()));
        let Some(text) = name.to_str() else { return Ok(Source::Directory(name.to_owned())) };
        if is_remote(text) {
            let url = normal(text).map_err(|error| refused(error.to_string()))?;
            return Ok(Source::Store(url));
        }
        let directory = text.strip_prefix(FILE_SCHEME);
        if directory.is_some_and(|it| !it.starts_with('/')) {
            return Err(refused("write file:///DIR, with the whole path of the directory".into()));
        }
        Ok(Source::Directory(directory.unwrap_or(text).into()))
    }

    /// Returns the source as a node takes it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Source::Directory(directory) => directory.clone(),
            Source::Store(url) => url.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_urls_are_told_apart() {
        let named = |text: &str| Source::named(Path::new(text)).unwrap();
        for (text, directory) in [("data", "data"), ("/a b", "/a b"), ("file:///data", "/data")] {
            assert_eq!(named(text), Source::Directory(directory.into()), "{text}");
        }
        assert_eq!(named("S3://box/it/"), Source::Store("s3://box/it".to_owned()));
        for text in ["file://data", "FILE:///data", "s3://", "https://me:secret@host"] {
            assert!(Source::named(Path::new(text)).is_err(), "{text}");
        }
    }
}
