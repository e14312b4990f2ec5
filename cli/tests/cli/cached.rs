//! What is in memory, as `load`, `stat`, `ls` and `du` tell it.

use super::*;

#[test]
fn a_load_that_fits_is_in_memory_whole_and_is_shown_so() {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("a")).unwrap();
    std::fs::write(source.path().join("a/f"), content(3 * 65_536 + 1)).unwrap();
    std::fs::write(source.path().join("a/empty"), "").unwrap();
    let node = Node::start(source.path());
    let cached =
        |path: &str| json(&node.fs_text(&["stat", "--json", path]))["cached_bytes"].clone();
    assert_eq!(cached("a/f"), 0);
    node.fs_well(&["cat", "a/f", "--range", "65536-65540"]);
    assert_eq!(cached("a/f"), 65_536);
    assert!(node.fs_text(&["stat", "a/f"]).contains("in memory"));
    assert_eq!(node.fs_text(&["ls", "--cached", "a"]), "100 %  empty\n 33 %  f\n");
    let report = json(&node.fs_text(&["load", "-r", "/", "--json"]));
    assert_eq!(report["cached_bytes"], 3 * 65_536 + 1);
    assert_eq!(node.fs_text(&["ls", "--cached", "a"]), "100 %  empty\n100 %  f\n");
    let sums = node.fs_text(&["du", "--cached", "--json"]);
    let sums: Vec<Value> = sums.lines().map(json).collect();
    assert!(sums.iter().all(|sum| sum["cached_bytes"] == 3 * 65_536 + 1), "{sums:?}");
    let sums = node.fs_text(&["du", "--cached"]);
    assert!(sums.contains(" 192.0 KiB   192.0 KiB  "), "{sums}");
}

#[test]
fn a_load_of_more_than_the_memory_says_what_is_left_and_ends_with_1() {
    let source = tempfile::tempdir().unwrap();
    for index in 0..6 {
        std::fs::write(source.path().join(format!("f{index}")), content(4 << 20)).unwrap();
    }
    let node = Node::start(source.path());
    let told = node.fs_fails(&["load", "-r", "/"]);
    assert!(told.contains("not all of it will stay in memory"), "{told}");
    assert!(told.contains("of the 24 MiB that were loaded are in memory"), "{told}");
    let said = said(node.fs(&["load", "-r", "/", "--json"]).output().unwrap());
    let cached = json(&said.stdout)["cached_bytes"].as_u64().unwrap();
    assert!(said.code == Some(1) && (1..=16 << 20).contains(&cached), "{cached}: {}", said.stderr);
    let sum = json(&node.fs_text(&["du", "--cached", "--json"]));
    assert_eq!(sum["cached_bytes"], cached);
}
