//! Stores that cannot be reached or refuse, and mounts that lie across each other: each is told, and nothing hangs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_client::{Client, Error, MountInfo, Status};
use millrace_tests::origin::Origin;
use millrace_tests::{BLOCK, HANG_GUARD, NodeOptions, Scratch, content};

/// Starts a node in front of a bucket at this endpoint, which must not come up; returns what it wrote.
fn told(endpoint: &str) -> String {
    let options = NodeOptions::new(Path::new("s3://box"));
    let options = options.set("source_option", format!("endpoint={endpoint}:skip_signature=true"));
    options.start_in_vain()
}

#[test]
fn what_keeps_a_store_from_being_reached_is_told() {
    let unknown = told("http://store.invalid:9000");
    assert!(unknown.contains("the host of the store is not known"), "{unknown}");
    let closed = told("http://127.0.0.1:9");
    assert!(closed.contains("nothing listens at the address of the store"), "{closed}");
    let origin = Origin::start();
    let plain = told(&origin.url().replace("http:", "https:"));
    assert!(plain.contains("speak TLS there"), "{plain}");
    // As most servers answer.
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let plain = format!("https://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The client may be gone by then.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 It\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let plain = told(&plain);
    assert!(plain.contains("write http:// if that is meant"), "{plain}");
    // A port that takes connections and answers nothing.
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let silent = format!("http://{}", listener.local_addr().expect("an address"));
    let options = NodeOptions::new(Path::new("s3://box"))
        .set("source_option", format!("endpoint={silent}:skip_signature=true"))
        .set("source_timeout_ms", 500);
    let silent = options.start_in_vain();
    assert!(silent.contains("does not answer"), "{silent}");
}

#[test]
fn what_a_bucket_refuses_is_told() {
    let origin = Origin::start();
    for (status, code, reason) in [
        (403, "SignatureDoesNotMatch", "the secret key is not the one of the access key"),
        (403, "InvalidAccessKeyId", "the store does not know the access key"),
        (403, "RequestTimeTooSkewed", "the clock of this machine and that of the store differ"),
        (403, "AccessDenied", "the node's credentials may not read or list this"),
        (400, "ExpiredToken", "the session token is too old"),
        (400, "AuthorizationHeaderMalformed", "the region is not the one of the bucket"),
        (404, "NoSuchBucket", "there is no such bucket"),
    ] {
        origin.refuse("box", status, code);
        let told = told(&origin.url());
        assert!(told.contains(reason), "{code}: {told}");
    }
}

/// Waits until a look-up has this outcome.
async fn until(client: &Client, path: &str, is_there: bool) {
    let seen = async {
        while client.stat(path).await.is_ok() != is_there {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, seen).await.expect("the change is seen");
}

#[tokio::test]
async fn mounts_across_each_other_end_and_show_what_is_theirs() {
    let scratch = Scratch::new();
    scratch.write("top", b"top");
    scratch.write("sub/deep", b"deep");
    let node = NodeOptions::new(scratch.root()).start();
    let client = node.client().await;
    let root = format!("file://{}", scratch.root().display());
    // The source itself, below itself, and a part of it beside that.
    for (path, source) in [("sub/again", root.clone()), ("part", format!("{root}/sub"))] {
        client.mount(&MountInfo::new(path, source, 1)).await.expect("mount");
    }
    until(&client, "part/deep", true).await;
    for (path, bytes) in [
        ("top", "top"),
        ("sub/again/top", "top"),
        ("sub/again/sub/deep", "deep"),
        ("part/deep", "deep"),
        ("sub/deep", "deep"),
    ] {
        let file = client.stat(path).await.expect(path);
        assert_eq!(client.read(&file, 0, 9).await.expect(path), bytes, "{path}");
    }
    let names = async |path: &str| -> Vec<String> {
        let entries = client.list(path).await.expect(path);
        entries.into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names("").await, ["part", "sub", "top"]);
    assert_eq!(names("sub").await, ["again", "deep"]);
    // What is mounted is not a part of the source: so the circle ends.
    assert_eq!(names("sub/again/sub").await, ["deep"]);
    for (path, source) in [("a/../b", &root), ("/abs", &root), ("", &"s3://elsewhere".to_owned())] {
        let refused = client.mount(&MountInfo::new(path, source, 1)).await;
        assert!(refused.is_err(), "{path} {source}");
    }
    node.stop();
}

#[tokio::test]
async fn a_mount_that_is_removed_under_readers_ends_with_a_clear_error() {
    let (origin, scratch) = (Origin::start(), Scratch::new());
    let length = 4 * BLOCK as usize;
    origin.put("box", "it", content::bytes("it", 0, length));
    let node = NodeOptions::new(scratch.root())
        .set("mount_root", format!("{}:s3://box", scratch.root().display()))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .start();
    let client = node.client().await;
    client.mount(&MountInfo::new("lake", "s3://box", 1)).await.expect("mount");
    until(&client, "lake/it", true).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let readers = (0..8).map(|_| {
        let (client, is_over) = (client.clone(), Arc::clone(&is_over));
        tokio::spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let read = async {
                    let file = client.stat("lake/it").await?;
                    client.read(&file, 0, u64::MAX).await
                };
                match read.await {
                    Ok(bytes) => assert_eq!(bytes, content::bytes("it", 0, length)),
                    Err(Error::Stale { .. }) => (),
                    Err(error) => {
                        assert_eq!(error.status(), Some(Status::NotFound), "{error}");
                    }
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for _ in 0..3 {
        client.unmount("lake").await.expect("unmount");
        until(&client, "lake/it", false).await;
        client.mount(&MountInfo::new("lake", "s3://box", 1)).await.expect("mount");
        until(&client, "lake/it", true).await;
    }
    is_over.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.expect("a reader");
    }
    node.stop();
}
