//! A node with a certain number of blocks in its memory, and the files they are made from.
//!
//! Owns the memory that is planned for both. Always holds: when a node is handed out, every block
//! is in its memory, by its own counter, and has been read once with its checksums checked.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use millrace_proto::message::Entry;
use tempfile::TempDir;

use super::probe::Probe;
use super::{READ_SIZE, ScaleOptions};
use crate::control::{Control, Node};
use crate::keys::{Distribution, Keys};
use crate::load::{self, Check, LoadOptions};
use crate::rival::{self, NodeOptions, Server};
use crate::wire::{FileRanges, Millrace};

/// Files in a directory.
const FILES_PER_DIRECTORY: u64 = 1000;
/// Memory of a node for each block: its page and what is kept beside it, and an eighth more, because
/// shards own parts that are not quite equal. Measured: a node keeps less than 200 bytes for a page.
const BLOCK_MEMORY: u64 = (READ_SIZE as u64 + 256) * 9 / 8;
/// Memory of a node beside blocks, for each shard. Derived: twice the least that a shard takes.
const SHARD_MEMORY: u64 = 8 << 20;
/// Memory for each file: an inode and a name in the kernel, an entry and a request here. Guessed.
const FILE_MEMORY: u64 = 2 << 10;
/// Files that are looked up and then read at a time. Of the 100 thousand that a node remembers it
/// forgets new ones first; measured: it forgets some of 20 thousand, and none of these.
const FILL_COUNT: u64 = 1000;
/// Counter of a node: blocks in its memory.
const BLOCK_COUNTER: &str = "block_count";
/// Connections that a node takes beside those of the load: those that fill it, and the one for
/// questions.
const CONNECTIONS_SPARE: usize = 64;
/// Flags of a node for the most connections it takes, in all and from one address: all of them come from
/// this machine.
const CONNECTIONS_FLAGS: [&str; 2] = ["--connections-max", "--connections-per-peer-max"];
/// Longest filling of a node with a part of its blocks, in seconds.
const FILL_SECONDS_MAX: f64 = 600.0;

/// Files of one block each, all holes.
pub(super) struct Source {
    directory: TempDir,
    count: u64,
}

impl Source {
    pub(super) fn new() -> Result<Source> {
        Ok(Source { directory: rival::scratch_directory()?, count: 0 })
    }

    fn path(index: u64) -> String {
        format!("{}/{}", index / FILES_PER_DIRECTORY, index % FILES_PER_DIRECTORY)
    }

    /// Returns the memory that `count` files take.
    pub(super) fn growth_bytes(&self, count: u64) -> u64 {
        count.saturating_sub(self.count) * FILE_MEMORY
    }

    /// Returns why there cannot be `count` files, if so.
    pub(super) fn obstacle(&self, count: u64) -> Option<String> {
        let free = rustix::fs::statvfs(self.directory.path()).ok()?.f_favail;
        let more = count.saturating_sub(self.count);
        // A file system that does not count files says 0.
        (free > 0 && more > free).then(|| {
            let path = self.directory.path().display();
            format!("needs {more} more files, and {path} has room for {free}")
        })
    }

    /// Makes files until there are `count`.
    pub(super) fn grow(&mut self, count: u64) -> Result<()> {
        for index in self.count..count {
            let path = self.directory.path().join(Source::path(index));
            if (index == self.count || index % FILES_PER_DIRECTORY == 0)
                && let Some(parent) = path.parent()
            {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("create {}", parent.display()))?;
            }
            make_hole(path)?;
        }
        self.count = self.count.max(count);
        Ok(())
    }
}

fn make_hole(path: PathBuf) -> Result<()> {
    let made = File::create(&path).and_then(|file| file.set_len(u64::from(READ_SIZE)));
    made.with_context(|| format!("create {}", path.display()))
}

/// A node that holds blocks.
pub(super) struct Stock {
    server: Server,
    node: Node,
    entries: Vec<Entry>,
}

impl Stock {
    /// Returns the memory of a node for this many blocks.
    pub(super) fn memory_bytes(count: u64, shard_count: usize) -> u64 {
        count * BLOCK_MEMORY + shard_count as u64 * SHARD_MEMORY
    }

