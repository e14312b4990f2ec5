//! Where a block lies in the index: a hash that users who name files cannot foresee.
//!
//! The hash that places blocks on shards and nodes is public, because clients compute it, and names can
//! be chosen so that many blocks have the same. In the index such blocks would form one long run, which
//! each look-up walks. So the index has a hash of its own, from the whole key and two secret numbers of
//! this shard: a multiplication of 64 by 64 bits, folded, as in wyhash.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::BlockKey;

/// Odd, so that no two block numbers become one; 2^64 divided by the golden ratio, which spreads them.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Two numbers that are not known outside of the shard.
pub(super) struct Secret([u64; 2]);

impl Secret {
    /// Draws new numbers.
    pub(super) fn random() -> Secret {
        // Keys of this hasher come from the system's random numbers.
        Secret([(); 2].map(|()| RandomState::new().build_hasher().finish()))
    }

    /// Returns the hash of a key.
    #[inline]
    pub(super) fn hash(&self, key: &BlockKey) -> u64 {
        let [low, high] = [key.file.0 as u64, (key.file.0 >> 64) as u64];
        // The secrets by exclusive or, the block by addition: what differs before differs after in a way
        // that depends on the secrets.
        let one = low ^ self.0[0];
        let other = (high ^ self.0[1]).wrapping_add(u64::from(key.block).wrapping_mul(SPREAD));
        let product = u128::from(one) * u128::from(other);
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hint::black_box;
    use std::time::Instant;

    use millrace_proto::FileId;

    use super::*;

    #[test]
    fn neighbours_get_different_hashes() {
        let secret = Secret::random();
        let keys = (0..300_u128).flat_map(|file| {
            (0..300).map(move |block| BlockKey { file: FileId(file << (file % 120)), block })
        });
        let keys: HashSet<BlockKey> = keys.collect();
        let hashes: HashSet<u64> = keys.iter().map(|key| secret.hash(key)).collect();
        assert_eq!(hashes.len(), keys.len());
        // The index looks at the upper half alone: about as many are equal as by chance.
        let tags: HashSet<u32> = hashes.iter().map(|hash| (hash >> 32) as u32).collect();
        assert!(keys.len() - tags.len() < 20, "{} of {}", tags.len(), keys.len());
    }

    /// Prints what the index pays for its own hash beside the placement hash, for a person who wants to
    /// know: `cargo test --release -p millrace-node --lib cache::secret -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn price_beside_the_placement_hash() {
        let secret = Secret::random();
        let keys: Vec<BlockKey> = (0..4096)
            .map(|it| BlockKey { file: FileId(u128::from(it) << 60 | 7), block: it })
            .collect();
        let time = |hash: &dyn Fn(&BlockKey) -> u64| {
            let start = Instant::now();
            for _ in 0..500 {
                for key in &keys {
                    black_box(hash(black_box(key)));
                }
            }
            start.elapsed().as_secs_f64() * 1e9 / (500 * keys.len()) as f64
        };
        for _ in 0..5 {
            let (placement, index) = (time(&|key| key.hash()), time(&|key| secret.hash(key)));
            println!("placement {placement:.2} ns, index {index:.2} ns a block");
        }
    }
}
