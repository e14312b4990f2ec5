//! Other nodes, as places to take blocks from.
//!
//! Owns the connections to them, and for how long one that did not answer is left alone. Always holds:
//! whoever asks for a block gets it or goes on to the source within a bounded time.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millrace_client::Error;
use millrace_client::peer::{Peer, PeerBlock};
use millrace_proto::cluster::Member;
use tokio::time::Instant;

use super::View;
use crate::cache::BlockKey;
use crate::memory::Blank;

/// Longest wait for a block, besides its bytes. Guessed: less than what a client waits before it asks
/// elsewhere.
const PEEK_PATIENCE: Duration = Duration::from_millis(300);
/// Longest wait for a block that is pulled over, and that nobody waits for.
const PULL_PATIENCE: Duration = Duration::from_secs(2);
/// Rate at which a block is taken to come at the least: 16 MB/s. Guessed.
const SLOWEST_BYTES_PER_MS: u64 = 16_000;
/// Longest wait for a block that the other one has to read from the source. Guessed.
const FETCH_PATIENCE: Duration = Duration::from_secs(2);
/// How long a node that did not answer is not asked.
const AVOID: Duration = Duration::from_secs(2);

/// A block that is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) key: BlockKey,
    pub(crate) version: u64,
    /// Path of its file.
    pub(crate) path: &'a str,
    /// Owners it has.
    pub(crate) replicas: usize,
}

struct Known {
    run: u64,
    peer: Arc<Peer>,
    avoid_until: Option<Instant>,
}

/// The nodes that were asked for something.
pub(crate) struct Peers {
    block_size: u32,
    known: Mutex<HashMap<String, Known>>,
}

impl Peers {
    /// Peers with blocks of this size.
    pub(crate) fn new(block_size: u32) -> Peers {
        Peers { block_size, known: Mutex::default() }
    }

    /// The connection to a member; None while it is left alone.
    pub(crate) fn get(&self, member: &Member) -> Option<Arc<Peer>> {
        let shards = match member.shards.is_empty() {
            true => std::slice::from_ref(&member.address),
            false => &member.shards,
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(member.id.clone()).or_insert_with(|| Known {
            run: member.run,
            peer: Arc::new(Peer::new(shards, self.block_size)),
            avoid_until: None,
        });
        if known.run != member.run {
            let peer = Arc::new(Peer::new(shards, self.block_size));
            *known = Known { run: member.run, peer, avoid_until: None };
        }
        match known.avoid_until {
            Some(until) if Instant::now() < until => None,
            _ => Some(Arc::clone(&known.peer)),
        }
    }

    /// Leaves a member alone for a while if it did not answer at all.
    fn failed(&self, member: &Member, error: &Error) {
        tracing::debug!("take a block from {}: {error}", member.id);
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(&member.id).filter(|_| error.status().is_none()) {
            known.avoid_until = Some(Instant::now() + AVOID);
        }
    }

    /// Closes the connections to nodes that are not members any more.
    pub(crate) fn keep(&self, view: &View) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|id, known| view.member(id).is_some_and(|member| member.run == known.run));
    }

    /// Takes a block from the first of the likely members that has it; false if none does. Where it has
    /// several owners the first of them is asked to read it from the source for all.
    pub(crate) async fn fill(&self, view: &View, wanted: Wanted<'_>, blank: &mut Blank) -> bool {
        let Wanted { key, version, path, replicas } = wanted;
        let block = PeerBlock { file: key.file, version, block: key.block, length: blank.length() };
        let first = view.first_owner(&key).filter(|_| replicas > 1);
        for member in view.holders(&key, replicas) {
            let Some(peer) = self.get(member) else { continue };
            let taken = if first.is_some_and(|first| first.id == member.id) {
                peer.fetch(block, path, FETCH_PATIENCE + patience(block.length)).await.map(Some)
            } else {
                peer.peek(block, PEEK_PATIENCE + patience(block.length)).await
            };
            match taken {
                Ok(Some(bytes)) => {
                    if copy(&bytes, blank).is_ok() {
                        return true;
                    }
                }
                Ok(None) => (),
                Err(error) => self.failed(member, &error),
            }
        }
        false
    }

    /// Takes a block from the member that says that it has it; false if it does not give it.
    pub(crate) async fn pull(
        &self,
        member: &Member,
        (key, version): (BlockKey, u64),
        blank: &mut Blank,
    ) -> bool {
        let Some(peer) = self.get(member) else { return false };
        let block = PeerBlock { file: key.file, version, block: key.block, length: blank.length() };
        match peer.peek(block, PULL_PATIENCE + patience(block.length)).await {
            Ok(Some(bytes)) => copy(&bytes, blank).is_ok(),
            Ok(None) => false,
            Err(error) => {
                self.failed(member, &error);
                false
            }
        }
    }
}

/// Time for so many bytes on a slow network, several blocks being on their way at once.
fn patience(length: u32) -> Duration {
    Duration::from_millis(u64::from(length) / SLOWEST_BYTES_PER_MS)
}

fn copy(bytes: &Bytes, blank: &mut Blank) -> io::Result<()> {
    blank.fill_with(|position, target| {
        let rest = &bytes[position as usize..];
        let length = rest.len().min(target.len());
        target[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    })
}
