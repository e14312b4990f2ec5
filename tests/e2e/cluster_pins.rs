//! What is pinned stays in memory while much more than the memory is read, until it is unpinned.

use std::process::Command;

use millrace_client::{Client, Error, File, Status};
use millrace_tests::cluster::Cluster;
use millrace_tests::process::program;
use millrace_tests::{Scratch, content, heavy, wait_until};
use tokio::runtime::Runtime;

/// Memory of a node of the tests.
const MEMORY: usize = 16 << 20;
const LENGTH: usize = 512 << 10;
/// A fourth of the memory: within the share.
const HOT: usize = MEMORY / 4 / LENGTH;
/// Ten times the memory.
const COLD: usize = 10 * MEMORY / LENGTH;

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for index in 0..HOT {
        scratch.file(&format!("hot/f{index}"), LENGTH);
    }
    for index in 0..COLD {
        scratch.file(&format!("cold/f{index}"), LENGTH);
    }
    scratch
}

async fn files(client: &Client, folder: &str, count: usize) -> Vec<File> {
    let mut files = Vec::with_capacity(count);
    for index in 0..count {
        files.push(client.stat(&format!("{folder}/f{index}")).await.expect("a file"));
    }
    files
}

async fn read_all(client: &Client, files: &[File]) {
    for file in files {
        let bytes = client.read(file, 0, file.length).await.expect("read a file");
        content::check(&file.path, 0, &bytes);
    }
}

/// Loads the hot files.
async fn load(client: &Client) {
    for index in 0..HOT {
        client.load(&format!("hot/f{index}")).await.expect("load a file");
    }
}

/// Returns how many bytes were read from the source for reading these files.
async fn filled_for(cluster: &mut Cluster, client: &Client, files: &[File]) -> usize {
    let before = cluster.sum("fill_bytes");
    read_all(client, files).await;
    (cluster.sum("fill_bytes") - before) as usize
}

#[test]
fn pinned_files_stay_until_they_are_unpinned() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = cluster.client().await;
        let (hot, cold) = (files(&client, "hot", HOT).await, files(&client, "cold", COLD).await);
        // Half of them are there before the pin, and half come afterwards.
        for file in &hot[..HOT / 2] {
            client.load(&file.path).await.expect("load a file");
        }
        client.pin("hot").await.expect("pin");
        let early = (HOT / 2 * LENGTH) as u64;
        wait_until("what is there is pinned", || cluster.sum("pinned_bytes") >= early);
        load(&client).await;
        assert!(cluster.sum("pinned_bytes") >= (HOT * LENGTH) as u64);
        assert_eq!(cluster.sum("pinned_count"), (HOT * LENGTH.div_ceil(64 << 10)) as u64);
        read_all(&client, &cold).await;
        assert_eq!(filled_for(&mut cluster, &client, &hot).await, 0, "all of them are hits");

        client.unpin("hot").await.expect("unpin");
        wait_until("nothing is pinned", || cluster.sum("pinned_count") == 0);
        read_all(&client, &cold).await;
        let filled = filled_for(&mut cluster, &client, &hot).await;
        assert!(filled > HOT * LENGTH / 2, "{filled} bytes were read again");
        assert_eq!(cluster.sum("pinned_count"), 0);
    });
}

#[test]
fn a_node_that_restarts_learns_the_pins_and_free_drops_what_is_pinned() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = cluster.client().await;
        for path in ["hot", "other"] {
            client.pin(path).await.expect("pin");
        }
        cluster.members[0].stop();
        cluster.members[1].stop();
        cluster.members[0].start();
        cluster.members[1].start();
        cluster.wait_settled();
        let client = cluster.client().await;
        assert_eq!(client.pins().await.expect("the pins"), ["hot", "other"]);
        load(&client).await;
        let blocks = (HOT * LENGTH.div_ceil(64 << 10)) as u64;
        assert_eq!(cluster.sum("pinned_count"), blocks, "each at its owner");
        assert!(cluster.members.iter_mut().all(|member| member.counter("pinned_count") > 0));
        // What another node owns now is kept there, and no longer here.
        client.drain("node-2").await.expect("drain");
        wait_until("the one keeps nothing", || cluster.members[1].counter("pinned_count") == 0);
        wait_until("the other all", || cluster.members[0].counter("pinned_count") == blocks);
        for index in 0..HOT {
            client.free(&format!("hot/f{index}")).await.expect("free a file");
        }
        assert_eq!(cluster.sum("pinned_count"), 0);
    });
}

#[test]
fn what_cannot_be_pinned_is_refused() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = cluster.client().await;
        let bad = [
            ("/a", Status::PermissionDenied),
            ("a/../b", Status::PermissionDenied),
            ("a//b", Status::InvalidArgument),
            ("a/", Status::InvalidArgument),
        ];
        for (path, wanted) in bad {
            let told = client.pin(path).await;
            let is_refused =
                matches!(&told, Err(Error::Status { status, .. }) if *status == wanted);
            assert!(is_refused, "{path}: {told:?}");
        }
        let told = client.unpin("never/pinned").await;
        assert!(matches!(&told, Err(Error::Status { status: Status::NotFound, .. })), "{told:?}");
        // There need be nothing at a path, and the second pin changes nothing.
        for _ in 0..2 {
            client.pin("not/there/yet").await.expect("pin");
        }
        for index in 1..64 {
            client.pin(&format!("p{index}")).await.expect("pin");
        }
        let told = client.pin("one/more").await.expect_err("there are 64");
        assert!(told.to_string().contains("64 pins"), "{told}");
    });
}

#[test]
fn the_admin_tool_pins_lists_and_unpins() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    let (address, place) = (cluster.addresses(), cluster.admin());
    let admin = |arguments: &[&str]| {
        let mut command = Command::new(program().expect("the program"));
        let command =
            command.args(["admin", "--node", &address, "--admin", &place]).args(arguments);
        let output = command.output().expect("run the tool");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    assert_eq!(admin(&["pin", "/data/hot/"]), (true, "/data/hot is pinned\n".to_owned()));
    assert_eq!(admin(&["pin", "/"]), (true, "/ is pinned\n".to_owned()));
    assert_eq!(admin(&["pins"]), (true, "/\n/data/hot\n".to_owned()));
    let (_, json) = admin(&["pins", "--json"]);
    assert_eq!(json.split_whitespace().collect::<String>(), r#"["","data/hot"]"#);
    assert_eq!(admin(&["unpin", "data/hot"]), (true, "/data/hot is not pinned any more\n".into()));
    let (is_done, text) = admin(&["unpin", "data/hot"]);
    assert!(!is_done && text.contains("not pinned"), "{text}");
}
