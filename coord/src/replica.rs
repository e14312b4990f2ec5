//! One replica of the service: clients and peers in, Raft and the state machine, replies out.
//!
//! Owns the state, the sessions of its clients, its watches and its Raft node. Only
//! [`Replica::handle`] and [`Replica::turn`] move it, and it asks for every effect with an
//! [`Action`]. It makes no system call and reads no clock, so one thread can run a whole ensemble
//! from one seed.
//!
//! ```text
//!  request ─► read: answered from the state, after the client's earlier writes
//!         └─► write: a command ─► outbox ─┬─ leader: one entry for all that wait ─► Raft ─► log
//!                                         └─ follower: forwarded to the leader
//!  committed entry ─► State::apply ─► watch events ─► reply, where the client waits
//!                                 └─► records ─► the durable state, in the background
//! ```
//!
//! What always holds: a client's replies leave in the order of its requests; a watch event leaves
//! before any reply that shows the change; a write is acknowledged after its entry is durable on a
//! majority and applied here; a write with an unknown outcome closes its client's connection.

use std::collections::{BTreeSet, HashMap, VecDeque};

use ::raft::eraftpb::EntryType;
use millrace_proto::zookeeper::Reader;

use crate::command::{BATCH_HEADER_SIZE, Command, Rules, begin_batch};
use crate::config::members::list_hash;
use crate::config::{Config, Member};
use crate::metrics::Metrics;
use crate::peers::Listed;
use crate::raft::{Consensus, Outputs, Timing};
use crate::state::{Changes, State};
use crate::store::{Applied, LogReader, StoreError, StoreIdentity};
use crate::watch::WatchTable;

mod admin;
mod apply;
mod client;
mod cluster;
mod event;
mod founding;
mod handshake;
pub mod lists;
mod liveness;
mod message;
mod read;
mod reconfigure;
mod report;
mod request;
mod snapshot;
mod timers;

use client::{Client, Phase};
pub use event::{Action, AdminRequest, Checkpoint, ClientId, Company, Event, Now, StateAction};
use founding::Founding;
use lists::Lists;
use liveness::Liveness;
use message::{PeerMessage, Place};
use reconfigure::Reconfigure;
use snapshot::{Receiving, Sending};

/// Milliseconds between two ticks of Raft.
pub const TICK_MS: u64 = 25;
/// Most bytes of commands in one entry, unless a single command is larger.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// Most bytes of commands that wait to be proposed or forwarded; above this no client is read.
const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// Bits of a tag that name the client's slot; the others count the writes of this process.
const SLOT_BITS: u32 = 24;

/// Returns the number of the write that a tag belongs to.
fn number_of(tag: u64) -> u64 {
    tag >> SLOT_BITS
}

/// Returns the client's slot that a tag names.
fn slot_of(tag: u64) -> usize {
    (tag & ((1 << SLOT_BITS) - 1)) as usize
}

/// What a replica is made from.
pub struct Setup {
    pub config: Config,
    pub identity: StoreIdentity,
    /// Random. It distinguishes this process from earlier ones of the same replica, and is the seed
    /// of what chance decides.
    pub origin: u64,
    /// Random and secret; the passwords of sessions are made from it.
    pub secret: [u8; 32],
    pub log: Box<dyn LogReader>,
    /// The durable state. A replica without data begins an ensemble with this one.
    pub state: State,
    /// What the state holds; index 0 for a replica without data.
    pub applied: Applied,
    /// True if a replica without data joins an ensemble and does not begin one.
    pub joins: bool,
    /// The configured list of members as it was last taken over; `None` if it never was.
    pub listed: Option<Listed>,
    pub now: Now,
}

/// Encoded commands on their way to a leader, one after another.
#[derive(Default)]
struct CommandOutbox {
    bytes: Vec<u8>,
    lengths: VecDeque<usize>,
}

impl CommandOutbox {
    fn push(&mut self, command: &Command<'_>) {
        let start = self.bytes.len();
        command.encode(&mut self.bytes);
        self.lengths.push_back(self.bytes.len() - start);
    }

    fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Drops the commands whose tag `keep` refuses.
    fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut start = 0;
        self.lengths.retain(|length| {
            let encoded = &bytes[start..start + length];
            start += length;
            let command = Command::decode(&mut Reader::new(encoded));
            let is_kept = keep(command.expect("we wrote it ourselves").tag);
            if is_kept {
                self.bytes.extend_from_slice(encoded);
            }
            is_kept
        });
    }

    /// Counts the commands of the next entry, after the first `start_count`: how many, how many
    /// bytes.
    fn next_entry(&self, start_count: usize) -> (usize, usize) {
        let mut bytes = 0;
        let mut count = 0;
        for length in self.lengths.range(start_count..) {
            if count > 0 && bytes + length > ENTRY_BYTES_MAX {
                break;
            }
            bytes += length;
            count += 1;
        }
        (count, bytes)
    }

    /// Hands the commands to `give`, one entry's worth at a time, until it takes no more. True if
    /// it took anything.
    fn drain(&mut self, mut give: impl FnMut(&[u8]) -> bool) -> bool {
        let (mut count, mut bytes) = (0, 0);
        while count < self.lengths.len() {
            let (next_count, next_bytes) = self.next_entry(count);
            if !give(&self.bytes[bytes..bytes + next_bytes]) {
                break;
            }
            count += next_count;
            bytes += next_bytes;
        }
        self.lengths.drain(..count);
        self.bytes.drain(..bytes);
        count > 0
    }
}

/// One replica.
pub struct Replica {
    config: Config,
    identity: StoreIdentity,
    origin: u64,
    secret: [u8; 32],
    consensus: Consensus,
    state: State,
    changes: Changes,
    watches: WatchTable,
    /// Slots of the watchers of one event; kept for reuse.
    watchers: Vec<u32>,
    metrics: Metrics,

    clients: Vec<Option<Client>>,
    client_count: usize,
    /// The client of this replica that a session is connected through.
    sessions_here: HashMap<i64, ClientId>,
    /// Clients with bytes to send, in the order in which they got the first.
    sends: Vec<ClientId>,
    /// Clients whose first request may have become ready.
    unblocked: Vec<ClientId>,

    /// Commands of our clients and of this replica that no leader was given.
    outbox: CommandOutbox,
    /// Commands of other replicas' clients, while we lead.
    forwarded: VecDeque<Vec<u8>>,
    forwarded_bytes: usize,
    /// The place that the next forwarded writes of each peer must have.
    forwards: HashMap<u64, Place>,
    /// The place of the next writes that we forward.
    place: Place,
    /// Count of our clients' writes: the last part of a tag.
    writes_issued: u64,
    /// Writes up to this number were given to a leader, so their outcome depends on it.
    writes_dispatched: u64,

    /// The leader and term of the last turn.
    leader: u64,
    leader_term: u64,
    /// The time when the last leader was lost; `None` while there is one.
    leaderless_since_ms: Option<u64>,
    liveness: Liveness,
    /// Sessions that were active here since the last report to the leader.
    touched: Vec<i64>,

    members: Vec<Member>,
    /// Former members that Raft still needs, to leave a joint configuration.
    leaving: Vec<Member>,
    /// `Some` while there is no data.
    founding: Option<Founding>,
    lists: Lists,
    /// True if this replica has lost touch. Then it also calls the members of its own configuration, and
    /// those that another replica named.
    is_lost: bool,
    /// The members that another replica named last.
    told_members: Vec<Member>,
    /// Version of the configuration that names `members`.
    members_version: i64,
    connected: BTreeSet<u64>,
    sending: HashMap<u64, Sending>,
    receiving: Option<Receiving>,
    reconfigure: Option<Reconfigure>,
    /// Index of the last list of members that this replica proposed.
    list_index: u64,
    /// Changes of members that our clients asked for and that no leader was sent.
    reconfigures_asked: Vec<Vec<u8>>,

    syncs: read::Syncs,
    timers: timers::Timers,
    started_ms: u64,
    leading_since_ms: Option<u64>,
    admin_waiting: Vec<admin::Waiting>,
    /// True if our stores have no room for more state. `full_peers` are the replicas with full
    /// stores.
    is_full: bool,
    full_peers: BTreeSet<u64>,
    is_failed: bool,
    is_shutting_down: bool,
    /// True if records of the state changed since the last checkpoint action.
    is_state_changed: bool,
}

