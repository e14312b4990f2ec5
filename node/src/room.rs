//! Whether there is room for a node's memory, and taking it before the first client comes.
//!
//! Owns the look at what the machine and the control groups of this process allow, and what is counted for
//! a node besides `memory`. Always holds: a node that starts with `populate` has every page of its cache
//! and of its tables, so that it is not killed for want of one later; one that finds too little room says so
//! before it listens.
//!
//! The pages are those of a memfd: they are charged, as shared memory, to the control group that touched
//! them first, which is ours. Huge pages cost the same, because they are given back where the memory
//! ends; the pool of `vm.nr_hugepages` is not used, and what it holds is not available here (hugetlbpage
//! of the kernel's `admin-guide/mm`).

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::cpus::confine;
use crate::flash;
use crate::memory::ShardMemory;

/// Counted for the program, its side thread and what waits there: measured
/// 20 MiB at rest, and up to 16 MiB are requests that are not complete.
const PROGRAM_BYTES: u64 = 32 << 20;
/// Counted for each shard: 2 MiB are receive buffers, the rest rings and mailboxes.
const SHARD_BYTES: u64 = 4 << 20;
/// Counted for each client that may be connected: what a quiet one has in tables of ours and the kernel's.
const CONNECTION_BYTES: u64 = 2 << 10;
/// Counted for each file that may be known: its record, with a path of usual length, and what is believed of it.
const FILE_BYTES: u64 = 400;
/// Taking memory for longer than this is logged, because a start then waits for it.
const TELLING: Duration = Duration::from_secs(1);
/// A limit from here on means no limit: control groups of version 1 report "none" as a number like this.
const NO_LIMIT: u64 = 1 << 60;

/// Too little room.
#[derive(Debug, thiserror::Error)]
#[error(
    "memory is {}, and {} are counted for the node besides, but {place} has {} for it{}; lower memory, \
     or give it more room{}",
    Mib(*.memory), Mib(*.own), Mib(*.room), of(*.limit, *.room), or_later(*.is_free)
)]
pub struct RoomError {
    /// The `memory` that was asked for, in bytes.
    memory: u64,
    /// What is counted besides, in bytes.
    own: u64,
    /// What has too little.
    place: String,
    /// Bytes that it has free.
    room: u64,
    /// Bytes that it has when no other process uses any.
    limit: u64,
    /// True if it is enough when other processes give up what they use now.
    is_free: bool,
}

struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} MiB", self.0 >> 20)
    }
}

fn of(limit: u64, room: u64) -> String {
    if room == limit { String::new() } else { format!(" of {}", Mib(limit)) }
}

fn or_later(is_free: bool) -> &'static str {
    if is_free { ", or set populate = false to have it taken as the cache fills" } else { "" }
}

/// Something that bounds the memory of this process.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    place: String,
    /// Bytes that may be used in all.
    limit: u64,
    /// Bytes of them that are free now, or can be had by dropping what is cached of files.
    free: u64,
}

/// Looks whether there is room for a node of this configuration.
///
/// # Errors
/// [`RoomError`]: too little, or, with `populate`, too little that is free now.
pub(crate) fn check(config: &Config) -> Result<(), RoomError> {
    judge(config, &bounds(Path::new("/")))
}

fn judge(config: &Config, bounds: &[Bound]) -> Result<(), RoomError> {
    let own = own_bytes(config);
    let memory = config.memory as u64;
    for Bound { place, limit, free } in bounds {
        let needed = memory + own;
        if needed > *free {
            let is_free = needed <= *limit;
            let room = if is_free { *free } else { *limit };
            let error =
                RoomError { memory, own, place: place.clone(), room, limit: *limit, is_free };
            if config.populate || !is_free {
                return Err(error);
            }
            tracing::warn!("{error}");
        }
    }
    Ok(())
}

/// Returns the bytes that are counted for a node besides `memory`.
fn own_bytes(config: &Config) -> u64 {
    PROGRAM_BYTES
        + config.shards as u64 * SHARD_BYTES
        + config.connections_max as u64 * CONNECTION_BYTES
        + config.files_max as u64 * FILE_BYTES
        + flash::memory_bytes(&config.disks, config.block_size, config.memory as u64)
}

