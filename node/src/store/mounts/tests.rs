//! Which source a path leads to, and what a directory shows of the mounts below it.

use std::path::Path;

use super::super::roots::OUTSIDE;
use super::*;
use crate::memory::Arena;

fn mount(prefix: &str, source: &Path) -> Mount {
    let source = format!("file://{}", source.display());
    Mount { prefix: prefix.into(), source, replicas: 1 }
}

fn machine() -> Arc<Machine> {
    Arc::new(Machine::start(&crate::config::Config::tiny(std::path::PathBuf::new())).unwrap())
}

struct Fixture {
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    mounts: Mounts,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        for path in ["a/x", "a/data/old", "b/y", "b/z"] {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, path_bytes()).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let roots = MountRoots::new([directory.path()]);
        Fixture {
            runtime,
            directory,
            mounts: Mounts::new(
                machine(),
                roots,
                MountOptions::default(),
                Contents::new(0, 1 << 20),
            ),
        }
    }

    fn mount(&self, pairs: &[(&str, &str)]) {
        let mounts = pairs.iter().map(|(at, from)| mount(at, &self.directory.path().join(from)));
        self.mounts.set(mounts.collect());
    }

    fn names(&self, path: &str, after: &str, limit: usize) -> (Vec<String>, Option<String>) {
        let page = self.mounts.list(path.into(), after.into(), limit);
        let page = self.runtime.block_on(page).unwrap();
        (page.entries.into_iter().map(|(name, _)| name).collect(), page.next)
    }

    fn stat(&self, path: &str) -> Result<Kind, StoreError> {
        self.runtime.block_on(self.mounts.stat(path.into())).map(|found| found.kind)
    }
}

fn path_bytes() -> &'static [u8] {
    b"content"
}

#[test]
fn paths_lead_to_the_mount_with_the_longest_prefix() {
    let fixture = Fixture::new();
    assert_eq!(fixture.stat("x"), Err(StoreError::NotYet));
    fixture.mount(&[]);
    assert_eq!(fixture.stat("x"), Err(StoreError::NotFound));
    assert_eq!(fixture.stat(""), Ok(Kind::Directory));
    fixture.mount(&[("", "a"), ("data/hot", "b")]);
    assert_eq!(fixture.stat("x"), Ok(Kind::File));
    assert_eq!(fixture.stat("data/old"), Ok(Kind::File));
    assert_eq!(fixture.stat("data/hot/y"), Ok(Kind::File));
    assert_eq!(fixture.stat("data/hot"), Ok(Kind::Directory));
    assert_eq!(fixture.stat("data/cold"), Err(StoreError::NotFound));
    let all = |name: &str| vec![name.to_owned()];
    assert_eq!(fixture.names("data", "", 10).0, ["hot", "old"]);
    assert_eq!(fixture.names("data", "", 1), (all("hot"), Some("hot".into())));
    assert_eq!(fixture.names("data", "hot", 1), (all("old"), None));
    assert_eq!(fixture.names("", "", 10).0, ["data", "x"]);
    assert_eq!(fixture.names("data/hot", "", 10).0, ["y", "z"]);
}

#[test]
fn a_directory_is_there_because_of_what_is_mounted_below() {
    let fixture = Fixture::new();
    fixture.mount(&[("deep/er/b", "b"), ("deep/a", "a")]);
    assert_eq!(fixture.names("", "", 10).0, ["deep"]);
    assert_eq!(fixture.names("deep", "", 10).0, ["a", "er"]);
    assert_eq!(fixture.stat("deep/er"), Ok(Kind::Directory));
    assert_eq!(fixture.stat("deep/er/b/y"), Ok(Kind::File));
    assert_eq!(fixture.stat("deeper"), Err(StoreError::NotFound));
}

#[test]
fn ids_belong_to_the_source_and_not_to_where_it_is_mounted() {
    let fixture = Fixture::new();
    fixture.mount(&[("one", "a"), ("two", "a"), ("other", "b")]);
    assert_eq!(fixture.mounts.identify("one/x"), fixture.mounts.identify("two/x"));
    assert_ne!(fixture.mounts.identify("one/x"), fixture.mounts.identify("other/x"));
}

#[test]
fn a_source_that_is_not_here_is_told_and_found_when_it_comes() {
    let fixture = Fixture::new();
    fixture.mount(&[("", "a"), ("later", "c")]);
    assert!(matches!(fixture.stat("later/f"), Err(StoreError::Failed(_))));
    assert_eq!(fixture.stat("x"), Ok(Kind::File));
    std::fs::create_dir(fixture.directory.path().join("c")).unwrap();
    std::fs::write(fixture.directory.path().join("c/f"), b"1").unwrap();
    assert_eq!(fixture.stat("later/f"), Ok(Kind::File));
}

