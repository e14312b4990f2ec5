//! The client against members of a cluster that fail one way at a time. The name of a test is its claim;
//! times are guards against hanging, never claims about speed.

mod fake;
mod silence;
mod source;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use fake::{BLOCK_COUNT, BLOCK_SIZE, Cluster, Fake, LENGTH, Mood, RingTold, content};
use millrace_client::{Client, ClientConfig, Error, File, MountInfo, ReadOptions, Status};
use millrace_proto::{Op, feature};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// How long a test waits for something that should come soon.
const GUARD: Duration = Duration::from_secs(20);

fn config() -> ClientConfig {
    ClientConfig {
        deadline: GUARD,
        attempt_timeout: Duration::from_millis(100),
        reconnect_backoff_min: Duration::from_millis(5),
        reconnect_backoff_max: Duration::from_millis(50),
        ..ClientConfig::new()
    }
}

async fn connect(cluster: &Cluster) -> Client {
    Client::connect(&*cluster.fakes[0].address, config()).await.unwrap()
}

/// As [`connect`], for a client that may change things at all members.
async fn connect_to_change(cluster: &Cluster) -> Client {
    let addresses: Vec<_> = cluster.fakes.iter().map(|fake| &*fake.address).collect();
    let config = ClientConfig { admin: Some(addresses.join(",")), ..config() };
    Client::connect(&*cluster.fakes[0].address, config).await.unwrap()
}

