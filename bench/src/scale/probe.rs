//! One point of an axis: a load that is put on a node again in every round.
//!
//! Owns the generators, a thread and a CPU each. Their reads are added up; the node's CPU time is taken
//! over the measured time of the first, which differs from the others' only by the moment it takes to
//! start a thread.

use std::sync::Barrier;

use anyhow::{Context, Result};

use super::findings::Sample;
use crate::address::Address;
use crate::keys::{Distribution, Keys};
use crate::load::{self, LoadOptions, LoadResult};
use crate::wire::Millrace;

/// A load, and what it has measured so far.
pub(super) struct Probe {
    pub(super) series: String,
    pub(super) value: u64,
    pub(super) samples: Vec<Sample>,
    addresses: Vec<Address>,
    key_count: u64,
    load: LoadOptions<'static>,
    generators: Vec<(Millrace, usize)>,
}

impl Probe {
    pub(super) fn new(
        series: &str,
        value: u64,
        addresses: Vec<Address>,
        key_count: u64,
        load: LoadOptions<'static>,
    ) -> Probe {
        let (samples, generators) = (Vec::new(), Vec::new());
        Probe { series: series.into(), value, samples, addresses, key_count, load, generators }
    }

    /// Describes what it measures.
    pub(super) fn title(&self, axis: &str) -> String {
        format!("{} {axis}, {}", self.value, self.series)
    }

    pub(super) fn add_generator(&mut self, wire: Millrace, cpu: usize) {
        self.generators.push((wire, cpu));
    }

    /// Measures one round.
    pub(super) fn measure(&mut self, seed: u64) -> Result<()> {
        let start = Barrier::new(self.generators.len());
        let (addresses, load, key_count) = (&self.addresses, &self.load, self.key_count);
        let run = |wire: &mut Millrace, cpu: usize, index: usize| {
            // Each generator has keys of its own.
            let seed = seed.wrapping_add((index as u64) << 32);
            let load = LoadOptions { cpu: Some(cpu), ..*load };
            start.wait();
            let mut keys = Keys::new(Distribution::Uniform, key_count, seed)?;
            load::run(wire, addresses, &mut keys, &load)
        };
        let results: Vec<LoadResult> = std::thread::scope(|scope| {
            let generators = self.generators.iter_mut().enumerate();
            let threads: Vec<_> = generators
                .map(|(index, (wire, cpu))| scope.spawn(move || run(wire, *cpu, index)))
                .collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.collect::<Result<_>>()
        })
        .with_context(|| format!("load a node: {}, {}", self.value, self.series))?;
        self.samples.push(Sample::of(&results));
        Ok(())
    }
}
