//! One simulated replica: the real `Replica` between a disk in memory and clocks of its own.
//!
//! Does what the runtime's threads do, in virtual time: the log thread makes all waiting appends
//! durable in one sync, the state thread works through its jobs one after another, with the very
//! [`Keeper`] of the product. Always holds: nothing is called durable before `MemoryDisk::sync`
//! made it so (but for a canary), and a crash drops everything else. Which moment things happen at
//! is the world's.

use std::collections::VecDeque;

use millrace_coord::Config;
use millrace_coord::command::{Act, Command, Rules};
use millrace_coord::config::members::{Member, config_lines};
use millrace_coord::peers::{Admission, Known, Listed};
use millrace_coord::replica::lists::{self, ListError};
use millrace_coord::replica::{Action, Event, Now, Replica, Setup, StateAction};
use millrace_coord::runtime::{Begun, Keeper, load};
use millrace_coord::state::{Changes, State};
use millrace_coord::store::checkpoint::Limits;
use millrace_coord::store::memory::{MemoryDisk, MemoryLog, Part};
use millrace_coord::store::{
    Append, Applied, Continuity, LogReader, LogStore, StateStore, StoreIdentity, continuity,
};
use millrace_proto::zookeeper::{Writer, create_mode, opcode};

use crate::client::{Client, create};
use crate::options::{Canary, Options};

/// Wall clock at the beginning: some day in 2026.
const WALL_MS: i64 = 1_790_000_000_000;

/// What the state thread is asked.
#[derive(Debug)]
enum Job {
    Act(StateAction),
    /// Make durable what is merged.
    Commit,
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
    /// Moment for which the next look at merged changes is planned.
    pub(crate) planned_ms: Option<u64>,
    pub(crate) paused_until_us: u64,
    pub(crate) slow_disk_until_us: u64,
    /// True if it was asked to stop; it does so when it may.
    pub(crate) is_stopping: bool,
    /// Why it must stop.
    pub(crate) failure: Option<String>,
    /// Ids of those it keeps streams to.
    pub(crate) peers: Vec<u64>,
    /// Number of the link in each client slot.
    pub(crate) slots: Vec<Option<u64>>,
    pub(crate) generation: u32,
    pub(crate) is_started_before: bool,

    /// What its configuration names as members.
    pub(crate) list: Vec<Member>,
    /// Decides which replicas may speak to it; what it remembers of others outlives it.
    pub(crate) admission: Option<Admission>,
    known: Option<Known>,
    /// 0 while it has no data.
    pub(crate) cluster_id: u64,
    store_id: u64,
    /// The disk that it had before it was wiped.
    before_wipe: Option<Box<(MemoryDisk, Known, u64, u64)>>,

    disk: MemoryDisk,
    log: MemoryLog,
    started_us: u64,
    pub(crate) wall_offset_ms: i64,
    is_clock_fast: bool,
    appends: Vec<Append>,
    /// Number of the last append in the sync under way.
    syncing: Option<u64>,
    compaction: Option<(u64, u64)>,
    keeper: Keeper,
    jobs: VecDeque<Job>,
    work: Option<Begun>,
}

