//! From a data directory to what a replica continues from: its identity, log and state.
//!
//! ```text
//!  directory        to join?
//!  has a state      any        continue
//!  empty            no         a member from the beginning: the state that all of them begin with
//!  empty            yes        nothing: index 0, a snapshot will come
//! ```
//!
//! Always holds: what a first start made up is durable before anybody hears of this replica; the
//! log begins at or before the state it belongs to.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::time::Instant;

use raft::eraftpb::ConfState;
use twox_hash::XxHash3_64;

use super::StartError;
use crate::config::Config;
use crate::config::members::Role;
use crate::peers::Known;
use crate::runtime::load;
use crate::state::State;
use crate::store::{self, Append, Applied, Identity, LogStore, Sizes, StateStore, Stores};

/// What a replica starts from.
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
    let wanted = Identity { cluster_id: 0, replica_id: config.replica_id, store_id: random_id()? };
    let sizes =
        Sizes { log_bytes_max: config.log_max_bytes, state_bytes_max: config.map_size_bytes };
    let mut stores = store::open(directory, wanted, sizes)?;
    let peers_file = |error| StartError::Peers { directory: directory.clone(), error };
    let mut known = Known::load(directory).map_err(peers_file)?;
    if stores.identity.cluster_id == 0 {
        if joins && known.joined().is_none() {
            known.join(0).map_err(peers_file)?;
        }
        let cluster_id = match known.joined() {
            Some(cluster_id) => cluster_id,
            None => first_cluster_id(config)?,
        };
        if cluster_id != 0 {
            stores.adopt(cluster_id)?;
        }
    }
    let seed = random_id()?;
    let (applied, state) = match load(&stores.state, seed)? {
        Some(loaded) => loaded,
        None if known.joined().is_some() => (Applied::default(), State::with_seed(seed)),
        None => first_state(config, &mut stores, seed)?,
    };
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

/// Makes the log one that continues from `applied`; gives its last index.
fn begin_log(config: &Config, stores: &mut Stores, applied: &Applied) -> Result<u64, StartError> {
    let reader = stores.log.reader();
    let log = reader.initial()?;
    if applied.index < log.compacted_index {
        return Err(StartError::Gap {
            directory: config.data_dir.clone(),
            state: applied.index,
            log: log.compacted_index,
        });
    }
    // A first start, or one that stopped between the install of a snapshot and this. Then the log
    // ends before it, or holds other entries that nobody agreed on.
    let is_replaced = applied.index > log.last_index
        || (applied.index > log.compacted_index
            && reader.term(applied.index)? != Some(applied.term));
    if is_replaced {
        let reset = Some((applied.index, applied.term));
        stores.log.append(&[Append { reset, ..Append::default() }])?;
        return Ok(applied.index);
    }
    Ok(log.last_index)
}

/// The id of a cluster that begins. All its members must come to the same one, whatever names they
/// have for each other's hosts: a replica may call its own host `0.0.0.0`. What differs between
/// clusters that have the same ids and ports, the store ids tell after the first contact.
fn first_cluster_id(config: &Config) -> io::Result<u64> {
    if config.members.is_empty() {
        return random_id();
    }
    let mut members: Vec<(u64, u16)> =
        config.members.iter().map(|member| (member.id, member.peer_port())).collect();
    members.sort_unstable();
    let mut hash = XxHash3_64::with_seed(0);
    for (id, port) in members {
        hash.write(&id.to_le_bytes());
        hash.write(&port.to_le_bytes());
    }
    Ok(hash.finish().max(1))
}

/// The state that every member of a new cluster begins with, as if entry 1 of term 1 had made it.
fn first_state(
    config: &Config,
    stores: &mut Stores,
    seed: u64,
) -> Result<(Applied, State), StartError> {
    // Not a word of the members: each replica may spell them differently, itself as 0.0.0.0 for
    // one, and all must begin with the same state. The first leader replicates its spelling.
    let state = State::with_seed(seed);
    let mut conf_state = ConfState::default();
    if config.members.is_empty() {
        conf_state.voters.push(config.replica_id);
    }
    for member in &config.members {
        match member.role {
            Role::Participant => conf_state.voters.push(member.id),
            Role::Observer => conf_state.learners.push(member.id),
        }
    }
    let applied = Applied { index: 1, term: 1, conf_state };
    let mut records = Vec::new();
    state.all_records(&mut |key, value| records.push((key.to_vec(), value.to_vec())));
    let mut changes = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
    stores.state.commit(&mut changes, &applied)?;
    Ok((applied, state))
}

/// A number that nobody can guess and that is not 0.
pub(super) fn random_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// Fills `bytes` from the kernel's source of chance.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}
