//! Where the numbers of a state go on that was restored from a copy.
//!
//! The service that the copy was made of may have gone on, and its clients have seen what it gave out. What follows
//! the copy must not get the same numbers again: a client would take it for older than what it has seen, or for the
//! same. So the next zxid is a point in time, 2^22 to the millisecond, which is more than any service can have given
//! out until then. Two copies that are restored one after the other go on at different points, whatever they hold.

use super::State;

/// Bits of a zxid below the milliseconds.
const BITS_BELOW: u32 = 22;
/// 2026-01-01, in milliseconds since 1970. From there the milliseconds fit until 2095.
const START_MS: i64 = 1_767_225_600_000;
/// How far a state goes ahead whose zxid is above the time: its copy came from a service with other zxids, or the
/// clock of this machine is wrong.
const LEAST_STEP: i64 = 1 << 32;
/// Zxids end here, so that as many are left for the changes that follow.
const ZXID_MAX: i64 = i64::MAX >> 1;

impl State {
    /// True if the zxid was moved far above all that were given out; false, and nothing is changed, if zxids are used
    /// up. `now_ms` is the time in milliseconds since 1970.
    #[must_use]
    pub fn begin_incarnation(&mut self, now_ms: i64) -> bool {
        let by_time = now_ms.saturating_sub(START_MS).max(0).saturating_mul(1 << BITS_BELOW);
        let zxid = by_time.max(self.zxid.saturating_add(LEAST_STEP));
        if zxid > ZXID_MAX {
            return false;
        }
        self.zxid = zxid;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = START_MS + 400 * 86_400_000;

    #[test]
    fn copies_of_one_state_go_on_at_points_that_rise_with_time() {
        let points = [NOW_MS, NOW_MS + 1, NOW_MS + 60_000].map(|now_ms| {
            let mut state = State { zxid: 1000, ..State::new() };
            assert!(state.begin_incarnation(now_ms));
            state.zxid()
        });
        // More than a service gives out in the time between.
        assert_eq!([points[1] - points[0], points[2] - points[0]], [1 << 22, 60_000 << 22]);
        assert!(points[0] > 1 << 32);
    }

    #[test]
    fn a_state_goes_ahead_whatever_the_clock_says() {
        for now_ms in [i64::MIN, 0, START_MS - 1, START_MS, NOW_MS] {
            let before = (NOW_MS - START_MS) << 23;
            let mut state = State { zxid: before, ..State::new() };
            assert!(state.begin_incarnation(now_ms));
            assert_eq!(state.zxid(), before + LEAST_STEP);
        }
    }

    #[test]
    fn what_would_leave_no_zxids_is_refused() {
        for (zxid, now_ms) in [(ZXID_MAX, NOW_MS), (i64::MAX, 0), (1, i64::MAX)] {
            let mut state = State { zxid, ..State::new() };
            assert!(!state.begin_incarnation(now_ms));
            assert_eq!(state.zxid(), zxid);
        }
    }
}