impl Replica {
    /// Continues from the durable state and log.
    ///
    /// # Errors
    ///
    /// Fails when the log cannot be read.
    pub fn new(setup: Setup, actions: &mut Vec<Action>) -> Result<Replica, StoreError> {
        let Setup { config, identity, origin, secret, log, state, applied, joins, listed, now } =
            setup;
        let founding = (applied.index == 0).then(|| {
            let begins = !joins && !config.members.is_empty();
            Founding::new(begins.then(|| list_hash(&config.members)))
        });
        let is_alone = applied.conf_state.voters == [identity.replica_id];
        let lists = Lists::new(&config, listed, joins, is_alone);
        let timing = Timing {
            election_ticks: ticks(config.election_timeout_ms),
            heartbeat_ticks: ticks(config.heartbeat_ms),
        };
        let mut consensus =
            Consensus::new(identity.replica_id, timing, origin, log, applied.clone())?;
        consensus.campaign_if_alone();
        let mut replica = Replica {
            timers: timers::Timers::new(now.ms),
            watches: WatchTable::new(config.watches_per_client_max, origin),
            members: Vec::new(),
            members_version: 0,
            leaving: Vec::new(),
            founding,
            lists,
            is_lost: false,
            told_members: Vec::new(),
            started_ms: now.ms,
            leading_since_ms: None,
            config,
            identity,
            origin,
            secret,
            consensus,
            state,
            changes: Changes::default(),
            watchers: Vec::new(),
            metrics: Metrics::default(),
            clients: Vec::new(),
            client_count: 0,
            sessions_here: HashMap::new(),
            sends: Vec::new(),
            unblocked: Vec::new(),
            outbox: CommandOutbox::default(),
            forwarded: VecDeque::new(),
            forwarded_bytes: 0,
            forwards: HashMap::new(),
            place: Place { origin, ..Place::default() },
            writes_issued: 0,
            writes_dispatched: 0,
            leader: 0,
            leader_term: 0,
            leaderless_since_ms: Some(now.ms),
            liveness: Liveness::default(),
            touched: Vec::new(),
            connected: BTreeSet::new(),
            sending: HashMap::new(),
            receiving: None,
            reconfigure: None,
            list_index: 0,
            reconfigures_asked: Vec::new(),
            syncs: read::Syncs::new(origin),
            admin_waiting: Vec::new(),
            is_full: false,
            full_peers: BTreeSet::new(),
            is_failed: false,
            is_shutting_down: false,
            is_state_changed: false,
        };
        replica.read_members(actions);
        if !replica.is_member() {
            let why = replica.removed_text();
            tracing::warn!(replica = replica.identity.replica_id, why, "serves no client");
        }
        Ok(replica)
    }

    /// Takes one event. Effects that need no order among events wait for [`Replica::turn`].
    pub fn handle(&mut self, now: Now, event: Event<'_>, actions: &mut Vec<Action>) {
        match event {
            Event::ClientOpened { client, address } => self.open_client(now, client, address),
            Event::ClientMessage { client, message } => {
                self.client_message(now, client, message, actions);
            }
            Event::ClientClosed { client } => self.forget_client(client),
            Event::PeerConnected { peer } => self.peer_connected(peer, actions),
            Event::PeerMoved { peer } => drop(self.lists.moved.insert(peer)),
            Event::PeerLost { peer } => self.peer_lost(peer, actions),
            Event::PeerGone { peer } => self.consensus.leader_gone(peer),
            Event::PeerMessage { peer, message } => self.peer_message(now, peer, message, actions),
            Event::LogDurable { number } => {
                let mut messages = Vec::new();
                self.consensus.durable(number, &mut messages);
                self.send_raft(messages, actions);
                if self.lists.is_forming {
                    self.consensus.campaign_if_alone();
                }
            }
            Event::CheckpointDurable { applied } => self.checkpoint_durable(applied, actions),
            Event::Room { is_full } => self.room_changed(is_full, actions),
            Event::StorageFailed { error } => {
                self.is_failed = true;
                let reason = format!(
                    "{error}; nothing more is acknowledged: repair the disk and start the replica again"
                );
                actions.push(Action::Stop { reason });
            }
            Event::SnapshotOpened { peer, applied } => self.snapshot_opened(peer, applied, actions),
            Event::SnapshotChunk { peer, chunk } => self.snapshot_chunk(peer, chunk, actions),
            Event::SnapshotStored { peer } => self.snapshot_stored(peer, actions),
            Event::SnapshotInstalled { peer, applied, state } => {
                self.snapshot_installed(peer, applied, *state, actions);
            }
            Event::SnapshotRefused { peer, error } => self.snapshot_refused(peer, &error, actions),
            Event::Admin { ticket, request } => self.admin(now, ticket, request, actions),
        }
    }

