//! Reads go on, whatever happens to the nodes and to coordination: none fails, no byte is wrong.

use std::time::Duration;

use millrace_client::{Client, ClientConfig, File};
use millrace_tests::cluster::Cluster;
use millrace_tests::gate::GateState;
use millrace_tests::load::Load;
use millrace_tests::{Scratch, heavy, wait_until};
use tokio::runtime::Runtime;

const FILES: usize = 24;
const LENGTH: usize = 300_000;

/// A cluster of three under load.
struct Story {
    _scratch: Scratch,
    cluster: Cluster,
    load: Load,
    client: Client,
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

async fn look_up(client: &Client) -> Vec<File> {
    let mut files = Vec::new();
    for index in 0..FILES {
        files.push(client.stat(&format!("f{index}")).await.expect("a file"));
    }
    files
}

impl Story {
    fn new(replicas: u64, nodes: usize) -> Story {
        let scratch = Scratch::new();
        for index in 0..FILES {
            scratch.file(&format!("f{index}"), LENGTH);
        }
        let mut cluster = Cluster::start(replicas, nodes, scratch.root());
        cluster.wait_settled();
        let runtime = runtime();
        let (client, files) = runtime.block_on(async {
            // The deadline is so long that only a hang would fail a read, which is what this test looks
            // for.
            let config = ClientConfig { deadline: Duration::from_secs(30), ..ClientConfig::new() };
            let client = cluster.client_with(config).await;
            let files = look_up(&client).await;
            (client, files)
        });
        let load = Load::start(runtime, &client, &files, (4, 100_000, Duration::from_millis(2)));
        load.begin("calm");
        let mut story = Story { _scratch: scratch, cluster, load, client };
        story.read_on();
        story
    }

    /// Waits for some hundred reads.
    fn read_on(&mut self) {
        let enough = self.load.reads() + 300;
        wait_until("reads go on", || self.load.reads() >= enough || self.load.is_broken());
    }

    fn end(self) {
        let outcome = self.load.stop();
        assert_eq!(outcome.failed(), 0, "{:#?}", outcome.failures);
        assert_eq!(self.client.fallback_count(), 0, "the nodes answered all of them");
    }

    fn members(&self) -> usize {
        self.client.cluster().expect("a cluster").members.len()
    }
}

#[test]
fn a_node_is_killed_and_comes_back() {
    let _alone = heavy();
    let mut story = Story::new(1, 3);
    story.cluster.members[1].kill();
    story.read_on();
    wait_until("the client knows", || story.members() == 2);
    story.read_on();
    story.cluster.members[1].start();
    wait_until("the client knows", || story.members() == 3);
    story.read_on();
    story.end();
}

#[test]
fn a_node_hangs_and_wakes_up() {
    let _alone = heavy();
    let mut story = Story::new(1, 3);
    story.cluster.members[0].pause();
    story.read_on();
    story.read_on();
    story.cluster.members[0].resume();
    story.read_on();
    story.cluster.wait_settled();
    story.read_on();
    story.end();
}

#[test]
fn a_node_is_cut_off_from_its_clients() {
    let _alone = heavy();
    let mut story = Story::new(1, 3);
    for state in [GateState::Broken, GateState::Stalled] {
        story.cluster.members[2].set_clients(state);
        story.read_on();
        story.cluster.members[2].set_clients(GateState::Open);
        story.read_on();
    }
    story.end();
}

#[test]
fn nodes_are_cut_off_from_coordination_and_all_of_it_dies() {
    let _alone = heavy();
    let mut story = Story::new(3, 3);
    story.cluster.members[0].set_coord(GateState::Stalled);
    wait_until("it is out", || story.members() == 2);
    story.read_on();
    story.cluster.members[0].set_coord(GateState::Open);
    wait_until("it is back", || story.members() == 3);
    let coord = story.cluster.coord.as_mut().expect("coordination");
    coord.replicas.iter_mut().for_each(|replica| replica.kill());
    wait_until("all are fenced", || story.cluster.sum("cluster_fenced") == 3);
    story.read_on();
    assert_eq!(story.members(), 3, "the ring stays");
    story.cluster.coord.as_mut().expect("coordination").start_all();
    story.cluster.wait_settled();
    story.read_on();
    story.end();
}

#[test]
fn every_process_is_restarted_one_after_the_other() {
    let _alone = heavy();
    let mut story = Story::new(3, 3);
    for index in 0..3 {
        story.cluster.members[index].stop();
        story.read_on();
        story.cluster.members[index].start();
        story.cluster.wait_settled();
        story.read_on();
    }
    for index in 0..3 {
        let coord = story.cluster.coord.as_mut().expect("coordination");
        coord.replicas[index].stop();
        story.read_on();
        let coord = story.cluster.coord.as_mut().expect("coordination");
        coord.replicas[index].start();
        coord.wait_leader();
        story.read_on();
    }
    story.cluster.wait_settled();
    story.end();
}
