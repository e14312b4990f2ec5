//! A wall clock that is off, for one process: no privilege, and nothing else on the machine notices.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// The library that moves a process's clock, for as long as this lives.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// Builds the library with the compiler that links Rust programs, too.
    ///
    /// # Panics
    /// If it cannot be built.
    pub fn build() -> Clock {
        let folder = tempfile::tempdir().expect("a folder");
        let source = folder.path().join("clock.c");
        std::fs::write(&source, include_str!("clock.c")).expect("write a file");
        let clock = Clock { folder };
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.library()).arg(source);
        assert!(command.status().expect("run cc").success(), "{command:?}");
        clock
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    /// What the environment of a process has to hold for its clock to be this many seconds ahead.
    pub fn ahead(&self, seconds: i64) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library().display().to_string()), ("CLOCK_OFF_S", seconds.to_string())]
    }
}

/// The day and hour, in UTC, as programs log them: `2026-01-31T23`; this many seconds from now.
///
/// # Panics
/// If there is no `date`.
pub fn hour(seconds_ahead: i64) -> String {
    let when = format!("{seconds_ahead} seconds");
    let output = Command::new("date").args(["-u", "-d", &when, "+%FT%H"]).output();
    let text = output.expect("run date").stdout;
    String::from_utf8(text).expect("a date").trim().to_owned()
}