    /// Ends a turn: proposes the collected commands, drives Raft, runs the timers. Returns the time
    /// in monotonic milliseconds of the next call, if nothing happens before.
    pub fn turn(&mut self, now: Now, actions: &mut Vec<Action>) -> u64 {
        if self.is_failed {
            return u64::MAX;
        }
        self.run_timers(now, actions);
        loop {
            // This comes first, because all that follows is given to this leader.
            self.watch_leader(now, actions);
            self.flush_reconfigures(now, actions);
            self.flush_outbox(now, actions);
            let has_moved = self.step_raft(now, actions);
            self.serve_unblocked(now, actions);
            if !has_moved && self.unblocked.is_empty() {
                break;
            }
        }
        self.checkpoint(actions);
        self.answer_admin(now, actions);
        for client in self.sends.drain(..) {
            if let Some(Some(entry)) = self.clients.get_mut(client.slot as usize)
                && entry.id == client
            {
                entry.is_send_queued = false;
                actions.push(Action::Send { client });
            }
        }
        self.next_deadline()
    }

    /// True if the next message of this client may be handed in. Ask before each message.
    pub fn accepts(&self, client: ClientId) -> bool {
        self.outbox.bytes.len() < OUTBOX_BYTES_MAX
            && self.outbox.lengths.len() < self.config.outstanding_max
            && self.client(client).is_some_and(Client::accepts)
    }

    /// Returns the bytes to send to a client; the runtime removes what the kernel took.
    pub fn output(&mut self, client: ClientId) -> Option<&mut Vec<u8>> {
        let slot = self.clients.get_mut(client.slot as usize)?.as_mut()?;
        (slot.id == client).then_some(&mut slot.output)
    }

    /// Returns the memory of a sent output.
    pub fn output_sent(&mut self, client: ClientId) {
        if let Some(client) = self.client_mut(client) {
            client.trim_output();
        }
    }

    /// Begins to stop: refuses new clients and hands leadership over. The caller continues with
    /// turns until [`Replica::may_stop`] or a time limit.
    pub fn shut_down(&mut self) {
        if !self.is_shutting_down {
            self.is_shutting_down = true;
            self.consensus.transfer(0);
        }
    }

    /// True if the other replicas need no election when this one stops now.
    pub fn may_stop(&self) -> bool {
        !self.consensus.is_leader() || self.consensus.conf_state().voters.len() == 1
    }

    /// Returns the replicated state, to look at.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the index of the last applied entry.
    pub fn applied(&self) -> u64 {
        self.consensus.applied()
    }

    /// True if the members allow serving clients: there is data, and most participants of the list
    /// follow.
    pub fn is_formed(&self) -> bool {
        self.founding.is_none() && !self.lists.is_forming
    }

    /// Returns the term, and whether this replica leads in it.
    pub fn leadership(&self) -> (u64, bool) {
        (self.consensus.term(), self.consensus.is_leader())
    }

    fn client(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(id.slot as usize)?.as_ref().filter(|client| client.id == id)
    }

