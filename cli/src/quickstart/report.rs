//! What quickstart says, as text and as JSON.
//!
//! Owns the words. A claim is made only of what was compared: files left out are counted and named,
//! and when nothing at all was read there is no success.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use millrace_client::ClusterInfo;
use millrace_client::NodeStatus;
use millrace_node::{Config, Node};
use millrace_ops::form;
use serde::{Serialize, Serializer};

use super::pass::{Pass, Sample, State};
use super::source::Choice;
use crate::failure::{Failure, shown};
use crate::output::{self, Align, Table};

/// Most files of a kind that are named.
const NAMED_MAX: usize = 5;
/// Size that blocks are rounded up to in memory.
const PAGE_SIZE: u64 = millrace_proto::checksum::PAGE_SIZE as u64;

/// Everything there is to say; as JSON, what `--json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(serialize_with = "as_text")]
    directory: PathBuf,
    /// Why this directory, if nobody named it.
    #[serde(skip)]
    reason: Option<&'static str>,
    address: String,
    shard_count: usize,
    memory_bytes: u64,
    block_size: u32,
    cluster: Option<ClusterLine>,
    file_count: u64,
    total_bytes: u64,
    /// Memory that the files need, whole pages for each block.
    needed_bytes: u64,
    /// Memory for blocks, as the node tells it.
    pub(super) capacity_bytes: Option<u64>,
    /// Entries of the source that the node does not list.
    skipped_count: u64,
    /// Reads of the second pass that did not wait for the source, in percent.
    warm_hit_percent: Option<u64>,
    #[serde(serialize_with = "as_documents")]
    pub(super) passes: Vec<Pass>,
    /// Files whose every byte matched in both passes.
    matched_count: u64,
    mismatches: Vec<Named>,
    changing: Vec<Named>,
    unreadable: Vec<Named>,
    #[serde(skip)]
    example: Option<String>,
}

/// The cluster that the node is in.
#[derive(Serialize)]
struct ClusterLine {
    id: String,
    epoch: u64,
    node_count: usize,
    master: Option<String>,
}

/// A path with what is to say about it.
#[derive(Debug, Serialize)]
struct Named {
    path: String,
    detail: String,
}

