//! Claims about watches, and the table beside a model of two plain sets as in ZooKeeper.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SEED: u64 = 1;
const NOBODY: [u32; 0] = [];

fn table() -> WatchTable {
    WatchTable::new(1000, SEED)
}

fn told(table: &mut WatchTable, kind: i32, path: &str) -> Vec<u32> {
    let mut clients = Vec::new();
    table.trigger(kind, path, &mut clients);
    clients.sort_unstable();
    clients
}

#[test]
fn a_one_shot_watch_fires_once() {
    let mut table = table();
    table.add_data(7, "/a").unwrap();
    table.add_child(7, "/a").unwrap();
    assert_eq!(told(&mut table, event::DATA_CHANGED, "/a"), [7]);
    assert_eq!(told(&mut table, event::DATA_CHANGED, "/a"), NOBODY);
    assert_eq!(told(&mut table, event::CHILDREN_CHANGED, "/a"), [7]);
    assert_eq!(table.counts(), WatchCounts::default());
}

#[test]
fn a_deletion_is_told_once_and_spends_both_watches() {
    let mut table = table();
    table.add_data(7, "/a").unwrap();
    table.add_child(7, "/a").unwrap();
    table.add_child(8, "/a").unwrap();
    table.add_persistent(7, "/a", false).unwrap();
    table.add_persistent(7, "/", true).unwrap();
    assert_eq!(told(&mut table, event::DELETED, "/a"), [7, 8]);
    assert!(!table.contains(8, "/a", watcher_type::ANY));
    assert!(table.contains(7, "/a", watcher_type::PERSISTENT));
    assert_eq!(told(&mut table, event::DELETED, "/a"), [7]);
}

#[test]
fn data_events_do_not_spend_child_watches() {
    let mut table = table();
    table.add_child(7, "/a").unwrap();
    assert_eq!(told(&mut table, event::CREATED, "/a"), NOBODY);
    assert_eq!(told(&mut table, event::DATA_CHANGED, "/a"), NOBODY);
    assert!(table.contains(7, "/a", watcher_type::CHILDREN));
    table.add_data(8, "/a").unwrap();
    assert_eq!(told(&mut table, event::CHILDREN_CHANGED, "/a"), [7]);
    assert_eq!(told(&mut table, event::CREATED, "/a"), [8]);
}

#[test]
fn a_persistent_watch_stays_and_a_one_shot_watch_beside_it_takes_nothing_away() {
    let mut table = table();
    table.add_persistent(7, "/a", false).unwrap();
    table.add_data(7, "/a").unwrap();
    for kind in [event::CREATED, event::DATA_CHANGED, event::CHILDREN_CHANGED, event::DELETED] {
        assert_eq!(told(&mut table, kind, "/a"), [7]);
        assert_eq!(told(&mut table, kind, "/a/b"), NOBODY);
    }
    assert_eq!(table.counts(), WatchCounts { clients: 1, paths: 1, watches: 2 });
}

#[test]
fn a_recursive_watch_sees_descendants_but_never_their_child_lists() {
    let mut table = table();
    table.add_persistent(7, "/a", true).unwrap();
    table.add_persistent(7, "/", true).unwrap();
    for kind in [event::CREATED, event::DATA_CHANGED, event::DELETED] {
        assert_eq!(told(&mut table, kind, "/a"), [7]);
        assert_eq!(told(&mut table, kind, "/a/b/c"), [7]);
        assert_eq!(told(&mut table, kind, "/ab"), [7], "by the root");
    }
    assert_eq!(told(&mut table, event::CHILDREN_CHANGED, "/a"), NOBODY);
    assert!(table.remove(7, "/", watcher_type::PERSISTENT_RECURSIVE));
    assert_eq!(told(&mut table, event::CREATED, "/ab"), NOBODY);
}

#[test]
fn removing_by_kind_empties_one_table_as_in_3_8() {
    let mut table = table();
    table.add_data(7, "/a").unwrap();
    assert!(!table.remove(7, "/a", watcher_type::CHILDREN));
    assert!(!table.remove(8, "/a", watcher_type::DATA), "another client's");
    assert!(!table.remove(7, "/a", 0) && !table.remove(7, "/a", 6), "no such kind");
    assert!(table.remove(7, "/a", watcher_type::DATA));
    assert!(!table.remove(7, "/a", watcher_type::ANY));
    table.add_persistent(7, "/a", false).unwrap();
    assert!(table.remove(7, "/a", watcher_type::DATA));
    assert_eq!(told(&mut table, event::DATA_CHANGED, "/a"), NOBODY);
    assert_eq!(told(&mut table, event::CHILDREN_CHANGED, "/a"), [7]);
    assert!(table.remove(7, "/a", watcher_type::ANY));
    assert_eq!(table.counts(), WatchCounts::default());
}

