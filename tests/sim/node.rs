//! One simulated replica: the real `Replica` between a disk in memory and clocks of its own.
//!
//! Does what the runtime's threads do, in virtual time: the log thread makes all waiting appends
//! durable in one sync, the state thread works through its jobs one after another. Always holds:
//! nothing is called durable before `MemoryDisk::sync` made it so (but for a canary), and a crash
//! drops everything else. Which moment things happen at is the world's.

use std::collections::{BTreeMap, VecDeque};

use millrace_coord::Config;
use millrace_coord::command::{Act, Command, Rules};
use millrace_coord::config::members::{Member, config_lines};
use millrace_coord::replica::{Action, Event, Now, Replica, Setup};
use millrace_coord::state::{Changes, Loader, State};
use millrace_coord::store::checkpoint::{Checkpoint, Limits};
use millrace_coord::store::memory::{MemoryDisk, MemoryLog, MemoryState, Part};
use millrace_coord::store::{
    Append, Applied, Identity, LogReader, LogStore, SnapshotReader, StateStore, StoreError,
};
use millrace_proto::zookeeper::{Writer, create_mode, opcode};

use crate::client::{Client, create};
use crate::options::{Canary, Options};

/// Wall clock at the beginning: some day in 2026.
const WALL_MS: i64 = 1_790_000_000_000;

/// What the state thread is asked.
#[derive(Debug)]
pub(crate) enum Job {
    Commit,
    Open { peer: u64 },
    Read { peer: u64 },
    Close { peer: u64 },
    Begin,
    Store { peer: u64, chunk: Vec<u8> },
    Finish { peer: u64 },
}

/// What a job came to, to be told when its time has passed.
#[derive(Debug)]
enum Work {
    Commit(Applied),
    Tell(Event<'static>),
    Finish { peer: u64 },
    Nothing,
}

/// See the module.
pub(crate) struct Node {
    pub(crate) id: u64,
    /// Raised by each start and stop: what was under way for an earlier life is dropped.
    pub(crate) life: u32,
    pub(crate) replica: Option<Replica>,
    /// Collected by `handle`, done after the turn, as the runtime does.
    pub(crate) actions: Vec<Action>,
    pub(crate) is_turn_due: bool,
    pub(crate) wake_us: u64,
    /// For when the next look at merged changes is planned.
    pub(crate) planned_ms: Option<u64>,
    pub(crate) paused_until_us: u64,
    pub(crate) slow_disk_until_us: u64,
    /// Asked to stop; it does so when it may.
    pub(crate) is_stopping: bool,
    /// Why it must stop.
    pub(crate) failure: Option<String>,
    /// Ids of those it keeps streams to.
    pub(crate) peers: Vec<u64>,
    /// Number of the link in each client slot.
    pub(crate) slots: Vec<Option<u64>>,
    pub(crate) generation: u32,
    pub(crate) is_started_before: bool,

