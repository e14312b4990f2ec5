//! Writes to a directory through the cache: whole or not at all, and nothing left behind.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig, Error, MountInfo, PutOptions, Status, blocking};
use millrace_proto::write::{
    ArchivedPutReply, Condition, PutEndRequest, PutPartRequest, WriteRequest,
};
use millrace_proto::{Op, checksum, frame};
use millrace_tests::cluster::Cluster;
use millrace_tests::mounted::{self, MountPoint};
use millrace_tests::{HANG_GUARD, Node, NodeOptions, Peer, Scratch, content, wait_until};

fn writable(source: &Path) -> NodeOptions {
    NodeOptions::new(source).set("writable", true)
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

/// Returns the names in a directory, with those that a node hides.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("list");
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

fn status(error: &Error) -> Option<Status> {
    error.status()
}

/// Begins an upload on a connection of its own; returns its number.
fn begin(peer: &mut Peer, path: &str, condition: Condition) -> u64 {
    let reply = peer.ask(Op::Put, &WriteRequest::new(path, condition));
    assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
    frame::body::<ArchivedPutReply>(&reply.body).expect("a reply").upload.to_native()
}

fn part(upload: u64, offset: u64, bytes: &[u8]) -> PutPartRequest {
    let checksum = checksum::of(bytes);
    PutPartRequest { upload, offset, checksum, bytes: bytes.to_vec() }
}

#[tokio::test]
async fn what_is_put_is_read_and_lies_in_the_source() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    for (path, length) in [("empty", 0), ("one", 1), ("deep/er/two", 200_000), ("large", 9 << 20)] {
        let bytes = content::bytes(path, 0, length);
        let file = client.put(path, &bytes[..], PutOptions::new()).await.expect(path);
        assert_eq!(file.length, length as u64);
        assert_eq!(file, client.stat(path).await.expect("stat"), "{path}");
        assert_eq!(read_whole(&client, path).await.expect(path), bytes, "{path}");
        assert_eq!(std::fs::read(scratch.at(path)).expect("in the source"), bytes, "{path}");
    }
    assert_eq!(names(scratch.root()), ["deep", "empty", "large", "one"]);
    client.delete("deep/er/two").await.expect("delete");
    assert!(!scratch.at("deep/er/two").exists());
    let gone = client.stat("deep/er/two").await.expect_err("it is gone");
    assert_eq!(status(&gone), Some(Status::NotFound));
    let twice = client.delete("deep/er/two").await.expect_err("it is gone");
    assert_eq!(status(&twice), Some(Status::NotFound));
    for directory in ["deep", ""] {
        let put = client.put(directory, &b"x"[..], PutOptions::new()).await.expect_err("refused");
        let deleted = client.delete(directory).await.expect_err("refused");
        let both = [status(&put), status(&deleted)];
        assert_eq!(both, [Some(Status::WrongKind); 2], "'{directory}'");
    }
    let outside = client.put("../x", &b"x"[..], PutOptions::new()).await.expect_err("outside");
    assert_eq!(status(&outside), Some(Status::PermissionDenied));
    node.stop();
}

#[test]
fn threads_write_too() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = blocking::Client::connect(node.address().to_string(), Default::default());
    let client = client.expect("connect");
    let file = client.put("a", &[7; 300_000][..], PutOptions::new()).expect("put");
    let taken = client.put_if_absent("a", &b"other"[..]).expect_err("taken");
    assert_eq!(status(&taken), Some(Status::ConditionFailed));
    let new = client.put_if_version("a", file.version, &b"new"[..]).expect("the same version");
    let old = client.put_if_version("a", file.version, &b"newer"[..]).expect_err("another one");
    assert_eq!(status(&old), Some(Status::ConditionFailed));
    let kept = client.delete_if_version("a", file.version).expect_err("another one");
    assert_eq!(status(&kept), Some(Status::ConditionFailed));
    assert_eq!(std::fs::read(scratch.at("a")).expect("there"), b"new");
    client.delete_if_version("a", new.version).expect("delete");
    assert!(names(scratch.root()).is_empty());
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_source_is_read_only_unless_its_operator_says_otherwise() {
    let scratch = Scratch::new();
    scratch.file("it", 10);
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let put = client.put("new", &b"x"[..], PutOptions::new()).await.expect_err("read-only");
    let deleted = client.delete("it").await.expect_err("read-only");
    for error in [put, deleted] {
        assert_eq!(status(&error), Some(Status::PermissionDenied));
        let text = error.to_string();
        assert!(text.contains("read-only") && text.contains("--writable"), "{text}");
    }
    assert_eq!(names(scratch.root()), ["it"]);
    node.stop();
}

