//! Applies committed entries to the state, and answers what waits for them.

use ::raft::eraftpb::Entry;
use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{
    Error, ReplyHeader, Request, STATE_CONNECTED, WatchEvent, opcode, xid,
};

use super::client::{Pending, Phase, write_reply};
use super::{Action, ClientId, Now, Replica, slot_of};
use crate::command::{Act, Batch, Command};
use crate::config::members;
use crate::raft;
use crate::state::Outcome;
use crate::state::read::read;

/// The answer to a waiting client's command.
type Answer = Result<Outcome, Error>;

impl Replica {
    /// Applies the commands of an entry.
    pub(super) fn apply_batch(&mut self, now: Now, entry: &Entry, actions: &mut Vec<Action>) {
        // A new leader begins its term with an empty entry.
        if entry.data.is_empty() {
            return;
        }
        let mut batch = Batch::decode(&entry.data).unwrap_or_else(|error| {
            panic!(
                "entry {} is of a version that this program does not know ({error}); \
                 run the newer version on this replica",
                entry.index
            )
        });
        let rules = batch.rules;
        while let Some(command) = batch.next_command().expect("a committed entry is readable") {
            self.metrics.commands_applied += 1;
            if command.origin == self.origin {
                self.serve_earlier(now, command.tag, actions);
            }
            let answer = self.state.apply(batch.time_ms, rules, &command, &mut self.changes);
            self.deliver_events();
            self.follow_session(now, &command, &answer, actions);
            if command.origin == self.origin {
                self.complete(now, &command, answer, actions);
            }
        }
    }

    pub(super) fn apply_members(&mut self, now: Now, entry: &Entry, actions: &mut Vec<Action>) {
        let change = raft::decode_members(entry);
        self.consensus.apply_members(&change);
        // An entry that leaves a joint configuration has no text, because the members stay the same.
        if !change.context.is_empty() {
            let mut context = entry.clone();
            context.data = change.context;
            self.apply_batch(now, &context, actions);
        }
        self.read_members(actions);
        self.leave_if_removed(actions);
    }

    /// Reads the members from the replicated configuration.
    pub(super) fn read_members(&mut self, actions: &mut Vec<Action>) {
        let text = self.state.config_text();
        if text.is_empty() {
            // A replica by itself never has such a text. A replica that joins, or begins with others, has
            // none yet, so it connects to the members of its own configuration.
            self.members.clone_from(&self.config.members);
            return self.tell_peers(actions);
        }
        match members::parse_config_text(&text) {
            Ok((members, version)) => {
                self.leaving.append(&mut self.members);
                (self.members, self.members_version) = (members, version);
            }
            // A leader parsed the text before it wrote it.
            Err(error) => panic!("the replicated configuration is readable: {error}"),
        }
        self.follow_lists(actions);
        self.tell_peers(actions);
    }

    /// Sends the watch events of everything that was just applied.
    fn deliver_events(&mut self) {
        if self.watches.counts().watches == 0 {
            self.changes.clear_events();
            return;
        }
        for event in self.changes.events() {
            self.watchers.clear();
            self.watches.trigger(event.kind, event.path, &mut self.watchers);
            for &slot in &self.watchers {
                let Some(Some(client)) = self.clients.get_mut(slot as usize) else { continue };
                if !self.config.skip_acl {
                    let identities: Vec<_> = client.identities.iter().collect();
                    if !event.may_read(&identities) {
                        continue;
                    }
                }
                let header = ReplyHeader { xid: xid::NOTIFICATION, zxid: event.zxid, error: 0 };
                client.reply(header, |writer| {
                    WatchEvent { kind: event.kind, state: STATE_CONNECTED, path: event.path }
                        .encode(writer);
                });
                self.metrics.watches_fired += 1;
                if !client.is_send_queued {
                    client.is_send_queued = true;
                    self.sends.push(client.id);
                }
            }
        }
        self.changes.clear_events();
    }