    disk: MemoryDisk,
    log: MemoryLog,
    store: MemoryState,
    started_us: u64,
    pub(crate) wall_offset_ms: i64,
    is_clock_fast: bool,
    appends: Vec<Append>,
    /// Number of the last append in the sync under way.
    syncing: Option<u64>,
    compaction: Option<(u64, u64)>,
    jobs: VecDeque<Job>,
    work: Option<Work>,
    checkpoint: Checkpoint,
    checkpoint_applied: Applied,
    install: Result<(), String>,
    readers: BTreeMap<u64, Box<dyn SnapshotReader>>,
    chunk_bytes: usize,
}

/// The member with this id, as the first configuration names it.
pub(crate) fn member(id: u64) -> Member {
    let text = format!("replica{id}:2888:3888:participant;0.0.0.0:2181");
    Member::parse(id, &text).expect("it is spelled as ZooKeeper does")
}

impl Node {
    pub(crate) fn new(id: u64, options: &Options, wall_offset_ms: i64) -> Node {
        let disk = MemoryDisk::new(id);
        Node {
            id,
            life: 0,
            replica: None,
            actions: Vec::new(),
            is_turn_due: false,
            wake_us: u64::MAX,
            planned_ms: None,
            paused_until_us: 0,
            slow_disk_until_us: 0,
            is_stopping: false,
            failure: None,
            peers: Vec::new(),
            slots: Vec::new(),
            generation: 0,
            is_started_before: false,
            log: disk.log(),
            store: disk.state(),
            disk,
            started_us: 0,
            wall_offset_ms,
            is_clock_fast: options.canary == Some(Canary::FastClock),
            appends: Vec::new(),
            syncing: None,
            compaction: None,
            jobs: VecDeque::new(),
            work: None,
            checkpoint: new_checkpoint(options),
            checkpoint_applied: Applied::default(),
            install: Ok(()),
            readers: BTreeMap::new(),
            chunk_bytes: options.chunk_bytes,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// The replica's clocks at a moment of the world.
    pub(crate) fn now(&self, now_us: u64) -> Now {
        let mut ms = now_us.saturating_sub(self.started_us) / 1000;
        if self.is_clock_fast {
            ms *= 4;
        }
        let wall_ms = WALL_MS + (now_us / 1000) as i64 + self.wall_offset_ms;
        // Monotonic clocks of different machines have nothing to do with each other.
        Now { ms: ms + 1_000 * self.id, wall_ms }
    }

    /// The moment of the world at which the replica's monotonic clock shows `ms`.
    pub(crate) fn moment_us(&self, ms: u64) -> u64 {
        let mut since_ms = ms.saturating_sub(1_000 * self.id);
        if self.is_clock_fast {
            since_ms = since_ms.div_ceil(4);
        }
        since_ms.saturating_mul(1000).saturating_add(self.started_us)
    }

    /// Starts from the disk, as the service does when it opens its directory.
    pub(crate) fn start(&mut self, options: &Options, now_us: u64, chance: u64) {
        self.life += 1;
        self.started_us = now_us;
        self.disk.hold(false);
        let (applied, state) = match self.load().expect("a state that was written is readable") {
            Some(loaded) => loaded,
            None => self.first_state(options),
        };
        let initial = self.log.initial().expect("a log that was written is readable");
        let forgets = options.canary == Some(Canary::ForgetfulLog) && self.is_started_before;
        if applied.index > initial.last_index || forgets {
            let reset = Some((applied.index, applied.term));
            let append = Append { reset, ..Append::default() };
            self.log.append(&[append]).expect("nothing fails yet");
        }
        self.disk.hold(true);
        self.is_started_before = true;
        let setup = Setup {
            config: self.config(options),
            identity: Identity { cluster_id: 7, replica_id: self.id, store_id: self.id },
            origin: chance,
            secret: [self.id as u8; 32],
            log: self.log.reader(),
            state,
            applied,
            now: self.now(now_us),
        };
        let replica = Replica::new(setup, &mut self.actions);
        self.replica = Some(replica.expect("a log that was written is readable"));
    }

    fn config(&self, options: &Options) -> Config {
        let mut config = Config::tiny("unused".into());
        config.replica_id = self.id;
        config.members = (1..=options.node_count as u64).map(member).collect();
        config.max_session_timeout_ms = 20_000;
        config.log_retain_bytes = options.log_retain_bytes;
        config.reconfig_enabled = true;
        config.watches_per_client_max = 1000;
        config
    }

    fn load(&self) -> Result<Option<(Applied, State)>, StoreError> {
        let wrong = |error: millrace_coord::state::LoadError| StoreError::Corrupt {
            what: "the state".into(),
            at: error.to_string(),
        };
        let mut loader = Loader::with_seed(self.id);
        let applied = self.store.load(&mut |key, value| loader.push(key, value).map_err(wrong))?;
        applied.map(|applied| Ok((applied, loader.finish().map_err(wrong)?))).transpose()
    }

    /// The state that all members of a new cluster begin with.
    fn first_state(&mut self, options: &Options) -> (Applied, State) {
        let members: Vec<Member> = (1..=options.node_count as u64).map(member).collect();
        let text = config_lines(&members);
        let mut state = State::with_seed(self.id);
        let mut apply = |act: Act<'_>| {
            let command =
                Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act };
            let mut changes = Changes::default();
            let answer = state.apply(0, Rules::default(), &command, &mut changes);
            answer.expect("a new state takes what all runs begin with");
        };
        apply(Act::SetConfig { text: &text });
        for path in Client::first_nodes() {
            let mut record = Vec::new();
            let request = create(&path, b"0", create_mode::PERSISTENT);
            request.encode(&mut Writer::new(&mut record));
            apply(Act::Request { code: opcode::CREATE, record: &record });
        }
        let mut applied = Applied { index: 1, term: 1, ..Applied::default() };
        applied.conf_state.voters = (1..=options.node_count as u64).collect();
        let mut records = Vec::new();
        state.all_records(&mut |key, value| records.push((key.to_vec(), value.to_vec())));
        let mut records = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
        self.store.commit(&mut records, &applied).expect("nothing fails yet");
        (applied, state)
    }