#[test]
fn writes_that_are_refused_hold_no_place_of_look_ups() {
    let scratch = Scratch::new();
    scratch.file("it", 10);
    let node = NodeOptions::new(scratch.root()).set("metadata_queue_max", 1).start();
    // Many more than there are places, on connections that stay.
    let mut peers = Vec::new();
    for number in 0..20 {
        let mut peer = node.peer();
        for _ in 0..4 {
            let path = format!("new-{number}");
            let mut reply = peer.ask(Op::Put, &WriteRequest::new(&path, Condition::None));
            wait_until("it is not one of too many", || {
                if reply.status() == Status::Busy {
                    reply = peer.ask(Op::Put, &WriteRequest::new(&path, Condition::None));
                }
                reply.status() != Status::Busy
            });
            assert_eq!(reply.status(), Status::PermissionDenied, "{}", reply.message());
        }
        peers.push(peer);
    }
    node.peer().stat("it").expect("there is a place for a look-up");
    node.stop();
}

#[tokio::test]
async fn a_mount_is_writable_if_it_says_so() {
    let (root, out) = (Scratch::new(), Scratch::new());
    let roots = format!("{}:{}", root.root().display(), out.root().display());
    let node = NodeOptions::new(root.root()).set("mount_root", roots).start();
    let client = node.client_with(ClientConfig::new()).await;
    let source = format!("file://{}", out.root().display());
    let seen = |path: &'static str| {
        let client = client.clone();
        async move {
            let put = client.put(path, &b"x"[..], PutOptions::new()).await;
            put.map(|file| file.length).map_err(|error| status(&error))
        }
    };
    for (terms, expect) in [("", Err(Some(Status::PermissionDenied))), ("?writable=true", Ok(1))] {
        let mount = MountInfo::new("out", format!("{source}{terms}"), 1);
        client.mount(&mount).await.expect("mount");
        let start = Instant::now();
        while seen("out/new").await != expect {
            assert!(start.elapsed() < HANG_GUARD, "{terms} counts");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(std::fs::read(out.at("new")).expect("there"), b"x");
    assert_eq!(seen("beside").await, Err(Some(Status::PermissionDenied)));
    assert!(names(root.root()).is_empty());
    node.stop();
}

#[tokio::test]
async fn readers_see_one_version_whole_while_it_is_replaced() {
    const LENGTH: usize = 400_000;
    const LAST: u32 = 15;
    let scratch = Scratch::new();
    scratch.write("it", &content::versioned(1, LENGTH));
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    let writer = client.clone();
    let writes = tokio::spawn(async move {
        for version in 2..LAST + 1 {
            let bytes = content::versioned(version, LENGTH);
            tokio::time::sleep(Duration::from_millis(200)).await;
            writer.put("it", &bytes[..], PutOptions::new()).await.expect("put");
        }
    });
    let mut last = 0;
    let mut count = 0;
    while last < LAST {
        let bytes = match read_whole(&client, "it").await {
            Ok(bytes) => bytes,
            Err(Error::Stale { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let version = content::version_of(0, &bytes).expect("one version");
        assert_eq!(bytes, content::versioned(version, LENGTH), "of version {version}");
        assert!(version >= last, "{version} after {last}");
        last = version;
        count += 1;
    }
    writes.await.expect("all writes");
    assert!(count > 1, "some were read in between");
    node.stop();
}

#[tokio::test]
async fn of_writers_that_want_the_path_free_exactly_one_wins() {
    let scratch = Scratch::new();
    let nodes = [writable(scratch.root()).start(), writable(scratch.root()).start()];
    let clients = [nodes[0].client().await, nodes[1].client().await];
    for round in 0..10 {
        let path = format!("commit/{round}");
        let writers = (0..4_u8).map(|writer| {
            let (client, path) = (clients[usize::from(writer) % 2].clone(), path.clone());
            tokio::spawn(async move { client.put_if_absent(&path, &[writer; 1000][..]).await })
        });
        let mut winners = Vec::new();
        for (writer, result) in writers.collect::<Vec<_>>().into_iter().enumerate() {
            match result.await.expect("a task") {
                Ok(_) => winners.push(writer as u8),
                Err(error) => assert_eq!(status(&error), Some(Status::ConditionFailed), "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let bytes = std::fs::read(scratch.at(&path)).expect("there");
        assert_eq!(bytes, vec![winners[0]; 1000]);
    }
    assert_eq!(names(&scratch.at("commit")).len(), 10);
    for node in nodes {
        node.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_abandons_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.write("it", b"old");
    let node = writable(scratch.root()).start();
    let mut peer = node.peer();
    let upload = begin(&mut peer, "it", Condition::None);
    assert_eq!(peer.ask(Op::PutPart, &part(upload, 0, &[1; 50_000])).status(), Status::Ok);
    assert_eq!(names(scratch.root()).len(), 2, "it is being written");
    let client = node.client().await;
    let listed = client.list("").await.expect("list");
    assert_eq!(listed.len(), 1, "a file that is being written is not listed: {listed:?}");
    drop(peer);
    wait_until("it is removed", || names(scratch.root()) == ["it"]);
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
    // The same for a client that goes in the middle.
    let mut upload = client.upload("it", PutOptions::new()).await.expect("begin");
    upload.write(&[2; 500_000]).await.expect("write");
    drop(upload);
    wait_until("it is removed", || names(scratch.root()) == ["it"]);
    assert_eq!(std::fs::read(scratch.at("it")).expect("read"), b"old");
    node.stop();
}

#[test]
fn an_upload_that_breaks_the_rules_ends_and_leaves_nothing() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let mut peer = node.peer();
    let damaged = |upload| PutPartRequest { checksum: 7, ..part(upload, 0, b"abc") };
    let wrong: [(&dyn Fn(u64) -> PutPartRequest, Status); 3] = [
        (&|upload| part(upload, 5, b"abc"), Status::InvalidArgument),
        (&|upload| part(upload, 0, b""), Status::InvalidArgument),
        (&damaged, Status::BadChecksum),
    ];
    for (wrong, expect) in wrong {
        let upload = begin(&mut peer, "it", Condition::None);
        assert_eq!(peer.ask(Op::PutPart, &wrong(upload)).status(), expect);
        let after = peer.ask(Op::PutPart, &part(upload, 0, b"abc"));
        assert_ne!(after.status(), Status::Ok, "it has ended");
    }
    let upload = begin(&mut peer, "it", Condition::None);
    assert_eq!(peer.ask(Op::PutPart, &part(upload, 0, b"abc")).status(), Status::Ok);
    let short = peer.ask(Op::PutEnd, &PutEndRequest { upload, length: 4 });
    assert_eq!(short.status(), Status::InvalidArgument, "{}", short.message());
    // An upload of another connection.
    let upload = begin(&mut peer, "it", Condition::None);
    let stolen = node.peer().ask(Op::PutPart, &part(upload, 0, b"abc"));
    assert_eq!(stolen.status(), Status::InvalidArgument);
    let unknown = WriteRequest { path: "it".into(), condition: 9, version: 0 };
    assert_eq!(peer.ask(Op::Put, &unknown).status(), Status::InvalidArgument);
    drop(peer);
    wait_until("all are gone", || names(scratch.root()).is_empty());
    node.stop();
}

#[test]
fn uploads_are_few_for_a_connection_and_for_a_node() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).set("upload_concurrency", 6).start();
    let (mut first, mut second) = (node.peer(), node.peer());
    let put = |peer: &mut Peer, name: u32| {
        let reply = peer.ask(Op::Put, &WriteRequest::new(&name.to_string(), Condition::None));
        (reply.status(), reply.message())
    };
    for name in 0..4 {
        assert_eq!(put(&mut first, name).0, Status::Ok);
    }
    let (status, message) = put(&mut first, 4);
    assert!(status == Status::Busy && message.contains("a connection may have"), "{message}");
    for name in 5..7 {
        assert_eq!(put(&mut second, name).0, Status::Ok);
    }
    let (status, message) = put(&mut second, 7);
    assert!(status == Status::Busy && message.contains("upload_concurrency"), "{message}");
    drop(first);
    wait_until("there is room again", || put(&mut second, 8).0 == Status::Ok);
    drop(second);
    node.stop();
}

#[tokio::test]
async fn a_full_disk_is_told_and_keeps_the_file_before() {
    let scratch = Scratch::new();
    let mut disk = MountPoint::at(scratch.at("small"));
    if let Err(missing) =
        mounted::needs_root().and_then(|()| disk.mount("tmpfs", "tmpfs", "size=4m"))
    {
        println!("skipped: {missing}");
        return;
    }
    std::fs::write(disk.path().join("it"), b"old").expect("write");
    let node = writable(disk.path()).start();
    let client = node.client().await;
    let full = client.put("it", &vec![1; 8 << 20][..], PutOptions::new()).await;
    let full = full.expect_err("there is no room");
    assert!(full.to_string().contains("is full; nothing was written"), "{full}");
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
    wait_until("it is removed", || names(disk.path()) == ["it"]);
    client.put("it", &b"new"[..], PutOptions::new()).await.expect("there is room for this");
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"new");
    node.stop();
    disk.unmount();
}

#[tokio::test]
async fn what_a_node_that_died_left_behind_goes_at_the_next_write() {
    let scratch = Scratch::new();
    let mut node = writable(scratch.root()).start();
    let mut peer = node.peer();
    let upload = begin(&mut peer, "it", Condition::None);
    assert_eq!(peer.ask(Op::PutPart, &part(upload, 0, b"abc")).status(), Status::Ok);
    node.kill();
    let left = names(scratch.root());
    assert_eq!(left.len(), 1, "{left:?}");
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let file = std::fs::File::options().write(true).open(scratch.at(&left[0])).expect("open");
    file.set_modified(old).expect("make it old");
    node.restart();
    let client = node.client().await;
    assert!(client.list("").await.expect("list").is_empty(), "it is hidden");
    // Files of other names stay, however much they look like it.
    scratch.write(".millrace-notes.tmp", b"mine");
    client.put("new", &b"x"[..], PutOptions::new()).await.expect("put");
    assert_eq!(names(scratch.root()), [".millrace-notes.tmp", "new"]);
    assert_eq!(client.list("").await.expect("list").len(), 2);
    node.stop();
}

#[tokio::test]
async fn a_file_that_is_replaced_keeps_its_permissions() {
    let scratch = Scratch::new();
    let mode = |path: &str| {
        let about = std::fs::metadata(scratch.at(path)).expect("there");
        about.permissions().mode() & 0o7777
    };
    scratch.write("like", b"a file that is made with the umask");
    let node = writable(scratch.root()).start();
    let mut peer = node.peer();
    for (path, before, after) in [
        ("secret", Some(0o600), 0o600),
        ("program", Some(0o4755), 0o755),
        ("open", Some(0o666), 0o666),
        ("new", None, mode("like")),
    ] {
        if let Some(before) = before {
            scratch.write(path, b"old");
            let before = std::fs::Permissions::from_mode(before);
            std::fs::set_permissions(scratch.at(path), before).expect("change the mode");
        }
        let upload = begin(&mut peer, path, Condition::None);
        assert_eq!(peer.ask(Op::PutPart, &part(upload, 0, b"new")).status(), Status::Ok);
        let written = names(scratch.root()).into_iter().find(|name| name.ends_with(".tmp"));
        let written = written.expect("it is being written");
        assert_eq!(mode(&written), 0o600, "{path}: others do not read it yet");
        let end = peer.ask(Op::PutEnd, &PutEndRequest { upload, length: 3 });
        assert_eq!(end.status(), Status::Ok, "{}", end.message());
        assert_eq!(mode(path), after, "{path}: {:o}", mode(path));
        assert_eq!(std::fs::read(scratch.at(path)).expect("read"), b"new");
    }
    node.stop();
}

#[test]
fn what_is_put_through_one_member_is_seen_through_the_others() {
    see_writes("0");
    // Not even where look-ups are believed for good is anything older believed.
    see_writes("never");
}

/// Writes through one member and looks through all, whose look-ups are believed for this long.
fn see_writes(stale_after_ms: &str) {
    let scratch = Scratch::new();
    scratch.write("it", b"old");
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for _ in 0..2 {
        cluster.add();
    }
    for member in &mut cluster.members {
        member.set("writable", true);
        member.set("stale_after_ms", stale_after_ms);
        member.start();
    }
    cluster.wait_settled();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let addresses: Vec<_> = cluster.members.iter().map(|it| it.address()).collect();
        let mut peers: Vec<_> = addresses.iter().map(|it| Peer::connect(*it)).collect();
        let client = cluster.client().await;
        for round in 0..5_u8 {
            // Both members have blocks of the version before.
            for peer in &mut peers {
                let entry = peer.stat("it").expect("stat");
                peer.read(&entry, 0, 3).expect("read");
            }
            let file = client.put("it", &[round; 3][..], PutOptions::new()).await.expect("put");
            for peer in &mut peers {
                let entry = peer.stat("it").expect("stat");
                assert_eq!(entry.version, file.version);
                assert_eq!(peer.read(&entry, 0, 3).expect("read"), [round; 3]);
            }
        }
        client.delete("it").await.expect("delete");
        for peer in &mut peers {
            assert_eq!(peer.stat("it").expect_err("gone"), Status::NotFound);
        }
        let file = client.put("it", &b"again"[..], PutOptions::new()).await.expect("put");
        for peer in &mut peers {
            assert_eq!(peer.stat("it").expect("it is there again").version, file.version);
        }
    });
}

#[tokio::test]
async fn a_delete_does_not_go_through_a_link() {
    let scratch = Scratch::new();
    scratch.write("datasets/file", b"kept");
    scratch.write("run/plain", b"x");
    symlink("../datasets", scratch.at("run/data")).expect("link");
    symlink("../datasets/file", scratch.at("run/last")).expect("link");
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    let refused = client.delete("run/data/file").await.expect_err("through a link");
    assert_eq!(status(&refused), Some(Status::WrongKind));
    let text = refused.to_string();
    assert!(text.contains("symbolic link") && text.contains("its real path"), "{text}");
    assert_eq!(std::fs::read(scratch.at("datasets/file")).expect("it stays"), b"kept");
    client.delete("run/plain").await.expect("a plain file");
    client.delete("run/last").await.expect("the link itself");
    assert_eq!(names(&scratch.at("run")), ["data"]);
    assert_eq!(std::fs::read(scratch.at("datasets/file")).expect("it stays"), b"kept");
    client.delete("datasets/file").await.expect("by its real path");
    assert!(names(&scratch.at("datasets")).is_empty());
    node.stop();
}

#[tokio::test]
async fn a_path_of_very_many_new_directories_is_refused() {
    let scratch = Scratch::new();
    let node = writable(scratch.root()).start();
    let client = node.client().await;
    for levels in [2000, 129] {
        let path = "a/".repeat(levels) + "x";
        let refused = client.put(&path, &b"x"[..], PutOptions::new()).await.expect_err("too deep");
        assert_eq!(status(&refused), Some(Status::InvalidArgument), "{levels}: {refused}");
        assert!(refused.to_string().contains("at most 128"), "{refused}");
        assert!(names(scratch.root()).is_empty(), "{levels}");
    }
    let path = "a/".repeat(128) + "x";
    client.put(&path, &b"deep"[..], PutOptions::new()).await.expect("as deep as it may be");
    assert_eq!(read_whole(&client, &path).await.expect("read"), b"deep");
    node.stop();
}

#[test]
fn directories_that_an_abandoned_upload_made_go_with_it() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.at("before")).expect("make a directory");
    let node = writable(scratch.root()).start();
    let (mut first, mut second) = (node.peer(), node.peer());
    begin(&mut first, "a/b/c/x", Condition::None);
    begin(&mut first, "before/d/x", Condition::None);
    assert_eq!(names(&scratch.at("a/b/c")).len(), 1, "it is being written");
    drop(first);
    wait_until("they are gone", || {
        names(scratch.root()) == ["before"] && names(&scratch.at("before")).is_empty()
    });
    // What another one has put there stays, and with it what is above.
    let mut first = node.peer();
    begin(&mut first, "a/b/c/x", Condition::None);
    let upload = begin(&mut second, "a/b/y", Condition::None);
    let end = second.ask(Op::PutEnd, &PutEndRequest { upload, length: 0 });
    assert_eq!(end.status(), Status::Ok, "{}", end.message());
    drop(first);
    wait_until("the rest is gone", || names(&scratch.at("a/b")) == ["y"]);
    node.stop();
}

