//! What quickstart says, as text and as JSON.
//!
//! Owns the words. A claim is made only of what was compared: files left out are counted and named,
//! and when nothing at all was read there is no success.

use std::fmt::Write as _;

use millrace_bench::report::Table;
use millrace_client::{Client, NodeStatus};
use millrace_node::{Config, Node};
use millrace_ops::form;
use serde::Serialize;
use serde_json::{Value, json};

use super::pass::{FileTrouble, Listed, Pass};
use crate::failure::{Failure, shown};
use crate::output;

/// Most files of a kind that are named.
const NAMED_MAX: usize = 5;
/// Size that blocks are rounded up to in memory.
const PAGE_SIZE: u64 = millrace_proto::checksum::PAGE_SIZE as u64;

/// All results; as JSON, what `--json` prints.
#[derive(Default, Serialize)]
pub(super) struct QuickstartReport {
    directory: String,
    address: String,
    shard_count: usize,
    memory_bytes: u64,
    block_size: u32,
    /// The cluster that the node is in.
    cluster: Option<Value>,
    file_count: u64,
    total_bytes: u64,
    /// Memory that the files need, whole pages for each block.
    needed_bytes: u64,
    /// Memory for blocks, as the node reports it.
    pub(super) capacity_bytes: Option<u64>,
    /// Entries of the source that the node does not list.
    skipped_count: u64,
    /// Reads of the second pass that did not wait for the source, in percent.
    warm_hit_percent: Option<u64>,
    passes: Vec<Pass>,
    /// Files whose every byte matched in both passes.
    matched_count: u64,
    mismatches: Vec<Named>,
    changing: Vec<Named>,
    unreadable: Vec<Named>,
}

/// A path with a remark about it.
#[derive(Serialize)]
struct Named {
    path: String,
    detail: String,
}

impl QuickstartReport {
    pub(super) fn new(
        config: &Config,
        node: &Node,
        client: &Client,
        found: &Listed,
    ) -> QuickstartReport {
        let lengths = || found.samples.iter().map(|sample| sample.file.length);
        let cluster = client.cluster().map(|it| {
            let node_count = it.members.len();
            json!({ "id": it.id, "epoch": it.epoch, "node_count": node_count, "master": it.master })
        });
        QuickstartReport {
            directory: config.source.display().to_string(),
            address: node.address().to_string(),
            shard_count: config.shards,
            memory_bytes: config.memory as u64,
            block_size: config.block_size,
            cluster,
            file_count: found.samples.len() as u64,
            total_bytes: lengths().sum(),
            // Blocks are whole pages already, so that only the last one of a file is rounded up.
            needed_bytes: lengths().map(|length| length.next_multiple_of(PAGE_SIZE)).sum(),
            skipped_count: found.skipped_count,
            ..QuickstartReport::default()
        }
    }

    /// Takes counters of the node around the second pass.
    pub(super) fn set_warm_counters(&mut self, before: &NodeStatus, after: &NodeStatus) {
        let grown = |name| after.counter(name)?.checked_sub(before.counter(name)?);
        if let (Some(hit_count), Some(miss_count)) = (grown("hit_count"), grown("miss_count")) {
            self.warm_hit_percent = Some(output::percent(hit_count, hit_count + miss_count));
        }
    }

    /// Takes what became of the files.
    pub(super) fn set_outcome(&mut self, found: Listed, passes: [Pass; 2]) {
        self.passes = passes.into();
        for (path, detail) in found.unreadable {
            self.unreadable.push(Named { path: shown(&path).into(), detail });
        }
        for sample in found.samples {
            let (list, detail) = match sample.trouble {
                None => {
                    self.matched_count += 1;
                    continue;
                }
                Some(FileTrouble::Changed) => {
                    (&mut self.changing, "its version is another".to_owned())
                }
                Some(FileTrouble::Unreadable(reason)) => (&mut self.unreadable, reason),
                Some(FileTrouble::Differs(offset)) => {
                    (&mut self.mismatches, format!("byte {offset}"))
                }
            };
            list.push(Named { path: sample.file.path.to_string(), detail });
        }
    }

    /// True if every byte that could be read matched, and there was one.
    pub(super) fn is_proof(&self) -> bool {
        self.mismatches.is_empty() && self.matched_count > 0
    }

