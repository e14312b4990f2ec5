//! One operation, asked of one member after another until one answers.
//!
//! ```text
//!  first ──────────────────────────────► late: suspect, but it may still answer
//!           │ no answer for a while
//!           └─► second ──► failed
//!                            └─► third ──► good: done, from any of them
//!  all asked: the source, if that is allowed ──► a pause ──► another round, until the deadline
//! ```
//!
//! Always holds: the first good answer counts and the others are dropped; each try has a landing of its
//! own, so that bytes of two answers never meet; a member has one try at a time; only the deadline, a
//! final answer, or a round in which no member will ever do better ends the operation. That there is no
//! such file, or no such version, is final when two members say so, or if one says so and no other one
//! answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millrace_proto::Status;
use tokio::time::{self, Instant};

use crate::config::ClientConfig;
use crate::connection::{Body, Landing, Reply};
use crate::error::Error;
use crate::member::Member;
use crate::network::Network;
use crate::reply::{self, Setback};
use crate::retry::{Backoff, source_wait};
use crate::topology::{Order, Topology};

/// How often a busy member is asked again before the next one is.
const BUSY_TRIES: u32 = 3;
/// Longest wait that a busy member may ask for to be asked again. Guessed.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(50);

/// How much longer or shorter than the first one the waits between members get. Guessed.
const WAIT_GROWTH_MAX: u32 = 64;
const WAIT_SHRINK_MAX: u32 = 8;

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No member would answer differently.
    Final,
    /// The member says that there is no such thing: another one may know more.
    Denied,
    /// Another member may do better, this one will not.
    Hard,
    /// This member may do better later.
    Passing,
    /// The member was not reached.
    Gone,
}

/// A try that came to nothing, with its landing for the next one.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) landing: Landing,
    pub(crate) error: Error,
    pub(crate) verdict: Verdict,
}

impl Failure {
    /// Returns a failure whose landing is lost.
    pub(crate) fn bare(error: Error, verdict: Verdict) -> Failure {
        Failure { landing: Landing::Any, error, verdict }
    }
}

/// How much a try has put up with.
#[derive(Debug)]
pub(crate) struct Tolerance {
    busy: u32,
    damaged: bool,
    backoff: Backoff,
}

impl Tolerance {
    pub(crate) fn new(config: &ClientConfig) -> Tolerance {
        Tolerance { busy: 0, damaged: false, backoff: config.busy_backoff() }
    }

    /// Counts damaged bytes. True if this is the first time.
    pub(crate) fn damage(&mut self) -> bool {
        !std::mem::replace(&mut self.damaged, true)
    }

    /// Waits if the same member is to be asked again; else returns what the setback means.
    ///
    /// # Errors
    /// The error, and what to do about it.
    pub(crate) async fn bear(&mut self, setback: Setback) -> Result<(), (Error, Verdict)> {
        let (wait_min, cause) = match setback {
            Setback::Again { wait_min, cause } => (wait_min, cause),
            Setback::Restat(error) => return Err((error, Verdict::Passing)),
            Setback::Stale(error) => return Err((error, Verdict::Denied)),
            Setback::Fail(error) => {
                let verdict = verdict_of(&error);
                return Err((error, verdict));
            }
        };
        match cause.status() {
            Some(Status::Busy | Status::BadChecksum)
                if self.busy < BUSY_TRIES && wait_min <= BUSY_WAIT_MAX =>
            {
                self.busy += 1;
                time::sleep(self.backoff.step().max(wait_min)).await;
                Ok(())
            }
            Some(Status::Corrupt) if self.damage() => Ok(()),
            None | Some(Status::ShuttingDown) => Err((cause, Verdict::Gone)),
            Some(_) => Err((cause, Verdict::Passing)),
        }
    }
}

