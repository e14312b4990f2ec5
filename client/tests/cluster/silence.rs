//! Nodes that keep silent, at any step, beside some healthy ones.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_client::Client;
use millrace_proto::Op;

use crate::fake::{BLOCK_COUNT, Cluster, LENGTH, Mood, content};
use crate::{BLOCK, GUARD, config, connect, epoch, read_all, wait_until};

/// Returns the addresses of these members, in this order.
fn addresses(cluster: &Cluster, order: &[usize]) -> String {
    let addresses: Vec<_> =
        order.iter().map(|&index| cluster.fakes[index].address.as_str()).collect();
    addresses.join(",")
}

#[tokio::test]
async fn an_address_that_falls_silent_at_any_step_is_left_for_the_next_one() {
    for answered in 0..8 {
        let cluster = Cluster::start(3, 1).await;
        cluster.fakes[0].set_mood(Mood::Answers(answered));
        let start = Instant::now();
        let client = Client::connect(addresses(&cluster, &[0, 2]), config()).await.unwrap();
        read_all(&client, &client.stat("a").await.unwrap()).await;
        let elapsed = start.elapsed();
        assert!(elapsed < GUARD / 4, "silent after {answered} answers: {elapsed:?}");
    }
}

#[tokio::test]
async fn of_many_addresses_one_that_answers_is_enough() {
    let cluster = Cluster::start(24, 1).await;
    for fake in &cluster.fakes[..23] {
        fake.set_mood(Mood::Paused);
    }
    let order: Vec<_> = (0..24).collect();
    let start = Instant::now();
    let client = Client::connect(addresses(&cluster, &order), config()).await.unwrap();
    assert_eq!(client.hello().server, "n23");
    client.stat("a").await.unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed < GUARD / 4, "{elapsed:?}");
}

#[tokio::test]
async fn members_that_hang_cost_little_however_many_they_are() {
    let mut all = Duration::ZERO;
    for lively in 0..8 {
        let cluster = Cluster::start(8, 1).await;
        let client = connect(&cluster).await;
        let file = client.stat("a").await.unwrap();
        for (index, fake) in cluster.fakes.iter().enumerate() {
            fake.set_mood(if index == lively { Mood::Honest } else { Mood::Paused });
        }
        let start = Instant::now();
        for path in ["a", "b", "dir/c", "d"] {
            client.stat(path).await.unwrap();
        }
        read_all(&client, &file).await;
        client.status().await.unwrap();
        all += start.elapsed();
    }
    assert!(all < GUARD / 2, "{all:?}");
}

#[tokio::test]
async fn the_addresses_are_remembered_for_good() {
    // The node that was connected to is not in its cluster yet, and then hangs with a request.
    let cluster = Cluster::start(3, 1).await;
    cluster.tell(0, |_| false);
    let client = Client::connect(addresses(&cluster, &[0, 1]), config()).await.unwrap();
    let file = client.stat("a").await.unwrap();
    let home: usize = client.hello().server[1..].parse().unwrap();
    cluster.fakes[home].set_mood(Mood::Paused);
    let ranges: Vec<_> = (0..4).map(|block| (&file, block * BLOCK, 700)).collect();
    let start = Instant::now();
    let (read, many, looked_up, ()) = tokio::join!(
        client.read(&file, 0, u64::MAX),
        client.read_many(&ranges),
        client.stat("b"),
        async { cluster.tell(1, |index| index != home) }
    );
    assert!(read.unwrap() == content("a"));
    assert!(many.into_iter().all(|it| it.is_ok_and(|bytes| bytes.len() == 700)));
    assert_eq!(looked_up.unwrap().length, LENGTH as u64);
    let elapsed = start.elapsed();
    assert!(elapsed < GUARD / 2, "{elapsed:?}");
    assert_eq!((epoch(&client), client.cluster().unwrap().members.len()), (1, 2));
    // All known members go; one of the addresses leads to another one.
    let mut cluster = Cluster::start(3, 1).await;
    cluster.tell(1, |index| index != 2);
    let client = Client::connect(addresses(&cluster, &[0, 2]), config()).await.unwrap();
    assert_eq!(client.cluster().unwrap().members.len(), 2);
    cluster.fakes[2].state.ring.send_replace(cluster.ring(2, |index| index == 2));
    for index in [0, 1] {
        cluster.fakes[index].kill().await;
    }
    read_all(&client, &file).await;
    assert_eq!(epoch(&client), 2);
}

#[tokio::test]
async fn a_stopped_member_costs_one_wait_and_comes_back() {
    let cluster = Cluster::start(3, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    let victim = cluster.owners("a", |_| true)[3];
    cluster.fakes[victim].set_mood(Mood::Paused);
    read_all(&client, &file).await;
    let is_suspect = || client.cluster().unwrap().members[victim].is_suspect;
    assert!(is_suspect());
    cluster.forget_asked();
    read_all(&client, &file).await;
    assert_eq!(cluster.counts(Op::Read)[victim], 0);
    cluster.fakes[victim].set_mood(Mood::Honest);
    wait_until("it is trusted again", || !is_suspect()).await;
    cluster.forget_asked();
    read_all(&client, &file).await;
    assert!(cluster.counts(Op::Read)[victim] > 0);
}

#[tokio::test]
async fn look_ups_and_batches_pass_a_stopped_member() {
    let cluster = Cluster::start(4, 1).await;
    let client = connect(&cluster).await;
    let file = client.stat("a").await.unwrap();
    for victim in 0..4 {
        cluster.fakes[victim].set_mood(Mood::Paused);
        let ranges: Vec<_> =
            (0..BLOCK_COUNT as u64).map(|block| (&file, block * BLOCK, 700)).collect();
        let whole = content("a");
        for (result, range) in client.read_many(&ranges).await.into_iter().zip(&ranges) {
            assert!(result.unwrap() == whole[range.1 as usize..][..700]);
        }
        for path in ["a", "b", "dir/c", "d"] {
            assert_eq!(client.stat(path).await.unwrap().length, LENGTH as u64);
        }
        assert_eq!(client.list("").await.unwrap().len(), 4);
        cluster.fakes[victim].set_mood(Mood::Honest);
    }
}

/// Uses two nodes that are each a cluster of its own, and serve the same directory.
#[tokio::test]
async fn another_cluster_is_entered_with_its_own_block_size() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.tell(1, |index| index == 0);
    let mut other = cluster.ring(1, |index| index == 1);
    other.cluster = "other".to_owned();
    cluster.fakes[1].state.ring.send_replace(other);
    cluster.fakes[1].state.block_size.store(2 * BLOCK as u32, Ordering::Relaxed);
    let client = Client::connect(addresses(&cluster, &[0, 1]), config()).await.unwrap();
    assert_eq!(u64::from(client.hello().block_size), BLOCK);
    cluster.fakes[0].kill().await;
    wait_until("it is in the other one", || client.cluster().is_some_and(|it| it.id == "other"))
        .await;
    assert_eq!(u64::from(client.hello().block_size), 2 * BLOCK);
}
