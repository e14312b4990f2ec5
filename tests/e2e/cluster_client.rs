//! How a client finds its cluster through coordination and again when all of it moved, and what it can
//! still do when no node answers.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig, Error, File, ReadOptions};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options, free_ports};
use millrace_tests::gate::{Gate, GateState};
use millrace_tests::process::program;
use millrace_tests::{HANG_GUARD, Scratch, content, heavy, starts, wait_until};
use tokio::runtime::Runtime;

const FILES: usize = 8;
const LENGTH: usize = 200_000;
/// How much sooner than its deadline an operation may end, because the next try would come too
/// late: the longest back-off.
const EARLY_MAX: Duration = Duration::from_millis(250);

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for index in 0..FILES {
        scratch.file(&format!("f{index}"), LENGTH);
    }
    scratch
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

fn config() -> ClientConfig {
    ClientConfig { deadline: HANG_GUARD, connect_timeout: HANG_GUARD / 4, ..ClientConfig::new() }
}

async fn connect(cluster: &Cluster) -> Client {
    Client::connect(cluster.place(), config()).await.expect("connect through coordination")
}

async fn refused(address: &str, connect_timeout: Duration) -> Error {
    let config = ClientConfig { connect_timeout, ..config() };
    Client::connect(address, config).await.expect_err("there is nothing to connect to")
}

async fn look_up(client: &Client) -> Vec<File> {
    let mut files = Vec::new();
    for index in 0..FILES {
        files.push(client.stat(&format!("f{index}")).await.expect("a file"));
    }
    files
}

async fn read_all(client: &Client, files: &[File], options: ReadOptions) {
    for file in files {
        let bytes = client.read_with(file, 0, u64::MAX, options).await.expect("a read");
        assert_eq!(bytes.len(), LENGTH);
        content::check(&file.path, 0, &bytes);
    }
}

fn ids(client: &Client) -> Vec<String> {
    let members = client.cluster().expect("a cluster").members;
    let mut ids: Vec<_> = members.into_iter().map(|member| member.id).collect();
    ids.sort();
    ids
}

#[test]
fn a_client_finds_its_cluster_through_coordination_and_does_not_stay_there() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let coord = cluster.coord.as_ref().expect("coordination");
    let sessions = || coord.replicas[0].figure("zk_global_sessions");
    assert_eq!(sessions(), 2, "one for each node");
    // What is not a node is passed over.
    let mut by_hand = coord.replicas[0].client();
    Cluster::authorize(&mut by_hand);
    by_hand.make("/millrace/members/junk", b"\xff{").expect("make a node by hand");
    by_hand.make("/millrace/members/other", br#"{"address":7}"#).expect("make a node by hand");
    by_hand.close().expect("close");
    runtime().block_on(async {
        let client = connect(&cluster).await;
        read_all(&client, &look_up(&client).await, ReadOptions::default()).await;
        wait_until("the session is closed", || sessions() == 2);
        assert_eq!(ids(&client), ["node-1", "node-2"]);
        // Of several servers one is enough.
        let dead = free_ports(1).expect("a free port")[0];
        let place = cluster.place().replace("zk://", &format!("zk://127.0.0.1:{dead},"));
        let client = Client::connect(place, config()).await.expect("connect");
        assert_eq!(ids(&client), ["node-1", "node-2"]);
    });
    // The command line finds the same cluster.
    for (arguments, expect) in [(["fs", "ls"], "f0"), (["admin", "nodes"], "node-2")] {
        let mut command = Command::new(program().expect("a program to test"));
        command.args(arguments).args(["--node", &cluster.place()]).stdin(Stdio::null());
        let output = command.output().expect("run a verb");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains(expect), "{arguments:?}: {told}{errors}");
        assert_eq!(errors, "", "{arguments:?}");
    }
}