#[test]
fn a_client_that_left_is_forgotten() {
    let mut table = table();
    for path in ["/a", "/b", "/a/c"] {
        table.add_data(7, path).unwrap();
        table.add_persistent(8, path, true).unwrap();
    }
    table.drop_client(8);
    table.drop_client(8);
    table.drop_client(1000);
    assert_eq!(table.counts(), WatchCounts { clients: 1, paths: 3, watches: 3 });
    assert_eq!(told(&mut table, event::CREATED, "/a/c"), [7]);
    table.drop_client(7);
    assert_eq!(table.counts(), WatchCounts::default());
}

#[test]
fn the_limit_counts_paths_of_one_client() {
    let mut table = WatchTable::new(2, SEED);
    table.add_data(7, "/a").unwrap();
    table.add_child(7, "/b").unwrap();
    table.add_persistent(7, "/b", true).unwrap();
    assert_eq!(table.add_data(7, "/c"), Err(TooManyWatches { max: 2 }));
    assert_eq!(table.counts().paths, 2);
    table.add_data(8, "/c").unwrap();
    assert_eq!(told(&mut table, event::CREATED, "/a"), [7]);
    table.add_data(7, "/c").unwrap();
}

#[test]
fn watches_set_again_tell_what_was_missed_and_arm_the_rest() {
    let mut table = table();
    let lists = WatchLists {
        relative_zxid: 10,
        data: &["/gone", "/changed", "/same"],
        exist: &["/there", "/absent"],
        child: &["/gone", "/grown", "/same"],
        persistent: &["/p"],
        recursive: &["/r"],
    };
    let lookup = |path: &str| match path {
        "/changed" => Some((11, 0)),
        "/grown" => Some((0, 11)),
        "/same" | "/there" => Some((10, 10)),
        _ => None,
    };
    let mut events = Vec::new();
    table.set_watches(7, &lists, lookup, &mut events).unwrap();
    let expect = [
        (event::DELETED, "/gone"),
        (event::DATA_CHANGED, "/changed"),
        (event::CREATED, "/there"),
        (event::DELETED, "/gone"),
        (event::CHILDREN_CHANGED, "/grown"),
    ];
    assert_eq!(events, expect);
    let held: BTreeSet<&str> =
        table.by_path().map(|(path, clients)| (clients == [7]).then_some(path).unwrap()).collect();
    assert_eq!(held, BTreeSet::from(["/same", "/absent", "/p", "/r"]));
    assert!(table.contains(7, "/same", watcher_type::DATA));
    assert!(table.contains(7, "/same", watcher_type::CHILDREN));
}

#[test]
fn both_lists_name_the_same_pairs() {
    let mut table = table();
    for (client, path) in [(3, "/a"), (3, "/b"), (5, "/a")] {
        table.add_child(client, path).unwrap();
    }
    let by_client: Vec<(u32, BTreeSet<String>)> = table
        .by_client()
        .map(|(client, paths)| (client, paths.map(str::to_owned).collect()))
        .collect();
    let set = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    assert_eq!(by_client, [(3, set(&["/a", "/b"])), (5, set(&["/a"]))]);
    let by_path: Vec<(&str, &[u32])> = table.by_path().collect();
    assert_eq!(by_path, [("/a", &[3, 5][..]), ("/b", &[3][..])]);
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Once,
    Persistent,
    Recursive,
}

/// One table of ZooKeeper's `WatchManager`.
#[derive(Default)]
struct ModelTable(BTreeSet<(String, u32, Mode)>);

impl ModelTable {
    fn trigger(&mut self, kind: i32, path: &str) -> BTreeSet<u32> {
        let mut told = BTreeSet::new();
        self.0.retain(|(watched, client, mode)| {
            let prefix = if watched == "/" { "/".to_owned() } else { format!("{watched}/") };
            let here = watched == path;
            let fires = match mode {
                Mode::Once | Mode::Persistent => here,
                Mode::Recursive => {
                    kind != event::CHILDREN_CHANGED && (here || path.starts_with(&prefix))
                }
            };
            if fires {
                told.insert(*client);
            }
            !(fires && *mode == Mode::Once)
        });
        told
    }

    fn remove(&mut self, client: u32, path: &str, mode: Option<Mode>) -> bool {
        let before = self.0.len();
        self.0.retain(|(watched, holder, held)| {
            watched != path || *holder != client || mode.is_some_and(|mode| mode != *held)
        });
        self.0.len() < before
    }

