//! Three replicas as real processes: what clients see when replicas die, pause, part and join.

use std::time::Duration;

use millrace_proto::zookeeper::{Error, Request, create_mode, event};
use millrace_tests::coord::{
    Client, Ensemble, Failure, LinkState, Options, attach_any, connect_any,
};
use millrace_tests::{HANG_GUARD, heavy, wait_until};

/// Writes nodes `/n/0` and so on through any server that serves.
fn write_nodes(client: &mut Client, numbers: std::ops::Range<u32>, data: &[u8]) {
    for number in numbers {
        client.make(&format!("/n/{number}"), data).expect("create");
    }
}

/// Connects a client whose sync has gone through `replica`, so that it sees all that was written before.
fn synced(ensemble: &Ensemble, replica: usize) -> Client {
    let mut client = ensemble.replicas[replica].client();
    client.sync().expect("sync");
    client
}

/// Writes through any server until one write is acknowledged.
fn write_until_acknowledged(ensemble: &Ensemble, path: &str, except: Option<usize>) {
    let mut addresses = ensemble.addresses();
    if let Some(except) = except {
        addresses.remove(except);
    }
    wait_until("a write is acknowledged", || {
        let mut client = connect_any(&addresses, 10_000);
        match client.set(path, b"later", -1) {
            Ok(_) => true,
            Err(Failure::Lost(_)) => false,
            Err(failure) => panic!("{failure:?}"),
        }
    });
}

#[test]
fn sessions_and_acknowledged_writes_survive_a_killed_replica_that_is_alone() {
    let mut ensemble = Ensemble::single(Options::new());
    let replica = &mut ensemble.replicas[0];
    let mut client = replica.client();
    client.make("/kept", b"1").expect("create");
    client.create("/mine", b"2", create_mode::EPHEMERAL).expect("create");
    for round in 0..3 {
        replica.kill();
        replica.start();
        let session = client.session();
        client = attach_any(&[replica.address()], session).expect("the session lives");
        assert_eq!(client.session().id, session.id);
        assert_eq!(client.get("/kept", false).expect("read").0.as_deref(), Some(&b"1"[..]));
        let owner = client.exists("/mine", false).expect("its ephemeral").ephemeral_owner;
        assert_eq!(owner, session.id, "round {round}");
    }
    client.close().expect("close");
    let mut other = replica.client();
    assert!(other.exists("/mine", false).is_err_and(|failure| failure.is(Error::NoNode)));
}

#[test]
fn a_clean_stop_keeps_everything_and_ends_well() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let mut client = connect_any(&ensemble.addresses(), 10_000);
    client.make("/n", b"").expect("create");
    write_nodes(&mut client, 0..20, b"x");
    drop(client);
    for replica in &mut ensemble.replicas {
        replica.stop();
    }
    ensemble.start_all();
    for index in 0..3 {
        assert_eq!(synced(&ensemble, index).children("/n", false).expect("list").len(), 20);
    }
}

#[test]
fn watches_fire_across_replicas_before_the_new_state_is_read() {
    let ensemble = Ensemble::start(3, Options::new());
    let mut writer = ensemble.replicas[0].client();
    writer.make("/watched", b"0").expect("create");
    let mut watchers: Vec<Client> = (0..3).map(|index| synced(&ensemble, index)).collect();
    for round in 1..20_u32 {
        for watcher in &mut watchers {
            watcher.get("/watched", true).expect("read");
        }
        let data = round.to_string();
        let zxid = writer.set("/watched", data.as_bytes(), -1).expect("write").mzxid;
        for watcher in &mut watchers {
            let event = watcher.event(HANG_GUARD).expect("a connection").expect("an event");
            assert_eq!((event.kind, &*event.path), (event::DATA_CHANGED, "/watched"));
            assert_eq!(event.zxid, zxid, "the event says which change it tells");
            let (read, _) = watcher.get("/watched", false).expect("read");
            assert_eq!(read.as_deref(), Some(data.as_bytes()), "what was told can be read");
        }
    }
    for watcher in &mut watchers {
        let more = watcher.event(Duration::from_millis(50)).expect("a connection");
        assert_eq!(more, None, "one event for each watch");
    }
}

#[test]
fn a_killed_follower_catches_up_from_the_log() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let leader = ensemble.wait_leader();
    let follower = (leader + 1) % 3;
    let mut client = ensemble.replicas[leader].client();
    client.make("/n", b"").expect("create");
    ensemble.replicas[follower].kill();
    write_nodes(&mut client, 0..300, b"while it was away");
    ensemble.replicas[follower].start();
    let names = synced(&ensemble, follower).children("/n", false).expect("list");
    assert_eq!(names.len(), 300);
}

#[test]
fn a_killed_leader_is_replaced_and_sessions_move_on() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let addresses = ensemble.addresses();
    let leader = ensemble.wait_leader();
    let mut client = ensemble.replicas[leader].client();
    client.make("/n", b"").expect("create");
    client.create("/mine", b"", create_mode::EPHEMERAL).expect("create");
    write_nodes(&mut client, 0..50, b"x");
    ensemble.replicas[leader].kill();
    let mut client = attach_any(&addresses, client.session()).expect("the session lives");
    write_nodes(&mut client, 50..100, b"x");
    client.exists("/mine", false).expect("its ephemeral node is there");
    ensemble.replicas[leader].start();
    let mut late = synced(&ensemble, leader);
    assert_eq!(late.children("/n", false).expect("list").len(), 100);
    client.close().expect("close");
    late.sync().expect("sync");
    assert!(late.exists("/mine", false).is_err_and(|failure| failure.is(Error::NoNode)));
}

