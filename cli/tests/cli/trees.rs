//! Trees that cannot be had whole, or are deeper than most: nothing is left out in silence.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

/// Makes a directory with names that are not UTF-8, two beside each other and one further below.
fn tree_with_odd_names() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &[u8]| {
        let path = root.path().join(OsStr::from_bytes(path));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    };
    for path in [&b"good"[..], b"bad\xff", b"dir\xfe/inside", b"a/good", b"a/\xc3\x28"] {
        write(path);
    }
    root
}

#[test]
fn names_that_cannot_be_served_are_counted_and_end_with_1() {
    let source = tree_with_odd_names();
    let node = Node::start(source.path());
    let target = tempfile::tempdir().unwrap();
    let copy = target.path().join("copy");
    let verbs: &[(&[&str], &[&str])] = &[
        (&["ls"], &["/: 2 names cannot be served", "2 paths could not be listed"]),
        (&["ls", "-R"], &["/: 2 names", "a: 1 name cannot", "3 paths could not be listed"]),
        (&["find"], &["3 paths could not be listed"]),
        (&["du"], &["3 paths could not be listed"]),
        (&["load", "-r", "/"], &["a: 1 name cannot", "3 paths could not be loaded"]),
        (&["get", "-r", "/", text(&copy)], &["not UTF-8", "3 paths could not be copied"]),
    ];
    for (verb, words) in verbs {
        let told = node.fs_fails(verb);
        for word in *words {
            assert!(told.contains(word), "{verb:?} does not say {word:?}: {told}");
        }
    }
    // What can be served is there.
    assert!(copy.join("good").exists() && copy.join("a/good").exists());
    let report = said(node.fs(&["load", "-r", "/", "--json"]).output().unwrap());
    let report = json(&report.stdout);
    assert_eq!((&report["file_count"], &report["failed_count"]), (&2.into(), &3.into()));
}

#[test]
fn a_deep_tree_is_listed_loaded_and_copied_whole() {
    let source = tempfile::tempdir().unwrap();
    let deep: Vec<String> = (0..200).map(|level| format!("d{level:03}")).collect();
    let deep = deep.join("/");
    std::fs::create_dir_all(source.path().join(&deep)).unwrap();
    std::fs::write(source.path().join(&deep).join("bottom"), "deep").unwrap();
    let node = Node::start(source.path());
    let bottom = format!("{deep}/bottom");
    assert!(node.fs_text(&["ls", "-R"]).lines().any(|line| line == bottom));
    assert!(node.fs_text(&["load", "-r", "/"]).starts_with("loaded 1 file, "));
    let target = tempfile::tempdir().unwrap();
    node.fs_well(&["get", "-r", "/", text(target.path())]);
    assert_eq!(std::fs::read(target.path().join(bottom)).unwrap(), b"deep");
}
