//! Threads that make blocking calls to sources for the side thread.
//!
//! ```text
//!  enter(lane) ──► a place ──► run(call) ──► a thread ──► the answer, and the place is free
//!       └── waits, or is refused: the lane is full, or it hangs
//! ```
//!
//! Owns plain threads: those that are kept are made at start, so that no request needs one that cannot
//! be had. Every file system of every source is a *lane*. Always holds: a lane has a bounded number of
//! threads and of calls that wait for one; a lane that hangs leaves threads to the others, whatever is
//! asked of it, is refused at once after a while, and is tried again from time to time; a call that
//! never returns costs its thread and no other. Deadlines of requests are left to the callers: a call
//! that is not waited for any more goes on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::StoreError;
use crate::cpus::confine;

/// If nothing in a lane was answered for this long it counts as silent: what waits in it is told to come
/// again, so that it holds no memory that others need. Guessed: sources that are merely slow and are
/// asked by several at once answer something within that time.
const SILENT_AFTER: Duration = Duration::from_millis(1500);
/// How often lanes are looked at while calls are under way.
const LOOK: Duration = Duration::from_millis(250);
/// Wait before the second try of a lane that hangs; it doubles with each.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries. Guessed: an operator who mended a source looks for about as long.
const TRY_AGAIN_MAX: Duration = Duration::from_secs(30);
/// Tries that may hang in a lane besides its calls.
const TRIES_MAX: usize = 4;
/// Free threads that a lane with as many calls or more leaves to others.
const LEFT_TO_OTHERS: usize = 3;
/// An extra thread that had nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);
/// Wait before a thread is asked of the system again that could not be had.
const SPAWN_AGAIN: Duration = Duration::from_secs(1);
/// Shortest time between two log lines about one lane's silence.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Stack of a thread. Reading needs little: hundreds of threads should not cost a gigabyte of addresses.
const STACK_SIZE: usize = 256 << 10;

/// Names a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneId {
    /// Its name for people: the source, and the directory where a file system is mounted in it.
    pub name: Arc<str>,
    /// Number of the mounted file system: one that is mounted again hangs by itself.
    pub mount: u64,
}

/// Limits of a pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolLimits {
    /// What its threads are called.
    pub name: &'static str,
    /// Threads that are made at start.
    pub kept: usize,
    /// Threads at most, with those that hang.
    pub most: usize,
    /// Calls of one lane at once.
    pub lane_max: usize,
    /// Calls of one lane that wait for a thread.
    pub queue_max: usize,
    /// The key in the message about a full queue.
    pub queue_key: &'static str,
    /// How nice the threads are, 0 to 19, see nice(2).
    pub niceness: i32,
    /// A call that takes longer is taken to hang.
    pub patience: Duration,
    /// Processors of the threads.
    pub cpus: Arc<[usize]>,
}

/// Logs lanes that do not answer: once, and once when they answer again, whichever pool notices.
#[derive(Default)]
pub(crate) struct Notices {
    told: Mutex<HashMap<LaneId, (usize, Instant)>>,
}

impl Notices {
    /// Notes that a pool's lane does not answer. True if its next answer is to be logged.
    fn silent(&self, lane: &LaneId, quiet: Duration, waiting: usize) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        told.retain(|_, (count, at)| *count > 0 || now - *at < TELL_AGAIN);
        let is_known = told.get(lane).map(|(count, _)| *count);
        match is_known {
            Some(0) => false,
            Some(_) => {
                told.entry(lane.clone()).and_modify(|(count, _)| *count += 1);
                true
            }
            None => {
                told.insert(lane.clone(), (1, now));
                tracing::warn!(
                    "{} has not answered for {} ms ({waiting} requests wait); other sources go on",
                    lane.name,
                    quiet.as_millis()
                );
                true
            }
        }
    }

    fn answered(&self, lane: &LaneId) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, at)) = told.get_mut(lane) {
            *count -= 1;
            if *count == 0 {
                tracing::info!("{} answers again, after {} s", lane.name, at.elapsed().as_secs());
            }
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;
type Reply = oneshot::Sender<Result<CallPlace, StoreError>>;

/// Calls of one lane.
struct Lane {
    /// When the calls under way began, by their numbers, which grow.
    running: BTreeMap<u64, Instant>,
    /// Calls that wait, since when.
    waiting: VecDeque<(u64, Instant, Reply)>,
    answered_at: Instant,
    /// When a lane that hangs is tried again, and the wait after that.
    try_at: Instant,
    try_wait: Duration,
    /// True if its silence was logged.
    is_told: bool,
}

impl Lane {
    fn new(now: Instant) -> Lane {
        Lane {
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            answered_at: now,
            try_at: now,
            try_wait: TRY_AGAIN,
            is_told: false,
        }
    }

    /// Returns for how long nothing was answered though something was asked.
    fn quiet(&self, now: Instant) -> Duration {
        let oldest = self.running.values().next();
        oldest.map_or(Duration::ZERO, |&began| {
            now.saturating_duration_since(began.max(self.answered_at))
        })
    }

    /// Counts calls under way that do not hang, and those that do.
    fn active_and_stuck(&self, now: Instant, patience: Duration) -> (usize, usize) {
        let is_stuck = |began: &&Instant| now.saturating_duration_since(**began) >= patience;
        let stuck = self.running.values().take_while(is_stuck).count();
        (self.running.len() - stuck, stuck)
    }
}

struct PoolState {
    /// Threads that there are.
    thread_count: usize,
    /// Those that have a call.
    busy_count: usize,
    next: u64,
    lanes: HashMap<LaneId, Lane>,
    no_thread_until: Option<Instant>,
}

struct PoolShared {
    limits: PoolLimits,
    notices: Arc<Notices>,
    state: Mutex<PoolState>,
    /// It never holds more than there are threads, because a place is one of them.
    jobs: flume::Sender<Job>,
    queue: flume::Receiver<Job>,
    /// Rung when the first call begins.
    began: Notify,
}

/// Threads of one kind.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<PoolShared>,
}

