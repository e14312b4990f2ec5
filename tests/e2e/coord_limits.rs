//! Clients that want too much of the coordination service, and disks that have no more to give.
//! Limits hold, others are served, and what was acknowledged stays.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use millrace_proto::zookeeper::{Error, Request, add_watch_mode};
use millrace_tests::coord::{Client, Ensemble, Failure, Options, attach_any};
use millrace_tests::{HANG_GUARD, heavy, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: u64 = 1 << 20;

/// Raises the limit of descriptors of this process to what it may have, and returns the limit.
fn raise_descriptors() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("raise a limit");
    maximum.unwrap_or(u64::MAX)
}

/// True if the server has closed this connection, on which it had nothing to send.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set a mode");
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => panic!("the server spoke first"),
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Events of the next test: more than the kernel keeps for a connection of this machine.
const EVENTS: u32 = 1000;

#[test]
fn a_client_that_never_reads_its_watches_is_cut_off() {
    let options = Options::new().little_log().flag("client_output_max_bytes", "256KiB");
    let mut ensemble = Ensemble::single(options);
    let mut writer = ensemble.replicas[0].client();
    let mut other = ensemble.replicas[0].client();
    // A long name makes a large event.
    let path = format!("/{}", "w".repeat(20_000));
    writer.make(&path, b"").expect("create");
    let mut write_all = || {
        for round in 0..EVENTS {
            writer.set(&path, &round.to_be_bytes(), -1).expect("the writer is served");
            if round % 100 == 0 {
                other.get(&path, false).expect("others are served");
            }
        }
    };
    // The same writes cost memory of their own: log, checkpoints, pages of the disk.
    write_all();
    let before = ensemble.replicas[0].process().memory().resident;
    let mut deaf = ensemble.replicas[0].client();
    let mode = add_watch_mode::PERSISTENT_RECURSIVE;
    deaf.call(&Request::AddWatch { path: "/", mode }).expect("answered").ok().expect("a watch");
    write_all();
    let grown = ensemble.replicas[0].process().memory().resident.saturating_sub(before);
    assert!(
        grown < 10 * MIB,
        "{grown} bytes more for 20 MB of events that the client did not read"
    );
    let session = deaf.session();
    let mut count = 0;
    while let Ok(Some(_)) = deaf.event(HANG_GUARD) {
        count += 1;
    }
    assert!(deaf.is_lost() && count < EVENTS, "{count} events, and then the end");
    attach_any(&[ensemble.replicas[0].address()], session).expect("its session lives on");
}

#[test]
fn a_client_that_asks_but_never_reads_is_made_to_wait() {
    let mut ensemble = Ensemble::single(Options::new());
    let mut other = ensemble.replicas[0].client();
    other.make("/large", &vec![7; 500_000]).expect("create");
    let before = ensemble.replicas[0].process().memory().resident;
    let mut deaf = ensemble.replicas[0].client();
    for _ in 0..400 {
        deaf.send(&Request::GetData { path: "/large", watch: false }).expect("send");
    }
    std::thread::sleep(Duration::from_millis(300));
    let grown = ensemble.replicas[0].process().memory().resident.saturating_sub(before);
    assert!(
        grown < 40 * MIB,
        "{grown} bytes more for 200 MB of replies that the client did not read"
    );
    other.get("/large", false).expect("others are served");
    for index in 0..400 {
        let reply = deaf.receive().expect("a reply");
        assert_eq!((reply.header.error, reply.body.len() > 500_000), (0, true), "reply {index}");
    }
}

#[test]
fn watches_above_the_limit_are_refused_and_the_others_work() {
    let ensemble = Ensemble::single(Options::new().flag("watches_per_client_max", 100));
    let mut client = ensemble.replicas[0].client();
    let mut refused = 0;
    for index in 0..200 {
        match client.exists(&format!("/w{index}"), true) {
            Err(failure) if failure.is(Error::NoNode) => {}
            Err(Failure::Refused(_)) => refused += 1,
            answer => panic!("{answer:?}"),
        }
    }
    assert_eq!(refused, 100);
    client.make("/w0", b"").expect("create");
    let event = client.event(HANG_GUARD).expect("a connection").expect("an event");
    assert_eq!(event.path, "/w0");
}

#[test]
fn ten_thousand_connections_beyond_the_limit_change_nothing_for_the_others() {
    let _heavy = heavy();
    // Some descriptors are the test's own, some other tests'.
    let count = raise_descriptors().saturating_sub(1000).min(10_000) as usize;
    let ensemble = Ensemble::single(Options::new().line("maxCnxns", 50));
    let replica = &ensemble.replicas[0];
    let mut client = replica.client();
    client.make("/a", b"1").expect("create");
    let mut streams = Vec::new();
    for index in 0..count {
        let address: SocketAddr = replica.address();
        streams.push(TcpStream::connect(address).expect("the kernel takes the connection"));
        if index % 500 == 0 {
            client.set("/a", index.to_string().as_bytes(), -1).expect("served");
        }
    }
    wait_until("those beyond the limit are closed", || {
        streams.iter().filter(|stream| !is_closed(stream)).count() < 50
    });
    client.set("/a", b"2", -1).expect("still served");
    // Connections within the limit that never send anything do not stay for ever either.
    wait_until("the silent ones are closed", || streams.iter().all(is_closed));
    drop(streams);
    let mut late = replica.client();
    assert_eq!(late.get("/a", false).expect("read").0.as_deref(), Some(&b"2"[..]));
}

