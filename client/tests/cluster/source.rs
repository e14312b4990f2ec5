//! What a client reads from the source itself, and from which source it does not.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig, Error, File};
use millrace_proto::feature;

use crate::fake::{BLOCK_COUNT, BLOCK_SIZE, Cluster, Fake, LENGTH, Mood, content};
use crate::{GUARD, config, connect, epoch, wait_until};

#[tokio::test]
async fn without_members_the_source_is_read_if_it_may_be() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("dir")).unwrap();
    let path = directory.path().join("dir/c");
    std::fs::write(&path, content("dir/c")).unwrap();
    let mut cluster = Cluster::start_at(2, 1, directory.path()).await;
    let allowed = ClientConfig { fallback_roots: vec![directory.path().to_owned()], ..config() };
    let client = Client::connect(&*cluster.fakes[0].address, allowed).await.unwrap();
    let forbidden = connect(&cluster).await;
    for fake in &mut cluster.fakes {
        fake.kill().await;
    }
    let file = client.stat("dir/c").await.unwrap();
    let source = format!("file://{}", directory.path().display());
    assert_eq!(
        millrace_proto::FileId::from(file.id),
        millrace_proto::source::file_id(&source, "dir/c")
    );
    assert_eq!((file.length, file.block_size), (LENGTH as u64, BLOCK_SIZE));
    assert!(client.read(&file, 0, u64::MAX).await.unwrap() == content("dir/c"));
    let many = client.read_many(&[(&file, 5, 10), (&file, 70_000, 1)]).await;
    assert!(many[0].as_ref().unwrap() == &content("dir/c")[5..15]);
    assert!(client.fallback_count() > BLOCK_COUNT as u64);
    let hasty = forbidden.with_deadline(Duration::from_millis(200));
    assert!(hasty.read(&file, 0, 10).await.is_err());
    assert_eq!(forbidden.fallback_count(), 0);
    // Nothing outside of the source, and nothing of another version.
    let hasty = client.with_deadline(Duration::from_millis(200));
    assert!(hasty.stat("../dir/c").await.is_err());
    std::fs::write(&path, b"other").unwrap();
    let error = client.read(&file, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
}

/// Shows that the client does not believe where a node says that a source lies, which is all that a node
/// says of it.
#[tokio::test]
async fn nothing_is_read_outside_of_the_roots_that_the_client_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for folder in ["allowed", "allowed/below", "allowed-not", "secret"] {
        std::fs::create_dir(path(folder)).unwrap();
        std::fs::write(path(folder).join("a"), content("a")).unwrap();
    }
    std::os::unix::fs::symlink("../secret", path("allowed/link")).unwrap();
    std::os::unix::fs::symlink(path("secret/a"), path("allowed/b")).unwrap();
    for (source, is_allowed) in [
        ("allowed", true),
        ("allowed/", true),
        ("allowed/below", true),
        ("allowed/link", false),
        ("allowed/../secret", false),
        ("allowed/below/../../secret", false),
        ("allowed-not", false),
        ("secret", false),
        ("", false),
    ] {
        let mut cluster = Cluster::start_at(1, 1, &path(source)).await;
        let roots = vec![path("allowed/below"), path("allowed")];
        let config = ClientConfig { fallback_roots: roots, ..config() };
        let client = Client::connect(&*cluster.fakes[0].address, config).await.unwrap();
        cluster.fakes[0].kill().await;
        let hasty =
            client.with_deadline(Duration::from_millis(if is_allowed { 20_000 } else { 300 }));
        let found = hasty.stat("a").await;
        assert_eq!(found.is_ok(), is_allowed, "{source}: {found:?}");
        if let Ok(file) = found {
            assert!(hasty.read(&file, 0, u64::MAX).await.unwrap() == content("a"), "{source}");
        }
        let hasty = client.with_deadline(Duration::from_millis(300));
        assert!(hasty.stat("b").await.is_err(), "{source}: out by a link");
    }
    let config = ClientConfig { fallback_roots: vec!["data".into()], ..config() };
    let error = Client::connect("127.0.0.1:1", config).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

#[tokio::test]
async fn a_file_is_not_read_from_another_source_than_it_was_looked_up_in() {
    let directory = tempfile::tempdir().unwrap();
    for folder in ["first", "second"] {
        std::fs::create_dir(directory.path().join(folder)).unwrap();
        std::fs::write(directory.path().join(folder).join("a"), content("a")).unwrap();
    }
    let mut cluster = Cluster::start_at(1, 1, &directory.path().join("first")).await;
    let config = ClientConfig { fallback_roots: vec![directory.path().to_owned()], ..config() };
    let client = Client::connect(&*cluster.fakes[0].address, config).await.unwrap();
    cluster.mounts[0].source = format!("file://{}", directory.path().join("second").display());
    cluster.tell(2, |_| true);
    wait_until("the client knows the new mount", || epoch(&client) == 2).await;
    cluster.fakes[0].kill().await;
    // It was found in the second source, and its number could be taken for one of the first.
    let second = client.stat("a").await.unwrap();
    assert!(client.read(&second, 0, 10).await.is_ok());
    let file = File { id: millrace_proto::source::file_id("file:///first", "a").into(), ..second };
    let error = client.read(&file, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
}

#[test]
fn a_member_that_is_late_counts_before_a_source_that_hangs_or_says_no() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), content("a")).unwrap();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let client_of = async |cluster: &Cluster| {
            let fallback_roots = vec![directory.path().to_owned(), "/fake".into()];
            let config = ClientConfig { fallback_roots, ..config() };
            Client::connect(&*cluster.fakes[0].address, config).await.unwrap()
        };
        // The source has no such file, and says so at once.
        let cluster = Cluster::start_at(1, 1, directory.path()).await;
        let client = client_of(&cluster).await;
        let file = client.stat("a").await.unwrap();
        cluster.fakes[0].set_mood(Mood::Slow(300));
        assert!(client.read(&file, 0, 100).await.unwrap() == content("a")[..100]);
        // The only thread that could read it has something else to do.
        let cluster = Cluster::start_at(1, 1, Path::new("/fake")).await;
        let client = client_of(&cluster).await;
        cluster.fakes[0].set_mood(Mood::Slow(300));
        let hang = tokio::task::spawn_blocking(move || released.recv());
        assert!(client.read(&file, 0, 100).await.unwrap() == content("a")[..100]);
        assert_eq!(client.fallback_count(), 0);
        drop(release);
        assert!(hang.await.unwrap().is_err());
    });
}

#[test]
fn a_source_that_hangs_does_not_keep_a_read_from_members_that_come_back() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let mut cluster = Cluster::start_at(1, 1, Path::new("/fake")).await;
        let allowed = ClientConfig { fallback_roots: vec!["/fake".into()], ..config() };
        let client = Client::connect(&*cluster.fakes[0].address, allowed).await.unwrap();
        let file = client.stat("a").await.unwrap();
        // The only thread that could read it has something else to do.
        let hang = tokio::task::spawn_blocking(move || released.recv());
        cluster.fakes[0].kill().await;
        let start = Instant::now();
        let back = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let again = Fake::start_at(&cluster.fakes[0].address, "n0", feature::ALL).await;
            again.state.ring.send_replace(cluster.ring(1, |_| true));
            again
        };
        let (read, _again) = tokio::join!(client.read(&file, 0, 100), back);
        assert!(read.unwrap() == content("a")[..100]);
        let elapsed = start.elapsed();
        assert!(elapsed < GUARD / 2, "{elapsed:?}");
        assert_eq!(client.fallback_count(), 0);
        drop(release);
        assert!(hang.await.unwrap().is_err());
    });
}
