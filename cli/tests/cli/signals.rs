//! What becomes of processes that are hung up on, or end by themselves.

use super::*;

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[test]
fn a_node_that_is_hung_up_on_ends_as_when_terminated() {
    let root = awkward_tree();
    let mut node = Node::start(root.path());
    kill("-HUP", &node.child.id().to_string());
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_cluster_says_which_of_its_processes_has_ended() {
    let (source, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = millrace(&["cluster", "up", "--nodes", "1", "--replicas", "1", "--json"]);
    // The port is below those that the system chooses from, and hardly another process has the same number.
    let port = 12_000 + std::process::id() % 18_000;
    command.args(["--memory", "16MiB", "--port", &port.to_string()]);
    command.args(["--source", text(source.path()), "--dir", text(directory.path())]);
    let mut cluster = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(cluster.stdout.take().unwrap());
    let mut told = String::new();
    for line in stdout.lines() {
        let line = line.unwrap();
        told.push_str(&line);
        if line == "]" {
            break;
        }
    }
    let members = json(&told);
    let node = members.as_array().unwrap().iter().find(|it| it["name"] == "node-1").unwrap();
    kill("-KILL", &node["pid"].to_string());
    let stderr = BufReader::new(cluster.stderr.take().unwrap());
    let said = stderr.lines().map(Result::unwrap).find(|line| line.contains("node-1 has ended"));
    assert!(said.is_some_and(|line| line.contains(text(directory.path()))));
    terminate(&cluster);
    assert_eq!(cluster.wait().unwrap().code(), Some(0));
}
