//! `millrace coord dump`: what a data directory or a backup holds, without a replica.
//!
//! Owns the form of the lines. Always holds: everything is verified before the first line is printed,
//! and what cannot be trusted is not shown.

use std::path::PathBuf;

use millrace_coord::admin::offline::{self, Offline, OfflineNode};
use millrace_proto::zookeeper::Stat;
use serde_json::{Value, json};

use super::data::{unsettled, unusable};
use crate::failure::Failure;
use crate::output;

/// Bytes of lines that are printed together.
const PRINT_BYTES: usize = 64 << 10;
/// Most bytes of a node's data in a line for people.
const PREVIEW_BYTES: usize = 60;

/// Show what a data directory or a backup holds, after verifying every checksum.
///
/// Works offline: on a directory that no process uses, or on a file that `millrace coord backup` wrote.
/// Prints a line for each session and for each node, and their totals. If anything is damaged it is
/// named, and the exit code is 1. Entries of the log that are known to be committed are part of what is
/// shown.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord dump --data /var/lib/coord
  millrace coord dump /backup/coord-2026-09-01 > /dev/null && echo sound
  millrace coord dump FILE --json | jq -r 'select(.kind == \"node\") | .path'")]
pub(super) struct DumpArgs {
    /// Data directory of a replica that does not run
    #[arg(long = "data", visible_alias = "data-dir", value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Backup to look at
    #[arg(
        value_name = "FILE",
        required_unless_present = "directory",
        conflicts_with = "directory"
    )]
    file: Option<PathBuf>,
    /// Print one JSON document on each line
    #[arg(long)]
    json: bool,
}

/// Lines on their way to stdout.
#[derive(Default)]
struct DumpOutput(String);

impl DumpOutput {
    fn push(&mut self, line: &str) -> Result<(), Failure> {
        self.0.push_str(line);
        self.0.push('\n');
        if self.0.len() < PRINT_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        output::print(&self.0)?;
        self.0.clear();
        Ok(())
    }
}

pub(super) fn run(args: &DumpArgs) -> Result<(), Failure> {
    let (path, loaded) = match (&args.file, &args.directory) {
        (Some(file), _) => (file, offline::open_backup(file)),
        (None, Some(directory)) => (directory, offline::open(directory)),
        (None, None) => return Err(Failure::usage("give --data DIR or FILE")),
    };
    let offline = loaded.map_err(|error| unusable(path, &error))?;
    if offline.unsettled_count > 0 {
        output::note(&unsettled(offline.unsettled_count));
    }
    let mut lines = DumpOutput::default();
    for (id, session) in offline.state.sessions() {
        let ephemerals = offline.state.ephemerals(id);
        lines.push(&match args.json {
            true => json!({
                "kind": "session", "id": format!("{id:#x}"), "timeout_ms": session.timeout_ms,
                "ephemerals": ephemerals,
            })
            .to_string(),
            false => {
                let count = output::counted(ephemerals.len() as u64, "ephemeral node");
                format!("session {id:#x}  time-out {} ms  {count}", session.timeout_ms)
            }
        })?;
    }
    offline::walk(&offline.state, |node| {
        lines.push(&if args.json { node_json(node).to_string() } else { node_line(node) })
    })?;
    lines.push(&if args.json { summary_json(&offline).to_string() } else { summary(&offline) })?;
    lines.flush()
}

fn node_line(node: &OfflineNode<'_>) -> String {
    let Stat { czxid, mzxid, pzxid, mtime, version, cversion, aversion, .. } = node.stat;
    let owner = match node.stat.ephemeral_owner {
        0 => String::new(),
        owner => format!("  owner {owner:#x}"),
    };
    let data = match node.data {
        None => "null".to_owned(),
        Some(data) => preview(data),
    };
    format!(
        "{}  c{czxid:#x} m{mzxid:#x} p{pzxid:#x}  v{version} cv{cversion} av{aversion}  {}{owner}  \
         {data}",
        output::visible(node.path),
        output::time(mtime),
    )
}

