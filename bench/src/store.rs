//! `millrace bench store`: objects read through a node, beside the same store read directly.
//!
//! Owns the order of measurement. Both ways are there at once, go over one line with a latency and a pace for
//! each connection, and are read by the same code with as many readers. Rounds are interleaved and the way that
//! comes first changes; a ratio is the median of the ratios of each round. Each round has objects of its own, so
//! that what is cold is cold. The line counts what the store is asked for.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

mod findings;
mod proxy;
mod side;

pub use findings::{StoreAim, StoreLine, StoreReport, StoreRound};
pub use proxy::{Objects, Pace, Proxy, Traffic};
pub use side::bucket;
use side::{Opened, Side, Way};

use crate::machine::{self, Machine};
use crate::rival::{self, NodeOptions, Transport};

/// Length of a small read.
const SMALL: u64 = 4 << 10;
/// Where small reads begin, one in each.
const STRIDE: u64 = 1 << 20;
/// Length of the range that many read at once.
const SHARED: u64 = 64 << 10;
/// Length of a footer of a file of columns.
const FOOTER: u64 = 40 << 10;
/// Bytes that a column takes for each of its parts. Derived: no chunk begins where a block or a page does.
const COLUMN_UNIT: u64 = 100_003;
/// Sizes of the 16 column chunks of a row group, in parts. Guessed: as those of TPC-H's lineitem are to each other.
const COLUMNS: [u64; 16] = [3, 6, 4, 1, 2, 8, 1, 1, 1, 1, 4, 4, 4, 1, 1, 22];
/// Columns that query 6 reads: quantity, extended price, discount, and the date of shipment.
const QUERY_COLUMNS: [usize; 4] = [4, 5, 6, 10];
/// Most shards of the node. Guessed: the line is slower than two of them.
const SHARDS_MAX: usize = 2;
/// Bucket of the objects of this process.
const BUCKET: &str = "bench";

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// URL of a bucket, `http://HOST:PORT/BUCKET`; `None` for objects of this process.
    pub store: Option<String>,
    /// Time from a request to the first byte of its answer.
    pub latency: Duration,
    /// Pace of each connection in bytes a second.
    pub bytes_per_s: u64,
    /// Readers at once.
    pub concurrency: usize,
    /// Size of a large object in bytes, at least 1 MiB.
    pub object_bytes: u64,
    /// Cold small reads of each way in each round.
    pub small_count: usize,
    /// Row groups of the file of columns.
    pub group_count: usize,
    /// Readers of one cold range.
    pub sharing_count: usize,
    /// Measured time of hits while nothing is loaded, in seconds.
    pub seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// How the node is started. A cache size of 0 means twice what a round reads and 256 MiB.
    pub node: NodeOptions,
    /// Seed of content and choice.
    pub seed: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            store: None,
            latency: Duration::from_millis(30),
            bytes_per_s: 100_000_000,
            concurrency: 4,
            object_bytes: 64 << 20,
            small_count: 64,
            group_count: 8,
            sharing_count: 100,
            seconds: 1.0,
            rounds: 5,
            node: NodeOptions::default(),
            seed: 1,
        }
    }
}

impl StoreOptions {
    /// Returns the keys and lengths of what a round reads.
    fn objects(&self, round: usize) -> impl Iterator<Item = (String, u64)> {
        let many = |kind: &str| {
            let name = kind.to_owned();
            (0..self.concurrency).map(move |index| (key(round, &name, index), self.object_bytes))
        };
        let single = [
            (key(round, "small", 0), self.small_count as u64 * STRIDE),
            (key(round, "columns", 0), self.group_count as u64 * group_length() + FOOTER),
            (key(round, "shared", 0), 2 * STRIDE),
            (key(round, "hits", 0), self.object_bytes),
        ];
        many("large").chain(many("load")).chain(single)
    }
}

fn key(round: usize, kind: &str, index: usize) -> String {
    format!("millrace-bench/{round}/{kind}/{index}")
}

fn group_length() -> u64 {
    COLUMNS.iter().sum::<u64>() * COLUMN_UNIT
}

/// Returns the parts of a file of columns that a query reads after the footer.
fn column_ranges(group_count: usize) -> Vec<(u64, u64)> {
    let column = |index: usize| {
        let before: u64 = COLUMNS[..index].iter().sum();
        (before * COLUMN_UNIT, COLUMNS[index] * COLUMN_UNIT)
    };
    let groups = (0..group_count as u64).map(|group| group * group_length());
    let chunks = groups
        .flat_map(|start| QUERY_COLUMNS.map(|index| (start + column(index).0, column(index).1)));
    chunks.collect()
}

