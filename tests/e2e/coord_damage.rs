//! Data directories that are not what a replica left: damaged, cut short, another replica's. A start
//! either refuses and says what is wrong, or serves everything right.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use millrace_proto::zookeeper::{Error, create_mode};
use millrace_tests::coord::{Client, Ensemble, Options, connect_any};
use millrace_tests::{HANG_GUARD, heavy, wait_until};

/// Nodes of the state that is damaged.
const NODES: u32 = 200;
/// Files in a data directory whose content does not outlive a process, or is the operator's.
const NO_DATA: [&str; 4] = ["lock", "lock.mdb", "admin.sock", "myid"];

fn data_of(node: u32) -> Vec<u8> {
    format!("data of {node} ").repeat(10 + node as usize % 50).into_bytes()
}

/// Makes a stopped replica with a known state, part of it only in the log, and a copy of its directory.
fn stopped_with_copy() -> (Ensemble, tempfile::TempDir) {
    let mut ensemble = Ensemble::single(Options::new().flag("checkpoint_interval_ms", 200));
    let mut client = ensemble.replicas[0].client();
    client.make("/n", b"").expect("create");
    for node in 0..NODES {
        client.make(&format!("/n/{node}"), &data_of(node)).expect("create");
    }
    client.create("/mine", b"", create_mode::EPHEMERAL).expect("create");
    std::thread::sleep(std::time::Duration::from_millis(400));
    ensemble.replicas[0].kill();
    let copy = tempfile::tempdir_in(ensemble.replicas[0].directory().parent().expect("a parent"));
    let copy = copy.expect("a folder");
    copy_files(ensemble.replicas[0].directory(), copy.path());
    (ensemble, copy)
}

/// Returns the files with data below a directory: those of the log and those of the state.
fn data_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("list a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(data_files(&path));
        } else if path.file_name().is_some_and(|name| NO_DATA.iter().all(|other| name != *other)) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Replaces the data of `to` by that of `from`, file by file.
fn copy_files(from: &Path, to: &Path) {
    for file in data_files(to) {
        fs::remove_file(file).expect("remove");
    }
    for file in data_files(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("a parent")).expect("create");
        fs::copy(file, target).expect("copy");
    }
}

/// Checks that all that was acknowledged is there, and nothing else.
fn check_all(client: &mut Client) {
    let names = client.children("/n", false).expect("list");
    assert_eq!(names.len(), NODES as usize);
    for node in 0..NODES {
        let (data, _) = client.get(&format!("/n/{node}"), false).expect("read");
        assert_eq!(data, Some(data_of(node)), "/n/{node}");
    }
    client.exists("/mine", false).expect("the ephemeral of a session that has not expired");
}

/// Starts a replica on a directory that may be damaged. True if it serves; then it serves right.
fn start_and_check(ensemble: &mut Ensemble, what: &str) -> bool {
    let replica = &mut ensemble.replicas[0];
    replica.spawn();
    match replica.wait_ready() {
        Ok(()) => {
            check_all(&mut replica.client());
            replica.kill();
            true
        }
        Err(error) => {
            let text = format!("{error:#}");
            assert!(text.contains("exit status: 1"), "{what}: an ordinary error: {text}");
            let reasons = ["is damaged", "has a log but no state", "has a state but no log"];
            let is_named = reasons.iter().any(|reason| text.contains(reason));
            assert!(is_named, "{what}: it says what is wrong: {text}");
            let names_place = text.contains(&*replica.directory().to_string_lossy());
            assert!(names_place, "{what}: it says where: {text}");
            false
        }
    }
}

