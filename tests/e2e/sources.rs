//! What a node notices of a change, on real file systems: each is made and mounted for its test. Where that
//! cannot be done the test says `skipped` and why, and claims nothing.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_client::{Client, Error, File};
use millrace_tests::fuse::{Fuse, State};
use millrace_tests::mounted::{Disk, Missing, MountPoint, needs_root, scratch, text, tool};
use millrace_tests::{BLOCK, Node, NodeOptions, content};

/// Length of the files of these tests: four blocks.
const LENGTH: usize = 4 * BLOCK as usize;

/// Returns what could be made, or prints why it could not and returns None.
fn or_skip<T>(made: Result<T, Missing>) -> Option<T> {
    made.inspect_err(|why| println!("skipped: {why}")).ok()
}

/// Reads a whole file and returns the version of its content.
async fn read_whole(client: &Client, file: &File) -> Option<u32> {
    let bytes = client.read(file, 0, u64::MAX).await.expect("read a file that stays as it is");
    assert_eq!(bytes.len(), LENGTH);
    content::version_of(0, &bytes)
}

/// Waits until a second has just begun: what is written now and soon has the same whole second.
fn wait_for_a_second() {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        if now.subsec_millis() < 30 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Rewrites a file in place as soon as a block of it was read, in the same second if that is how fast reads
/// are; nothing of the old one may be read as the new one.
async fn a_quick_rewrite_is_noticed(root: &Path) {
    let path = root.join("file");
    let node = NodeOptions::new(root).start();
    let client = node.client().await;
    for round in 0..3 {
        let (first, second) = (2 * round, 2 * round + 1);
        wait_for_a_second();
        std::fs::write(&path, content::versioned(first, LENGTH)).expect("write");
        let old = client.stat("file").await.expect("stat");
        let bytes = client.read(&old, 0, 8).await.expect("read a block");
        assert_eq!(content::version_of(0, &bytes), Some(first));
        std::fs::write(&path, content::versioned(second, LENGTH)).expect("write again");
        let new = client.stat("file").await.expect("stat again");
        assert_ne!(old.version, new.version, "round {round}");
        assert_eq!(read_whole(&client, &new).await, Some(second));
        let stale = client.read(&old, 0, 8).await;
        assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    }
    node.stop();
}

/// Returns the version that a node, started for this, reports of `file`.
async fn version_told(root: &Path, options: &str) -> (u64, Vec<u8>) {
    let node = NodeOptions::new(root).set("mount_options", options).start();
    let client = node.client().await;
    let file = client.stat("file").await.expect("stat");
    let bytes = client.read(&file, 0, 8).await.expect("read");
    node.stop();
    (file.version, bytes.to_vec())
}

/// Checks a disk: quick changes are noticed, and a version stays the same over restarts and mounts.
async fn is_good(disk: Result<Disk, Missing>) {
    let Some(mut disk) = or_skip(disk) else { return };
    a_quick_rewrite_is_noticed(disk.path()).await;
    let before = version_told(disk.path(), "").await;
    assert_eq!(version_told(disk.path(), "").await, before, "after a restart");
    disk.point.unmount();
    disk.mount().expect("mount again");
    assert_eq!(version_told(disk.path(), "").await, before, "after another mount");
}

#[tokio::test]
async fn on_ext4() {
    is_good(Disk::make("ext4", 32 << 20, &["mkfs.ext4", "-q"])).await;
}

#[tokio::test]
async fn on_ext4_with_times_in_whole_seconds() {
    is_good(Disk::make("ext4", 32 << 20, &["mkfs.ext4", "-q", "-I", "128"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_settles_keeps_no_other_from_being_read() {
    let disk = Disk::make("ext4", 32 << 20, &["mkfs.ext4", "-q", "-I", "128"]);
    let Some(disk) = or_skip(disk) else { return };
    std::fs::write(disk.path().join("old"), content::versioned(1, LENGTH)).expect("write");
    // Whole seconds settle for twice as long, and 200 ms.
    std::thread::sleep(Duration::from_millis(2300));
    let node = NodeOptions::new(disk.path()).set("fill_concurrency", 1).start();
    let client = node.client().await;
    let old = client.stat("old").await.expect("stat");
    std::fs::write(disk.path().join("young"), content::versioned(2, LENGTH)).expect("write");
    let young = client.stat("young").await.expect("stat");
    let settles = tokio::spawn({
        let other = node.client().await;
        async move { read_whole(&other, &young).await }
    });
    // By now the node has received the request.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(read_whole(&client, &old).await, Some(1));
    assert!(!settles.is_finished(), "it was left to settle, and others were read meanwhile");
    assert_eq!(settles.await.expect("a read"), Some(2));
    node.stop();
}

#[tokio::test]
async fn on_xfs() {
    is_good(Disk::make("xfs", 320 << 20, &["mkfs.xfs", "-q"])).await;
}

#[tokio::test]
async fn on_btrfs() {
    is_good(Disk::make("btrfs", 128 << 20, &["mkfs.btrfs", "-q"])).await;
}

#[tokio::test]
async fn on_vfat_whose_times_are_even_seconds() {
    let disk = Disk::make("vfat", 32 << 20, &["mkfs.vfat"]);
    let Some(disk) = or_skip(disk) else { return };
    // Numbers of inodes are made up again at each mount, so versions do not stay.
    a_quick_rewrite_is_noticed(disk.path()).await;
}

#[tokio::test]
async fn on_tmpfs() {
    let directory = scratch();
    let mut point = MountPoint::at(directory.path().join("mounted"));
    let Some(()) = or_skip(point.mount("tmpfs", "tmpfs", "size=16m")) else { return };
    a_quick_rewrite_is_noticed(point.path()).await;
    let before = version_told(point.path(), "").await;
    assert_eq!(version_told(point.path(), "").await, before, "after a restart");
}

/// Mounts an overlay of two directories.
fn overlay(directory: &Path) -> Result<MountPoint, Missing> {
    let at = |name: &str| {
        let path = directory.join(name);
        std::fs::create_dir_all(&path).expect("make a directory");
        path
    };
    let (lower, upper, used) = (at("lower"), at("upper"), at("used"));
    std::fs::write(lower.join("file"), content::versioned(7, LENGTH)).expect("write");
    let mut point = MountPoint::at(at("mounted"));
    let options =
        format!("lowerdir={},upperdir={},workdir={}", text(&lower), text(&upper), text(&used));
    point.mount("overlay", "overlay", &options)?;
    Ok(point)
}

#[tokio::test]
async fn on_overlayfs_also_when_a_file_moves_to_the_upper_layer() {
    let directory = scratch();
    let Some(point) = or_skip(overlay(directory.path())) else { return };
    let node = NodeOptions::new(point.path()).start();
    let client = node.client().await;
    let old = client.stat("file").await.expect("stat");
    assert_eq!(read_whole(&client, &old).await, Some(7));
    std::fs::write(point.path().join("file"), content::versioned(8, LENGTH)).expect("write");
    let new = client.stat("file").await.expect("stat again");
    assert_ne!(old.version, new.version);
    assert_eq!(read_whole(&client, &new).await, Some(8));
    node.stop();
    a_quick_rewrite_is_noticed(point.path()).await;
}

/// Makes an image with one file of this version of content; everything else of two images is the same.
fn image(kind: &str, directory: &Path, version: u32) -> Result<String, Missing> {
    needs_root()?;
    let tree = directory.join(format!("tree-{version}"));
    std::fs::create_dir_all(&tree).expect("make a directory");
    std::fs::write(tree.join("file"), content::versioned(version, LENGTH)).expect("write");
    let image = directory.join(format!("image-{version}"));
    let (tree, image) = (text(&tree), text(&image));
    match kind {
        "squashfs" => {
            let how = ["-quiet", "-noappend", "-all-root", "-noI", "-noD", "-noF"];
            let times = ["-all-time", "1000", "-mkfs-time", "1000"];
            tool("mksquashfs", &[&[tree, image][..], &how, &times].concat())?;
        }
        _ => {
            let uuid = "01234567-89ab-cdef-0123-456789abcdef";
            tool("mkfs.erofs", &["-T1000", "--all-root", "-U", uuid, image, tree])?;
        }
    }
    Ok(image.to_owned())
}

/// Checks two images that look the same but for the bytes of a file, one mounted after the other at one
/// path.
async fn images_are_told_apart(kind: &str) {
    let directory = scratch();
    let (first, second) = (image(kind, directory.path(), 1), image(kind, directory.path(), 2));
    let (Some(first), Some(second)) = (or_skip(first), or_skip(second)) else { return };
    let mut point = MountPoint::at(directory.path().join("mounted"));
    let Some(()) = or_skip(point.mount(&first, kind, "ro,loop")) else { return };
    let look = |path: &Path| {
        let found = std::fs::metadata(path).expect("look at the file");
        use std::os::unix::fs::MetadataExt;
        (found.ino(), found.size(), found.mtime(), found.mtime_nsec(), found.ctime())
    };
    let seen = look(&point.path().join("file"));
    let node = NodeOptions::new(point.path()).start();
    let client = node.client().await;
    let old = client.stat("file").await.expect("stat");
    let bytes = client.read(&old, 0, 8).await.expect("read a block");
    assert_eq!(content::version_of(0, &bytes), Some(1));
    point.unmount();
    point.mount(&second, kind, "ro,loop").expect("mount the other one");
    assert_eq!(look(&point.path().join("file")), seen, "the images look the same");
    let stale = client.read(&old, u64::from(BLOCK), 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "a block of the other image: {stale:?}");
    let new = client.stat("file").await.expect("stat again");
    assert_ne!(old.version, new.version);
    assert_eq!(read_whole(&client, &new).await, Some(2));
    node.stop();
    // The configuration says that the two are the same everywhere, and the node believes it.
    let shared = version_told(point.path(), "/=shared").await;
    point.unmount();
    point.mount(&first, kind, "ro,loop").expect("mount the first one again");
    assert_eq!(version_told(point.path(), "/=shared").await.0, shared.0);
    assert_ne!(version_told(point.path(), "").await.0, new.version);
}

#[tokio::test]
async fn another_squashfs_image_at_a_path_is_another_content() {
    images_are_told_apart("squashfs").await;
}

#[tokio::test]
async fn another_erofs_image_at_a_path_is_another_content() {
    images_are_told_apart("erofs").await;
}

/// Makes a file of a server, changed long ago.
fn served() -> Result<Fuse, Missing> {
    Fuse::mount(State { byte: b'A', length: LENGTH as u64, changed: 1_700_000_001 })
}

async fn reads(client: &Client, file: &File, offset: u64) -> Result<u8, Error> {
    let bytes = client.read(file, offset, 8).await?;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
    Ok(bytes[0])
}

#[tokio::test]
async fn attributes_that_the_kernel_remembers_are_not_believed() {
    let Some(fuse) = or_skip(served()) else { return };
    let node = NodeOptions::new(fuse.path()).start();
    let client = node.client().await;
    let old = client.stat("f").await.expect("stat");
    assert_eq!(reads(&client, &old, 0).await.expect("read a block"), b'A');
    fuse.change(|state| (state.byte, state.changed) = (b'B', 1_700_000_003));
    let stale = reads(&client, &old, u64::from(BLOCK)).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    let new = client.stat("f").await.expect("stat again");
    assert_ne!(old.version, new.version);
    for block in 0..4 {
        let byte = reads(&client, &new, block * u64::from(BLOCK)).await.expect("read");
        assert_eq!(byte, b'B');
    }
    fuse.change(|state| (state.byte, state.changed) = (b'C', 1_700_000_005));
    let newest = client.stat("f").await.expect("stat the third time");
    assert_ne!(newest.version, new.version, "by a look-up alone, too");
    node.stop();
}

#[tokio::test]
async fn a_change_without_a_trace_is_noticed_where_contents_are_compared() {
    let Some(fuse) = or_skip(served()) else { return };
    let mut node = NodeOptions::new(fuse.path()).set("mount_options", "/=content").start();
    let client = node.client().await;
    let old = client.stat("f").await.expect("stat");
    for block in 0..4 {
        assert_eq!(reads(&client, &old, block * u64::from(BLOCK)).await.expect("read"), b'A');
    }
    client.free("f").await.expect("free");
    assert_eq!(reads(&client, &old, 0).await.expect("read again"), b'A', "the same again");
    assert_eq!(node.counter("unnoticed_change_count"), 0);
    fuse.change(|state| state.byte = b'B');
    client.free("f").await.expect("free");
    let stale = reads(&client, &old, u64::from(BLOCK)).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    assert_eq!(node.counter("unnoticed_change_count"), 1);
    assert!(node.log().contains("changed at byte"), "an alarm");
    let new = client.stat("f").await.expect("stat again");
    assert_ne!(old.version, new.version);
    for block in 0..4 {
        let byte = reads(&client, &new, block * u64::from(BLOCK)).await.expect("read");
        assert_eq!(byte, b'B');
    }
    let stale = reads(&client, &old, 0).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "the old one is gone: {stale:?}");
    assert_eq!(client.stat("f").await.expect("stat").version, new.version);
    // This is not `stop`, which allows no error in the log.
    node.terminate();
    assert!(node.wait().success());
}

#[tokio::test]
async fn without_that_it_is_not_noticed_as_the_documentation_says() {
    let Some(fuse) = or_skip(served()) else { return };
    let node: Node = NodeOptions::new(fuse.path()).start();
    let client = node.client().await;
    let old = client.stat("f").await.expect("stat");
    assert_eq!(reads(&client, &old, 0).await.expect("read"), b'A');
    fuse.change(|state| state.byte = b'B');
    assert_eq!(client.stat("f").await.expect("stat again").version, old.version);
    node.stop();
}

#[tokio::test]
async fn a_file_of_more_blocks_than_can_be_is_neither_listed_nor_looked_up() {
    let directory = scratch();
    let mut point = MountPoint::at(directory.path().join("mounted"));
    let Some(()) = or_skip(point.mount("tmpfs", "tmpfs", "size=16m")) else { return };
    let huge = std::fs::File::create(point.path().join("huge")).expect("make a file");
    huge.set_len((1 << 48) + 1).expect("a sparse file");
    std::fs::write(point.path().join("small"), b"x").expect("write");
    let node = NodeOptions::new(point.path()).start();
    let client = node.client().await;
    let names: Vec<String> =
        client.list("").await.expect("list").into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["small"]);
    let refused = client.stat("huge").await.expect_err("too many blocks");
    assert_eq!(refused.status(), Some(millrace_client::Status::InvalidArgument));
    node.stop();
}
