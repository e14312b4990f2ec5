//! Between clients and replicas: connections, messages both ways, what clients do when they wake.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use millrace_coord::replica::{ClientId, Event as Told};
use millrace_proto::zookeeper::{ConnectResponse, Reader, ReplyHeader, WatchEvent, xid};

use super::{Canary, Event, Link, World};
use crate::client::Phase;
use crate::observe::{Answer, Asked, Seen, What};

impl World {
    pub(super) fn client_wakes(&mut self, client: usize) {
        let now_us = self.now_us;
        let think_us = self.options.think_ms * 1000;
        match self.clients[client].phase {
            Phase::Away { until_us } if now_us >= until_us => self.connect(client),
            Phase::Silent { until_us } if now_us >= until_us => {
                self.clients[client].phase = Phase::Open
            }
            Phase::Away { .. } | Phase::Silent { .. } => {}
            Phase::Connecting | Phase::Open if self.clients[client].is_deserted(now_us) => {
                self.cut(client);
            }
            Phase::Connecting => {}
            Phase::Open => self.talk(client),
        }
        let next_us = now_us + self.random.u64(think_us / 2..2 * think_us);
        self.push(next_us, Event::ClientWakes { client });
    }

    /// Lets an open client ask something, or show that it lives.
    fn talk(&mut self, client: usize) {
        let now_us = self.now_us;
        let batch = if self.is_quiet {
            Vec::new()
        } else if self.is_healing {
            self.clients[client].last_batch(now_us)
        } else if self.clients[client].outstanding.len() < 20 {
            self.clients[client].batch(&self.options, now_us, &mut self.random)
        } else {
            Vec::new()
        };
        for what in batch {
            self.ask(client, what);
        }
        if self.clients[client].needs_ping(now_us) {
            self.ask(client, What::Ping);
        }
    }

    fn ask(&mut self, client: usize, what: What) {
        let Some(link) = self.clients[client].link else { return };
        let (asked, message) = self.clients[client].ask(what, self.now_us);
        self.note(format_args!("client {client} asks {asked:?}"));
        self.see(&Seen::Asked { link, asked: &asked });
        self.send_to_server(link, message);
    }

    fn connect(&mut self, client: usize) {
        let node = self.random.usize(0..self.nodes.len());
        self.link_count += 1;
        let number = self.link_count;
        let link = Link {
            client,
            node,
            life: self.nodes[node].life,
            id: None,
            is_greeted: false,
            is_closed: false,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            inbox: VecDeque::new(),
            held_back: Vec::new(),
            server_us: 0,
            client_us: 0,
        };
        self.links.insert(number, link);
        let delay_us = self.network.delay_us(self.now_us, &mut self.random);
        let at_us = self.now_us + delay_us;
        self.links.get_mut(&number).expect("it was put there").server_us = at_us;
        self.push(at_us, Event::LinkArrives { link: number });
        let target = &mut self.clients[client];
        target.link = Some(number);
        target.phase = Phase::Connecting;
        target.heard_us = self.now_us;
        target.sent_us = self.now_us;
        let message = target.handshake();
        self.send_to_server(number, message);
    }

    fn send_to_server(&mut self, number: u64, message: Vec<u8>) {
        let delay_us = self.network.delay_us(self.now_us, &mut self.random);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.server_us = link.server_us.max(self.now_us + delay_us);
        link.to_server.push_back((self.clients[link.client].session, message));
        let at_us = link.server_us;
        self.push(at_us, Event::ToServer { link: number });
    }

    // The replica's side of a link.