/// Returns the member with this id, as the first configuration names it.
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
            list: (1..=options.node_count as u64).map(member).collect(),
            admission: None,
            known: Some(Known::in_memory()),
            cluster_id: 0,
            store_id: id,
            before_wipe: None,
            log: disk.log(),
            keeper: new_keeper(&disk, id, options),
            disk,
            started_us: 0,
            wall_offset_ms,
            is_clock_fast: options.canary == Some(Canary::FastClock),
            appends: Vec::new(),
            syncing: None,
            compaction: None,
            jobs: VecDeque::new(),
            work: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Returns the replica's clocks at a moment of the world.
    pub(crate) fn now(&self, now_us: u64) -> Now {
        let mut ms = now_us.saturating_sub(self.started_us) / 1000;
        if self.is_clock_fast {
            ms *= 4;
        }
        let wall_ms = WALL_MS + (now_us / 1000) as i64 + self.wall_offset_ms;
        // Monotonic clocks of different machines have nothing to do with each other.
        Now { ms: ms + 1_000 * self.id, wall_ms }
    }

    /// Returns the moment of the world at which the replica's monotonic clock shows `ms`.
    pub(crate) fn moment_us(&self, ms: u64) -> u64 {
        let mut since_ms = ms.saturating_sub(1_000 * self.id);
        if self.is_clock_fast {
            since_ms = since_ms.div_ceil(4);
        }
        since_ms.saturating_mul(1000).saturating_add(self.started_us)
    }

    /// Starts from the disk, as the service does when it opens its directory.
    ///
    /// # Errors
    /// Its list of members is refused.
    pub(crate) fn start(
        &mut self,
        options: &Options,
        now_us: u64,
        chance: u64,
    ) -> Result<(), ListError> {
        self.life += 1;
        self.started_us = now_us;
        self.disk.hold(false);
        let mut known = self.known.take().expect("it is down");
        let loaded = self.load();
        if let Some((_, state)) = &loaded {
            let current = lists::members_of(&state.config_text());
            let listed = known.listed().map(|listed| &listed.members[..]);
            if let Err(error) = lists::check(&self.config(options), listed, &current) {
                self.known = Some(known);
                return Err(error);
            }
            if self.cluster_id == 0 {
                self.cluster_id = known.joined().unwrap_or(chance.max(1));
            }
        } else {
            known.begin(false).expect("nothing fails in memory");
        }
        let (applied, state) =
            loaded.unwrap_or_else(|| (Applied::default(), first_state(self.id, &[])));
        let continuity =
            continuity(&self.log, &applied).expect("a log that was written is readable");
        assert!(continuity != Continuity::Gap, "nothing between state and log is ever lost");
        let forgets = options.canary == Some(Canary::ForgetfulLog) && self.is_started_before;
        if continuity == Continuity::Replaced || forgets {
            let reset = Some((applied.index, applied.term));
            let append = Append { reset, ..Append::default() };
            self.log.append(&[append]).expect("nothing fails yet");
        }
        self.disk.hold(true);
        self.is_started_before = true;
        let listed = known.listed().cloned();
        let cluster_id = self.cluster_id;
        self.admission = Some(Admission::new(cluster_id, self.id, self.store_id, known));
        let setup = Setup {
            config: self.config(options),
            identity: StoreIdentity { cluster_id, replica_id: self.id, store_id: self.store_id },
            origin: chance,
            secret: [self.id as u8; 32],
            log: self.log.reader(),
            state,
            applied,
            joins: false,
            listed,
            now: self.now(now_us),
        };
        let replica = Replica::new(setup, &mut self.actions);
        self.replica = Some(replica.expect("a log that was written is readable"));
        Ok(())
    }

    fn config(&self, options: &Options) -> Config {
        let mut config = Config::tiny("unused".into());
        config.replica_id = self.id;
        config.members.clone_from(&self.list);
        config.max_session_timeout_ms = 20_000;
        config.log_retain_bytes = options.log_retain_bytes;
        config.reconfig_enabled = true;
        config.watches_per_client_max = 1000;
        config
    }

    fn load(&self) -> Option<(Applied, State)> {
        load(&self.disk.state(), self.id).expect("a state that was written is readable")
    }

    /// True if there is a state on its disk.
    pub(crate) fn has_data(&self) -> bool {
        self.disk.state().load(&mut |_, _| Ok(())).is_ok_and(|applied| applied.is_some())
    }

    /// True if its disk is not the one that it had at first.
    pub(crate) fn is_wiped(&self) -> bool {
        self.before_wipe.is_some()
    }

    /// Puts a state on its disk before its first start, if it has no state yet: that of a member of a cluster,
    /// or of a replica by itself.
    pub(crate) fn put_data(&mut self, cluster_id: u64, members: &[Member]) {
        let state = first_state(self.id, members);
        let mut applied = Applied { index: 1, term: 1, ..Applied::default() };
        applied.conf_state.voters = match members {
            [] => vec![self.id],
            members => members.iter().map(|member| member.id).collect(),
        };
        let mut records = Vec::new();
        state.all_records(&mut |key, value| records.push((key.to_vec(), value.to_vec())));
        let mut records = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
        self.disk.hold(false);
        self.disk.state().commit(&mut records, &applied).expect("nothing fails yet");
        self.cluster_id = cluster_id;
        if !members.is_empty() {
            let known = self.known.as_mut().expect("it was not started");
            let listed = Listed { members: members.to_vec(), is_forming: false };
            known.set_listed(listed).expect("nothing fails in memory");
        }
    }

    /// Puts a new disk in the place of the old one, which is kept. Only while it is down.
    pub(crate) fn wipe(&mut self, options: &Options, store_id: u64) {
        let fresh = MemoryDisk::new(store_id);
        let known = self.known.replace(Known::in_memory()).expect("it is down");
        let disk = std::mem::replace(&mut self.disk, fresh);
        self.before_wipe = Some(Box::new((disk, known, self.cluster_id, self.store_id)));
        (self.cluster_id, self.store_id) = (0, store_id);
        self.reopen(options);
    }

    /// Brings the disk of before the wipe back. Only while it is down.
    pub(crate) fn unwipe(&mut self, options: &Options) {
        let Some(before) = self.before_wipe.take() else { return };
        let (disk, known, cluster_id, store_id) = *before;
        self.disk = disk;
        self.known = Some(known);
        (self.cluster_id, self.store_id) = (cluster_id, store_id);
        self.reopen(options);
    }

    fn reopen(&mut self, options: &Options) {
        self.log = self.disk.log();
        self.keeper = new_keeper(&self.disk, self.id, options);
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
        if let Some(admission) = self.admission.take() {
            self.known = Some(admission.into_known());
        }
        self.disk.crash();
        self.keeper = new_keeper(&self.disk, self.id, options);
    }

    /// Writes what is queued, as a process does that ends by itself: both threads do all that they were
    /// asked, a snapshot that is being received included. A disk that has failed takes nothing more, and
    /// no client gets an answer any more.
    pub(crate) fn finish(&mut self, now_ms: u64) {
        let _ = self.disk.sync(Part::Log);
        let _ = self.log.append(&std::mem::take(&mut self.appends));
        let _ = self.disk.sync(Part::Log);
        self.end_work();
        while let Some(job) = self.jobs.pop_front() {
            self.work = Some(self.begin(job, now_ms));
            self.end_work();
        }
        self.work = Some(self.keeper.commit());
        self.end_work();
    }

    /// Lets a sync that is under way reach the disk, although its result is lost.
    pub(crate) fn sync_silently(&mut self, part: Part) {
        // A sync that was to fail has failed; it is not retried.
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

    /// Begins to write what waits, if the disk is free. Returns the last append's number if that began a
    /// sync.
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

    /// Ends the sync under way; returns the event for the replica.
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

    /// Returns when the merged changes are to be made durable, in the world's milliseconds.
    pub(crate) fn checkpoint_due_ms(&self) -> Option<u64> {
        self.keeper.due_ms()
    }

    pub(crate) fn ask(&mut self, action: StateAction) {
        if Keeper::commits_before(&action) {
            self.jobs.push_back(Job::Commit);
        }
        self.jobs.push_back(Job::Act(action));
    }

    /// Asks to make merged changes durable, because it is time.
    pub(crate) fn ask_commit(&mut self) {
        self.jobs.push_back(Job::Commit);
    }

    /// Begins the next job, if none is under way. True if that began one. Changes are merged at once,
    /// because that takes no work of the disk.
    pub(crate) fn begin_job(&mut self, now_ms: u64) -> bool {
        if self.work.is_some() || self.failure.is_some() {
            return false;
        }
        while let Some(job) = self.jobs.pop_front() {
            let is_merge = matches!(job, Job::Act(StateAction::Checkpoint { .. }));
            let begun = self.begin(job, now_ms);
            if !is_merge {
                self.work = Some(begun);
                return true;
            }
        }
        false
    }

    fn begin(&mut self, job: Job, now_ms: u64) -> Begun {
        match job {
            Job::Commit => self.keeper.commit(),
            Job::Act(action) => self.keeper.begin(action, now_ms),
        }
    }

    /// Ends the job under way; returns the event for the replica.
    pub(crate) fn end_job(&mut self) -> Option<Event<'static>> {
        self.end_work()
    }

    fn end_work(&mut self) -> Option<Event<'static>> {
        let begun = self.work.take()?;
        if matches!(begun, Begun::Committed { .. } | Begun::Installed { .. })
            && let Err(error) = self.disk.sync(Part::State)
        {
            return Some(self.keeper.fail(&error));
        }
        self.keeper.end(begun)
    }
}

/// Returns the state that all runs begin with: the nodes that clients work on, and the members if there
/// are some.
fn first_state(seed: u64, members: &[Member]) -> State {
    let mut state = State::with_seed(seed);
    let mut apply = |act: Act<'_>| {
        let command =
            Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act };
        let mut changes = Changes::default();
        let answer = state.apply(0, Rules::default(), &command, &mut changes);
        answer.expect("a new state takes what all runs begin with");
    };
    if !members.is_empty() {
        apply(Act::SetConfig { text: &config_lines(members) });
    }
    for path in Client::first_nodes() {
        let mut record = Vec::new();
        let request = create(&path, b"0", create_mode::PERSISTENT);
        request.encode(&mut Writer::new(&mut record));
        apply(Act::Request { code: opcode::CREATE, record: &record });
    }
    state
}

fn new_keeper(disk: &MemoryDisk, id: u64, options: &Options) -> Keeper {
    let limits = Limits { wait_ms_max: options.checkpoint_ms, bytes_max: 1 << 30 };
    Keeper::new(Box::new(disk.state()), limits, id, options.chunk_bytes)
}
