//! Makes the faults: one at a time, each undone before the next, with a pause between.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_tests::coord::{Ensemble, LinkState};

use super::{REPLICAS, Shared};

/// Kinds of faults; most leave a majority that can talk, the last two do not.
const KINDS: [&str; 12] = [
    "leader killed",
    "leader killed",
    "follower killed",
    "leader paused",
    "follower paused",
    "leader cut off",
    "follower cut off",
    "leader cannot send",
    "leader cannot hear",
    "one link broken",
    "two killed",
    "all killed",
];
const SLOW: &str = "all links slow";

/// See the module.
pub(super) struct Nemesis {
    random: fastrand::Rng,
    counts: BTreeMap<&'static str, u64>,
}

impl Nemesis {
    pub(super) fn new(random: fastrand::Rng) -> Nemesis {
        Nemesis { random, counts: BTreeMap::new() }
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(kind, count)| (*kind, *count))
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    fn sleep(&mut self, ms: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.u64(ms)));
    }

    /// Makes a fault, undoes it, and waits a little.
    ///
    /// # Errors
    /// A replica ended by itself or does not start.
    pub(super) fn fault(&mut self, ensemble: &mut Ensemble, shared: &Shared) -> Result<(), String> {
        let is_slow = self.random.u8(..10) == 0;
        let kind = if is_slow { SLOW } else { KINDS[self.random.usize(..KINDS.len())] };
        // Without a leader any replica may stand for it.
        let leader = ensemble.leader().unwrap_or(0);
        let follower = (leader + self.random.usize(1..REPLICAS as usize)) % REPLICAS as usize;
        shared.begin_fault(kind);
        *self.counts.entry(kind).or_default() += 1;
        match kind {
            "leader killed" => self.kill(ensemble, &[leader]),
            "follower killed" => self.kill(ensemble, &[follower]),
            "two killed" => self.kill(ensemble, &[leader, follower]),
            "all killed" => self.kill(ensemble, &[0, 1, 2]),
            "leader paused" => self.pause(ensemble, leader),
            "follower paused" => self.pause(ensemble, follower),
            _ => self.cut(ensemble, kind, leader as u64 + 1, follower as u64 + 1),
        }
        check_running(ensemble, kind)?;
        self.sleep(500..3000);
        check_running(ensemble, kind)
    }

    fn kill(&mut self, ensemble: &mut Ensemble, victims: &[usize]) {
        for &victim in victims {
            ensemble.replicas[victim].kill();
        }
        self.sleep(0..2500);
        for &victim in victims {
            ensemble.replicas[victim].spawn();
        }
        // A crash while it starts is a crash too.
        if self.random.u8(..4) == 0 {
            self.sleep(1..100);
            let victim = victims[self.random.usize(..victims.len())];
            ensemble.replicas[victim].kill();
            ensemble.replicas[victim].spawn();
        }
    }

    fn pause(&mut self, ensemble: &mut Ensemble, victim: usize) {
        ensemble.replicas[victim].pause();
        self.sleep(500..5000);
        ensemble.replicas[victim].resume();
    }

    fn cut(&mut self, ensemble: &Ensemble, kind: &str, leader: u64, follower: u64) {
        let state = if self.random.bool() { LinkState::Stalled } else { LinkState::Broken };
        let links = ensemble.links();
        let others = (1..=REPLICAS).filter(|other| *other != leader);
        match kind {
            "leader cut off" => links.isolate(leader, state),
            "follower cut off" => links.isolate(follower, state),
            "leader cannot send" => others.for_each(|other| links.set(leader, other, state)),
            "leader cannot hear" => others.for_each(|other| links.set(other, leader, state)),
            "one link broken" => {
                links.set(leader, follower, state);
                links.set(follower, leader, state);
            }
            _ => links.delay(self.random.u64(5..60)),
        }
        self.sleep(500..5000);
        ensemble.links().heal();
    }

    /// Undoes what is left and waits until all replicas serve.
    ///
    /// # Errors
    /// One does not.
    pub(super) fn end(&mut self, ensemble: &mut Ensemble) -> Result<(), String> {
        ensemble.links().heal();
        check_running(ensemble, "the end")?;
        for replica in &ensemble.replicas {
            // The client waits until the replica serves it.
            let mut client = replica.client();
            client.sync().map_err(|failure| format!("replica {}: {failure:?}", replica.id()))?;
        }
        Ok(())
    }
}

fn check_running(ensemble: &mut Ensemble, kind: &str) -> Result<(), String> {
    for replica in &mut ensemble.replicas {
        if !replica.is_running() {
            let (status, log) = replica.wait_end();
            let id = replica.id();
            return Err(format!("replica {id} ended with {status} after `{kind}`:\n{log}"));
        }
    }
    Ok(())
}
