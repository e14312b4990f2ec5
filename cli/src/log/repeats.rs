//! Limits lines that come again and again: one a second of each kind, and how many there were.
//!
//! A kind is a place in the code that logs. Some different lines of a kind pass at once, as when three
//! mounts fail; a line that is like the one before is held at once. A second after the last line that
//! was written, the last held line is written with the count of the others, so that the log always has
//! what happened last.

use std::time::{Duration, Instant};

use super::form::with_others;

/// A place in the code that logs.
pub(super) type Kind = tracing::callsite::Identifier;

/// Shortest time between lines of a kind that comes on and on.
const APART: Duration = Duration::from_secs(1);
/// Different lines of a kind that may come at once. Guessed: members and mounts of a small cluster.
const AT_ONCE: u32 = 8;

/// The kinds that have logged: at most as many as places in the code.
#[derive(Default)]
pub(super) struct Repeats {
    kinds: Vec<(Kind, Held)>,
}

/// What is held of a kind.
struct Held {
    /// Lines that may still pass at once; one more after each second.
    allowance: u32,
    /// When the last line was written, or the allowance last grew.
    at: Instant,
    /// The last line that was written, without its time.
    told: Vec<u8>,
    /// Lines that were held since then.
    count: u64,
    /// The last of them.
    last: Vec<u8>,
}

/// Returns a line without its time, which stands first.
fn text(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    &line[start..]
}

impl Repeats {
    /// True if the line is to be written now; else it is held.
    pub(super) fn admit(&mut self, now: Instant, kind: &Kind, line: &[u8]) -> bool {
        let place = self.kinds.iter().position(|(other, _)| other == kind);
        let place = place.unwrap_or_else(|| {
            let held =
                Held { allowance: AT_ONCE, at: now, told: Vec::new(), count: 0, last: Vec::new() };
            self.kinds.push((kind.clone(), held));
            self.kinds.len() - 1
        });
        let held = &mut self.kinds[place].1;
        let seconds = now.saturating_duration_since(held.at).as_secs();
        let is_again = seconds == 0 && held.told == text(line);
        if held.count > 0 || is_again || (held.allowance == 0 && seconds == 0) {
            held.count += 1;
            held.last.clear();
            held.last.extend_from_slice(line);
            return false;
        }
        let gained = u32::try_from(seconds).unwrap_or(AT_ONCE);
        held.allowance = held.allowance.saturating_add(gained).min(AT_ONCE) - 1;
        held.tell(now, line);
        true
    }

    /// Calls `tell` with each held line whose time has come, or with all of them.
    pub(super) fn release(&mut self, now: Instant, all: bool, mut tell: impl FnMut(&[u8])) {
        for (_, held) in &mut self.kinds {
            if held.count == 0 || (!all && now.saturating_duration_since(held.at) < APART) {
                continue;
            }
            let line = std::mem::take(&mut held.last);
            match held.count - 1 {
                0 => tell(&line),
                others => {
                    let line = String::from_utf8_lossy(&line);
                    tell(with_others(&line, others).as_bytes());
                }
            }
            held.count = 0;
            held.tell(now, &line);
        }
    }

    /// Returns when the next held line is to be written.
    pub(super) fn due(&self) -> Option<Instant> {
        let held = self.kinds.iter().filter(|(_, held)| held.count > 0);
        held.map(|(_, held)| held.at + APART).min()
    }
}

impl Held {
    fn tell(&mut self, now: Instant, line: &[u8]) {
        self.at = now;
        self.told.clear();
        self.told.extend_from_slice(text(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: usize) -> Kind {
        use tracing::{Metadata, callsite};
        struct Place(u8);
        impl callsite::Callsite for Place {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &Metadata<'_> {
                unreachable!("place {} is only told from others", self.0)
            }
        }
        static PLACES: [Place; 2] = [Place(0), Place(1)];
        callsite::Identifier(&PLACES[number])
    }

    fn released(repeats: &mut Repeats, now: Instant) -> Vec<String> {
        let mut told = Vec::new();
        repeats.release(now, false, |line| told.push(String::from_utf8(line.to_vec()).unwrap()));
        told
    }

    #[test]
    fn a_line_that_comes_again_is_told_once_a_second_with_a_count() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        assert!(repeats.admit(start, &kind(0), b"0.0 full\n"));
        for _ in 0..1000 {
            assert!(!repeats.admit(start, &kind(0), b"0.1 full\n"));
        }
        assert!(repeats.admit(start, &kind(1), b"0.1 full\n"), "another kind is another matter");
        assert_eq!(released(&mut repeats, start + APART / 2), Vec::<String>::new());
        assert_eq!(repeats.due(), Some(start + APART));
        assert_eq!(released(&mut repeats, start + APART), ["0.1 full (and 999 like it)\n"]);
        assert_eq!(repeats.due(), None);
        assert!(!repeats.admit(start + APART, &kind(0), b"1.0 full\n"));
        assert_eq!(released(&mut repeats, start + 2 * APART), ["1.0 full\n"]);
        assert!(repeats.admit(start + 4 * APART, &kind(0), b"4.0 full\n"), "it is long ago");
    }

    #[test]
    fn some_different_lines_pass_at_once_and_many_do_not() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let line = |number: u32| format!("0.0 mount {number}\n").into_bytes();
        let passed = (0..1000).filter(|it| repeats.admit(start, &kind(0), &line(*it))).count();
        assert_eq!(passed, AT_ONCE as usize);
        let mut count = passed;
        for second in 1..=10 {
            let now = start + second * APART;
            count += released(&mut repeats, now).len();
            count += (0..1000).filter(|it| repeats.admit(now, &kind(0), &line(*it))).count();
        }
        assert_eq!(count, AT_ONCE as usize + 10, "one a second");
    }
}
