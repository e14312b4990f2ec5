//! The flash tier: what nodes keep on disks, over restarts, and what becomes of it when disks or files change.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_client::Client;
use millrace_tests::mounted::{self, MountPoint};
use millrace_tests::process::program;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Scratch, content, wait_until};

/// Files of the tests, and the bytes of each: together twice the memory of a node.
const FILES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const LENGTH: usize = 4 << 20;
const TOTAL: u64 = (FILES.len() * LENGTH) as u64;
const BLOCK_COUNT: u64 = TOTAL / BLOCK as u64;

/// A source, and a place for disks beside it.
struct Tier {
    source: Scratch,
    place: Scratch,
}

impl Tier {
    fn new() -> Tier {
        let source = Scratch::new();
        FILES.iter().for_each(|path| source.file(path, LENGTH));
        Tier { source, place: Scratch::new() }
    }

    fn disk(&self) -> PathBuf {
        self.place.at("disk")
    }

    fn options(&self) -> NodeOptions {
        self.options_with(&self.disk(), "128MiB")
    }

    fn options_with(&self, disk: &Path, size: &str) -> NodeOptions {
        NodeOptions::new(self.source.root()).set("disk", format!("{}:{size}", disk.display()))
    }

    fn shard_file(&self) -> File {
        let path = self.disk().join("shard-000");
        File::options().read(true).write(true).open(path).expect("open the file of a shard")
    }
}

/// Reads a file whole and compares it with what it should be.
async fn read(client: &Client, path: &str) {
    let file = client.stat(path).await.expect("stat");
    let bytes = client.read(&file, 0, u64::MAX).await.expect("read");
    assert_eq!(bytes.len(), LENGTH);
    content::check(path, 0, &bytes);
}

/// Reads every file again and again, until the disk has all of them: a block may leave memory before it is written.
async fn store_all(node: &Node) {
    store(node, BLOCK_COUNT).await;
}

/// As [`store_all`], until the disk has this many blocks.
async fn store(node: &Node, wanted: u64) {
    let client = node.client().await;
    let start = Instant::now();
    while node.counter("flash_run_count") < wanted {
        assert!(
            start.elapsed() < HANG_GUARD,
            "{} of {wanted} blocks are written, {} were passed over, {} bytes are in memory",
            node.counter("flash_run_count"),
            node.counter("flash_passed_over_count"),
            node.counter("used_bytes"),
        );
        for path in FILES {
            read(&client, path).await;
            read(&client, path).await;
            // What waits is written before other files push it out.
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

async fn read_all(node: &Node) {
    let client = node.client().await;
    for path in FILES {
        read(&client, path).await;
    }
}

fn disk(verb: &str, directory: &Path) -> Output {
    let mut command = Command::new(program().expect("a binary"));
    command.args(["disk", verb]).arg(directory).output().expect("run millrace disk")
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn a_killed_node_has_its_blocks_again() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    for _ in 0..2 {
        node.kill();
        node.restart();
        wait_until("it has found them", || node.counter("flash_run_count") == BLOCK_COUNT);
        read_all(&node).await;
        assert_eq!(node.counter("flash_read_bytes"), TOTAL);
        assert_eq!((node.counter("fill_bytes"), node.counter("flash_damaged_count")), (0, 0));
    }
    // Memory holds half of it: the rest comes from the disk again.
    read_all(&node).await;
    assert!(node.counter("flash_read_bytes") > TOTAL);
    assert_eq!(node.counter("fill_bytes"), 0);
    node.stop();
    let checked = disk("verify", &tier.disk());
    assert!(checked.status.success(), "{}", told(&checked));
    let inspected = told(&disk("inspect", &tier.disk()));
    assert!(inspected.contains("512 runs live, 32 MiB"), "{inspected}");
}

#[tokio::test]
async fn flipped_bits_never_reach_a_client() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    node.kill();
    let file = tier.shard_file();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..400 {
        let place = random.u64(0..TOTAL);
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).expect("read");
        file.write_all_at(&[byte[0] ^ 1 << random.u32(0..8)], place).expect("write");
    }
    let checked = disk("verify", &tier.disk());
    assert_eq!(checked.status.code(), Some(1));
    let fault_count = told(&checked).lines().filter(|line| line.contains("; lost: ")).count();
    assert!(fault_count > 100, "{}", told(&checked));
    node.restart();
    read_all(&node).await;
    assert!(node.counter("flash_damaged_count") > 100);
    assert!(node.counter("flash_read_bytes") > 0, "what is sound is of use");
    assert!(node.counter("fill_bytes") > 0, "the rest is read from its source");
    assert!(node.log().contains("did not match its checksums"));
    // What was damaged is found no more.
    let damaged_count = node.counter("flash_damaged_count");
    read_all(&node).await;
    assert_eq!(node.counter("flash_damaged_count"), damaged_count);
    node.stop();
}

#[tokio::test]
async fn what_was_freed_stays_away_after_a_restart() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    let client = node.client().await;
    client.free("a").await.expect("free");
    drop(client);
    node.kill();
    node.restart();
    let client = node.client().await;
    read(&client, "a").await;
    assert_eq!(node.counter("flash_read_bytes"), 0);
    assert_eq!(node.counter("fill_bytes"), LENGTH as u64);
    read(&client, "b").await;
    assert_eq!(node.counter("flash_read_bytes"), LENGTH as u64);
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_file_that_was_replaced_while_its_node_was_down_has_its_new_bytes() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    node.kill();
    tier.source.replace("a", &content::bytes("z", 0, LENGTH));
    node.restart();
    let client = node.client().await;
    let file = client.stat("a").await.expect("stat");
    let bytes = client.read(&file, 0, u64::MAX).await.expect("read");
    content::check("z", 0, &bytes);
    assert_eq!(node.counter("flash_read_bytes"), 0);
    read(&client, "b").await;
    assert_eq!(node.counter("flash_read_bytes"), LENGTH as u64);
    drop(client);
    node.stop();
}

