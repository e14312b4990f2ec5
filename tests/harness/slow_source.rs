//! A directory whose file system answers when it is told to: FUSE, spoken by hand, so that a source can
//! hang as a dead network file system does.
//!
//! Always holds: what is asked while it hangs is answered when it goes on, or fails when it is dropped.
//! Needs the right to mount; tests that cannot have it say so and are skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Length of each file in the directory.
pub const FILE_LENGTH: u64 = 4 << 20;

/// What the file system answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Answers {
    /// Everything.
    All,
    /// Everything but reads of files.
    Looks,
    /// Nothing: requests are not even taken, so that a process that waits can be ended.
    Nothing,
}

/// The mounted directory. Every name that is looked up in it is a file of [`FILE_LENGTH`] bytes of
/// zeros.
#[derive(Debug)]
pub struct SlowSource {
    directory: PathBuf,
    answers: Arc<AtomicU8>,
    device: File,
}

/// Bytes of `fuse_in_header` and `fuse_out_header`.
const REQUEST_HEADER: usize = 40;
const REPLY_HEADER: usize = 16;
/// How soon a change of what is answered is noticed.
const PAUSE: Duration = Duration::from_millis(1);
/// Codes of operations, from linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// `ENOSYS`, negative.
const NOT_THERE: i32 = -38;
/// Numbers of the directory and of every file.
const ROOT: u64 = 1;
const FILE: u64 = 2;

impl SlowSource {
    /// Mounts the file system at a directory, which is made; None if that is not allowed.
    ///
    /// # Panics
    /// If the directory cannot be made.
    pub fn mount(directory: &Path) -> Option<SlowSource> {
        std::fs::create_dir_all(directory).expect("make a directory");
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let as_input = device.try_clone().expect("another descriptor");
        // The descriptor of the connection is the program's standard input.
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        let mut command = Command::new("mount");
        command.args(["-i", "-t", "fuse", "-o", options, "slow"]).arg(directory).stdin(as_input);
        if !command.status().is_ok_and(|status| status.success()) {
            return None;
        }
        let answers = Arc::new(AtomicU8::new(Answers::All as u8));
        let (for_thread, to_thread) = (Arc::clone(&answers), device.try_clone().expect("one more"));
        std::thread::spawn(move || serve(to_thread, &for_thread));
        Some(SlowSource { directory: directory.to_owned(), answers, device })
    }

    /// Sets what it answers from now on.
    pub fn set(&self, answers: Answers) {
        self.answers.store(answers as u8, Ordering::SeqCst);
    }
}

impl Drop for SlowSource {
    fn drop(&mut self) {
        // Requests that hang are answered first, because a process that waits for one that was taken
        // cannot be ended. So tests drop this before the node.
        self.set(Answers::All);
        let mut command = Command::new("umount");
        let _ = command.arg("-l").arg(&self.directory).status();
        let _ = self.device.flush();
    }
}

fn serve(mut device: File, answers: &AtomicU8) {
    let mut buffer = vec![0; 1 << 20];
    let mut held: Vec<Vec<u8>> = Vec::new();
    let may = |opcode: u32| match answers.load(Ordering::SeqCst) {
        level if level == Answers::All as u8 => true,
        level if level == Answers::Looks as u8 => opcode != READ,
        _ => opcode == INIT,
    };
    rustix::io::ioctl_fionbio(&device, true).expect("a descriptor that does not block");
    loop {
        let (now, later) = held.drain(..).partition(|request| may(opcode(request)));
        held = later;
        let requests: Vec<Vec<u8>> = now;
        for request in requests {
            answer(&mut device, &request);
        }
        if answers.load(Ordering::SeqCst) == Answers::Nothing as u8 {
            std::thread::sleep(PAUSE);
            continue;
        }
        match device.read(&mut buffer) {
            Ok(length) => held.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(PAUSE);
            }
            // A request was taken back; or the file system is gone.
            Err(error) if error.raw_os_error() == Some(2) => (),
            Err(_) => return,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn opcode(request: &[u8]) -> u32 {
    word(request, 4)
}

fn answer(device: &mut File, request: &[u8]) {
    let (unique, node) = (long(request, 8), long(request, 16));
    let body = &request[REQUEST_HEADER..];
    let reply = match opcode(request) {
        INIT => Ok(init(body)),
        LOOKUP => {
            let times = [FILE, 0, 0, 0, 0].iter().flat_map(|value: &u64| value.to_le_bytes());
            Ok(times.chain(attributes(FILE)).collect())
        }
        GETATTR => Ok([0; 16].into_iter().chain(attributes(node)).collect()),
        // Reads go past the kernel's cache.
        OPEN => Ok([0u64, 1].iter().flat_map(|value| value.to_le_bytes()).collect()),
        OPENDIR => Ok(vec![0; 16]),
        STATFS => Ok(vec![0; 80]),
        READ => {
            let (offset, size) = (long(body, 8), u64::from(word(body, 16)));
            let size = size.min(FILE_LENGTH.saturating_sub(offset));
            Ok(vec![0; size as usize])
        }
        RELEASE | FLUSH => Ok(Vec::new()),
        FORGET | BATCH_FORGET | INTERRUPT => return,
        _ => Err(NOT_THERE),
    };
    let (error, body): (i32, Vec<u8>) = match reply {
        Ok(body) => (0, body),
        Err(error) => (error, Vec::new()),
    };
    let mut bytes = Vec::with_capacity(REPLY_HEADER + body.len());
    bytes.extend(((REPLY_HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend(error.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    // It may have been taken back.
    let _ = device.write_all(&bytes);
}

/// Returns `fuse_init_out`: version 7.31, 128 KiB at most in a write, so that a message fits the buffer.
fn init(body: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    for value in [7, 31, word(body, 8), 0] {
        reply.extend(value.to_le_bytes());
    }
    reply.extend(12u16.to_le_bytes());
    reply.extend(9u16.to_le_bytes());
    reply.extend((1u32 << 17).to_le_bytes());
    reply.extend(1u32.to_le_bytes());
    reply.resize(64, 0);
    reply
}

/// Returns `fuse_attr` of the directory or of a file, changed in 2001.
fn attributes(node: u64) -> Vec<u8> {
    let is_root = node == ROOT;
    let size = if is_root { 0 } else { FILE_LENGTH };
    let mut reply: Vec<u8> = Vec::new();
    for value in [node, size, size / 512, 1_000_000_000, 1_000_000_000, 1_000_000_000] {
        reply.extend(value.to_le_bytes());
    }
    let mode = if is_root { 0o040_755 } else { 0o100_644 };
    for value in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0u32] {
        reply.extend(value.to_le_bytes());
    }
    reply
}
