//! Clients on the node's machine read its memory in place: the same bytes, whatever happens to them.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace_client::{Client, ClientConfig, File, ReadOptions, blocking};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options};
use millrace_tests::{HANG_GUARD, Node, NodeOptions, Scratch, content, damage, wait_until};

const BLOCK: u64 = millrace_tests::BLOCK as u64;
const BLOCK_SIZE: usize = BLOCK as usize;

fn options(scratch: &Scratch, shards: usize) -> NodeOptions {
    NodeOptions::new(scratch.root()).set("shards", shards)
}

fn config() -> ClientConfig {
    ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() }
}

/// Reads the file whole, so that its blocks are leased where that is possible.
async fn warm(client: &Client, path: &str) -> File {
    let file = client.stat(path).await.expect("stat");
    // The first read connects the lanes, the second one leases.
    for _ in 0..2 {
        let read = client.read(&file, 0, u64::MAX).await.expect("read");
        assert_eq!(read.len() as u64, file.length);
        content::check(path, 0, &read);
    }
    file
}

#[tokio::test]
async fn a_client_on_the_machine_reads_in_place_by_itself() {
    let scratch = Scratch::new();
    scratch.file("file", 5 * BLOCK_SIZE + 777);
    for shards in [1, 2] {
        let node = options(&scratch, shards).start();
        // The client connects by TCP, and finds out by itself that there is a nearer way.
        let client = node.client_with(config()).await;
        let file = warm(&client, "file").await;
        assert_eq!(node.counter("lease_count"), 6);
        let asked = node.counter("request_count");
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let offset = random.u64(..file.length);
            let length = random.u64(1..=(file.length - offset).min(3 * BLOCK));
            let read = client.read(&file, offset, length).await.expect("read");
            assert_eq!(read.len() as u64, length);
            content::check("file", offset, &read);
            let mut target = vec![0; length as usize];
            assert!(client.read_leased(&file, offset, &mut target));
            assert_eq!(target, read);
        }
        let ranges: Vec<_> = (0..50).map(|index| (&file, index * 999, 5000)).collect();
        for (range, read) in ranges.iter().zip(client.read_many(&ranges).await) {
            content::check("file", range.1, &read.expect("read"));
        }
        let prefix = BytesMut::from(&b"prefix"[..]);
        let whole = client.read_into(&file, 0, prefix, u64::MAX).await.expect("read");
        content::check("file", 0, &whole[6..]);
        // Each look at a counter is a request.
        assert_eq!(node.counter("request_count"), asked + 1, "no read was a message");
        node.stop();
    }
}

#[tokio::test]
async fn nothing_is_read_in_place_where_that_is_not_wanted() {
    let scratch = Scratch::new();
    scratch.file("file", 3 * BLOCK_SIZE);
    let without = [("socket", ""), ("lease_ms", "0"), ("lease_percent", "0")];
    for (key, value) in without {
        let node = options(&scratch, 1).set(key, value).start();
        let client = node.client_with(config()).await;
        let file = warm(&client, "file").await;
        assert!(!client.read_leased(&file, 0, &mut [0]), "{key}");
        assert_eq!(client.lease(&file, 0, 1).await.expect("lease").iter().flatten().count(), 0);
        node.stop();
    }
    let node = options(&scratch, 1).start();
    for config in [
        ClientConfig { local: false, ..config() },
        ClientConfig { leased_bytes_max: 0, ..config() },
    ] {
        let client = node.client_with(config).await;
        let file = warm(&client, "file").await;
        assert!(!client.read_leased(&file, 0, &mut [0]));
    }
    assert_eq!(node.counter("lease_count"), 0);
    node.stop();
}

#[tokio::test]
async fn small_reads_lease_a_block_that_is_read_again() {
    let scratch = Scratch::new();
    scratch.file("file", 2 * BLOCK_SIZE);
    let node = options(&scratch, 1).start();
    let client = node.client_with(config()).await;
    let file = client.stat("file").await.expect("stat");
    for (read_count, lease_count) in [(1, 0), (2, 1), (3, 1)] {
        content::check("file", 100, &client.read(&file, 100, 10).await.expect("read"));
        assert_eq!(node.counter("lease_count"), lease_count, "after {read_count} reads");
    }
    node.stop();
}

