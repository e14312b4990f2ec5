//! What scripts go by: exit codes, errors as JSON, and what a verb would do.

use std::process::{Command, Output, Stdio};

use millrace_tests::cluster::Cluster;
use millrace_tests::process::program;
use millrace_tests::{Scratch, wait_until};

fn run(node: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program().expect("a program to test"));
    command.args(arguments).args(["--node", node]).stdin(Stdio::null());
    command.output().expect("run a verb")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_cluster_that_is_ill_is_an_exit_code_and_can_be_waited_for() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let node = cluster.members[0].address().to_string();
    let well = run(&node, &["admin", "wait", "--healthy", "--nodes", "2"]);
    assert_eq!(
        text(&well.stdout),
        "the cluster is healthy, with 2 nodes\n",
        "{}",
        text(&well.stderr)
    );
    assert_eq!(run(&node, &["admin", "status"]).status.code(), Some(0));
    let few = run(&node, &["admin", "wait", "--healthy", "--nodes", "3", "--timeout", "0s"]);
    assert_eq!(few.status.code(), Some(1));
    assert!(text(&few.stderr).contains("it has 2 of 3 members"), "{}", text(&few.stderr));

    // Without coordination nothing can be changed.
    cluster.coord.as_mut().expect("coordination").replicas[0].kill();
    wait_until("the status says so", || {
        let status = run(&node, &["admin", "status"]);
        let told = text(&status.stdout);
        let is_ill = told.contains("not healthy: node-1 has lost coordination");
        assert_eq!(status.status.code() == Some(1), told.contains("not healthy: "), "{told}");
        is_ill
    });
    cluster.coord.as_mut().expect("coordination").replicas[0].start();
    let well = run(&node, &["admin", "wait", "--healthy", "--nodes", "2"]);
    assert_eq!(well.status.code(), Some(0), "{}", text(&well.stderr));
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let scratch = Scratch::new();
    for name in ["d/a", "d/b"] {
        scratch.file(name, 100_000);
    }
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let node = cluster.members[0].address().to_string();
    assert!(run(&node, &["fs", "load", "-r", "d"]).status.success());
    let blocks = cluster.sum("block_count");
    assert!(blocks > 0);
    let told = |arguments: &[&str]| {
        let output = run(&node, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout) + &text(&output.stderr)
    };
    let free = told(&["fs", "free", "-r", "d", "--dry-run"]);
    for words in ["d/a\n", "d/b\n", "would free what is cached of 2 files"] {
        assert!(free.contains(words), "{free}");
    }
    let free = told(&["fs", "free", "-r", "d", "--dry-run", "--json"]);
    assert!(free.contains("\"length_bytes\": 200000"), "{free}");
    let drain = told(&["admin", "drain", "node-1", "--dry-run"]);
    assert!(drain.contains("would drain node-1; 1 node would take over"), "{drain}");
    let unmount = told(&["admin", "unmount", "/", "--dry-run"]);
    assert_eq!(unmount, "would remove what is mounted at /\n");
    assert_eq!(cluster.sum("block_count"), blocks);
    assert_eq!(run(&node, &["admin", "status"]).status.code(), Some(0));
    let nodes = told(&["admin", "nodes"]);
    assert!(!nodes.contains("draining"), "{nodes}");
}

#[test]
fn with_json_an_error_is_json_with_a_code() {
    let scratch = Scratch::new();
    let node = millrace_tests::Node::serve(scratch.root());
    let address = node.address().to_string();
    let code = |arguments: &[&str]| {
        let output = run(&address, arguments);
        let told = text(&output.stderr);
        assert_eq!(told.lines().count(), 1, "{told}");
        let rest = told.strip_prefix("{\"error\":{\"code\":\"").unwrap_or_else(|| panic!("{told}"));
        (rest.split('"').next().unwrap_or_default().to_owned(), output.status.code())
    };
    assert_eq!(code(&["fs", "stat", "--json", "absent"]), ("NotFound".to_owned(), Some(1)));
    assert_eq!(code(&["fs", "ls", "--json", "../x"]), ("PermissionDenied".to_owned(), Some(1)));
    assert_eq!(code(&["fs", "stat", "--json", "a", "--wrong"]), ("Usage".to_owned(), Some(2)));
    let gone = run("127.0.0.1:9", &["fs", "stat", "--json", "a"]);
    assert!(text(&gone.stderr).contains("\"code\":\"Connect\""), "{}", text(&gone.stderr));
    node.stop();
}
