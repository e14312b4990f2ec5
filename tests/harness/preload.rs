//! Libraries that are loaded before the C library and deceive or disturb a process: no privilege is
//! needed, and nothing else on the machine notices.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A library, for as long as this lives.
#[derive(Debug)]
pub struct Preload {
    folder: TempDir,
}

impl Preload {
    /// Moves the wall clock.
    pub fn clock() -> Preload {
        Preload::build(include_str!("preload/clock.c"))
    }

    /// Takes the processor away for 120 ms at a time, where glommio does not expect it.
    pub fn stall() -> Preload {
        Preload::build(include_str!("preload/stall.c"))
    }

    /// Builds it with the compiler that links Rust programs, too.
    fn build(source: &str) -> Preload {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("preload.c");
        std::fs::write(&path, source).expect("write a file");
        let preload = Preload { folder };
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(preload.library()).arg(path);
        assert!(command.arg("-ldl").status().expect("run cc").success(), "{command:?}");
        preload
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("preload.so")
    }

    /// Returns what the environment of a process has to hold to load it.
    pub fn environment(&self) -> [(&'static str, String); 1] {
        [("LD_PRELOAD", self.library().display().to_string())]
    }

    /// Returns the same for [`Preload::clock`], this many seconds ahead.
    pub fn ahead(&self, seconds: i64) -> impl Iterator<Item = (&'static str, String)> {
        self.environment().into_iter().chain([("CLOCK_OFF_S", seconds.to_string())])
    }
}

/// Returns the day and hour, in UTC, as programs log them: `2026-01-31T23`; this many seconds from now.
///
/// # Panics
/// If there is no `date`.
pub fn hour(seconds_ahead: i64) -> String {
    let when = format!("{seconds_ahead} seconds");
    let output = Command::new("date").args(["-u", "-d", &when, "+%FT%H"]).output();
    let text = output.expect("run date").stdout;
    String::from_utf8(text).expect("a date").trim().to_owned()
}
