//! How long without a leader: the time from killing it to the next acknowledged write.
//!
//! Owns writers and clocks. Several writers, each one connection that moves on to the next replica
//! when it breaks, as clients do, set one key again and again. Time counts from right before the
//! signal to the first acknowledgement of a write that was sent behind it, so a write that was
//! under way does not count. Then the killed replica is started again, and the next leader is
//! killed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::ensemble::Ensemble;
use super::link::{Link, Target};
use super::operation::{Action, Key, Operation, Values};
use super::session::SessionExpired;
use super::{CoordOptions, Setting, System};
use crate::report::{self, Table, median};

/// Replicas of each service: the fewest that lose no write with their leader.
const REPLICAS: usize = 3;
/// Writers. Guessed: one for each replica, and one more where the leader was.
const WRITERS: usize = 4;
/// Session timeout that writers ask for, in milliseconds; what kazoo asks for.
const SESSION_MS: i32 = 10_000;
/// Longest wait for one answer: two thirds of the session timeout, as ZooKeeper's clients do.
const PATIENCE: Duration = Duration::from_millis(SESSION_MS as u64 * 2 / 3);
/// Wait before a writer tries the next replica. Small beside what is measured.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// Longest wait for writes to flow again.
const FLOW_TIMEOUT: Duration = Duration::from_secs(60);
/// Load between the return of a killed replica and the next kill.
const REST: Duration = Duration::from_secs(3);
/// Most acknowledgements that wait to be looked at; those beyond are dropped.
const ACKNOWLEDGED_MAX: usize = 65_536;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    /// What is needed to read it.
    pub setting: Setting,
    /// Replicas of each service.
    pub replicas: usize,
    /// Writers.
    pub writers: usize,
    /// Each service.
    pub services: Vec<ServiceFailover>,
}

/// Failovers of one service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceFailover {
    /// The service.
    pub system: System,
    /// Milliseconds from each kill to the first acknowledged write of any writer.
    pub first_ms: Vec<f64>,
    /// Milliseconds from each kill until every writer had one acknowledged.
    pub all_ms: Vec<f64>,
}

/// Measures. `progress` gets a line that says what happens next.
///
/// # Errors
/// If a service cannot be started, or no write is acknowledged within a minute of a kill.
pub fn measure(options: &CoordOptions, mut progress: impl FnMut(&str)) -> Result<FailoverReport> {
    ensure!(options.kills > 0, "no kill, no result");
    let (setting, systems) = Setting::find(options)?;
    let mut services = Vec::new();
    for system in systems {
        let mut tell = |text: &str| progress(&format!("{}: {text}", system.name()));
        let found = measure_one(system, options, &mut tell);
        services.push(found.with_context(|| format!("measure {}", system.name()))?);
    }
    Ok(FailoverReport { setting, replicas: REPLICAS, writers: WRITERS, services })
}

fn measure_one(
    system: System,
    options: &CoordOptions,
    progress: &mut impl FnMut(&str),
) -> Result<ServiceFailover> {
    let values = options.values()?;
    progress("starting");
    let mut ensemble = Ensemble::start(system, REPLICAS, options)?;
    super::prepare(&ensemble, options, &values, WRITERS as u32)?;
    let addresses = ensemble.addresses();
    let stop = AtomicBool::new(false);
    let (acknowledged, acknowledgements) = mpsc::sync_channel(ACKNOWLEDGED_MAX);
    std::thread::scope(|scope| {
        // This stops the writers however the function ends.
        let _stop = SetOnDrop(&stop);
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                system,
                addresses: &addresses,
                values: &values,
                stop: &stop,
                acknowledged: acknowledged.clone(),
            };
            scope.spawn(move || writer.run());
        }
        drop(acknowledged);
        kill_leaders(&mut ensemble, options.kills, &acknowledgements, progress)
    })
}

fn kill_leaders(
    ensemble: &mut Ensemble,
    kills: usize,
    acknowledgements: &Receiver<Acknowledged>,
    progress: &mut impl FnMut(&str),
) -> Result<ServiceFailover> {
    let (mut first_ms, mut all_ms) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        progress(&format!("kill {} of {kills}", kill + 1));
        wait_for_all(acknowledgements, Instant::now()).context("wait for writes to flow")?;
        rest(acknowledgements);
        let leader = ensemble.leader()?;
        let killed_at = Instant::now();
        ensemble.kill(leader);
        let flow = wait_for_all(acknowledgements, killed_at)
            .with_context(|| format!("wait for writes behind kill {}", kill + 1))?;
        first_ms.push(flow.first.as_secs_f64() * 1e3);
        all_ms.push(flow.all.as_secs_f64() * 1e3);
        ensemble.restart(leader)?;
    }
    Ok(ServiceFailover { system: ensemble.system(), first_ms, all_ms })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    writer: usize,
    sent_at: Instant,
    at: Instant,
}

