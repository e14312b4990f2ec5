//! The program under test as a process: starts, stops, kills and pauses it, and reads what it printed.
//!
//! Always holds: the process is killed when its handle is dropped; its log is in a file, which is
//! printed when the test fails; nothing of the environment configures it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::HANG_GUARD;

/// Variable with the path of another binary than this build's, such as an installed one.
const BINARY_VARIABLE: &str = "MILLRACE_BINARY";
/// Lines of a log that are printed when a test fails: the end says why, mostly.
const LOG_LINES_SHOWN: usize = 200;

/// Built once for each run of the tests, because one from an earlier build would prove nothing.
static BINARY: LazyLock<Result<PathBuf, String>> =
    LazyLock::new(|| binary().map_err(|error| format!("{error:#}")));

fn binary() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(binary.into());
    }
    // target/<profile>/deps/e2e-<hash> for a test, target/<profile>/faults for a program.
    let test = std::env::current_exe().context("find this executable")?;
    let folder = test.parent().context("find the folder of this executable")?;
    let is_test = folder.file_name().is_some_and(|name| name == "deps");
    let profile = if is_test { folder.parent() } else { Some(folder) };
    let profile = profile.context("find the target directory")?;
    let binary = profile.join("millrace");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let name = match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let arguments = ["build", "--quiet", "--package", "millrace-cli", "--profile", name];
        let built = Command::new(cargo).args(arguments).status().context("run cargo")?;
        if !built.success() {
            bail!("`cargo {}` failed", arguments.join(" "));
        }
    }
    if !binary.exists() {
        bail!("{} is not there; run `cargo build --package millrace-cli`", binary.display());
    }
    Ok(binary)
}

/// Processes that were started and not waited for.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Kills every process that was started here, for a program that ends without dropping its handles.
pub fn kill_all() {
    for process in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(pid) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
            // It may have ended, but was not waited for, so no other process has its number.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Returns where the program under test is.
///
/// # Errors
/// It could not be built or found.
pub fn program() -> anyhow::Result<&'static Path> {
    match &*BINARY {
        Ok(binary) => Ok(binary),
        Err(error) => Err(anyhow!("no `millrace` binary to test: {error}")),
    }
}

/// What a process holds in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident, shared memory included.
    pub resident: u64,
    /// Resident shared memory: the blocks.
    pub shared: u64,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// What it is, for messages.
    name: String,
    child: Child,
    lines: Receiver<String>,
    logs: TempDir,
}

impl Process {
    /// Starts `command`; `name` says in messages what it is.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(name: impl Into<String>, command: &mut Command) -> anyhow::Result<Process> {
        Process::spawn_logging_to(name, command, None)
    }

    /// As [`Process::spawn`], with another place for its log than a file that the tests read.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn_logging_to(
        name: impl Into<String>,
        command: &mut Command,
        log: Option<Stdio>,
    ) -> anyhow::Result<Process> {
        let logs = tempfile::Builder::new().prefix("millrace-log-").tempdir()?;
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|variable| variable.starts_with("MILLRACE_")) {
                command.env_remove(variable);
            }
        }
        command.env("NO_COLOR", "1");
        let log = match log {
            Some(log) => log,
            None => File::create(logs.path().join("stderr"))?.into(),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(child.id());
        let output = child.stdout.take().context("standard output is piped")?;
        Ok(Process { name: name.into(), child, lines: read_lines(output), logs })
    }

    /// Waits for a line that has `mark`, and returns what stands after it.
    ///
    /// # Errors
    /// The process ended or hangs; with what it wrote. It is dead then.
    pub fn wait_for_line(&mut self, mark: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        let why = loop {
            let left = HANG_GUARD.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(mark) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => break "it hangs",
                Err(RecvTimeoutError::Disconnected) => break "it closed its output",
            }
        };
        // It may have ended by itself; then there is nothing to kill.
        if why == "it hangs" {
            let _ = self.child.kill();
        }
        let status = self.wait();
        bail!("no line with '{mark}': {why}; it ended with {status} and wrote:\n{}", self.log());
    }

    /// True if the process lives.
    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Returns how it ended, if it did.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("ask for the process");
        if status.is_some() {
            self.forget();
        }
        status
    }

    fn forget(&self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.child.id());
    }

    /// Returns its number, for [`memory_of`].
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its number as system calls want it.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal, without waiting.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("send a signal");
    }

    /// Asks the process to stop, as a service manager does, without waiting.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// If that takes longer than the guard.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < HANG_GUARD, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the process and checks that it ended well: exit status 0, no error in its log.
    ///
    /// # Panics
    /// If not.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}", self.name);
        let log = self.log();
        let bad = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        assert_eq!(bad, None, "in the log of {}", self.name);
    }

    /// Kills the process as a crash would.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the process");
        self.child.wait().expect("wait for the process");
        self.forget();
    }

    /// Returns what the process wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.logs.path().join("stderr")).unwrap_or_default()
    }

    /// Returns what the process holds in memory now.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn memory(&self) -> Memory {
        memory_of(self.child.id()).expect("read the process's memory from /proc")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.forget();
        if std::thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
            let end: Vec<&str> = log.lines().skip(skipped).collect();
            eprintln!("--- log of {} ---\n{}\n---", self.name, end.join("\n"));
        }
    }
}

/// Reads all lines of a process, so that it never waits for its reader.
fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // The receiver is gone once the last handle is dropped.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Returns a pipe for a process's log, full and never read, and its other end.
///
/// # Panics
/// If there are no pipes to be had.
pub fn unread_log() -> (File, Stdio) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).expect("set a flag");
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b".").is_ok() {}
    // The flags are as before, so a process waits when it logs.
    rustix::fs::fcntl_setfl(&writer, OFlags::empty()).expect("set a flag");
    (reader.into(), writer.into())
}

/// Returns what a process holds in memory, if it lives.
pub fn memory_of(process: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes << 10)
    };
    Some(Memory { resident: field("VmRSS:")?, shared: field("RssShmem:")? })
}