#[test]
fn leases_run_out_and_begin_anew() {
    let scratch = Scratch::new();
    scratch.file("file", 4 * BLOCK_SIZE);
    let node = options(&scratch, 1).set("lease_ms", 200).start();
    let client = blocking::Client::connect(node.address().to_string(), config()).expect("connect");
    let file = client.stat("file").expect("stat");
    let leases = client.lease(&file, 0, u64::MAX).expect("lease");
    let lease = leases[3].clone().expect("a lease");
    assert_eq!((leases.len(), lease.start(), lease.length()), (4, 3 * BLOCK, BLOCK as u32));
    let mut target = vec![0; BLOCK_SIZE - 5];
    assert!(lease.copy(5, &mut target));
    content::check("file", lease.start() + 5, &target);
    std::thread::sleep(Duration::from_millis(250));
    assert!(!lease.holds() && !lease.copy(0, &mut target));
    assert!(!client.read_leased(&file, 0, &mut target), "it is not for a client to trust it on");
    // It is read as ever, and leased again.
    content::check("file", 0, &client.read(&file, 0, 4 * BLOCK).expect("read"));
    assert!(client.read_leased(&file, 0, &mut target));
    // A handle that is prolonged before it ends goes on.
    let lease = client.lease(&file, 0, 1).expect("lease").remove(0).expect("a lease");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        assert!(client.lease(&file, 0, 1).expect("lease")[0].is_some());
        std::thread::sleep(Duration::from_millis(10));
    }
    // This holds unless the machine slept, which it may.
    let gap = Duration::from_millis(100);
    if start.elapsed() < Duration::from_millis(600) + gap {
        assert!(lease.holds());
    }
    node.stop();
}

/// Waits until a counter has a value; the node looks at its clock every 25 ms.
fn wait_for(node: &Node, name: &str, expect: u64) {
    let start = Instant::now();
    while node.counter(name) != expect {
        assert!(start.elapsed() < HANG_GUARD, "{name} is {}", node.counter(name));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_leased_is_bounded_and_ends_with_its_client() {
    let scratch = Scratch::new();
    scratch.file("file", 200 * BLOCK_SIZE);
    let node = options(&scratch, 1)
        .set("memory", "16MiB")
        .set("lease_percent", 50)
        .set("lease_ms", 600_000)
        .start();
    let client = blocking::Client::connect(node.address().to_string(), config()).expect("connect");
    let file = client.stat("file").expect("stat");
    // The file is twice the whole memory: what cannot be leased is read over the socket.
    content::check("file", 0, &client.read(&file, 0, u64::MAX).expect("read"));
    content::check("file", 0, &client.read(&file, 0, u64::MAX).expect("read"));
    let (leased, capacity) = (node.counter("leased_bytes"), node.counter("capacity_bytes"));
    assert!(leased > 0 && leased <= capacity / 2, "{leased} of {capacity}");
    assert!(node.counter("busy_count") > 0);
    // Others are served all the while.
    let other = ClientConfig { local: false, ..config() };
    let other = blocking::Client::connect(node.address().to_string(), other).expect("connect");
    content::check("file", 0, &other.read(&file, 0, u64::MAX).expect("read"));
    // Leases last ten minutes, and the client sends no release: its end is enough.
    drop(client);
    wait_for(&node, "leased_bytes", 0);
    node.stop();
}

#[test]
fn a_client_keeps_to_its_own_bound_and_gives_back() {
    let scratch = Scratch::new();
    scratch.file("file", 32 * BLOCK_SIZE);
    let node = options(&scratch, 1).set("lease_ms", 600_000).start();
    let bound = ClientConfig { leased_bytes_max: 4 * BLOCK, ..config() };
    let client = blocking::Client::connect(node.address().to_string(), bound).expect("connect");
    let file = client.stat("file").expect("stat");
    let first = client.lease(&file, 0, 1).expect("lease").remove(0).expect("a lease");
    for block in 0..32 {
        assert!(client.lease(&file, block * BLOCK, 1).expect("lease")[0].is_some());
    }
    assert!(!first.holds(), "it was given back for the later ones");
    // The last release may still be on its way.
    let start = Instant::now();
    while node.counter("leased_bytes") > 4 * BLOCK {
        assert!(start.elapsed() < HANG_GUARD);
        std::thread::sleep(Duration::from_millis(5));
    }
    node.stop();
}

/// Reads in place as fast as it can while the memory is turned over many times: bytes of another block
/// under a lease that holds would show.
#[test]
fn bytes_in_place_are_right_while_everything_around_them_is_evicted() {
    let scratch = Scratch::new();
    let files: Vec<String> = (0..24).map(|index| format!("file-{index}")).collect();
    for path in &files {
        scratch.file(path, 8 * BLOCK_SIZE);
    }
    let node = options(&scratch, 2).set("memory", "12MiB").set("lease_ms", 100).start();
    let bound = ClientConfig { leased_bytes_max: 8 * BLOCK, ..config() };
    let client = blocking::Client::connect(node.address().to_string(), bound).expect("connect");
    let others = ClientConfig { local: false, ..config() };
    let other = blocking::Client::connect(node.address().to_string(), others).expect("connect");
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                for path in &files {
                    let file = other.stat(path).expect("stat");
                    content::check(path, 0, &other.read(&file, 0, u64::MAX).expect("read"));
                }
            }
        });
        for thread in 0..2 {
            let (client, files) = (&client, &files);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                let (mut held, mut ended) = (0, 0);
                while Instant::now() < end {
                    let path = random.choice(files).expect("there are files");
                    let file = client.stat(path).expect("stat");
                    let block = random.u64(..8);
                    let leases = client.lease(&file, block * BLOCK, 1).expect("lease");
                    let Some(Some(lease)) = leases.first() else { continue };
                    let mut target = vec![0; BLOCK_SIZE];
                    // The lease ends by its time or for another one; until then each copy is right or
                    // refused.
                    while Instant::now() < end {
                        if !lease.copy(0, &mut target) {
                            ended += 1;
                            break;
                        }
                        held += 1;
                        if held % 16 == 0 {
                            content::check(path, lease.start(), &target);
                        }
                    }
                }
                assert!(held > 100 && ended > 3, "{held} copies, {ended} leases ended");
            });
        }
    });
    assert!(node.counter("evicted_count") > 100);
    node.stop();
}