#[test]
fn a_session_that_nobody_takes_up_expires_with_its_ephemerals() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let mut silent = connect_any(&ensemble.addresses(), 1000);
    silent.create("/silent", b"", create_mode::EPHEMERAL).expect("create");
    let leader = ensemble.wait_leader();
    // The new leader gives the session its whole time once more, and no more than that.
    ensemble.replicas[leader].kill();
    let mut watcher =
        attach_any(&ensemble.addresses(), connect_any(&ensemble.addresses(), 10_000).session())
            .expect("a session");
    wait_until("the ephemeral node is gone", || {
        watcher.exists("/silent", false).is_err_and(|failure| failure.is(Error::NoNode))
    });
    let answer = attach_any(&ensemble.addresses(), silent.session()).map(|_| ());
    assert_eq!(answer, Err(Failure::Expired));
}

#[test]
fn a_follower_that_was_away_too_long_gets_a_snapshot() {
    let _heavy = heavy();
    let mut ensemble = Ensemble::start(3, Options::new().little_log());
    let leader = ensemble.wait_leader();
    let follower = (leader + 1) % 3;
    let mut client = ensemble.replicas[leader].client();
    client.make("/n", b"").expect("create");
    ensemble.replicas[follower].kill();
    write_nodes(&mut client, 0..400, &[7; 4096]);
    // Checkpoints, and with them the forgetting of entries, come a little later.
    std::thread::sleep(Duration::from_millis(500));
    write_nodes(&mut client, 400..500, &[7; 4096]);
    let replica = &mut ensemble.replicas[follower];
    replica.start();
    let mut late = synced(&ensemble, follower);
    assert_eq!(late.children("/n", false).expect("list").len(), 500);
    assert_eq!(late.get("/n/499", false).expect("read").0, Some(vec![7; 4096]));
    let log = ensemble.replicas[follower].process().log();
    assert!(log.contains("receiving a snapshot"), "it came as a snapshot:\n{log}");
}

#[test]
fn a_replica_joins_a_running_ensemble() {
    let _heavy = heavy();
    let options = Options::new().little_log().line("reconfigEnabled", true).line("skipACL", "yes");
    let mut ensemble = Ensemble::start(3, options.clone());
    let mut client = connect_any(&ensemble.addresses(), 10_000);
    client.make("/n", b"").expect("create");
    write_nodes(&mut client, 0..300, &[3; 4096]);
    let line = ensemble.prepare_joiner(&options);
    ensemble.replicas[3].spawn();
    let joining =
        Request::Reconfig { joining: Some(&line), leaving: None, new_members: None, config_id: -1 };
    let reply = client.call(&joining).expect("a reply").ok().expect("it may join");
    let text = reply.reader().buffer().expect("data").expect("a configuration").to_vec();
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("server.4="), "{text}");
    ensemble.replicas[3].wait_ready().expect("the new one serves");
    let mut late = synced(&ensemble, 3);
    assert_eq!(late.children("/n", false).expect("list").len(), 300);
    // Of four, three must go on; one of the old ones is gone, so the new one counts.
    ensemble.replicas[0].kill();
    write_until_acknowledged(&ensemble, "/n/0", Some(0));
    // The replica that joined starts again like any other.
    ensemble.replicas[0].start();
    ensemble.replicas[3].kill();
    ensemble.replicas[3].start();
    assert_eq!(synced(&ensemble, 3).children("/n", false).expect("list").len(), 300);
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_follows_when_healed() {
    let ensemble = Ensemble::start_linked(3, Options::new());
    let leader = ensemble.wait_leader();
    let mut client = ensemble.replicas[leader].client();
    client.make("/register", b"0").expect("create");
    for state in [LinkState::Stalled, LinkState::Broken] {
        let leader = ensemble.wait_leader();
        let mut inside = ensemble.replicas[leader].client();
        let before = inside.get("/register", false).expect("read").1.version;
        ensemble.links().isolate(leader as u64 + 1, state);
        inside
            .send(&Request::SetData { path: "/register", data: Some(b"lost"), version: -1 })
            .expect("send");
        write_until_acknowledged(&ensemble, "/register", Some(leader));
        let answer = inside.receive();
        assert!(matches!(answer, Err(Failure::Lost(_))), "not acknowledged: {answer:?}");
        ensemble.links().heal();
        let mut again = synced(&ensemble, leader);
        let (data, stat) = again.get("/register", false).expect("read");
        assert_eq!(data.as_deref(), Some(&b"later"[..]), "{state:?}");
        assert_eq!(stat.version, before + 1, "the write inside never happened");
    }
}

#[test]
fn a_paused_leader_serves_nothing_old_behind_a_sync() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let leader = ensemble.wait_leader();
    let mut client = ensemble.replicas[leader].client();
    client.make("/register", b"0").expect("create");
    ensemble.replicas[leader].pause();
    write_until_acknowledged(&ensemble, "/register", Some(leader));
    // Both requests wait in its socket when it wakes and still takes itself for the leader.
    let read = Request::GetData { path: "/register", watch: false };
    client.send(&Request::Sync { path: "/" }).expect("send");
    client.send(&read).expect("send");
    ensemble.replicas[leader].resume();
    if client.receive().is_ok_and(|reply| reply.header.error == 0)
        && let Ok(reply) = client.receive()
    {
        let data = reply.reader().buffer().expect("data");
        assert_eq!(data, Some(&b"later"[..]), "what was read behind a sync is not old");
    }
    assert_eq!(
        synced(&ensemble, leader).get("/register", false).expect("read").0.as_deref(),
        Some(&b"later"[..])
    );
}
