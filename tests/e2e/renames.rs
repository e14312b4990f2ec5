//! Renames through the cache: one path becomes another, at the source and for every client.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use millrace_client::{Client, ClientConfig, Error, Kind, MountInfo, PutOptions, Status, blocking};
use millrace_proto::Op;
use millrace_proto::write::RenameRequest;
use millrace_tests::cluster::Cluster;
use millrace_tests::origin::{Origin, WriteFault};
use millrace_tests::process::program;
use millrace_tests::servers::Server;
use millrace_tests::{Node, NodeOptions, Peer, Scratch, content, wait_until};

fn writable(source: &Path) -> NodeOptions {
    NodeOptions::new(source).set("writable", true)
}

fn store(origin: &Origin) -> NodeOptions {
    writable(Path::new("s3://box"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Option<Status> {
    result.expect_err("it is refused").status()
}

#[tokio::test]
async fn a_file_is_found_at_its_new_path_alone() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    let bytes = content::bytes("it", 0, 300_000);
    client.put("a/it", &bytes[..], PutOptions::new()).await.expect("put");
    assert_eq!(read_whole(&client, "a/it").await.expect("read"), bytes);
    let file = client.rename("a/it", "b/c/new").await.expect("rename");
    assert_eq!((&*file.path, file.length), ("b/c/new", 300_000));
    assert_eq!(file, client.stat("b/c/new").await.expect("stat"));
    assert_eq!(refused(client.stat("a/it").await), Some(Status::NotFound));
    assert_eq!(node.counter("block_count"), 0, "the blocks of the old path are free");
    assert_eq!(read_whole(&client, "b/c/new").await.expect("read"), bytes);
    assert!(!scratch.at("a/it").exists());
    assert_eq!(std::fs::read(scratch.at("b/c/new")).expect("in the source"), bytes);
    node.stop();
}

#[tokio::test]
async fn a_file_at_the_new_path_is_replaced_unless_that_is_to_be_free() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    for (path, bytes) in [("one", b"1"), ("two", b"2"), ("three", b"3")] {
        client.put(path, &bytes[..], PutOptions::new()).await.expect("put");
        assert_eq!(read_whole(&client, path).await.expect("read"), bytes);
    }
    let taken = client.rename_if_absent("one", "two").await;
    assert_eq!(refused(taken), Some(Status::ConditionFailed));
    assert_eq!(read_whole(&client, "two").await.expect("read"), b"2");
    client.rename("one", "two").await.expect("replace");
    assert_eq!(read_whole(&client, "two").await.expect("read"), b"1");
    client.rename_if_absent("two", "four").await.expect("it is free");
    assert_eq!(read_whole(&client, "four").await.expect("read"), b"1");
    // Two names of one file: the old one goes.
    std::fs::hard_link(scratch.at("three"), scratch.at("link")).expect("link");
    client.rename("three", "link").await.expect("rename");
    assert!(!scratch.at("three").exists());
    assert_eq!(read_whole(&client, "link").await.expect("read"), b"3");
    node.stop();
}

#[tokio::test]
async fn a_directory_moves_whole_to_a_path_that_is_free() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    for path in ["run/a", "run/deep/b", "beside/c"] {
        client.put(path, path.as_bytes(), PutOptions::new()).await.expect("put");
        assert_eq!(read_whole(&client, path).await.expect("read"), path.as_bytes());
    }
    assert_eq!(node.counter("block_count"), 3);
    for taken in ["beside", "beside/c"] {
        assert_eq!(refused(client.rename("run", taken).await), Some(Status::WrongKind), "{taken}");
        let if_absent = client.rename_if_absent("run", taken).await;
        assert_eq!(refused(if_absent), Some(Status::ConditionFailed), "{taken}");
    }
    let file = client.rename("run", "done/7").await.expect("rename");
    assert_eq!(file.kind, Kind::Directory);
    assert_eq!(node.counter("block_count"), 1, "what lay below the old path is free");
    assert_eq!(read_whole(&client, "done/7/deep/b").await.expect("read"), b"run/deep/b");
    for gone in ["run", "run/a", "run/deep/b"] {
        assert_eq!(refused(client.stat(gone).await), Some(Status::NotFound), "{gone}");
    }
    assert_eq!(client.list("done/7").await.expect("list").len(), 2);
    node.stop();
}

