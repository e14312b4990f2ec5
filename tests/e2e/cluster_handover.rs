//! After a change a node has the blocks of another node, without asking the source again.

use std::process::Command;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Error, File, JobOptions, MountInfo, Status};
use millrace_proto::Op;
use millrace_proto::message::Range;
use millrace_tests::cluster::Cluster;
use millrace_tests::gate::GateState;
use millrace_tests::load::Load;
use millrace_tests::process::program;
use millrace_tests::{HANG_GUARD, Scratch, content, heavy, wait_until};
use tokio::runtime::Runtime;

const FILES: usize = 30;
const LENGTH: usize = 400_000;

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for index in 0..FILES {
        scratch.file(&format!("f{index}"), LENGTH);
    }
    scratch
}

async fn connect(cluster: &Cluster) -> Client {
    let config = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
    cluster.client_with(config).await
}

/// Loads every file; returns how many blocks the nodes hold.
async fn load_all(client: &Client) -> u64 {
    let mut blocks = 0;
    for index in 0..FILES {
        blocks += client.load(&format!("f{index}")).await.expect("load a file").block_count;
    }
    blocks
}

async fn files(client: &Client) -> Vec<File> {
    let mut files = Vec::new();
    for index in 0..FILES {
        files.push(client.stat(&format!("f{index}")).await.expect("a file"));
    }
    files
}

/// Makes every block have two owners.
async fn have_two_replicas(cluster: &mut Cluster, client: &Client) {
    let mut mount = client.cluster().expect("a cluster").mounts[0].clone();
    mount.replicas = 2;
    client.mount(&mount).await.expect("change a mount");
    let replicas = || client.cluster().expect("a cluster").mounts[0].replicas;
    wait_until("the client knows", || replicas() == 2);
    cluster.wait_settled();
}

async fn read_all(client: &Client, files: &[File]) {
    for file in files {
        let bytes = client.read(file, 0, file.length).await.expect("read a file");
        content::check(&file.path, 0, &bytes);
    }
}

#[test]
fn a_node_that_joins_takes_its_share_from_the_others_and_not_from_the_source() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    let runtime = runtime();
    let (client, files) = runtime.block_on(async {
        let client = connect(&cluster).await;
        let blocks = load_all(&client).await;
        assert_eq!(blocks, (FILES * LENGTH.div_ceil(64 << 10)) as u64);
        let files = files(&client).await;
        (client, files)
    });
    assert_eq!(cluster.sum("fill_bytes"), (FILES * LENGTH) as u64, "each block was read once");
    let load = Load::start(runtime, &client, &files, (4, 100_000, Duration::from_millis(2)));
    load.begin("joining");
    let before = cluster.sum("fill_bytes");
    cluster.add().start();
    wait_until("the client knows", || client.cluster().expect("a cluster").members.len() == 4);
    cluster.wait_settled();
    let enough = load.reads() + 500;
    wait_until("reads go on", || load.reads() > enough || load.is_broken());
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{:#?}", outcome.failures);
    let moved = cluster.members[3].counter("peer_fill_bytes");
    let from_source = cluster.sum("fill_bytes") - before;
    // A fourth is its share; blocks of 64 KiB are few, so the share is not met exactly.
    assert!(moved > (FILES * LENGTH / 8) as u64, "{moved} bytes were taken over");
    assert!(from_source * 50 <= moved, "{from_source} bytes from the source, {moved} moved");
}

#[test]
fn a_node_that_is_drained_gives_everything_away_and_can_go() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        load_all(&client).await;
        let files = files(&client).await;
        let others = |cluster: &mut Cluster| {
            cluster.members[0].counter("fill_bytes") + cluster.members[2].counter("fill_bytes")
        };
        let before = others(&mut cluster);
        client.drain("node-2").await.expect("drain");
        // The second request does nothing.
        client.drain("node-2").await.expect("drain");
        let drains = |client: &Client| {
            let cluster = client.cluster().expect("a cluster");
            cluster.members.iter().any(|member| member.id == "node-2" && !member.is_active)
        };
        wait_until("the client knows", || drains(&client));
        cluster.wait_settled();
        let moved = cluster.sum("peer_fill_bytes");
        assert!(moved > (FILES * LENGTH / 6) as u64, "{moved} bytes were taken over");
        cluster.members[1].stop();
        read_all(&client, &files).await;
        let from_source = others(&mut cluster) - before;
        assert!(from_source * 50 <= moved, "{from_source} bytes from the source, {moved} moved");
        // It is still drained when it comes back, until it is undrained.
        cluster.members[1].start();
        cluster.wait_settled();
        wait_until("the client knows", || drains(&client));
        client.undrain("node-2").await.expect("undrain");
        wait_until("the client knows", || !drains(&client));
    });
}

