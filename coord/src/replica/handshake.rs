//! The life of a client: it connects, gets a session or returns to one, and leaves.

use std::net::SocketAddr;

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{ConnectRequest, ConnectResponse, Error, jute};

use super::client::{Client, Pending, Phase};
use super::{Action, ClientId, Now, Replica, SLOT_BITS};
use crate::command::{Act, Command};
use crate::config::Config;
use crate::state::Outcome;

impl Replica {
    pub(super) fn open_client(&mut self, now: Now, id: ClientId, address: SocketAddr) {
        let slot = id.slot as usize;
        if self.clients.len() <= slot {
            self.clients.resize_with(slot + 1, || None);
        }
        self.clients[slot] = Some(Client::new(id, address, now.ms));
        self.client_count += 1;
    }

    /// Forgets a client whose connection is gone. Its session lives until it expires.
    pub(super) fn forget_client(&mut self, id: ClientId) {
        let Some(client) = self.client_mut(id) else { return };
        let (session, is_closed) = (client.session, client.phase == Phase::Closed);
        let sent = client.usage.sent;
        self.clients[id.slot as usize] = None;
        if !is_closed {
            self.release_session(id, session);
            self.client_count -= 1;
            self.metrics.packets_sent += sent;
        }
    }

    /// Ends a connection after its output is sent.
    pub(super) fn close_client(&mut self, id: ClientId, actions: &mut Vec<Action>) {
        let Some(client) = self.client_mut(id) else { return };
        if client.phase == Phase::Closed {
            return;
        }
        client.phase = Phase::Closed;
        client.pending.clear();
        client.pending_bytes = 0;
        let session = client.session;
        let sent = client.usage.sent;
        self.release_session(id, session);
        self.client_count -= 1;
        self.metrics.packets_sent += sent;
        actions.push(Action::CloseClient { client: id });
    }

    fn release_session(&mut self, id: ClientId, session: i64) {
        if self.sessions_here.get(&session) == Some(&id) {
            self.sessions_here.remove(&session);
        }
        self.watches.drop_client(id.slot);
    }

    /// Returns a tag for the next write of a client.
    pub(super) fn next_tag(&mut self, id: ClientId) -> u64 {
        self.writes_issued += 1;
        self.writes_issued << SLOT_BITS | u64::from(id.slot)
    }

    /// Returns the time-out for a client that asks for `asked_ms`.
    fn granted_timeout(&self, asked_ms: i32) -> i32 {
        let Config { min_session_timeout_ms: min, max_session_timeout_ms: max, .. } = self.config;
        let granted = u64::try_from(asked_ms).unwrap_or(0).clamp(min, max);
        i32::try_from(granted).unwrap_or(i32::MAX)
    }

    /// Takes the first message of a client (`ZooKeeperServer.processConnectRequest`).
    pub(super) fn connect(
        &mut self,
        now: Now,
        id: ClientId,
        message: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let Ok(request) = ConnectRequest::decode(message) else {
            tracing::debug!("a client's first message is not a handshake");
            return self.close_client(id, actions);
        };
        let has_leader = self.has_leader(now);
        if self.is_shutting_down || self.is_failed {
            return self.close_client(id, actions);
        }
        if !has_leader {
            // Before the ensemble is formed there is no old state of it to read: there is no data, or the
            // data of one of several replicas with one common list.
            let may_read = self.config.read_only_mode && self.is_formed();
            if may_read && request.read_only == Some(true) {
                return self.connect_read_only(id, &request);
            }
            return self.close_client(id, actions);
        }
        let timeout_ms = self.granted_timeout(request.timeout_ms);
        // The client has seen a later state than this replica has, so another replica must serve it. A
        // replica that still replays its log will have that state before the handshake is through.
        let is_current = self.consensus.applied_term() == self.consensus.term();
        if is_current && request.last_zxid_seen > self.state.zxid() {
            return self.refuse_ahead(id, request.last_zxid_seen, actions);
        }
        // As in ZooKeeper, this comes before the check of the password: a client that returns must not
        // compete with the connection that it lost.
        if let Some(&older) = self.sessions_here.get(&request.session) {
            self.close_client(older, actions);
        }
        let tag = self.next_tag(id);
        // The session is active, though this connection does not have it yet.
        if request.session != 0 {
            self.touched.push(request.session);
        }
        let act = if request.session == 0 {
            Act::CreateSession { timeout_ms, password: self.new_password(tag) }
        } else {
            let password = request.password.unwrap_or_default();
            let Ok(password) = <[u8; PASSWORD_SIZE]>::try_from(password) else {
                return self.refuse_session(id, request.read_only, actions);
            };
            Act::Attach { timeout_ms, password }
        };
        let origin = self.origin;
        let command = Command {
            origin,
            tag,
            session: request.session,
            attach: 0,
            identities: Vec::new(),
            act,
        };
        self.outbox.push(&command);
        let Some(client) = self.client_mut(id) else { return };
        client.phase = Phase::Connecting;
        client.timeout_ms = timeout_ms;
        // Set now, so that the end of the session finds this client while it waits.
        client.session = request.session;
        client.wait(Pending::Connect { tag, read_only: request.read_only });
    }