    /// Returns the lines before anything is read.
    pub(super) fn head(&self) -> String {
        let mut text = format!(
            "Millrace reads {}\n\
             through a node of this process at {}: {}, {} of memory, blocks of {}\n{}, {}",
            output::visible(&self.directory),
            self.address,
            output::counted(self.shard_count as u64, "shard"),
            output::size(self.memory_bytes),
            output::size(self.block_size.into()),
            output::counted(self.file_count, "file"),
            output::size(self.total_bytes)
        );
        if self.skipped_count > 0 {
            let skipped = output::counted(self.skipped_count, "entry");
            let _ = write!(
                text,
                "; {skipped} left out (links that lead out of it or nowhere, and what is not a file)"
            );
        }
        text.push('\n');
        if let Some(percent) = self.fitting_percent() {
            // What the index and uneven shards take comes on top.
            let needed_gib = (self.needed_bytes + self.needed_bytes / 4).div_ceil(1 << 30);
            let _ = writeln!(
                text,
                "{percent} % of it fits in memory, so the warm pass is partly cold; \
                 for all of it add --memory {needed_gib}GiB"
            );
        }
        text
    }

    /// Returns how much fits in memory, if not all does.
    fn fitting_percent(&self) -> Option<u64> {
        let capacity = self.capacity_bytes.unwrap_or(self.memory_bytes);
        (self.needed_bytes > capacity).then(|| output::percent(capacity, self.needed_bytes))
    }

    /// Returns the table and what it proves.
    pub(super) fn verdict(&self) -> String {
        let mut text = format!("\n{}\n", self.table());
        if let (Some(percent @ 0..100), Some(_)) = (self.warm_hit_percent, self.fitting_percent()) {
            let _ = writeln!(text, "{percent} % of the warm reads came from memory");
        }
        let lists = [
            ("could not be read", &self.unreadable),
            ("changed while being read, and left out", &self.changing),
            ("with bytes that DIFFER from the source", &self.mismatches),
        ];
        for (what, list) in lists {
            text.push_str(&named(what, list));
        }
        if self.is_proof() {
            let files = output::counted(self.matched_count, "file");
            let _ = writeln!(text, "every byte matched: {files} compared with the source, twice");
        }
        text
    }

    fn table(&self) -> String {
        let head = ["pass", "files", "bytes", "seconds", "GB/s", "reads/s", "p50", "p99"];
        let mut table = Table::new(&head);
        for pass in &self.passes {
            table.row([
                pass.name.to_owned(),
                output::count(pass.file_count),
                output::size(pass.total_bytes),
                format!("{:.3}", pass.seconds),
                format!("{:.2}", pass.gb_per_s),
                form::count(pass.reads_per_s),
                form::latency(pass.p50_us),
                form::latency(pass.p99_us),
            ]);
        }
        table.render()
    }

    /// Returns what to try while the node serves.
    pub(super) fn how_to_connect(&self) -> String {
        let address = &self.address;
        let verbs = ["fs ls -l", "admin status", "fs status", "bench read"];
        let lines = verbs.map(|verb| format!("  millrace {verb} --node {address}\n"));
        let lines = lines.concat();
        format!("\nserving at {address} until Ctrl-C; in another terminal, try\n{lines}")
    }

    /// Ends the verb.
    ///
    /// # Errors
    /// If a byte differed, or none was compared.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        if !self.mismatches.is_empty() {
            let files = output::counted(self.mismatches.len() as u64, "file");
            return Err(Failure::new(format!("{files} with bytes that differ from the source"))
                .with_hint(
                    "check the memory of this machine; if it is sound, please report this",
                ));
        }
        if self.matched_count == 0 {
            return Err(Failure::new("no file could be compared, so nothing is proven").with_hint(
                "name a directory or a prefix whose files may be read and do not change",
            ));
        }
        Ok(())
    }
}

/// Returns a line that counts, and a line for each of the first.
fn named(what: &str, list: &[Named]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut text = format!("{} {what}:\n", output::counted(list.len() as u64, "path"));
    for Named { path, detail } in list.iter().take(NAMED_MAX) {
        let _ = writeln!(text, "  {}: {detail}", output::visible(path));
    }
    if list.len() > NAMED_MAX {
        let _ = writeln!(text, "  and {} more", output::count((list.len() - NAMED_MAX) as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let item = |index| Named { path: format!("f{index}"), detail: "gone".to_owned() };
        let list: Vec<Named> = (0..7).map(item).collect();
        let text = named("could not be read", &list);
        assert!(text.starts_with("7 paths could not be read:\n  f0: gone\n"), "{text}");
        assert!(text.ends_with("  f4: gone\n  and 2 more\n"), "{text}");
        assert_eq!(named("x", &[]), "");
    }
}