#[test]
fn wrong_paths_and_clusters_without_nodes_are_told() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    let place = cluster.place();
    let runtime = runtime();
    let error = runtime.block_on(refused(&place, HANG_GUARD));
    assert!(matches!(error, Error::NoCluster { .. }), "{error}");
    assert!(error.to_string().contains(&format!("no cluster at {place};")), "{error}");
    cluster.add().start();
    cluster.wait_settled();
    let error = runtime.block_on(refused(&format!("{place}/below"), HANG_GUARD));
    assert!(matches!(error, Error::NoCluster { .. }), "{error}");
    // The ring has no nodes.
    cluster.members[0].stop();
    let error = runtime.block_on(refused(&place, HANG_GUARD));
    assert!(matches!(error, Error::NoMembers { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{place} has no node")), "{error}");
    let replica = &cluster.coord.as_ref().expect("coordination").replicas[0];
    let mut by_hand = replica.client();
    Cluster::authorize(&mut by_hand);
    by_hand.make("/millrace/members/junk", b"{}").expect("make a node by hand");
    let error = runtime.block_on(refused(&place, HANG_GUARD));
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    by_hand.delete("/millrace/members/junk", -1).expect("take it out");
    cluster.members[0].start();
    runtime.block_on(async {
        let client = connect(&cluster).await;
        read_all(&client, &look_up(&client).await, ReadOptions::default()).await;
    });
}

#[test]
fn coordination_that_does_not_answer_is_told_in_time() {
    let dead = free_ports(1).expect("a free port")[0];
    let coord = Ensemble::single(Options::new());
    let gate = Gate::start(([127, 0, 0, 1], 0).into(), coord.addresses()[0]);
    gate.set(GateState::Stalled);
    let wait = Duration::from_secs(2);
    for server in [format!("127.0.0.1:{dead}"), gate.address().to_string()] {
        let start = Instant::now();
        let error = runtime().block_on(refused(&format!("zk://{server}/millrace"), wait));
        let elapsed = start.elapsed();
        assert!(matches!(error, Error::Coordination { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains(&format!("coordination at {server} cannot be asked")), "{told}");
        assert!(elapsed >= wait && elapsed < HANG_GUARD / 2, "{elapsed:?}");
    }
}

#[test]
fn servers_of_coordination_that_hang_cost_a_moment() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    let real = cluster.coord.as_ref().expect("coordination").addresses()[0];
    let gates = [(); 2].map(|()| Gate::start(([127, 0, 0, 1], 0).into(), real));
    gates.iter().for_each(|gate| gate.set(GateState::Stalled));
    let [first, second] = [gates[0].address(), gates[1].address()];
    let place = format!("zk://{first},{second},{real}/millrace");
    let start = Instant::now();
    runtime().block_on(async {
        // The order is random: each time a server that hangs may be the first.
        for _ in 0..12 {
            Client::connect(&*place, config()).await.expect("connect");
        }
    });
    // A client that waits for one server takes two seconds.
    let elapsed = start.elapsed();
    assert!(elapsed < HANG_GUARD / 6, "{elapsed:?}");
}

#[test]
fn coordination_may_die_once_the_cluster_was_found() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let files = look_up(&client).await;
        cluster.coord.as_mut().expect("coordination").replicas[0].kill();
        wait_until("all are fenced", || cluster.sum("cluster_fenced") == 2);
        read_all(&client, &files, ReadOptions::default()).await;
        cluster.members[1].kill();
        read_all(&client, &look_up(&client).await, ReadOptions::default()).await;
        let error = refused(&cluster.place(), Duration::from_secs(1)).await;
        assert!(matches!(error, Error::Coordination { .. }), "{error}");
        // Requests that fail while no node is there do no harm.
        cluster.members[0].kill();
        let hasty = client.with_deadline(Duration::from_secs(4));
        assert!(hasty.read(&files[0], 0, 1).await.is_err());
        cluster.coord.as_mut().expect("coordination").replicas[0].start();
        cluster.members[0].start();
        read_all(&client, &files, ReadOptions::default()).await;
    });
}

#[test]
fn a_client_follows_when_every_node_was_replaced() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let by_list = cluster.client().await;
        let files = look_up(&client).await;
        for generation in [["node-3", "node-4"], ["node-5", "node-6"]] {
            cluster.members.iter_mut().for_each(|member| member.kill());
            for _ in generation {
                cluster.add().start();
            }
            read_all(&client, &files, ReadOptions::default()).await;
            wait_until("the client knows the members", || ids(&client) == generation);
        }
        assert_eq!(client.fallback_count(), 0);
        let hasty = by_list.with_deadline(Duration::from_secs(1));
        let lost = hasty.read(&files[0], 0, 1).await;
        assert!(lost.is_err(), "a client with addresses knows no others");
    });
}