/// Reads every block of a file by itself and checks the bytes.
async fn read_all(client: &Client, file: &File) {
    let content = content(&file.path);
    for block in 0..BLOCK_COUNT {
        let start = block * BLOCK_SIZE as usize;
        let bytes = client.read(file, start as u64, 1000).await.unwrap();
        assert!(bytes == content[start..start + 1000], "block {block}");
    }
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < GUARD, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn epoch(client: &Client) -> u64 {
    client.cluster().map_or(0, |cluster| cluster.epoch)
}

#[tokio::test]
async fn each_block_is_read_at_its_owner() {
    let cluster = Cluster::start(5, 1).await;
    let client = connect(&cluster).await;
    let told = client.cluster().unwrap();
    assert_eq!((&*told.id, told.epoch, told.master.as_deref()), ("fake", 1, Some("n0")));
    assert_eq!(told.members.len(), 5, "over three pages");
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    let owners = cluster.owners("a", |_| true);
    for (index, fake) in cluster.fakes.iter().enumerate() {
        let asked = fake.state.asked.lock().unwrap();
        for (_, block) in asked.iter().filter(|(op, _)| *op == Op::Read) {
            assert_eq!(owners[*block as usize], index);
        }
    }
    assert_eq!(cluster.counts(Op::Read).iter().sum::<usize>(), BLOCK_COUNT);
    let bytes = client.read(&file, 0, u64::MAX).await.unwrap();
    assert!(bytes == content("a"));
    assert_eq!(client.list("").await.unwrap().len(), 4);
}

#[tokio::test]
async fn killed_members_are_gone_round() {
    let mut cluster = Cluster::start(4, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    // One of them is the member that was connected to first.
    for index in [0, 2, 1] {
        cluster.fakes[index].kill().await;
        read_all(&client, &file).await;
        assert!(client.read(&file, 0, u64::MAX).await.unwrap() == content("a"));
        assert_eq!(client.stat("dir/c").await.unwrap().length, LENGTH as u64);
        client.status().await.unwrap();
        client.ping().await.unwrap();
    }
    assert_eq!(client.status().await.unwrap().server, "n3");
    let missing = client.stat("nothing").await.unwrap_err();
    assert_eq!(missing.status(), Some(Status::NotFound));
    let hasty = client.with_deadline(Duration::from_millis(300));
    cluster.fakes[3].kill().await;
    assert!(hasty.read(&file, 0, 10).await.is_err());
    // It comes back, as it was.
    let again = Fake::start_at(&cluster.fakes[3].address, "n3", feature::ALL).await;
    again.state.ring.send_replace(cluster.ring(1, |_| true));
    read_all(&client, &file).await;
}

#[tokio::test]
async fn of_a_member_that_stops_in_a_payload_no_byte_is_mixed_in() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    let whole = content("a");
    for victim in [1, 2] {
        cluster.fakes[victim].set_mood(Mood::Half);
        let mut buffer = BytesMut::with_capacity(LENGTH + 6);
        buffer.put_slice(b"prefix");
        let buffer = client.read_into(&file, 0, buffer, u64::MAX).await.unwrap();
        assert!(buffer[..6] == *b"prefix" && buffer[6..] == *whole);
        assert_eq!(*cluster.fakes[victim].state.mood.borrow(), Mood::Paused);
        // What was left of the first answers comes now.
        cluster.fakes[victim].set_mood(Mood::Honest);
        assert!(client.read(&file, 0, u64::MAX).await.unwrap() == whole);
        assert!(buffer[6..] == *whole);
    }
}

#[tokio::test]
async fn what_a_member_cannot_answer_another_one_does() {
    let moods = [
        Mood::Refuses(Status::ShuttingDown),
        Mood::Refuses(Status::Busy),
        Mood::Refuses(Status::SourceError),
        Mood::Refuses(Status::Corrupt),
        Mood::Refuses(Status::Internal),
        Mood::Damaged,
    ];
    for mood in moods {
        let cluster = Cluster::start(2, 1).await;
        let client = connect(&cluster).await;
        let file = client.stat("a").await.unwrap();
        cluster.fakes[1].set_mood(mood);
        read_all(&client, &file).await;
        let ranges: Vec<_> =
            (0..BLOCK_COUNT as u64).map(|block| (&file, block * BLOCK, 700)).collect();
        for result in client.read_many(&ranges).await {
            assert_eq!(result.unwrap().len(), 700, "{mood:?}");
        }
    }
}

#[tokio::test]
async fn what_one_member_denies_another_one_tells() {
    let moods = [
        Mood::Blind,
        Mood::Refuses(Status::NotFound),
        Mood::Refuses(Status::PermissionDenied),
        Mood::Refuses(Status::WrongKind),
        Mood::Refuses(Status::StaleVersion),
    ];
    for mood in moods {
        let cluster = Cluster::start(3, 1).await;
        let client = connect(&cluster).await;
        for victim in [0, 1, 2] {
            cluster.fakes[victim].set_mood(mood);
            for path in ["a", "b", "dir/c", "d"] {
                read_all(&client, &client.stat(path).await.unwrap()).await;
            }
            let file = client.stat("a").await.unwrap();
            let ranges: Vec<_> =
                (0..BLOCK_COUNT as u64).map(|block| (&file, block * BLOCK, 700)).collect();
            for result in client.read_many(&ranges).await {
                assert_eq!(result.unwrap().len(), 700, "{mood:?}");
            }
            cluster.fakes[victim].set_mood(Mood::Honest);
        }
    }
}

#[tokio::test]
async fn what_one_member_denies_is_asked_of_another_one_until_it_is_less_busy() {
    let cluster = Cluster::start(2, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    let owner = cluster.owners("a", |_| true)[0];
    for (denier, busy) in [(owner, 1 - owner), (1 - owner, owner)] {
        cluster.fakes[denier].set_mood(Mood::Blind);
        cluster.fakes[busy].set_mood(Mood::Refuses(Status::Busy));
        let (read, ()) = tokio::join!(client.read(&file, 0, 10), async {
            wait_until("it is asked in vain", || cluster.counts(Op::Read)[busy] > 9).await;
            cluster.fakes[busy].set_mood(Mood::Honest);
        });
        assert!(read.unwrap() == content("a")[..10]);
        cluster.forget_asked();
    }
}

#[tokio::test]
async fn what_two_members_deny_or_all_that_there_are_is_the_answer() {
    for (members, expect) in [(1, 1), (2, 2), (5, 2)] {
        let mut cluster = Cluster::start(members, 1).await;
        let client = connect(&cluster).await;
        let file = client.stat("a").await.unwrap();
        let told = |cluster: &Cluster, op| cluster.counts(op).iter().sum::<usize>();
        cluster.forget_asked();
        let missing = client.stat("nothing").await.unwrap_err();
        assert_eq!(missing.status(), Some(Status::NotFound));
        assert_eq!(told(&cluster, Op::Stat), expect, "of {members}");
        for fake in &cluster.fakes {
            fake.state.version.store(2, Ordering::Relaxed);
        }
        let error = client.read(&file, 5, 10).await.unwrap_err();
        assert!(matches!(error, Error::Stale { .. }), "{error}");
        assert_eq!(told(&cluster, Op::Read), expect, "of {members}");
        // Members that are gone are neither waited for nor asked again.
        for fake in &mut cluster.fakes[1..] {
            fake.kill().await;
        }
        for _ in 0..3 {
            cluster.forget_asked();
            let missing = client.stat("nothing").await.unwrap_err();
            assert_eq!(missing.status(), Some(Status::NotFound));
            assert_eq!(told(&cluster, Op::Stat), 1);
        }
        let error = client.read(&file, 5, 10).await.unwrap_err();
        assert!(matches!(error, Error::Stale { .. }), "{error}");
    }
}

#[tokio::test]
async fn what_all_members_refuse_is_told() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    for fake in &cluster.fakes {
        fake.set_mood(Mood::Damaged);
    }
    let error = client.read(&file, 5, 10).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    for fake in &cluster.fakes {
        fake.set_mood(Mood::Honest);
        fake.state.version.store(2, Ordering::Relaxed);
    }
    let error = client.read(&file, 5, 10).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
}

#[tokio::test]
async fn members_that_do_not_know_a_file_look_it_up() {
    let cluster = Cluster::start(3, 1).await;
    for fake in &cluster.fakes {
        fake.state.forget_files();
    }
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    let ranges: Vec<_> = (0..BLOCK_COUNT as u64).map(|block| (&file, block * BLOCK, 700)).collect();
    for result in client.read_many(&ranges).await {
        assert_eq!(result.unwrap().len(), 700);
    }
    assert!(cluster.counts(Op::Read).iter().all(|&count| count == 0), "batches stay together");
    assert!(cluster.counts(Op::Stat).iter().sum::<usize>() <= 4);
    read_all(&client, &client.stat("b").await.unwrap()).await;
}

#[tokio::test]
async fn a_new_epoch_moves_reads_and_leaves_other_connections_alone() {
    let cluster = Cluster::start(4, 1).await;
    cluster.tell(1, |index| index < 3);
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    let connections = || {
        let count = |fake: &Fake| fake.state.connection_count.load(Ordering::Relaxed);
        cluster.fakes.iter().map(count).collect::<Vec<_>>()
    };
    let before = connections();
    assert_eq!(before[3], 0);
    cluster.tell(2, |index| index != 1);
    wait_until("the epoch is seen", || epoch(&client) == 2).await;
    cluster.forget_asked();
    read_all(&client, &file).await;
    let owners = cluster.owners("a", |index| index != 1);
    let expect: Vec<_> =
        (0..4).map(|index| owners.iter().filter(|&&owner| owner == index).count()).collect();
    assert_eq!(cluster.counts(Op::Read), expect);
    let after = connections();
    assert_eq!((before[0], before[2]), (after[0], after[2]), "the same lanes go on");
    assert_eq!(after[3], 1);
}

#[tokio::test]
async fn fenced_older_and_strange_rings_are_not_taken_over() {
    let cluster = Cluster::start(3, 1).await;
    cluster.tell(5, |_| true);
    let client = connect(&cluster).await;
    assert_eq!(epoch(&client), 5);
    let mut fenced = cluster.ring(6, |index| index == 0);
    fenced.is_fenced = true;
    let older = cluster.ring(4, |index| index == 1);
    let mut strange = cluster.ring(9, |index| index == 2);
    strange.cluster = "other".to_owned();
    for (fake, ring) in cluster.fakes.iter().zip([fenced, older, strange]) {
        fake.state.ring.send_replace(ring);
    }
    wait_until("all three were refused", || {
        let told = client.cluster().unwrap();
        told.refused.is_some() && told.members[2].is_suspect
    })
    .await;
    let told = client.cluster().unwrap();
    assert_eq!((&*told.id, told.epoch, told.members.len()), ("fake", 5, 3));
    // The member that left for another cluster is not asked any more.
    cluster.forget_asked();
    read_all(&client, &client.stat("a").await.unwrap()).await;
    assert_eq!(cluster.counts(Op::Read)[2], 0);
    for fake in &cluster.fakes {
        fake.state.ring.send_replace(cluster.ring(7, |index| index < 2));
    }
    wait_until("the next epoch counts", || epoch(&client) == 7).await;
}

#[tokio::test]
async fn a_member_that_loses_coordination_is_left_for_another_one() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    // The member that is followed is cut off with the rest; one alone goes on.
    let mut fenced = cluster.ring(1, |_| true);
    fenced.is_fenced = true;
    for survivor in [0, 1, 2] {
        let next = epoch(&client) + 1;
        for (index, fake) in cluster.fakes.iter().enumerate() {
            let told = RingTold { epoch: next - 1, ..fenced.clone() };
            let ring = if index == survivor { cluster.ring(next, |_| true) } else { told };
            fake.state.ring.send_replace(ring);
        }
        wait_until("the survivor is followed", || epoch(&client) == next).await;
    }
    read_all(&client, &client.stat("a").await.unwrap()).await;
    // A client that began while all are cut off knows what they knew, until one is not.
    for fake in &cluster.fakes {
        fake.state.ring.send_replace(fenced.clone());
    }
    let client = connect(&cluster).await;
    assert_eq!(client.cluster().unwrap().members.len(), 3);
    cluster.fakes[2].state.ring.send_replace(cluster.ring(2, |index| index == 2));
    wait_until("the next epoch is seen", || epoch(&client) == 2).await;
}

