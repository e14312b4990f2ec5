//! What goes wrong during a query: a file that is replaced, a query that is ended, a node that goes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use datafusion::arrow::array::{Int64Array, RecordBatch};
use futures_util::TryStreamExt;
use millrace_client::ClientConfig;
use millrace_sql::{Failure, Options, Running, Session};
use millrace_tests::cluster::Cluster;
use millrace_tests::origin::Origin;
use millrace_tests::process::Process;
use millrace_tests::{Node, NodeOptions, Scratch, wait_until};
use rustix::process::Signal;

use crate::{session, write};

const ROWS: usize = 400_000;
const GROUPS: usize = 20;

/// Makes a file whose rows all have this number, and are as long as those of any other number.
async fn versioned(scratch: &Scratch, number: i64) -> Vec<u8> {
    let file = scratch.at(&format!("{number}.parquet"));
    let query = format!(
        "SELECT value AS a, arrow_cast({number}, 'Int64') AS version FROM generate_series(1, {ROWS})"
    );
    write(&query, &file, ROWS / GROUPS).await;
    std::fs::read(&file).expect("read")
}

async fn start(session: &Session, query: &str) -> Running {
    let mut statements = session.parse(query).expect("parse");
    session.start(statements.remove(0)).await.expect("start")
}

/// Returns all numbers that rows have.
fn versions(rows: &[RecordBatch]) -> Vec<i64> {
    let mut versions = Vec::new();
    for batch in rows {
        let column = batch.column_by_name("version").expect("its column");
        let column = column.as_any().downcast_ref::<Int64Array>().expect("numbers");
        versions.extend(column.values().iter().copied());
    }
    versions.sort_unstable();
    versions.dedup();
    versions
}

fn rows_of(rows: &[RecordBatch]) -> usize {
    rows.iter().map(RecordBatch::num_rows).sum()
}