/// Makes a part at the beginning of the file that a path leads to now.
fn part(mounts: &Mounts, path: &str, version: u64) -> Part {
    let file = mounts.identify(path);
    Part { file, path: path.into(), version, offset: 0, is_settled: true }
}

#[test]
fn a_block_whose_path_leads_elsewhere_meanwhile_is_not_taken() {
    let fixture = Fixture::new();
    fixture.mount(&[("at", "a")]);
    let version = fixture.runtime.block_on(fixture.mounts.stat("at/x".into())).unwrap().version;
    let part = part(&fixture.mounts, "at/x", version);
    let mut memory = Arena::new(64).unwrap().cut(1).pop().unwrap();
    let mut take = || {
        let blank = memory.allocate(path_bytes().len() as u32).unwrap();
        let compared = fixture.mounts.compare(&part, &blank);
        let filling = fixture.mounts.fill(part.clone(), blank, Arc::default());
        let (blank, filled) = fixture.runtime.block_on(filling);
        memory.release_blank(blank);
        (compared, filled)
    };
    assert_eq!(take(), (Ok(()), Ok(())));
    let remounted = (Err(StoreError::Remounted), Err(StoreError::Remounted.into()));
    std::fs::copy(fixture.directory.path().join("a/x"), fixture.directory.path().join("b/x"))
        .unwrap();
    fixture.mount(&[("at", "b")]);
    assert_eq!(take(), remounted, "another source");
    fixture.mount(&[]);
    assert_eq!(take(), remounted, "none");
}

#[test]
fn bytes_that_differ_from_those_before_make_a_new_version_wherever_they_come_from() {
    let fixture = Fixture::new();
    let options = MountOptions::parse("cmp=content").unwrap();
    let roots = MountRoots::new([fixture.directory.path()]);
    let mounts = Mounts::new(machine(), roots, options, Contents::new(0, 1 << 20));
    let source = fixture.directory.path().join("b");
    mounts.set(vec![mount("cmp", &source), mount("same", &source)]);
    let mut memory = Arena::new(64).unwrap().cut(1).pop().unwrap();
    let stat = |path: &str| fixture.runtime.block_on(mounts.stat(path.into())).unwrap().version;
    let part = |path: &str, version| part(&mounts, path, version);
    let length = path_bytes().len() as u32;
    let mut fill = |part: Part| {
        let blank = memory.allocate(length).unwrap();
        let (blank, result) = fixture.runtime.block_on(mounts.fill(part, blank, Arc::default()));
        memory.release_blank(blank);
        result
    };
    let version = stat("cmp/y");
    assert_eq!(stat("same/y"), version);
    assert_eq!(fill(part("cmp/y", version)), Ok(()));
    assert_eq!(fill(part("cmp/y", version)), Ok(()), "the same again");
    let mut other = Arena::new(64).unwrap().cut(1).pop().unwrap();
    let mut blank = other.allocate(length).unwrap();
    blank
        .fill_with(|_, target| {
            target.fill(b'?');
            Ok(target.len())
        })
        .unwrap();
    let result = mounts.compare(&part("same/y", version), &blank);
    assert_eq!(result, Err(StoreError::Differs), "its files are those of the other mount");
    other.release_blank(blank);
    let next = stat("cmp/y");
    assert_ne!(next, version);
    assert_eq!(stat("same/y"), next, "both mounts say the same");
    let page = fixture.runtime.block_on(mounts.list("cmp".into(), "".into(), 10)).unwrap();
    assert_eq!(page.entries[0].1.version, next, "a listing says the same");
    assert_eq!(fill(part("cmp/y", version)), Err(StoreError::Changed.into()));
    assert_eq!(fill(part("cmp/y", next)), Ok(()));
}

#[test]
fn a_mount_outside_of_the_roots_is_refused_whoever_mounted_it() {
    let fixture = Fixture::new();
    std::os::unix::fs::symlink("/etc", fixture.directory.path().join("way-out")).unwrap();
    let inside = mount("", &fixture.directory.path().join("a"));
    let link = mount("link", &fixture.directory.path().join("way-out"));
    let outside = ["/", "/etc"].map(|path| mount(&path.replace('/', "x"), Path::new(path)));
    fixture.mounts.set([inside.clone(), link].into_iter().chain(outside.clone()).collect());
    assert_eq!(fixture.stat("x"), Err(StoreError::Denied(OUTSIDE)));
    assert_eq!(fixture.stat("xetc/passwd"), Err(StoreError::Denied(OUTSIDE)));
    assert!(matches!(fixture.stat("link/passwd"), Err(StoreError::Denied(_))));
    assert_eq!(fixture.stat("data/old"), Ok(Kind::File), "the others are served");
    assert_eq!(fixture.mounts.admit(&inside.source), Ok(()));
    assert_eq!(fixture.mounts.admit(&outside[1].source), Err(StoreError::Denied(OUTSIDE)));
}
