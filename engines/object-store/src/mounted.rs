//! The part of a store that nodes have mounted, as a cache that may always say no.
//!
//! Owns the client, which connects when it is needed first, and the decision when the cache is left alone.
//! Always holds: what is returned is of the version that was asked for, whole and checked; nothing takes
//! longer than the patience and the time of its bytes; after [`FAILURES_MAX`] failures in a row one read in
//! [`PAUSE`] tries again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_client::{Client, ClientConfig, Error, File, Kind, Status};
use tokio::sync::OnceCell;

use crate::known::Known;

/// Failures in a row after which the cache is left alone for a while. Guessed.
const FAILURES_MAX: u32 = 3;
/// How long. Guessed: a read of a store takes a tenth of it.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the cache may take for a read before the store is asked, and more for its bytes. Guessed: more than a
/// cold read takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// The slowest bytes that are waited for, in bytes a second. Guessed: a store far away.
const SLOWEST_BYTES_PER_S: u64 = 10 << 20;
/// A file is believed for good, because its version is compared with the one that is asked for.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a `CachedStore` has read, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheCounts {
    /// Reads that the cache answered. A batch of ranges is one.
    pub cached_reads: u64,
    /// Bytes that they brought.
    pub cached_bytes: u64,
    /// Reads that went to the store, because the cache has another version, or has not mounted the object.
    pub missed_reads: u64,
    /// Reads that went to the store, because no node answered well in time.
    pub failed_reads: u64,
}

/// How reads went lately.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Until when the cache is left alone.
    paused_until: Option<Instant>,
}

/// Where a store is mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    address: String,
    config: ClientConfig,
    client: OnceCell<Client>,
    /// Parts of the store that are mounted, longest prefix of keys first: the prefix, and the path of the mount,
    /// each with a `/` at its end unless it is empty.
    parts: Vec<(String, String)>,
    patience: Duration,
    known: Known<File>,
    health: Mutex<Health>,
    cached_reads: AtomicU64,
    cached_bytes: AtomicU64,
    missed_reads: AtomicU64,
    failed_reads: AtomicU64,
}

impl Mounted {
    pub(crate) fn new(
        address: String,
        config: ClientConfig,
        parts: Vec<(String, String)>,
    ) -> Mounted {
        let parts =
            parts.into_iter().map(|(prefix, mount)| (directory(&prefix), directory(&mount)));
        let mut parts: Vec<_> = parts.collect();
        parts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Mounted {
            address,
            config,
            client: OnceCell::new(),
            parts,
            patience: PATIENCE,
            known: Known::new(FOR_GOOD),
            health: Mutex::default(),
            cached_reads: AtomicU64::new(0),
            cached_bytes: AtomicU64::new(0),
            missed_reads: AtomicU64::new(0),
            failed_reads: AtomicU64::new(0),
        }
    }

    /// Returns another one for the same nodes, with another patience and fresh counts.
    pub(crate) fn with_patience(&self, patience: Duration) -> Mounted {
        let (address, config) = (self.address.clone(), self.config.clone());
        Mounted { patience, ..Mounted::new(address, config, self.parts.clone()) }
    }

    /// Returns where nodes have an object; None if its part of the store is not mounted.
    fn path_of(&self, key: &str) -> Option<String> {
        let mut found = self.parts.iter().filter_map(|(prefix, mount)| {
            let below = key.strip_prefix(prefix.as_str())?;
            Some(format!("{mount}{below}"))
        });
        found.next()
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        CacheCounts {
            cached_reads: self.cached_reads.load(Relaxed),
            cached_bytes: self.cached_bytes.load(Relaxed),
            missed_reads: self.missed_reads.load(Relaxed),
            failed_reads: self.failed_reads.load(Relaxed),
        }
    }

    /// Reads ranges, all inside the object, of this version of it; None if the store has to be asked.
    pub(crate) async fn read(
        &self,
        key: &str,
        version: u64,
        ranges: &[Range<u64>],
    ) -> Option<Vec<Bytes>> {
        let Some(path) = self.path_of(key) else {
            self.missed_reads.fetch_add(1, Relaxed);
            return None;
        };
        if self.is_paused() {
            self.failed_reads.fetch_add(1, Relaxed);
            return None;
        }
        let length: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let patience = self.patience + Duration::from_secs(length / SLOWEST_BYTES_PER_S);
        let read = tokio::time::timeout(patience, self.try_read(&path, version, ranges)).await;
        match read {
            Ok(Ok(Some(bytes))) => {
                self.recover();
                let total: usize = bytes.iter().map(Bytes::len).sum();
                self.cached_reads.fetch_add(1, Relaxed);
                self.cached_bytes.fetch_add(total as u64, Relaxed);
                return Some(bytes);
            }
            Ok(Ok(None)) => {
                self.recover();
                self.missed_reads.fetch_add(1, Relaxed);
            }
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(_) => self.fail("no answer in time"),
        }
        None
    }