    fn client_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(id.slot as usize)?.as_mut().filter(|client| client.id == id)
    }

    /// Makes the end of the turn send a client's output.
    fn queue_send(&mut self, id: ClientId) {
        let Some(Some(client)) = self.clients.get_mut(id.slot as usize) else { return };
        if client.id == id && !client.is_send_queued {
            client.is_send_queued = true;
            self.sends.push(id);
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            enforce_quota: self.config.enforce_quota,
            skip_acl: self.config.skip_acl,
            ttl_nodes: self.config.ttl_nodes,
        }
    }

    /// Gives the commands in the outbox to the leader, which may be this replica.
    fn flush_outbox(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.consensus.is_leader() {
            self.propose_waiting(now);
        } else if self.leader != 0
            && self.leader != self.identity.replica_id
            && !self.outbox.is_empty()
            && self.connected.contains(&self.leader)
        {
            let (peer, term, place) = (self.leader, self.leader_term, &mut self.place);
            self.outbox.drain(|commands| {
                let message = PeerMessage::Forward { term, place: *place, commands }.encode();
                place.sequence += 1;
                actions.push(Action::SendPeer { peer, message });
                true
            });
            self.writes_dispatched = self.writes_issued;
        }
    }

    /// Proposes the waiting commands in few entries. Keeps what Raft does not take now.
    fn propose_waiting(&mut self, now: Now) {
        let rules = self.rules();
        let consensus = &mut self.consensus;
        let proposals = &mut self.metrics.proposals;
        let mut propose = |commands: &[u8]| {
            let mut entry = Vec::with_capacity(BATCH_HEADER_SIZE + commands.len());
            begin_batch(&mut entry, now.wall_ms, rules);
            entry.extend_from_slice(commands);
            let is_taken = consensus.propose(entry);
            *proposals += u64::from(is_taken);
            is_taken
        };
        while let Some(commands) = self.forwarded.front() {
            if !propose(commands) {
                return;
            }
            let commands = self.forwarded.pop_front().expect("there is a first one");
            self.forwarded_bytes -= commands.len();
        }
        // Writes are numbered in the order of issue. If Raft takes some, the rest counts as
        // dispatched too, which at worst closes one client too many.
        if self.outbox.drain(propose) {
            self.writes_dispatched = self.writes_issued;
        }
    }

    /// Does what Raft asks for. True if there was anything to do.
    fn step_raft(&mut self, now: Now, actions: &mut Vec<Action>) -> bool {
        let mut has_moved = false;
        // While a received snapshot replaces the state, nothing may be applied to the old one.
        while !self.is_installing() {
            let Some(outputs) = self.consensus.step_ready() else { break };
            has_moved = true;
            let Outputs { messages, committed, reads, append, restored } = outputs;
            self.send_raft(messages, actions);
            if let Some(applied) = restored {
                self.take_restored(&applied, actions);
            }
            if let Some(append) = append {
                self.metrics.appends += 1;
                actions.push(Action::Append { append });
            }
            self.syncs.answered(reads);
            for entry in &committed {
                match entry.entry_type {
                    EntryType::EntryNormal => self.apply_batch(now, entry, actions),
                    _ => self.apply_members(now, entry, actions),
                }
            }
            if let Some(last) = committed.last() {
                self.consensus.applied_to(last.index, last.term);
                self.is_state_changed = true;
            }
            self.release_syncs();
        }
        has_moved
    }

    /// Hands the records that changed in this turn to the durable state.
    fn checkpoint(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::take(&mut self.is_state_changed) {
            return;
        }
        let mut records = Vec::new();
        self.state.records(&mut self.changes, &mut |key, value| {
            records.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        });
        let checkpoint = Checkpoint {
            records,
            index: self.consensus.applied(),
            term: self.consensus.applied_term(),
            conf_state: self.consensus.conf_state().clone(),
            zxid: self.state.zxid(),
        };
        actions.push(StateAction::Checkpoint { checkpoint }.into());
    }

    /// Notices a new leader, or the loss of one. Writes that the old one was given have no known
    /// outcome.
    fn watch_leader(&mut self, now: Now, actions: &mut Vec<Action>) {
        let (leader, term) = (self.consensus.leader(), self.consensus.term());
        if leader == self.leader && term == self.leader_term {
            return;
        }
        let had_led = self.leader == self.identity.replica_id;
        self.leader = leader;
        self.leader_term = term;
        if leader == 0 {
            // A term that ends without a leader does not restart the wait.
            self.leaderless_since_ms.get_or_insert(now.ms);
        } else if let Some(since_ms) = self.leaderless_since_ms.take() {
            self.metrics.election_latency.record((now.ms - since_ms) * 1000);
        }
        tracing::info!(replica = self.identity.replica_id, leader, term, "leader");
        self.metrics.leader_changes += 1;
        self.close_dispatched(actions);
        self.leading_since_ms = (leader == self.identity.replica_id).then_some(now.ms);
        if leader == self.identity.replica_id {
            self.begin_leading(now);
        } else if had_led {
            self.stop_leading(actions);
        }
        if leader != 0 {
            self.close_read_only(actions);
        }
    }

    /// Closes the clients whose writes were given to a leader that may have lost them.
    fn close_dispatched(&mut self, actions: &mut Vec<Action>) {
        self.place = Place { epoch: self.place.epoch + 1, sequence: 0, ..self.place };
        self.lists.forget_asked();
        let dispatched = self.writes_dispatched;
        let lost: Vec<ClientId> = self
            .clients
            .iter()
            .flatten()
            .filter(|client| client.phase != Phase::Closed && client.has_write_up_to(dispatched))
            .map(|client| client.id)
            .collect();
        for client in lost {
            self.close_client(client, actions);
        }
        // The later requests of these clients are not given to the next leader either, because only
        // a first part of a client's requests may take effect. The same holds for this replica's
        // own commands, which have no tag: the next leader notices silent sessions itself.
        let clients = &mut self.clients;
        self.outbox.retain(|tag| match clients.get_mut(slot_of(tag)) {
            _ if tag == 0 => false,
            Some(client) => client.as_mut().is_some_and(|client| client.tagged(tag).is_some()),
            // A command of an operator.
            None => true,
        });
        self.syncs.ask_again();
    }
}

/// Converts milliseconds to ticks of Raft, at least one.
fn ticks(ms: u64) -> usize {
    (ms / TICK_MS).max(1) as usize
}

#[cfg(test)]
mod tests;