#[tokio::test]
async fn a_node_that_was_alone_may_begin_another_cluster() {
    let mut cluster = Cluster::start(1, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    cluster.fakes[0].kill().await;
    let again = Fake::start_at(&cluster.fakes[0].address, "new", feature::ALL).await;
    let mut told = cluster.ring(1, |_| false);
    told.cluster = "other".to_owned();
    // This is how nodes report that listen on any address.
    let port = again.address.rsplit_once(':').unwrap().1;
    let address = format!(":{port}");
    let shards = vec![address.clone()];
    told.members = vec![millrace_proto::cluster::Member { address, shards, ..again.told() }];
    again.state.ring.send_replace(told);
    read_all(&client, &file).await;
    wait_until("its cluster is seen", || client.cluster().unwrap().id == "other").await;
    read_all(&client, &file).await;
    assert_eq!(client.status().await.unwrap().server, "new");
}

#[tokio::test]
async fn a_hedged_read_asks_the_next_member_early() {
    let cluster = Cluster::start(2, 1).await;
    let patient = ClientConfig { attempt_timeout: GUARD, ..config() };
    let client = Client::connect(&*cluster.fakes[0].address, patient).await.unwrap();
    let file = client.stat("a").await.unwrap();
    let owner = cluster.owners("a", |_| true)[0];
    cluster.fakes[owner].set_mood(Mood::Paused);
    let hedge = Some(Duration::from_millis(20));
    let options = ReadOptions { hedge, ..ReadOptions::default() };
    let bytes = client.read_with(&file, 0, 5000, options).await.unwrap();
    assert!(bytes == content("a")[..5000]);
    assert!(!client.cluster().unwrap().members[owner].is_suspect, "it had no time yet");
    assert_eq!(cluster.counts(Op::Read)[1 - owner], 1);
}

#[tokio::test]
async fn a_member_that_is_slow_but_alive_is_not_shunned() {
    let cluster = Cluster::start(2, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    for fake in &cluster.fakes {
        fake.set_mood(Mood::Slow(250));
    }
    assert!(client.read(&file, 0, 5000).await.unwrap() == content("a")[..5000]);
    wait_until("a ping was answered", || {
        client.cluster().unwrap().members.iter().all(|member| !member.is_suspect)
    })
    .await;
}

#[tokio::test]
async fn reads_of_replicated_blocks_are_spread() {
    let cluster = Cluster::start(3, 3).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    cluster.forget_asked();
    for _ in 0..60 {
        client.read(&file, 0, 10).await.unwrap();
    }
    assert!(cluster.counts(Op::Read).iter().all(|&count| count > 0));
    // The zone of the client comes first.
    let cluster = Cluster::start(3, 3).await;
    let mut ring = cluster.ring(1, |_| true);
    ring.members[1].zone = "here".to_owned();
    cluster.fakes[0].state.ring.send_replace(ring);
    let zoned = ClientConfig { zone: Some("here".to_owned()), ..config() };
    let client = Client::connect(&*cluster.fakes[0].address, zoned).await.unwrap();
    let file = client.stat("a").await.unwrap();
    for block in 0..10 {
        client.read(&file, block * BLOCK, 10).await.unwrap();
    }
    assert_eq!(cluster.counts(Op::Read), [0, 10, 0]);
}

#[tokio::test]
async fn the_first_address_that_works_leads_in() {
    let cluster = Cluster::start(3, 1).await;
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let seeds = format!("{closed}, {}", cluster.fakes[1].address);
    let client = Client::connect(seeds, config()).await.unwrap();
    assert_eq!(client.hello().server, "n1");
    read_all(&client, &client.stat("a").await.unwrap()).await;
    let error = Client::connect(format!("{closed},{closed}"), config()).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn nothing_is_left_of_a_client_that_is_dropped() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let cluster = Cluster::start(3, 1).await;
    let before = tasks();
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    cluster.fakes[1].set_mood(Mood::Paused);
    read_all(&client, &file).await;
    cluster.fakes[1].set_mood(Mood::Honest);
    drop(client.clone());
    assert!(tasks() > before);
    drop(client);
    wait_until("all tasks have ended", || tasks() <= before).await;
}

#[tokio::test]
async fn a_node_that_does_not_know_its_cluster_yet_is_asked_again() {
    let cluster = Cluster::start(3, 1).await;
    cluster.tell(0, |_| false);
    let client = connect(&cluster).await;
    assert!(client.cluster().is_none());
    let file = client.stat("a").await.unwrap();
    read_all(&client, &file).await;
    assert_eq!(cluster.counts(Op::Read)[0], BLOCK_COUNT);
    let before = cluster.fakes[0].state.connection_count.load(Ordering::Relaxed);
    cluster.tell(3, |_| true);
    wait_until("the epoch is seen", || epoch(&client) == 3).await;
    cluster.forget_asked();
    read_all(&client, &file).await;
    assert!(cluster.counts(Op::Read)[1] > 0);
    let after = cluster.fakes[0].state.connection_count.load(Ordering::Relaxed);
    assert_eq!(before, after, "its lane goes on");
}

#[tokio::test]
async fn a_member_that_is_started_anew_is_left_for_one_that_knows() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    for starting in [0, 1, 2] {
        let next = epoch(&client) + 1;
        // The member that was followed is among those that know nothing.
        for (index, fake) in cluster.fakes.iter().enumerate() {
            let epoch = if index == starting { next } else { 0 };
            fake.state.ring.send_replace(cluster.ring(epoch, |_| epoch > 0));
        }
        wait_until("the one that knows is followed", || epoch(&client) == next).await;
    }
}

#[tokio::test]
async fn a_member_without_an_address_is_passed_over() {
    let cluster = Cluster::start(3, 1).await;
    let mut ring = cluster.ring(2, |_| true);
    ring.members[1].address.clear();
    ring.members[1].shards.clear();
    for fake in &cluster.fakes {
        fake.state.ring.send_replace(ring.clone());
    }
    let client = connect(&cluster).await;
    let ids: Vec<_> = client.cluster().unwrap().members.into_iter().map(|it| it.id).collect();
    assert_eq!(ids, ["n0", "n2"]);
    read_all(&client, &client.stat("a").await.unwrap()).await;
    assert_eq!(client.statuses().await.len(), 2);
    // It does not help either if the ring names nothing else.
    ring.members.drain(..1);
    ring.members.truncate(1);
    ring.epoch = 3;
    cluster.fakes[0].state.ring.send_replace(ring);
    read_all(&client, &client.stat("a").await.unwrap()).await;
    assert_eq!(epoch(&client), 2);
}

#[tokio::test]
async fn a_node_outside_of_a_cluster_is_not_asked_about_one() {
    let fake = Fake::start("alone", feature::ALL & !feature::CLUSTER & !feature::LEASES).await;
    let client = Client::connect(&*fake.address, config()).await.unwrap();
    read_all(&client, &client.stat("a").await.unwrap()).await;
    assert_eq!(fake.state.count(Op::Ring), 0);
    assert!(client.cluster().is_none());
    let statuses = client.statuses().await;
    assert_eq!((statuses.len(), &*statuses[0].0), (1, &*fake.address));
    let error = client.drain("n1").await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    // A member that offers it and does not keep to that is like one that does not offer it.
    let fake = Fake::start("odd", feature::ALL & !feature::LEASES).await;
    let client = Client::connect(&*fake.address, config()).await.unwrap();
    read_all(&client, &client.stat("a").await.unwrap()).await;
}

#[tokio::test]
async fn load_and_status_are_asked_of_all_members() {
    let mut cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    let loaded = client.load("a").await.unwrap();
    assert_eq!((loaded.block_count, loaded.filled_count), (15, 6));
    let statuses = client.statuses().await;
    let ids: Vec<_> = statuses.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["n0", "n1", "n2"]);
    assert!(statuses.iter().all(|(id, status)| status.as_ref().unwrap().server == *id));
    // In the next epoch the others have the part of a member that is gone.
    cluster.fakes[2].kill().await;
    assert!(client.statuses().await[2].1.is_err());
    let (loaded, ()) = tokio::join!(client.load("a"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.tell(2, |index| index < 2);
    });
    assert_eq!(loaded.unwrap().block_count, 10);
}