/// Returns the length of data, and how it begins if it is text.
fn preview(data: &[u8]) -> String {
    let length = output::counted(data.len() as u64, "byte");
    let Ok(text) = std::str::from_utf8(data) else { return length };
    if text.is_empty() {
        return length;
    }
    let end = text.floor_char_boundary(PREVIEW_BYTES);
    let more = if end < text.len() { ".." } else { "" };
    format!("{length} \"{}\"{more}", output::visible(&text[..end]))
}

fn node_json(node: &OfflineNode<'_>) -> Value {
    let stat = &node.stat;
    let acl = node
        .acl
        .iter()
        .map(|acl| json!({ "perms": acl.perms, "scheme": acl.scheme, "id": acl.id }));
    let mut value = json!({
        "kind": "node",
        "path": node.path,
        "czxid": stat.czxid,
        "mzxid": stat.mzxid,
        "pzxid": stat.pzxid,
        "ctime_ms": stat.ctime,
        "mtime_ms": stat.mtime,
        "version": stat.version,
        "cversion": stat.cversion,
        "aversion": stat.aversion,
        "ephemeral_owner": format!("{:#x}", stat.ephemeral_owner),
        "children": stat.child_count,
        "acl": acl.collect::<Vec<_>>(),
    });
    match node.data.map(|data| (data, std::str::from_utf8(data))) {
        None => value["data"] = Value::Null,
        Some((_, Ok(text))) => value["data"] = Value::from(text),
        Some((data, Err(_))) => value["data_hex"] = Value::from(hex(data)),
    }
    value
}

fn hex(data: &[u8]) -> String {
    data.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(u32::from(digit), 16).expect("half a byte is one digit"))
        .collect()
}

fn summary(offline: &Offline) -> String {
    let counts = offline.state.counts();
    let whose = match &offline.identity {
        None => "a backup".to_owned(),
        Some(identity) => {
            format!("replica {} of cluster {:016x}", identity.replica_id, identity.cluster_id)
        }
    };
    let log = match offline.log {
        None => String::new(),
        Some((first, last)) => format!(", log {first} to {last}"),
    };
    format!(
        "{whose}: {}, {} ephemeral, {}; zxid {:#x}, entry {} of term {}{log}; digest {:016x}",
        output::counted(counts.nodes as u64, "node"),
        output::count(counts.ephemerals as u64),
        output::counted(counts.sessions as u64, "session"),
        offline.state.zxid(),
        offline.index,
        offline.term,
        offline.state.digest(),
    )
}

fn summary_json(offline: &Offline) -> Value {
    let counts = offline.state.counts();
    let identity = offline.identity.map(|identity| {
        json!({
            "cluster": format!("{:016x}", identity.cluster_id),
            "replica": identity.replica_id,
            "store": format!("{:016x}", identity.store_id),
        })
    });
    json!({
        "kind": "summary",
        "identity": identity,
        "nodes": counts.nodes,
        "ephemerals": counts.ephemerals,
        "sessions": counts.sessions,
        "data_bytes": counts.approximate_data_size,
        "zxid": offline.state.zxid(),
        "index": offline.index,
        "term": offline.term,
        "log": offline.log.map(|(first, last)| [first, last]),
        "unsettled_entries": offline.unsettled_count,
        "members": offline.state.config_text(),
        "digest": format!("{:016x}", offline.state.digest()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_short_and_harmless() {
        let check = |data: &[u8], expect: &str| assert_eq!(preview(data), expect);
        check(b"", "0 bytes");
        check(b"a\x1b[2J", "5 bytes \"a\\u{1b}[2J\"");
        check(b"\xff\xfe", "2 bytes");
        let long = "ü".repeat(40);
        check(long.as_bytes(), &format!("80 bytes \"{}\"..", "ü".repeat(30)));
    }

    #[test]
    fn bytes_are_shown_as_two_digits_each() {
        assert_eq!(hex(&[0, 0x0f, 0xa0, 0xff]), "000fa0ff");
    }
}
