//! The threads beside the loop, and the bell between them.

use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use raft::eraftpb::Entry;

use crate::replica::{Checkpoint, Event, StateAction};
use crate::runtime::{Disk, Letter, Letters, LogThread, Mailbox, StateThread, load, mailbox};
use crate::state::State;
use crate::store::memory::{MemoryDisk, Part};
use crate::store::{Append, Applied, LogStore, StateStore};

/// The time that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn bell() -> (Poll, Mailbox, Letters) {
    let poll = Poll::new().unwrap();
    let (mailbox, letters) = mailbox(poll.registry(), Token(0)).unwrap();
    (poll, mailbox, letters)
}

/// Returns the next event of a thread.
fn event(letters: &Letters) -> Event<'static> {
    let began = Instant::now();
    loop {
        match letters.next() {
            Some(Letter::Event(event)) => return event,
            Some(_) => panic!("threads send events"),
            None => std::thread::yield_now(),
        }
        assert!(began.elapsed() < PATIENCE);
    }
}

fn append(number: u64) -> Append {
    let entry = Entry { index: number, term: 1, ..Entry::default() };
    Append { number, entries: vec![entry], ..Append::default() }
}

#[test]
fn nothing_that_is_put_in_is_slept_over() {
    let (mut poll, mailbox, letters) = bell();
    const LETTERS: u64 = 20_000;
    let writer = std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(1);
        for number in 1..=LETTERS {
            match number % 2 {
                0 => assert!(mailbox.send(Letter::Stop)),
                _ => mailbox.log_durable(number),
            }
            for _ in 0..random.u32(0..200) {
                std::hint::spin_loop();
            }
        }
        mailbox.log_durable(LETTERS);
    });
    let (mut durable, mut count) = (0, 0);
    let mut events = Events::with_capacity(4);
    while durable < LETTERS || count < LETTERS / 2 {
        if letters.may_sleep(durable) {
            let began = Instant::now();
            poll.poll(&mut events, Some(PATIENCE)).unwrap();
            assert!(began.elapsed() < PATIENCE, "slept over {durable} and {count}");
        }
        letters.woke();
        durable = letters.durable();
        count += std::iter::from_fn(|| letters.next()).count() as u64;
    }
    writer.join().unwrap();
}

#[test]
fn appends_are_durable_in_order_and_none_is_left_at_the_end() {
    let (_poll, mailbox, letters) = bell();
    let disk = MemoryDisk::new(1);
    let mut thread =
        LogThread::start(Box::new(disk.log()), mailbox, Disk::default(), None).unwrap();
    let mut last = 0;
    for number in 1..=1000 {
        thread.append(append(number));
        let durable = letters.durable();
        assert!(last <= durable && durable <= number);
        last = durable;
    }
    thread.compact(400, 1);
    thread.stop();
    assert_eq!(letters.durable(), 1000);
    let log = disk.log().reader().initial().unwrap();
    assert_eq!(log.last_index, 1000);
}

#[test]
fn a_log_that_fails_acknowledges_nothing_more() {
    let (_poll, mailbox, letters) = bell();
    let disk = MemoryDisk::new(1);
    let mut thread =
        LogThread::start(Box::new(disk.log()), mailbox, Disk::default(), None).unwrap();
    thread.append(append(1));
    let began = Instant::now();
    while letters.durable() == 0 {
        assert!(began.elapsed() < PATIENCE);
    }
    disk.fail_sync(Part::Log, 1);
    thread.append(append(2));
    assert!(matches!(event(&letters), Event::StorageFailed { .. }));
    thread.append(append(3));
    thread.stop();
    assert_eq!(letters.durable(), 1);
    assert!(letters.next().is_none(), "it is sent once");
}

/// A state thread on a disk, with the loop's end of its mailbox.
struct Keeper {
    thread: StateThread,
    letters: Letters,
    _poll: Poll,
}

fn keeper(disk: &MemoryDisk, interval_ms: u64) -> Keeper {
    let (poll, mailbox, letters) = bell();
    let store = Box::new(disk.state());
    let thread =
        StateThread::start(store, interval_ms, 16 << 20, mailbox, Disk::default()).unwrap();
    Keeper { thread, letters, _poll: poll }
}

impl Keeper {
    fn ask(&mut self, action: StateAction) {
        self.thread.ask(action);
        let began = Instant::now();
        loop {
            self.thread.push_on();
            if self.thread.deadline_ms(0) == u64::MAX {
                return;
            }
            assert!(began.elapsed() < PATIENCE);
        }
    }
}

fn checkpoint(index: u64, records: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> StateAction {
    let checkpoint = Checkpoint { records, index, term: 1, ..Checkpoint::default() };
    StateAction::Checkpoint { checkpoint }
}

/// Lists every record of a fresh state, as a first checkpoint has them.
fn fresh() -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut records = Vec::new();
    State::new().all_records(&mut |key, value| records.push((key.to_vec(), Some(value.to_vec()))));
    records
}