/// Compares. `progress` gets a line that says what happens next.
///
/// # Errors
/// If the node cannot be started or the store cannot be reached, or a byte is wrong.
pub fn compare(options: &StoreOptions, mut progress: impl FnMut(&str)) -> Result<StoreReport> {
    ensure!(options.rounds > 0, "no rounds, no result");
    ensure!(options.object_bytes >= STRIDE, "a large object has at least 1 MiB");
    let counts =
        [options.concurrency, options.small_count, options.group_count, options.sharing_count];
    ensure!(!counts.contains(&0), "a count of 0 leaves nothing to measure");
    let all = (0..options.rounds).flat_map(|round| options.objects(round));
    let objects = Arc::new(Objects::new(all.collect::<BTreeMap<_, _>>(), options.seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (endpoint, bucket) = match &options.store {
        Some(url) => {
            let (endpoint, bucket) = parts_of(url)?;
            (Some(endpoint), bucket)
        }
        None => (None, BUCKET),
    };
    let store = endpoint.map(|endpoint| side::bucket(endpoint, bucket)).transpose()?;
    if let Some(store) = &store {
        progress("putting the objects");
        runtime.block_on(side::put_all(store, &objects))?;
    }
    let measured = measure(options, endpoint, bucket, &objects, &runtime, &mut progress);
    if let Some(store) = &store {
        progress("removing the objects");
        runtime.block_on(side::remove_all(store, &objects));
    }
    Ok(StoreReport {
        machine: Machine::describe(),
        command: machine::command_line(crate::isolation::INSIDE),
        commit: machine::commit(),
        store: options.store.clone(),
        latency_ms: options.latency.as_secs_f64() * 1e3,
        bytes_per_s: options.bytes_per_s,
        concurrency: options.concurrency,
        object_bytes: options.object_bytes,
        rounds: options.rounds,
        lines: measured?,
    })
}

/// Returns the endpoint and the bucket of a URL, `http://HOST:PORT/BUCKET`.
///
/// # Errors
/// If it is not such a URL.
pub fn parts_of(url: &str) -> Result<(&str, &str)> {
    let parts = url.rsplit_once('/').filter(|(endpoint, bucket)| {
        endpoint.strip_prefix("http://").is_some_and(|host| !host.is_empty()) && !bucket.is_empty()
    });
    parts.with_context(|| format!("'{url}' is not http://HOST:PORT/BUCKET"))
}

/// Returns the address of an endpoint, `http://HOST:PORT`.
///
/// # Errors
/// If there is none.
pub fn address_of(endpoint: &str) -> Result<SocketAddr> {
    let host = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let found = host.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.with_context(|| format!("find the address of {host}: write HOST:PORT"))
}

/// Measures all rounds with a node of its own.
fn measure(
    options: &StoreOptions,
    endpoint: Option<&str>,
    bucket: &str,
    objects: &Arc<Objects>,
    runtime: &tokio::runtime::Runtime,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<StoreLine>> {
    let address = endpoint.map(address_of).transpose()?;
    let pace = Pace { latency: options.latency, bytes_per_s: options.bytes_per_s };
    let proxy = Proxy::start(Arc::clone(objects), address, pace)?;
    let line = format!("http://{}", proxy.address);
    progress("starting the node");
    let server = start_node(options, &line, bucket)?;
    runtime.block_on(async {
        let direct = Side::new(Way::Direct(side::bucket(&line, bucket)?), objects);
        let node = Side::node(server.address().to_string(), objects).await?;
        let mut rounds: Vec<[StoreRound; MEASUREMENTS.len()]> = Vec::new();
        for round in 0..options.rounds {
            progress(&format!("round {} of {}", round + 1, options.rounds));
            let sides = [&direct, &node];
            let turn = Turn { options, round, sides, proxy: &proxy };
            rounds.push(turn.measure().await?);
        }
        let lines = MEASUREMENTS.iter().enumerate().map(|(index, &(name, unit, aim))| {
            StoreLine::new(name, unit, aim, rounds.iter().map(|round| round[index]).collect())
        });
        Ok(lines.collect())
    })
}

fn start_node(options: &StoreOptions, endpoint: &str, bucket: &str) -> Result<rival::Server> {
    let mut node = options.node.clone();
    if node.memory_bytes == 0 {
        let round: u64 = options.objects(0).map(|(_, length)| length).sum();
        node.memory_bytes = 2 * round + (256 << 20);
    }
    let mut settings = vec![format!("endpoint={endpoint}")];
    if !side::has_credentials() {
        settings.push("skip_signature=true".to_owned());
    }
    for setting in settings {
        node.arguments.extend(["--source-option".to_owned(), setting]);
    }
    let mut cpus = machine::usable_cpus()?;
    cpus.truncate(SHARDS_MAX);
    let source = format!("s3://{bucket}");
    rival::start_node(&node, Path::new(&source), &cpus, Transport::Tcp)
}

/// What is measured, in the order of reports: its name, its unit and its aim.
const MEASUREMENTS: [(&str, &str, StoreAim); 8] = [
    ("cold, large objects in order", "MB/s", StoreAim::RatioAtLeast(0.95)),
    ("cold, 4 KiB at random, p50", "ms", StoreAim::RatioAtMost(1.2)),
    ("cold, 4 of 16 columns, bytes", "MB", StoreAim::RatioAtMost(1.1)),
    ("cold, 4 of 16 columns, time", "ms", StoreAim::None),
    ("cold, many readers of one range", "requests", StoreAim::ValueAtMost(1.0)),
    ("warm, large objects in order", "MB/s", StoreAim::RatioAtLeast(20.0)),
    ("warm, 4 KiB at random", "reads/s", StoreAim::RatioAtLeast(20.0)),
    ("hits during a load, beside none, p99", "us", StoreAim::RatioAtMost(2.0)),
];

/// One round.
struct Turn<'a> {
    options: &'a StoreOptions,
    round: usize,
    sides: [&'a Side; 2],
    proxy: &'a Proxy,
}

impl Turn<'_> {
    async fn measure(&self) -> Result<[StoreRound; MEASUREMENTS.len()]> {
        let large = self.both(|side| self.large(side)).await.context("read large objects")?;
        let small = self.both(|side| self.small_median_ms(side)).await.context("read 4 KiB")?;
        let columns_ms = self.both(|side| self.columns(side)).await.context("read columns")?;
        let megabytes = columns_ms.bytes.map(|bytes| bytes as f64 / 1e6);
        let [reference, millrace] = megabytes;
        let columns = StoreRound { reference, millrace, ..columns_ms };
        let shared = self.both(|side| self.shared(side)).await.context("read one range")?;
        let [reference, millrace] = shared.reads.map(|reads| reads as f64);
        let shared = StoreRound { reference, millrace, ..shared };
        let warm = self.both(|side| self.large(side)).await.context("read again")?;
        let again = self.both(|side| self.small_rate(side)).await.context("read 4 KiB again")?;
        let hits = self.hits().await.context("read beside a load")?;
        Ok([large, small, columns, columns_ms, shared, warm, again, hits])
    }

    /// Measures both ways, in the order of this round.
    async fn both<'a, F>(&'a self, measure: impl Fn(&'a Side) -> F) -> Result<StoreRound>
    where
        F: Future<Output = Result<f64>>,
    {
        let (mut values, mut traffic) = ([0.0; 2], [Traffic::default(); 2]);
        for step in 0..2 {
            let index = (self.round + step) % 2;
            let before = self.proxy.traffic();
            values[index] = measure(self.sides[index]).await?;
            traffic[index] = self.proxy.traffic() - before;
        }
        Ok(StoreRound::new(values, traffic))
    }

    fn key(&self, kind: &str, index: usize) -> String {
        key(self.round, kind, index)
    }

    /// Reads large objects in order, one for each reader. Returns MB/s.
    async fn large(&self, side: &Side) -> Result<f64> {
        let keys: Vec<_> = (0..self.options.concurrency).map(|it| self.key("large", it)).collect();
        let objects = try_join_all(keys.iter().map(|key| side.open(key))).await?;
        let start = Instant::now();
        try_join_all(objects.iter().map(Opened::read_whole)).await?;
        let bytes: u64 = objects.iter().map(|object| object.length).sum();
        Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
    }

    /// Reads 4 KiB of each MiB of an object in an order by chance. Returns each latency, and the time of all.
    async fn small(&self, side: &Side) -> Result<(Vec<Duration>, Duration)> {
        let object = &side.open(&self.key("small", 0)).await?;
        let mut chance = fastrand::Rng::with_seed(self.options.seed + self.round as u64);
        let mut offsets: Vec<u64> = (0..self.options.small_count as u64)
            .map(|index| index * STRIDE + chance.u64(0..STRIDE / SMALL) * SMALL)
            .collect();
        chance.shuffle(&mut offsets);
        let start = Instant::now();
        let reads = stream::iter(offsets).map(|offset| async move {
            let start = Instant::now();
            object.read(offset, SMALL).await?;
            anyhow::Ok(start.elapsed())
        });
        let reads = reads.buffer_unordered(self.options.concurrency);
        Ok((reads.try_collect().await?, start.elapsed()))
    }

    async fn small_median_ms(&self, side: &Side) -> Result<f64> {
        let (latencies, _) = self.small(side).await?;
        Ok(percentile(latencies, 0.5) * 1e3)
    }

    async fn small_rate(&self, side: &Side) -> Result<f64> {
        let (latencies, time) = self.small(side).await?;
        Ok(latencies.len() as f64 / time.as_secs_f64())
    }

    /// Reads the footer of a file of columns, and then those of a query. Returns the time in ms.
    async fn columns(&self, side: &Side) -> Result<f64> {
        let start = Instant::now();
        let object = side.open(&self.key("columns", 0)).await?;
        object.read(object.length - 8, 8).await?;
        object.read(object.length - FOOTER, FOOTER).await?;
        let object = &object;
        let ranges = column_ranges(self.options.group_count);
        let reads = stream::iter(ranges).map(|(offset, length)| object.read(offset, length));
        reads.buffer_unordered(self.options.concurrency).try_collect::<()>().await?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Reads one range many times at once. Returns the time in ms.
    async fn shared(&self, side: &Side) -> Result<f64> {
        let start = Instant::now();
        let object = side.open(&self.key("shared", 0)).await?;
        try_join_all((0..self.options.sharing_count).map(|_| object.read(STRIDE, SHARED))).await?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Measures hits alone, and then while the node loads other objects. Returns both 99th percentiles in us.
    async fn hits(&self) -> Result<StoreRound> {
        let [_, node] = self.sides;
        node.load(&self.key("hits", 0)).await?;
        let object = &node.open(&self.key("hits", 0)).await?;
        let time = Duration::from_secs_f64(self.options.seconds);
        let pause = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        let alone = percentile(hits_until(object, pause).await?, 0.99);
        let before = self.proxy.traffic();
        let loads = (0..self.options.concurrency)
            .map(|index| async move { node.load(&self.key("load", index)).await });
        let loads = async move { try_join_all(loads).await.map(drop) };
        let beside = percentile(hits_until(object, loads).await?, 0.99);
        let traffic = [Traffic::default(), self.proxy.traffic() - before];
        Ok(StoreRound::new([alone * 1e6, beside * 1e6], traffic))
    }
}

/// Reads 4 KiB again and again, one at a time, until something else has happened. Returns each latency.
async fn hits_until(
    object: &Opened,
    end: impl Future<Output = Result<()>>,
) -> Result<Vec<Duration>> {
    let mut chance = fastrand::Rng::with_seed(1);
    let mut latencies = Vec::new();
    let mut end = std::pin::pin!(end);
    loop {
        let start = Instant::now();
        let mut read =
            std::pin::pin!(object.read(chance.u64(0..object.length / SMALL) * SMALL, SMALL));
        tokio::select! {
            done = &mut read => done?,
            ended = &mut end => {
                ended?;
                read.await?;
                latencies.push(start.elapsed());
                return Ok(latencies);
            }
        }
        latencies.push(start.elapsed());
    }
}

/// Returns a percentile, 0 to 1, in seconds.
fn percentile(mut latencies: Vec<Duration>, share: f64) -> f64 {
    latencies.sort_unstable();
    let index = (latencies.len() as f64 * share) as usize;
    latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0.0, Duration::as_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reads_a_quarter_of_the_columns() {
        let ranges = column_ranges(2);
        assert_eq!(ranges.len(), 8);
        assert_eq!(ranges[0], (14 * COLUMN_UNIT, 2 * COLUMN_UNIT));
        assert_eq!(ranges[1].0, ranges[0].0 + ranges[0].1, "price follows quantity");
        assert_eq!(ranges[4].0, ranges[0].0 + group_length());
        assert!(ranges.iter().all(|(offset, length)| offset + length <= 2 * group_length()));
    }

    #[test]
    fn a_url_names_a_bucket_without_tls() {
        assert_eq!(parts_of("http://a:1/b").unwrap(), ("http://a:1", "b"));
        for url in ["s3://b", "https://a/b", "http://a:1/", "http://a:1", "http:///b"] {
            assert!(parts_of(url).is_err(), "{url}");
        }
    }

    #[test]
    fn percentiles_are_of_the_sorted() {
        let all: Vec<Duration> = (1..=100).rev().map(Duration::from_secs).collect();
        assert_eq!((percentile(all.clone(), 0.5), percentile(all, 0.99)), (51.0, 100.0));
        assert_eq!(percentile(Vec::new(), 0.5), 0.0);
    }
}
