//! Where reads are better answered from: the state in memory, or LMDB's pages.
//!
//! Owns both forms of the same keys, in this process, and the clock around single reads. In memory
//! that is the state of a replica, read as a replica reads. LMDB is given the best layout for reads
//! that there is: each path leads to its whole reply, which is only copied; no ACL is looked at.
//! Always holds: both gave the same reply to every path before anything is measured. The forms take
//! turns in each round; what counts is the median of the rounds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use millrace_coord::command::{Act, Command, Rules};
use millrace_coord::state::read::read;
use millrace_coord::state::{Changes, State};
use millrace_coord::store::{self, Applied, Identity, Sizes, StateStore, StoreError, Stores};
use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{CreateKind, Request, Writer};
use serde::Serialize;

use super::operation::{Key, Values};
use super::process::Memory;
use super::{CoordOptions, Setting};
use crate::machine;
use crate::report::{self, Table, median};

/// Keys that become one commit.
const COMMIT_KEYS: u32 = 10_000;
/// Reads between two looks at the clock; their paths are made before, and fit the first cache.
const BATCH: usize = 256;
/// Whose data it is. Any numbers do.
const IDENTITY: Identity = Identity { cluster_id: 1, replica_id: 1, store_id: 1 };

/// How a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// From the state in memory.
    Memory,
    /// From LMDB, all reads in one view: they see nothing new.
    OneView,
    /// From LMDB, each read in a view of its own: it sees what was committed before.
    OwnViews,
}

impl Form {
    /// All of them, in the order of reports.
    pub const ALL: [Form; 3] = [Form::Memory, Form::OneView, Form::OwnViews];

