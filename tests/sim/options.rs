//! What a run is made of: sizes and faults, each with its name, drawn by the seed.
//!
//! A swarm (Groce et al., "Swarm Testing", 2012): each fault is on or off for a whole run, so that one
//! run shows what a fault hides in another. Always holds: the same seed draws the same options.
//! Everything here must be survivable, so a failure is a defect and never "too harsh".

use fastrand::Rng;

/// A fault that comes and goes while a run is under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A replica stops at once; what was not synced is lost. It starts again later.
    Crash,
    /// As `Crash`, of all replicas.
    CrashAll,
    /// A replica is asked to stop, hands over leadership, and starts again later.
    Stop,
    /// A replica does nothing for a while, then goes on (SIGSTOP, a long page fault).
    Pause,
    /// A stream between two replicas breaks, with what it carried.
    Break,
    /// One direction between two replicas carries nothing for a while.
    PartitionOneWay,
    /// A replica is cut off from all others for a while.
    PartitionNode,
    /// All links get slow for a while.
    SlowNetwork,
    /// A replica's disk gets slow for a while.
    SlowDisk,
    /// The next sync of a replica's disk fails; the replica has to stop.
    FailSync,
    /// A replica's wall clock jumps, ahead or back.
    ClockJump,
    /// An operator moves leadership.
    Transfer,
    /// A client's connection breaks.
    CutClient,
    /// A client is silent until its session is gone.
    SilenceClient,
    /// A member leaves the ensemble, or comes back.
    Reconfigure,
}

/// All faults there are.
const FAULTS: [Fault; 15] = [
    Fault::Crash,
    Fault::CrashAll,
    Fault::Stop,
    Fault::Pause,
    Fault::Break,
    Fault::PartitionOneWay,
    Fault::PartitionNode,
    Fault::SlowNetwork,
    Fault::SlowDisk,
    Fault::FailSync,
    Fault::ClockJump,
    Fault::Transfer,
    Fault::CutClient,
    Fault::SilenceClient,
    Fault::Reconfigure,
];

/// How a run's ensemble comes to be, or to be changed by lists and lost disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// All members are there from the beginning, with one state.
    Formed,
    /// All are without data, and start at different times.
    Fresh,
    /// One by itself has data; all get one list.
    FirstOfThree,
    /// Three run, two are new; the three get the longer list, one after the other.
    ThreeToFive,
    /// Three run; two of them, or all but the first, come back with new disks. The old ones return.
    MajorityReplaced,
    /// Three run; two of them go, and two new ones come with a list of the third and themselves, which
    /// the third gets as well. A list that is refused is taken back, and the old ones return.
    MajorityMoved,
    /// Three run; one comes back with a new disk, and is removed and added.
    Wiped,
    /// All are without data, and one has a shorter list until all lists are mended.
    ListsDisagree,
    /// Two have data of their own, one has none; all get one list.
    TwoWithData,
    /// Three run, two are new: one operator adds one of them, another operator the other, by lists and
    /// by hand.
    TwoOperators,
}

impl Beginning {
    /// All beginnings but the ordinary one.
    pub(crate) const BIRTHS: [Beginning; 9] = [
        Beginning::Fresh,
        Beginning::FirstOfThree,
        Beginning::ThreeToFive,
        Beginning::MajorityReplaced,
        Beginning::MajorityMoved,
        Beginning::Wiped,
        Beginning::ListsDisagree,
        Beginning::TwoWithData,
        Beginning::TwoOperators,
    ];
}

/// A rule that is broken on purpose, to check that the checkers notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Canary {
    /// A replica is told that its log is durable before it is.
    EarlyDurable,
    /// A restarted replica forgets the last entries of its log.
    ForgetfulLog,
    /// The clocks of leaders run four times too fast.
    FastClock,
    /// Watch events are held back behind the next reply.
    LateEvents,
    /// A replica without data takes silent members of its list for new ones, too, once most of the list
    /// have said that they are new.
    FoundsByMajority,
}