#[test]
fn without_nodes_the_source_is_read_or_the_deadline_tells() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        let roots = vec![scratch.root().to_owned()];
        let allowed = ClientConfig { fallback_roots: roots, ..config() };
        let allowed = cluster.client_with(allowed).await;
        let forbidden = connect(&cluster).await;
        let elsewhere = ClientConfig { fallback_roots: vec!["/usr".into()], ..config() };
        let elsewhere = cluster.client_with(elsewhere).await;
        let files = look_up(&allowed).await;
        read_all(&allowed, &files, ReadOptions::default()).await;
        assert_eq!(allowed.fallback_count(), 0, "the nodes answered");
        cluster.members.iter_mut().for_each(|member| member.kill());
        read_all(&allowed, &files, ReadOptions::default()).await;
        assert!(allowed.fallback_count() >= FILES as u64, "{}", allowed.fallback_count());
        let short =
            ReadOptions { deadline: Some(Duration::from_secs(1)), ..ReadOptions::default() };
        elsewhere.read_with(&files[0], 0, 10, short).await.expect_err("no node");
        let deadline = Duration::from_secs(3);
        let start = Instant::now();
        let options = ReadOptions { deadline: Some(deadline), ..ReadOptions::default() };
        let error = forbidden.read_with(&files[0], 0, 10, options).await.expect_err("no node");
        let elapsed = start.elapsed();
        assert!(elapsed + EARLY_MAX >= deadline, "given up after {elapsed:?}: {error}");
        assert!(elapsed < HANG_GUARD / 2, "{elapsed:?}");
        let is_clear = matches!(
            error,
            Error::Connect { .. } | Error::ConnectionLost { .. } | Error::NoHello { .. }
        );
        assert!(is_clear, "{error}");
        assert_eq!(forbidden.fallback_count(), 0);
        assert_eq!(elsewhere.fallback_count(), 0, "what is mounted lies below none of its roots");
    });
}

#[test]
fn a_file_that_is_being_read_is_read_on_from_a_source_that_the_flag_names() {
    let _alone = heavy();
    const LONG: usize = 24 << 20;
    let scratch = Scratch::new();
    scratch.file("long", LONG);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let mut command = Command::new(program().expect("a program to test"));
    command.args(["fs", "--node", &cluster.addresses(), "cat", "long", "--fallback-root"]);
    command.arg(scratch.root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("run a verb");
    let mut output = child.stdout.take().expect("standard output is piped");
    let mut bytes = vec![0; 1 << 20];
    output.read_exact(&mut bytes).expect("the first bytes");
    // The rest waits to be read, most of it in the nodes.
    cluster.members.iter_mut().for_each(|member| member.kill());
    output.read_to_end(&mut bytes).expect("the rest");
    assert!(child.wait().expect("wait for the verb").success());
    assert_eq!(bytes.len(), LONG);
    content::check("long", 0, &bytes);
}

/// Bounds a start by 2 s. `faults starts` measures what each start takes: 1.5 s at most of a thousand,
/// on two busy cores. A client that waits for each stopped node takes more than 2 s in one start of six.
#[test]
fn clients_start_beside_nodes_that_are_stopped() {
    let _alone = heavy();
    let seed = fastrand::u64(..);
    let outcome = starts::run(100, HANG_GUARD / 6, seed);
    assert!(outcome.failures.is_empty(), "seed {seed}: {:#?}", outcome.failures);
    assert_eq!(outcome.times.len(), 100);
    let most = outcome.quantile(0.9);
    assert!(most < Duration::from_secs(2), "seed {seed}: nine of ten within {most:?}");
}

#[test]
fn a_hedged_read_does_not_wait_for_a_node_that_hangs() {
    let _alone = heavy();
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    runtime().block_on(async {
        // Without a hedge one such node would cost the whole minute.
        let patient = ClientConfig { attempt_timeout: HANG_GUARD, ..config() };
        let client = cluster.client_with(patient).await;
        let files = look_up(&client).await;
        cluster.members[1].pause();
        let hedge = Some(Duration::from_millis(20));
        let start = Instant::now();
        read_all(&client, &files, ReadOptions { hedge, ..ReadOptions::default() }).await;
        let elapsed = start.elapsed();
        assert!(elapsed < HANG_GUARD / 2, "{elapsed:?}");
        cluster.members[1].resume();
    });
}
