//! Ensembles that begin and change by the lists in their `zoo.cfg`, as real processes: the result is one
//! ensemble with the data, or none. Two of the stories run with Apache ZooKeeper as well, where Debian's
//! package `zookeeper` is installed: `cargo test .. coord_births -- --ignored`.

use std::time::Duration;

use millrace_tests::coord::{Ensemble, Options, Replica};
use millrace_tests::{heavy, wait_until};

/// Long enough for replicas without data to elect each other, and more.
const A_WHILE: Duration = Duration::from_millis(2500);

/// Prepares replicas with no list at all, none running.
fn prepare(count: u64, options: &Options) -> Ensemble {
    Ensemble::prepare(count, false, options).expect("prepare replicas")
}

/// Returns the lines of the first `count` replicas.
fn lines(ensemble: &Ensemble, count: usize) -> Vec<String> {
    ensemble.replicas[..count].iter().map(Replica::server_line).collect()
}

/// True if a replica serves the node at `path`, as far as the leader has it.
fn has(replica: &Replica, path: &str) -> bool {
    let mut client = replica.client();
    client.sync().expect("sync");
    client.exists(path, false).is_ok()
}

/// Sets the list of all of these, starts them, and waits until they serve.
fn start_with(replicas: &mut [Replica], list: &[String]) {
    for replica in &mut *replicas {
        replica.set_list(list);
        replica.spawn();
    }
    for replica in replicas {
        replica.wait_ready().expect("it serves");
    }
}

/// Checks that all of them serve one tree, and that each can write to it.
fn assert_one(replicas: &[Replica], paths: &[&str]) {
    for replica in replicas {
        let path = format!("/by-{}", replica.id());
        replica.client().make(&path, b"").expect("a write");
        for other in replicas {
            assert!(has(other, &path), "replica {} lacks {path}", other.id());
        }
    }
    for (path, replica) in paths.iter().flat_map(|path| replicas.iter().map(move |it| (path, it))) {
        assert!(has(replica, path), "replica {} lacks {path}", replica.id());
    }
}

fn assert_none_serves(replicas: &[&Replica]) {
    std::thread::sleep(A_WHILE);
    for replica in replicas {
        assert_eq!(replica.mode(), "", "replica {} serves", replica.id());
    }
}

/// Lets a replica by itself, with data, become one of three: server lines, myid, restart.
fn one_becomes_three(options: &Options) {
    let _heavy = heavy();
    let mut ensemble = prepare(3, options);
    ensemble.replicas[0].set_list(&[]);
    ensemble.replicas[0].start();
    ensemble.replicas[0].client().make("/old", b"data").expect("create");
    ensemble.replicas[0].stop();
    let list = lines(&ensemble, 3);
    ensemble.replicas[0].set_list(&list);
    ensemble.start_all();
    assert_one(&ensemble.replicas, &["/old"]);
}

/// Lets three become four: one more line everywhere, the new one first, then a rolling restart.
fn three_become_four(options: &Options) {
    let _heavy = heavy();
    let mut ensemble = prepare(4, options);
    let list = lines(&ensemble, 3);
    start_with(&mut ensemble.replicas[..3], &list);
    ensemble.replicas[0].client().make("/old", b"data").expect("create");
    let list = lines(&ensemble, 4);
    ensemble.replicas[3].set_list(&list);
    ensemble.replicas[3].spawn();
    for replica in &mut ensemble.replicas[..3] {
        replica.stop();
        replica.set_list(&list);
        replica.spawn();
        // ZooKeeper's replica serves no client before most of the others have the new list, so it is not
        // waited for.
        std::thread::sleep(A_WHILE);
    }
    for replica in &mut ensemble.replicas {
        replica.wait_ready().expect("it serves");
    }
    assert_one(&ensemble.replicas, &["/old"]);
}

#[test]
fn a_replica_by_itself_becomes_the_first_of_three() {
    one_becomes_three(&Options::new());
}

#[test]
#[ignore = "needs Debian's package zookeeper"]
fn a_zookeeper_by_itself_becomes_the_first_of_three() {
    one_becomes_three(&Options::new().zookeeper());
}

#[test]
fn three_become_four_by_a_rolling_restart() {
    three_become_four(&Options::new());
}

#[test]
#[ignore = "needs Debian's package zookeeper"]
fn three_zookeepers_become_four_by_a_rolling_restart() {
    three_become_four(&Options::new().zookeeper());
}

#[test]
fn three_become_five_though_two_operators_name_one_each() {
    let _heavy = heavy();
    let mut ensemble = prepare(5, &Options::new());
    let all = lines(&ensemble, 5);
    start_with(&mut ensemble.replicas[..3], &all[..3]);
    ensemble.replicas[2].client().make("/old", b"data").expect("create");
    for replica in &mut ensemble.replicas[3..] {
        replica.spawn();
    }
    // Both run at once; the third server has the old list for good.
    let [first, second] = [[&all[..3], &all[3..4]].concat(), [&all[..3], &all[4..]].concat()];
    for (index, list) in [first, second].iter().enumerate() {
        ensemble.replicas[index].stop();
        ensemble.replicas[index].set_list(list);
        ensemble.replicas[index].spawn();
    }
    for replica in &mut ensemble.replicas {
        if replica.id() != 3 {
            replica.wait_ready().expect("it serves");
        }
    }
    assert_one(&ensemble.replicas, &["/old"]);
    assert!(ensemble.replicas[2].is_running());
}