    /// Stops at once: what is not durable is gone.
    pub(crate) fn crash(&mut self, options: &Options) {
        self.life += 1;
        self.replica = None;
        self.actions.clear();
        self.is_turn_due = false;
        self.wake_us = u64::MAX;
        self.planned_ms = None;
        self.paused_until_us = 0;
        self.is_stopping = false;
        self.failure = None;
        self.peers.clear();
        self.slots.clear();
        self.appends.clear();
        self.syncing = None;
        self.compaction = None;
        self.jobs.clear();
        self.work = None;
        self.checkpoint = new_checkpoint(options);
        self.install = Ok(());
        self.readers.clear();
        self.disk.crash();
        self.store = self.disk.state();
    }

    /// Writes what is queued, as a process does that ends by itself. A disk that has failed takes
    /// nothing more.
    pub(crate) fn finish(&mut self) {
        let _ = self.disk.sync(Part::Log);
        let _ = self.log.append(&std::mem::take(&mut self.appends));
        let _ = self.disk.sync(Part::Log);
        let _ = self.checkpoint.commit(&mut self.store);
        let _ = self.disk.sync(Part::State);
    }

    /// A sync that is under way reaches the disk although nobody will hear of it.
    pub(crate) fn sync_silently(&mut self, part: Part) {
        // One that was to fail has failed; it is not retried.
        let _ = self.disk.sync(part);
    }

    pub(crate) fn fail_next_sync(&self, part: Part) {
        self.disk.fail_sync(part, 1);
    }

    // The log thread.

    pub(crate) fn append(&mut self, append: Append) {
        self.appends.push(append);
    }

    pub(crate) fn compact(&mut self, index: u64, term: u64) {
        self.compaction = Some((index, term));
    }

    /// Begins to write what waits, if the disk is free. Gives the last append's number if a sync is
    /// under way now that was not.
    pub(crate) fn begin_sync(&mut self) -> Option<u64> {
        if self.syncing.is_some() || self.failure.is_some() {
            return None;
        }
        let number = self.appends.last()?.number;
        let batch = std::mem::take(&mut self.appends);
        self.syncing = Some(number);
        // A log that has failed says so again when it is synced.
        let _ = self.log.append(&batch);
        Some(number)
    }

    /// The sync under way is done: what to tell the replica.
    pub(crate) fn end_sync(&mut self) -> Option<Event<'static>> {
        let number = self.syncing.take()?;
        if let Err(error) = self.disk.sync(Part::Log) {
            return Some(Event::StorageFailed { error: error.to_string() });
        }
        let last = self.log.initial().map_or(0, |initial| initial.last_index);
        // What is not written yet is not forgotten yet.
        if let Some((index, term)) = self.compaction.take_if(|(index, _)| *index <= last) {
            self.disk.hold(false);
            while self.log.compact(index, term).is_ok_and(|reached| reached < index) {}
            self.disk.hold(true);
        }
        Some(Event::LogDurable { number })
    }

    // The state thread.

