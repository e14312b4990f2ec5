//! What a message between shards costs through the mailbox and by `MSG_RING` (Linux 5.18), side by side.
//!
//! For a person who has to choose; nothing here runs in a node. Two threads, each on a core of its own,
//! send 16 messages and wait for 16 answers, awake or asleep in between. A message by ring carries 64
//! bits, so a larger one still needs the mailbox.
//!
//! `cargo test --release -p millrace-node --lib ring::tests::messages -- --ignored --nocapture`

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode};
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;

use crate::mailbox::{Mail, Mailbox};
use crate::ring::{Setup, build};

const ROUNDS: usize = 9;
const EXCHANGES: u32 = 20_000;
/// Messages that go one way together: the requests of one receive.
const BURST: usize = 16;

/// A way to send messages to the other thread, and to take its messages.
trait Way {
    fn post_burst(&mut self);
    /// Takes the messages that have come; returns how many.
    fn take(&mut self) -> usize;
    /// Waits until some may have come.
    fn sleep(&mut self);
}

struct ByMailbox {
    mine: Arc<Mailbox>,
    mail: flume::Receiver<Mail>,
    other: Arc<Mailbox>,
}

impl Way for ByMailbox {
    fn post_burst(&mut self) {
        for _ in 0..BURST {
            self.other.post(Mail::Shutdown).unwrap();
        }
    }

    fn take(&mut self) -> usize {
        std::iter::from_fn(|| self.mail.try_recv().ok()).count()
    }

    fn sleep(&mut self) {
        self.mine.going_to_sleep();
        if self.mail.is_empty() {
            rustix::io::read(self.mine.eventfd(), &mut [0; 8]).unwrap();
        }
        self.mine.woke_up();
    }
}

struct ByRing {
    ring: IoUring,
    eventfd: OwnedFd,
    other: i32,
}

impl Way for ByRing {
    fn post_burst(&mut self) {
        for number in 0..BURST as u64 {
            let entry = opcode::MsgRingData::new(Fd(self.other), 0, number, None).build();
            let entry = entry.flags(io_uring::squeue::Flags::SKIP_SUCCESS);
            // SAFETY: the operation refers to no memory.
            #[expect(unsafe_code, reason = "queueing an operation")]
            unsafe {
                self.ring.submission().push(&entry).unwrap();
            }
        }
        self.ring.submit().unwrap();
    }

    fn take(&mut self) -> usize {
        if self.ring.submission().taskrun() {
            // SAFETY: no argument is passed.
            #[expect(unsafe_code, reason = "entering the ring")]
            unsafe {
                let flags = EnterFlags::GETEVENTS.bits();
                self.ring.submitter().enter::<libc::sigset_t>(0, 0, flags, None).unwrap();
            }
        }
        self.ring.completion().inspect(|entry| assert_eq!(entry.result(), 0)).count()
    }

    fn sleep(&mut self) {
        self.ring.completion().enable_eventfd();
        let work = self.ring.submission().taskrun() || !self.ring.completion().is_empty();
        if !work {
            rustix::io::read(&self.eventfd, &mut [0; 8]).unwrap();
        }
        self.ring.completion().disable_eventfd();
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn wait_for_burst(way: &mut impl Way, sleeps: bool) {
    let mut count = 0;
    while count < BURST {
        match way.take() {
            0 if sleeps => way.sleep(),
            0 => std::hint::spin_loop(),
            some => count += some,
        }
    }
}

/// Measures the time of one message, one way.
fn exchange<W>(makers: [Box<dyn FnOnce() -> (W, i32) + Send>; 2], sleeps: bool) -> Duration
where
    W: Way + SetOther + 'static,
{
    let [first, second] = makers;
    let (to_first, from_second) = channel();
    let (to_second, from_first) = channel();
    let thread = std::thread::spawn(move || {
        pin(1);
        let (mut way, fd) = second();
        to_first.send(fd).unwrap();
        way.set_other(from_first.recv().unwrap());
        to_first.send(0).unwrap();
        for _ in 0..EXCHANGES {
            wait_for_burst(&mut way, sleeps);
            way.post_burst();
        }
        // The ring has to be there for the last burst.
        from_first.recv().unwrap();
    });
    pin(0);
    let (mut way, fd) = first();
    way.set_other(from_second.recv().unwrap());
    to_second.send(fd).unwrap();
    from_second.recv().unwrap();
    let start = Instant::now();
    for _ in 0..EXCHANGES {
        way.post_burst();
        wait_for_burst(&mut way, sleeps);
    }
    let time = start.elapsed() / (2 * EXCHANGES * BURST as u32);
    to_second.send(0).unwrap();
    thread.join().unwrap();
    time
}

/// A ring learns of the other one when both are there; a mailbox knows it from the start.
trait SetOther {
    fn set_other(&mut self, fd: i32);
}

impl SetOther for ByMailbox {
    fn set_other(&mut self, _: i32) {}
}

impl SetOther for ByRing {
    fn set_other(&mut self, fd: i32) {
        self.other = fd;
    }
}

fn by_mailbox(sleeps: bool) -> Duration {
    let (first, first_mail) = Mailbox::new(1024).unwrap();
    let (second, second_mail) = Mailbox::new(1024).unwrap();
    let (first, second) = (Arc::new(first), Arc::new(second));
    let maker = |mine: &Arc<Mailbox>, mail, other: &Arc<Mailbox>| {
        let (mine, other) = (mine.clone(), other.clone());
        Box::new(move || (ByMailbox { mine, mail, other }, 0)) as Box<dyn FnOnce() -> _ + Send>
    };
    let makers = [maker(&first, first_mail, &second), maker(&second, second_mail, &first)];
    exchange(makers, sleeps)
}

fn by_ring(sleeps: bool) -> Duration {
    let maker = || {
        Box::new(|| {
            let ring = build(Setup::Deferred).unwrap();
            let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            ring.submitter().register_eventfd(eventfd.as_raw_fd()).unwrap();
            let fd = ring.as_raw_fd();
            let mut way = ByRing { ring, eventfd, other: -1 };
            way.ring.completion().disable_eventfd();
            (way, fd)
        }) as Box<dyn FnOnce() -> _ + Send>
    };
    exchange([maker(), maker()], sleeps)
}

#[test]
#[ignore = "measures"]
fn mailbox_beside_ring() {
    for (sleeps, name) in [(false, "awake"), (true, "asleep")] {
        let mut times = [(); 2].map(|()| Vec::new());
        for _ in 0..ROUNDS {
            times[0].push(by_mailbox(sleeps));
            times[1].push(by_ring(sleeps));
        }
        let [mailbox, ring] = times.map(|mut times| {
            times.sort();
            times[ROUNDS / 2]
        });
        println!("{name}: {mailbox:?} a message through the mailbox, {ring:?} by ring");
    }
}