#[test]
fn flipped_bytes_are_refused_or_do_no_harm() {
    let _heavy = heavy();
    let (mut ensemble, copy) = stopped_with_copy();
    let mut random = fastrand::Rng::with_seed(11);
    let mut refused = 0;
    let directory = ensemble.replicas[0].directory().to_owned();
    for round in 0..80 {
        copy_files(copy.path(), &directory);
        let files = data_files(&directory);
        let file = &files[round % files.len()];
        let opened = OpenOptions::new().read(true).write(true).open(file).expect("open");
        let length = opened.metadata().expect("a length").len();
        let mut places = Vec::new();
        for _ in 0..random.usize(1..4) {
            let at = random.u64(..length);
            let mut byte = [0];
            opened.read_exact_at(&mut byte, at).expect("read");
            opened.write_all_at(&[byte[0] ^ 1 << random.u32(..8)], at).expect("write");
            places.push(at);
        }
        drop(opened);
        if !start_and_check(&mut ensemble, &format!("{} at {places:?}", file.display())) {
            refused += 1;
        }
    }
    assert!(refused > 20, "only {refused} of 80 were noticed: were the files damaged at all?");
    copy_files(copy.path(), &directory);
    assert!(start_and_check(&mut ensemble, "the copy"));
}

#[test]
fn half_written_files_are_refused_or_do_no_harm() {
    let (mut ensemble, copy) = stopped_with_copy();
    let directory = ensemble.replicas[0].directory().to_owned();
    let mut random = fastrand::Rng::with_seed(12);
    for index in 0..data_files(&directory).len() {
        for part in [0.0, 0.1, 0.5, 0.9, 0.99] {
            copy_files(copy.path(), &directory);
            let file = &data_files(&directory)[index];
            let opened = OpenOptions::new().write(true).open(file).expect("open");
            let length = opened.metadata().expect("a length").len();
            let cut = (length as f64 * part) as u64 + random.u64(..100) * u64::from(part > 0.0);
            opened.set_len(cut.min(length)).expect("cut");
            let what = format!("{} cut to {cut} of {length}", file.display());
            start_and_check(&mut ensemble, &what);
        }
        // The end was allocated, but never written.
        copy_files(copy.path(), &directory);
        let file = &data_files(&directory)[index];
        let opened = OpenOptions::new().write(true).open(file).expect("open");
        let length = opened.metadata().expect("a length").len();
        let end = vec![0; (length / 4) as usize];
        opened.write_all_at(&end, length - length / 4).expect("write");
        start_and_check(&mut ensemble, &format!("{} with zeros at its end", file.display()));
    }
    // What is left of a snapshot that did not arrive belongs to no state.
    copy_files(copy.path(), &directory);
    let rest = directory.join("state.incoming");
    fs::create_dir_all(&rest).expect("create");
    fs::write(rest.join("data.mdb"), b"half a snap").expect("write");
    assert!(start_and_check(&mut ensemble, "with half a snapshot"));
}

#[test]
fn a_half_written_file_of_peers_is_named() {
    let mut ensemble = Ensemble::start(3, Options::new());
    ensemble.replicas[1].kill();
    let peers = ensemble.replicas[1].directory().join("peers");
    let text = fs::read_to_string(&peers).expect("what it remembers of the others");
    let half = text.rfind("store").expect("a line") + 3;
    fs::write(&peers, &text[..half]).expect("write");
    let said = ensemble.replicas[1].start_in_vain();
    assert!(said.contains("peers, line"), "it names the line: {said}");
    fs::write(&peers, text).expect("write");
    ensemble.replicas[1].start();
}

#[test]
fn the_directory_of_another_replica_is_refused() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let mut client = connect_any(&ensemble.addresses(), 10_000);
    client.make("/a", b"").expect("create");
    for index in [0, 1] {
        ensemble.replicas[index].kill();
    }
    let directory = |index: usize| ensemble.replicas[index].directory().to_owned();
    let (first, second) = (directory(0), directory(1));
    let aside = second.with_extension("aside");
    fs::rename(&second, &aside).expect("rename");
    fs::rename(&first, &second).expect("rename");
    fs::write(second.join("myid"), "2\n").expect("write");
    let said = ensemble.replicas[1].start_in_vain();
    assert!(said.contains("holds the data of replica 1, but this is replica 2"), "{said}");
    fs::rename(&second, &first).expect("rename");
    fs::rename(&aside, &second).expect("rename");
    fs::write(first.join("myid"), "1\n").expect("write");
    ensemble.start_all();
    client = connect_any(&ensemble.addresses(), 10_000);
    client.exists("/a", false).expect("it is there");
}

