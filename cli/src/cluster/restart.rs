//! `millrace cluster restart`: each process of a cluster once more, one after the other.
//!
//! Owns the socket at which `cluster up` is asked for it. A process is restarted only when the one before serves
//! again, so reads and coordination go on. What is told on the socket is text: a line for each process, and at the
//! end `done`.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Member, STOP_WAIT, prepared, signal, spawn, wait_end, wait_ready};
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;

/// The socket in the directory of a cluster.
const SOCKET: &str = "control.sock";
/// The last line of a restart that went well.
const DONE: &str = "done";

/// Restart all processes of a cluster that runs, one after the other
///
/// Asks the `millrace cluster up` that runs with the same DIR. Replicas of coordination come first, then nodes. Each is
/// stopped and started as before, by the program that is at its place now, and the next one only when it serves again,
/// so that reads go on. A process that has ended is started. The cache of a node begins empty.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace cluster restart --dir /tmp/cluster")]
pub(super) struct RestartArgs {
    /// Directory that `millrace cluster up` was given
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Asks for a restart, and reports each process.
pub(super) fn run(args: &RestartArgs) -> Result<(), Failure> {
    let stream = UnixStream::connect(args.dir.join(SOCKET)).map_err(|error| {
        Failure::new(format!("no cluster runs in {}: {error}", args.dir.display()))
            .with_hint("start it: millrace cluster up --dir DIR")
    })?;
    let mut last = String::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if line != DONE {
            output::print(&format!("{}\n", output::visible(&line)))?;
        }
        last = line;
    }
    if last == DONE {
        return Ok(());
    }
    Err(Failure::new("not all processes were restarted")
        .with_hint("the last line, and what `millrace cluster up` says, have the reason"))
}

/// The socket of a cluster that runs; its name goes with this.
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens in the directory of a cluster.
    ///
    /// # Errors
    /// If the system refuses, such as for a path of more than 107 bytes.
    pub(super) fn listen(dir: &Path) -> Result<Control, Failure> {
        let path = dir.join(SOCKET);
        let fail = |error| {
            Failure::new(format!("listen at {}: {error}", path.display()))
                .with_hint("choose a --dir with a shorter path")
        };
        // An earlier run that was killed has left it: its ports were free, so it does not run.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => (),
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Control { listener, path })
    }

    /// Restarts the cluster, if that was asked for.
    pub(super) fn serve(&self, members: &mut [Member], signals: &Signals) {
        let Ok((mut stream, _)) = self.listener.accept() else { return };
        let mut tell = |line: &str| {
            // The process that asked may have gone; the restart goes on.
            let _ = writeln!(stream, "{line}");
        };
        for member in members {
            if signals.came_within(Duration::ZERO) {
                return tell("the cluster is stopping");
            }
            let start = Instant::now();
            match anew(member) {
                Ok(()) => {
                    let took_ms = start.elapsed().as_millis();
                    tell(&format!("{} serves again after {took_ms} ms", member.name));
                }
                Err(failure) => {
                    let why = failure.lines().unwrap_or_default().replace('\n', ", ");
                    output::note(&why);
                    return tell(&why);
                }
            }
        }
        tell(DONE);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Only the name is left otherwise, and the next start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Stops a process, starts it again as it was started, and waits until it serves.
fn anew(member: &mut Member) -> Result<(), Failure> {
    signal(member, Signal::TERM);
    wait_end(member, Instant::now() + STOP_WAIT);
    // If it does not serve again the error says so.
    member.has_ended = true;
    let mut command = prepared(&member.program);
    command.args(&member.arguments);
    *member = spawn(member.name.clone(), member.address, &member.home.clone(), command)?;
    wait_ready(member)
}