#[test]
fn what_cannot_be_drained_is_told() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let told = client.drain("not-a-member").await;
        assert!(matches!(&told, Err(Error::Status { status: Status::NotFound, .. })), "{told:?}");
        client.drain("node-1").await.expect("drain");
        wait_until("it drains", || {
            let cluster = client.cluster().expect("a cluster");
            cluster.members.iter().any(|member| !member.is_active)
        });
        let told = client.drain("node-2").await.expect_err("the last one");
        assert!(told.to_string().contains("last active node"), "{told}");
    });
}

#[test]
fn a_drain_tells_whether_all_was_taken_over() {
    let scratch = scratch();
    // There are three nodes, of which the first takes nothing over.
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for rate in ["0", "1GiB"] {
        let member = cluster.add();
        member.set("handover_rate", rate);
        member.start();
    }
    cluster.add().start();
    cluster.wait_settled();
    let drain = |cluster: &Cluster, id: &str| {
        let mut command = Command::new(program().expect("the program"));
        command.args(["admin", "drain", id, "--node", &cluster.addresses()]);
        command.args(["--admin", &cluster.admin()]);
        let output = command.output().expect("run the tool");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let told = drain(&cluster, "node-3");
    assert!(told.contains("not every node has taken over what node-3 has"), "{told}");
    assert!(told.ends_with("node-3 is drained: it owns nothing and can be stopped\n"), "{told}");
    // Only the second node is left to take over what the first has, and it does.
    let told = drain(&cluster, "node-1");
    assert_eq!(told, "node-1 is drained: it owns nothing and can be stopped\n");
}

#[test]
fn replicas_are_read_from_the_source_once_and_one_may_die() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        have_two_replicas(&mut cluster, &client).await;
        let blocks = load_all(&client).await;
        assert_eq!(blocks, 2 * (FILES * LENGTH.div_ceil(64 << 10)) as u64, "two of each");
        let from_source = cluster.sum("fill_bytes");
        let all = (FILES * LENGTH) as u64;
        assert!(from_source <= all + all / 20, "{from_source} of {all} bytes from the source");
        let files = files(&client).await;
        let before =
            cluster.members[0].counter("fill_bytes") + cluster.members[2].counter("fill_bytes");
        cluster.members[1].kill();
        read_all(&client, &files).await;
        wait_until("the client knows", || client.cluster().expect("a cluster").members.len() == 2);
        cluster.wait_settled();
        read_all(&client, &files).await;
        let after = cluster.sum("fill_bytes");
        assert!(after - before <= all / 20, "{} bytes from the source", after - before);
        // Every block has two owners again, also those that no client has read since.
        for index in [0, 2] {
            let count = cluster.members[index].counter("block_count");
            assert_eq!(count, blocks / 2, "of node {index}");
        }
    });
}