    /// Serves old state to a client that asked for it, while there is no leader
    /// (`ReadOnlyZooKeeperServer`). A new session exists only here and cannot move to another replica.
    fn connect_read_only(&mut self, id: ClientId, request: &ConnectRequest<'_>) {
        let (session, tag) = match request.session {
            0 => {
                let tag = self.next_tag(id);
                (i64::MIN | (self.writes_issued as i64) << 8 | 1, tag)
            }
            // The client keeps a session that it had before. It is checked when there is a leader again.
            session => (session, 0),
        };
        let password = match request.password.and_then(|password| password.try_into().ok()) {
            Some(password) if request.session != 0 => password,
            _ => self.new_password(tag),
        };
        let timeout_ms = self.granted_timeout(request.timeout_ms);
        let response = ConnectResponse {
            timeout_ms,
            session,
            password,
            read_only: request.read_only.map(|_| true),
        };
        let Some(client) = self.client_mut(id) else { return };
        client.phase = Phase::ReadOnly;
        client.session = session;
        client.timeout_ms = timeout_ms;
        jute::message(&mut client.output, |writer| response.encode(writer));
        self.queue_send(id);
    }

    /// Closes a client that has seen a later state. The protocol has no answer that says so, so the log does.
    fn refuse_ahead(&mut self, id: ClientId, seen: i64, actions: &mut Vec<Action>) {
        self.metrics.clients_refused_ahead += 1;
        let here = self.state.zxid();
        if let Some(client) = self.client_mut(id) {
            let address = client.address;
            tracing::warn!(
                %address,
                seen = format!("{seen:#x}"),
                here = format!("{here:#x}"),
                "refused a client that has seen more than this replica has: another replica may be further; if none \
                 is, the client was of another ensemble, or this one lost data: start the client again"
            );
        }
        self.close_client(id, actions);
    }

    /// Answers that the session is gone, and closes the client.
    fn refuse_session(&mut self, id: ClientId, read_only: Option<bool>, actions: &mut Vec<Action>) {
        let response = ConnectResponse {
            timeout_ms: 0,
            session: 0,
            password: [0; PASSWORD_SIZE],
            read_only: read_only.map(|_| false),
        };
        let Some(client) = self.client_mut(id) else { return };
        jute::message(&mut client.output, |writer| response.encode(writer));
        client.session = 0;
        self.close_client(id, actions);
    }

    /// Completes a handshake that came through the log.
    pub(super) fn connected(
        &mut self,
        now: Now,
        id: ClientId,
        command: &Command<'_>,
        read_only: Option<bool>,
        answer: Result<Outcome, Error>,
        actions: &mut Vec<Action>,
    ) {
        let (session, attach, timeout_ms, password) = match (answer, command.act) {
            (Ok(Outcome::Session { id, timeout_ms, password, attach }), _) => {
                (id, attach, timeout_ms, password)
            }
            (Ok(Outcome::Attached { timeout_ms, attach }), Act::Attach { password, .. }) => {
                (command.session, attach, timeout_ms, password)
            }
            _ => return self.refuse_session(id, read_only, actions),
        };
        self.sessions_here.insert(session, id);
        let Some(client) = self.client_mut(id) else { return };
        client.phase = Phase::Open;
        client.session = session;
        client.attach = attach;
        client.timeout_ms = timeout_ms;
        client.usage.last_ms = now.ms;
        let response =
            ConnectResponse { timeout_ms, session, password, read_only: read_only.map(|_| false) };
        jute::message(&mut client.output, |writer| response.encode(writer));
        match command.act {
            Act::Attach { .. } => self.metrics.sessions_attached += 1,
            _ => self.metrics.sessions_opened += 1,
        }
        self.queue_send(id);
    }
}