#[test]
fn a_majority_on_new_disks_begins_nothing_and_the_old_ones_go_on() {
    let _heavy = heavy();
    let mut ensemble = prepare(5, &Options::new());
    let all = lines(&ensemble, 5);
    start_with(&mut ensemble.replicas[..3], &all[..3]);
    ensemble.replicas[0].client().make("/old", b"data").expect("create");
    for replica in &mut ensemble.replicas[..3] {
        replica.stop();
    }
    // Two hosts are replaced, at new addresses; the list is the same everywhere.
    let replaced = [&all[..1], &all[3..]].concat();
    for index in [3, 4] {
        ensemble.replicas[index].set_list(&replaced);
        ensemble.replicas[index].spawn();
    }
    ensemble.replicas[0].set_list(&replaced);
    let text = ensemble.replicas[0].start_in_vain();
    assert!(text.contains("coord add") && text.contains("coord remove"), "{text}");
    assert!(!text.contains("empty the data directory"), "{text}");
    assert_none_serves(&[&ensemble.replicas[3], &ensemble.replicas[4]]);
    let log = ensemble.replicas[3].process().log();
    assert!(log.contains("waiting for 1"), "{log}");
    for replica in &mut ensemble.replicas[3..] {
        replica.kill();
    }
    start_with(&mut ensemble.replicas[..3], &all[..3]);
    assert_one(&ensemble.replicas[..3], &["/old"]);
}

#[test]
fn a_majority_that_was_wiped_does_not_outvote_the_one_with_the_data() {
    let _heavy = heavy();
    let mut ensemble = Ensemble::start(3, Options::new());
    ensemble.replicas[0].client().make("/old", b"data").expect("create");
    for replica in &mut ensemble.replicas {
        replica.stop();
    }
    for index in [0, 1] {
        ensemble.replicas[index].wipe();
        ensemble.replicas[index].spawn();
    }
    assert_none_serves(&[&ensemble.replicas[0], &ensemble.replicas[1]]);
    ensemble.replicas[2].spawn();
    assert_none_serves(&ensemble.replicas.iter().collect::<Vec<_>>());
    // Both ends say which of them is at fault.
    for index in [0, 2] {
        let log = ensemble.replicas[index].process().log();
        assert!(log.contains("has lost its data"), "{log}");
    }
}

#[test]
fn new_replicas_whose_lists_disagree_begin_when_the_lists_agree() {
    let _heavy = heavy();
    let mut ensemble = prepare(3, &Options::new());
    let all = lines(&ensemble, 3);
    ensemble.replicas[2].set_list(&all[1..]);
    for replica in &mut ensemble.replicas {
        replica.spawn();
    }
    assert_none_serves(&ensemble.replicas.iter().collect::<Vec<_>>());
    let third = &mut ensemble.replicas[2];
    wait_until("it is told", || third.process().log().contains("another list of members"));
    third.kill();
    third.set_list(&all);
    third.spawn();
    for replica in &mut ensemble.replicas {
        replica.wait_ready().expect("it serves");
    }
    assert_one(&ensemble.replicas, &[]);
}

#[test]
fn a_new_ensemble_forms_when_its_last_member_starts() {
    let _heavy = heavy();
    let mut ensemble = prepare(3, &Options::new());
    for replica in &mut ensemble.replicas[..2] {
        replica.spawn();
    }
    assert_none_serves(&[&ensemble.replicas[0], &ensemble.replicas[1]]);
    ensemble.replicas[2].spawn();
    for replica in &mut ensemble.replicas {
        replica.wait_ready().expect("it serves");
    }
    assert_one(&ensemble.replicas, &[]);
}

#[test]
fn a_server_line_without_a_client_port_may_be_added_by_an_operator() {
    let _heavy = heavy();
    let mut ensemble = Ensemble::start(3, Options::new());
    let line = ensemble.prepare_joiner(&Options::new());
    let line = line.split(';').next().expect("an address").to_owned();
    ensemble.replicas[3].spawn();
    let mut command =
        std::process::Command::new(millrace_tests::process::program().expect("a program to test"));
    command.args(["coord", "add", "--data"]).arg(ensemble.replicas[0].directory()).arg(&line);
    let output = command.output().expect("run a verb");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensemble.replicas[3].wait_ready().expect("it serves");
}

/// Starts three, and returns their lines with other ports between replicas.
fn three_and_their_new_ports() -> (Ensemble, Vec<String>) {
    let mut ensemble = prepare(6, &Options::new());
    let list = lines(&ensemble, 3);
    start_with(&mut ensemble.replicas[..3], &list);
    ensemble.replicas[0].client().make("/old", b"data").expect("create");
    let port = |index: usize| ensemble.replicas[index].peer_address().port();
    let moved = |(index, line): (usize, &String)| {
        line.replace(&format!(":{}:", port(index)), &format!(":{}:", port(index + 3)))
    };
    let moved = list.iter().enumerate().map(moved).collect();
    (ensemble, moved)
}

#[test]
fn all_members_get_other_ports_while_none_runs() {
    let _heavy = heavy();
    let (mut ensemble, moved) = three_and_their_new_ports();
    for replica in &mut ensemble.replicas[..3] {
        replica.stop();
    }
    start_with(&mut ensemble.replicas[..3], &moved);
    assert_one(&ensemble.replicas[..3], &["/old"]);
}

#[test]
fn all_members_get_other_ports_by_a_rolling_restart() {
    let _heavy = heavy();
    let (mut ensemble, moved) = three_and_their_new_ports();
    for index in 0..3 {
        ensemble.replicas[index].stop();
        ensemble.replicas[index].set_list(&moved);
        ensemble.replicas[index].start();
        // The list has new ports for those that still run at the old ones, which cut none of them off.
        assert_one(&ensemble.replicas[..3], &["/old"]);
        for replica in &ensemble.replicas[..3] {
            for other in &ensemble.replicas[..3] {
                let path = format!("/by-{}", other.id());
                // Another replica may have deleted it already.
                let _ = replica.client().delete(&path, -1);
            }
        }
    }
}