#[test]
fn a_load_is_at_as_many_nodes_as_it_asks_for_when_it_ends() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let one = client.load_replicas("f0", 2).await.expect_err("the mount has one replica");
        assert!(one.to_string().contains("1 replicas: see `millrace admin mount"), "{one}");
        have_two_replicas(&mut cluster, &client).await;
        for (refused, message) in [(0, "at least 1"), (3, "has 2 replicas")] {
            let error = client.load_replicas("f0", refused).await.expect_err("too many");
            assert!(error.to_string().contains(message), "{error}");
            let mut options = JobOptions::new();
            options.replicas = refused;
            if refused > 0 {
                let error = client.start_job(&["f0".to_owned()], &options).await;
                assert!(error.expect_err("nor a job").to_string().contains(message));
            }
        }
        let files = files(&client).await;
        let all: u64 = files.iter().map(File::block_count).sum();
        for file in &files {
            let report = client.load_replicas(&file.path, 1).await.expect("load");
            assert_eq!(report.block_count, file.block_count());
        }
        assert_eq!(cluster.sum("block_count"), all, "at one owner each");
        let fills = cluster.sum("fill_count");
        assert_eq!(fills, all);
        let (half, rest) = files.split_at(files.len() / 2);
        for file in half {
            let report = client.load_replicas(&file.path, 2).await.expect("load");
            assert_eq!(report.block_count, 2 * file.block_count());
        }
        let mut options = JobOptions::new();
        options.replicas = 2;
        let paths: Vec<String> = rest.iter().map(|file| file.path.to_string()).collect();
        let job = client.start_job(&paths, &options).await.expect("start");
        let done = loop {
            let report = client.job(job).await.expect("the job");
            if report.state.is_ended() {
                break report;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!((done.failed_count, done.file_count), (0, rest.len() as u64), "{done:?}");
        assert_eq!(cluster.sum("block_count"), 2 * all);
        let more = cluster.sum("fill_count") - fills;
        assert!(more <= all / 20, "{more} of {all} blocks did not come from the first owner");
        let before =
            cluster.members[0].counter("fill_count") + cluster.members[2].counter("fill_count");
        cluster.members[1].kill();
        read_all(&client, &files).await;
        let more = cluster.sum("fill_count") - before;
        assert_eq!(more, 0, "all reads are hits of a node that lives");
    });
}

#[test]
fn a_node_that_was_taken_for_dead_takes_over_what_others_filled_meanwhile() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        cluster.members[1].set_coord(GateState::Broken);
        let members = |client: &Client| client.cluster().expect("a cluster").members.len();
        wait_until("it is out", || members(&client) == 1);
        let blocks = load_all(&client).await;
        assert_eq!(cluster.members[0].counter("block_count"), blocks);
        cluster.members[1].set_coord(GateState::Open);
        wait_until("it is in again", || members(&client) == 2);
        cluster.wait_settled();
        let own = cluster.members[1].counter("block_count");
        assert!(own > blocks / 4, "{own} of {blocks} blocks, about half of which it owns");
        assert_eq!(cluster.members[1].counter("fill_count"), 0, "none was read from the source");
        assert_eq!(cluster.members[1].counter("peer_fill_count"), own);
    });
}

#[test]
fn nodes_that_read_for_each_other_do_not_wait_for_each_other() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for _ in 0..2 {
        let member = cluster.add();
        member.set("fill_concurrency", 1);
        member.start();
    }
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        have_two_replicas(&mut cluster, &client).await;
        // Every block is asked of both at once, so each node reads half for itself and half for the
        // other one.
        let files = files(&client).await;
        let mut peers: Vec<_> = cluster.members.iter_mut().map(|it| it.node().peer()).collect();
        for peer in &mut peers {
            for file in &files {
                peer.stat(&file.path).expect("a file");
            }
        }
        for files in files.chunks(15) {
            let ranges = files.iter().flat_map(|file| {
                let offsets = (0..file.length).step_by(65_536);
                let range = |offset| Range {
                    file: file.id.into(),
                    version: file.version,
                    offset,
                    length: 100,
                };
                offsets.map(range)
            });
            let ranges: Vec<Range> = ranges.collect();
            // One reads from the front and one from the back: what one needs of the other comes late
            // there.
            for (first, second) in ranges.iter().zip(ranges.iter().rev()) {
                peers[0].send(Op::Read, first);
                peers[1].send(Op::Read, second);
            }
            for peer in &mut peers {
                for _ in &ranges {
                    assert_eq!(peer.receive().status(), Status::Ok);
                }
            }
        }
    });
    let all = (FILES * LENGTH) as u64;
    let from_source = cluster.sum("fill_bytes");
    assert!(from_source <= all + all / 20, "{from_source} of {all} bytes from the source");
}