#[tokio::test]
async fn what_cannot_be_renamed_is_told_and_stays() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    scratch.write("dir/it", b"it");
    symlink("it", scratch.at("dir/link")).expect("link");
    let roots = format!("{}:{}", scratch.root().display(), other.root().display());
    let node = writable(scratch.root()).set("mount_root", roots).start();
    let client = node.client_with(ClientConfig::new()).await;
    let source = format!("file://{}?writable=true", other.root().display());
    client.mount(&MountInfo::new("out", source, 1)).await.expect("mount");
    wait_until("it is mounted", || node.peer().stat("out").is_ok());
    for (old, new, expect, word) in [
        ("no", "new", Status::NotFound, "no such"),
        ("dir/it", "dir/it", Status::InvalidArgument, "the same"),
        ("dir", "dir/below", Status::InvalidArgument, "below"),
        ("dir/it", "dir", Status::WrongKind, "a directory"),
        ("dir/it", "dir/it2/../x", Status::PermissionDenied, ".."),
        ("dir/it", "../x", Status::PermissionDenied, ".."),
        ("", "x", Status::WrongKind, "mounted"),
        ("dir/it", "out/it", Status::InvalidArgument, "different mounts"),
        ("out", "in", Status::InvalidArgument, "different mounts"),
        ("dir/link", "dir/new", Status::WrongKind, "symbolic link"),
        ("dir/it", ".millrace-0123456789abcdef.tmp", Status::InvalidArgument, "another one"),
    ] {
        let error = client.rename(old, new).await.expect_err(old);
        let text = error.to_string();
        assert!(error.status() == Some(expect) && text.contains(word), "{old} {new}: {text}");
    }
    let odd = RenameRequest { path: "dir/it".into(), to: "x".into(), condition: 2 };
    assert_eq!(node.peer().ask(Op::Rename, &odd).status(), Status::InvalidArgument);
    assert_eq!(read_whole(&client, "dir/it").await.expect("read"), b"it");
    node.stop();
    let node = NodeOptions::new(scratch.root()).start();
    let error = node.client().await.rename("dir/it", "x").await.expect_err("read-only");
    assert!(error.to_string().contains("read-only"), "{error}");
    node.stop();
}

/// Runs a verb of the program at a node; returns its exit code and what it says.
fn verb(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program().expect("a binary"));
    command.arg("fs").args(arguments).args(["--node", &node.address().to_string()]);
    let output = command.output().expect("run the program");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("text"))
}

#[test]
fn the_program_moves_files_under_their_own_name_too() {
    let scratch = Scratch::new();
    for name in ["one", "two", "three"] {
        scratch.write(name, name.as_bytes());
    }
    let node = writable(scratch.root()).start();
    let moved = verb(&node, &["mv", "/one", "dir/"]);
    assert_eq!(moved, (Some(0), "one is now dir/one\n".to_owned()));
    let (code, said) = verb(&node, &["mv", "two", "dir/one", "--if-absent"]);
    assert!(code == Some(1) && said.contains("taken"), "{code:?} {said}");
    assert_eq!(verb(&node, &["mv", "two", "dir/one"]).0, Some(0));
    assert_eq!(std::fs::read(scratch.at("dir/one")).expect("read"), b"two");
    let (_, said) = verb(&node, &["mv", "dir", "new", "--json"]);
    assert!(
        said.contains("\"is_directory\": true") && said.contains("\"path\": \"new\""),
        "{said}"
    );
    let (code, said) = verb(&node, &["mv", "/", "x"]);
    assert!(code == Some(2) && said.contains("name a file or a directory"), "{code:?} {said}");
    assert_eq!(verb(&node, &["mv", "three", "/"]).0, Some(1), "it has that path");
    assert!(scratch.at("three").exists() && scratch.at("new/one").exists());
    node.stop();
}

