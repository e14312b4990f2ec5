//! The program: what it prints, what it says when something is wrong, and its exit codes.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use millrace_tests::{Node, Scratch};

use crate::write;

struct Story {
    scratch: Scratch,
    node: Node,
}

impl Story {
    async fn new() -> Story {
        let scratch = Scratch::new();
        write("SELECT value AS a FROM generate_series(1, 100)", &scratch.at("x.parquet"), 10).await;
        std::fs::create_dir(scratch.at("odd")).expect("make");
        std::fs::write(scratch.at("odd/data"), b"?").expect("write");
        std::fs::write(scratch.at("broken.parquet"), b"not a file of Parquet").expect("write");
        let node = Node::serve(scratch.root());
        Story { scratch, node }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-sql"));
        command.env_remove("MILLRACE_NODE").env("HOME", self.scratch.root());
        command.args(["--node", &self.node.address().to_string()]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("run")
    }

    /// Returns what went to stdout.
    fn rows(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Returns what went to stderr of a run that failed.
    fn failure(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    }
}

#[tokio::test]
async fn rows_come_in_every_format() {
    let story = Story::new().await;
    let query = "SELECT a, a * 2 AS b FROM 'x.parquet' ORDER BY a LIMIT 2";
    let rows = |format: &str| story.rows(&["-q", "--format", format, query]);
    assert_eq!(rows("csv"), "a,b\n1,2\n2,4\n");
    assert_eq!(rows("tsv"), "a\tb\n1\t2\n2\t4\n");
    assert_eq!(rows("json"), "[{\"a\":1,\"b\":2},{\"a\":2,\"b\":4}]");
    assert_eq!(rows("nd-json"), "{\"a\":1,\"b\":2}\n{\"a\":2,\"b\":4}\n");
    assert!(rows("table").contains("| 2 | 4 |"), "{}", rows("table"));
    let none = "SELECT a FROM 'x.parquet' WHERE a < 0";
    assert_eq!(story.rows(&["-q", "--format", "csv", none]), "a\n");
    assert_eq!(story.rows(&["-q", "--format", "json", none]), "[]");
    let cut = story.rows(&["-q", "--max-rows", "3", "SELECT a FROM 'x.parquet' ORDER BY a"]);
    assert!(cut.contains("| 3 |") && !cut.contains("| 4 |"), "{cut}");
    assert!(cut.contains("the first 3 of 100 rows"), "{cut}");
    // Without -q the count goes beside the rows.
    let output = story.run(&["--format", "csv", query]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a,b\n1,2\n2,4\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 rows in "));
}

#[tokio::test]
async fn statements_come_from_flags_files_and_stdin() {
    let story = Story::new().await;
    let file = story.scratch.at("queries.sql");
    std::fs::write(&file, "SELECT 3;\n-- a remark; with a semicolon\nSELECT 4;\n").expect("write");
    let file = file.display().to_string();
    let rows =
        story.rows(&["-q", "--format", "csv", "-f", &file, "-c", "SELECT 1", "-c", "SELECT 2"]);
    assert_eq!(rows.lines().filter(|line| line.len() == 1).collect::<String>(), "1234");
    let mut command = story.command(&["-q", "--format", "csv"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let mut stdin = child.stdin.take().expect("its stdin");
    stdin.write_all(b"CREATE VIEW v AS SELECT 7 AS n; SELECT n FROM v").expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "n\n7\n");
    // The first failure ends a run.
    let output = story.run(&["-q", "--format", "csv", "-c", "SELECT 1; SELECT nothing; SELECT 2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().last(), Some("1"));
}

#[tokio::test]
async fn a_failure_says_what_to_do() {
    let story = Story::new().await;
    let checks = [
        ("SELECT * FROM 'gone/it.parquet'", "no files at 'gone/it.parquet'", "millrace fs ls"),
        ("SELECT * FROM gone", "'datafusion.public.gone' not found", "in quotes"),
        ("SELEC 1", "not SQL", ""),
        ("SELECT b FROM 'x.parquet'", "field named b", "a"),
        (
            "SELECT * FROM 's3://bucket/x.parquet'",
            "'s3://bucket/x.parquet' is not read here",
            "mount",
        ),
        ("SELECT * FROM 'odd'", "which format", "STORED AS"),
        ("SELECT * FROM '../x.parquet'", "'..'", "root"),
        ("SELECT * FROM 'broken.parquet'", "broken.parquet", ""),
        ("COPY (SELECT 1) TO 'new.parquet'", "new.parquet", "operator"),
        ("COPY (SELECT 1) TO 'new/*.parquet'", "pattern", "directory"),
        ("SELECT * FROM 'millrace://127.0.0.1:1/x.parquet'", "127.0.0.1:1", "check the address"),
    ];
    for (query, what, advice) in checks {
        let text = story.failure(&["-q", query]);
        assert!(text.starts_with("millrace-sql: "), "{query}: {text}");
        assert!(text.contains(what) && text.contains(advice), "{query}: {text}");
        assert!(text.lines().count() <= 2, "{query}: {text}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-sql"));
    let output = command.args(["--node", "127.0.0.1:1", "SELECT 1"]).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("127.0.0.1:1") && text.contains("hint: check --node"), "{text}");
    let text = story.failure(&["-f", "no-such-file.sql"]);
    assert!(text.contains("cannot read no-such-file.sql"), "{text}");
    assert_eq!(story.run(&["--format", "xml", "SELECT 1"]).status.code(), Some(2));
}

#[tokio::test]
async fn an_analyzed_query_says_what_it_has_read() {
    let story = Story::new().await;
    let query = "EXPLAIN ANALYZE SELECT sum(a) FROM 'x.parquet'";
    // The first reads of a node bring the blocks in, those after that find them.
    let cold = story.rows(&["-q", "--format", "csv", query]);
    assert!(cold.contains("bytes_from_sources="), "{cold}");
    let length = std::fs::metadata(story.scratch.at("x.parquet")).expect("stat").len();
    assert!(cold.contains(&format!("bytes_from_sources={length}")), "{cold}");
    let warm = story.rows(&["-q", "--format", "csv", query]);
    assert!(warm.contains("misses=0, miss_bytes=0, bytes_from_sources=0"), "{warm}");
    assert!(warm.contains("this query: looks="), "{warm}");
    // A plan that is not run has read nothing worth a row.
    let plan = story.rows(&["-q", "--format", "csv", "EXPLAIN SELECT sum(a) FROM 'x.parquet'"]);
    assert!(!plan.contains("this query"), "{plan}");
}