#[test]
fn replicas_are_spread_over_zones_and_a_zone_may_die() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for zone in ["east", "west", "east", "west"] {
        let member = cluster.add();
        member.set("zone", zone);
        member.start();
    }
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        have_two_replicas(&mut cluster, &client).await;
        let blocks = load_all(&client).await / 2;
        for zone in [[0, 2], [1, 3]] {
            let counts = zone.map(|index| cluster.members[index].counter("block_count"));
            assert_eq!(counts[0] + counts[1], blocks, "one of each in every zone: {counts:?}");
        }
        let files = files(&client).await;
        let survivors = |cluster: &mut Cluster| {
            [1, 3].map(|index| cluster.members[index].counter("fill_bytes")).iter().sum::<u64>()
        };
        let before = survivors(&mut cluster);
        cluster.members[0].kill();
        cluster.members[2].kill();
        read_all(&client, &files).await;
        assert_eq!(survivors(&mut cluster), before, "the other zone has all of it");
    });
}

#[test]
fn a_source_that_is_mounted_twice_is_one_and_outlives_one_of_its_mounts() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let mut again = client.cluster().expect("a cluster").mounts[0].clone();
        again.prefix = "again".to_owned();
        client.mount(&again).await.expect("mount");
        let mut peer = cluster.members[0].node().peer();
        let file = peer.stat("f0").expect("a file");
        wait_until("it is mounted", || peer.stat("again/f0").is_ok_and(|it| it.id == file.id));
        assert_eq!(peer.read(&file, 0, 100), Ok(content::bytes("f0", 0, 100)));
        client.unmount(&again.prefix).await.expect("unmount");
        wait_until("it is gone", || peer.stat("again/f0").is_err());
        // The last look-up went the way that is gone now. What is in memory is still read. What is not
        // has to be looked up, and is the same version.
        assert_eq!(peer.read(&file, 0, 100), Ok(content::bytes("f0", 0, 100)));
        assert_eq!(peer.read(&file, 65_536, 100), Err(Status::UnknownFile));
        assert_eq!(peer.stat("f0"), Ok(file.clone()));
        assert_eq!(peer.read(&file, 65_536, 100), Ok(content::bytes("f0", 65_536, 100)));
    });
}

#[test]
fn a_file_that_was_replaced_is_read_anew_from_every_owner() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        for version in 1..=3 {
            let bytes = content::versioned(version, LENGTH);
            let path = scratch.root().join("f0");
            std::fs::write(path.with_extension("new"), bytes).expect("write");
            std::fs::rename(path.with_extension("new"), path).expect("rename");
            // Each owner of a block still knows the version before.
            let file = client.stat("f0").await.expect("a file");
            let read = client.read(&file, 0, file.length).await.expect("read");
            assert_eq!(content::version_of(0, &read), Some(version));
            let ranges: Vec<_> = (0..6).map(|block| (&file, block * 65_536, 4096)).collect();
            for (range, read) in ranges.iter().zip(client.read_many(&ranges).await) {
                let read = read.expect("a range of many");
                assert_eq!(content::version_of(range.1, &read), Some(version));
            }
        }
    });
}

#[test]
fn mounts_change_for_everybody() {
    let scratch = scratch();
    let other = Scratch::new();
    other.file("deep/b", 5000);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let source = format!("file://{}", other.root().display());
        let mount = MountInfo::new("more/data", source, 1);
        client.mount(&mount).await.expect("mount");
        wait_until("it is mounted", || client.cluster().expect("a cluster").mounts.len() == 2);
        let file = client.stat("more/data/deep/b").await.expect("a file");
        let bytes = client.read(&file, 0, file.length).await.expect("read");
        content::check("deep/b", 0, &bytes);
        let names = client.list("").await.expect("list the root");
        assert!(names.iter().any(|entry| entry.name == "more"));
        client.unmount(&mount.prefix).await.expect("unmount");
        wait_until("it is gone", || client.cluster().expect("a cluster").mounts.len() == 1);
        cluster.wait_settled();
        let gone = client.stat("more/data/deep/b").await;
        assert!(matches!(&gone, Err(Error::Status { status: Status::NotFound, .. })), "{gone:?}");
    });
}
