//! Secrets in files: the secret of a cluster's members, and the token of administrators.
//!
//! Always holds: a secret comes from a file that not every user of the machine may read, and is shown
//! nowhere.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use millrace_proto::proof::{SECRET_LENGTH_MAX, SECRET_LENGTH_MIN, Secret};

/// Why a file gives no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("read the secret in {}: {error}; name the file that has it, the same as elsewhere", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is a directory, or a pipe, which may never give anything.
    #[error("{} is not a regular file; name the file that has the secret", .0.display())]
    Kind(PathBuf),
    /// Every user of the machine may read it.
    #[error("every user of this machine may access {path}; `chmod 600 {path}`", path = .0.display())]
    Open(PathBuf),
    /// It is too short or too long to be a secret.
    #[error(
        "{} holds no secret; it has to have {SECRET_LENGTH_MIN} to {SECRET_LENGTH_MAX} bytes by chance, \
         such as those of `openssl rand -hex 32`",
        .0.display()
    )]
    Length(PathBuf),
}

/// Reads the secret in a file.
///
/// # Errors
/// [`SecretError`].
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    let failed = |error| SecretError::Read { path: path.to_owned(), error };
    // This is checked before it is opened, which may wait for ever at a pipe.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(SecretError::Kind(path.to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o007 != 0 {
        return Err(SecretError::Open(path.to_owned()));
    }
    let mut content = Vec::new();
    // White space may surround it.
    file.take(2 * SECRET_LENGTH_MAX as u64).read_to_end(&mut content).map_err(failed)?;
    Secret::parse(&content).ok_or_else(|| SecretError::Length(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_no_file_is_told_so_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()), Err(SecretError::Kind(_))));
        let pipe = directory.path().join("pipe");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, 0o600.into(), 0).unwrap();
        assert!(matches!(read(&pipe), Err(SecretError::Kind(_))));
    }

    #[test]
    fn a_secret_is_long_enough_and_not_for_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let write = |content: &str, mode: u32| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert!(matches!(read(&path), Err(SecretError::Read { .. })));
        assert!(write("0123456789abcdef\n", 0o640).is_ok());
        assert!(matches!(write("0123456789abcdef", 0o644), Err(SecretError::Open(_))));
        let short = write("0123456789abcde\n", 0o600).unwrap_err();
        assert!(matches!(short, SecretError::Length(_)));
        assert!(short.to_string().contains("16 to 4096 bytes"), "{short}");
        assert!(short.to_string().contains("openssl rand -hex 32"), "{short}");
        assert!(matches!(write("", 0o600), Err(SecretError::Length(_))));
        let long = "s".repeat(SECRET_LENGTH_MAX);
        assert!(
            write(&format!(" {long}\n"), 0o600).is_ok(),
            "white space around it is not a part of it"
        );
        assert!(matches!(write(&format!("{long}s"), 0o600), Err(SecretError::Length(_))));
    }
}
