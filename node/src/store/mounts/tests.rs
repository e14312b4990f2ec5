//! Which source a path leads to, and what a directory shows of the mounts below it.

use super::*;

fn mount(prefix: &str, source: &Path) -> Mount {
    let source = format!("file://{}", source.display());
    Mount { prefix: prefix.into(), source, replicas: 1 }
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
        Fixture { runtime, directory, mounts: Mounts::default() }
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
