//! Lines that wait to be written: a bounded buffer between the threads that log and the one that writes.
//!
//! Always holds: adding a line waits for no write; memory is bounded; written lines are whole and in
//! order. A line that the system cut is followed by a line break.

use std::io::{self, ErrorKind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::form::LogFormat;
use super::repeats::{Kind, Repeats};

/// Bytes that may wait. Guessed: some thousand lines, what a busy start or a cluster's trouble brings.
const BYTES_MAX: usize = 256 << 10;
/// How often a write is tried again, to log how much was lost.
const RETRY: Duration = Duration::from_secs(1);
/// Pause before a write is tried again that the system neither did nor refused.
const PAUSE: Duration = Duration::from_millis(10);

/// Lines that wait.
#[derive(Default)]
pub(super) struct Lines {
    format: LogFormat,
    state: Mutex<State>,
    /// Wakes the writer: there is something to write.
    added: Condvar,
    /// Wakes `flush`: something was written.
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    repeats: Repeats,
    /// Lines that were dropped because too many waited.
    dropped_count: u64,
    /// True if the thread has taken lines and not written them yet.
    is_writing: bool,
    /// True if held lines are to be written at once.
    is_ending: bool,
}

impl State {
    fn add(&mut self, line: &[u8]) {
        if self.waiting.len() + line.len() > BYTES_MAX {
            self.dropped_count += 1;
        } else {
            self.waiting.extend_from_slice(line);
        }
    }

    /// Moves held lines to those that wait, if their time has come.
    fn release(&mut self, now: Instant) {
        let mut due = Vec::new();
        self.repeats.release(now, self.is_ending, |line| due.push(line.to_vec()));
        due.iter().for_each(|line| self.add(line));
    }
}

impl Lines {
    /// Creates a buffer without lines; the lines that it adds itself have this form.
    pub(super) fn new(format: LogFormat) -> Lines {
        Lines { format, ..Lines::default() }
    }

    /// Adds a message for people.
    pub(super) fn note(&self, text: &str) {
        self.add(self.format.note(text).as_bytes());
    }

    /// Returns the line that says how many lines were lost.
    fn missing(&self, count: u64) -> String {
        let lines = if count == 1 { "line" } else { "lines" };
        let message = format!("{count} {lines} missing here: could not be written");
        self.format.line("WARN", "millrace::log", &message)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it added a line did no harm to those before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or counts it as lost when too many wait.
    pub(super) fn add(&self, line: &[u8]) {
        self.state().add(line);
        self.added.notify_one();
    }

    /// Adds a line unless its kind comes too often; then it is written later, with a count.
    pub(super) fn add_limited(&self, kind: &Kind, line: &[u8]) {
        let now = Instant::now();
        let mut state = self.state();
        if state.repeats.admit(now, kind, line) {
            state.add(line);
        }
        drop(state);
        self.added.notify_one();
    }

    /// Waits until everything is written, at most for `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut state = self.state();
        state.is_ending = true;
        self.added.notify_one();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let is_done =
                state.waiting.is_empty() && !state.is_writing && state.repeats.due().is_none();
            if is_done || left.is_zero() {
                state.is_ending = false;
                return;
            }
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes what is added, without end. `write` does as write(2).
    pub(super) fn write_all_to(&self, write: impl FnMut(&[u8]) -> io::Result<usize>) {
        let mut out = Out { write, is_torn: false };
        // Lines that could not be written since the log last said so.
        let mut failed_count = 0;
        loop {
            let (lines, dropped_count) = self.take(failed_count > 0);
            if failed_count > 0 && out.line(self.missing(failed_count).as_bytes()) {
                failed_count = 0;
            }
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                failed_count += u64::from(!out.line(line));
            }
            if dropped_count > 0 && !out.line(self.missing(dropped_count).as_bytes()) {
                failed_count += dropped_count;
            }
            self.state().is_writing = false;
            self.written.notify_all();
        }
    }

    /// Waits for lines, and takes them and the number of lines that were dropped after them. With
    /// `is_owed` it waits only for a while.
    fn take(&self, is_owed: bool) -> (Vec<u8>, u64) {
        let mut state = self.state();
        let retry = is_owed.then(|| Instant::now() + RETRY);
        loop {
            let now = Instant::now();
            state.release(now);
            if !state.waiting.is_empty() || retry.is_some_and(|retry| now >= retry) {
                state.is_writing = true;
                let lines = std::mem::take(&mut state.waiting);
                return (lines, std::mem::take(&mut state.dropped_count));
            }
            let due = state.repeats.due().into_iter().chain(retry).min();
            state = match due {
                None => self.added.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    let waited = self.added.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Where lines go.
struct Out<W> {
    write: W,
    /// True if the last line was cut.
    is_torn: bool,
}

impl<W: FnMut(&[u8]) -> io::Result<usize>> Out<W> {
    /// Writes a line. True if that could be done.
    fn line(&mut self, line: &[u8]) -> bool {
        if self.is_torn && !self.all(b"\n") {
            return false;
        }
        self.is_torn = false;
        self.all(line)
    }

    fn all(&mut self, mut bytes: &[u8]) -> bool {
        let mut is_begun = false;
        while !bytes.is_empty() {
            match (self.write)(bytes) {
                Ok(count @ 1..) => {
                    is_begun = true;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                Ok(_) | Err(_) => {
                    self.is_torn |= is_begun;
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A thread that writes what is added to a place that takes it in pieces: each piece is how many
    /// bytes are taken, or an error.
    struct Rig {
        lines: Arc<Lines>,
        pieces: mpsc::Sender<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    fn rig() -> Rig {
        let lines = Arc::new(Lines::default());
        let (pieces, taken) = mpsc::channel::<io::Result<usize>>();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (for_thread, out) = (Arc::clone(&lines), Arc::clone(&written));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for_thread.write_all_to(|bytes| {
                let count = taken.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
                out.lock().unwrap().extend_from_slice(&bytes[..count]);
                Ok(count)
            });
        });
        Rig { lines, pieces, written }
    }

    impl Rig {
        /// Takes everything from now on, and returns what was written.
        fn finish(self) -> String {
            drop(self.pieces);
            self.lines.flush(Duration::from_secs(60));
            String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn lines_that_find_no_room_are_counted_and_told_when_writing_works_again() {
        let rig = rig();
        rig.lines.add(b"first\n");
        // The first is being written and does not come to an end; all others wait, or find no room.
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let start = Instant::now();
        while !rig.lines.state().is_writing {
            assert!(start.elapsed() < Duration::from_secs(60), "the thread takes the first");
        }
        for _ in 0..1000 {
            rig.lines.add(&line);
        }
        assert!(rig.lines.state().waiting.len() <= BYTES_MAX);
        assert!(rig.lines.state().dropped_count >= 1000 - BYTES_MAX as u64 / 1024);
        let text = rig.finish();
        let told = text.lines().filter(|line| line.starts_with('x')).count() as u64;
        let note = text.lines().find_map(|line| {
            let (before, _) = line.split_once(" lines missing here")?;
            before.rsplit_once(' ')?.1.parse::<u64>().ok()
        });
        assert_eq!(note, Some(1000 - told));
        assert!(text.starts_with("first\n"));
    }

    #[test]
    fn a_write_that_fails_costs_its_line_and_a_cut_line_is_ended() {
        let rig = rig();
        let full = || Err(io::Error::from(ErrorKind::StorageFull));
        // "lost" is refused, four bytes of "torn" are taken, and then all writes succeed.
        rig.pieces.send(full()).unwrap();
        rig.lines.add(b"lost\n");
        rig.lines.flush(Duration::from_secs(60));
        rig.pieces.send(Ok(usize::MAX)).unwrap();
        rig.pieces.send(Ok(4)).unwrap();
        rig.pieces.send(full()).unwrap();
        rig.lines.add(b"torn line\n");
        rig.lines.flush(Duration::from_secs(60));
        rig.lines.add(b"well\n");
        let text = rig.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("1 line missing here: could not be written"), "{text}");
        assert_eq!(lines[1], "torn");
        assert!(lines[2].ends_with("1 line missing here: could not be written"), "{text}");
        assert_eq!(lines[3..], ["well"]);
    }
}
