//! Always holds: a cluster that says what is mounted can only choose below these roots. Names are
//! compared first. The kernel finds where they lead, and no symbolic link leads out, neither on the way
//! to a source nor below it.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::open_beneath;

/// The directory of a source, as the way to it from a mount root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    base: PathBuf,
    rest: PathBuf,
}

impl Root {
    /// Returns a directory that is a mount root itself.
    pub fn whole(base: &Path) -> Root {
        Root { base: base.to_owned(), rest: PathBuf::new() }
    }

    /// Returns where the directory lies, by name.
    pub fn path(&self) -> PathBuf {
        if self.rest.as_os_str().is_empty() {
            self.base.clone()
        } else {
            self.base.join(&self.rest)
        }
    }

    /// Opens the directory.
    ///
    /// # Errors
    /// As open(2) and openat2(2): `XDEV` or `LOOP` if a symbolic link leads out of the root.
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::open(&self.base, flags, Mode::empty())?;
        if self.rest.as_os_str().is_empty() {
            Ok(base)
        } else {
            open_beneath(&base, &self.rest, flags)
        }
    }
}

/// The directories below which sources may lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// Makes roots of these directories, by the names that were given and by their real ones. One that
    /// is not there yet counts as well.
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Roots {
        let mut roots = Vec::new();
        for directory in directories {
            let real = directory.canonicalize().ok();
            for root in real.into_iter().chain([directory]) {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
        Roots(roots)
    }

    /// Returns the way to a directory from the deepest root that it is or lies below; None if it lies
    /// elsewhere. Only names are compared here: [`Root::open`] finds where they lead.
    pub fn find(&self, directory: &Path) -> Option<Root> {
        if directory.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let found = self.0.iter().filter_map(|base| {
            let rest = directory.strip_prefix(base).ok()?;
            Some(Root { base: base.clone(), rest: rest.to_owned() })
        });
        found.max_by_key(|root| root.base.components().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_source_lies_below_a_root_by_whole_parts() {
        let roots = Roots::new(["/data", "/data/deep", "/mnt"].map(PathBuf::from));
        let rest = |path: &str| roots.find(Path::new(path)).map(|root| (root.base, root.rest));
        let expect = |base: &str, rest: &str| Some((PathBuf::from(base), PathBuf::from(rest)));
        assert_eq!(rest("/data"), expect("/data", ""));
        assert_eq!(rest("/data//a/./b/"), expect("/data", "a/b"));
        assert_eq!(rest("/data/deep/x"), expect("/data/deep", "x"));
        for outside in ["/", "/database", "/dat", "/etc", "/data/../etc", "data", ""] {
            assert_eq!(rest(outside), None, "{outside}");
        }
    }

    #[test]
    fn a_link_in_the_way_to_a_source_cannot_lead_out_of_its_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("inside")).unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        symlink("../outside", root.join("out")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink("inside", root.join("in")).unwrap();
        let roots = Roots::new([root.clone()]);
        let open = |name: &str| roots.find(&root.join(name)).unwrap().open();
        for (name, is_open) in
            [("", true), ("inside", true), ("in", true), ("out", false), ("etc", false)]
        {
            assert_eq!(open(name).is_ok(), is_open, "{name}");
        }
        assert_eq!(open("etc").unwrap_err(), Errno::XDEV);
        assert_eq!(open("absent").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_root_counts_by_the_name_it_was_given_and_by_its_real_one() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("real");
        let name = directory.path().join("name");
        std::fs::create_dir_all(real.join("a")).unwrap();
        symlink(&real, &name).unwrap();
        let roots = Roots::new([name.clone()]);
        for source in [name.join("a"), real.join("a")] {
            assert!(roots.find(&source).unwrap().open().is_ok(), "{}", source.display());
        }
    }
}