/// Returns what an error that no repeat heals means for the other members.
pub(crate) fn verdict_of(error: &Error) -> Verdict {
    match error {
        Error::DeadlineExceeded => Verdict::Passing,
        Error::Stale { .. } => Verdict::Denied,
        Error::Status { status, .. } => match status {
            Status::NotFound | Status::WrongKind | Status::PermissionDenied => Verdict::Denied,
            Status::OutOfRange | Status::InvalidArgument => Verdict::Final,
            _ => Verdict::Hard,
        },
        _ => Verdict::Hard,
    }
}

/// One try.
pub(crate) type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;
/// A last resort; None without one.
pub(crate) type Rescue<'a, T> = Pin<Box<dyn Future<Output = Option<Result<T, Error>>> + Send + 'a>>;

/// What an operation asks, and of which members.
pub(crate) trait Errand<T>: Sync {
    /// Returns the members to ask, best first.
    fn order(&self, topology: &Topology) -> Order;

    /// Asks one member.
    fn attempt<'a>(
        &'a self,
        topology: Arc<Topology>,
        member: u32,
        landing: Landing,
    ) -> Attempt<'a, T>
    where
        T: 'a;

    /// Returns the last resort when no member has answered.
    fn rescue(&self) -> Rescue<'_, T>;

    /// Returns the shard of a member that is asked.
    fn shard(&self, topology: &Topology, member: u32) -> u32;

    /// True if a member reported the file before: if one denies it now, suspect members are worth
    /// asking, too.
    fn is_expected(&self) -> bool;
}

/// A try that is under way.
struct Try<'a, T> {
    member: Arc<Member>,
    shard: u32,
    started: Instant,
    is_late: bool,
    future: Attempt<'a, T>,
}

/// The tries of an operation.
pub(crate) struct Tries<'a, T> {
    network: &'a Network,
    config: &'a ClientConfig,
    deadline: Instant,
    /// How long a member may take.
    patience: Duration,
    /// When the next member is asked, whatever happens to the others.
    next_at: Instant,
    /// How long after the newest try that is.
    next_wait: Duration,
    /// The last resort, while it is under way.
    rescue: Option<Rescue<'a, T>>,
    pending: Vec<Try<'a, T>>,
    /// The members that were asked in this round.
    asked: Vec<Arc<Member>>,
    /// A landing that no try uses.
    spare: Option<Landing>,
    /// What went wrong last.
    cause: Option<Error>,
    /// True if all failures of this round are final.
    is_hopeless: bool,
    /// True if a member was too busy to answer in this round.
    is_busy: bool,
    /// Rounds that ended with a source that failed.
    source_failures: u32,
    /// The members that said that there is no such thing, and how.
    denials: Vec<(Arc<Member>, Error)>,
}

/// The result of waiting.
enum Step<T> {
    Done(T),
    /// No member is left to wait for.
    Next,
    /// The members that were asked take too long.
    Late,
    End(Error),
}

