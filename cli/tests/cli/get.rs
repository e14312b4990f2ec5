//! Files that are copied out of the cache, and what they find at their target.

use super::*;

#[test]
fn fs_get_copies_whole_files_or_none() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let target = tempfile::tempdir().unwrap();
    let path = |name: &str| target.path().join(name);
    let large = content(5 * 65_536 + 123);
    node.fs_well(&["get", "large.bin", text(target.path())]);
    assert_eq!(std::fs::read(path("large.bin")).unwrap(), large);
    std::fs::write(path("other"), "old").unwrap();
    node.fs_well(&["get", "/large.bin", text(&path("other"))]);
    assert_eq!(std::fs::read(path("other")).unwrap(), large);

    let report = json(&node.fs_text(&["get", "-r", "--json", "/", text(&path("tree"))]));
    assert_eq!((&report["file_count"], &report["failed_count"]), (&6.into(), &0.into()));
    assert_eq!(report["total_bytes"], 2 * (5 * 65_536 + 123) + 65_536 + 16 + 18);
    assert_eq!(std::fs::read(path("tree/a/inside")).unwrap(), large);
    assert_eq!(std::fs::read(path("tree/a/b/c/exact")).unwrap(), content(65_536));
    assert_eq!(std::fs::read(path("tree/empty")).unwrap(), b"");
    assert!(!path("tree/outside").exists() && !path("tree/a/circle").exists());

    assert!(node.fs_fails(&["get", "a", text(&path("b"))]).contains("add -r"));
    assert!(node.fs_fails(&["get", "absent", text(&path("b"))]).contains("not found"));
    // A directory is in the way of a file: nothing is left beside it.
    std::fs::create_dir_all(path("way/large.bin")).unwrap();
    node.fs_fails(&["get", "large.bin", text(&path("way"))]);
    assert_eq!(std::fs::read_dir(path("way")).unwrap().count(), 1);
}

#[test]
fn fs_get_replaces_nothing_but_regular_files() {
    use std::os::unix::fs::FileTypeExt as _;

    let root = awkward_tree();
    let node = Node::start(root.path());
    let target = tempfile::tempdir().unwrap();
    let path = |name: &str| target.path().join(name);
    let large = content(5 * 65_536 + 123);
    let printed = node.fs(&["get", "large.bin", "-"]).output().unwrap();
    assert!(printed.status.success() && printed.stdout == large);
    std::fs::write(path("meant"), "old").unwrap();
    std::os::unix::fs::symlink("meant", path("link")).unwrap();
    node.fs_well(&["get", "large.bin", text(&path("link"))]);
    assert!(path("link").is_symlink());
    assert_eq!(std::fs::read(path("meant")).unwrap(), large);
    let modified = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let age = modified(&root.path().join("large.bin")).duration_since(modified(&path("meant")));
    assert!(age.unwrap() < std::time::Duration::from_millis(1), "it keeps the time of change");

    assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    let fifo = path("fifo");
    let reader = std::thread::spawn(move || std::fs::read(fifo).unwrap());
    node.fs_well(&["get", "large.bin", text(&path("fifo"))]);
    assert_eq!(reader.join().unwrap(), large);
    let is_fifo = || std::fs::metadata(path("fifo")).unwrap().file_type().is_fifo();
    assert!(is_fifo());
    // A tree leaves it, too, and goes on with the other files.
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::rename(path("fifo"), path("tree/large.bin")).unwrap();
    let said = node.fs_fails(&["get", "-r", "/", text(&path("tree"))]);
    assert!(said.contains("not a regular file") && path("tree/a/inside").is_file(), "{said}");
    assert!(std::fs::metadata(path("tree/large.bin")).unwrap().file_type().is_fifo());

    let said = node.fs_fails(&["get", "large.bin", text(&path("missing/file"))]);
    assert!(said.contains("make it first"), "{said}");
    assert!(!path("missing").exists());
}
