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

    /// The value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Counters of one shard, alone on their cache lines.
        #[derive(Default)]
        #[repr(align(128))]
        pub(crate) struct Counters {
            $($(#[doc = $help])+ pub(crate) $name: Count,)+
        }

        impl Counters {
            /// Names and values, in the order of declaration.
            pub(crate) fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Requests received; a range of a `ReadMany` counts as one.
    request_count,
    /// Ranges served from memory without waiting.
    hit_count,
    /// Bytes of those ranges.
    hit_bytes,
    /// Ranges that had to wait for the source.
    miss_count,
    /// Bytes of those ranges.
    miss_bytes,
    /// Ranges of a block that another shard owns, asked of it.
    forwarded_count,
    /// Blocks read from the source.
    fill_count,
    /// Bytes of those blocks.
    fill_bytes,
    /// Blocks taken over from other nodes.
    peer_fill_count,
    /// Bytes of those blocks.
    peer_fill_bytes,
    /// Reads of the source that failed, for whatever reason.
    fill_error_count,
    /// Requests answered with `Busy`.
    busy_count,
    /// Requests answered with another error.
    error_count,
    /// Frames that were damaged, or no frames at all.
    bad_frame_count,
    /// Blocks found damaged in memory, and dropped.
    damaged_count,
    /// Blocks evicted to make room.
    evicted_count,
    /// Bytes summed to serve ranges that cut a page; aligned ranges add nothing.
    summed_bytes,
    /// Blocks in memory now.
    block_count,
    /// Bytes of memory that hold blocks now, whole pages.
    used_bytes,
    /// Bytes of memory for blocks.
    capacity_bytes,
    /// Blocks that are kept from being evicted now, because their path is pinned.
    pinned_count,
    /// Bytes of memory that those hold, whole pages.
    pinned_bytes,
    /// Bytes of replies that were handed to the kernel by reference.
    referred_bytes,
    /// Leases given to clients on this machine; prolonging one counts, too.
    lease_count,
    /// Leases that ran out before their client gave them back.
    lease_expired_count,
    /// Bytes of memory that are leased now, whole pages, once for each lease.
    leased_bytes,
    /// Connections open now.
    connection_count,
    /// Connections accepted since start.
    accepted_count,
    /// Connections refused because of a limit.
    refused_count,
    /// Processor time of the whole node in milliseconds; kept by the first shard.
    cpu_ms,
    /// Times the shard's ring was entered.
    enter_count,
    /// Times the shard went to sleep.
    sleep_count,
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
