//! Answers through a node are those over the files themselves, and no more is read than they need.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::parquet::file::reader::{FileReader, SerializedFileReader};
use datafusion::prelude::SessionContext;
use futures_util::TryStreamExt;
use millrace_tests::{Node, NodeOptions, Scratch};

use crate::{session, tpch, write};

/// Returns rows as text, without regard to an order that a query leaves open.
fn sorted(rows: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(rows).expect("rows as text").to_string();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn every_query_of_tpch_has_the_answer_that_the_files_have() {
    let scratch = Scratch::new();
    tpch::make(scratch.root(), 0.01).await.expect("make the tables");
    let node = NodeOptions::new(scratch.root()).set("memory", "64MiB").start();
    let (through, local) = (session(&node).await, SessionContext::new());
    for (table, _) in tpch::TABLES {
        let file = scratch.at(&format!("{table}.parquet"));
        let made = local.sql(&tpch::create(table, &file.display().to_string())).await;
        made.expect("a table of the file");
        let made = through.collect(&tpch::create(table, &format!("{table}.parquet"))).await;
        made.expect("a table of the node");
    }
    for (index, query) in tpch::QUERIES.iter().enumerate() {
        let expected = local.sql(query).await.expect("plan").collect().await.expect("run");
        let found = through.collect(query).await;
        let found = found.unwrap_or_else(|failure| panic!("query {}: {failure}", index + 1));
        assert_eq!(sorted(&found), sorted(&expected), "query {}", index + 1);
    }
    assert!(node.counter("hit_count") + node.counter("miss_count") > 100);
    node.stop();
}

#[tokio::test]
async fn a_query_of_two_columns_reads_only_those() {
    const GROUPS: usize = 5;
    let scratch = Scratch::new();
    let query = "SELECT value AS a, value * 2 AS b, value * 3 AS c, value * 5 AS d, value * 7 AS e \
                 FROM generate_series(1, 100000)";
    let file = scratch.at("wide.parquet");
    write(query, &file, 100_000 / GROUPS).await;
    let node = Node::serve(scratch.root());
    let through = session(&node).await;
    // The end of the file, which has the footer, is read at one go.
    let hint = 4096;
    let set = format!("SET datafusion.execution.parquet.metadata_size_hint = {hint}");
    through.collect(&set).await.expect("set");
    let statement = through.parse("SELECT sum(b), sum(d) FROM 'wide.parquet'").expect("parse");
    let running = through.start(statement[0].clone()).await.expect("start");
    let rows: Vec<RecordBatch> = running.rows.try_collect().await.expect("run");
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
    let reader = SerializedFileReader::new(std::fs::File::open(&file).expect("open"));
    let metadata = reader.expect("a file of Parquet").metadata().clone();
    let groups = metadata.row_groups();
    assert_eq!(groups.len(), GROUPS);
    let length = |column: usize| -> i64 {
        groups.iter().map(|group| group.column(column).compressed_size()).sum()
    };
    let needed = (length(1) + length(3)) as u64;
    let counts = running.reads.counts();
    assert!(counts.bytes >= needed, "{counts:?}, {needed} needed");
    assert!(counts.bytes <= needed + 2 * hint, "{counts:?}, {needed} needed");
    // The node has sent no more than that: gaps between columns are not read.
    assert_eq!(node.counter("hit_bytes") + node.counter("miss_bytes"), counts.bytes);
    // Both columns of a group are one request.
    assert!(counts.reads <= GROUPS as u64 + 2, "{counts:?}");
    node.stop();
}

#[tokio::test]
async fn paths_are_files_directories_and_patterns_of_every_format() {
    let scratch = Scratch::new();
    for part in ["year=2024", "year=2025"] {
        std::fs::create_dir_all(scratch.at(&format!("by/{part}"))).expect("make");
        let query = "SELECT value AS a FROM generate_series(1, 10)";
        write(query, &scratch.at(&format!("by/{part}/x.parquet")), 10).await;
    }
    // What a job leaves behind is not data.
    std::fs::write(scratch.at("by/_SUCCESS"), b"").expect("write");
    std::fs::write(scratch.at("a.csv"), "n,t\n1,one\n2,two\n").expect("write");
    std::fs::write(scratch.at("b c.tsv"), "n\tt\n3\tthree\n").expect("write");
    std::fs::write(scratch.at("d.json"), "{\"n\": 4}\n{\"n\": 5}\n").expect("write");
    let node = NodeOptions::new(scratch.root()).set("writable", true).start();
    let through = session(&node).await;
    let url = format!("millrace://{}/a.csv", node.address());
    let checks = [
        ("SELECT count(*) AS n FROM 'by/'", "20"),
        ("SELECT count(*) AS n FROM 'by'", "20"),
        ("SELECT count(*) AS n FROM '/by/year=2024/x.parquet'", "10"),
        ("SELECT count(*) AS n FROM 'by/*.parquet'", "20"),
        ("SELECT count(*) AS n FROM 'by/year=2024/?.parquet'", "10"),
        ("SELECT count(*) AS n FROM 'by' WHERE year = '2025'", "10"),
        ("SELECT sum(n) AS n FROM 'a.csv'", "3"),
        ("SELECT t AS n FROM 'b c.tsv'", "three"),
        ("SELECT sum(n) AS n FROM 'd.json'", "9"),
        ("SELECT sum(x.n + y.n) AS n FROM 'a.csv' x, 'd.json' y", "24"),
        (&format!("SELECT sum(n) AS n FROM '{url}'"), "3"),
        ("COPY (SELECT 42 AS n) TO 'new/it.parquet'; SELECT n FROM 'new/it.parquet'", "42"),
        (
            "CREATE EXTERNAL TABLE e STORED AS PARQUET LOCATION 'by/'; SELECT count(*) AS n FROM e",
            "20",
        ),
        (
            "CREATE EXTERNAL TABLE c (n INT, t VARCHAR) STORED AS CSV LOCATION '/a.csv' \
             OPTIONS ('format.has_header' 'true'); SELECT max(t) AS n FROM c",
            "two",
        ),
    ];
    for (text, expected) in checks {
        let rows = through.collect(text).await;
        let rows = rows.unwrap_or_else(|failure| panic!("{text}: {failure}"));
        let shown = pretty_format_batches(&rows).expect("rows as text").to_string();
        let value = shown.lines().nth(3).unwrap_or_default().trim_matches(['|', ' ']).to_owned();
        assert_eq!(value, expected, "{text}\n{shown}");
    }
    node.stop();
}
