//! When the requests of an open loop are due.
//!
//! Owns the arithmetic, no clock: times are nanoseconds since the start of the run.

/// Evenly spaced requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    requests_per_ns: f64,
    next: u64,
}

impl Schedule {
    /// Makes a schedule of `requests_per_s` requests a second from time 0 on.
    pub(crate) fn new(requests_per_s: f64) -> Schedule {
        Schedule { requests_per_ns: requests_per_s / 1e9, next: 0 }
    }

    /// Returns when request `index` is due.
    pub(crate) fn due_ns(&self, index: u64) -> u64 {
        (index as f64 / self.requests_per_ns) as u64
    }

    /// Returns the time of the next request if it is due before `limit_ns`; it stays the next one.
    pub(crate) fn peek(&self, limit_ns: u64) -> Option<u64> {
        let due = self.due_ns(self.next);
        (due < limit_ns).then_some(due)
    }

    /// Goes on to the request after the next one.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_evenly_and_without_drift() {
        let schedule = Schedule::new(3.0);
        let due: Vec<u64> = (0..4).map(|index| schedule.due_ns(index)).collect();
        assert_eq!(due, [0, 333_333_333, 666_666_666, 1_000_000_000]);
        let hour = Schedule::new(700_000.0).due_ns(700_000 * 3600);
        assert!(hour.abs_diff(3_600_000_000_000) <= 1_000, "{hour}");
    }

    #[test]
    fn late_requests_keep_their_due_time() {
        let mut schedule = Schedule::new(1000.0);
        assert_eq!(schedule.peek(1), Some(0));
        schedule.advance();
        assert_eq!(schedule.peek(1_000_000), None);
        // The generator was away for 5 ms: the requests of that time are due then, not now.
        let mut due = Vec::new();
        while let Some(time) = schedule.peek(5_000_000) {
            due.push(time);
            schedule.advance();
        }
        assert_eq!(due, [1_000_000, 2_000_000, 3_000_000, 4_000_000]);
    }
}