#[tokio::test]
async fn changes_are_asked_for_at_one_place_after_the_other() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect_to_change(&cluster).await;
    let freed = client.free("a").await.unwrap();
    assert_eq!((freed.block_count, freed.byte_count), (3, 30), "it asks the others by itself");
    client.drain("n2").await.unwrap();
    assert_eq!(cluster.counts(Op::Drain), [1, 0, 0]);
    // Another one is elected; the epoch stays.
    for fake in &cluster.fakes {
        fake.state.ring.send_modify(|ring| ring.master = "n1".to_owned());
    }
    let mount = MountInfo::new("x", "file:///x", 2);
    client.mount(&mount).await.unwrap();
    assert_eq!(cluster.counts(Op::Mount), [1, 1, 0]);
    let error = client.mount(&MountInfo::new("x", "file:///x", 9)).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

#[tokio::test]
async fn the_master_pins_and_any_member_tells_what_is_pinned() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect_to_change(&cluster).await;
    for fake in &cluster.fakes {
        fake.state.ring.send_modify(|ring| ring.master = "n1".to_owned());
    }
    client.pin("x").await.unwrap();
    client.unpin("x").await.unwrap();
    assert_eq!(cluster.counts(Op::Pin)[1], 2);
    assert_eq!(client.pins().await.unwrap(), ["x"]);
}

