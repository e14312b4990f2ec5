//! Which paths lead where: nothing leads out of the served directory, and nothing hangs.

use std::os::unix::fs::{PermissionsExt, symlink};

use millrace_client::{Kind, Status};
use millrace_proto::Op;
use millrace_proto::message::StatRequest;
use millrace_tests::{Node, NodeOptions, Scratch, content, wait_until};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Starts a node over a directory that has a secret beside it.
fn served(scratch: &Scratch) -> Node {
    scratch.file("secret", 100);
    scratch.file("root/a", 100_000);
    scratch.file("root/sub/b", 1000);
    NodeOptions::new(&scratch.at("root")).start()
}

#[test]
fn no_path_leads_out_of_the_root() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    symlink("../secret", scratch.at("root/up")).expect("make a link");
    symlink(scratch.at("secret"), scratch.at("root/absolute")).expect("make a link");
    symlink("..", scratch.at("root/parent")).expect("make a link");
    symlink("/proc/self/root", scratch.at("root/magic")).expect("make a link");
    symlink("loop", scratch.at("root/loop")).expect("make a link");
    let (mut peer, mut administrator) = (node.peer(), node.administrator());
    let denied = [
        "..",
        "../secret",
        "sub/../../secret",
        "sub/..",
        "/etc/passwd",
        "/",
        "up",
        "absolute",
        "parent",
        "parent/secret",
        "magic/etc/passwd",
        "loop",
    ];
    for path in denied {
        assert_eq!(peer.stat(path), Err(Status::PermissionDenied), "stat {path}");
        for op in [Op::List, Op::Load, Op::Free] {
            let request = StatRequest { path: path.to_owned() };
            let status = if op == Op::List {
                let list = millrace_proto::message::ListRequest {
                    path: path.to_owned(),
                    token: String::new(),
                    limit: 0,
                };
                peer.ask(op, &list).status()
            } else if op == Op::Free {
                administrator.ask(op, &request).status()
            } else {
                peer.ask(op, &request).status()
            };
            assert_eq!(status, Status::PermissionDenied, "{op:?} {path}");
        }
    }
    let invalid =
        [".", "./a", "a/.", "sub//b", "sub/", "a\0b", &"x/".repeat(3000), &"n".repeat(300)];
    for path in invalid {
        assert_eq!(peer.stat(path), Err(Status::InvalidArgument), "stat {path:.20}");
    }
    assert_eq!(peer.stat("missing"), Err(Status::NotFound));
    assert_eq!(peer.stat("a/below-a-file"), Err(Status::NotFound));
    assert_eq!(peer.stat("sub/missing/b"), Err(Status::NotFound));
    drop(peer);
    node.stop();
}

#[tokio::test]
async fn links_inside_the_root_work_and_links_out_are_not_listed() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    symlink("sub/b", scratch.at("root/link")).expect("make a link");
    symlink("sub", scratch.at("root/directory")).expect("make a link");
    symlink("../secret", scratch.at("root/out")).expect("make a link");
    symlink("nowhere", scratch.at("root/dangling")).expect("make a link");
    let client = node.client().await;
    for path in ["link", "directory/b", "sub/b"] {
        let file = client.stat(path).await.expect("stat");
        content::check("root/sub/b", 0, &client.read(&file, 0, u64::MAX).await.expect("read"));
    }
    let entries = client.list("").await.expect("list");
    let found: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    let expected = [
        ("a", Kind::File),
        ("directory", Kind::Directory),
        ("link", Kind::File),
        ("sub", Kind::Directory),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        client.stat("dangling").await.expect_err("dangling").status(),
        Some(Status::NotFound)
    );
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_directory_is_no_file_and_a_file_is_no_directory() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    let client = node.client().await;
    let directory = client.stat("sub").await.expect("stat");
    assert_eq!((directory.kind, directory.length), (Kind::Directory, 0));
    let read = client.read(&directory, 0, 10).await.expect_err("read a directory");
    assert_eq!(read.status(), Some(Status::WrongKind));
    let listed = client.list("a").await.expect_err("list a file");
    assert_eq!(listed.status(), Some(Status::WrongKind));
    assert_eq!(client.stat("").await.expect("the root").kind, Kind::Directory);
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_fifo_a_socket_and_a_device_are_told_apart_and_hang_nothing() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    let fifo = scratch.at("root/fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("make a FIFO");
    let _socket = std::os::unix::net::UnixListener::bind(scratch.at("root/socket")).expect("bind");
    let client = node.client().await;
    for path in ["fifo", "socket"] {
        assert_eq!(client.stat(path).await.expect_err(path).status(), Some(Status::WrongKind));
        assert_eq!(client.load(path).await.expect_err(path).status(), Some(Status::WrongKind));
    }
    let names: Vec<_> = client.list("").await.expect("list");
    assert_eq!(names.len(), 2, "neither is listed: {names:?}");
    // A FIFO takes the place of a file that was looked up.
    let file = client.stat("a").await.expect("stat");
    std::fs::rename(&fifo, scratch.at("root/a")).expect("rename");
    let read = client.read(&file, 0, 10).await.expect_err("read a FIFO");
    assert!(
        matches!(read, millrace_client::Error::Stale { .. })
            || read.status() == Some(Status::StaleVersion),
        "{read}"
    );
    drop(client);
    node.stop();
}