    fn title(self) -> &'static str {
        match self {
            Form::Memory => "state in memory",
            Form::OneView => "LMDB, one view",
            Form::OwnViews => "LMDB, a view for each read",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct StoresReport {
    /// What it has to be read with.
    pub setting: Setting,
    /// Keys.
    pub znodes: u32,
    /// Each form, in the order of [`Form::ALL`].
    pub forms: Vec<FormReport>,
}

/// Reads of one form.
#[derive(Clone, Debug, Serialize)]
pub struct FormReport {
    /// The form.
    pub form: Form,
    /// Nanoseconds a read of each round.
    pub rounds_ns: Vec<f64>,
    /// Their median.
    pub median_ns: f64,
    /// Resident memory with all keys, in bytes; of LMDB the pages of its file that are mapped.
    pub resident_bytes: u64,
}

/// Measures. `progress` is told in a line what happens next.
///
/// # Errors
/// If the directory cannot be written to, or the two forms give different replies.
pub fn measure(options: &CoordOptions, mut progress: impl FnMut(&str)) -> Result<StoresReport> {
    let options = CoordOptions { ours: true, rivals: Vec::new(), ..options.clone() };
    let (setting, _) = Setting::find(&options)?;
    let znodes = options.znodes_or(super::memory::ZNODES);
    ensure!(znodes > 0 && options.rounds > 0, "without keys and rounds nothing is measured");
    let forms = match options.client_cpu {
        Some(cpu) => machine::on_cpu(cpu, || measure_forms(znodes, &options, &mut progress)),
        None => measure_forms(znodes, &options, &mut progress),
    }?;
    Ok(StoresReport { setting, znodes, forms })
}

fn measure_forms(
    znodes: u32,
    options: &CoordOptions,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<FormReport>> {
    let values = options.values()?;
    progress(&format!("creating {znodes} keys in memory"));
    let before = own_memory()?;
    let state = build_state(znodes, &values)?;
    let state_bytes = own_memory()?.anonymous_bytes.saturating_sub(before.anonymous_bytes);

    progress("the same in LMDB");
    let home = tempfile::Builder::new()
        .prefix("millrace-bench-stores-")
        .tempdir_in(&options.directory)
        .with_context(|| format!("write to {}", options.directory.display()))?;
    fill(&mut open(home.path())?, &state, znodes)?;
    // Open again, as after a restart: the map then holds what reads brought there.
    let stores = open(home.path())?;
    let before = mapped_bytes()?;
    progress("comparing every reply");
    compare(&state, &stores, znodes)?;
    let pages_bytes = mapped_bytes()?.saturating_sub(before);

    let mut rounds_ns = Form::ALL.map(|_| Vec::new());
    for round in 0..options.rounds {
        for (form, rounds) in Form::ALL.into_iter().zip(&mut rounds_ns) {
            let number = round + 1;
            progress(&format!("round {number} of {}: {}", options.rounds, form.title()));
            let seed = options.seed + round as u64;
            rounds.push(read_ns(form, &state, &stores, (znodes, seed), options)?);
        }
    }
    let reports = Form::ALL.into_iter().zip(rounds_ns);
    let report = |(form, rounds_ns): (Form, Vec<f64>)| FormReport {
        form,
        median_ns: median(&rounds_ns),
        rounds_ns,
        resident_bytes: if form == Form::Memory { state_bytes } else { pages_bytes },
    };
    Ok(reports.map(report).collect())
}

fn own_memory() -> Result<Memory> {
    Memory::of(std::process::id())
}

/// Bytes of files that are mapped and resident.
fn mapped_bytes() -> Result<u64> {
    own_memory().map(|memory| memory.rss_bytes.saturating_sub(memory.anonymous_bytes))
}

fn open(directory: &Path) -> Result<Stores> {
    store::open(directory, IDENTITY, Sizes::default()).context("open the data directory")
}

/// A state with all keys, as commands of clients make it.
fn build_state(znodes: u32, values: &Values) -> Result<State> {
    let mut state = State::with_seed(fastrand::u64(..));
    let mut changes = Changes::new();
    let (mut path, mut record) = (String::new(), Vec::new());
    for key in std::iter::once(Key::Root).chain((0..znodes).map(Key::Kept)) {
        record.clear();
        let request = Request::Create {
            kind: CreateKind::Create,
            path: key.path(&mut path),
            data: Some(values.of(key)),
            acl: Some(vec![OPEN_ACL]),
            flags: 0,
            ttl_ms: 0,
        };
        request.encode(&mut Writer::new(&mut record));
        let act = Act::Request { code: request.code(), record: &record };
        let command =
            Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act };
        let applied = state.apply(1, Rules::default(), &command, &mut changes);
        applied.map_err(|error| anyhow!("{path} was refused: {error:?}"))?;
        changes.clear_events();
        // Nobody wants the records, but they must not pile up.
        state.records(&mut changes, &mut |_, _| {});
    }
    Ok(state)
}

/// Commits for each path the reply to its read.
fn fill(stores: &mut Stores, state: &State, znodes: u32) -> Result<()> {
    for first in (0..znodes).step_by(COMMIT_KEYS as usize) {
        let last = first.saturating_add(COMMIT_KEYS).min(znodes);
        let mut records = Vec::with_capacity(COMMIT_KEYS as usize);
        for number in first..last {
            let (mut path, mut reply) = (String::new(), Vec::new());
            read_state(state, Key::Kept(number).path(&mut path), &mut reply)?;
            records.push((path, reply));
        }
        let mut changes = records.iter().map(|(path, reply)| (path.as_bytes(), Some(&reply[..])));
        let applied = Applied { index: u64::from(last), term: 1, ..Applied::default() };
        stores.state.commit(&mut changes, &applied).context("commit keys")?;
    }
    Ok(())
}

/// Reads every key once from both.
fn compare(state: &State, stores: &Stores, znodes: u32) -> Result<()> {
    let view = stores.state.view()?;
    let (mut path, mut reply) = (String::new(), Vec::new());
    for number in 0..znodes {
        let path = Key::Kept(number).path(&mut path);
        reply.clear();
        read_state(state, path, &mut reply)?;
        ensure!(view.get(path.as_bytes())? == Some(&reply[..]), "{path} is not the same in LMDB");
    }
    Ok(())
}

fn read_state(state: &State, path: &str, reply: &mut Vec<u8>) -> Result<()> {
    let request = Request::GetData { path, watch: false };
    let answer = read(state, &request, 0, &[], false, &mut Writer::new(reply));
    answer.map_err(|error| anyhow!("{path} cannot be read: {error:?}"))
}

/// Nanoseconds that a read of a random key takes.
fn read_ns(
    form: Form,
    state: &State,
    stores: &Stores,
    keys: (u32, u64),
    options: &CoordOptions,
) -> Result<f64> {
    let copy = |found: Result<Option<&[u8]>, StoreError>, reply: &mut Vec<u8>| {
        reply.extend_from_slice(found?.context("a key is missing in LMDB")?);
        Ok(())
    };
    let one_view = stores.state.view()?;
    let run = |seconds: f64| match form {
        Form::Memory => timed(keys, seconds, |path, reply| read_state(state, path, reply)),
        Form::OneView => {
            timed(keys, seconds, |path, reply| copy(one_view.get(path.as_bytes()), reply))
        }
        Form::OwnViews => timed(keys, seconds, |path, reply| {
            let view = stores.state.view()?;
            copy(view.get(path.as_bytes()), reply)
        }),
    };
    run(options.settle_seconds)?;
    run(options.seconds)
}

fn timed(
    (znodes, seed): (u32, u64),
    seconds: f64,
    mut read: impl FnMut(&str, &mut Vec<u8>) -> Result<()>,
) -> Result<f64> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut paths = vec![String::new(); BATCH];
    let mut reply = Vec::new();
    let (mut spent, mut count, mut bytes) = (Duration::ZERO, 0_u64, 0_usize);
    while count == 0 || spent.as_secs_f64() < seconds {
        for path in &mut paths {
            Key::Kept(random.u32(..znodes)).path(path);
        }
        let began = Instant::now();
        for path in &paths {
            reply.clear();
            read(path, &mut reply)?;
            bytes += reply.len();
        }
        spent += began.elapsed();
        count += BATCH as u64;
    }
    ensure!(bytes as u64 == count * reply.len() as u64, "replies are not of one length");
    Ok(spent.as_secs_f64() * 1e9 / count as f64)
}

impl StoresReport {
    /// The report for people.
    pub fn render(&self) -> String {
        let keys = format!("reads of {} keys", self.znodes);
        let mut table =
            Table::new(&[&keys, "ns a read", "min", "max", "ratio", "resident", "resident a key"]);
        let base = &self.forms[0];
        for found in &self.forms {
            let ratios = found.rounds_ns.iter().zip(&base.rounds_ns).map(|(ns, base)| ns / base);
            let ratio = (found.form != base.form).then(|| median(&ratios.collect::<Vec<_>>()));
            let rounds = found.rounds_ns.iter().copied();
            table.row([
                found.form.title().to_owned(),
                format!("{:.0}", found.median_ns),
                format!("{:.0}", rounds.clone().fold(f64::INFINITY, f64::min)),
                format!("{:.0}", rounds.fold(0.0, f64::max)),
                report::optional(ratio),
                report::size(found.resident_bytes),
                format!("{} B", found.resident_bytes / u64::from(self.znodes)),
            ]);
        }
        format!("{}\n{}", self.setting.render(), table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_the_same_keys() {
        let directory = tempfile::tempdir().unwrap();
        let options = CoordOptions {
            directory: directory.path().to_owned(),
            settle_seconds: 0.0,
            seconds: 0.0,
            rounds: 2,
            ..CoordOptions::default()
        };
        let found = measure_forms(COMMIT_KEYS + 1, &options, &mut |_| {}).unwrap();
        let forms: Vec<Form> = found.iter().map(|found| found.form).collect();
        assert_eq!(forms, Form::ALL);
        for found in found {
            assert!(found.rounds_ns.len() == 2 && found.median_ns > 0.0, "{found:?}");
        }
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_difference_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let state = build_state(3, &Values::new(16, 1)).unwrap();
        let mut stores = open(directory.path()).unwrap();
        fill(&mut stores, &state, 3).unwrap();
        compare(&state, &stores, 3).unwrap();
        let other = build_state(3, &Values::new(16, 2)).unwrap();
        assert!(compare(&other, &stores, 3).is_err());
    }
}
