//! Reports of a replica: its snapshot, and what the loop and its threads add to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::room::Room;
use super::{Machine, Now, Report, Runtime};
use crate::metrics::Latency;
use crate::report::{self, Effect, Process, Wanted};

/// The figures of the threads that write to the disk. They write these, and the loop reads them.
#[derive(Debug, Default)]
pub(super) struct DiskFigures {
    /// Durable commits of the log.
    pub(super) sync_latency: Latency,
    /// Durable checkpoints of the state.
    pub(super) checkpoint_latency: Latency,
    pub(super) log_bytes: u64,
    pub(super) state_bytes: u64,
    /// Zxid and time, in milliseconds since 1970, of the last durable checkpoint.
    pub(super) checkpoint: Option<(i64, i64)>,
}

/// A handle to [`DiskFigures`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    figures: Arc<Mutex<DiskFigures>>,
    /// Whether the stores have room.
    pub(super) room: Room,
}

impl Disk {
    /// Notes the checkpoint on disk; see [`DiskFigures::checkpoint`].
    pub(crate) fn note_checkpoint(&self, checkpoint: Option<(i64, i64)>) {
        self.figures().checkpoint = checkpoint;
    }

    /// Locks the figures.
    pub(super) fn figures(&self) -> MutexGuard<'_, DiskFigures> {
        // These are plain numbers, so a thread that panicked did no harm here.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Machine> Runtime<M> {
    /// Reports the state of the replica, and what `wanted` names beside the figures.
    pub(super) fn report(&self, now: Now, wanted: Wanted) -> Report {
        let mut snapshot = self.machine.report(now, wanted);
        let counted = &self.clients.metrics;
        let metrics = &mut snapshot.metrics;
        metrics.bytes_received = counted.bytes_received;
        metrics.bytes_sent = counted.bytes_sent;
        metrics.connections_opened = counted.connections_opened;
        metrics.connections_closed = counted.connections_closed;
        metrics.connections_rejected = counted.connections_rejected;
        metrics.requests_too_large = counted.requests_too_large;
        metrics.slow_clients_closed = counted.slow_clients_closed;
        metrics.peers_lost = self.peers.lost_count;
        snapshot.connection_count = self.clients.count() as u64;
        let disk = self.disk.figures();
        metrics.sync_latency = disk.sync_latency.clone();
        metrics.checkpoint_latency = disk.checkpoint_latency.clone();
        snapshot.log_disk_bytes = disk.log_bytes;
        snapshot.state_disk_bytes = disk.state_bytes;
        snapshot.checkpoint = disk.checkpoint;
        snapshot.process = Process::look();
        Report { snapshot, peers: self.peers.status() }
    }

    /// Answers the four-letter words that came in this pass.
    pub(super) fn answer_words(&mut self, now: Now) {
        for (client, bytes) in std::mem::take(&mut self.clients.words) {
            let text = match report::permit(bytes, &self.config) {
                Err(refusal) => refusal,
                Ok(word) => {
                    let snapshot = self.report(now, Wanted::for_word(word)).snapshot;
                    let (text, effect) = report::answer(word, &snapshot);
                    self.reset(effect);
                    text
                }
            };
            self.clients.answer(client, now.ms, text);
        }
    }

    /// Resets figures.
    pub(super) fn reset(&mut self, effect: Effect) {
        if effect == Effect::ResetServer {
            self.clients.metrics.reset();
            self.peers.lost_count = 0;
            let mut disk = self.disk.figures();
            disk.sync_latency = Latency::default();
            disk.checkpoint_latency = Latency::default();
        }
        self.machine.reset(effect);
    }
}