#[test]
fn every_client_of_a_cluster_sees_the_new_names() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for _ in 0..2 {
        cluster.add();
    }
    for member in &mut cluster.members {
        member.set("writable", true);
        member.set("stale_after_ms", "never");
        member.start();
    }
    cluster.wait_settled();
    let addresses: Vec<_> = cluster.members.iter().map(|it| it.address()).collect();
    let mut peers: Vec<_> = addresses.iter().map(|it| Peer::connect(*it)).collect();
    let client = blocking::Client::connect(cluster.addresses(), Default::default());
    let client = client.expect("connect");
    let see = |peers: &mut [Peer], path: &str, bytes: &[u8]| {
        for peer in peers {
            let entry = peer.stat(path).expect(path);
            assert_eq!(peer.read(&entry, 0, 9).expect("read"), bytes);
        }
    };
    client.put("a/it", &b"it"[..], PutOptions::new()).expect("put");
    client.put("other", &b"other"[..], PutOptions::new()).expect("put");
    see(&mut peers, "a/it", b"it");
    see(&mut peers, "other", b"other");
    for (old, new, seen) in
        [("a/it", "a/new", "a/new"), ("a", "b", "b/new"), ("b/new", "other", "other")]
    {
        client.rename(old, new).expect(old);
        for peer in &mut peers {
            assert_eq!(peer.stat(old).expect_err("gone"), Status::NotFound, "{old}");
        }
        see(&mut peers, seen, b"it");
    }
    for peer in &mut peers {
        assert_eq!(peer.stat("a/new").expect_err("gone"), Status::NotFound);
    }
}

#[tokio::test]
async fn a_store_copies_and_deletes() {
    let origin = Origin::start();
    let bytes = content::bytes("it", 0, 200_000);
    origin.put("box", "a/it", bytes.clone());
    origin.put("box", "b/new", b"before".to_vec());
    let node = store(&origin).start();
    let client = node.client().await;
    assert_eq!(read_whole(&client, "a/it").await.expect("read"), bytes);
    assert_eq!(read_whole(&client, "b/new").await.expect("read"), b"before");
    let file = client.rename("a/it", "b/new").await.expect("rename");
    assert_eq!(file, client.stat("b/new").await.expect("stat"));
    assert_eq!(node.counter("block_count"), 0);
    assert_eq!(read_whole(&client, "b/new").await.expect("read"), bytes);
    assert_eq!(refused(client.stat("a/it").await), Some(Status::NotFound));
    assert_eq!(origin.get("box", "a/it"), None);
    let directory = client.rename("b", "c").await.expect_err("a directory");
    assert!(directory.to_string().contains("one by one"), "{directory}");
    assert_eq!(refused(client.rename("b/new", "b").await), Some(Status::WrongKind));
    let if_absent = client.rename_if_absent("b/new", "d").await.expect_err("not said to");
    assert!(if_absent.to_string().contains("copy_if_not_exists"), "{if_absent}");
    assert_eq!(read_whole(&client, "b/new").await.expect("it stays"), bytes);
    node.stop();
}

#[tokio::test]
async fn a_rename_whose_answer_is_lost_is_told_to_be_unknown() {
    let origin = Origin::start();
    origin.put("box", "it", b"it".to_vec());
    let node = store(&origin).set("source_timeout_ms", 1000).start();
    let client = node.client().await;
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"it");
    origin.break_writes(Some(WriteFault::Silent));
    let error = client.rename("it", "new").await.expect_err("silence");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    origin.break_writes(None);
    assert_eq!(read_whole(&client, "it").await.expect("it was not deleted"), b"it");
    assert_eq!(read_whole(&client, "new").await.expect("it was copied"), b"it");
    node.stop();
}

#[tokio::test]
async fn a_real_s3_server_renames_objects() {
    let Some(weed) = Server::weed() else { return };
    let node = writable(Path::new("s3://millrace-it"))
        .set("source_option", format!("endpoint={}:skip_signature=true", weed.url()))
        .start();
    let client = node.client().await;
    let bytes = content::bytes("it", 0, 3 << 20);
    client.put("deep/a b+c", &bytes[..], PutOptions::new()).await.expect("put");
    client.rename("deep/a b+c", "other/ü").await.expect("rename");
    assert!(read_whole(&client, "other/ü").await.expect("read") == bytes);
    assert_eq!(refused(client.stat("deep/a b+c").await), Some(Status::NotFound));
    node.stop();
}
