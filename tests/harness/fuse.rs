//! A file system in this process (FUSE) with one file, `f`, that changes when a test says so. What it
//! reports of the file and what it returns of the content change apart from each other.
//!
//! Speaks just enough of the kernel's protocol, version 7.31 (fuse(4), `linux/fuse.h`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::HANG_GUARD;
use crate::mounted::{Missing, MountPoint, needs_root, scratch, text};

/// Number of the file's inode.
const FILE: u64 = 2;
/// How long the kernel may keep attributes, in seconds: longer than any test.
const VALID: u64 = 3600;
/// Largest request that is read.
const REQUEST_MAX: usize = 1 << 20;

/// What the file is.
#[derive(Clone, Debug)]
pub struct State {
    /// Every byte of it.
    pub byte: u8,
    /// Its length.
    pub length: u64,
    /// Its mtime and ctime, seconds since the epoch.
    pub changed: u64,
}

/// The mounted file system.
#[derive(Debug)]
pub struct Fuse {
    state: Arc<Mutex<State>>,
    point: MountPoint,
    _directory: TempDir,
}

impl Fuse {
    /// Mounts a file system whose file is this at first.
    ///
    /// # Errors
    /// There is no FUSE here.
    pub fn mount(state: State) -> Result<Fuse, Missing> {
        needs_root()?;
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let directory = scratch();
        let mut point = MountPoint::at(directory.path().join("mounted"));
        let state = Arc::new(Mutex::new(state));
        let server = device.try_clone().map_err(|error| error.to_string())?;
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || serve(server, &state)
        });
        // Its standard input is the device.
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        let output = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", options, "test", text(point.path())])
            .stdin(Stdio::from(device))
            .output()
            .map_err(|error| format!("mount: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        point.was_mounted();
        Ok(Fuse { state, point, _directory: directory })
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// Changes the file on the server, without a message to the kernel.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Answers until it is unmounted.
fn serve(mut device: File, state: &Mutex<State>) {
    let mut request = vec![0; REQUEST_MAX];
    let start = std::time::Instant::now();
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // The file system is not mounted yet.
            Err(error) if is(&error, Errno::PERM) && start.elapsed() < HANG_GUARD => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(error) if is(&error, Errno::INTR) || is(&error, Errno::NOENT) => continue,
            Err(_) => return,
        };
        let state = state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(reply) = answer(&request[..length], &state) else { continue };
        // The program that asked may have given up.
        let _ = device.write(&reply);
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns the reply to a request, if there is one.
fn answer(request: &[u8], state: &State) -> Option<Vec<u8>> {
    let (op, unique, node) = (number(request, 4, 4), number(request, 8, 8), number(request, 16, 8));
    let body = &request[40..];
    let mut out = Vec::new();
    let mut status = 0;
    match op {
        // INIT: the version, then limits, of which only the largest write (128 KiB) is not zero.
        26 => {
            words(&mut out, &[7, 31, 4096, 0, 9 << 16 | 12, 128 << 10, 1]);
            out.resize(64, 0);
        }
        // LOOKUP of a name in the root.
        1 if body.starts_with(b"f\0") => {
            longs(&mut out, &[FILE, 0, VALID, VALID, 0]);
            attributes(&mut out, FILE, state);
        }
        1 => status = -Errno::NOENT.raw_os_error(),
        // GETATTR.
        3 => {
            longs(&mut out, &[VALID, 0]);
            attributes(&mut out, node, state);
        }
        // OPEN and OPENDIR.
        14 | 27 => out.resize(16, 0),
        // READ.
        15 => {
            let (offset, size) = (number(body, 8, 8), number(body, 16, 4));
            out.resize(size.min(state.length.saturating_sub(offset)) as usize, state.byte);
        }
        // RELEASE, FLUSH, RELEASEDIR: nothing to do.
        18 | 25 | 29 => (),
        // FORGET and BATCH_FORGET have no reply.
        2 | 42 => return None,
        _ => status = -Errno::NOSYS.raw_os_error(),
    }
    let mut reply = Vec::with_capacity(16 + out.len());
    words(&mut reply, &[16 + out.len() as u32, status as u32]);
    longs(&mut reply, &[unique]);
    reply.extend(out);
    Some(reply)
}

fn attributes(out: &mut Vec<u8>, node: u64, state: &State) {
    let (mode, length) = if node == FILE { (0o100_644, state.length) } else { (0o40_755, 0) };
    let State { changed, .. } = *state;
    longs(out, &[node, length, length / 512, changed, changed, changed]);
    words(out, &[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]);
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn longs(out: &mut Vec<u8>, longs: &[u64]) {
    out.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
}
