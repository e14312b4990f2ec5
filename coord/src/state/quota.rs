//! Quotas: where they are set, what they count, and which writes exceed them.
//!
//! A quota on `/a` has two nodes: `/zookeeper/quota/a/zookeeper_limits`, with text from a client, and
//! `zookeeper_stats` beside it, with text from here. A write counts for the nearest quota above it.
//! Unreadable text is a quota without limits and is not updated. The rules are those of ZooKeeper's
//! `Quotas`, `StatsTrack`, `PathTrie` and `checkQuota`.

use super::path::{QUOTA, prefixes};
use super::tree::Tree;
use super::{Error, State};

/// Name of the node with the limits.
pub(super) const LIMITS: &str = "zookeeper_limits";
/// Name of the node with the use.
const STATS: &str = "zookeeper_stats";

/// Returns the path whose quota has the node `path`, if that is the node with this `name`.
fn subject<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let subject = path.strip_prefix(QUOTA)?.strip_suffix(name)?.strip_suffix('/')?;
    subject.starts_with('/').then_some(subject)
}

/// Returns the path whose quota begins and ends with the node `path`.
pub(super) fn subject_of_limits(path: &str) -> Option<&str> {
    subject(path, LIMITS)
}

/// Returns the path whose use is in the node `path`.
pub(super) fn subject_of_stats(path: &str) -> Option<&str> {
    subject(path, STATS)
}

/// What a write adds to the use of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) count: i64,
    pub(super) bytes: i64,
}

/// The text of a quota node: `count=4,bytes=5=;countHardLimit=10;byteHardLimit=10`.
///
/// ZooKeeper writes the sign after the bytes to hide new fields from its own old versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Track {
    count: Option<i64>,
    bytes: Option<i64>,
    /// Fields beside count and bytes, sorted.
    others: Vec<(String, i64)>,
}

impl Track {
    pub(super) fn parse(data: Option<&[u8]>) -> Option<Track> {
        let mut track = Track::default();
        let text = std::str::from_utf8(data?).ok()?;
        for pair in text.split([',', ';']).filter(|pair| !pair.is_empty()) {
            let mut parts = pair.split('=');
            let (key, value) = (parts.next()?, parts.next()?);
            let value = if value.is_empty() { -1 } else { value.parse().ok()? };
            match key {
                "count" => track.count = Some(value),
                "bytes" => track.bytes = Some(value),
                _ => {
                    track.others.retain(|(other, _)| other != key);
                    track.others.push((key.to_owned(), value));
                }
            }
        }
        track.others.sort();
        Some(track)
    }

    pub(super) fn text(&self) -> String {
        use std::fmt::Write as _;
        let (count, bytes) = (self.count.unwrap_or(-1), self.bytes.unwrap_or(-1));
        let mut text = format!("count={count},bytes={bytes}");
        if !self.others.is_empty() {
            text.push('=');
        }
        for (key, value) in &self.others {
            write!(text, ";{key}={value}").expect("a string takes any text");
        }
        text
    }

    fn other(&self, name: &str) -> Option<i64> {
        self.others.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// Adds to the use. A missing number counts from -1, as in ZooKeeper.
    pub(super) fn add(&mut self, more: Use) {
        self.count = Some(self.count.unwrap_or(-1).wrapping_add(more.count));
        self.bytes = Some(self.bytes.unwrap_or(-1).wrapping_add(more.bytes));
    }
}

/// Writes the use of the subtree of `subject`; 0 without one.
pub(super) fn stats_of(tree: &Tree, subject: &str) -> String {
    let mut sum = Use { count: 0, bytes: 0 };
    if let Some(top) = tree.find(subject) {
        let mut walk = tree.walk(top);
        while let Some((slot, _)) = walk.next() {
            sum.count += 1;
            sum.bytes += tree.node(slot).data_size() as i64;
        }
    }
    Track { count: Some(sum.count), bytes: Some(sum.bytes), others: Vec::new() }.text()
}

impl State {
    /// Finds the nearest path with a quota, from `path` upwards.
    pub(super) fn quota_above<'a>(&self, path: &'a str) -> Option<&'a str> {
        if self.quotas.is_empty() {
            return None;
        }
        prefixes(path).find(|prefix| self.quotas.contains(*prefix))
    }

    /// Finds the node with the use of the quota of `subject`.
    pub(super) fn stats_node(&self, subject: &str) -> Option<u32> {
        self.tree.find(&format!("{QUOTA}{subject}/{STATS}"))
    }

    /// Refuses a write that exceeds a hard limit of the nearest quota.
    ///
    /// # Errors
    ///
    /// `QuotaExceeded`.
    pub(super) fn check_quota(&self, path: &str, more: Use) -> Result<(), Error> {
        let Some(subject) = self.quota_above(path) else { return Ok(()) };
        let track = |slot: Option<u32>| Track::parse(self.tree.node(slot?).data());
        let limits = track(self.tree.find(&format!("{QUOTA}{subject}/{LIMITS}")));
        let (Some(limits), Some(stats)) = (limits, track(self.stats_node(subject))) else {
            return Ok(());
        };
        let exceeds = |limit: &str, used: Option<i64>, more: i64| {
            let limit = limits.other(limit).filter(|limit| *limit > -1);
            let used = used.unwrap_or(-1).wrapping_add(more);
            more != 0 && limit.is_some_and(|limit| used > limit)
        };
        let too_many = exceeds("countHardLimit", stats.count, more.count);
        if too_many || exceeds("byteHardLimit", stats.bytes, more.bytes) {
            Err(Error::QuotaExceeded)
        } else {
            Ok(())
        }
    }
}
