//! Every counter of a node, one line each: name with unit, and what it counts.
//!
//! Each shard writes its own set, alone; a reader sums them. A counter costs a load and a store.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and any thread reads.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds to the count. Only the owning shard may call it: two writers would lose counts.
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }

    /// Sets a gauge. Only the owning shard may call it.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows.
    Counter,
    /// It is the value now.
    Gauge,
}

/// A figure, without its value.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it counts; each line begins with a blank.
    pub(crate) help: &'static str,
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident,)+) => {
        /// Counters of one shard, alone on their cache lines.
        #[derive(Default)]
        #[repr(align(128))]
        pub(crate) struct Counters {
            $($(#[doc = $help])+ pub(crate) $name: Count,)+
        }

        impl Counters {
            /// What each of them is, in the order of declaration.
            pub(crate) const FIGURES: &[Figure] = &[$(Figure {
                name: stringify!($name),
                kind: Kind::$kind,
                help: concat!($($help),+),
            },)+];

            /// Returns names and values, in the order of declaration.
            pub(crate) fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Requests received; a range of a `ReadMany` counts as one.
    Counter request_count,
    /// Ranges served from memory without waiting.
    Counter hit_count,
    /// Bytes of those ranges.
    Counter hit_bytes,
    /// Ranges that had to wait, for the source or for a disk of the flash tier.
    Counter miss_count,
    /// Bytes of those ranges.
    Counter miss_bytes,
    /// Ranges of a block that another shard owns, asked of it.
    Counter forwarded_count,
    /// Blocks, or parts of blocks, read from the source.
    Counter fill_count,
    /// Bytes of those blocks.
    Counter fill_bytes,
    /// Reads of the source that were asked for a second time, because they took long; of mounts that are hedged.
    Counter hedged_count,
    /// Blocks taken over from other nodes.
    Counter peer_fill_count,
    /// Bytes of those blocks.
    Counter peer_fill_bytes,
    /// Blocks that were kept in memory as they were written; of mounts that cache on write.
    Counter written_block_count,
    /// Bytes of those blocks.
    Counter written_block_bytes,
    /// Blocks of such mounts that were written and not kept: there was no room, or the write did not come to an end
    /// that is known.
    Counter unkept_block_count,
    /// Reads of the source that failed, for any reason.
    Counter fill_error_count,
    /// Blocks that had other bytes when they were read again, though the source showed no change; of
    /// mounts whose content is compared.
    Counter unnoticed_change_count,
    /// Requests answered with `Busy`.
    Counter busy_count,
    /// Requests answered with another error.
    Counter error_count,
    /// Frames that were damaged, or no frames at all.
    Counter bad_frame_count,
    /// Blocks found damaged in memory, and dropped.
    Counter damaged_count,
    /// Blocks, or parts of blocks, read from disks of the flash tier.
    Counter flash_read_count,
    /// Bytes of those blocks.
    Counter flash_read_bytes,
    /// Bytes of blocks that were written to disks of the flash tier.
    Counter flash_stored_bytes,
    /// Bytes of those that were written once more, because they were read before their room was wanted.
    Counter flash_kept_bytes,
    /// All bytes that were written to those disks.
    Counter flash_written_bytes,
    /// Blocks that had earned to be written and were not: they left memory too soon, too many waited, or there was no
    /// room in the index.
    Counter flash_passed_over_count,
    /// Parts of blocks on disks that did not match their checksums, and were forgotten.
    Counter flash_damaged_count,
    /// Operations of those disks that failed.
    Counter flash_error_count,
    /// Blocks, or parts of blocks, on disks now.
    Gauge flash_run_count,
    /// Bytes of the disks that answer.
    Gauge flash_capacity_bytes,
    /// Bytes of memory that the index of the flash tier holds.
    Gauge flash_index_bytes,
    /// Disks that are out, because an operation failed; once for each shard.
    Gauge flash_out_count,
    /// Blocks evicted to make room.
    Counter evicted_count,
    /// Bytes summed to serve ranges that cut a page; aligned ranges add nothing.
    Counter summed_bytes,
    /// Blocks in memory now.
    Gauge block_count,
    /// Bytes of memory that hold blocks now, whole pages.
    Gauge used_bytes,
    /// Bytes of memory for blocks.
    Gauge capacity_bytes,
    /// Blocks that are kept from being evicted now, because their path is pinned.
    Gauge pinned_count,
    /// Bytes of memory that those hold, whole pages.
    Gauge pinned_bytes,
    /// Bytes of memory that blocks in use hold now, whole pages: being sent, or leased.
    Gauge in_use_bytes,
    /// Bytes of blocks that were copied for replies, because much was in use.
    Counter copied_bytes,
    /// Times there was no room to hold a reply or to fill a block, because of what others hold.
    Counter short_count,
    /// Connections closed because their clients took too little of what was sent.
    Counter slow_closed_count,
    /// Bytes of replies that were handed to the kernel by reference.
    Counter referred_bytes,
    /// Leases given to clients on this machine; prolonging one counts, too.
    Counter lease_count,
    /// Leases that ran out before their client gave them back.
    Counter lease_expired_count,
    /// Bytes of memory that are leased now, whole pages, once for each lease.
    Gauge leased_bytes,
    /// Connections open now.
    Gauge connection_count,
    /// Connections accepted since start.
    Counter accepted_count,
    /// Connections refused because of a limit.
    Counter refused_count,
    /// Processor time of the whole node in milliseconds; kept by the first shard.
    Counter cpu_ms,
    /// Times the shard's ring was entered.
    Counter enter_count,
    /// Times the shard went to sleep.
    Counter sleep_count,
    /// Times one turn of the shard's loop took 10 ms or longer.
    Counter stall_count,
    /// Milliseconds of those turns together.
    Counter stall_ms,
}

/// Sums the counters of all shards.
pub(crate) fn sum(shards: &[Counters]) -> Vec<(&'static str, u64)> {
    let mut total = Counters::default().values();
    for shard in shards {
        for (total, (_, value)) in total.iter_mut().zip(shard.values()) {
            total.1 += value;
        }
    }
    total
}