impl Canary {
    pub(crate) const ALL: [(&'static str, Canary); 5] = [
        ("early-durable", Canary::EarlyDurable),
        ("forgetful-log", Canary::ForgetfulLog),
        ("fast-clock", Canary::FastClock),
        ("late-events", Canary::LateEvents),
        ("founds-by-majority", Canary::FoundsByMajority),
    ];
}

/// Everything about a run that is not decided on the way.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) beginning: Beginning,
    pub(crate) node_count: usize,
    pub(crate) client_count: usize,
    /// How long clients work under faults.
    pub(crate) load_ms: u64,
    /// Mean time between two of a client's batches of requests.
    pub(crate) think_ms: u64,
    /// Requests that a client sends at once, at most.
    pub(crate) batch_max: usize,
    pub(crate) session_timeout_ms: u64,
    pub(crate) faults: Vec<Fault>,
    /// Mean time between two faults.
    pub(crate) fault_interval_ms: u64,
    /// Longest time that a fault lasts.
    pub(crate) fault_ms_max: u64,
    /// Usual delay of a message, at most.
    pub(crate) delay_us_max: u64,
    /// Usual duration of a sync, at most.
    pub(crate) sync_us_max: u64,
    /// True if what a broken stream carried may still arrive, later than newer messages.
    pub(crate) is_late: bool,
    /// Bytes of log kept for replicas that lag; few bytes make snapshots frequent.
    pub(crate) log_retain_bytes: u64,
    pub(crate) checkpoint_ms: u64,
    /// Bytes of a snapshot's chunk.
    pub(crate) chunk_bytes: usize,
    pub(crate) canary: Option<Canary>,
}

impl Options {
    /// Draws the options of a run; `node_count` of `None` draws that too.
    pub(crate) fn draw(seed: u64, node_count: Option<usize>, canary: Option<Canary>) -> Options {
        // This is another random stream than the run's own.
        let mut random = Rng::with_seed(seed ^ 0x006f_7074_696f_6e73);
        let drawn = if random.u8(0..3) == 0 { 5 } else { 3 };
        let node_count = node_count.unwrap_or(drawn);
        let faults: Vec<Fault> = FAULTS.into_iter().filter(|_| random.u8(0..5) < 2).collect();
        Options {
            seed,
            beginning: Beginning::Formed,
            node_count,
            client_count: random.usize(2..=6),
            load_ms: random.u64(6_000..20_000),
            think_ms: random.choice([10, 30, 100]).unwrap_or(30),
            batch_max: random.usize(1..=5),
            session_timeout_ms: random.choice([1_500, 3_000, 6_000]).unwrap_or(3_000),
            faults,
            fault_interval_ms: random.choice([150, 400, 1_000, 2_500]).unwrap_or(400),
            fault_ms_max: random.choice([300, 1_500, 5_000]).unwrap_or(1_500),
            delay_us_max: random.choice([200, 2_000, 20_000]).unwrap_or(2_000),
            sync_us_max: random.choice([100, 2_000, 20_000]).unwrap_or(2_000),
            is_late: random.u8(0..3) == 0,
            log_retain_bytes: random.choice([0, 64 << 10]).unwrap_or(0),
            checkpoint_ms: random.choice([20, 250, 2_000]).unwrap_or(250),
            chunk_bytes: random.choice([256, 4 << 10]).unwrap_or(4 << 10),
            canary,
        }
    }

    /// Draws the options of a run in which an ensemble begins, or its lists and disks change.
    pub(crate) fn draw_birth(seed: u64, canary: Option<Canary>) -> Options {
        let mut options = Options::draw(seed, None, canary);
        let mut random = Rng::with_seed(seed ^ 0x0062_6972_7468);
        options.beginning = random.choice(Beginning::BIRTHS).unwrap_or(Beginning::Fresh);
        options.node_count = match options.beginning {
            Beginning::ThreeToFive | Beginning::TwoOperators | Beginning::MajorityMoved => 5,
            Beginning::Fresh => random.choice([3, 5]).unwrap_or(3),
            _ => 3,
        };
        // New disks are filled in the time that a healed ensemble has.
        options.chunk_bytes = 4 << 10;
        // Only the beginning decides what lists and disks do.
        options.faults.retain(|fault| *fault != Fault::Reconfigure);
        options
    }
}