impl<'a, T> Tries<'a, T> {
    pub(crate) fn new(
        network: &'a Network,
        config: &'a ClientConfig,
        deadline: Instant,
        patience: Duration,
    ) -> Tries<'a, T> {
        Tries {
            network,
            config,
            deadline,
            patience,
            next_at: deadline,
            next_wait: patience,
            rescue: None,
            pending: Vec::new(),
            asked: Vec::new(),
            spare: None,
            cause: None,
            is_hopeless: true,
            is_busy: false,
            source_failures: 0,
            denials: Vec::new(),
        }
    }

    /// Notes a try that was begun elsewhere and has not ended.
    pub(crate) fn begun(
        &mut self,
        (member, shard): (Arc<Member>, u32),
        started: Instant,
        future: Attempt<'a, T>,
    ) {
        let first_wait = first_wait(self.config, self.patience, &member, shard);
        self.asked.push(member.clone());
        self.pending.push(Try { member, shard, started, is_late: false, future });
        self.mark_late(Instant::now());
        if started.elapsed() >= first_wait {
            self.adapt();
        }
    }

    /// Notes a try that was begun elsewhere and has failed.
    ///
    /// # Errors
    /// If that is final.
    pub(crate) fn failed(
        &mut self,
        (member, shard): (Arc<Member>, u32),
        failure: Failure,
    ) -> Result<(), Error> {
        self.asked.push(member.clone());
        self.note(&member, shard, failure)
    }

    /// Asks one member after another.
    ///
    /// # Errors
    /// See the module.
    pub(crate) async fn run(mut self, errand: &'a impl Errand<T>) -> Result<T, Error> {
        let mut backoff = self.config.busy_backoff();
        loop {
            let topology = self.network.topology();
            let order = errand.order(&topology);
            if order.is_empty() {
                let text = "all members are of another cluster by now; connect again";
                self.cause = Some(Error::protocol(text));
            }
            for index in order {
                let member = topology.member(index);
                let is_same = |other: &Arc<Member>| Arc::ptr_eq(other, member);
                if self.asked.iter().any(is_same)
                    || self.pending.iter().any(|it| is_same(&it.member))
                {
                    continue;
                }
                let is_asked = member.health.is_well() || errand.is_expected();
                if !self.denials.is_empty() && !is_asked {
                    continue;
                }
                self.start(errand, &topology, index);
                match self.attend().await {
                    Step::Done(value) => return Ok(value),
                    Step::End(error) => return Err(error),
                    Step::Next => {}
                    Step::Late => self.adapt(),
                }
            }
            if let Some(error) = self.denial() {
                return Err(error);
            }
            match self.attend_rescue(errand).await {
                Step::Done(value) => return Ok(value),
                Step::End(error) => return Err(error),
                Step::Next | Step::Late => {}
            }
            let mut pause = Instant::now() + backoff.step();
            if self.cause.as_ref().and_then(Error::status) == Some(Status::SourceError) {
                self.source_failures += 1;
                match source_wait(self.source_failures) {
                    Some(wait) => pause = pause.max(Instant::now() + wait),
                    None => self.is_hopeless = true,
                }
            }
            if self.is_idle() && (self.is_hopeless || pause >= self.deadline) {
                return Err(self.end());
            }
            self.next_at = pause;
            while Instant::now() < pause {
                match self.attend().await {
                    Step::Done(value) => return Ok(value),
                    Step::End(error) => return Err(error),
                    Step::Next if self.is_idle() => {
                        if let Some(error) = self.denial() {
                            return Err(error);
                        }
                        time::sleep_until(pause).await;
                    }
                    Step::Next | Step::Late => {}
                }
            }
            self.next_wait = self.patience;
            self.asked.clear();
            self.is_hopeless = true;
            self.is_busy = false;
        }
    }

    fn start(&mut self, errand: &'a impl Errand<T>, topology: &Arc<Topology>, index: u32)
    where
        T: 'a,
    {
        let member = topology.member(index).clone();
        let landing = self.spare.take().unwrap_or(Landing::Any);
        let started = Instant::now();
        let shard = errand.shard(topology, index);
        self.next_at = started + first_wait(self.config, self.next_wait, &member, shard);
        self.asked.push(member.clone());
        self.pending.push(Try {
            member,
            shard,
            started,
            is_late: false,
            future: errand.attempt(topology.clone(), index, landing),
        });
    }

    /// Changes the wait for the member that is asked next, after one that is late. A late member that is
    /// alive makes it longer, because if all are slow more load does harm. One of which nothing was
    /// heard makes it shorter, so several that hang cost together about as much as the first two.
    fn adapt(&mut self) {
        let Some(newest) = self.pending.iter().max_by_key(|it| it.started) else { return };
        self.next_wait = if newest.member.was_heard_since(newest.shard, newest.started) {
            (self.next_wait * 2).min(self.patience * WAIT_GROWTH_MAX)
        } else {
            // It may have had less than its time; if it lives it answers a ping.
            newest.member.suspect(newest.shard, true);
            (self.next_wait / 2).max(self.patience / WAIT_SHRINK_MAX)
        };
    }

    /// Waits for an answer, for a failure that leaves no member to wait for, or until it is time to ask
    /// the next member.
    async fn attend(&mut self) -> Step<T> {
        loop {
            let lateness = self.pending.iter().filter(|it| !it.is_late);
            let lateness = lateness.map(|it| it.started + self.patience).min();
            let wake = lateness.map_or(self.next_at, |late| late.min(self.next_at));
            match next(&mut self.pending, &mut self.rescue, wake.min(self.deadline)).await {
                Some(Event::Tried(member, _, Ok(value))) => {
                    if !member.health.is_well() {
                        member.health.recover();
                    }
                    return Step::Done(value);
                }
                Some(Event::Rescued(rescued)) => {
                    self.rescue = None;
                    return self.judge_rescue(rescued);
                }
                Some(Event::Tried(member, shard, Err(failure))) => {
                    if let Err(error) = self.note(&member, shard, failure) {
                        return Step::End(error);
                    }
                    if self.pending.iter().all(|it| it.is_late) {
                        return Step::Next;
                    }
                }
                None => {}
            }
            let now = Instant::now();
            self.mark_late(now);
            if now >= self.deadline {
                return Step::End(self.end());
            }
            if now >= self.next_at {
                return Step::Late;
            }
        }
    }

    /// Tries the last resort, and meanwhile still hears the members that are late. A source may hang,
    /// too: after the time of a member it goes on beside another round.
    async fn attend_rescue(&mut self, errand: &'a impl Errand<T>) -> Step<T> {
        if self.rescue.is_none() {
            self.rescue = Some(errand.rescue());
        }
        self.next_at = Instant::now() + self.patience;
        while self.rescue.is_some() {
            match self.attend().await {
                step @ (Step::Done(_) | Step::End(_)) => return step,
                Step::Late => break,
                Step::Next => {}
            }
        }
        Step::Next
    }

    fn judge_rescue(&mut self, rescued: Option<Result<T, Error>>) -> Step<T> {
        match rescued {
            None => Step::Next,
            Some(Ok(value)) => Step::Done(value),
            // A member that is late may have what the source no longer has.
            Some(Err(error)) => {
                let is_final = matches!(verdict_of(&error), Verdict::Final | Verdict::Denied);
                if is_final && self.pending.is_empty() {
                    return Step::End(error);
                }
                self.is_hopeless &= is_final;
                self.cause = Some(error);
                Step::Next
            }
        }
    }

    /// True if nothing is under way.
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.rescue.is_none()
    }

    /// Suspects the members that took too long and of which nothing was heard.
    fn mark_late(&mut self, now: Instant) {
        for it in &mut self.pending {
            if it.is_late || now.saturating_duration_since(it.started) < self.patience {
                continue;
            }
            it.is_late = true;
            if !it.member.was_heard_since(it.shard, it.started) {
                it.member.suspect(it.shard, true);
            }
        }
    }

    fn note(&mut self, member: &Arc<Member>, shard: u32, failure: Failure) -> Result<(), Error> {
        if let Landing::Buffer(_) = failure.landing {
            self.spare = Some(failure.landing);
        }
        match failure.verdict {
            Verdict::Final => return Err(failure.error),
            Verdict::Denied => self.note_denial(member, &failure.error)?,
            Verdict::Hard => {}
            Verdict::Passing => {
                self.is_hopeless = false;
                self.is_busy |= failure.error.status() == Some(Status::Busy);
            }
            Verdict::Gone => {
                self.is_hopeless = false;
                member.suspect(shard, false);
            }
        }
        self.cause = Some(failure.error);
        Ok(())
    }

    /// Notes that a member says that there is no such thing.
    ///
    /// # Errors If another member said the same, that is the answer. A single one may have missed a new
    /// mount, or may have lost its source.
    fn note_denial(&mut self, member: &Arc<Member>, error: &Error) -> Result<(), Error> {
        self.denials.retain(|(other, _)| !Arc::ptr_eq(other, member));
        if self.denials.iter().any(|(_, denied)| denied.status() == error.status()) {
            return Err(error.clone());
        }
        self.denials.push((member.clone(), error.clone()));
        Ok(())
    }

    /// Returns what was denied, once all were asked. It counts unless a healthy member may yet answer.
    fn denial(&self) -> Option<Error> {
        let mut pending = self.pending.iter();
        let is_awaited =
            self.is_busy || pending.any(|it| !it.is_late || it.member.health.is_well());
        let (_, error) = self.denials.first().filter(|_| !is_awaited)?;
        Some(error.clone())
    }

    fn end(&mut self) -> Error {
        self.cause.take().unwrap_or(Error::DeadlineExceeded)
    }
}