/// Starts a node in front of a store in this process, which looks at an object before each read.
fn node_of(origin: &Origin) -> Node {
    NodeOptions::new(Path::new("s3://box"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("stale_after_ms", 0)
        .start()
}

#[tokio::test]
async fn an_object_that_is_replaced_during_a_query_is_never_mixed() {
    let scratch = Scratch::new();
    let (old, new) = (versioned(&scratch, 1).await, versioned(&scratch, 2).await);
    assert_eq!(old.len(), new.len());
    let origin = Origin::start();
    origin.put("box", "it.parquet", old);
    let node = node_of(&origin);
    let session = session(&node).await;
    let query = "SELECT a, version FROM 'it.parquet'";
    let mut rows = start(&session, query).await.rows;
    let mut seen = vec![rows.try_next().await.expect("a first part").expect("rows")];
    origin.put("box", "it.parquet", new);
    let failure = loop {
        match rows.try_next().await {
            Ok(Some(batch)) => seen.push(batch),
            Ok(None) => panic!("the rest of the old version is at no place any more"),
            Err(error) => break Failure::from(error).to_string(),
        }
    };
    assert_eq!(versions(&seen), [1]);
    assert!(failure.starts_with("'it.parquet' has changed while the query read it"), "{failure}");
    assert!(failure.contains("run the query again"), "{failure}");
    // The next one has the new version, and all of it.
    drop(rows);
    let rows = session.collect(query).await.expect("run");
    assert_eq!((versions(&rows), rows_of(&rows)), (vec![2], ROWS));
    node.stop();
}

#[tokio::test]
async fn an_object_that_is_replaced_all_the_time_is_never_mixed() {
    let scratch = Scratch::new();
    let contents = [versioned(&scratch, 1).await, versioned(&scratch, 2).await];
    let origin = Origin::start();
    origin.put("box", "it.parquet", contents[0].clone());
    let node = node_of(&origin);
    let session = session(&node).await;
    let (mut whole, mut failed) = (0, 0);
    for round in 0..30 {
        let mut rows = start(&session, "SELECT a, version FROM 'it.parquet'").await.rows;
        let mut seen = Vec::new();
        let ended = loop {
            // Later in each round, and in some not at all.
            if seen.len() == round * 2 {
                origin.put("box", "it.parquet", contents[round % 2].clone());
            }
            match rows.try_next().await {
                Ok(Some(batch)) => seen.push(batch),
                Ok(None) => break Ok(()),
                Err(error) => break Err(Failure::from(error).to_string()),
            }
        };
        assert!(versions(&seen).len() <= 1, "round {round} has two versions");
        match ended {
            Ok(()) => {
                assert_eq!(rows_of(&seen), ROWS, "round {round}");
                whole += 1;
            }
            Err(failure) => {
                assert!(failure.contains("has changed"), "{failure}");
                failed += 1;
            }
        }
    }
    println!("{whole} whole, {failed} failed");
    assert!(whole > 0);
    node.stop();
}

#[tokio::test]
async fn a_query_whose_node_goes_says_so() {
    let scratch = Scratch::new();
    versioned(&scratch, 1).await;
    let mut node = Node::serve(scratch.root());
    let client =
        ClientConfig { local: false, deadline: Duration::from_secs(2), ..ClientConfig::new() };
    let options = Options { client, threads: Some(1), ..Options::default() };
    let session = Session::connect(&node.address().to_string(), options).await.expect("connect");
    let mut rows = start(&session, "SELECT a, version FROM '1.parquet'").await.rows;
    rows.try_next().await.expect("a first part").expect("rows");
    node.kill();
    let failure = loop {
        match rows.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a node that is gone has answered"),
            Err(error) => break Failure::from(error).to_string(),
        }
    };
    let address = node.address().to_string();
    assert!(failure.contains(&address) && failure.contains("\nhint: "), "{failure}");
    // The session goes on when the node is there again.
    drop(rows);
    node.restart();
    let rows = session.collect("SELECT a, version FROM '1.parquet'").await.expect("run");
    assert_eq!(rows_of(&rows), ROWS);
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_whose_node_goes_has_its_answer_from_another() {
    let scratch = Scratch::new();
    versioned(&scratch, 1).await;
    let mut cluster = tokio::task::block_in_place(|| {
        let mut cluster = Cluster::start(1, 2, scratch.root());
        cluster.wait_settled();
        cluster
    });
    let client = ClientConfig { local: false, ..ClientConfig::new() };
    let options = Options { client, threads: Some(1), ..Options::default() };
    let session = Session::connect(&cluster.addresses(), options).await.expect("connect");
    let mut rows = start(&session, "SELECT a, version FROM '1.parquet'").await.rows;
    let mut seen = vec![rows.try_next().await.expect("a first part").expect("rows")];
    tokio::task::block_in_place(|| cluster.members[0].kill());
    while let Some(batch) = rows.try_next().await.expect("the rest") {
        seen.push(batch);
    }
    assert_eq!((versions(&seen), rows_of(&seen)), (vec![1], ROWS));
}

#[tokio::test]
async fn a_query_that_is_ended_leaves_nothing_behind() {
    let scratch = Scratch::new();
    versioned(&scratch, 1).await;
    let node = NodeOptions::new(scratch.root()).set("writable", true).start();
    let before = node.counter("connection_count");
    let names = || {
        let entries = std::fs::read_dir(scratch.root()).expect("list");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let at_first = names();
    let run = |query: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-sql"));
        command.args(["--node", &node.address().to_string(), "-c", query]);
        Process::spawn_logging_to("a query", &mut command, Some(Stdio::null())).expect("start")
    };
    // A write without an end, and reads without an end.
    let writer = run(
        "COPY (SELECT a.value, random() AS r FROM generate_series(1, 100000000) a) TO 'new.parquet'",
    );
    let reader = run(
        "SELECT count(*) FROM '1.parquet' x, '1.parquet' y WHERE x.a * y.a % 1000003 = x.a + y.a",
    );
    wait_until("both are at work", || {
        names() != at_first && node.counter("hit_count") + node.counter("miss_count") > 20
    });
    for mut process in [writer, reader] {
        process.signal(Signal::INT);
        assert!(!process.wait().success());
    }
    wait_until("nothing is left", || {
        names() == at_first
            && node.counter("connection_count") <= before
            && node.counter("in_use_bytes") == 0
            && node.counter("leased_bytes") == 0
    });
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_dropped_leaves_nothing_behind() {
    let scratch = Scratch::new();
    versioned(&scratch, 1).await;
    let node = Node::serve(scratch.root());
    let session = session(&node).await;
    for _ in 0..10 {
        let mut rows = start(&session, "SELECT a, version FROM '1.parquet'").await.rows;
        rows.try_next().await.expect("a first part").expect("rows");
    }
    let rows = session.collect("SELECT a, version FROM '1.parquet'").await.expect("run");
    assert_eq!(rows_of(&rows), ROWS);
    drop(session);
    wait_until("nothing is left", || {
        node.counter("connection_count") <= 1 && node.counter("in_use_bytes") == 0
    });
    node.stop();
}

#[tokio::test]
async fn what_was_kept_of_a_file_is_not_used_after_it_was_replaced() {
    let scratch = Scratch::new();
    let (old, new) = (versioned(&scratch, 1).await, versioned(&scratch, 2).await);
    let origin = Origin::start();
    origin.put("box", "it.parquet", old);
    let node = node_of(&origin);
    let session = session(&node).await;
    // Answered from the footer alone.
    let query = "SELECT min(version) AS version, max(version) AS most FROM 'it.parquet'";
    let made =
        session.collect("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'it.parquet'").await;
    made.expect("a table");
    let mut looked = Vec::new();
    for _ in 0..2 {
        looked.push(versions(&session.collect(query).await.expect("run")));
        looked.push(versions(
            &session.collect("SELECT max(version) AS version FROM t").await.expect("run"),
        ));
    }
    assert_eq!(looked, vec![vec![1]; 4]);
    // While nothing changes footers are read once.
    let kept = start(&session, query).await;
    let reads = std::sync::Arc::clone(&kept.reads);
    let _: Vec<RecordBatch> = kept.rows.try_collect().await.expect("run");
    assert_eq!(reads.counts().bytes, 0, "{:?}", reads.counts());
    origin.put("box", "it.parquet", new);
    assert_eq!(versions(&session.collect(query).await.expect("run")), [2]);
    assert_eq!(
        versions(&session.collect("SELECT max(version) AS version FROM t").await.expect("run")),
        [2]
    );
    node.stop();
}