/// Takes the pages of all shards from the system, each shard's from its own core, so that they lie near it.
///
/// # Errors
/// As `MADV_POPULATE_WRITE` of madvise(2), or if there is no thread to be had.
pub(crate) fn take(memories: &[ShardMemory], cpus: &[usize]) -> io::Result<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let take = |(memory, cpu): (&'_ ShardMemory, usize)| {
            // A thread that may not run there does the same from elsewhere.
            let _ = confine(&[cpu]);
            memory.populate()
        };
        let threads = memories.iter().zip(cpus).map(|(memory, cpu)| {
            let builder = std::thread::Builder::new().name("millrace-memory".to_owned());
            builder.spawn_scoped(scope, move || take((memory, *cpu)))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().try_for_each(|thread| {
            let taken = thread?.join();
            taken.unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
        })
    })?;
    if start.elapsed() > TELLING {
        tracing::info!("taking the memory took {} ms", start.elapsed().as_millis());
    }
    Ok(())
}

/// Returns what bounds this process, with files under `root`: the machine, and each control group on the
/// way up.
fn bounds(root: &Path) -> Vec<Bound> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut bounds: Vec<Bound> = machine(&read("proc/meminfo")).into_iter().collect();
    let mounts = read("proc/self/mountinfo");
    // Version 2 has a line `0::/path`, version 1 one for each kind, such as `4:memory:/path`: cgroups(7).
    for line in read("proc/self/cgroup").lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(kinds), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let files = match (number, kinds) {
            ("0", "") => &VERSION_2,
            (_, kinds) if kinds.split(',').any(|kind| kind == "memory") => &VERSION_1,
            _ => continue,
        };
        let Some((mount, below)) = mount_of(&mounts, files) else { continue };
        // The part that is not visible here, as in a container, is left out.
        let path = Path::new(path);
        let path = path.strip_prefix(&below).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
        let mount = root.join(mount.strip_prefix("/").unwrap_or(&mount));
        for group in mount.join(path).ancestors().take_while(|group| group.starts_with(&mount)) {
            let name = group.strip_prefix(root).unwrap_or(group);
            let name = format!("control group /{}", name.display());
            bounds.extend(files.bound(group, name));
        }
    }
    bounds
}

/// Returns what the machine has: proc(5), `meminfo`.
fn machine(text: &str) -> Option<Bound> {
    let bytes = |name: &str| Some(number_after(text, name)? << 10);
    let (limit, free) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
    Some(Bound { place: "this machine".to_owned(), limit, free })
}

/// Returns the number after a name at the beginning of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Files of a control group: `admin-guide/cgroup-v2` and `cgroup-v1/memory` of the kernel.
struct Files {
    file_system: &'static str,
    /// What stands in the options of its mount.
    option: &'static str,
    /// The smallest of them counts.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Names in `memory.stat` of memory that can be dropped when there is need.
    droppable: [&'static str; 2],
}

const VERSION_2: Files = Files {
    file_system: "cgroup2",
    option: "",
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    droppable: ["active_file ", "inactive_file "],
};
const VERSION_1: Files = Files {
    file_system: "cgroup",
    option: "memory",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    droppable: ["total_active_file ", "total_inactive_file "],
};

impl Files {
    /// Returns what a group allows, if it limits anything.
    fn bound(&self, group: &Path, place: String) -> Option<Bound> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limits = self.limits.iter().filter_map(|name| number(name));
        let limit = limits.min().filter(|limit| *limit < NO_LIMIT)?;
        let stat = read("memory.stat").unwrap_or_default();
        let droppable: u64 =
            self.droppable.iter().filter_map(|name| number_after(&stat, name)).sum();
        let used = number(self.usage).unwrap_or(0).saturating_sub(droppable);
        Some(Bound { place, limit, free: limit.saturating_sub(used) })
    }
}