/// A pass for scripts.
#[derive(Serialize)]
struct Document {
    name: &'static str,
    file_count: u64,
    read_count: u64,
    total_bytes: u64,
    seconds: f64,
    gb_per_s: f64,
    reads_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

impl From<&Pass> for Document {
    fn from(pass: &Pass) -> Document {
        let seconds = pass.elapsed.as_secs_f64();
        let rate = |value: f64| if seconds > 0.0 { value / seconds } else { 0.0 };
        let at = |quantile| pass.latency.value_at_quantile(quantile) as f64 / 1e3;
        Document {
            name: pass.name,
            file_count: pass.file_count,
            read_count: pass.read_count,
            total_bytes: pass.total_bytes,
            seconds,
            gb_per_s: rate(pass.total_bytes as f64 / 1e9),
            reads_per_s: rate(pass.read_count as f64),
            p50_us: at(0.5),
            p99_us: at(0.99),
        }
    }
}

fn as_documents<S: Serializer>(passes: &[Pass], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(passes.iter().map(Document::from))
}

fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Report {
    pub(super) fn new(choice: &Choice, config: &Config, node: &Node) -> Report {
        Report {
            directory: choice.directory.clone(),
            reason: choice.reason,
            address: node.address().to_string(),
            shard_count: config.shards,
            memory_bytes: config.memory as u64,
            block_size: config.block_size,
            cluster: None,
            file_count: 0,
            total_bytes: 0,
            needed_bytes: 0,
            capacity_bytes: None,
            skipped_count: 0,
            warm_hit_percent: None,
            passes: Vec::new(),
            matched_count: 0,
            mismatches: Vec::new(),
            changing: Vec::new(),
            unreadable: Vec::new(),
            example: None,
        }
    }

    /// What was found by listing.
    pub(super) fn set_files(
        &mut self,
        samples: &[Sample],
        unreadable: Vec<(String, String)>,
        skipped_count: u64,
    ) {
        let lengths = || samples.iter().map(|sample| sample.file.length);
        self.file_count = samples.len() as u64;
        self.total_bytes = lengths().sum();
        // Blocks are whole pages already, so that only the last one of a file is rounded up.
        self.needed_bytes = lengths().map(|length| length.next_multiple_of(PAGE_SIZE)).sum();
        self.skipped_count = skipped_count;
        let named = |(path, detail): (String, String)| Named { path: shown(&path).into(), detail };
        self.unreadable = unreadable.into_iter().map(named).collect();
    }

    /// Counters of the node around the second pass.
    pub(super) fn set_warm_counters(&mut self, before: &NodeStatus, after: &NodeStatus) {
        let grown = |name| after.counter(name)?.checked_sub(before.counter(name)?);
        if let (Some(hit_count), Some(miss_count)) = (grown("hit_count"), grown("miss_count")) {
            self.warm_hit_percent = Some(output::percent(hit_count, hit_count + miss_count));
        }
    }

    /// What became of the files.
    pub(super) fn set_outcome(&mut self, samples: &[Sample]) {
        for Sample { file, state } in samples {
            let named = |detail| Named { path: file.path.to_string(), detail };
            match state {
                State::Good => {
                    self.matched_count += 1;
                    if self.example.is_none() && file.length > 0 {
                        self.example = Some(file.path.to_string());
                    }
                }
                State::Changing => self.changing.push(named("changed twice".to_owned())),
                State::Unreadable(reason) => self.unreadable.push(named(reason.clone())),
                State::Mismatch(offset) => self.mismatches.push(named(format!("byte {offset}"))),
            }
        }
    }

    /// Whether every byte that could be read matched, and there was one.
    pub(super) fn is_proof(&self) -> bool {
        self.mismatches.is_empty() && self.matched_count > 0
    }

    /// The lines before anything is read.
    pub(super) fn head(&self) -> String {
        let reason = self.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!(
            "Millrace reads {}{reason}\n\
             through a node of this process at {}: {}, {} of memory, blocks of {}\n",
            output::visible(&self.directory.display().to_string()),
            self.address,
            output::counted(self.shard_count as u64, "shard"),
            output::size(self.memory_bytes),
            output::size(self.block_size.into())
        )
    }

    /// Notes which cluster the node is in.
    pub(super) fn set_cluster(&mut self, cluster: Option<ClusterInfo>) {
        self.cluster = cluster.map(|cluster| ClusterLine {
            id: cluster.id,
            epoch: cluster.epoch,
            node_count: cluster.members.len(),
            master: cluster.master,
        });
    }

    /// The lines after listing.
    pub(super) fn files(&self) -> String {
        let files = output::counted(self.file_count, "file");
        let mut text = String::new();
        if let Some(ClusterLine { epoch, node_count, master, .. }) = &self.cluster {
            let nodes = output::counted(*node_count as u64, "node");
            let master = output::visible(master.as_deref().unwrap_or("none yet"));
            let _ = writeln!(
                text,
                "a cluster of {nodes}, epoch {epoch}, master {master}, without a coordination service"
            );
        }
        let _ = write!(text, "{files}, {}", output::size(self.total_bytes));
        if self.skipped_count > 0 {
            let skipped = output::counted(self.skipped_count, "entry");
            let _ = write!(
                text,
                "; {skipped} left out (links that lead out of it or nowhere, and what is no file)"
            );
        }
        text.push('\n');
        if let Some(percent) = self.fitting_percent() {
            let _ = writeln!(
                text,
                "{percent} % of it fits in memory, so the warm pass is partly cold; \
                 for all of it add --memory {}GiB",
                memory_gib_for(self.needed_bytes)
            );
        }
        text
    }

    /// How much fits in memory, if not all does.
    fn fitting_percent(&self) -> Option<u64> {
        let capacity = self.capacity_bytes.unwrap_or(self.memory_bytes);
        (self.needed_bytes > capacity).then(|| output::percent(capacity, self.needed_bytes))
    }

    /// The table and what it proves.
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
        const HEAD: [&str; 8] =
            ["pass", "files", "bytes", "seconds", "GB/s", "reads/s", "p50", "p99"];
        let mut columns = [Align::Right; HEAD.len()];
        columns[0] = Align::Left;
        let mut table = Table::new(&columns);
        table.row(HEAD);
        for pass in self.passes.iter().map(Document::from) {
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

    /// What to try while the node serves.
    pub(super) fn how_to_connect(&self) -> String {
        let address = &self.address;
        let mut text = format!("\nserving at {address} until Ctrl-C; in another terminal, try\n");
        let _ = writeln!(text, "  millrace fs ls -l --node {address}");
        if let Some(example) = &self.example {
            let _ = writeln!(text, "  millrace fs cat --node {address} {}", quoted(example));
        }
        let _ = writeln!(text, "  millrace admin status --node {address}");
        let _ = writeln!(text, "  millrace fs status --node {address}");
        let _ = writeln!(text, "  millrace bench read --node {address}");
        text
    }

    /// The end of the verb.
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
            return Err(Failure::new("no file could be compared, so nothing is proven")
                .with_hint("name a directory whose files may be read and do not change"));
        }
        Ok(())
    }
}

/// A line that counts, and a line for each of the first.
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

/// Memory in GiB that surely holds so many bytes: what the index and uneven shards take comes on
/// top.
fn memory_gib_for(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 4).div_ceil(1 << 30)
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(&byte);
    if path.bytes().all(is_plain) && !path.starts_with('-') {
        return path.to_owned();
    }
    // A leading `/` makes no difference to the node, and keeps `-x` from being a flag.
    format!("'/{}'", path.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted("a/b-1.txt"), "a/b-1.txt");
        assert_eq!(quoted("a b"), "'/a b'");
        assert_eq!(quoted("it's"), "'/it'\\''s'");
        assert_eq!(quoted("-r"), "'/-r'");
    }

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let item = |index| Named { path: format!("f{index}"), detail: "gone".to_owned() };
        let list: Vec<Named> = (0..7).map(item).collect();
        let text = named("could not be read", &list);
        assert!(text.starts_with("7 paths could not be read:\n  f0: gone\n"), "{text}");
        assert!(text.ends_with("  f4: gone\n  and 2 more\n"), "{text}");
        assert_eq!(named("x", &[]), "");
    }

    #[test]
    fn advice_on_memory_leaves_room() {
        assert_eq!(memory_gib_for(1 << 30), 2);
        assert_eq!(memory_gib_for(8 << 30), 10);
    }
}
