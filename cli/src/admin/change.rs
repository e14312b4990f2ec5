//! Changes of a cluster: drains and mounts. The master carries them out; the verbs wait until all
//! members have seen them.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use millrace_client::{Client, MountInfo, NodeStatus};
use millrace_proto::terms::{
    BANDWIDTH_MIN, CONCURRENCY_MAX, PATTERN_LENGTH_MAX, PATTERNS_MAX, StaleAfter, Terms, bare,
    is_credential, is_pattern,
};

use super::cluster;
use crate::age;
use crate::failure::Failure;
use crate::output::{self, Activity};
use crate::source::Source;

/// How often progress is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// Longest wait for all members to see a change.
pub(super) const SEEN_WAIT: Duration = Duration::from_secs(30);

/// Have a node hand its blocks to the others, so that it can be stopped
///
/// Waits until the others have taken over what it had. Its reads go on meanwhile and afterwards. It
/// stays in the cluster, and owns nothing, until it is undrained or stopped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin drain cache-3 --dry-run
  millrace admin drain cache-3
  millrace admin drain cache-3 --no-wait && millrace admin status --watch")]
pub(super) struct DrainArgs {
    /// Id of the node, as `admin nodes` lists it
    #[arg(value_name = "NODE")]
    node_id: String,
    /// Do not wait
    #[arg(long)]
    no_wait: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Let a drained node take part again
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin undrain cache-3")]
pub(super) struct UndrainArgs {
    /// Id of the node
    #[arg(value_name = "NODE")]
    node_id: String,
}

/// Mount a source below a path, or change a mount
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin mount datasets file:///mnt/datasets
  millrace admin mount lake s3://bucket/prefix
  millrace admin mount lake s3://bucket --credential prod --stale-after-ms 5000
  millrace admin mount lake s3://bucket --include '*.parquet' --exclude 'tmp/**'
  millrace admin mount logs s3://logs --ttl 12h --bandwidth 50MiB
  millrace admin mount out s3://out --writable --cache-on-write
  millrace admin mount / file:///data --replicas 2     change the root's replicas")]
pub(super) struct MountArgs {
    /// Path below which its files are seen; / for the root
    #[arg(value_name = "PATH")]
    path: String,
    /// The source, such as file:///data or s3://bucket/prefix; every node has to reach it there
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Nodes that hold each block
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// Credential that every node has in its configuration file, as a table [credential.NAME]
    #[arg(long, value_name = "NAME", value_parser = credential)]
    credential: Option<String>,
    /// How long a look-up is believed before the source is asked again, in milliseconds, or never; 0 asks
    /// each time [default: as each node's stale_after_ms says]
    #[arg(long, value_name = "MS", value_parser = stale_after)]
    stale_after_ms: Option<StaleAfter>,
    /// Show only files that match a pattern: * for any letters of a name, ** for any directories, too. A
    /// pattern without a / goes for the name alone; may be given several times
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    include: Vec<String>,
    /// Show no files that match a pattern, whatever is included; may be given several times
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    exclude: Vec<String>,
    /// Show no files that are longer, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = millrace_ops::size::parse_size)]
    file_size_max: Option<u64>,
    /// Let every client that reaches a node write there and delete; not together with a choice of files
    #[arg(long, conflicts_with_all = ["include", "exclude", "file_size_max"])]
    writable: bool,
    /// Free the blocks of a file this long after the first one came in, such as 12h; nothing is deleted at the
    /// source
    #[arg(long, value_name = "AGE", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Whether blocks are kept; with no they are given to those that wait for them, and are gone then
    #[arg(long, value_enum, default_value_t = Cache::Yes, hide_possible_values = true, value_name = "yes|no",
        conflicts_with = "ttl")]
    cache: Cache,
    /// Most reads under way at the store from each node, and as many look-ups; a node's own fill_concurrency
    /// goes for it as well
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=CONCURRENCY_MAX as i64))]
    concurrency: Option<u32>,
    /// Most bytes a second that each node reads at the store, at least 1MiB
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth: Option<u64>,
    /// Ask the store a second time for a read that takes longer than 95 of 100 before it; for at most 5 of 100
    #[arg(long)]
    hedge: bool,
    /// Keep what clients write there in memory, so that the first read after it asks the store for nothing;
    /// for stores on other machines
    #[arg(long)]
    cache_on_write: bool,
}

/// Whether blocks of a mount are kept.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    Yes,
    No,
}

/// Longest time to live that can be asked for.
const TTL_MAX: Duration = Duration::from_secs(36_500 * 24 * 60 * 60);

/// Remove a mount; its source is not touched
///
/// Blocks of files to which no mount leads any more leave the memory of all nodes.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin unmount datasets --dry-run
  millrace admin unmount datasets")]
