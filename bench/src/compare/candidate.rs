//! A server of a comparison: running, with the wires to it and what its rounds measured.

use anyhow::{Context, Result, ensure};

use super::{CompareOptions, NODE_NAME, ServerReport};
use crate::address::Address;
use crate::content::ObjectSet;
use crate::control::Control;
use crate::keys::{Distribution, Keys};
use crate::load::{self, Check, LoadOptions, LoadResult};
use crate::report::median;
use crate::rival::{Rival, Server};
use crate::wire::{FileRanges, Http, Memcached, Millrace, Redis};

/// Longest pass over all objects before the clock starts, in seconds.
const PASS_SECONDS_MAX: f64 = 600.0;

/// A running server with the wires to it: one for plain reads that verify, and one that is measured.
pub(super) struct Candidate {
    pub(super) name: &'static str,
    server: Server,
    pub(super) set: ObjectSet,
    single_wire: AnyWire,
    batch_wire: AnyWire,
    rounds: Vec<LoadResult>,
}

/// The protocol of a candidate; matched once for each run, so that the loop itself is static.
enum AnyWire {
    Millrace(Millrace),
    Redis(Redis),
    Memcached(Memcached),
    Http(Http),
}

impl AnyWire {
    fn rival(rival: Rival, set: &ObjectSet, batch: usize) -> AnyWire {
        match rival {
            Rival::Redis => AnyWire::Redis(Redis::new(set, batch)),
            Rival::Memcached => AnyWire::Memcached(Memcached::new(set, batch)),
            Rival::Nginx => AnyWire::Http(Http::new(set)),
        }
    }
}

impl Candidate {
    pub(super) fn address(&self) -> &Address {
        self.server.address()
    }

    pub(super) fn rival(
        rival: Rival,
        server: Server,
        set: ObjectSet,
        options: &CompareOptions,
    ) -> Candidate {
        Candidate {
            name: rival.name(),
            server,
            set,
            single_wire: AnyWire::rival(rival, &set, 1),
            batch_wire: AnyWire::rival(rival, &set, options.batch.unwrap_or(1)),
            rounds: Vec::new(),
        }
    }

    pub(super) fn node(
        server: Server,
        set: ObjectSet,
        options: &CompareOptions,
        versions: &mut Vec<(String, String)>,
    ) -> Result<Candidate> {
        let mut control = Control::connect(server.address())?;
        let node = control.hello()?;
        if !versions.iter().any(|(name, _)| name == NODE_NAME) {
            versions.insert(0, (NODE_NAME.into(), node.server.clone()));
        }
        let paths: Vec<String> = (0..set.count).map(|index| set.path(index)).collect();
        let entries = control.stat_many(&paths)?;
        for entry in &entries {
            ensure!(
                entry.length == set.size as u64,
                "the node says {} has {} bytes",
                entry.name,
                entry.length
            );
        }
        let ranges = FileRanges::new(entries, u32::try_from(set.size)?, node.block_size)?;
        let wire = |batch| Millrace::new(&node, ranges.clone(), batch, false);
        Ok(Candidate {
            name: NODE_NAME,
            server,
            set,
            single_wire: AnyWire::Millrace(wire(1)?),
            batch_wire: AnyWire::Millrace(wire(options.batch.unwrap_or(1))?),
            rounds: Vec::new(),
        })
    }

    /// Reads every object once and compares its bytes; this also warms what is cached.
    pub(super) fn verify(&mut self, options: &CompareOptions) -> Result<()> {
        let mut keys = Keys::new(Distribution::Once, self.set.count, 0)?;
        let load = LoadOptions {
            batch: 1,
            spin: false,
            warmup_seconds: 0.0,
            seconds: PASS_SECONDS_MAX,
            check: Check::Content(&self.set),
            ..options.load()
        };
        let address = self.server.address();
        let result = run(&mut self.single_wire, address, &mut keys, &load)
            .with_context(|| format!("verify {}", self.name))?;
        ensure!(
            result.reads == self.set.count,
            "{} answered {} of {} objects",
            self.name,
            result.reads,
            self.set.count
        );
        Ok(())
    }

    /// Measures one round of the comparison of speed.
    pub(super) fn measure(&mut self, options: &CompareOptions, round: usize) -> Result<()> {
        let result = self.load(options.seed_of(round), options.load())?;
        self.rounds.push(result);
        Ok(())
    }

    /// Loads the server with random keys; with plain reads where the load says so.
    pub(super) fn load(&mut self, seed: u64, load: LoadOptions) -> Result<LoadResult> {
        let mut keys = Keys::new(Distribution::Uniform, self.set.count, seed)?;
        let load = LoadOptions { server_pid: Some(self.server.pid()), ..load };
        let wire = if load.batch == 1 { &mut self.single_wire } else { &mut self.batch_wire };
        run(wire, self.server.address(), &mut keys, &load)
            .with_context(|| format!("measure {}", self.name))
    }

    pub(super) fn report(self) -> ServerReport {
        let of = |value: fn(&LoadResult) -> f64| {
            let values: Vec<f64> = self.rounds.iter().map(value).collect();
            median(&values)
        };
        ServerReport {
            name: self.name.into(),
            reads_per_s: of(|round| round.reads_per_s),
            gb_per_s: of(|round| round.gb_per_s),
            p50_us: of(|round| round.latency.p50_us),
            p99_us: of(|round| round.latency.p99_us),
            server_cpu_s_per_gb: of(|round| round.server_cpu_s_per_gb.unwrap_or(0.0)),
            client_cpu_s_per_gb: of(|round| round.client_cpu_s_per_gb),
            server_cpu_share: of(|round| round.server_cpu_s.unwrap_or(0.0) / round.seconds),
            client_cpu_share: of(|round| round.client_cpu_s / round.seconds),
            rounds: self.rounds,
        }
    }
}

fn run(
    wire: &mut AnyWire,
    address: &Address,
    keys: &mut Keys,
    options: &LoadOptions,
) -> Result<LoadResult> {
    let addresses = std::slice::from_ref(address);
    match wire {
        AnyWire::Millrace(wire) => load::run(wire, addresses, keys, options),
        AnyWire::Redis(wire) => load::run(wire, addresses, keys, options),
        AnyWire::Memcached(wire) => load::run(wire, addresses, keys, options),
        AnyWire::Http(wire) => load::run(wire, addresses, keys, options),
    }
}
