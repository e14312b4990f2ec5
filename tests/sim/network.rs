//! The streams between replicas: ordered bytes that may be late, stall, or break.
//!
//! Each pair of replicas has a stream in each direction, as two TCP connections. Always holds: what
//! one stream carries arrives in order; what it carried when it broke is lost, or, with
//! `Options::is_late`, may arrive after what the next stream carries (an old connection that is
//! read after a new one). A partition stalls a stream; only time breaks it.

use std::collections::VecDeque;

use fastrand::Rng;

/// One direction between two replicas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stream {
    /// Which use of it this is: raised when it breaks.
    pub(crate) number: u64,
    pub(crate) is_open: bool,
    /// The life of the receiver that it was opened to, because a connection does not outlive a process.
    pub(crate) to_life: u32,
    /// True if a try to open it is under way.
    pub(crate) is_dialling: bool,
    /// What it carries: each message with the life of the receiver that it was sent to.
    pub(crate) carried: VecDeque<(u32, Vec<u8>)>,
    /// When the last message sent will arrive.
    last_us: u64,
    /// Nothing arrives before this moment.
    pub(crate) blocked_until_us: u64,
}

/// All streams.
pub(crate) struct Network {
    streams: Vec<Vec<Stream>>,
    pub(crate) slow_until_us: u64,
    delay_us_max: u64,
}

impl Network {
    pub(crate) fn new(node_count: usize, delay_us_max: u64) -> Network {
        let streams = vec![vec![Stream::default(); node_count]; node_count];
        Network { streams, slow_until_us: 0, delay_us_max }
    }

    pub(crate) fn stream(&mut self, from: usize, to: usize) -> &mut Stream {
        &mut self.streams[from][to]
    }

    /// Returns which use of a stream this is.
    pub(crate) fn number(&self, from: usize, to: usize) -> u64 {
        self.streams[from][to].number
    }

    /// Returns how long a message takes that is sent now.
    pub(crate) fn delay_us(&self, now_us: u64, random: &mut Rng) -> u64 {
        let usual = random.u64(50..50 + self.delay_us_max);
        // Now and then a packet is sent again.
        let odd = if random.u16(..) < 200 { random.u64(0..200_000) } else { 0 };
        let slow = if now_us < self.slow_until_us { random.u64(0..300_000) } else { 0 };
        usual + odd + slow
    }

    /// Returns when a message arrives that is sent now, behind all earlier ones.
    pub(crate) fn arrival_us(
        &mut self,
        from: usize,
        to: usize,
        now_us: u64,
        random: &mut Rng,
    ) -> u64 {
        let at_us = now_us + self.delay_us(now_us, random);
        let stream = &mut self.streams[from][to];
        stream.last_us = stream.last_us.max(at_us).max(stream.blocked_until_us);
        stream.last_us
    }

    /// Opens a stream that was dialled.
    pub(crate) fn open(&mut self, from: usize, to: usize, now_us: u64, to_life: u32) {
        let stream = &mut self.streams[from][to];
        stream.is_open = true;
        stream.to_life = to_life;
        stream.last_us = now_us;
    }

    /// Breaks a stream; returns what it carried if it was open.
    pub(crate) fn close(&mut self, from: usize, to: usize) -> Option<VecDeque<(u32, Vec<u8>)>> {
        let stream = &mut self.streams[from][to];
        stream.number += 1;
        let carried = std::mem::take(&mut stream.carried);
        std::mem::replace(&mut stream.is_open, false).then_some(carried)
    }

    /// Stalls one direction until `until_us`.
    pub(crate) fn block(&mut self, from: usize, to: usize, until_us: u64) {
        let stream = &mut self.streams[from][to];
        stream.blocked_until_us = stream.blocked_until_us.max(until_us);
        stream.last_us = stream.last_us.max(until_us);
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self) {
        self.slow_until_us = 0;
        for stream in self.streams.iter_mut().flatten() {
            stream.blocked_until_us = 0;
        }
    }
}