    /// Starts a node on `cpus`, for a load of `connections` connections, and reads the first `count`
    /// files of the source.
    pub(super) fn start(
        options: &ScaleOptions,
        source: &Source,
        count: u64,
        cpus: &[usize],
        connections: usize,
    ) -> Result<Stock> {
        let mut arguments = options.node.arguments.clone();
        // No more than needed: a node wants descriptors for all it takes.
        for flag in CONNECTIONS_FLAGS {
            if !arguments.iter().any(|argument| argument.split('=').next() == Some(flag)) {
                arguments.push(format!("{flag}={}", connections + CONNECTIONS_SPARE));
            }
        }
        let node = NodeOptions {
            program: options.node.program.clone(),
            memory_bytes: Stock::memory_bytes(count, cpus.len()),
            arguments,
        };
        let server = rival::start_node(&node, source.directory.path(), cpus, options.transport)?;
        let mut control = Control::connect(server.address())?;
        let node = control.hello()?;
        let mut stock = Stock { server, node, entries: Vec::with_capacity(count as usize) };
        let mut first = 0;
        while first < count {
            let end = count.min(first + FILL_COUNT);
            stock.fill(&mut control, first..end).context("fill a node")?;
            first = end;
        }
        let held = control.counter(BLOCK_COUNTER)?;
        ensure!(
            held.is_none_or(|held| held == count),
            "the node holds {} of {count} blocks",
            held.unwrap_or_default()
        );
        Ok(stock)
    }

    fn fill(
        &mut self,
        control: &mut Control<crate::address::Stream>,
        range: std::ops::Range<u64>,
    ) -> Result<()> {
        let expected = range.end - range.start;
        let paths: Vec<String> = range.map(Source::path).collect();
        let entries = control.stat_many(&paths)?;
        let ranges = FileRanges::new(entries.clone(), READ_SIZE, self.node.block_size)?;
        let mut keys = Keys::new(Distribution::Once, ranges.count(), 0)?;
        let mut wire = Millrace::new(&self.node, ranges, 1, false)?;
        let load = LoadOptions {
            warmup_seconds: 0.0,
            seconds: FILL_SECONDS_MAX,
            check: Check::Checksums,
            ..LoadOptions::default()
        };
        let addresses = std::slice::from_ref(self.server.address());
        let result = load::run(&mut wire, addresses, &mut keys, &load)?;
        ensure!(result.reads == expected, "{} of {expected} blocks were read", result.reads);
        self.entries.extend(entries);
        Ok(())
    }

    /// Makes a load of this node by one generator on each of `cpus`, of `read_count` blocks spread
    /// evenly over all blocks.
    pub(super) fn probe(
        &self,
        series: &str,
        value: u64,
        read_count: u64,
        load: LoadOptions<'static>,
        cpus: &[usize],
    ) -> Result<Probe> {
        let step = (self.entries.len() as u64 / read_count).max(1) as usize;
        let entries: Vec<Entry> = self.entries.iter().step_by(step).cloned().collect();
        let ranges = FileRanges::new(entries, READ_SIZE, self.node.block_size)?;
        let load = LoadOptions { server_pid: Some(self.server.pid()), ..load };
        let mut probe = Probe::new(series, value, self.node.shards.clone(), ranges.count(), load);
        for &cpu in cpus {
            let mut wire = Millrace::new(&self.node, ranges.clone(), 1, true)?;
            wire.prepare();
            probe.add_generator(wire, cpu);
        }
        Ok(probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_holes_of_one_block_and_only_grow() {
        let mut source = Source::new().unwrap();
        assert_eq!(source.growth_bytes(1500), 1500 * FILE_MEMORY);
        source.grow(1500).unwrap();
        source.grow(10).unwrap();
        source.grow(1600).unwrap();
        assert_eq!((source.growth_bytes(1600), source.obstacle(1600)), (0, None));
        for index in [0, 999, 1000, 1499, 1500, 1599] {
            let path = source.directory.path().join(Source::path(index));
            assert_eq!(std::fs::metadata(path).unwrap().len(), u64::from(READ_SIZE));
        }
        assert!(!source.directory.path().join(Source::path(1600)).exists());
    }
}
