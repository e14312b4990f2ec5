//! Which blocks of files are in the memory of the nodes.

use std::sync::Arc;

use millrace_proto::frame;
use millrace_proto::message::{ArchivedCachedReply, CACHED_BLOCKS_MAX, CachedRequest};
use tokio::time::Instant;

use crate::client::Client;
use crate::connection::{Body, Reply};
use crate::control::passing;
use crate::error::Error;
use crate::file::File;

/// How much of a file is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedShare {
    /// Blocks of which one member at least has all bytes, in the version that was asked about.
    pub block_count: u64,
    /// Bytes of these blocks.
    pub byte_count: u64,
}

impl Client {
    /// Returns how much of this version of a file is in the memory of the node, or of all members of its cluster
    /// together. Nothing is read for it. A member that does not answer counts as one that has nothing.
    ///
    /// # Errors
    /// [`Error::Status`] with `UnknownOp` from a node of an earlier version.
    pub async fn cached(&self, file: &File) -> Result<CachedShare, Error> {
        let deadline = self.deadline();
        let (mut share, block_size) = (CachedShare::default(), u64::from(file.block_size));
        let block_count = file.block_count();
        let mut first = 0;
        while first < block_count {
            let count = (block_count - first).min(u64::from(CACHED_BLOCKS_MAX));
            let bits = self.cached_part(file, first as u32, count as u32, deadline).await?;
            let is_here = |place: &u64| {
                let byte = bits.get((place / 8) as usize).copied().unwrap_or(0);
                byte >> (place % 8) & 1 == 1
            };
            for place in (0..count).filter(is_here) {
                share.block_count += 1;
                share.byte_count += (file.length - (first + place) * block_size).min(block_size);
            }
            first += count;
        }
        Ok(share)
    }

    /// Returns a bit for each of some blocks: 1 if one member at least has it.
    async fn cached_part(
        &self,
        file: &File,
        first: u32,
        count: u32,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let request = || {
            let (file, version) = (file.id.into(), file.version);
            Body::Cached(CachedRequest { file, version, first, count })
        };
        let decode = |reply: &Reply| {
            Ok(frame::body::<ArchivedCachedReply>(&reply.body)?.blocks.as_slice().to_vec())
        };
        let topology = self.topology();
        if topology.cluster.is_none() {
            return self.call_home(&request, &decode, deadline).await;
        }
        let members: Vec<Arc<_>> = topology.members().cloned().collect();
        let (mut all, mut cause) = (None::<Vec<u8>>, None);
        for (_, result) in self.ask_each(members, &request, deadline).await {
            match result {
                Ok(reply) => {
                    let bits = decode(&reply)?;
                    let all = all.get_or_insert_with(Vec::new);
                    all.resize(all.len().max(bits.len()), 0);
                    all.iter_mut().zip(bits).for_each(|(all, bits)| *all |= bits);
                }
                Err(error) => cause = Some(passing(error)?),
            }
        }
        match (all, cause) {
            (None, Some(cause)) => Err(cause),
            (all, _) => Ok(all.unwrap_or_default()),
        }
    }
}
