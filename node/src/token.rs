//! Names of connections, in mail, in the ring and in a shard's table.

/// Generations are counted modulo this.
pub(crate) const GENERATION_COUNT: u32 = 1 << 24;

/// Names a connection of a shard: its place in the table, and how often the place was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    /// Place in the shard's table.
    pub index: u32,
    /// Uses of the place before this one, modulo 2^24, so that a late completion is not taken for the
    /// next connection's.
    pub generation: u32,
}