/// The right to make one call; free again when it is dropped.
pub(crate) struct CallPlace {
    shared: Arc<PoolShared>,
    lane: LaneId,
    number: u64,
    /// True if the lane hangs, and this call finds out whether it still does.
    is_try: bool,
}

/// What to do with a call.
enum Verdict {
    Begin { is_try: bool },
    Wait,
    Refuse(StoreError),
}

impl Pool {
    /// Makes the threads that are kept.
    ///
    /// # Errors
    /// If the system does not give them.
    pub(crate) fn start(limits: PoolLimits, notices: Arc<Notices>) -> io::Result<Pool> {
        let (jobs, queue) = flume::bounded(limits.most);
        let state = PoolState {
            thread_count: 0,
            busy_count: 0,
            next: 0,
            lanes: HashMap::new(),
            no_thread_until: None,
        };
        let (state, began) = (Mutex::new(state), Notify::new());
        let shared = Arc::new(PoolShared { limits, notices, state, jobs, queue, began });
        for _ in 0..shared.limits.kept {
            shared.spawn(false)?;
            shared.lock().thread_count += 1;
        }
        Ok(Pool { shared })
    }

    /// Waits for a thread.
    ///
    /// # Errors [`StoreError::Busy`] if too many wait, or the lane is silent; [`StoreError::Hangs`] if
    /// it has been silent for long.
    pub(crate) async fn enter(&self, lane: LaneId) -> Result<CallPlace, StoreError> {
        let now = Instant::now();
        let (answer, number) = {
            let mut state = self.shared.lock();
            let number = state.next;
            state.next += 1;
            match self.shared.judge(&mut state, &lane, now) {
                Verdict::Begin { is_try } => {
                    self.shared.begin(&mut state, &lane, number, now);
                    drop(state);
                    return Ok(CallPlace {
                        shared: Arc::clone(&self.shared),
                        lane,
                        number,
                        is_try,
                    });
                }
                Verdict::Refuse(error) => return Err(error),
                Verdict::Wait => {
                    let (reply, answer) = oneshot::channel();
                    let entry = state.lanes.entry(lane.clone()).or_insert_with(|| Lane::new(now));
                    entry.waiting.push_back((number, now, reply));
                    (answer, number)
                }
            }
        };
        let waits = Waits { shared: &self.shared, lane: &lane, number };
        let answer = answer.await;
        drop(waits);
        // The other end is dropped with the pool alone.
        answer.unwrap_or_else(|_| Err(StoreError::Failed("the node is shutting down".to_owned())))
    }

    /// Looks after lanes that do not answer, for as long as it is polled.
    pub(crate) async fn watch(&self) {
        loop {
            self.shared.began.notified().await;
            while self.shared.lock().busy_count > 0 {
                tokio::time::sleep(LOOK).await;
                self.shared.look(Instant::now());
            }
        }
    }

    /// Returns the number of threads.
    #[cfg(test)]
    pub(crate) fn thread_count(&self) -> usize {
        self.shared.lock().thread_count
    }
}

/// Takes a call that waits out of its queue when its caller goes.
struct Waits<'a> {
    shared: &'a PoolShared,
    lane: &'a LaneId,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(lane) = state.lanes.get_mut(self.lane) {
            lane.waiting.retain(|(number, ..)| *number != self.number);
        }
        state.let_go(self.lane);
    }
}