    pub(super) fn link_arrives(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let node = link.node;
        let target = &mut self.nodes[node];
        if link.is_closed {
            return;
        }
        if !target.is_up() || target.is_stopping {
            return self.close_to_client(number);
        }
        link.life = target.life;
        target.generation += 1;
        let slot = match target.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                target.slots.push(None);
                target.slots.len() - 1
            }
        };
        target.slots[slot] = Some(number);
        let id = ClientId { slot: slot as u32, generation: target.generation };
        link.id = Some(id);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000 + link.client as u16));
        self.handle(node, Told::ClientOpened { client: id, address });
    }

    pub(super) fn arrives_at_server(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let Some(message) = link.to_server.pop_front() else { return };
        if link.id.is_some() {
            link.inbox.push_back(message);
            let node = link.node;
            self.take_messages_of(node, number);
        }
    }

    /// Hands over what has arrived, as far as the replica takes it.
    pub(super) fn take_messages(&mut self, node: usize) {
        let links: Vec<u64> = self.nodes[node].slots.iter().flatten().copied().collect();
        for link in links {
            self.take_messages_of(node, link);
        }
    }

    fn take_messages_of(&mut self, node: usize, number: u64) {
        loop {
            let Some(link) = self.links.get_mut(&number) else { return };
            let (Some(id), Some(replica)) = (link.id, &self.nodes[node].replica) else { return };
            if link.inbox.is_empty() || !replica.accepts(id) {
                return;
            }
            let Some((session, message)) = link.inbox.pop_front() else { return };
            // A handshake keeps its session alive when it has come through the log.
            if std::mem::replace(&mut link.is_greeted, true) {
                self.see(&Seen::Heard { node, session });
            }
            std::hash::Hasher::write(&mut self.hash, &message);
            self.handle(node, Told::ClientMessage { client: id, message: &message });
        }
    }

    /// Sends the bytes that the replica has for a client.
    pub(super) fn send(&mut self, node: usize, id: ClientId) {
        let Some(number) = self.nodes[node].slots.get(id.slot as usize).copied().flatten() else {
            return;
        };
        if self.links.get(&number).is_none_or(|link| link.id != Some(id)) {
            return;
        }
        let Some(replica) = &mut self.nodes[node].replica else { return };
        let Some(output) = replica.output(id) else { return };
        let bytes = std::mem::take(output);
        replica.output_sent(id);
        for message in cut(&bytes) {
            self.send_to_client(number, message);
        }
    }

    fn send_to_client(&mut self, number: u64, message: &[u8]) {
        let is_late = self.has_canary(Canary::LateEvents);
        let delay_us = self.network.delay_us(self.now_us, &mut self.random);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.client_us = link.client_us.max(self.now_us + delay_us);
        if is_late && message.starts_with(&xid::NOTIFICATION.to_be_bytes()) {
            link.held_back.push(message.to_vec());
            return;
        }
        link.to_client.push_back(message.to_vec());
        let held_back = std::mem::take(&mut link.held_back);
        let count = 1 + held_back.len();
        link.to_client.extend(held_back);
        let at_us = link.client_us;
        for _ in 0..count {
            self.push(at_us, Event::ToClient { link: number });
        }
    }

    /// Closes a connection at the replica's side: what it has for the client is sent first.
    pub(super) fn close_client(&mut self, node: usize, id: ClientId) {
        self.send(node, id);
        let Some(slot) = self.nodes[node].slots.get_mut(id.slot as usize) else { return };
        let Some(number) = *slot else { return };
        if self.links.get(&number).is_some_and(|link| link.id == Some(id)) {
            *slot = None;
            self.close_to_client(number);
        }
    }

    /// Plans that the client learns that its connection is closed, behind what was sent before.
    fn close_to_client(&mut self, number: u64) {
        let delay_us = self.network.delay_us(self.now_us, &mut self.random);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.id = None;
        link.is_closed = true;
        link.client_us = link.client_us.max(self.now_us + delay_us);
        let (client, at_us) = (link.client, link.client_us);
        self.push(at_us, Event::LinkClosed { client, link: number });
    }

    /// Shows the replica that the client's end is gone.
    pub(super) fn link_lost(&mut self, number: u64) {
        let Some(link) = self.links.remove(&number) else { return };
        let Some(id) = link.id else { return };
        if self.is_alive(link.node, link.life) {
            self.nodes[link.node].slots[id.slot as usize] = None;
            self.handle(link.node, Told::ClientClosed { client: id });
        }
    }

    /// Drops a replica's end of all connections, because it is gone.
    pub(super) fn drop_links(&mut self, node: usize) {
        let here = |link: &Link| link.node == node;
        let numbers: Vec<u64> =
            self.links.iter().filter(|(_, link)| here(link)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.close_to_client(number);
        }
    }

    // The client's side of a link.

    /// Gives a client's connection up.
    pub(super) fn cut(&mut self, client: usize) {
        let Some(number) = self.clients[client].link else { return };
        let delay_us = self.network.delay_us(self.now_us, &mut self.random);
        if let Some(link) = self.links.get_mut(&number) {
            // What it sent before is still read first, as TCP would have it.
            let at_us = link.server_us.max(self.now_us + delay_us);
            self.push(at_us, Event::LinkLost { link: number });
        }
        self.broke(client, number);
    }

    pub(super) fn link_closed(&mut self, client: usize, number: u64) {
        self.links.remove(&number);
        if self.clients[client].link == Some(number) {
            self.broke(client, number);
        }
    }

    fn broke(&mut self, client: usize, link: u64) {
        let again_us = self.now_us + self.random.u64(1_000..200_000);
        let unanswered = self.clients[client].broke(again_us);
        self.tally.unknown += unanswered.len() as u64;
        self.see(&Seen::Broke { client, link, unanswered: &unanswered });
    }

    pub(super) fn arrives_at_client(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        let Some(message) = link.to_client.pop_front() else { return };
        let client = link.client;
        if self.clients[client].link != Some(number) {
            return;
        }
        std::hash::Hasher::write(&mut self.hash, &message);
        self.clients[client].heard_us = self.now_us;
        match self.clients[client].phase {
            Phase::Connecting => self.handshake_answered(client, &message),
            _ => self.message(client, number, &message),
        }
    }

    fn handshake_answered(&mut self, client: usize, message: &[u8]) {
        let Ok(response) = ConnectResponse::decode(message) else {
            return self.fail("replies are readable", format_args!("{message:?}"));
        };
        let session = self.clients[client].session;
        if response.timeout_ms <= 0 {
            self.tally.expired += 1;
            self.note(format_args!("client {client}: session {session:#x} is gone"));
            self.see(&Seen::Expired { client });
            self.clients[client].expired();
            return self.cut(client);
        }
        if session != 0 && response.session != session {
            return self.fail(
                "a client gets the session it asks for",
                format_args!("it asked for {session:#x} and got {:#x}", response.session),
            );
        }
        self.note(format_args!("client {client} has session {:#x}", response.session));
        let again = self.clients[client].opened(response.session, response.password);
        self.see(&Seen::Opened { client });
        if let Some(again) = again {
            self.ask(client, again);
        }
    }

    fn message(&mut self, client: usize, link: u64, message: &[u8]) {
        let session = self.clients[client].session;
        let mut reader = Reader::new(message);
        let Ok(header) = ReplyHeader::decode(&mut reader) else {
            return self.fail("replies are readable", format_args!("{message:?}"));
        };
        if header.xid == xid::NOTIFICATION {
            let Ok(WatchEvent { kind, path, .. }) = WatchEvent::decode(&mut reader) else {
                return self.fail("events are readable", format_args!("{message:?}"));
            };
            self.tally.notified += 1;
            let zxid = header.zxid;
            self.note(format_args!("client {client} is told {kind} {path} zxid {zxid:#x}"));
            self.clients[client].notified(kind, path);
            self.see(&Seen::Notified { client, link, session, zxid, kind, path });
            return;
        }
        let Some(asked) = self.clients[client].outstanding.pop_front() else {
            return self.fail("every reply has a request", format_args!("{header:?}"));
        };
        let answer = Answer { header, body: reader.rest().to_vec() };
        self.take_answer(client, link, &asked, &answer);
    }

    fn take_answer(&mut self, client: usize, link: u64, asked: &Asked, answer: &Answer) {
        let session = self.clients[client].session;
        let header = answer.header;
        self.note(format_args!("client {client} gets {header:?} for {asked:?}"));
        self.tally.acknowledged += 1;
        self.see(&Seen::Answered { client, link, session, asked, answer });
        let target = &mut self.clients[client];
        target.last_zxid = target.last_zxid.max(header.zxid);
        target.answered(asked, answer);
        if asked.what == What::CloseSession && answer.is_ok() {
            target.expired();
            self.cut(client);
        }
    }
}

/// Returns the messages of a stream of bytes, without their lengths.
fn cut(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length)).expect("lengths are positive");
        let (message, rest) = rest.split_at(length);
        messages.push(message);
        bytes = rest;
    }
    messages
}