    /// Follows what a command does to its session, wherever the client is.
    fn follow_session(
        &mut self,
        now: Now,
        command: &Command<'_>,
        answer: &Answer,
        actions: &mut Vec<Action>,
    ) {
        match (&command.act, answer) {
            (Act::CreateSession { .. }, Ok(Outcome::Session { id, timeout_ms, .. })) => {
                self.watch_session(*id, *timeout_ms, now);
            }
            (Act::Attach { .. }, Ok(Outcome::Attached { timeout_ms, .. })) => {
                self.watch_session(command.session, *timeout_ms, now);
                // The session moved, so its older connection, if it is here, is closed.
                self.close_session_client(command, actions);
            }
            (Act::CloseSession, Ok(_)) => {
                self.liveness.remove(command.session);
                self.close_session_client(command, actions);
            }
            (Act::SetConfig { .. }, Ok(_)) => self.read_members(actions),
            _ => {}
        }
    }

    fn watch_session(&mut self, session: i64, timeout_ms: i32, now: Now) {
        if self.consensus.is_leader() {
            self.liveness.insert(session, u64::from(timeout_ms.unsigned_abs()), now.ms);
        }
    }

    /// Closes the client of the command's session, unless that client sent the command.
    fn close_session_client(&mut self, command: &Command<'_>, actions: &mut Vec<Action>) {
        let Some(&id) = self.sessions_here.get(&command.session) else { return };
        let asked = command.origin == self.origin
            && self.client_mut(id).is_some_and(|client| client.tagged(command.tag).is_some());
        if !asked {
            self.close_client(id, actions);
        }
    }