#[test]
fn connections_of_one_address_are_limited_as_zookeeper_does() {
    let ensemble = Ensemble::single(Options::new().line("maxClientCnxns", 3));
    let address = ensemble.replicas[0].address();
    let mut clients: Vec<Client> =
        (0..3).map(|_| Client::connect(address, 10_000).expect("within the limit")).collect();
    assert!(matches!(Client::connect(address, 10_000), Err(Failure::Lost(_))));
    for client in &mut clients {
        client.ping().expect("served");
    }
    clients.pop();
    drop(ensemble.replicas[0].client());
}

/// Writes until the replica takes no more; returns how many nodes were acknowledged, and the refusal.
fn fill(client: &mut Client) -> (u32, Failure) {
    client.make("/full", b"").expect("create");
    for index in 0..5000 {
        if let Err(failure) = client.make(&format!("/full/{index}"), &[5; 20_000]) {
            return (index, failure);
        }
    }
    panic!("the disk is never full");
}

/// Checks that everything that was acknowledged is there, and perhaps the write that was not.
fn check_filled(ensemble: &Ensemble, acknowledged: u32) {
    let mut client = ensemble.replicas[0].client();
    let names = client.children("/full", false).expect("list");
    for index in 0..acknowledged {
        let (data, _) = client.get(&format!("/full/{index}"), false).expect("acknowledged");
        assert_eq!(data, Some(vec![5; 20_000]), "/full/{index}");
    }
    assert!(names.len() as u32 - acknowledged <= 1, "{} nodes", names.len());
    client.make("/after", b"").expect("and there is room again");
}

#[test]
fn a_full_state_refuses_what_grows_it_and_goes_on() {
    let _heavy = heavy();
    let tight = Options::new().flag("map_size_bytes", "16MiB").flag("checkpoint_interval_ms", 50);
    let mut ensemble = Ensemble::single(tight);
    let mut client = ensemble.replicas[0].client();
    let (acknowledged, failure) = fill(&mut client);
    assert!(failure.is(Error::QuotaExceeded), "{failure:?}");
    assert!(acknowledged > 100, "{acknowledged} fit");
    // Nothing else is different: reads, sessions, and what makes room.
    for index in 0..acknowledged {
        let (data, _) = client.get(&format!("/full/{index}"), false).expect("acknowledged");
        assert_eq!(data, Some(vec![5; 20_000]), "/full/{index}");
    }
    drop(ensemble.replicas[0].client());
    for index in 0..acknowledged / 2 {
        client.delete(&format!("/full/{index}"), -1).expect("deleting makes room");
    }
    wait_until("there is room again", || client.make("/after", &[5; 20_000]).is_ok());
    ensemble.replicas[0].stop();
    ensemble.replicas[0].start();
    let mut late = ensemble.replicas[0].client();
    let names = late.children("/full", false).expect("list");
    assert_eq!(names.len() as u32, acknowledged - acknowledged / 2);
}

#[test]
fn one_full_replica_of_three_stops_growth_at_all_and_lets_it_go_on() {
    let _heavy = heavy();
    let mut ensemble = Ensemble::start(3, Options::new());
    let leader = ensemble.wait_leader();
    let tight = (leader + 1) % 3;
    let options = Options::new().flag("map_size_bytes", "16MiB").flag("checkpoint_interval_ms", 50);
    ensemble.replicas[tight].stop();
    ensemble.replicas[tight].set_options(options);
    ensemble.replicas[tight].start();
    let mut client = ensemble.replicas[(leader + 2) % 3].client();
    let (acknowledged, failure) = fill(&mut client);
    assert!(failure.is(Error::QuotaExceeded), "{failure:?}");
    assert!(acknowledged > 100, "{acknowledged} fit");
    ensemble.replicas[tight].kill();
    wait_until("the others do not wait for it", || client.make("/after", &[5; 20_000]).is_ok());
}

#[test]
fn a_small_log_is_compacted_before_it_is_full() {
    let _heavy = heavy();
    let options =
        Options::new().flag("log_max_bytes", "16MiB").flag("checkpoint_interval_ms", 600_000);
    let ensemble = Ensemble::single(options);
    let mut client = ensemble.replicas[0].client();
    client.make("/a", b"").expect("create");
    for index in 0..2000_u32 {
        let data = vec![index as u8; 20_000];
        while let Err(failure) = client.set("/a", &data, -1) {
            // Writes are faster than the disk makes checkpoints, so a repeat loses nothing.
            assert!(failure.is(Error::QuotaExceeded), "{failure:?}");
        }
    }
}

#[test]
fn a_log_that_may_be_compacted_never_fills() {
    let _heavy = heavy();
    let options = Options::new().little_log().flag("log_max_bytes", "16MiB");
    let ensemble = Ensemble::single(options);
    let mut client = ensemble.replicas[0].client();
    client.make("/a", b"").expect("create");
    for index in 0..2000_u32 {
        let data = vec![index as u8; 20_000];
        client.set("/a", &data, -1).expect("40 MB go through a log of 16");
    }
}

#[test]
fn a_write_that_the_disk_refuses_is_told_and_loses_nothing_acknowledged() {
    let _heavy = heavy();
    let mut ensemble = Ensemble::single(Options::new().max_file_bytes(8 * MIB));
    let (acknowledged, failure) = fill(&mut ensemble.replicas[0].client());
    assert!(matches!(failure, Failure::Lost(_)), "{failure:?}");
    assert!(acknowledged > 100, "{acknowledged} fit");
    let (status, log) = ensemble.replicas[0].wait_end();
    assert_eq!(status.code(), Some(1), "an ordinary error: {log}");
    assert!(log.contains("takes no more writes"), "it says what happened:\n{log}");
    ensemble.replicas[0].set_options(Options::new());
    ensemble.replicas[0].start();
    check_filled(&ensemble, acknowledged);
}