#[tokio::test]
async fn a_removal_that_may_have_been_made_is_not_missing_afterwards() {
    let cluster = Cluster::start(1, 1).await;
    let client = connect_to_change(&cluster).await;
    let decide = |status: &[Status]| {
        cluster.fakes[0].state.decisions.lock().unwrap().extend(status);
    };
    decide(&[Status::Fenced, Status::NotFound]);
    client.unpin("x").await.unwrap();
    decide(&[Status::Fenced, Status::NotFound]);
    client.unmount("x").await.unwrap();
    // A change that was never tried, or surely not made, is missing; so is the node that a drain names.
    for told in [&[Status::NotFound][..], &[Status::NotMaster, Status::NotFound]] {
        decide(told);
        let error = client.unpin("x").await.unwrap_err();
        assert_eq!(error.status(), Some(Status::NotFound));
    }
    decide(&[Status::Fenced, Status::NotFound]);
    let error = client.undrain("n7").await.unwrap_err();
    assert_eq!(error.status(), Some(Status::NotFound));
}

#[tokio::test]
async fn a_master_is_not_looked_for_past_the_deadline() {
    let mut cluster = Cluster::start(5, 1).await;
    let client = connect_to_change(&cluster).await;
    for fake in &cluster.fakes[1..] {
        fake.set_mood(Mood::Paused);
    }
    cluster.fakes[0].kill().await;
    let start = Instant::now();
    let hasty = client.with_deadline(Duration::from_millis(300));
    let error = hasty.pin("x").await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. } | Error::ConnectionLost { .. }), "{error}");
    assert!(start.elapsed() < GUARD / 4, "each of the others would take two seconds");
}
