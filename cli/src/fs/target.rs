//! Where the bytes of a copied file go: a new file, one that is replaced, or what takes bytes as they come.
//!
//! Always holds: a device, a FIFO or a socket is written into and never replaced; a symbolic link stays, and what it
//! leads to is replaced.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::NamedTempFile;

/// Bytes that are left out as a hole if all of them are zero.
const HOLE_SIZE: usize = 64 << 10;

/// Where a file goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// A file of this name, which appears whole.
    File(PathBuf),
    /// A device, a FIFO or a socket, which takes the bytes in order.
    Stream(PathBuf),
}

/// Looks at what is there.
///
/// # Errors
/// For a directory, and for a symbolic link that leads nowhere.
pub(super) fn destination(target: &Path) -> io::Result<Destination> {
    let (own, meant) = (fs::symlink_metadata(target), fs::metadata(target));
    match (own, meant) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Destination::File(target.to_owned()))
        }
        (Err(error), _) => Err(error),
        (Ok(_), Err(error)) => {
            let text =
                format!("it is a symbolic link that leads nowhere ({error}): remove it first");
            Err(io::Error::new(error.kind(), text))
        }
        (Ok(_), Ok(meant)) if meant.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        (Ok(own), Ok(meant)) if meant.is_file() => match own.is_symlink() {
            true => fs::canonicalize(target).map(Destination::File),
            false => Ok(Destination::File(target.to_owned())),
        },
        (Ok(_), Ok(_)) => Ok(Destination::Stream(target.to_owned())),
    }
}

/// Makes a file beside the target that is removed unless it gets its name; its permissions follow `umask`. With
/// `makes_directories` the directories above are made, too.
///
/// # Errors
/// If the directory is not there, or takes no file.
pub(super) fn part_file(target: &Path, makes_directories: bool) -> io::Result<NamedTempFile> {
    let directory = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if makes_directories {
        fs::create_dir_all(directory)?;
    } else if !directory.is_dir() {
        let text = format!("there is no directory {}: make it first", directory.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    tempfile::Builder::new()
        .prefix(".millrace-")
        .suffix(".part")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
}

/// Writes bytes at an offset of a new file; runs of zeros stay holes, so the file must get its length afterwards.
pub(super) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (mut start, mut at) = (0, 0);
    let flush = |from: usize, to: usize| match from < to {
        true => file.write_all_at(&bytes[from..to], offset + from as u64),
        false => Ok(()),
    };
    for chunk in bytes.chunks(HOLE_SIZE) {
        if is_zero(chunk) {
            flush(start, at)?;
            start = at + chunk.len();
        }
        at += chunk.len();
    }
    flush(start, at)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Gives a file its length, its time of change (milliseconds since 1970, 0 if it is not known) and its name.
pub(super) fn keep(
    part: NamedTempFile,
    target: &Path,
    length: u64,
    modified_ms: i64,
) -> io::Result<()> {
    let file = part.as_file();
    file.set_len(length)?;
    if modified_ms != 0 {
        let distance = Duration::from_millis(modified_ms.unsigned_abs());
        let time = match modified_ms > 0 {
            true => UNIX_EPOCH.checked_add(distance),
            false => UNIX_EPOCH.checked_sub(distance),
        };
        if let Some(time) = time {
            file.set_modified(time)?;
        }
    }
    part.persist(target).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn what_is_not_a_regular_file_is_written_into_and_links_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert_eq!(destination(&path("new")).unwrap(), Destination::File(path("new")));
        fs::write(path("file"), "x").unwrap();
        symlink("file", path("link")).unwrap();
        symlink("nowhere", path("lost")).unwrap();
        let real = fs::canonicalize(path("file")).unwrap();
        assert_eq!(destination(&path("file")).unwrap(), Destination::File(path("file")));
        assert_eq!(destination(&path("link")).unwrap(), Destination::File(real));
        let device = PathBuf::from("/dev/null");
        assert_eq!(destination(&device).unwrap(), Destination::Stream(device));
        assert!(destination(&path("lost")).unwrap_err().to_string().contains("leads nowhere"));
        assert!(destination(directory.path()).is_err());
    }

    #[test]
    fn part_of_a_file_that_fails_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("deep/file");
        let refused = part_file(&target, false).unwrap_err().to_string();
        assert!(refused.contains("make it first"), "{refused}");
        let part = part_file(&target, true).unwrap();
        let count = || fs::read_dir(directory.path().join("deep")).unwrap().count();
        assert_eq!(count(), 1);
        drop(part);
        assert_eq!(count(), 0);
    }

    #[test]
    fn zeros_are_holes_and_everything_else_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("file");
        let mut bytes = vec![0; 5 * HOLE_SIZE + 100];
        bytes[HOLE_SIZE + 7] = 1;
        bytes[4 * HOLE_SIZE] = 2;
        let part = part_file(&target, false).unwrap();
        let (first, second) = bytes.split_at(2 * HOLE_SIZE + 5);
        write(part.as_file(), second, first.len() as u64).unwrap();
        write(part.as_file(), first, 0).unwrap();
        keep(part, &target, bytes.len() as u64, 86_400_000).unwrap();
        assert_eq!(fs::read(&target).unwrap(), bytes);
        let metadata = fs::metadata(&target).unwrap();
        assert_eq!(metadata.mtime(), 86_400);
        assert!(metadata.blocks() * 512 < bytes.len() as u64, "{} blocks", metadata.blocks());
    }
}