impl PoolState {
    /// Forgets a lane in which nothing happens.
    fn let_go(&mut self, id: &LaneId) {
        let is_idle = |lane: &Lane| lane.running.is_empty() && lane.waiting.is_empty();
        if self.lanes.get(id).is_some_and(is_idle) {
            self.lanes.remove(id);
        }
    }
}

impl PoolShared {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(self: &Arc<Self>, state: &mut PoolState, id: &LaneId, now: Instant) -> Verdict {
        let PoolLimits { lane_max, queue_max, queue_key, patience, .. } = self.limits;
        let Some(lane) = state.lanes.get(id) else {
            let has_thread = self.has_thread(state, 0, now);
            return if has_thread { Verdict::Begin { is_try: false } } else { Verdict::Wait };
        };
        let (quiet, waiting) = (lane.quiet(now), lane.waiting.len());
        let (active, stuck) = lane.active_and_stuck(now, patience);
        if quiet >= patience {
            let may_try = now >= lane.try_at && active + stuck < 2 * lane_max + TRIES_MAX;
            if !may_try || !self.has_thread(state, active + stuck, now) {
                return Verdict::Refuse(StoreError::Hangs(Arc::clone(&id.name)));
            }
            if let Some(lane) = state.lanes.get_mut(id) {
                lane.try_at = now + lane.try_wait;
                lane.try_wait = (2 * lane.try_wait).min(TRY_AGAIN_MAX);
            }
            return Verdict::Begin { is_try: true };
        }
        let has_room = active < lane_max && active + stuck < 2 * lane_max;
        if has_room && waiting == 0 && self.has_thread(state, active + stuck, now) {
            return Verdict::Begin { is_try: false };
        }
        if quiet >= SILENT_AFTER {
            return Verdict::Refuse(silent(id));
        }
        if waiting >= queue_max {
            let message = format!("too many requests wait for {} ({queue_key})", id.name);
            return Verdict::Refuse(StoreError::Busy(message));
        }
        Verdict::Wait
    }

    /// True if a lane with this many calls gets one more thread. If none is free one is made.
    fn has_thread(self: &Arc<Self>, state: &mut PoolState, calls: usize, now: Instant) -> bool {
        // A lane leaves as many of the threads that can be had as it takes: however many lanes hang,
        // another one gets something.
        if 2 * calls >= self.limits.most - state.busy_count {
            return false;
        }
        let free = state.thread_count - state.busy_count;
        if free > calls.min(LEFT_TO_OTHERS) {
            return true;
        }
        if state.thread_count >= self.limits.most
            || state.no_thread_until.is_some_and(|until| now < until)
        {
            return false;
        }
        match self.spawn(true) {
            Ok(()) => {
                state.thread_count += 1;
                state.no_thread_until = None;
                true
            }
            Err(error) => {
                if state.no_thread_until.is_none() {
                    tracing::warn!(
                        "one more thread for sources: {error}; those that are there go on"
                    );
                }
                state.no_thread_until = Some(now + SPAWN_AGAIN);
                false
            }
        }
    }

    fn begin(&self, state: &mut PoolState, id: &LaneId, number: u64, now: Instant) {
        let lane = state.lanes.entry(id.clone()).or_insert_with(|| Lane::new(now));
        lane.running.insert(number, now);
        state.busy_count += 1;
        if state.busy_count == 1 {
            self.began.notify_one();
        }
    }

    fn end(self: &Arc<Self>, id: &LaneId, number: u64) {
        let mut state = self.lock();
        state.busy_count -= 1;
        if let Some(lane) = state.lanes.get_mut(id) {
            lane.running.remove(&number);
            lane.answered_at = Instant::now();
            (lane.try_at, lane.try_wait) = (lane.answered_at, TRY_AGAIN);
            if std::mem::take(&mut lane.is_told) {
                self.notices.answered(id);
            }
        }
        state.let_go(id);
        drop(state);
        // They are sent with the lock free, because a place that is not taken is ended here, too.
        while let Some((reply, place)) = self.next() {
            drop(reply.send(Ok(place)));
        }
    }

    /// Returns the next call that may begin: of the lane that has fewest.
    fn next(self: &Arc<Self>) -> Option<(Reply, CallPlace)> {
        let mut state = self.lock();
        let now = Instant::now();
        let PoolLimits { lane_max, patience, .. } = self.limits;
        let waiting = state.lanes.iter().filter(|(_, lane)| !lane.waiting.is_empty());
        let counted = waiting.map(|(id, lane)| (lane.active_and_stuck(now, patience), id));
        let open = counted
            .filter(|((active, stuck), _)| *active < lane_max && active + stuck < 2 * lane_max);
        let ((active, stuck), id) = open.min_by_key(|(calls, _)| *calls)?;
        let id = id.clone();
        if !self.has_thread(&mut state, active + stuck, now) {
            return None;
        }
        let (number, _, reply) = state.lanes.get_mut(&id)?.waiting.pop_front()?;
        self.begin(&mut state, &id, number, now);
        Some((reply, CallPlace { shared: Arc::clone(self), lane: id, number, is_try: false }))
    }

