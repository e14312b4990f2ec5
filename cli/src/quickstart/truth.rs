//! What the source says by itself, past the node: the bytes that those of the cache have to be.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use millrace_stores::Direct;

/// A source that is asked directly.
pub(super) enum Truth {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A store on another machine, over connections of its own.
    Store(Direct),
}

impl Truth {
    /// Counts the names in a directory; 0 where it cannot be listed.
    pub(super) async fn name_count(&self, path: &str) -> usize {
        match self {
            Truth::Directory(root) => std::fs::read_dir(root.join(path)).map_or(0, Iterator::count),
            Truth::Store(store) => store.name_count(path).await.unwrap_or(0),
        }
    }

    /// Reads a range of a file, which is shorter where the file ends first.
    ///
    /// # Errors
    /// In the words of the source.
    pub(super) async fn read(&self, path: &str, offset: u64, length: u64) -> Result<Bytes, String> {
        match self {
            Truth::Directory(root) => {
                let bytes = read(&root.join(path), offset, length);
                bytes.map(Bytes::from).map_err(|error| error.to_string())
            }
            Truth::Store(store) => {
                let bytes = store.read(path, offset..offset + length).await;
                bytes.map_err(|error| error.to_string())
            }
        }
    }
}

fn read(path: &Path, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; length as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Returns the index of the first byte that differs, or that one side lacks.
pub(super) fn difference(expected: &[u8], bytes: &[u8]) -> Option<u64> {
    let same = expected.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    (expected.len() != bytes.len() || same < bytes.len()).then_some(same as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_range_of_a_file_ends_with_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("f"), "0123456789").unwrap();
        let truth = Truth::Directory(root.path().to_owned());
        assert_eq!(truth.read("f", 4, 3).await.unwrap(), "456");
        assert_eq!(truth.read("f", 4, 9).await.unwrap(), "456789", "the source is shorter");
        assert!(truth.read("none", 0, 1).await.unwrap_err().contains("No such file"));
        assert_eq!(truth.name_count("").await, 1);
    }

    #[test]
    fn one_wrong_byte_is_found_at_its_offset() {
        assert_eq!(difference(b"0123456789", b"0123456789"), None);
        assert_eq!(difference(b"456", b"4x6"), Some(1));
        assert_eq!(difference(b"456", b"45"), Some(2), "too few bytes");
        assert_eq!(difference(b"45", b"456"), Some(2), "the source is shorter");
    }
}