#[test]
fn a_directory_belongs_to_one_node() {
    let tier = Tier::new();
    let node = tier.options().start();
    let refused = tier.options().start_in_vain();
    assert!(refused.contains("another node uses this directory"), "{refused}");
    for verb in ["inspect", "verify"] {
        let refused = disk(verb, &tier.disk());
        assert_eq!(refused.status.code(), Some(1));
        let refused = told(&refused);
        assert!(refused.contains("hint: stop the node"), "{refused}");
    }
    node.stop();
    tier.options().start().stop();
}

#[test]
fn a_directory_with_other_files_is_refused() {
    let tier = Tier::new();
    let refused = tier.options_with(tier.source.root(), "128MiB").start_in_vain();
    assert!(refused.contains("files that are not of the flash tier"), "{refused}");
    assert!(refused.contains("hint: name an empty directory"), "{refused}");
    assert!(!tier.source.at("shard-000").exists(), "nothing is written there");
    let refused = tier.options_with(&tier.disk(), "3MiB").start_in_vain();
    assert!(refused.contains("need at least"), "{refused}");
    let refused = told(&disk("inspect", tier.source.root()));
    assert!(refused.contains("open its superblock"), "{refused}");
}

#[tokio::test]
async fn a_node_outlives_the_directory_of_its_disk() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    std::fs::remove_dir_all(tier.disk()).expect("remove the directory");
    read_all(&node).await;
    read_all(&node).await;
    node.kill();
    // It is made again, and holds nothing.
    node.restart();
    read_all(&node).await;
    assert_eq!(node.counter("flash_read_bytes"), 0);
    node.stop();
}

// As if another program had cut the file, or its file system had lost it.
#[tokio::test]
async fn a_file_that_is_cut_while_it_is_served_costs_time_alone() {
    let tier = Tier::new();
    let mut node = tier.options().start();
    store_all(&node).await;
    tier.shard_file().set_len(1 << 20).expect("cut the file");
    read_all(&node).await;
    assert!(node.counter("flash_error_count") > 0);
    node.kill();
    node.restart();
    read_all(&node).await;
    node.stop();
}

#[tokio::test]
async fn another_number_of_shards_begins_again() {
    let tier = Tier::new();
    // Two shards have half of the memory each, and a block may leave it before it is written.
    let most = BLOCK_COUNT * 9 / 10;
    let mut node = tier.options().start();
    store(&node, most).await;
    node.kill();
    let node = tier.options().set("shards", 2).start();
    assert!(node.log().contains("it was made for 1 shards"), "{}", node.log());
    assert_eq!(node.counter("flash_run_count"), 0);
    read_all(&node).await;
    assert_eq!(node.counter("flash_read_bytes"), 0);
    store(&node, most).await;
    node.stop();
    let inspected = told(&disk("inspect", &tier.disk()));
    assert!(inspected.contains("2 shards"), "{inspected}");
    let node = tier.options().set("shards", 2).start();
    read_all(&node).await;
    assert!(node.counter("flash_read_bytes") > TOTAL / 2);
    node.stop();
}

#[tokio::test]
async fn a_larger_and_a_smaller_size_keep_what_fits() {
    let tier = Tier::new();
    let node = tier.options().start();
    store_all(&node).await;
    node.stop();
    let larger = tier.options_with(&tier.disk(), "256MiB").start();
    read_all(&larger).await;
    assert_eq!(larger.counter("flash_read_bytes"), TOTAL);
    assert_eq!(larger.counter("flash_capacity_bytes"), 256 << 20);
    larger.stop();
    let smaller = tier.options_with(&tier.disk(), "32MiB").start();
    read_all(&smaller).await;
    assert!(smaller.counter("flash_read_bytes") > TOTAL / 2);
    assert_eq!(smaller.counter("flash_damaged_count"), 0);
    smaller.stop();
}

// One in memory is a disk like others, where it has room.
#[tokio::test]
async fn a_file_system_that_is_full_is_told_at_the_start() {
    let tier = Tier::new();
    let mut point = MountPoint::at(tier.place.at("mount"));
    let mounted =
        mounted::needs_root().and_then(|()| point.mount("tmpfs", "tmpfs", "size=64m,mode=700"));
    if let Err(why) = mounted {
        return println!("skipped: {why}");
    }
    let directory = point.path().join("disk");
    let refused = tier.options_with(&directory, "128MiB").start_in_vain();
    assert!(refused.contains("take the room for a shard's file"), "{refused}");
    let mut node = tier.options_with(&directory, "48MiB").start();
    store_all(&node).await;
    node.kill();
    node.restart();
    read_all(&node).await;
    assert!(node.counter("flash_read_bytes") > TOTAL / 2);
    node.stop();
}

#[tokio::test]
async fn a_file_system_without_direct_input_and_output_will_do() {
    let tier = Tier::new();
    let mut point = MountPoint::at(tier.place.at("mount"));
    // This one takes no room beforehand, either.
    let mounted = mounted::needs_root().and_then(|()| point.mount("ramfs", "ramfs", "mode=700"));
    if let Err(why) = mounted {
        return println!("skipped: {why}");
    }
    let mut node = tier.options_with(&point.path().join("disk"), "64MiB").start();
    assert!(node.log().contains("this file system has no direct input and output"));
    store_all(&node).await;
    node.kill();
    node.restart();
    read_all(&node).await;
    assert_eq!(node.counter("flash_read_bytes"), TOTAL);
    assert_eq!(node.counter("fill_bytes"), 0);
    node.stop();
}
