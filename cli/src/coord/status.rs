//! `millrace coord status` and `members`: the state of a replica and of its ensemble.
//!
//! Owns their presentation; the figures are the replica's.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;

use millrace_coord::admin::{MemberStatus, Status};

use super::ask::Replica;
use crate::failure::Failure;
use crate::output::{self, Align, Table, count, size, visible};

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Moves to the upper left corner and clears from there, so that what is drawn again does not flicker.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Show the state of a replica.
///
/// Only the leader knows how far the others are: LAG is how many entries of its log they lack. Figures
/// count from the start of the replica.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord status --data /var/lib/coord
  millrace coord status --admin 10.0.0.1:8080 --watch
  millrace coord status --data DIR --json | jq .members")]
pub(super) struct CoordStatusArgs {
    #[command(flatten)]
    replica: Replica,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Look again every second, until it is interrupted
    #[arg(long)]
    watch: bool,
}

/// List the members of the ensemble.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord members --data /var/lib/coord
  millrace coord members --admin 10.0.0.1:8080 --json")]
pub(super) struct MembersArgs {
    #[command(flatten)]
    replica: Replica,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CoordStatusArgs) -> Result<(), Failure> {
    loop {
        let status = look(&args.replica)?;
        match (args.json, args.watch) {
            (true, false) => output::print_json(&status)?,
            (true, true) => output::print_json_line(&status)?,
            (false, _) => {
                let clear = if args.watch && io::stdout().is_terminal() { CLEAR } else { "" };
                output::print(&format!("{clear}{}", describe(&status)))?;
            }
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

pub(super) fn run_members(args: &MembersArgs) -> Result<(), Failure> {
    let status = look(&args.replica)?;
    if args.json {
        return output::print_json(&status.members);
    }
    match status.members.is_empty() {
        true => output::print("a replica by itself\n"),
        false => output::print(&describe_members(&status)),
    }
}

fn look(replica: &Replica) -> Result<Status, Failure> {
    let page = replica.page("/status")?;
    serde_json::from_str(&page).map_err(|error| {
        Failure::new(format!("what the replica says of itself cannot be read: {error}"))
            .with_hint("use the millrace that it runs")
    })
}

fn describe(status: &Status) -> String {
    let mut text = headline(status);
    if let Some(why) = &status.waits_for {
        let _ = writeln!(text, "waiting: {}", visible(why));
    }
    let _ = writeln!(
        text,
        "zxid {:#x}, term {}, entry {} of {}",
        status.zxid,
        status.term,
        count(status.applied_index),
        count(status.last_index),
    );
    if !status.members.is_empty() {
        let _ = write!(text, "\n{}", describe_members(status));
    }
    let mut table = Table::new(&[Align::Left, Align::Left]);
    let address = visible(&status.client_address);
    table.row(["clients", &format!("{} at {address}", count(status.connections))]);
    table.row(["requests", &format!("{} in flight", count(status.outstanding))]);
    table.row(["watches", &count(status.watches)]);
    table.row(["sessions", &count(status.sessions)]);
    table.row([
        "nodes",
        &format!(
            "{}, {} ephemeral, {} of paths and data",
            count(status.nodes),
            count(status.ephemerals),
            size(status.data_bytes)
        ),
    ]);
    table.row(["memory", &size(status.memory_bytes)]);
    let disk = format!(
        "{} of state and {} of log in {}",
        size(status.state_disk_bytes),
        size(status.log_disk_bytes),
        visible(&status.data_dir)
    );
    table.row(["disk", &disk]);
    let _ = write!(text, "\n{}\n{}", table.render(), describe_latencies(status));
    text
}

fn headline(status: &Status) -> String {
    let who = match status.members.len() {
        0 => format!("replica {} by itself", status.replica),
        count => format!("replica {} of {count}", status.replica),
    };
    let mode = match (status.mode.as_str(), status.leader) {
        ("standalone", _) => "serving".to_owned(),
        (mode @ ("follower" | "observer"), leader) => format!("{mode} of {leader}"),
        (mode, 0) => format!("{}, no leader", visible(mode)),
        (mode, _) => visible(mode),
    };
    let uptime = output::uptime(status.uptime_ms / 1000);
    format!("{who}, {mode}, up {uptime}, millrace {}\n", visible(&status.version))
}

fn describe_members(status: &Status) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[Left, Right, Left, Left, Right, Left, Left]);
    table.row(["", "ID", "ROLE", "IS", "LAG", "PEERS AT", "CLIENTS AT"]);
    for member in &status.members {
        let mark = if member.id == status.replica { "*" } else { "" };
        table.row([
            mark.to_owned(),
            member.id.to_string(),
            visible(&member.role),
            how_it_is(member, status.replica),
            member.lag_entries.map_or("-".to_owned(), count),
            visible(&member.peer_address),
            visible(member.client_address.as_deref().unwrap_or("-")),
        ]);
    }
    table.render()
}

fn how_it_is(member: &MemberStatus, own: u64) -> String {
    match (member.is_leader, member.is_connected) {
        (true, true) => "leader".to_owned(),
        (true, false) => "leader, not reached".to_owned(),
        (false, true) if member.id == own => "here".to_owned(),
        (false, true) => "connected".to_owned(),
        (false, false) => match &member.trouble {
            Some(trouble) => format!("not reached: {}", visible(trouble)),
            None => "not reached".to_owned(),
        },
    }
}

fn describe_latencies(status: &Status) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[Left, Right, Right, Right, Right, Right]);
    table.row(["", "COUNT", "MEAN ms", "P50 ms", "P99 ms", "MAX ms"]);
    for latency in &status.latencies {
        let milliseconds = |value: f64| match latency.count {
            0 => "-".to_owned(),
            _ => format!("{value:.2}"),
        };
        table.row([
            visible(&latency.name),
            count(latency.count),
            milliseconds(latency.average_ms),
            milliseconds(latency.p50_ms),
            milliseconds(latency.p99_ms),
            milliseconds(latency.max_ms),
        ]);
    }
    table.render()
}
