//! A URL wherever a source is named: quickstart, a whole cluster, mounts, and directories as `file://`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use millrace_client::MountInfo;
use millrace_tests::origin::Origin;
use millrace_tests::process::{Process, program};
use millrace_tests::servers::Server;
use millrace_tests::{BLOCK, NodeOptions, Scratch, content};

/// Length of an object of three blocks, the last one short.
const LENGTH: usize = 2 * BLOCK as usize + 1232;

/// Runs the program to its end, without credentials.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(program().expect("a binary"));
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command.output().expect("run the program")
}

/// Runs quickstart with small limits on a source at this endpoint; returns what it wrote, and whether it is
/// content.
fn quickstart(source: &str, endpoint: &str) -> (String, bool) {
    let endpoint = format!("endpoint={endpoint}");
    let output = run(&[
        "quickstart",
        source,
        "--source-option",
        &endpoint,
        "--source-option",
        "skip_signature=true",
        "--memory",
        "32MiB",
        "--block-size",
        "64KiB",
        "--shards",
        "1",
    ]);
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (String::from_utf8(text).expect("text"), output.status.success())
}

#[test]
fn quickstart_compares_a_bucket_with_what_the_store_gives_itself() {
    let origin = Origin::start();
    for index in 0..5 {
        let key = format!("lake/d{}/f {index}", index % 2);
        origin.put("box", &key, content::bytes(&key, 0, LENGTH));
    }
    origin.put("box", "lake/empty", Vec::new());
    origin.put("box", "other", vec![1]);
    let (told, is_well) = quickstart("s3://box/lake", &origin.url());
    assert!(is_well, "{told}");
    for word in ["Millrace reads s3://box/lake", "6 files", "every byte matched: 6 files"] {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
    // Three blocks of five files: twice for the comparison, and once through the node, which asks for neighbours
    // at once.
    let count = origin.read_count();
    assert!((3 * 5 * 2 + 5..=3 * 5 * 3).contains(&count), "{count} requests");
}

#[test]
fn quickstart_says_why_a_store_cannot_be_read() {
    let origin = Origin::start();
    origin.put("box", "it", vec![1]);
    let (told, is_well) = quickstart("s3://none", &origin.url());
    assert!(!is_well && told.contains("there is no such bucket"), "{told}");
    let (told, is_well) = quickstart("s3://box/nothing", &origin.url());
    assert!(!is_well && told.contains("s3://box/nothing has no files to read"), "{told}");
    let web = format!("{}/box", origin.url());
    let output = run(&["quickstart", &web]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("is a web server, which cannot say which files it has"), "{told}");
    assert!(told.contains(&format!("hint: serve it with `millrace node {web}`")), "{told}");
}

#[test]
fn quickstart_and_nodes_take_a_directory_as_a_url() {
    let scratch = Scratch::new();
    scratch.file("a", LENGTH);
    let url = format!("file://{}", scratch.root().display());
    let output = run(&["quickstart", &url, "--memory", "32MiB", "--block-size", "64KiB"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("every byte matched: 1 file"), "{told}");
    let node = NodeOptions::new(Path::new(&url)).set("mount_root", &url).start();
    node.stop();
    for verb in ["quickstart", "node"] {
        let output = run(&[verb, "file://relative"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("file:///DIR"), "{verb}: {told}");
    }
}

#[tokio::test]
async fn a_directory_is_mounted_as_a_url_and_beside_a_bucket() {
    let (scratch, origin) = (Scratch::new(), Origin::start());
    scratch.file("own", 1000);
    origin.put("box", "deep/it", vec![7; 1000]);
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    let node = NodeOptions::new(scratch.root())
        .set("mount_root", format!("{}:s3://box", scratch.root().display()))
        .set("source_option", endpoint)
        .start();
    let client = node.client().await;
    let directory = format!("file://{}", scratch.root().display());
    for (path, source) in [("lake", "s3://box"), ("lake/deep/er", &directory)] {
        client.mount(&MountInfo::new(path, source, 1)).await.expect("mount");
    }
    let mut names = Vec::new();
    // The change arrives with the next epoch.
    for _ in 0..600 {
        names = client.list("lake/deep").await.unwrap_or_default();
        if names.len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let names: Vec<_> = names.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["er", "it"], "a mount is seen where it is mounted");
    let root = client.list("").await.expect("list");
    assert!(root.iter().any(|entry| entry.name == "lake"), "{root:?}");
    let file = client.stat("lake/deep/er/own").await.expect("stat");
    assert_eq!(
        client.read(&file, 0, u64::MAX).await.expect("read"),
        content::bytes("own", 0, 1000)
    );
    let file = client.stat("lake/deep/it").await.expect("stat");
    assert_eq!(client.read(&file, 0, u64::MAX).await.expect("read"), vec![7; 1000]);
    node.stop();
}

/// Starts a cluster of two nodes in front of a source; returns the address of the first one.
fn cluster_up(source: &str, endpoint: &str, directory: &Path) -> (Process, String) {
    let mut command = Command::new(program().expect("a binary"));
    command.args(["cluster", "up", "--nodes", "2", "--replicas", "1", "--memory", "16MiB"]);
    // The ports are below those that the system chooses from.
    let port = fastrand::u16(12_000..30_000);
    command.args(["--port", &port.to_string(), "--node-flag=--block-size=64KiB"]);
    command.args(["--source", source, "--source-option", &format!("endpoint={endpoint}")]);
    command.args(["--source-option", "skip_signature=true", "--dir"]).arg(directory);
    let mut cluster = Process::spawn("the cluster", &mut command).expect("start it");
    cluster.wait_for_line("the cluster is up").expect("it is up");
    (cluster, format!("127.0.0.1:{port}"))
}

#[test]
fn a_cluster_comes_up_in_front_of_a_bucket() {
    let origin = Origin::start();
    origin.put("box", "lake/it", content::bytes("it", 0, LENGTH));
    let directory = tempfile::tempdir().expect("a directory");
    let (cluster, address) = cluster_up("s3://box/lake", &origin.url(), directory.path());
    let read = run(&["fs", "cat", "it", "--node", &address]);
    assert_eq!(read.stdout, content::bytes("it", 0, LENGTH));
    let mounts = run(&["admin", "mounts", "--node", &address]);
    assert!(String::from_utf8_lossy(&mounts.stdout).contains("s3://box/lake"));
    cluster.stop();
}

#[test]
fn a_cluster_that_cannot_reach_its_bucket_says_why() {
    let origin = Origin::start();
    let directory = tempfile::tempdir().expect("a directory");
    let endpoint = format!("endpoint={}", origin.url());
    let port = fastrand::u16(12_000..30_000).to_string();
    let up =
        ["cluster", "up", "--nodes", "1", "--replicas", "1", "--memory", "16MiB", "--port", &port];
    let directory = directory.path().display().to_string();
    let source = ["--source", "s3://none", "--source-option", &endpoint, "--dir", &directory];
    let option = ["--source-option", "skip_signature=true"];
    let output = run(&[&up[..], &source, &option].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("there is no such bucket"), "{told}");
}

#[test]
fn quickstart_proves_every_byte_of_a_real_s3_server() {
    let Some(weed) = Server::weed() else { return };
    for (index, length) in [0, 1, LENGTH, 3 << 20].into_iter().enumerate() {
        let key = format!("lake/f{index}");
        assert_eq!(weed.put(&key, &content::bytes(&key, 0, length)), 200);
    }
    let (told, is_well) = quickstart("s3://millrace-it/lake", &weed.url());
    assert!(is_well && told.contains("every byte matched: 4 files"), "{told}");
}

#[tokio::test]
async fn a_mount_shows_the_files_that_it_is_for() {
    let origin = Origin::start();
    for (key, length) in [
        ("a.csv", 10),
        ("deep/b.csv", 10),
        ("deep/b.bin", 10),
        ("deep/long.csv", 2000),
        ("tmp/c.csv", 1),
    ] {
        origin.put("box", key, vec![1; length]);
    }
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    let node = NodeOptions::new(Path::new("s3://box")).set("source_option", endpoint).start();
    let address = node.address().to_string();
    let admin = node.admin_path().display().to_string();
    let at = ["--node", &address, "--admin", &admin];
    let filters = ["--include", "*.csv", "--exclude", "tmp/**", "--file-size-max", "1KiB"];
    let mounted = run(&[&["admin", "mount", "part", "s3://box"][..], &filters, &at].concat());
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let told = run(&[&["admin", "mounts"][..], &at].concat());
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("only *.csv, not tmp/**, files up to 1 KiB"), "{told}");
    let listed = run(&[&["fs", "ls", "-R", "part"][..], &at].concat());
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let files: Vec<_> = listed.lines().filter(|line| !line.ends_with('/')).collect();
    assert_eq!(files, ["part/a.csv", "part/deep/b.csv"], "{listed}");
    let client = node.client().await;
    client.stat("part/deep/b.csv").await.expect("it is shown");
    for hidden in ["part/deep/b.bin", "part/deep/long.csv", "part/tmp/c.csv"] {
        let error = client.stat(hidden).await.expect_err(hidden);
        assert_eq!(error.status(), Some(millrace_client::Status::NotFound), "{hidden}: {error}");
    }
    client.stat("deep/b.bin").await.expect("the root shows all");
    node.stop();
}
