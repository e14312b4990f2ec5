//! The members of a cluster and how they are.

use std::time::{Duration, Instant};

use millrace_client::{Client, ClusterInfo, Error, MemberInfo, NodeStatus};
use millrace_proto::terms::{StaleAfter, Terms};
use serde::Serialize;

use super::cluster;
use crate::age;
use crate::failure::Failure;
use crate::output::{self, Align, Sizes, Table};

/// How often `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often `wait` looks again.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);
/// Clears a terminal and moves to its beginning: ECMA-48, ED and CUP.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show nodes, master, usage and what is being handed over
///
/// Ends with exit code 1 if the cluster is not healthy: it has no master, or a member does not answer or has lost
/// coordination. With --watch it goes on. A node that left, or died longer ago than the session time-out, is not a
/// member.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin status
  millrace admin status --watch
  millrace admin status --json | jq '.nodes[] | select(.state != \"active\")'")]
pub(super) struct AdminStatusArgs {
    /// Look again every second
    #[arg(long)]
    watch: bool,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print JSON; with --watch one line each time
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

/// List the nodes
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin nodes
  millrace admin nodes --json | jq -r '.[].address'")]
pub(super) struct NodesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List what is mounted
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin mounts
  millrace admin mounts --json")]
pub(super) struct MountsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A node in a report.
#[derive(Serialize)]
struct NodeReport {
    id: String,
    address: String,
    zone: String,
    /// `active`, `draining`, `fenced`, or `unreachable`.
    state: &'static str,
    weight: u32,
    capacity_bytes: u64,
    used_bytes: u64,
    block_count: u64,
    hit_count: u64,
    miss_count: u64,
    connection_count: u64,
    handover_pending_count: u64,
    handover_block_count: u64,
    uptime_s: u64,
    epoch: u64,
    server: String,
}

/// A cluster in a report.
#[derive(Serialize)]
struct ClusterReport {
    cluster: String,
    epoch: u64,
    master: Option<String>,
    capacity_bytes: u64,
    used_bytes: u64,
    /// Percentage of reads that memory answered, once there was a read.
    hit_percent: Option<u64>,
    /// What keeps the cluster from being healthy.
    problems: Vec<String>,
    nodes: Vec<NodeReport>,
}

impl ClusterReport {
    /// True if the cluster is healthy, has at least this many members, and all have acted on its last change.
    fn is_ready(&self, nodes_min: usize) -> bool {
        let has_acted = |node: &NodeReport| node.epoch == self.epoch;
        self.problems.is_empty()
            && self.nodes.len() >= nodes_min
            && self.nodes.iter().all(has_acted)
    }
}

/// Returns what keeps a cluster from being healthy.
fn problems(has_master: bool, nodes: &[NodeReport]) -> Vec<String> {
    let of_node = nodes.iter().filter_map(|node| match node.state {
        "unreachable" => Some(format!("{} does not answer at {}", node.id, node.address)),
        "fenced" => Some(format!("{} has lost coordination", node.id)),
        _ => None,
    });
    let no_master =
        (!has_master).then(|| "there is no master, so nothing can be changed".to_owned());
    no_master.into_iter().chain(of_node).collect()
}

/// Wait until the cluster is healthy
///
/// Healthy is what `millrace admin status` ends with exit code 0 for, with all members having acted on the last change.
/// Ends with exit code 1 if that does not come to be in time.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin wait --healthy
  millrace admin wait --healthy --nodes 3 --timeout 5m && ./start-training")]
pub(super) struct HealthArgs {
    /// Until it is healthy
    #[arg(long, required = true)]
    healthy: bool,
    /// And has at least COUNT members
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    nodes: usize,
    /// Longest wait: 90s, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = age::parse)]
    timeout: Duration,
}

pub(super) async fn wait(client: &Client, args: &HealthArgs) -> Result<(), Failure> {
    debug_assert!(args.healthy, "the parser asks for it");
    let start = Instant::now();
    loop {
        let report = report(client).await?;
        let count = report.nodes.len();
        if report.is_ready(args.nodes) {
            let nodes = output::counted(count as u64, "node");
            return output::print(&format!("the cluster is healthy, with {nodes}\n"));
        }
        if start.elapsed() >= args.timeout {
            let why = match report.problems.as_slice() {
                [] if count < args.nodes => format!("it has {count} of {} members", args.nodes),
                [] => "not all members have acted on the last change".to_owned(),
                problems => problems.join(", "),
            };
            return Err(Failure::new(format!(
                "the cluster is not healthy: {}",
                output::visible(&why)
            )));
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

pub(super) async fn status(client: &Client, args: &AdminStatusArgs) -> Result<(), Failure> {
    loop {
        let report = report(client).await?;
        if args.json && args.watch {
            output::print_json_line(&report)?;
        } else if args.json {
            output::print_json(&report)?;
        } else {
            let clear = if args.watch { CLEAR } else { "" };
            output::print(&format!("{clear}{}", render(&report, Sizes::exact_if(args.bytes))))?;
        }
        if !args.watch {
            return if report.problems.is_empty() { Ok(()) } else { Err(Failure::Reported) };
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn report(client: &Client) -> Result<ClusterReport, Failure> {
    let statuses = client.statuses().await;
    let ClusterInfo { id, epoch, master, members, .. } = cluster(client)?;
    let nodes: Vec<_> = members
        .into_iter()
        .map(|member| {
            let status = statuses.iter().find(|(id, _)| *id == member.id);
            node(member, status.map(|(_, status)| status))
        })
        .collect();
    let sum = |figure: fn(&NodeReport) -> u64| nodes.iter().map(figure).sum::<u64>();
    let (hits, misses) = (sum(|node| node.hit_count), sum(|node| node.miss_count));
    Ok(ClusterReport {
        problems: problems(master.is_some(), &nodes),
        cluster: id,
        epoch,
        master,
        capacity_bytes: sum(|node| node.capacity_bytes),
        used_bytes: sum(|node| node.used_bytes),
        hit_percent: (hits + misses > 0).then(|| output::percent(hits, hits + misses)),
        nodes,
    })
}

fn node(member: MemberInfo, status: Option<&Result<NodeStatus, Error>>) -> NodeReport {
    let status = status.and_then(|status| status.as_ref().ok());
    let count = |name| status.and_then(|status| status.counter(name)).unwrap_or(0);
    let state = match status {
        None => "unreachable",
        Some(_) if count("cluster_fenced") > 0 => "fenced",
        Some(_) if member.is_active => "active",
        Some(_) => "draining",
    };
    NodeReport {
        state,
        capacity_bytes: status.map_or(member.capacity, |_| count("capacity_bytes")),
        used_bytes: count("used_bytes"),
        block_count: count("block_count"),
        hit_count: count("hit_count"),
        miss_count: count("miss_count"),
        connection_count: count("connection_count"),
        handover_pending_count: count("handover_pending_count"),
        handover_block_count: count("handover_block_count"),
        uptime_s: status.map_or(0, |status| status.uptime.as_secs()),
        epoch: count("cluster_epoch"),
        id: member.id,
        address: member.address,
        zone: member.zone,
        weight: member.weight,
        server: member.server,
    }
}

fn render(report: &ClusterReport, sizes: Sizes) -> String {
    let mut table = Table::new(&[
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.row([
        "node", "address", "zone", "state", "used", "memory", "blocks", "hits", "to come", "up",
    ]);
    for node in &report.nodes {
        let mark = if report.master.as_ref() == Some(&node.id) { "*" } else { "" };
        let reads = node.hit_count + node.miss_count;
        let hits = match reads {
            0 => "-".to_owned(),
            _ => format!("{} %", output::percent(node.hit_count, reads)),
        };
        table.row([
            format!("{}{mark}", output::visible(&node.id)),
            output::visible(&node.address),
            if node.zone.is_empty() { "-".to_owned() } else { output::visible(&node.zone) },
            node.state.to_owned(),
            sizes.show(node.used_bytes),
            sizes.show(node.capacity_bytes),
            output::count(node.block_count),
            hits,
            output::count(node.handover_pending_count),
            output::uptime(node.uptime_s),
        ]);
    }
    let master = match &report.master {
        Some(master) => format!("master {} (*)", output::visible(master)),
        None => "no master".to_owned(),
    };
    let hits = match report.hit_percent {
        Some(percent) => format!(", {percent} % of reads from memory"),
        None => String::new(),
    };
    let problems: String = report
        .problems
        .iter()
        .map(|problem| format!("not healthy: {}\n", output::visible(problem)))
        .collect();
    format!(
        "cluster {}, epoch {}, {master}, {}\n{} of {} used{hits}\n{problems}\n{}",
        output::visible(&report.cluster),
        report.epoch,
        output::counted(report.nodes.len() as u64, "node"),
        sizes.show(report.used_bytes),
        sizes.show(report.capacity_bytes),
        table.render()
    )
}

pub(super) fn nodes(client: &Client, args: &NodesArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Row<'a> {
        id: &'a str,
        address: &'a str,
        zone: &'a str,
        is_active: bool,
        weight: u32,
        capacity_bytes: u64,
        server: &'a str,
    }
    let cluster = cluster(client)?;
    if args.json {
        let rows = cluster.members.iter().map(|member| Row {
            id: &member.id,
            address: &member.address,
            zone: &member.zone,
            is_active: member.is_active,
            weight: member.weight,
            capacity_bytes: member.capacity,
            server: &member.server,
        });
        return output::print_json(&rows.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Left, Align::Left]);
    for member in &cluster.members {
        let state = if member.is_active { "active" } else { "draining" };
        let [id, address, zone] = [&member.id, &member.address, &member.zone];
        table.row([
            output::visible(id),
            output::visible(address),
            if zone.is_empty() { "-".to_owned() } else { output::visible(zone) },
            state.to_owned(),
        ]);
    }
    output::print(&table.render())
}

pub(super) fn mounts(client: &Client, args: &MountsArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Row<'a> {
        prefix: &'a str,
        source: &'a str,
        replicas: u8,
        credential: Option<String>,
        stale_after_ms: Option<String>,
        include: Vec<String>,
        exclude: Vec<String>,
        file_size_max: Option<u64>,
        writable: bool,
        ttl_ms: Option<u64>,
        is_cached: bool,
        concurrency: Option<u32>,
        bandwidth: Option<u64>,
        is_hedged: bool,
        is_cached_on_write: bool,
    }
    let cluster = cluster(client)?;
    if args.json {
        let rows = cluster.mounts.iter().map(|mount| {
            let (source, terms) = parts(&mount.source);
            Row {
                prefix: &mount.prefix,
                source,
                replicas: mount.replicas,
                credential: terms.credential,
                stale_after_ms: terms.stale_after.map(|it| it.to_string()),
                include: terms.include,
                exclude: terms.exclude,
                file_size_max: terms.size_max,
                writable: terms.writable,
                ttl_ms: terms.ttl_ms,
                is_cached: !terms.is_passed_through,
                concurrency: terms.concurrency,
                bandwidth: terms.bandwidth,
                is_hedged: terms.is_hedged,
                is_cached_on_write: terms.is_cached_on_write,
            }
        });
        return output::print_json(&rows.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Left]);
    table.row(["path", "source", "replicas", "options"]);
    for mount in &cluster.mounts {
        let (source, terms) = parts(&mount.source);
        let credential = terms.credential.map(|it| format!("credential {it}"));
        let stale_after = terms.stale_after.map(|it| match it {
            StaleAfter::Ms(ms) => format!("stale after {ms} ms"),
            StaleAfter::Never => "never stale".to_owned(),
        });
        let include = terms.include.iter().map(|it| format!("only {}", output::visible(it)));
        let exclude = terms.exclude.iter().map(|it| format!("not {}", output::visible(it)));
        let size_max = terms.size_max.map(|it| format!("files up to {}", output::size(it)));
        let options = credential.into_iter().chain(stale_after).chain(include).chain(exclude);
        let writable = terms.writable.then(|| "writable".to_owned());
        let ttl = terms.ttl_ms.map(|ms| format!("freed after {} s", ms.div_ceil(1000)));
        let uncached = terms.is_passed_through.then(|| "not cached".to_owned());
        let concurrency = terms.concurrency.map(|it| output::counted(it.into(), "request"));
        let bandwidth = terms.bandwidth.map(|it| format!("{}/s", output::size(it)));
        let options = options.chain(size_max).chain(writable).chain(ttl).chain(uncached);
        let hedged = terms.is_hedged.then(|| "hedged".to_owned());
        let kept = terms.is_cached_on_write.then(|| "cached on write".to_owned());
        let options = options.chain(concurrency).chain(bandwidth).chain(hedged).chain(kept);
        let options: Vec<String> = options.collect();
        table.row([
            format!("/{}", output::visible(&mount.prefix)),
            output::visible(source),
            mount.replicas.to_string(),
            if options.is_empty() { "-".to_owned() } else { options.join(", ") },
        ]);
    }
    output::print(&table.render())
}

/// Splits a source and the options of its mount. Those of a later version stay with the source.
fn parts(source: &str) -> (&str, Terms) {
    Terms::split(source).unwrap_or((source, Terms::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_a_table_that_names_its_master() {
        let member = |id: &str, is_active| {
            let mut member = MemberInfo::default();
            member.id = id.into();
            member.address = "10.0.0.1:7070".into();
            member.is_active = is_active;
            member.weight = 64;
            member.capacity = 1 << 30;
            member.server = "millrace/0".into();
            member
        };
        let report = ClusterReport {
            cluster: "c".into(),
            epoch: 7,
            master: Some("b".into()),
            capacity_bytes: 2 << 30,
            used_bytes: 1 << 20,
            hit_percent: Some(99),
            problems: vec!["a \u{1b} is gone".into()],
            nodes: vec![node(member("a", false), None), node(member("b", true), None)],
        };
        let text = render(&report, Sizes::Human);
        let head = "cluster c, epoch 7, master b (*), 2 nodes\n\
                    1 MiB of 2 GiB used, 99 % of reads from memory\nnot healthy: a \\u{1b} is gone\n\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.contains("b*") && text.contains("unreachable"), "{text}");
        assert_eq!(problems(true, &report.nodes).len(), 2, "neither answers");
        assert_eq!(problems(false, &[]), ["there is no master, so nothing can be changed"]);
        let whole = ClusterReport { problems: Vec::new(), ..report };
        assert!(!whole.is_ready(2), "their epochs are not known");
        let nodes = whole.nodes.into_iter().map(|node| NodeReport { epoch: 7, ..node }).collect();
        let acted = ClusterReport { nodes, ..whole };
        assert!(acted.is_ready(2) && !acted.is_ready(3));
    }
}