#[test]
fn a_file_whose_directory_was_moved_is_not_written_elsewhere() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.at("here")).expect("make a directory");
    let node = writable(scratch.root()).start();
    let mut peer = node.peer();
    for has_another in [true, false] {
        let upload = begin(&mut peer, "here/x", Condition::None);
        std::fs::rename(scratch.at("here"), scratch.at("there")).expect("rename");
        if has_another {
            std::fs::create_dir(scratch.at("here")).expect("make another one");
        }
        let end = peer.ask(Op::PutEnd, &PutEndRequest { upload, length: 0 });
        assert_ne!(end.status(), Status::Ok);
        assert!(end.message().contains("was moved"), "{}", end.message());
        wait_until("nothing is left", || names(&scratch.at("there")).is_empty());
        std::fs::remove_dir(scratch.at("there")).expect("remove");
    }
    assert!(names(scratch.root()).is_empty());
    node.stop();
}

#[test]
fn a_delete_that_waited_for_its_directory_deletes_in_no_other() {
    let scratch = Scratch::new();
    scratch.write("here/x", b"old");
    let node = writable(scratch.root()).start();
    let mut peer = node.peer();
    let locked = std::fs::File::open(scratch.at("here")).expect("open a directory");
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).expect("lock it");
    let opened = |place: PathBuf| {
        let files = std::fs::read_dir(format!("/proc/{}/fd", node.id())).expect("its files");
        files.flatten().any(|it| std::fs::read_link(it.path()).is_ok_and(|to| to == place))
    };
    peer.send(Op::Delete, &WriteRequest::new("here/x", Condition::None));
    wait_until("the delete waits for the lock", || opened(scratch.at("here")));
    std::fs::rename(scratch.at("here"), scratch.at("there")).expect("rename");
    scratch.write("here/x", b"new");
    drop(locked);
    let refused = peer.receive();
    assert_ne!(refused.status(), Status::Ok);
    assert_eq!(std::fs::read(scratch.at("there/x")).expect("it stays"), b"old");
    assert_eq!(std::fs::read(scratch.at("here/x")).expect("it stays"), b"new");
    let done = peer.ask(Op::Delete, &WriteRequest::new("here/x", Condition::None));
    assert_eq!(done.status(), Status::Ok, "{}", done.message());
    assert!(names(&scratch.at("here")).is_empty());
    node.stop();
}