/// Returns the durable point on a disk.
fn durable(disk: &MemoryDisk) -> Option<Applied> {
    disk.state().load(&mut |_, _| Ok(())).unwrap()
}

#[test]
fn checkpoints_become_durable_in_order_when_it_is_time_and_at_once_when_asked() {
    let disk = MemoryDisk::new(1);
    let mut keeper = keeper(&disk, 1);
    keeper.ask(checkpoint(7, fresh()));
    let Event::CheckpointDurable { applied } = event(&keeper.letters) else { panic!() };
    assert_eq!(applied.index, 7);
    assert_eq!(durable(&disk).map(|applied| applied.index), Some(7));
    let mut last = 7;
    for index in 8..2000 {
        keeper.thread.ask(checkpoint(index, vec![(b"n".to_vec(), None)]));
    }
    keeper.ask(StateAction::FlushCheckpoint);
    while last < 1999 {
        let Event::CheckpointDurable { applied } = event(&keeper.letters) else { panic!() };
        assert!(applied.index > last);
        last = applied.index;
    }
    assert_eq!(load(&disk.state(), 0).unwrap().unwrap().1.digest(), State::new().digest());
    keeper.thread.stop();
}

#[test]
fn stopping_makes_durable_what_waits() {
    let disk = MemoryDisk::new(1);
    let mut keeper = keeper(&disk, 3_600_000);
    keeper.thread.ask(checkpoint(7, fresh()));
    keeper.thread.ask(checkpoint(8, Vec::new()));
    keeper.thread.stop();
    assert_eq!(durable(&disk).map(|applied| applied.index), Some(8));
}

#[test]
fn a_state_that_fails_says_so_once() {
    let disk = MemoryDisk::new(1);
    let mut keeper = keeper(&disk, 1);
    disk.fail_sync(Part::State, 1);
    keeper.ask(checkpoint(7, fresh()));
    assert!(matches!(event(&keeper.letters), Event::StorageFailed { .. }));
    keeper.ask(checkpoint(8, Vec::new()));
    keeper.thread.stop();
    assert!(keeper.letters.next().is_none());
    assert_eq!(durable(&disk), None);
}

/// Passes a snapshot from one keeper to another; `spoil` may change a chunk.
fn pass_snapshot(
    source: &mut Keeper,
    target: &mut Keeper,
    spoil: impl Fn(&mut Vec<u8>),
) -> Event<'static> {
    source.ask(StateAction::OpenSnapshot { peer: 2 });
    loop {
        match event(&source.letters) {
            Event::SnapshotOpened { peer: 2, .. } => break,
            Event::CheckpointDurable { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    target.ask(StateAction::BeginInstall { peer: 1 });
    loop {
        source.ask(StateAction::ReadSnapshot { peer: 2 });
        let Event::SnapshotChunk { peer: 2, chunk } = event(&source.letters) else { panic!() };
        let Some(mut chunk) = chunk else { break };
        spoil(&mut chunk);
        target.ask(StateAction::StoreSnapshot { peer: 1, chunk });
        assert!(matches!(event(&target.letters), Event::SnapshotStored { peer: 1 }));
    }
    source.ask(StateAction::CloseSnapshot { peer: 2 });
    target.ask(StateAction::FinishInstall { peer: 1 });
    event(&target.letters)
}

#[test]
fn a_snapshot_replaces_the_state_and_a_damaged_one_does_not() {
    let (here, there) = (MemoryDisk::new(1), MemoryDisk::new(2));
    let (mut source, mut target) = (keeper(&here, 3_600_000), keeper(&there, 3_600_000));
    source.ask(checkpoint(7, fresh()));
    let refused = pass_snapshot(&mut source, &mut target, |chunk| *chunk.last_mut().unwrap() ^= 1);
    assert!(matches!(refused, Event::SnapshotRefused { peer: 1, .. }), "{refused:?}");
    assert_eq!(durable(&there), None);
    let installed = pass_snapshot(&mut source, &mut target, |_| {});
    let Event::SnapshotInstalled { applied, state, .. } = installed else {
        panic!("{installed:?}")
    };
    assert_eq!(applied.index, 7);
    assert_eq!(state.digest(), State::new().digest());
    assert_eq!(durable(&there).map(|applied| applied.index), Some(7));
    source.thread.stop();
    target.thread.stop();
}

#[test]
fn a_backup_is_a_new_file_of_the_state() {
    let disk = MemoryDisk::new(1);
    let mut keeper = keeper(&disk, 3_600_000);
    keeper.ask(checkpoint(7, fresh()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy");
    for is_new in [true, false] {
        let (sender, answer) = flume::bounded(1);
        keeper.thread.backup(path.clone(), sender);
        keeper.thread.push_on();
        let answer = answer.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answer.is_ok(), is_new, "{answer:?}");
    }
    let other = MemoryDisk::new(2);
    let applied = other.state().install_from(&path).unwrap();
    assert_eq!(applied.index, 7);
    keeper.thread.stop();
}
