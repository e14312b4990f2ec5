//! Mounts: whole parts count, and the longest prefix wins.

use super::*;

fn mount(prefix: &str) -> Mount {
    Mount { prefix: prefix.into(), source: String::new(), replicas: 1 }
}

#[test]
fn the_longest_prefix_of_whole_parts_wins() {
    let mounts = ["", "data", "data/hot"].map(mount);
    assert_eq!(mount_of(&mounts, ""), Some((0, "")));
    assert_eq!(mount_of(&mounts, "other/a"), Some((0, "other/a")));
    assert_eq!(mount_of(&mounts, "database"), Some((0, "database")));
    assert_eq!(mount_of(&mounts, "data"), Some((1, "")));
    assert_eq!(mount_of(&mounts, "data/a/b"), Some((1, "a/b")));
    assert_eq!(mount_of(&mounts, "data/hot/b"), Some((2, "b")));
    assert_eq!(mount_of(&mounts, "data/hotter"), Some((1, "hotter")));
    assert_eq!(mount_of(&mounts[1..], "other"), None);
}