    async fn try_read(
        &self,
        path: &str,
        version: u64,
        ranges: &[Range<u64>],
    ) -> Result<Option<Vec<Bytes>>, Error> {
        let connect = || Client::connect(self.address.clone(), self.config.clone());
        let client = self.client.get_or_try_init(connect).await?;
        let Some(file) = self.look_up(client, path, version).await? else { return Ok(None) };
        let asked = ranges.iter().map(|range| (&file, range.start, range.end - range.start));
        let asked: Vec<_> = asked.collect();
        let results = client.read_many(&asked).await;
        match results.into_iter().collect::<Result<Vec<Bytes>, Error>>() {
            Ok(bytes) => {
                let is_whole = |(bytes, range): (&Bytes, &Range<u64>)| {
                    bytes.len() as u64 == range.end - range.start
                };
                Ok(bytes.iter().zip(ranges).all(is_whole).then_some(bytes))
            }
            Err(Error::Stale { .. }) => {
                self.known.forget(path);
                Ok(None)
            }
            Err(error) if is_about_path(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the file of a path in this version, if the node has it in that one.
    async fn look_up(
        &self,
        client: &Client,
        path: &str,
        version: u64,
    ) -> Result<Option<File>, Error> {
        if let Some(file) = self.known.get(path).filter(|file| file.version == version) {
            return Ok(Some(file));
        }
        let began = Instant::now();
        let found = match client.stat(path).await {
            // The node may believe an older look than the caller's.
            Ok(file) if file.version != version => {
                client.refresh(path, false).await?;
                client.stat(path).await
            }
            found => found,
        };
        match found {
            Ok(file) if file.kind == Kind::File && file.version == version => {
                self.known.note(path, began, file.clone());
                Ok(Some(file))
            }
            Ok(_) => Ok(None),
            Err(error) if is_about_path(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the cache is to be left alone. Once in a while one read may try.
    fn is_paused(&self) -> bool {
        let mut health = self.health();
        let now = Instant::now();
        match health.paused_until {
            Some(until) if now < until => true,
            Some(_) => {
                health.paused_until = Some(now + PAUSE);
                false
            }
            None => false,
        }
    }

    fn fail(&self, reason: &str) {
        self.failed_reads.fetch_add(1, Relaxed);
        let mut health = self.health();
        health.failures = health.failures.saturating_add(1);
        if health.failures == FAILURES_MAX {
            tracing::warn!("the cache at {} is left alone: {reason}", self.address);
        }
        if health.failures >= FAILURES_MAX {
            health.paused_until = Some(Instant::now() + PAUSE);
        }
    }

    fn recover(&self) {
        let mut health = self.health();
        if health.paused_until.take().is_some() {
            tracing::info!("the cache at {} answers again", self.address);
        }
        health.failures = 0;
    }
}

/// Returns a path with a `/` at its end, unless it is empty.
fn directory(path: &str) -> String {
    let path = path.trim_matches('/');
    if path.is_empty() { String::new() } else { format!("{path}/") }
}

/// True if another path, or less of it, might be read well.
fn is_about_path(error: &Error) -> bool {
    if matches!(error, Error::InvalidArgument(_)) {
        return true;
    }
    let about_path = [Status::NotFound, Status::PermissionDenied, Status::WrongKind];
    error.status().is_some_and(|status| about_path.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_of_a_key_says_where_nodes_have_it() {
        let parts = [("", "/lake/"), ("logs/2026", "new"), ("logs", "")];
        let parts = parts.map(|(prefix, mount)| (prefix.to_owned(), mount.to_owned())).to_vec();
        let mounted = Mounted::new("a:1".to_owned(), ClientConfig::new(), parts);
        let path = |key| mounted.path_of(key);
        assert_eq!(path("x/y").as_deref(), Some("lake/x/y"));
        assert_eq!(path("logs/2026/a").as_deref(), Some("new/a"));
        assert_eq!(path("logs/20261").as_deref(), Some("20261"));
        let parts = vec![("logs".to_owned(), "l".to_owned())];
        let mounted = Mounted::new("a:1".to_owned(), ClientConfig::new(), parts);
        assert_eq!((mounted.path_of("x"), mounted.path_of("logs2/x")), (None, None));
    }
}