/// How long writes did not flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    /// Time until any writer went on.
    first: Duration,
    /// Time until all writers had gone on.
    all: Duration,
}

/// Waits until every writer has had a write acknowledged that it sent behind `since`.
fn wait_for_all(acknowledgements: &Receiver<Acknowledged>, since: Instant) -> Result<Flow> {
    let mut times: [Option<Duration>; WRITERS] = [None; WRITERS];
    let deadline = Instant::now() + FLOW_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(found) = acknowledgements.recv_timeout(left) else {
            let silent = times.iter().filter(|time| time.is_none()).count();
            bail!("{silent} of {WRITERS} writers are without an answer");
        };
        if found.sent_at < since {
            continue;
        }
        times[found.writer].get_or_insert(found.at - since);
        let known: Vec<Duration> = times.iter().flatten().copied().collect();
        if let ([first, ..], true) = (known.as_slice(), known.len() == WRITERS) {
            let all = known.iter().copied().max().unwrap_or(*first);
            let first = known.iter().copied().min().unwrap_or(*first);
            return Ok(Flow { first, all });
        }
    }
}

/// Lets writes flow, and looks at none of them.
fn rest(acknowledgements: &Receiver<Acknowledged>) {
    let end = Instant::now() + REST;
    while acknowledgements.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
}

/// Sets one key again and again.
struct Writer<'a> {
    number: usize,
    system: System,
    addresses: &'a [SocketAddr],
    values: &'a Values,
    stop: &'a AtomicBool,
    acknowledged: SyncSender<Acknowledged>,
}

impl Writer<'_> {
    fn run(&self) {
        let mut identity = None;
        let mut buffer = Vec::new();
        let mut replicas = self.addresses.iter().cycle().skip(self.number);
        while !self.is_over() {
            let Some(&address) = replicas.next() else { return };
            let target =
                Target { system: self.system, address, session_ms: SESSION_MS, patience: PATIENCE };
            match Link::open(&target, identity, self.values, &mut buffer) {
                Ok(mut link) => {
                    self.write(&mut link, &mut buffer);
                    identity = link.identity();
                    if self.is_over() {
                        link.close();
                        return;
                    }
                }
                Err(error) if error.is::<SessionExpired>() => identity = None,
                Err(_) => {}
            }
            std::thread::sleep(RETRY_AFTER);
        }
    }

    /// Writes until the connection breaks.
    fn write(&self, link: &mut Link, buffer: &mut Vec<u8>) {
        let operation = Operation { action: Action::Set, key: Key::Kept(self.number as u32) };
        while !self.is_over() {
            let sent_at = Instant::now();
            match link.call(operation, self.values, buffer) {
                Ok(Ok(())) => {
                    let at = Instant::now();
                    let found = Acknowledged { writer: self.number, sent_at, at };
                    if let Err(TrySendError::Disconnected(_)) = self.acknowledged.try_send(found) {
                        return;
                    }
                }
                // A replica that cannot write now may be able to soon; another one may be able already.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl FailoverReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let title = format!("{} replicas, {} writers, leader killed", self.replicas, self.writers);
        let mut table =
            Table::new(&[&title, "kills", "first write", "slowest", "every writer", "slowest"]);
        for service in &self.services {
            let middle = |times_ms: &[f64]| report::latency(median(times_ms) * 1e3);
            let slowest = |times_ms: &[f64]| {
                report::latency(times_ms.iter().copied().fold(0.0, f64::max) * 1e3)
            };
            table.row([
                service.system.name().to_owned(),
                service.first_ms.len().to_string(),
                middle(&service.first_ms),
                slowest(&service.first_ms),
                middle(&service.all_ms),
                slowest(&service.all_ms),
            ]);
        }
        format!("{}\n{}", self.setting.render(), table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_under_way_at_the_kill_does_not_count() {
        let (sender, receiver) = mpsc::sync_channel(16);
        let kill = Instant::now();
        let after = |ms| kill + Duration::from_millis(ms);
        let send = |writer, sent_at, ms| {
            sender.send(Acknowledged { writer, sent_at, at: after(ms) }).unwrap();
        };
        send(0, kill.checked_sub(Duration::from_millis(1)).unwrap(), 2);
        for (writer, ms) in [(1, 300), (1, 301), (2, 250), (0, 270), (3, 400)] {
            send(writer, after(100), ms);
        }
        let flow = wait_for_all(&receiver, kill).unwrap();
        let expected = Flow { first: Duration::from_millis(250), all: Duration::from_millis(400) };
        assert_eq!(flow, expected);
    }

    #[test]
    fn writers_that_ended_are_an_error_and_no_wait() {
        let (sender, receiver) = mpsc::sync_channel::<Acknowledged>(1);
        drop(sender);
        assert!(wait_for_all(&receiver, Instant::now()).is_err());
    }
}