    /// Logs lanes that are silent, and sends away what waits in them.
    fn look(&self, now: Instant) {
        let mut sent_away = Vec::new();
        let mut state = self.lock();
        for (id, lane) in &mut state.lanes {
            let quiet = lane.quiet(now);
            let waits_since = lane.waiting.front().map_or(now, |(_, since, _)| *since);
            let error = if quiet >= SILENT_AFTER {
                let waiting = lane.running.len() + lane.waiting.len();
                if !lane.is_told {
                    lane.is_told = self.notices.silent(id, quiet, waiting);
                }
                silent(id)
            } else if lane.running.is_empty() && now - waits_since >= SILENT_AFTER {
                StoreError::Busy("no thread is free that reads sources: try again".to_owned())
            } else {
                continue;
            };
            sent_away.extend(lane.waiting.drain(..).map(|(.., reply)| (reply, error.clone())));
        }
        drop(state);
        for (reply, error) in sent_away {
            // It may have gone meanwhile.
            drop(reply.send(Err(error)));
        }
    }

    /// Makes a thread; an extra one ends when it is not needed any more.
    fn spawn(self: &Arc<Self>, is_extra: bool) -> io::Result<()> {
        let (queue, shared) = (self.queue.clone(), Arc::downgrade(self));
        let (cpus, niceness) = (Arc::clone(&self.limits.cpus), self.limits.niceness);
        let builder = std::thread::Builder::new().name(self.limits.name.to_owned());
        builder.stack_size(STACK_SIZE).spawn(move || {
            // The node stays on the processors it was given. If that is not allowed the side thread says
            // so.
            let _ = confine(&cpus);
            if niceness > 0 {
                // Every user may do this; a thread that stays as it was still works.
                let _ = rustix::process::setpriority_process(None, niceness);
            }
            work(&queue, &shared, is_extra);
        })?;
        Ok(())
    }
}

fn silent(id: &LaneId) -> StoreError {
    StoreError::Busy(format!("{} does not answer at the moment: try again", id.name))
}

/// Makes calls until the pool is gone.
fn work(queue: &flume::Receiver<Job>, shared: &Weak<PoolShared>, is_extra: bool) {
    loop {
        let job = match is_extra {
            false => queue.recv().map_err(|_| flume::RecvTimeoutError::Disconnected),
            true => queue.recv_timeout(IDLE),
        };
        match job {
            Ok(job) => job(),
            Err(flume::RecvTimeoutError::Disconnected) => return,
            Err(flume::RecvTimeoutError::Timeout) => {
                let Some(shared) = shared.upgrade() else { return };
                let mut state = shared.lock();
                // Another free one takes the call that may just be on its way.
                if state.thread_count > shared.limits.kept.max(state.busy_count) {
                    state.thread_count -= 1;
                    return;
                }
            }
        }
    }
}

impl CallPlace {
    /// Returns for how long the answer may be waited for.
    pub(crate) fn patience(&self) -> Duration {
        if self.is_try { SILENT_AFTER } else { self.shared.limits.patience }
    }

    /// As [`CallPlace::run`], for at most as long as a call may take.
    ///
    /// # Errors
    /// [`StoreError::Hangs`] after that.
    pub(crate) async fn ask<T, F>(self, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, StoreError> + Send + 'static,
    {
        let (patience, name) = (self.patience(), Arc::clone(&self.lane.name));
        let answer = tokio::time::timeout(patience, self.run(call)).await;
        answer.unwrap_or(Err(StoreError::Hangs(name)))
    }

    /// Makes the call on a thread, and waits for its answer. If that is dropped the call goes on, and
    /// the place with it.
    ///
    /// # Panics
    /// If the call does.
    pub(crate) async fn run<T, F>(self, call: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        let jobs = self.shared.jobs.clone();
        // The place is given back here and not on the thread: one that has low priority must not be
        // stopped while it holds what others wait for.
        tokio::spawn(async move {
            let answer_of_call = answered.await;
            drop(self);
            drop(done.send(answer_of_call));
        });
        let job: Job = Box::new(move || drop(answer.send(call())));
        jobs.try_send(job).expect("a thread for each place");
        let answer = ended.await.expect("the task ends with the runtime alone");
        answer.expect("a call does not panic")
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.shared.end(&self.lane, self.number);
    }
}

#[cfg(test)]
mod tests;