    /// Lists clients and paths, whatever the mode.
    fn pairs(&self) -> BTreeSet<(u32, &str)> {
        self.0.iter().map(|(path, client, _)| (*client, path.as_str())).collect()
    }
}

#[derive(Default)]
struct Model {
    data: ModelTable,
    child: ModelTable,
}

impl Model {
    fn add(&mut self, client: u32, path: &str, action: u32) {
        let entry = |mode| (path.to_owned(), client, mode);
        match action {
            0 => _ = self.data.0.insert(entry(Mode::Once)),
            1 => _ = self.child.0.insert(entry(Mode::Once)),
            _ => {
                let mode = if action == 2 { Mode::Persistent } else { Mode::Recursive };
                self.data.0.insert(entry(mode));
                self.child.0.insert(entry(mode));
            }
        }
    }

    fn trigger(&mut self, kind: i32, path: &str) -> Vec<u32> {
        let mut told = BTreeSet::new();
        if kind != event::CHILDREN_CHANGED {
            told.extend(self.data.trigger(kind, path));
        }
        if kind == event::DELETED || kind == event::CHILDREN_CHANGED {
            told.extend(self.child.trigger(kind, path));
        }
        told.into_iter().collect()
    }

    fn remove(&mut self, client: u32, path: &str, kind: i32) -> bool {
        let mode = match kind {
            watcher_type::PERSISTENT => Some(Mode::Persistent),
            watcher_type::PERSISTENT_RECURSIVE => Some(Mode::Recursive),
            _ => None,
        };
        let from_data = kind != watcher_type::CHILDREN && self.data.remove(client, path, mode);
        let from_child = kind != watcher_type::DATA && self.child.remove(client, path, mode);
        from_data || from_child
    }

    fn counts(&self) -> WatchCounts {
        let (data, child) = (self.data.pairs(), self.child.pairs());
        let clients: BTreeSet<u32> = data.union(&child).map(|(client, _)| *client).collect();
        let paths: BTreeSet<&str> = data.union(&child).map(|(_, path)| *path).collect();
        WatchCounts {
            clients: clients.len(),
            paths: paths.len(),
            watches: data.len() + child.len(),
        }
    }
}

fn check_against_model(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut table = WatchTable::new(1000, seed);
    let mut model = Model::default();
    let paths = ["/", "/a", "/b", "/a/x", "/a/y", "/a/x/1", "/a/x/2", "/ab", "/b/x"];
    for step in 0..2000 {
        let path = paths[random.usize(..paths.len())];
        let client = random.u32(..6);
        let at = format!("seed {seed} step {step}");
        match random.u32(..20) {
            action @ 0..9 => {
                let action = action % 4;
                match action {
                    0 => table.add_data(client, path).unwrap(),
                    1 => table.add_child(client, path).unwrap(),
                    _ => table.add_persistent(client, path, action == 3).unwrap(),
                }
                model.add(client, path, action);
            }
            9..12 => {
                let kind = random.i32(1..=5);
                let removed = table.remove(client, path, kind);
                assert_eq!(removed, model.remove(client, path, kind), "{at}");
                assert!(!table.contains(client, path, kind), "{at}");
            }
            12 => {
                table.drop_client(client);
                model.data.0.retain(|(_, holder, _)| *holder != client);
                model.child.0.retain(|(_, holder, _)| *holder != client);
            }
            _ => {
                let kind = random.i32(event::CREATED..=event::CHILDREN_CHANGED);
                let expect = model.trigger(kind, path);
                assert_eq!(told(&mut table, kind, path), expect, "{at}: {kind} {path}");
            }
        }
        assert_eq!(table.counts(), model.counts(), "{at}");
    }
    let mut pairs = BTreeMap::<&str, BTreeSet<u32>>::new();
    for (client, path) in model.data.pairs().into_iter().chain(model.child.pairs()) {
        pairs.entry(path).or_default().insert(client);
    }
    let held: BTreeMap<&str, BTreeSet<u32>> =
        table.by_path().map(|(path, clients)| (path, clients.iter().copied().collect())).collect();
    assert_eq!(held, pairs, "seed {seed}");
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..20 {
        check_against_model(seed);
    }
}

#[test]
fn a_herd_on_one_path_comes_and_goes() {
    let mut table = table();
    for client in 0..10_000 {
        table.add_data(client, "/leader").unwrap();
    }
    assert_eq!(told(&mut table, event::DELETED, "/leader").len(), 10_000);
    assert_eq!(table.counts(), WatchCounts::default());
}
