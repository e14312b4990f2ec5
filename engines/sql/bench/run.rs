//! One process that runs queries one way and says how long each took.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use millrace_bench::store;
use millrace_client::ClientConfig;
use millrace_sql::{Options as SessionOptions, Session};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::bridge::Bridge;
use crate::tpch;

/// Which way, and which queries.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Directory with the files
    #[arg(long, group = "way")]
    files: Option<PathBuf>,
    /// Address of a node that has them at its root
    #[arg(long, group = "way")]
    node: Option<String>,
    /// Bucket of a store that has them at its root, http://HOST:PORT/BUCKET
    #[arg(long, group = "way")]
    store: Option<String>,
    /// Read over TCP, though the node is on this machine
    #[arg(long)]
    far: bool,
    /// Numbers of queries [default: all]
    #[arg(long, value_delimiter = ',')]
    queries: Vec<usize>,
}

/// What a run has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Time to make the tables in milliseconds: a look at each file.
    pub(crate) tables_ms: f64,
    /// Time of each query in milliseconds, in the order of their numbers.
    pub(crate) query_ms: Vec<f64>,
    /// Hash of the answers of each, without regard to their order.
    pub(crate) answers: Vec<u64>,
}

impl Measured {
    /// Returns the time of all queries and the look at the files, in milliseconds.
    pub(crate) fn total_ms(&self) -> f64 {
        self.tables_ms + self.query_ms.iter().sum::<f64>()
    }
}

/// A way to the files.
enum Way {
    Local(Box<SessionContext>, String),
    Node(Session),
}

impl Way {
    async fn open(options: &Options) -> Result<Way> {
        if let Some(files) = &options.files {
            let files = std::path::absolute(files)?;
            return Ok(Way::Local(Box::default(), format!("file://{}", files.display())));
        }
        if let Some(node) = &options.node {
            let client = ClientConfig { local: !options.far, ..ClientConfig::new() };
            let options = SessionOptions { client, ..SessionOptions::default() };
            let session = Session::connect(node, options).await;
            return Ok(Way::Node(session.map_err(|failure| anyhow!("{failure}"))?));
        }
        let store = options.store.as_deref().context("name --files, --node or --store")?;
        let (endpoint, name) = store::parts_of(store)?;
        let bucket = Bridge(Arc::new(store::bucket(endpoint, name)?));
        let (context, url) = (SessionContext::new(), format!("s3://{name}"));
        context.register_object_store(&Url::parse(&url)?, Arc::new(bucket));
        Ok(Way::Local(Box::new(context), url))
    }

    async fn collect(&self, statement: &str) -> Result<Vec<RecordBatch>> {
        match self {
            Way::Local(context, _) => Ok(context.sql(statement).await?.collect().await?),
            Way::Node(session) => {
                session.collect(statement).await.map_err(|failure| anyhow!("{failure}"))
            }
        }
    }

    fn location(&self, table: &str) -> String {
        match self {
            Way::Local(_, root) => format!("{root}/{table}.parquet"),
            Way::Node(_) => format!("{table}.parquet"),
        }
    }
}

/// Measures.
///
/// # Errors
/// If the way leads nowhere, or a query fails.
pub(crate) async fn run(options: &Options) -> Result<Measured> {
    ensure!(options.queries.iter().all(|number| (1..=22).contains(number)), "queries are 1 to 22");
    let way = Way::open(options).await?;
    let start = Instant::now();
    for (table, _) in tpch::TABLES {
        let statement = tpch::create(table, &way.location(table));
        way.collect(&statement).await.with_context(|| format!("make the table {table}"))?;
    }
    let tables_ms = start.elapsed().as_secs_f64() * 1e3;
    let all: Vec<usize> = (1..=tpch::QUERIES.len()).collect();
    let chosen = if options.queries.is_empty() { &all } else { &options.queries };
    let (mut query_ms, mut answers) = (Vec::new(), Vec::new());
    for number in chosen {
        let start = Instant::now();
        let rows = way.collect(tpch::QUERIES[number - 1]).await;
        let rows = rows.with_context(|| format!("query {number}"))?;
        query_ms.push(start.elapsed().as_secs_f64() * 1e3);
        answers.push(hash(&rows)?);
    }
    Ok(Measured { tables_ms, query_ms, answers })
}

/// Returns a hash of rows that does not depend on their order.
fn hash(rows: &[RecordBatch]) -> Result<u64> {
    let text = pretty_format_batches(rows)?.to_string();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let mut hasher = DefaultHasher::new();
    lines.hash(&mut hasher);
    Ok(hasher.finish())
}
