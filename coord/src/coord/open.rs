//! From a data directory to what a replica continues from: its identity, log and state.
//!
//! ```text
//!  directory        configuration
//!  has a state      any                       continue, if its list of members may be taken over
//!  empty            a list without others     a replica by itself: the first state
//!  empty            a list, or --join         nothing, index 0: the replica decides how to continue
//! ```
//!
//! Always holds: what a first start invents is durable before any peer hears from this replica; the log
//! begins at or before its state; only a replica with a state belongs to an ensemble.

use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

use raft::eraftpb::ConfState;

use super::StartError;
use crate::config::Config;
use crate::import;
use crate::peers::Known;
use crate::replica::lists;
use crate::runtime::load;
use crate::state::State;
use crate::store::{
    self, Append, Applied, Continuity, LogStore, Sizes, StateStore, StoreIdentity, Stores,
};

/// What a replica continues from.
pub(super) struct Opened {
    pub(super) stores: Stores,
    pub(super) known: Known,
    pub(super) applied: Applied,
    pub(super) state: State,
}

/// Opens the directory, or creates it.
pub(super) fn open(config: &Config, joins: bool) -> Result<Opened, StartError> {
    let began = Instant::now();
    let directory = &config.data_dir;
    if !store::has_state(directory) && import::is_zookeeper(directory) {
        return Err(StartError::ZooKeeper { directory: directory.clone() });
    }
    let wanted =
        StoreIdentity { cluster_id: 0, replica_id: config.replica_id, store_id: random_id()? };
    let sizes =
        Sizes { log_bytes_max: config.log_max_bytes, state_bytes_max: config.map_size_bytes };
    if config.log_dir != *directory {
        store::place_log(directory, &config.log_dir)?;
    }
    let mut stores = store::open(directory, wanted, sizes)?;
    let peers_file = |error| StartError::Peers { directory: directory.clone(), error };
    let mut known = Known::load(directory).map_err(peers_file)?;
    let seed = random_id()?;
    let is_alone = !config.members.iter().any(|member| member.id != config.replica_id);
    let (applied, state) = match load(&stores.state, seed)? {
        Some(loaded) => loaded,
        None if joins || !is_alone => {
            // A replica without data is not bound to an ensemble that it met before.
            known.begin(joins).map_err(peers_file)?;
            (Applied::default(), State::with_seed(seed))
        }
        None => first_state(config, &mut stores, seed)?,
    };
    if stores.identity.cluster_id == 0 && applied.index != 0 {
        let cluster_id = known.joined().filter(|&cluster_id| cluster_id != 0);
        stores.adopt(match cluster_id {
            Some(cluster_id) => cluster_id,
            None => random_id()?,
        })?;
    }
    if applied.index != 0 {
        let current = lists::members_of(&state.config_text());
        let listed = known.listed().map(|listed| &listed.members[..]);
        lists::check(config, listed, &current)?;
    }
    let log = begin_log(config, &mut stores, &applied)?;
    tracing::info!(
        directory = %directory.display(),
        applied = applied.index,
        log,
        nodes = state.counts().nodes,
        took_ms = began.elapsed().as_millis() as u64,
        "opened the data directory"
    );
    Ok(Opened { stores, known, applied, state })
}

/// Makes the log continue from `applied`. Returns its last index.
fn begin_log(config: &Config, stores: &mut Stores, applied: &Applied) -> Result<u64, StartError> {
    let reader = stores.log.reader();
    let log = reader.initial()?;
    match store::continuity(reader.as_ref(), applied)? {
        Continuity::Whole => Ok(log.last_index),
        // This is a first start, or the last one stopped after a snapshot was installed and before this.
        Continuity::Replaced => {
            let reset = Some((applied.index, applied.term));
            stores.log.append(&[Append { reset, ..Append::default() }])?;
            Ok(applied.index)
        }
        Continuity::Gap => Err(StartError::Gap {
            directory: config.data_dir.clone(),
            state: applied.index,
            log: log.compacted_index,
        }),
    }
}

/// Builds the first state of a replica by itself, as if entry 1 of term 1 had made it.
fn first_state(
    config: &Config,
    stores: &mut Stores,
    seed: u64,
) -> Result<(Applied, State), StartError> {
    let state = State::with_seed(seed);
    let conf_state = ConfState { voters: vec![config.replica_id], ..ConfState::default() };
    let applied = Applied { index: 1, term: 1, conf_state };
    let mut records = Vec::new();
    state.all_records(&mut |key, value| records.push((key.to_vec(), value.to_vec())));
    let mut changes = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
    stores.state.commit(&mut changes, &applied)?;
    Ok((applied, state))
}

/// Returns a number that cannot be guessed and that is not 0.
pub(super) fn random_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// Fills `bytes` with the kernel's random numbers.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}