    /// Answers the client that waits for this command.
    fn complete(
        &mut self,
        now: Now,
        command: &Command<'_>,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        if self.admin_completed(command.tag) {
            return;
        }
        let Some(Some(client)) = self.clients.get_mut(slot_of(command.tag)) else { return };
        let id = client.id;
        let Some(pending) = client.tagged(command.tag) else { return };
        match *pending {
            Pending::Connect { read_only, .. } => {
                client.pending.clear();
                self.connected(now, id, command, read_only, answer, actions);
            }
            Pending::Write { xid, code, since_ms, .. } => {
                self.complete_write(now, id, command.tag, (xid, code), since_ms, answer, actions);
            }
            _ => unreachable!("only these have tags"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are one request")]
    fn complete_write(
        &mut self,
        now: Now,
        id: ClientId,
        tag: u64,
        (xid, code): (i32, i32),
        since_ms: u64,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        // The client is connected to another replica, so an answer from here would be out of order.
        if matches!(answer, Err(Error::SessionMoved)) {
            self.close_client(id, actions);
            return;
        }
        let zxid = self.state.zxid();
        let took_ms = now.ms.saturating_sub(since_ms);
        self.metrics.write_took(took_ms);
        let mut body = Vec::new();
        let error = match &answer {
            Ok(_) if code == opcode::RECONFIG => self.write_config(&mut body),
            Ok(outcome) => {
                outcome.encode(&mut millrace_proto::zookeeper::Writer::new(&mut body));
                0
            }
            Err(error) => error.code(),
        };
        let header = ReplyHeader { xid, zxid, error };
        let Some(client) = self.client_mut(id) else { return };
        client.took(took_ms);
        client.usage.last_operation = code;
        client.usage.last_zxid = zxid;
        let is_front = matches!(
            client.pending.front(),
            Some(Pending::Write { tag: front, .. }) if *front == tag
        );
        if is_front {
            client.pending.pop_front();
            client.reply(header, |writer| writer.raw(&body));
            let is_waiting = !client.pending.is_empty();
            self.queue_send(id);
            // Reads behind this write see it, and do not see the client's next write, which may be in the
            // same entry.
            if is_waiting {
                self.serve_client(now, id, actions);
            }
        } else {
            let mut reply = Vec::new();
            write_reply(&mut reply, header, |writer| writer.raw(&body));
            if let Some(pending) = client.tagged(tag) {
                *pending = Pending::Done { reply };
            }
        }
        if code == opcode::RECONFIG {
            self.release_held(id);
        }
        if code == opcode::CLOSE_SESSION && error == 0 {
            self.close_client(id, actions);
        }
    }

    /// Writes the reply of a reconfig: the data and Stat of `/zookeeper/config`.
    fn write_config(&self, body: &mut Vec<u8>) -> i32 {
        let request = Request::GetData { path: "/zookeeper/config", watch: false };
        let mut writer = millrace_proto::zookeeper::Writer::new(body);
        match read(&self.state, &request, 0, &[], true, &mut writer) {
            Ok(()) => 0,
            Err(error) => error.code(),
        }
    }

    /// Makes a password that cannot be guessed: the digest of a secret, the process and a counter.
    pub(super) fn new_password(&mut self, tag: u64) -> [u8; PASSWORD_SIZE] {
        use sha1::{Digest, Sha1};
        let mut digest = Sha1::new();
        digest.update(self.secret);
        digest.update(self.origin.to_be_bytes());
        digest.update(tag.to_be_bytes());
        let mut password = [0; PASSWORD_SIZE];
        password.copy_from_slice(&digest.finalize()[..PASSWORD_SIZE]);
        password
    }

    /// Answers the requests of a client before its write that is applied next, because the answers must not
    /// show that write. A sync among them is due: the write entered the log after the sync was asked, so
    /// all that the sync must see lies before the write.
    fn serve_earlier(&mut self, now: Now, tag: u64, actions: &mut Vec<Action>) {
        let Some(Some(client)) = self.clients.get_mut(slot_of(tag)) else { return };
        let is_this = |pending: &Pending| matches!(pending, Pending::Write { tag: other, .. } if *other == tag);
        let Some(place) = client.pending.iter().position(is_this) else { return };
        if place == 0 {
            return;
        }
        for pending in client.pending.range_mut(..place) {
            if let Pending::Sync { is_due, .. } = pending {
                *is_due = true;
            }
        }
        let id = client.id;
        self.serve_client(now, id, actions);
    }

    /// Answers the clients whose first request may have become ready.
    pub(super) fn serve_unblocked(&mut self, now: Now, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.unblocked) {
            self.serve_client(now, id, actions);
        }
    }

    /// Answers the requests at the front of a client's queue that are ready.
    fn serve_client(&mut self, now: Now, id: ClientId, actions: &mut Vec<Action>) {
        let zxid = self.state.zxid();
        while let Some(client) = self.client_mut(id) {
            if !matches!(client.phase, Phase::Open | Phase::ReadOnly) {
                break;
            }
            match client.pending.front() {
                Some(Pending::Done { .. } | Pending::Read { .. }) => {}
                Some(Pending::Sync { is_due: true, .. }) => {}
                _ => break,
            }
            match client.pending.pop_front().expect("there is a front") {
                Pending::Done { reply } => {
                    client.output.extend_from_slice(&redate(reply, zxid));
                    client.usage.sent += 1;
                }
                Pending::Read { message, since_ms } => {
                    client.pending_bytes -= message.len();
                    self.serve_read(now, id, &message, since_ms, actions);
                }
                Pending::Sync { xid, path, .. } => {
                    client.reply(ReplyHeader { xid, zxid, error: 0 }, |writer| {
                        writer.string(&path);
                    });
                }
                _ => unreachable!("the front was looked at"),
            }
        }
        self.queue_send(id);
    }
}

/// Gives a reply that had to wait the zxid of the moment when it leaves, as ZooKeeper does: the zxid that a
/// client sees never goes back.
fn redate(mut reply: Vec<u8>, zxid: i64) -> Vec<u8> {
    // The zxid is behind the length and the xid.
    reply[8..16].copy_from_slice(&zxid.to_be_bytes());
    reply
}