/// Returns where the groups are mounted, and which of them is seen there: proc(5), `mountinfo`.
fn mount_of(mounts: &str, files: &Files) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let is_it = after.next() == Some(files.file_system)
            && (files.option.is_empty()
                || after.nth(1)?.split(',').any(|option| option == files.option));
        let mut before = before.split(' ').skip(3);
        let (below, mount) = (before.next()?, before.next()?);
        is_it.then(|| (PathBuf::from(mount), PathBuf::from(below)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Makes a machine of 8 GiB with 4 GiB available, and other files given as path and text.
    fn machine_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n";
        for (path, text) in files.iter().chain(&[("proc/meminfo", meminfo)]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn config(memory: u64, populate: bool) -> Config {
        Config { memory: memory as usize, populate, ..Config::tiny(PathBuf::from("/data")) }
    }

    fn refusal(root: &tempfile::TempDir, memory: u64, populate: bool) -> Option<String> {
        let refused = judge(&config(memory, populate), &bounds(root.path())).err()?;
        Some(refused.to_string())
    }

    #[test]
    fn a_machine_is_as_large_as_what_is_available() {
        let root = machine_with(&[]);
        assert_eq!(refusal(&root, 4000 * MIB, true), None);
        assert_eq!(
            refusal(&root, 4096 * MIB, true).unwrap(),
            "memory is 4096 MiB, and 36 MiB are counted for the node besides, but this machine has \
             4096 MiB for it of 8192 MiB; lower memory, or give it more room, or set populate = false \
             to have it taken as the cache fills"
        );
        // Memory that is not free now may be free later, but not more than there is.
        assert_eq!(refusal(&root, 4096 * MIB, false), None);
        assert!(
            refusal(&root, 8192 * MIB, false).unwrap().contains("machine has 8192 MiB for it;")
        );
    }

    #[test]
    fn every_control_group_of_version_2_on_the_way_up_counts() {
        let root = machine_with(&[
            ("proc/self/cgroup", "0::/pods/one\n"),
            ("proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/pods/one/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/one/memory.high", "max\n"),
            ("sys/fs/cgroup/pods/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/pods/memory.current", "545259520\n"),
            (
                "sys/fs/cgroup/pods/memory.stat",
                "anon 1\nactive_file 4194304\ninactive_file 4194304\n",
            ),
        ]);
        let expected = Bound {
            place: "control group /sys/fs/cgroup/pods".to_owned(),
            limit: 1024 * MIB,
            free: 512 * MIB,
        };
        assert_eq!(bounds(root.path())[1..], [expected]);
        assert_eq!(refusal(&root, 400 * MIB, true), None);
        let refused = refusal(&root, 500 * MIB, true).unwrap();
        assert!(
            refused.contains("/pods has 512 MiB for it of 1024 MiB; lower memory"),
            "{refused}"
        );
        let refused = refusal(&root, 1000 * MIB, false).unwrap();
        assert!(refused.contains("/pods has 1024 MiB for it; lower memory"), "{refused}");
    }

    #[test]
    fn a_control_group_of_version_1_counts_where_it_is_seen() {
        let limit = "157286400\n";
        let mount = "/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        for (below, seen) in [("/", "outer/inner/"), ("/outer/inner", "")] {
            let root = machine_with(&[
                ("proc/self/cgroup", "4:memory:/outer/inner\n2:cpu,cpuacct:/\n0::/\n"),
                ("proc/self/mountinfo", &format!("29 24 0:25 {below} {mount}")),
                (&format!("sys/fs/cgroup/memory/{seen}memory.limit_in_bytes"), limit),
                (&format!("sys/fs/cgroup/memory/{seen}memory.usage_in_bytes"), "1048576\n"),
            ]);
            let refused = refusal(&root, 512 * MIB, true).unwrap();
            assert!(refused.contains("memory is 512 MiB"), "{refused}");
            assert!(refused.contains("has 150 MiB for it"), "{refused}");
            assert_eq!(refusal(&root, 64 * MIB, true), None);
        }
    }

    #[test]
    fn what_sets_no_limit_is_none() {
        let root = machine_with(&[
            ("proc/self/cgroup", "4:memory:/a\n"),
            ("proc/self/mountinfo", "29 24 0:25 / /g rw - cgroup cgroup rw,memory\n"),
            ("g/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(bounds(root.path()).len(), 1);
    }
}