#[tokio::test]
async fn a_node_that_is_killed_takes_its_leases_with_it() {
    let scratch = Scratch::new();
    scratch.file("file", 3 * BLOCK_SIZE);
    let mut node = options(&scratch, 1).set("lease_ms", 600_000).start();
    let client = node.client_with(config()).await;
    let file = warm(&client, "file").await;
    let lease = client.lease(&file, 0, 1).await.expect("lease").remove(0).expect("a lease");
    assert!(lease.holds());
    node.kill();
    // The end of the connection is seen by a task.
    let start = Instant::now();
    while lease.holds() {
        assert!(start.elapsed() < HANG_GUARD);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.restart();
    // The new run is found again, and its memory is another one.
    let file = warm(&client, "file").await;
    let start = Instant::now();
    while !client.read_leased(&file, 0, &mut [0]) {
        assert!(start.elapsed() < HANG_GUARD);
        warm(&client, "file").await;
    }
    node.stop();
}

/// Damages a bit of the node's memory between the fill and the lease. A client that reads without
/// verifying has the block leased, and gets what is there; no other client does, whichever way it reads.
#[tokio::test]
async fn a_block_that_is_not_verified_is_not_read_in_place() {
    let scratch = Scratch::new();
    scratch.file("file", 2 * BLOCK_SIZE);
    let node = options(&scratch, 1).start();
    let far = node.client().await;
    let file = far.stat("file").await.expect("stat");
    let mut whole = far.read(&file, 0, u64::MAX).await.expect("read").to_vec();
    assert_eq!(damage::flip(node.id(), &whole[..4096]), 1, "the block is in memory once");
    let client = node.client_with(config()).await;
    let careless = ReadOptions { verify: Some(false), ..ReadOptions::default() };
    for _ in 0..2 {
        // The first read connects the lanes, the second one leases.
        client.read_with(&file, 0, u64::MAX, careless).await.expect("read");
    }
    assert_eq!(node.counter("lease_count"), 2);
    let damaged = client.read_with(&file, 0, 1, careless).await.expect("read");
    assert_eq!(damaged[0], whole[0] ^ 1, "this is what is there");
    let mut target = vec![0; 2 * BLOCK_SIZE];
    assert!(!client.read_leased(&file, 0, &mut target), "it was not verified");
    let lease = client.lease(&file, 0, 1).await.expect("lease").remove(0);
    assert!(lease.is_none(), "it is not what was cached");
    let read = client.read(&file, 0, u64::MAX).await;
    assert!(!read.is_ok_and(|bytes| bytes != whole), "wrong bytes were handed out");
    // The other block is good, which is seen when it is leased for a client that verifies.
    assert!(client.lease(&file, BLOCK, 1).await.expect("lease").remove(0).is_some());
    assert!(client.read_leased(&file, BLOCK, &mut target[..BLOCK_SIZE]));
    assert_eq!(target[..BLOCK_SIZE], whole.split_off(BLOCK_SIZE));
    node.stop();
}

#[tokio::test]
async fn a_new_version_is_never_read_from_a_lease_of_the_old_one() {
    let scratch = Scratch::new();
    scratch.write("file", &content::versioned(1, 2 * BLOCK_SIZE));
    let node = options(&scratch, 1).start();
    let client = node.client_with(config()).await;
    let mut version = 0;
    for round in 1..20 {
        let file = client.stat("file").await.expect("stat");
        assert_ne!(file.version, version);
        version = file.version;
        for _ in 0..3 {
            let read = client.read(&file, 0, u64::MAX).await.expect("read");
            assert_eq!(content::version_of(0, &read), Some(round));
        }
        scratch.replace("file", &content::versioned(round + 1, 2 * BLOCK_SIZE));
        // What was looked up before is still readable in place, as one version, or refused.
        if let Ok(read) = client.read(&file, 0, u64::MAX).await {
            assert_eq!(content::version_of(0, &read), Some(round));
        }
    }
    node.stop();
}

/// Changes the file and leases its new version while the old one is still being read where it lies.
#[test]
fn a_lease_outlives_its_version_whose_next_one_is_leased_too() {
    let scratch = Scratch::new();
    scratch.write("file", &content::versioned(1, BLOCK_SIZE));
    scratch.file("churn", 400 * BLOCK_SIZE);
    let node = options(&scratch, 1).set("memory", "8MiB").set("lease_ms", 5_000).start();
    let client = blocking::Client::connect(node.address().to_string(), config()).expect("connect");
    let far = ClientConfig { local: false, ..config() };
    let far = blocking::Client::connect(node.address().to_string(), far).expect("connect");
    let churn = far.stat("churn").expect("stat");
    let mut leases = Vec::new();
    for version in 1..3 {
        let file = client.stat("file").expect("stat");
        let lease = client.lease(&file, 0, 1).expect("lease").remove(0).expect("a lease");
        leases.push((version, lease));
        scratch.replace("file", &content::versioned(version + 1, BLOCK_SIZE));
    }
    let (mut held, mut target) = (0, vec![0; BLOCK_SIZE]);
    for _ in 0..3 {
        content::check("churn", 0, &far.read(&churn, 0, u64::MAX).expect("read"));
        for (version, lease) in &leases {
            if lease.copy(0, &mut target) {
                held += 1;
                assert_eq!(content::version_of(0, &target), Some(*version));
            }
        }
    }
    // A slow machine may make no copy under a lease.
    println!("{held} copies of 6 under a lease that held");
    assert!(node.counter("evicted_count") > 100);
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_on_the_machine_of_a_cluster_lease_from_every_node_and_outlive_each() {
    const FILES: u64 = 12;
    let scratch = Scratch::new();
    for index in 0..FILES {
        scratch.file(&format!("f{index}"), 3 * BLOCK_SIZE);
    }
    let coord = Ensemble::single(Options::new().line("tickTime", 250));
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", scratch.root());
    for _ in 0..3 {
        let member = cluster.add();
        member.set("socket", "auto");
        member.start();
    }
    cluster.wait_settled();
    let client = cluster.client_with(config()).await;
    let mut files = Vec::new();
    for index in 0..FILES {
        files.push(warm(&client, &format!("f{index}")).await);
    }
    for member in &mut cluster.members {
        assert!(member.counter("lease_count") > 0, "none of {}", member.id());
    }
    let mut block = vec![0; BLOCK_SIZE];
    for file in &files {
        assert!(client.read_leased(file, BLOCK, &mut block), "{}", &file.path);
        content::check(&file.path, BLOCK, &block);
    }
    // A client with leases from a node that dies reads on from another one, and leases there.
    cluster.members[1].kill();
    for file in &files {
        let read = client.read(file, 0, u64::MAX).await.expect("read");
        content::check(&file.path, 0, &read);
    }
    wait_until("the ring follows", || client.cluster().is_some_and(|it| it.members.len() == 2));
    cluster.wait_settled();
    for file in &files {
        warm(&client, &file.path).await;
        assert!(client.read_leased(file, BLOCK, &mut block), "{}", &file.path);
        content::check(&file.path, BLOCK, &block);
    }
    // It comes back with another memory, and old leases are not read there. What other nodes lease stays
    // where it is for as long as it is used.
    cluster.members[1].start();
    cluster.wait_settled();
    wait_until("the ring follows", || client.cluster().is_some_and(|it| it.members.len() == 3));
    for file in &files {
        warm(&client, &file.path).await;
    }
}
