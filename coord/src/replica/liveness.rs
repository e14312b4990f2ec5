//! The sessions that were silent for too long. Only the leader keeps this.
//!
//! The replicated state has the sessions. The time when each client was last active is only here,
//! in memory, so a new leader gives every session its whole time-out again. Other replicas report
//! active sessions a little later, so that delay is added to each time-out. Deadlines are rounded
//! up to buckets, as ZooKeeper's `ExpiryQueue` does with a width of `tickTime`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::timers::ALIVE_MS;

/// Width of a bucket in milliseconds: how much later than its time-out a session may expire.
const BUCKET_MS: u64 = 100;

/// Returns the bucket of a session that is active now.
fn bucket(timeout_ms: u64, now_ms: u64) -> u64 {
    (now_ms + timeout_ms + ALIVE_MS) / BUCKET_MS + 1
}

struct TrackedSession {
    timeout_ms: u64,
    bucket: u64,
}

/// Deadlines of all sessions.
#[derive(Default)]
pub(super) struct Liveness {
    sessions: HashMap<i64, TrackedSession>,
    buckets: BTreeMap<u64, HashSet<i64>>,
}

impl Liveness {
    pub(super) fn clear(&mut self) {
        self.sessions.clear();
        self.buckets.clear();
    }

    /// Watches a session from now on, or restarts its time-out.
    pub(super) fn insert(&mut self, session: i64, timeout_ms: u64, now_ms: u64) {
        self.remove(session);
        let bucket = bucket(timeout_ms, now_ms);
        self.sessions.insert(session, TrackedSession { timeout_ms, bucket });
        self.buckets.entry(bucket).or_default().insert(session);
    }

    pub(super) fn remove(&mut self, session: i64) {
        let Some(entry) = self.sessions.remove(&session) else { return };
        self.take_from_bucket(entry.bucket, session);
    }

    fn take_from_bucket(&mut self, bucket: u64, session: i64) {
        if let Some(members) = self.buckets.get_mut(&bucket) {
            members.remove(&session);
            if members.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
    }

    /// Notes that a session is active. Ignores unknown ones, because they are closed.
    pub(super) fn touch(&mut self, session: i64, now_ms: u64) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let bucket = bucket(entry.timeout_ms, now_ms);
        let old = std::mem::replace(&mut entry.bucket, bucket);
        if old != bucket {
            self.take_from_bucket(old, session);
            self.buckets.entry(bucket).or_default().insert(session);
        }
    }

    /// Returns the time in milliseconds at which the next session expires, if it stays silent.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.buckets.keys().next().map(|bucket| bucket * BUCKET_MS)
    }

    /// Returns the time in milliseconds at which this session expires, if it stays silent.
    pub(super) fn expires_ms(&self, session: i64) -> Option<u64> {
        self.sessions.get(&session).map(|entry| entry.bucket * BUCKET_MS)
    }

    /// Removes and returns the expired sessions, in the order of their ids within a bucket.
    pub(super) fn expired(&mut self, now_ms: u64) -> Vec<i64> {
        let mut expired = Vec::new();
        while let Some(first) = self.buckets.first_entry() {
            if first.key() * BUCKET_MS > now_ms {
                break;
            }
            let mut members: Vec<i64> = first.remove().into_iter().collect();
            members.sort_unstable();
            expired.extend(members);
        }
        for session in &expired {
            self.sessions.remove(session);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_session_expires_once_and_a_touched_one_lives() {
        let mut liveness = Liveness::default();
        liveness.insert(1, 1000, 0);
        liveness.insert(2, 1000, 0);
        assert_eq!(liveness.expired(1200), [0i64; 0], "not before its time-out and a report");
        liveness.touch(2, 900);
        assert_eq!(liveness.expired(1300), [1]);
        assert_eq!(liveness.expired(1500), [0i64; 0]);
        liveness.touch(1, 1500);
        assert_eq!(liveness.next_ms(), Some(2200), "a touch does not bring 1 back");
        assert_eq!(liveness.expired(10_000), [2]);
        assert_eq!(liveness.next_ms(), None);
    }

    #[test]
    fn a_removed_session_never_expires() {
        let mut liveness = Liveness::default();
        liveness.insert(1, 1000, 0);
        liveness.remove(1);
        assert_eq!(liveness.expired(10_000), [0i64; 0]);
    }
}
