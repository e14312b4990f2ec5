//! What a look reports, and how long a file is left to settle.

use std::os::unix::fs::symlink;

use super::*;

fn root() -> (tempfile::TempDir, OwnedFd) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::whole(directory.path()).open().unwrap();
    (directory, root)
}

fn version_at(root: &OwnedFd, path: &str) -> u64 {
    find(root, path, DeviceRule::ByType).unwrap().1.version
}

#[test]
fn a_version_stays_until_the_file_changes() {
    let (directory, root) = root();
    let path = directory.path().join("a");
    std::fs::write(&path, b"one").unwrap();
    let first = version_at(&root, "a");
    assert_eq!(version_at(&root, "a"), first);
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(&path, b"two").unwrap();
    assert_ne!(version_at(&root, "a"), first);
}

#[test]
fn another_file_of_the_same_times_is_another_version() {
    let (directory, root) = root();
    std::fs::write(directory.path().join("a"), b"one").unwrap();
    std::fs::hard_link(directory.path().join("a"), directory.path().join("link")).unwrap();
    assert_eq!(version_at(&root, "a"), version_at(&root, "link"), "one inode");
    let version = |rule| find(&root, "a", rule).unwrap().1.version;
    assert_ne!(version(DeviceRule::Always), version(DeviceRule::Never));
}

#[test]
fn a_look_at_what_is_no_file_opens_nothing() {
    let (directory, root) = root();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(find(&root, "fifo", DeviceRule::ByType).unwrap().1.kind, None);
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let writer = rustix::fs::open(&fifo, flags, Mode::empty());
    assert_eq!(writer.err(), Some(Errno::NXIO), "there is no reader");
}

#[test]
fn what_was_found_is_read_whatever_is_at_its_path_by_then() {
    let (directory, root) = root();
    let path = directory.path().join("a");
    std::fs::write(&path, b"one").unwrap();
    let (place, found) = find(&root, "a", DeviceRule::ByType).unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    let file = open_to_read(&root, "a", (&place, &found)).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(rustix::io::pread(&file, &mut bytes, 0).unwrap(), 3);
    assert_eq!(&bytes[..3], b"one");
}

/// Checks how long a file is left to settle 100.5 seconds after the epoch, if it was changed at
/// `changed` and modified at `modified`, in a file system with these times.
fn settles(
    changed: (i64, u32),
    modified: (i64, u32),
    system: impl FnOnce(&mut System),
) -> Duration {
    let (directory, root) = root();
    std::fs::write(directory.path().join("a"), b"one").unwrap();
    let place = open_beneath(&root, "a", OFlags::PATH).unwrap();
    let mut stat =
        rustix::fs::statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap();
    (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = changed;
    (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec) = modified;
    let mut judged = system::of(&place, &stat).unwrap();
    judged.times =
        Times { coarsest: Duration::from_secs(2), finest: Duration::ZERO, is_fixed: false };
    (judged.is_shared, judged.is_foreign) = (false, false);
    system(&mut judged);
    settle_time(&stat, &judged, UNIX_EPOCH + Duration::from_millis(100_500))
}

#[test]
fn the_coarser_its_times_the_longer_a_file_settles() {
    let ms = Duration::from_millis;
    let own = |changed| settles(changed, (0, 0), |_| ());
    assert_eq!(own((100, 400_000_001)), ms(100) + Duration::from_nanos(1));
    assert_eq!(own((100, 400_000_000)), ms(300), "tenths of a second");
    assert_eq!(own((99, 0)), ms(700), "seconds");
    assert_eq!(own((100, 0)), ms(3700), "two seconds");
    assert_eq!(own((90, 0)), ms(0));
    assert_eq!(own((101, 1)), ms(200), "a clock that is ahead");
    let one = |system: &mut System| system.times.coarsest = Duration::from_secs(1);
    assert_eq!(settles((100, 0), (0, 0), one), ms(1700), "known to be no coarser");
    let two = |system: &mut System| system.times.finest = Duration::from_secs(2);
    assert_eq!(settles((100, 500_000_001), (0, 0), two), ms(4200), "known to be no finer");
    let fixed = |system: &mut System| system.times.is_fixed = true;
    assert_eq!(settles((100, 0), (0, 0), fixed), ms(0), "an image");
}

#[test]
fn of_a_shared_file_system_the_later_time_counts() {
    let ms = Duration::from_millis;
    let shared = |changed, modified| settles(changed, modified, |it| it.is_shared = true);
    assert_eq!(shared((0, 0), (99, 0)), ms(700), "no ctime");
    assert_eq!(shared((100, 400_000_001), (99, 0)), ms(100) + Duration::from_nanos(1));
    assert_eq!(shared((50, 1), (1000, 0)), ms(0), "an mtime that was set ahead");
    assert_eq!(settles((50, 1), (100, 0), |_| ()), ms(0), "an mtime of an own file system");
}
