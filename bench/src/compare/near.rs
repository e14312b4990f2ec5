//! The node's own client on the same machine, which reads in place, beside plain `memcpy`.
//!
//! Owns both measurements. Each read copies a whole object, chosen as for the servers, to the same
//! buffer: from the node's memory under a lease, or from a copy of the objects in this process, which is
//! what no cache can be faster than. One thread on the load generator's CPU; the clock is looked at
//! after every few reads. A lease that has run out is taken again within the measured time.

use std::time::Instant;

use anyhow::{Context, Result};
use millrace_client::{ClientConfig, File, Lease, blocking};
use serde::Serialize;

use super::{CompareOptions, ServerReport};
use crate::address::Address;
use crate::content::ObjectSet;
use crate::keys::{Distribution, Keys};
use crate::machine;
use crate::report::{self, median, median_ratio};

/// What is measured, in turn with the servers.
pub(super) const KINDS: [&str; 2] = ["read in place", "memcpy"];
/// Reads between two looks at the clock.
const READS_PER_LOOK: usize = 32;

/// Medians over the rounds of one of `KINDS`.
#[derive(Clone, Debug, Serialize)]
pub struct NearReport {
    /// Its name.
    pub name: String,
    /// Reads per second.
    pub reads_per_s: f64,
    /// GB/s copied.
    pub gb_per_s: f64,
    /// Ratio of reads per second to each server's, the median of each round's.
    pub ratios: Vec<(String, f64)>,
    /// Reads per second in each round.
    pub rounds: Vec<f64>,
}

/// Leases an object, which is one block.
fn lease(client: &blocking::Client, file: &File) -> Result<Lease> {
    let found = client.lease(file, 0, file.length)?.into_iter().next().flatten();
    found.with_context(|| format!("the node leases no memory for {}", file.path))
}

impl NearReport {
    /// Returns a line for people.
    pub(super) fn render(&self) -> String {
        let ratios = self.ratios.iter().map(|(name, ratio)| format!("{ratio:.2} x {name}"));
        format!(
            "{}: {} reads/s, {:.2} GB/s: {}\n",
            self.name,
            report::count(self.reads_per_s),
            self.gb_per_s,
            ratios.collect::<Vec<_>>().join(", ")
        )
    }
}

/// The client with what it reads, and the same bytes in this process.
pub(super) struct Near {
    client: blocking::Client,
    files: Vec<File>,
    leases: Vec<Lease>,
    set: ObjectSet,
    copy: Vec<u8>,
    target: Vec<u8>,
    rounds: [Vec<f64>; KINDS.len()],
}

impl Near {
    /// Connects and leases every object, and compares what is read from each with its content. None for
    /// objects of several blocks, each of which has a lease of its own.
    pub(super) fn start(
        address: &Address,
        set: ObjectSet,
        options: &CompareOptions,
    ) -> Result<Option<Near>> {
        let connect = || {
            let config = ClientConfig {
                leased_bytes_max: 2 * set.total_bytes() + (1 << 30),
                ..ClientConfig::new()
            };
            Ok(blocking::Client::connect(address.to_string(), config)?)
        };
        let client = machine::on_cpu(options.client_cpu, connect)?;
        let mut files = Vec::new();
        let mut copy = Vec::new();
        let mut content = Vec::new();
        for index in 0..set.count {
            let file = client.stat(&set.path(index))?;
            if file.block_count() > 1 {
                return Ok(None);
            }
            set.fill(index, &mut content);
            copy.extend_from_slice(&content);
            files.push(file);
        }
        let leases = files.iter().map(|file| lease(&client, file)).collect::<Result<_>>()?;
        let target = vec![0; set.size];
        let mut near =
            Near { client, files, leases, set, copy, target, rounds: Default::default() };
        for index in 0..set.count {
            near.read(index as usize)?;
            set.check(index, &near.target, &mut content)?;
        }
        Ok(Some(near))
    }

    /// Reads an object in place; leases it again first if its lease has run out.
    fn read(&mut self, index: usize) -> Result<()> {
        while !self.leases[index].copy(0, &mut self.target) {
            self.leases[index] = lease(&self.client, &self.files[index])?;
        }
        Ok(())
    }

    /// Measures one of [`KINDS`].
    pub(super) fn measure(
        &mut self,
        kind: usize,
        round: usize,
        options: &CompareOptions,
    ) -> Result<()> {
        let mut keys = Keys::new(Distribution::Uniform, self.set.count, options.seed_of(round))?;
        let reads_per_s = machine::on_cpu(options.client_cpu, || {
            // This removes what the servers before it left in the processor's cache.
            self.run(kind, &mut keys, options.warmup_seconds)?;
            self.run(kind, &mut keys, options.seconds)
        })
        .with_context(|| format!("measure {}", KINDS[kind]))?;
        self.rounds[kind].push(reads_per_s);
        Ok(())
    }

    fn run(&mut self, kind: usize, keys: &mut Keys, seconds: f64) -> Result<f64> {
        let start = Instant::now();
        let mut reads = 0;
        loop {
            for _ in 0..READS_PER_LOOK {
                let index = keys.next().context("uniform keys never end")? as usize;
                if kind == 0 {
                    self.read(index)?;
                } else {
                    let start = index * self.set.size;
                    self.target.copy_from_slice(&self.copy[start..start + self.set.size]);
                }
                std::hint::black_box(&mut self.target);
            }
            reads += READS_PER_LOOK;
            let elapsed = start.elapsed().as_secs_f64();
            if elapsed >= seconds {
                return Ok(reads as f64 / elapsed);
            }
        }
    }

    /// Returns the reports, beside the rounds of the servers.
    pub(super) fn report(self, servers: &[ServerReport]) -> Vec<NearReport> {
        let size = self.set.size as f64;
        let memcpy = self.rounds[1].clone();
        let report = |(name, rounds): (&str, Vec<f64>)| {
            let over =
                |others: &[f64]| median_ratio(rounds.iter().copied(), others.iter().copied());
            let mut ratios: Vec<(String, f64)> = servers
                .iter()
                .map(|server| {
                    let others: Vec<f64> =
                        server.rounds.iter().map(|round| round.reads_per_s).collect();
                    (server.name.clone(), over(&others))
                })
                .collect();
            if name == KINDS[0] {
                ratios.push((KINDS[1].into(), over(&memcpy)));
            }
            let reads_per_s = median(&rounds);
            let gb_per_s = reads_per_s * size / 1e9;
            NearReport { name: name.into(), reads_per_s, gb_per_s, ratios, rounds }
        };
        KINDS.into_iter().zip(self.rounds).map(report).collect()
    }
}
