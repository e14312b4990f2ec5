//! A directory as the source: what is served, what is refused, and what a change does.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use std::time::Duration;

use millrace_proto::source::SETTLE;
use rustix::fs::{FileType, Mode};

use super::*;
use crate::memory::{Arena, ShardMemory};

fn machine() -> Arc<Machine> {
    Arc::new(Machine::start(&crate::config::Config::tiny(PathBuf::new())).unwrap())
}

struct Fixture {
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    store: LocalStore,
    memory: ShardMemory,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Fixture {
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
            store: LocalStore::new(
                &machine(),
                Root::whole(&root),
                "file://test",
                DeviceRule::ByType,
            ),
            directory,
            memory: Arena::new(1024).unwrap().cut(1).pop().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn stat(&self, path: &str) -> Result<Found, StoreError> {
        self.runtime.block_on(self.store.stat(path.into()))
    }

    fn list(&self, path: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.runtime.block_on(self.store.list(path.into(), after.into(), limit))
    }

    fn rename(&self, from: &str, to: &str) -> Result<Found, StoreError> {
        self.runtime.block_on(self.store.rename(from.into(), to.into(), Condition::None))
    }

    /// Fills a block, after its file has settled, and returns the CRC-32 of its bytes.
    fn fill(
        &mut self,
        path: &str,
        version: u64,
        offset: u64,
        length: u32,
    ) -> Result<u32, StoreError> {
        let file = self.store.identify(path);
        let mut part = Part { file, path: path.into(), version, offset, is_settled: false };
        let result = self.fill_part(part.clone(), length);
        let time = match result {
            Err(StoreError::Settling(time) | StoreError::Fresh(time)) => time,
            Err(StoreError::NotShowing(_)) => SETTLE,
            result => return result,
        };
        assert!(time <= Duration::from_secs(5), "{time:?}");
        std::thread::sleep(time);
        part.is_settled = true;
        self.fill_part(part, length)
    }

    fn fill_part(&mut self, part: Part, length: u32) -> Result<u32, StoreError> {
        let blank = self.memory.allocate(length).unwrap();
        let (blank, result) = self.runtime.block_on(self.store.fill(part, blank, Arc::default()));
        match result {
            Ok(()) => {
                let (block, sums) = blank.freeze();
                self.memory.release(block);
                Ok(sums.block)
            }
            Err(error) => {
                self.memory.release_blank(blank);
                match error {
                    FillError::Store(error) => Err(error),
                    error => panic!("{error:?}"),
                }
            }
        }
    }
}

fn names(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn fills_the_asked_part_of_a_file() {
    let mut fixture = Fixture::new();
    let bytes: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
    fixture.write("a", &bytes);
    let found = fixture.stat("a").unwrap();
    assert_eq!((found.kind, found.length), (Kind::File, 200_000));
    let sum = fixture.fill("a", found.version, 65536, 70_000).unwrap();
    assert_eq!(sum, crc32fast::hash(&bytes[65536..135_536]));
}

#[test]
fn a_changed_file_has_another_version_and_the_old_one_is_refused() {
    let mut fixture = Fixture::new();
    fixture.write("a", b"one");
    let old = fixture.stat("a").unwrap();
    fixture.fill("a", old.version, 0, 3).unwrap();
    fixture.write("a", b"two");
    let new = fixture.stat("a").unwrap();
    assert_ne!(old.version, new.version);
    assert_eq!(fixture.fill("a", old.version, 0, 3), Err(StoreError::Changed));
    assert_eq!(fixture.fill("a", new.version, 0, 3), Ok(crc32fast::hash(b"two")));
}

#[test]
fn a_file_that_shrank_or_vanished_is_told() {
    let mut fixture = Fixture::new();
    fixture.write("a", &[7; 10_000]);
    let found = fixture.stat("a").unwrap();
    fixture.write("a", &[7; 10]);
    assert_eq!(fixture.fill("a", found.version, 0, 10_000), Err(StoreError::Changed));
    std::fs::remove_file(fixture.path("a")).unwrap();
    assert_eq!(fixture.fill("a", found.version, 0, 10_000), Err(StoreError::NotFound));
}

#[test]
fn no_path_leads_out_of_the_root() {
    let fixture = Fixture::new();
    std::fs::write(fixture.directory.path().join("secret"), b"no").unwrap();
    symlink("../secret", fixture.path("relative")).unwrap();
    symlink("/etc/passwd", fixture.path("absolute")).unwrap();
    symlink("..", fixture.path("up")).unwrap();
    fixture.write("inside", b"yes");
    symlink("inside", fixture.path("link")).unwrap();
    for path in ["../secret", "/etc/passwd", "relative", "absolute", "up/secret", "a/../../secret"]
    {
        assert!(matches!(fixture.stat(path), Err(StoreError::Denied(_))), "{path}");
    }
    assert_eq!(fixture.stat("link").unwrap().length, 3);
    assert_eq!(names(&fixture.list("", "", 100).unwrap()), ["inside", "link"]);
    for path in ["a//b", "./inside", "inside/", "a\0b"] {
        assert!(matches!(fixture.stat(path), Err(StoreError::InvalidPath(_))), "{path:?}");
    }
}

#[test]
fn pages_of_a_directory_join_to_the_whole() {
    let fixture = Fixture::new();
    let mut expected: Vec<String> = (0..57).map(|index| format!("file {index}")).collect();
    for name in &expected {
        fixture.write(name, b"x");
    }
    std::fs::create_dir(fixture.path("directory")).unwrap();
    expected.push("directory".to_owned());
    expected.sort();
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let page = fixture.list("", &after, 10).unwrap();
        found.extend(names(&page).into_iter().map(str::to_owned));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(found, expected);
}

#[test]
fn what_is_neither_file_nor_directory_is_not_served() {
    let mut fixture = Fixture::new();
    let fifo = fixture.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(matches!(fixture.stat("fifo"), Err(StoreError::WrongKind(_))));
    // A writer that waits for a reader goes on when there is one: it must not be this node.
    let (done, opened) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || {
            let file = rustix::fs::open(fifo, OFlags::WRONLY, Mode::empty());
            let _ = done.send(());
            drop(file);
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fixture.fill("fifo", 1, 0, 10), Err(StoreError::Changed));
    assert!(opened.recv_timeout(Duration::from_millis(200)).is_err(), "the node opened it");
    drop(rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap());
    writer.join().unwrap();
    assert!(fixture.list("", "", 10).unwrap().entries.is_empty());
    fixture.write("file", b"x");
    assert!(matches!(fixture.list("file", "", 10), Err(StoreError::WrongKind(_))));
}

#[test]
fn a_root_that_is_removed_and_made_again_is_served_again() {
    let fixture = Fixture::new();
    fixture.write("a", b"x");
    std::fs::remove_dir_all(fixture.path("")).unwrap();
    assert!(matches!(fixture.stat("a"), Err(StoreError::Failed(_))));
    std::fs::create_dir(fixture.path("")).unwrap();
    fixture.write("a", b"x");
    assert_eq!(fixture.stat("a").unwrap().length, 1);
}

#[test]
fn a_file_that_changed_a_moment_ago_is_left_to_settle_and_no_thread_waits() {
    let mut fixture = Fixture::new();
    fixture.write("a", b"one");
    let found = fixture.stat("a").unwrap();
    let (file, version) = (fixture.store.identify("a"), found.version);
    let part = Part { file, path: "a".into(), version, offset: 0, is_settled: false };
    let mut result = fixture.fill_part(part.clone(), 3);
    while let Err(StoreError::NotShowing(tick)) = result {
        // A change of this very moment would have the same time.
        std::thread::sleep(tick);
        result = fixture.fill_part(part.clone(), 3);
    }
    assert!(matches!(result, Err(StoreError::Fresh(_))), "{result:?}");
    let settled = Part { is_settled: true, ..part };
    assert_eq!(fixture.fill_part(settled, 3), Ok(crc32fast::hash(b"one")));
}

#[test]
fn a_rename_through_a_link_to_the_same_directory_leaves_the_file() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("dir")).unwrap();
    symlink("dir", fixture.path("dirlink")).unwrap();
    fixture.write("dir/it", b"it");
    let is_there = || std::fs::read(fixture.path("dir/it")).is_ok_and(|bytes| bytes == b"it");
    let same = fixture.rename("dir/it", "dirlink/it");
    assert!(matches!(same, Err(StoreError::InvalidPath(_))), "{same:?}");
    assert!(is_there());
    std::fs::hard_link(fixture.path("dir/it"), fixture.path("away")).unwrap();
    let same = fixture.rename("dir/it", "dirlink/it");
    assert!(matches!(same, Err(StoreError::InvalidPath(_))), "{same:?}");
    assert!(is_there(), "it keeps this name, though it has another one");
    fixture.rename("dir/it", "dirlink/new").unwrap();
    assert_eq!(std::fs::read(fixture.path("dir/new")).unwrap(), b"it");
    assert!(!is_there());
}

#[test]
fn of_two_names_of_a_file_a_rename_removes_the_old_one() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("dir")).unwrap();
    fixture.write("one", b"it");
    for (from, to) in [("one", "two"), ("two", "dir/three")] {
        std::fs::hard_link(fixture.path(from), fixture.path(to)).unwrap();
        fixture.rename(from, to).unwrap();
        assert!(!fixture.path(from).exists());
        assert_eq!(std::fs::read(fixture.path(to)).unwrap(), b"it");
    }
}
