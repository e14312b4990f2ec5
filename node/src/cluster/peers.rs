//! Other nodes, as places to take blocks from.
//!
//! Owns the connections to them, and for how long one that did not answer is left alone. Always holds: a
//! caller gets its block, or goes on to the source, within a bounded time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_client::Error;
use millrace_client::peer::{Peer, PeerBlock, PeerBytes};
use millrace_proto::cluster::Member;
use millrace_proto::proof::{BlockMac, Mac, Secret};
use tokio::time::Instant;

use super::View;
use crate::cache::BlockKey;
use crate::memory::Blank;

/// Longest wait for a block, besides its bytes. Guessed: less than what a client waits before it asks
/// elsewhere.
const PEEK_PATIENCE: Duration = Duration::from_millis(300);
/// Longest wait for a block that is pulled over, and that no client waits for.
const PULL_PATIENCE: Duration = Duration::from_secs(2);
/// Rate at which a block is taken to come at the least: 16 MB/s. Guessed.
const SLOWEST_BYTES_PER_MS: u64 = 16_000;
/// Longest wait for a block that the other one has to read from the source. Guessed.
const FETCH_PATIENCE: Duration = Duration::from_secs(2);
/// How long a node that did not answer is not asked.
const AVOID: Duration = Duration::from_secs(2);

/// What a member gave: the bytes of a block, and its code.
type Taken = (PeerBytes, Option<Mac>);

/// A block that is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) key: BlockKey,
    pub(crate) version: u64,
    /// Path of its file.
    pub(crate) path: &'a str,
    /// Owners it has.
    pub(crate) replicas: usize,
}

struct KnownPeer {
    run: u64,
    peer: Arc<Peer>,
    avoid_until: Option<Instant>,
}

/// The nodes that were asked for something.
pub(crate) struct Peers {
    block_size: u32,
    /// The secret of the cluster, which both sides of a connection prove to know.
    secret: Option<Secret>,
    known: Mutex<HashMap<String, KnownPeer>>,
}

impl Peers {
    /// Makes peers with blocks of this size, in a cluster with this secret.
    pub(crate) fn new(block_size: u32, secret: Option<Secret>) -> Peers {
        Peers { block_size, secret, known: Mutex::default() }
    }

    /// Has the code of a block made as it is filled, if the cluster has a secret.
    pub(crate) fn sign(&self, key: BlockKey, version: u64, blank: &mut Blank) {
        if let Some(secret) = &self.secret {
            let length = blank.length();
            blank.sign(BlockMac::new(secret, key.file, version, key.block, length));
        }
    }

    /// True if members recognise this node.
    pub(crate) fn has_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// Returns the connection to a member; None while it is left alone.
    pub(crate) fn get(&self, member: &Member) -> Option<Arc<Peer>> {
        let (peer, is_avoided) = self.known(member);
        (!is_avoided).then_some(peer)
    }

    /// Returns the connection to a member, though it has not answered a moment ago.
    pub(crate) fn get_in_any_case(&self, member: &Member) -> Arc<Peer> {
        self.known(member).0
    }

