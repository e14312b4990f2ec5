//! What all sources of this machine share: threads, what the kernel has mounted, listings under way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::kernel_mounts::KernelMounts;
use super::listing::Windows;
use super::threads::{LaneId, Notices, Pool, PoolLimits};
use crate::config::Config;

/// Look-ups of paths at once for one file system. Guessed: enough to keep a slow network file system
/// busy.
const LOOKUPS_MAX: usize = 16;
/// Threads for look-ups that are kept. Guessed: a local file system needs no more.
const LOOKUP_THREADS: usize = 6;
/// Directories of one file system that are read at once. Guessed: it is work for one core each.
const LISTS_MAX: usize = 2;
/// Threads for listings that are kept.
const LIST_THREADS: usize = 2;
/// Files of one file system that are written at once. Guessed: a disk has no more to gain.
const WRITES_MAX: usize = 4;
/// Threads for writes that are kept.
const WRITE_THREADS: usize = 1;
/// Threads for reads that are kept beyond `fill_concurrency`: what other file systems find when one
/// hangs and no thread can be had.
const READERS_SPARE: usize = 2;
/// Extra threads of each kind, for further file systems and in place of those that hang.
const EXTRA_MAX: usize = 128;
/// How nice threads for listings are, because reading directories must not take time from hits. With 19
/// such a thread gets a seventieth of a busy core, and all of an idle one. Measured beside four clients
/// with 32 listings each of a directory of 50,000 files, all on one core: hits come at 0.6 to 1.0 of
/// their rate, and at 0.02 without. Reads and look-ups stay as they are: clients wait for them, and a
/// core that is busy with hits would let them wait long.
const LIST_NICENESS: i32 = 19;

/// What the sources share.
pub(crate) struct Machine {
    /// Threads that read blocks.
    pub reads: Pool,
    /// Threads that look paths up.
    pub lookups: Pool,
    /// Threads that read directories.
    pub lists: Pool,
    /// Threads that write files.
    pub writes: Pool,
    /// What the kernel has mounted.
    pub mounts: KernelMounts,
    /// Directories that are being listed.
    pub windows: Windows,
}

impl Machine {
    /// Makes the threads.
    ///
    /// # Errors
    /// If the system does not give as many.
    pub(crate) fn start(config: &Config) -> io::Result<Machine> {
        let notices = Arc::new(Notices::default());
        let cpus: Arc<[usize]> = config.cpus.clone().into();
        let limits = |name, kept, lane_max| PoolLimits {
            name,
            kept,
            most: kept + EXTRA_MAX.max(2 * lane_max),
            lane_max,
            queue_max: config.metadata_queue_max,
            queue_key: "metadata_queue_max",
            niceness: 0,
            patience: Duration::from_millis(config.source_timeout_ms),
            cpus: Arc::clone(&cpus),
        };
        let readers = config.fill_concurrency;
        let reads = PoolLimits {
            // There are as many as the shards may have under way, which make clients wait in turn.
            queue_max: config.fill_queue_max + readers,
            queue_key: "fill_queue_max",
            ..limits("millrace-fill", readers + READERS_SPARE, readers)
        };
        let lists = PoolLimits {
            niceness: LIST_NICENESS,
            ..limits("millrace-list", LIST_THREADS, LISTS_MAX)
        };
        let lookups = limits("millrace-look", LOOKUP_THREADS, LOOKUPS_MAX);
        Ok(Machine {
            reads: Pool::start(reads, Arc::clone(&notices))?,
            lookups: Pool::start(lookups, Arc::clone(&notices))?,
            lists: Pool::start(lists, Arc::clone(&notices))?,
            writes: Pool::start(limits("millrace-write", WRITE_THREADS, WRITES_MAX), notices)?,
            mounts: KernelMounts::default(),
            windows: Windows::default(),
        })
    }

    /// Returns the lane of a path below the root of a source that is called `name`.
    pub(crate) fn lane(&self, name: &str, root: &str, path: &str) -> LaneId {
        let whole = if path.is_empty() { root.to_owned() } else { format!("{root}/{path}") };
        match self.mounts.mount_of(&whole) {
            Some((directory, mount)) => {
                let is_below =
                    directory.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
                let name = match is_below {
                    true => format!("{directory} in {name}").into(),
                    false => name.into(),
                };
                LaneId { name, mount }
            }
            None => LaneId { name: name.into(), mount: 0 },
        }
    }

    /// Looks after file systems that do not answer, for as long as it is polled.
    pub(crate) async fn watch(&self) {
        let pools = [&self.reads, &self.lookups, &self.lists, &self.writes];
        futures_util::future::join_all(pools.map(Pool::watch)).await;
    }
}
