//! Another try, for what a process that was just killed still holds: its ports and locks are free only when the
//! kernel has taken its memory back, which takes tens of milliseconds, or longer for a large arena.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long a start waits for what is in use. Guessed: longer than the kernel needs to end a process, and shorter than
/// an operator's patience with a mistake.
const PATIENCE: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `attempt` until its error is another one than what `is_in_use` says, for 700 ms at most. Returns the last
/// result.
///
/// # Errors
/// That of the last attempt.
pub fn while_in_use<T, E>(
    is_in_use: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_in_use(&error) && begun.elapsed() < PATIENCE => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// True if an address is in use.
pub fn is_address_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_use_is_tried_again() {
        let mut calls = 0;
        let result = while_in_use(is_address_in_use, || {
            calls += 1;
            if calls < 3 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(calls) }
        });
        assert_eq!(result.unwrap(), 3);
        let mut calls = 0;
        let denied = while_in_use(is_address_in_use, || {
            calls += 1;
            Err::<(), _>(io::ErrorKind::PermissionDenied.into())
        });
        assert!(denied.is_err() && calls == 1);
        let for_good = while_in_use(is_address_in_use, || {
            Err::<(), io::Error>(io::ErrorKind::AddrInUse.into())
        });
        assert!(is_address_in_use(&for_good.unwrap_err()));
    }
}