pub(super) struct UnmountArgs {
    /// Path it is mounted at; / for the root
    #[arg(value_name = "PATH")]
    path: String,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Says what `drain` would do.
async fn plan_drain(client: &Client, id: &str) -> Result<(), Failure> {
    let members = cluster(client)?.members;
    let Some(member) = members.iter().find(|member| member.id == *id) else {
        return output::print(&format!(
            "{id} is not a member at the moment: it would be drained when it comes\n"
        ));
    };
    if !member.is_active {
        return output::print(&format!("{id} is drained already\n"));
    }
    let others = members.iter().filter(|other| other.id != *id && other.is_active).count();
    let statuses = client.statuses().await;
    let status = statuses.iter().find(|(other, _)| other == id).map(|(_, status)| status);
    let has = match status {
        Some(Ok(status)) => {
            let count = |name| status.counter(name).unwrap_or(0);
            let blocks = output::counted(count("block_count"), "block");
            format!("{blocks}, {}", output::size(count("used_bytes")))
        }
        _ => "what it has, which is not known because it does not answer".to_owned(),
    };
    let goes_to = match others {
        0 => "no other node takes part: everything would be read from the source".to_owned(),
        count => format!("{} would take over {has}", output::counted(count as u64, "node")),
    };
    output::print(&format!("would drain {id}; {goes_to}\n"))
}

pub(super) async fn drain(client: &Client, args: &DrainArgs) -> Result<(), Failure> {
    let id = &args.node_id;
    if args.dry_run {
        return plan_drain(client, id).await;
    }
    let given_up = |progress: &[Progress]| progress.iter().map(|it| it.given_up).sum::<u64>();
    let statuses = client.statuses().await;
    let reached = statuses.iter().filter_map(|(_, status)| status.as_ref().ok());
    let given_up_before = given_up(&reached.map(Progress::of).collect::<Vec<_>>());
    client.drain(id).await?;
    let epoch = wait_for(client, "the others know that it drains", |client| {
        let cluster = client.cluster()?;
        let drains = cluster.members.iter().all(|member| member.id != *id || !member.is_active);
        drains.then_some(cluster.epoch)
    })
    .await?;
    if args.no_wait {
        return output::print(&format!("{id} drains\n"));
    }
    let activity = Activity::start();
    let given_up_after = loop {
        let statuses = client.statuses().await;
        let others: Vec<_> = statuses.iter().filter(|(other, _)| other != id).collect();
        let reached = others.iter().filter_map(|(_, status)| status.as_ref().ok());
        let progress: Vec<Progress> = reached.map(Progress::of).collect();
        let busy = progress.iter().filter(|it| it.epoch < epoch || it.sources > 0).count();
        let unreached = others.len() - progress.len();
        if busy == 0 && unreached == 0 {
            break given_up(&progress);
        }
        let left: u64 = progress.iter().map(|it| it.pending).sum();
        let moved: u64 = progress.iter().map(|it| it.moved).sum();
        activity.tell(&format!(
            "{} taken over, {} listed and to come, {busy} nodes at it, {unreached} not reached",
            output::counted(moved, "block"),
            output::count(left)
        ));
        tokio::time::sleep(LOOK).await;
    };
    drop(activity);
    if given_up_after > given_up_before {
        output::print(&format!(
            "not every node has taken over what {id} has (see their logs; with handover_rate 0 none \
             does): the rest is read from the source when a client asks for it\n"
        ))?;
    }
    output::print(&format!("{id} is drained: it owns nothing and can be stopped\n"))
}

/// How far a node has taken over its blocks.
struct Progress {
    epoch: u64,
    sources: u64,
    pending: u64,
    moved: u64,
    given_up: u64,
}

impl Progress {
    fn of(status: &NodeStatus) -> Progress {
        let count = |name| status.counter(name).unwrap_or(0);
        Progress {
            epoch: count("cluster_epoch"),
            sources: count("handover_source_count"),
            given_up: count("handover_given_up_count"),
            pending: count("handover_pending_count"),
            moved: count("handover_block_count"),
        }
    }
}

pub(super) async fn undrain(client: &Client, args: &UndrainArgs) -> Result<(), Failure> {
    let id = &args.node_id;
    client.undrain(id).await?;
    wait_for(client, "it takes part again", |client| {
        let cluster = client.cluster()?;
        let drains = cluster.members.iter().any(|member| member.id == *id && !member.is_active);
        (!drains).then_some(())
    })
    .await?;
    output::print(&format!("{id} takes part again\n"))
}

pub(super) async fn mount(client: &Client, args: &MountArgs) -> Result<(), Failure> {
    let terms = Terms {
        credential: args.credential.clone(),
        stale_after: args.stale_after_ms,
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        size_max: args.file_size_max,
        writable: args.writable,
        ttl_ms: args.ttl.map(|it| it.as_millis() as u64),
        is_passed_through: args.cache == Cache::No,
        concurrency: args.concurrency,
        bandwidth: args.bandwidth,
        is_hedged: args.hedge,
        is_cached_on_write: args.cache_on_write,
    };
    if terms.is_passed_through && terms.is_cached_on_write {
        return Err(Failure::usage(
            "--cache no keeps nothing, and --cache-on-write keeps what is written: leave one of them out".to_owned(),
        ));
    }
    if terms.include.len() + terms.exclude.len() > PATTERNS_MAX {
        return Err(Failure::usage(format!("a mount has at most {PATTERNS_MAX} patterns")));
    }
    let source = terms.join(&source(&args.source)?);
    let mount = MountInfo::new(prefix(&args.path), source, args.replicas);
    client.mount(&mount).await?;
    wait_for(client, "it is mounted", |client| {
        client.cluster()?.mounts.contains(&mount).then_some(())
    })
    .await?;
    output::print(&format!("{} is mounted at /{}\n", bare(&mount.source), mount.prefix))
}

pub(super) async fn unmount(client: &Client, args: &UnmountArgs) -> Result<(), Failure> {
    let prefix = prefix(&args.path);
    if cluster(client)?.mounts.iter().all(|mount| mount.prefix != prefix) {
        return Err(Failure::new(format!("nothing is mounted at /{prefix}"))
            .with_hint("`millrace admin mounts` lists what is"));
    }
    if args.dry_run {
        let pins = client.pins().await?;
        let below = |pin: &&String| {
            prefix.is_empty()
                || pin
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let pinned = match pins.iter().filter(below).count() as u64 {
            0 => String::new(),
            count => format!(", below which {} stay without files", output::counted(count, "pin")),
        };
        return output::print(&format!("would remove what is mounted at /{prefix}{pinned}\n"));
    }
    client.unmount(prefix).await?;
    wait_for(client, "it is gone", |client| {
        let is_gone = client.cluster()?.mounts.iter().all(|mount| mount.prefix != prefix);
        is_gone.then_some(())
    })
    .await?;
    output::print(&format!("nothing is mounted at /{prefix} any more\n"))
}

fn prefix(path: &str) -> &str {
    path.trim_matches('/')
}

/// Returns a source as the cluster names it. A plain path means this path on every node.
fn source(text: &str) -> Result<String, Failure> {
    match Source::named(Path::new(text))? {
        Source::Store(url) => return Ok(url),
        Source::Directory(directory) if directory.is_absolute() => {
            return Ok(format!("file://{}", directory.display()));
        }
        Source::Directory(_) => (),
    }
    Err(Failure::usage(format!(
        "{text:?} is not a source; write file:///DIR, or a URL such as s3://BUCKET/PREFIX"
    )))
}

/// Reads a name of a credential.
fn credential(text: &str) -> Result<String, String> {
    match is_credential(text) {
        true => Ok(text.to_owned()),
        false => Err("a name has 1 to 64 letters, digits, '-', '_' and '.'".to_owned()),
    }
}

/// Reads a pattern of paths.
fn pattern(text: &str) -> Result<String, String> {
    match is_pattern(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("a pattern has 1 to {PATTERN_LENGTH_MAX} bytes")),
    }
}

/// Reads how long blocks stay.
fn ttl(text: &str) -> Result<Duration, String> {
    match age::parse(text)? {
        Duration::ZERO => Err("at least 1s; to keep no blocks use --cache no".to_owned()),
        ttl if ttl > TTL_MAX => Err("at most 36500d".to_owned()),
        ttl => Ok(ttl),
    }
}

/// Reads a number of bytes a second.
fn bandwidth(text: &str) -> Result<u64, String> {
    match millrace_ops::size::parse_size(text) {
        Ok(size) if size >= BANDWIDTH_MIN => Ok(size),
        Ok(_) => Err("at least 1MiB".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads how long a look-up is believed.
fn stale_after(text: &str) -> Result<StaleAfter, String> {
    StaleAfter::parse(text).ok_or_else(|| "write milliseconds, such as 5000, or never".to_owned())
}

/// Waits until this client has seen a change.
async fn wait_for<T>(
    client: &Client,
    what: &str,
    mut seen: impl FnMut(&Client) -> Option<T>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        if let Some(found) = seen(client) {
            return Ok(found);
        }
        if start.elapsed() > SEEN_WAIT {
            return Err(Failure::new(format!("it was changed, but not seen in time that {what}"))
                .with_hint("look at `millrace admin status`"));
        }
        tokio::time::sleep(LOOK / 4).await;
    }
}