/// A future that has ended.
enum Event<T> {
    /// A try at a shard of a member.
    Tried(Arc<Member>, u32, Result<T, Failure>),
    /// The last resort.
    Rescued(Option<Result<T, Error>>),
}

/// Returns what ends first, before this moment.
async fn next<T>(
    pending: &mut Vec<Try<'_, T>>,
    rescue: &mut Option<Rescue<'_, T>>,
    wake: Instant,
) -> Option<Event<T>> {
    let timer = time::sleep_until(wake);
    tokio::pin!(timer);
    std::future::poll_fn(|context| {
        for index in 0..pending.len() {
            if let Poll::Ready(result) = pending[index].future.as_mut().poll(context) {
                let done = pending.swap_remove(index);
                return Poll::Ready(Some(Event::Tried(done.member, done.shard, result)));
            }
        }
        if let Some(rescue) = rescue
            && let Poll::Ready(rescued) = rescue.as_mut().poll(context)
        {
            return Poll::Ready(Some(Event::Rescued(rescued)));
        }
        timer.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Returns how long to wait for a member with this patience before the next one is asked as well. The
/// wait is shorter if the member has never answered, because to connect it only has to be there.
pub(crate) fn first_wait(
    config: &ClientConfig,
    patience: Duration,
    member: &Member,
    shard: u32,
) -> Duration {
    if member.was_ever_heard(shard) { patience } else { patience.min(config.race_step()) }
}

/// An operation without a payload.
pub(crate) struct Call<'c, T> {
    pub(crate) config: &'c ClientConfig,
    /// Makes the request again for each try.
    pub(crate) body: &'c (dyn Fn() -> Body + Send + Sync),
    /// Members to ask, best first.
    pub(crate) order: &'c (dyn Fn(&Topology) -> Order + Send + Sync),
    pub(crate) decode: &'c (dyn Fn(&Reply) -> Result<T, Error> + Send + Sync),
    /// What to do when no member has answered.
    pub(crate) rescue: &'c (dyn Fn() -> Rescue<'c, T> + Send + Sync),
    pub(crate) deadline: Instant,
}

impl<T: Send> Errand<T> for Call<'_, T> {
    fn order(&self, topology: &Topology) -> Order {
        (self.order)(topology)
    }

    fn attempt<'a>(&'a self, topology: Arc<Topology>, member: u32, _: Landing) -> Attempt<'a, T>
    where
        T: 'a,
    {
        Box::pin(async move {
            let mut tolerance = Tolerance::new(self.config);
            loop {
                let lane = topology.member(member).main();
                let answer = lane.ask((self.body)(), Landing::Any, self.deadline).await;
                let answer = answer.map_err(|error| Failure::bare(error, Verdict::Hard))?;
                match reply::judge(answer.outcome) {
                    Ok(reply) => {
                        let decoded = (self.decode)(&reply);
                        return decoded.map_err(|error| Failure::bare(error, Verdict::Hard));
                    }
                    Err(setback) => tolerance
                        .bear(setback)
                        .await
                        .map_err(|(error, verdict)| Failure::bare(error, verdict))?,
                }
            }
        })
    }

    fn rescue(&self) -> Rescue<'_, T> {
        (self.rescue)()
    }

    fn shard(&self, _: &Topology, _: u32) -> u32 {
        0
    }

    fn is_expected(&self) -> bool {
        false
    }
}
