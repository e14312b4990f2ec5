//! Every figure that a replica counts, one line each: its name here, its name in ZooKeeper, its help.
//!
//! These are plain numbers that the one thread of a replica writes. The names in ZooKeeper are those of
//! `mntr` without `zk_`; a figure that ZooKeeper lacks has a name of ours. `srst` resets all to 0, as in
//! ZooKeeper, so monitoring must treat a fall as a restart of the count.

/// Upper bounds of the buckets of a [`Latency`] in microseconds; one more bucket takes the rest.
pub const LATENCY_BOUNDS_US: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000,
];

/// Durations: exact sum and extremes, and coarse buckets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Latency {
    /// Count of durations.
    pub count: u64,
    /// Sum in microseconds.
    pub sum_us: u64,
    min_us: u64,
    max_us: u64,
    buckets: [u64; LATENCY_BOUNDS_US.len() + 1],
}

impl Latency {
    /// Adds one duration in microseconds.
    pub fn record(&mut self, took_us: u64) {
        self.min_us = if self.count == 0 { took_us } else { self.min_us.min(took_us) };
        self.max_us = self.max_us.max(took_us);
        self.count += 1;
        self.sum_us += took_us;
        self.buckets[LATENCY_BOUNDS_US.partition_point(|bound| *bound < took_us)] += 1;
    }

    /// Returns the shortest in whole milliseconds; 0 without one.
    pub fn min_ms(&self) -> u64 {
        self.min_us / 1000
    }

    /// Returns the longest in whole milliseconds.
    pub fn max_ms(&self) -> u64 {
        self.max_us / 1000
    }

    /// Returns the mean in milliseconds; 0 without one.
    pub fn average_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum_us as f64 / self.count as f64 / 1000.0 }
    }

    /// Returns the milliseconds that `share` (0 to 1) of the durations did not exceed: a bound of a bucket,
    /// or the longest if that is less.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let rank = (share * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                let bound = LATENCY_BOUNDS_US.get(index).copied().unwrap_or(self.max_us);
                return bound.min(self.max_us) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// Adds the durations of two.
    pub fn merged(&self, other: &Latency) -> Latency {
        let mut both = self.clone();
        if other.count == 0 {
            return both;
        }
        both.min_us = if self.count == 0 { other.min_us } else { self.min_us.min(other.min_us) };
        both.max_us = self.max_us.max(other.max_us);
        both.count += other.count;
        both.sum_us += other.sum_us;
        for (bucket, more) in both.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        both
    }
}

/// Sizes in bytes: the last one and the extremes. ZooKeeper shows -1 without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeFigures {
    pub last: i64,
    pub min: i64,
    pub max: i64,
}

impl Default for SizeFigures {
    fn default() -> SizeFigures {
        SizeFigures { last: -1, min: -1, max: -1 }
    }
}

impl SizeFigures {
    /// Adds one size in bytes.
    pub fn record(&mut self, size: usize) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        self.last = size;
        self.min = if self.min < 0 { size } else { self.min.min(size) };
        self.max = self.max.max(size);
    }
}

macro_rules! metrics {
    (
        counters { $($(#[doc = $help:literal])+ $name:ident = $zoo:literal,)+ }
        latencies { $($(#[doc = $latency_help:literal])+ $latency:ident = $latency_zoo:literal,)+ }
    ) => {
        /// The counts of a replica since its start, or since `srst`.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: u64,)+
            $($(#[doc = $latency_help])+ pub $latency: Latency,)+
            /// Bytes of the entries that this replica proposed.
            pub proposal_bytes: SizeFigures,
        }

        impl Metrics {
            /// Lists ZooKeeper's name, help and value of each counter, in the order of declaration.
            pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($zoo, concat!($($help),+).trim_ascii(), self.$name),)+]
            }

            /// Lists ZooKeeper's name and help of each latency, in the order of declaration.
            pub fn latencies(&self) -> Vec<(&'static str, &'static str, &Latency)> {
                vec![$((
                    $latency_zoo,
                    concat!($($latency_help),+).trim_ascii(),
                    &self.$latency,
                ),)+]
            }
        }
    };
}

metrics! {
    counters {
        /// Requests received from clients, pings and handshakes included.
        packets_received = "packets_received",
        /// Replies and watch events sent to clients.
        packets_sent = "packets_sent",
        /// Bytes received from clients.
        bytes_received = "bytes_received_count",
        /// Bytes sent to clients.
        bytes_sent = "response_bytes",
        /// Connections of clients that were accepted.
        connections_opened = "connection_opened",
        /// Connections of clients that have ended.
        connections_closed = "connection_drop_count",
        /// Connections that were closed at once because there were too many.
        connections_rejected = "connection_rejected",
        /// Clients refused because they have seen a later state than this replica has.
        clients_refused_ahead = "clients_refused_ahead",
        /// Requests longer than jute.maxbuffer; their connections were closed.
        requests_too_large = "large_requests_rejected",
        /// Clients that were disconnected because they did not read their replies.
        slow_clients_closed = "slow_clients_closed",
        /// Writes that were refused because a store or the file system is nearly full.
        writes_without_room = "writes_refused_without_room",
        /// Auth requests that failed.
        auth_failures = "auth_failed_count",
        /// Sessions opened by clients of this replica.
        sessions_opened = "connection_request_count",
        /// Sessions that a client of this replica connected to again.
        sessions_attached = "connection_revalidate_count",
        /// Sessions that this replica, as leader, found silent for too long.
        sessions_expired = "stale_sessions_expired",
        /// Watch events sent to clients.
        watches_fired = "watches_fired",
        /// Watches refused because their client had too many.
        watches_refused = "watches_refused",
        /// Entries that this replica proposed as leader.
        proposals = "proposal_count",
        /// Batches of entries given to the log, each one durable commit.
        appends = "append_count",
        /// Commands applied to the state.
        commands_applied = "commit_count",
        /// Times this replica stood for election.
        elections = "looking_count",
        /// Changes of the leader that this replica knows.
        leader_changes = "leader_changes",
        /// Snapshots sent to other replicas.
        snapshots_sent = "snap_count",
        /// Snapshots received from the leader and installed.
        snapshots_received = "snapshots_received",
        /// Streams to other replicas that broke.
        peers_lost = "peers_lost",
    }
    latencies {
        /// Reads, from their arrival to their reply.
        read_latency = "readlatency",
        /// Writes, from their arrival to their reply.
        write_latency = "updatelatency",
        /// Durable commits of the log.
        sync_latency = "fsynctime",
        /// Durable checkpoints of the state.
        checkpoint_latency = "snapshottime",
        /// Time without a leader, until one was known again.
        election_latency = "election_time",
    }
}

impl Metrics {
    /// Notes that a read was answered after `took_ms`.
    pub fn read_took(&mut self, took_ms: u64) {
        self.read_latency.record(took_ms.saturating_mul(1000));
    }

    /// Notes that a write was answered after `took_ms`.
    pub fn write_took(&mut self, took_ms: u64) {
        self.write_latency.record(took_ms.saturating_mul(1000));
    }

    /// Returns the latency of reads and writes together.
    pub fn request_latency(&self) -> Latency {
        self.read_latency.merged(&self.write_latency)
    }

    /// Resets everything, as `srst` asks.
    pub fn reset(&mut self) {
        *self = Metrics::default();
    }
}

#[cfg(test)]
mod tests;