#[test]
fn a_replica_that_lost_its_data_is_not_counted_as_itself() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let leader = ensemble.wait_leader();
    let mut client = ensemble.replicas[leader].client();
    client.make("/a", b"").expect("create");
    let follower = (leader + 1) % 3;
    ensemble.replicas[follower].kill();
    for file in data_files(ensemble.replicas[follower].directory()) {
        fs::remove_file(file).expect("remove");
    }
    ensemble.replicas[follower].spawn();
    wait_until("it is told why it is not taken", || {
        let log = ensemble.replicas[follower].process().log();
        log.contains("has lost its data or uses another directory")
    });
    client.set("/a", b"served", -1).expect("two are a majority");
}

#[test]
fn a_peer_of_another_cluster_is_refused_and_disturbs_nobody() {
    let mut ours = Ensemble::start(3, Options::new());
    let mut theirs = Ensemble::start(3, Options::new());
    let mut client = ours.replicas[0].client();
    client.make("/ours", b"").expect("create");
    connect_any(&theirs.addresses(), 10_000).make("/theirs", b"").expect("create");
    for replica in &mut theirs.replicas {
        replica.kill();
    }
    // Their third replica takes the place of our third: same id, our addresses, its own data.
    ours.replicas[2].kill();
    let stranger = theirs.replicas[2].directory().to_owned();
    let place = ours.replicas[2].directory().to_owned();
    fs::rename(&place, place.with_extension("aside")).expect("rename");
    fs::rename(&stranger, &place).expect("rename");
    ours.replicas[2].spawn();
    wait_until("it is told why it is not taken", || {
        ours.replicas[2].process().log().contains("belongs to cluster")
    });
    let leader = ours.wait_leader();
    let mut client = ours.replicas[leader].client();
    client.set("/ours", b"served", -1).expect("two are a majority");
    assert!(client.exists("/theirs", false).is_err_and(|failure| failure.is(Error::NoNode)));
    ours.replicas[2].kill();
    fs::rename(&place, &stranger).expect("rename");
    fs::rename(place.with_extension("aside"), &place).expect("rename");
    ours.replicas[2].start();
    ours.replicas[2].client().exists("/ours", false).expect("the right one follows");
}

#[test]
fn garbage_between_replicas_disturbs_nobody() {
    let ensemble = Ensemble::start(3, Options::new());
    let mut client = connect_any(&ensemble.addresses(), 10_000);
    client.make("/a", b"").expect("create");
    let mut random = fastrand::Rng::with_seed(13);
    for round in 0..100 {
        let address = ensemble.replicas[round % 3].peer_address();
        let mut stream = TcpStream::connect(address).expect("connect");
        let bytes: Vec<u8> = (0..random.usize(1..500)).map(|_| random.u8(..)).collect();
        // The server may close before it has read everything.
        let _ = stream.write_all(&bytes);
        if bytes.len() >= 64 {
            stream.set_read_timeout(Some(HANG_GUARD)).expect("set a timeout");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
        client.set("/a", &round.to_be_bytes(), -1).expect("served");
    }
    assert!(ensemble.leader().is_some());
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let ensemble = Ensemble::single(Options::new());
    let mut client = ensemble.replicas[0].client();
    client.make("/a", b"").expect("create");
    let said = ensemble.replicas[0].twin().start_in_vain();
    assert!(said.contains("is in use by another process"), "{said}");
    client.exists("/a", false).expect("the first one goes on");
}