    fn known(&self, member: &Member) -> (Arc<Peer>, bool) {
        let shards = match member.shards.is_empty() {
            true => std::slice::from_ref(&member.address),
            false => &member.shards,
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(member.id.clone()).or_insert_with(|| KnownPeer {
            run: member.run,
            peer: self.connect(member, shards),
            avoid_until: None,
        });
        if known.run != member.run {
            let peer = self.connect(member, shards);
            *known = KnownPeer { run: member.run, peer, avoid_until: None };
        }
        let is_avoided = known.avoid_until.is_some_and(|until| Instant::now() < until);
        (Arc::clone(&known.peer), is_avoided)
    }

    fn connect(&self, member: &Member, shards: &[String]) -> Arc<Peer> {
        Arc::new(Peer::new(shards, self.block_size, self.secret.as_ref(), member.run))
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
        all.retain(|id, known| {
            view.layout.member(id).is_some_and(|member| member.run == known.run)
        });
    }

    /// Takes a block from the first of the likely members that has it. True if one had it. If it has
    /// several owners the first of them is asked to read it from the source for all.
    pub(crate) async fn fill(&self, view: &View, wanted: Wanted<'_>, blank: &mut Blank) -> bool {
        let Wanted { key, version, path, replicas } = wanted;
        let block = PeerBlock { file: key.file, version, block: key.block, length: blank.length() };
        let first = view.first_owner(&key).filter(|_| replicas > 1);
        for member in view.holders(&key, replicas) {
            let Some(peer) = self.get(member) else { continue };
            let taken = if first.is_some_and(|first| first.id == member.id) {
                self.fetch(&peer, block, path).await
            } else {
                self.peek(&peer, block, PEEK_PATIENCE).await
            };
            match taken {
                Ok(Some(taken)) => {
                    if self.believe(member, block, taken, blank) {
                        return true;
                    }
                }
                Ok(None) => (),
                Err(error) => self.failed(member, &error),
            }
        }
        false
    }

    /// Returns a block that a member has, with its code if the cluster has a secret; None if the member
    /// does not have it, or has no code for it.
    async fn peek(
        &self,
        peer: &Peer,
        block: PeerBlock,
        patience: Duration,
    ) -> Result<Option<Taken>, Error> {
        let bytes = peer.peek(block, patience + self::patience(block.length));
        if self.secret.is_none() {
            return Ok(bytes.await?.map(|bytes| (bytes, None)));
        }
        let (bytes, code) = tokio::join!(bytes, peer.vouch(block, patience));
        Ok(bytes?.zip(code?).map(|(bytes, code)| (bytes, Some(code))))
    }

    /// As [`Peers::peek`], a block that the member reads from the source if it has to.
    async fn fetch(
        &self,
        peer: &Peer,
        block: PeerBlock,
        path: &str,
    ) -> Result<Option<Taken>, Error> {
        let bytes = peer.fetch(block, path, FETCH_PATIENCE + patience(block.length)).await?;
        if self.secret.is_none() {
            return Ok(Some((bytes, None)));
        }
        let code = peer.vouch(block, FETCH_PATIENCE).await?;
        Ok(code.map(|code| (bytes, Some(code))))
    }

    /// Puts bytes that a member gave into the blank. True if they are what a member has read from the
    /// source.
    fn believe(
        &self,
        member: &Member,
        block: PeerBlock,
        (bytes, code): Taken,
        blank: &mut Blank,
    ) -> bool {
        let PeerBlock { file, version, block, length } = block;
        if let Some(secret) = &self.secret {
            if code.is_none() {
                return false;
            }
            blank.sign(BlockMac::new(secret, file, version, block, length));
        }
        let is_believed = copy(&bytes, blank, code.as_ref());
        if !is_believed {
            tracing::error!("block {block} of {file} from {} is not what was read", member.id);
        }
        is_believed
    }

    /// Takes a block from the member that listed it. True if the member gave it.
    pub(crate) async fn pull(
        &self,
        member: &Member,
        key: BlockKey,
        version: u64,
        blank: &mut Blank,
    ) -> bool {
        let Some(peer) = self.get(member) else { return false };
        let block = PeerBlock { file: key.file, version, block: key.block, length: blank.length() };
        match self.peek(&peer, block, PULL_PATIENCE).await {
            Ok(Some(taken)) => self.believe(member, block, taken, blank),
            Ok(None) => false,
            Err(error) => {
                self.failed(member, &error);
                false
            }
        }
    }
}

/// Returns the time for this many bytes on a slow network, with several blocks on their way at once.
fn patience(length: u32) -> Duration {
    Duration::from_millis(u64::from(length) / SLOWEST_BYTES_PER_MS)
}

/// Copies the bytes into the blank. True if what lies there afterwards matches the checksum that the
/// bytes came with, and the code. If not, because of damage on the way, the blank is as empty as before.
fn copy(taken: &PeerBytes, blank: &mut Blank, code: Option<&Mac>) -> bool {
    let copied = blank.fill_with(|position, target| {
        let rest = &taken.bytes[position as usize..];
        let length = rest.len().min(target.len());
        target[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    });
    let is_whole = copied.is_ok() && blank.sum() == Some(taken.checksum);
    if !is_whole {
        tracing::error!("a block was damaged while it was copied here: is the memory faulty?");
        blank.empty();
        return false;
    }
    let is_vouched_for = code.is_none_or(|code| blank.matches(code));
    if !is_vouched_for {
        blank.empty();
    }
    is_vouched_for
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_proto::checksum;

    use super::*;
    use crate::memory::Arena;

    #[test]
    fn damage_on_the_way_into_memory_is_not_summed_over() {
        let mut memory = Arena::new(32).unwrap().cut(1).remove(0);
        let bytes = Bytes::from(vec![7; 70_000]);
        let checksum = checksum::of(&bytes);
        let mut blank = memory.allocate(70_000).unwrap();
        let damaged = PeerBytes { bytes: bytes.clone(), checksum: checksum ^ 1 };
        assert!(!copy(&damaged, &mut blank, None));
        // The next place may have it whole.
        assert!(copy(&PeerBytes { bytes, checksum }, &mut blank, None));
        let (block, sums) = blank.freeze();
        assert_eq!(sums.block, checksum);
        memory.release(block);
    }

    #[test]
    fn bytes_count_only_with_the_code_of_who_read_them_and_keep_it() {
        let mut memory = Arena::new(32).unwrap().cut(1).remove(0);
        let secret = Secret::parse(b"the secret of these").unwrap();
        let (file, version) = (millrace_proto::FileId(1), 2);
        let begin = || BlockMac::new(&secret, file, version, 3, 70_000);
        let taken = |byte: u8| {
            let bytes = Bytes::from(vec![byte; 70_000]);
            PeerBytes { checksum: checksum::of(&bytes), bytes }
        };
        let mut code = begin();
        code.update(&taken(7).bytes);
        let code = code.finish();
        let mut blank = memory.allocate(70_000).unwrap();
        blank.sign(begin());
        assert!(!copy(&taken(8), &mut blank, Some(&code)), "made up, with a right checksum");
        assert!(copy(&taken(7), &mut blank, Some(&code)));
        let (block, _) = blank.freeze();
        assert_eq!(block.code(), Some(&code), "a node that takes it from here sees the same");
        memory.release(block);
    }
}