#[test]
fn a_file_that_may_not_be_read_is_denied() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    if rustix::process::geteuid().is_root() {
        println!("skipped: the superuser may read every file, so none can be denied");
        return;
    }
    let forbidden = Mode::from_raw_mode(0).as_raw_mode();
    std::fs::set_permissions(scratch.at("root/a"), PermissionsExt::from_mode(forbidden))
        .expect("chmod");
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat needs no permission on the file itself");
    assert_eq!(peer.read(&entry, 0, 10), Err(Status::PermissionDenied));
    drop(peer);
    node.stop();
}

#[tokio::test]
async fn a_source_that_goes_away_fails_clearly_and_is_served_again_when_it_is_back() {
    let scratch = Scratch::new();
    let mut node = served(&scratch);
    let client = node.client().await.with_deadline(std::time::Duration::from_millis(500));
    let file = client.stat("a").await.expect("stat");
    client.read(&file, 0, 10).await.expect("read");
    std::fs::rename(scratch.at("root"), scratch.at("away")).expect("move the source away");
    let gone = |error: millrace_client::Error| {
        let status = error.status();
        assert!(
            matches!(status, Some(Status::SourceError | Status::NotFound)),
            "{error} ({status:?})"
        );
    };
    gone(client.stat("sub/b").await.expect_err("the source is gone"));
    gone(client.list("").await.expect_err("the source is gone"));
    gone(client.read(&file, 70_000, 10).await.expect_err("the source is gone"));
    assert!(node.is_running());
    assert!(client.ping().await.is_ok());
    std::fs::rename(scratch.at("away"), scratch.at("root")).expect("move the source back");
    let file = client.stat("a").await.expect("stat");
    content::check("root/a", 0, &client.read(&file, 0, u64::MAX).await.expect("read"));
    // The directory is removed for good, then made again with another file in it.
    std::fs::remove_dir_all(scratch.at("root")).expect("remove");
    gone(client.stat("a").await.expect_err("the source is gone"));
    scratch.file("root/new", 5000);
    let file = client.stat("new").await.expect("stat");
    content::check("root/new", 0, &client.read(&file, 0, u64::MAX).await.expect("read"));
    drop(client);
    drop_without_error_check(node);
}

/// Stops a node whose log has the error of a source that went away.
fn drop_without_error_check(mut node: Node) {
    node.terminate();
    assert!(node.wait().success());
}

#[test]
fn a_missing_file_is_found_once_it_is_there() {
    let scratch = Scratch::new();
    let node = served(&scratch);
    let mut peer = node.peer();
    assert_eq!(peer.stat("late"), Err(Status::NotFound));
    scratch.file("root/late", 10);
    wait_until("the file is found", || peer.stat("late").is_ok());
    drop(peer);
    node.stop();
}

#[tokio::test]
async fn names_that_cannot_be_asked_for_are_counted_in_the_list_and_the_log() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    std::fs::write(scratch.at("good"), "x").expect("write");
    for name in [&b"bad\xff"[..], b"\xc3\x28"] {
        std::fs::write(scratch.root().join(std::ffi::OsStr::from_bytes(name)), "x").expect("write");
    }
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let entries = client.list("").await.expect("list");
    assert_eq!(entries.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["good"]);
    let page = client.listed_page("", None, 0).await.expect("list a page");
    assert_eq!((page.entries.len(), page.left_out_count), (1, 2));
    assert!(page.left_out_example.contains("not UTF-8"), "{}", page.left_out_example);
    let line = format!("in '{}/': 2 names are not UTF-8", scratch.root().display());
    wait_until("the log says so", || node.log().contains(&line));
    node.stop();
}