    pub(crate) fn add_checkpoint(
        &mut self,
        checkpoint: millrace_coord::replica::Checkpoint,
        now_ms: u64,
    ) {
        let millrace_coord::replica::Checkpoint { records, index, term, conf_state, .. } =
            checkpoint;
        let applied = Applied { index, term, conf_state };
        self.checkpoint_applied = applied.clone();
        self.checkpoint.add(records, applied, now_ms);
    }

    /// When the merged changes are to be made durable, in the world's milliseconds.
    pub(crate) fn checkpoint_due_ms(&self) -> Option<u64> {
        self.checkpoint.due_ms()
    }

    pub(crate) fn ask(&mut self, job: Job) {
        // What is merged may be what the peer lacks.
        if let Job::Open { .. } = job {
            self.jobs.push_back(Job::Commit);
        }
        self.jobs.push_back(job);
    }

    /// Begins the next job, if none is under way. True if one is now that was not.
    pub(crate) fn begin_job(&mut self) -> bool {
        if self.work.is_some() || self.failure.is_some() {
            return false;
        }
        let Some(job) = self.jobs.pop_front() else { return false };
        self.work = Some(self.do_job(job));
        true
    }

    fn do_job(&mut self, job: Job) -> Work {
        let failed =
            |error: StoreError| Work::Tell(Event::StorageFailed { error: error.to_string() });
        match job {
            Job::Commit => match self.checkpoint.commit(&mut self.store) {
                Ok(Some(_)) => Work::Commit(self.checkpoint_applied.clone()),
                Ok(None) => Work::Nothing,
                Err(error) => failed(error),
            },
            Job::Open { peer } => match self.store.snapshot() {
                Ok(reader) => {
                    let applied = reader.applied().clone();
                    self.readers.insert(peer, reader);
                    Work::Tell(Event::SnapshotOpened { peer, applied })
                }
                Err(_) => Work::Tell(Event::SnapshotChunk { peer, chunk: None }),
            },
            Job::Read { peer } => match self.readers.get_mut(&peer) {
                Some(reader) => {
                    let chunk = reader.next_chunk(self.chunk_bytes).unwrap_or(None);
                    Work::Tell(Event::SnapshotChunk { peer, chunk })
                }
                None => Work::Nothing,
            },
            Job::Close { peer } => {
                self.readers.remove(&peer);
                Work::Nothing
            }
            Job::Begin => {
                self.install = self.store.begin_install().map_err(|error| error.to_string());
                Work::Nothing
            }
            Job::Store { peer, chunk } => {
                if self.install.is_ok() {
                    let stored = self.store.install_chunk(&chunk);
                    self.install = stored.map_err(|error| error.to_string());
                }
                Work::Tell(Event::SnapshotStored { peer })
            }
            Job::Finish { peer } => {
                let begun =
                    std::mem::replace(&mut self.install, Err("no snapshot was begun".into()));
                let finished = begun
                    .and_then(|()| self.store.finish_install().map_err(|error| error.to_string()));
                match finished {
                    Ok(_) => Work::Finish { peer },
                    Err(error) => Work::Tell(Event::SnapshotRefused { peer, error }),
                }
            }
        }
    }

    /// The job under way is done: what to tell the replica.
    pub(crate) fn end_job(&mut self) -> Option<Event<'static>> {
        let work = self.work.take()?;
        if matches!(work, Work::Commit(_) | Work::Finish { .. })
            && let Err(error) = self.disk.sync(Part::State)
        {
            return Some(Event::StorageFailed { error: error.to_string() });
        }
        match work {
            Work::Nothing => None,
            Work::Tell(event) => Some(event),
            Work::Commit(applied) => Some(Event::CheckpointDurable { applied }),
            Work::Finish { peer } => {
                self.checkpoint.clear();
                let loaded = self.load().expect("a state that was installed is readable");
                let (applied, state) = loaded.expect("there is a state");
                Some(Event::SnapshotInstalled { peer, applied, state: Box::new(state) })
            }
        }
    }
}

fn new_checkpoint(options: &Options) -> Checkpoint {
    Checkpoint::new(Limits { wait_ms_max: options.checkpoint_ms, bytes_max: 1 << 30 })
}
