//! Messages between replicas: Raft's messages, forwarded writes, active sessions, snapshots.
//!
//! The transport has framed and checked the bytes. A message that still does not decode comes from another
//! version of the protocol and is refused. The layout is big endian, as everywhere in this service. Raft's
//! messages are written by hand and not as protocol buffers, so that entries are copied once and no peer's
//! bytes reach a parser that recurses.

use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use bytes::Bytes;
use millrace_proto::zookeeper::{JuteError, Reader, Writer};
use protobuf::ProtobufEnum;

use crate::store::Applied;

/// The position of forwarded writes among those of their sender. They are taken in order and without a gap,
/// so that only a first part of each client's writes takes effect, even if messages are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// The process of the sender.
    pub origin: u64,
    /// Grows when the sender gives up everything that it has forwarded, and closes the clients of it.
    pub epoch: u64,
    /// Counts the messages of the epoch, from 0.
    pub sequence: u64,
}

impl Place {
    /// True if a message at this place is the next after what was taken or refused up to `next`.
    pub(super) fn follows(self, next: Place) -> bool {
        let is_known = (self.origin, self.epoch) == (next.origin, next.epoch);
        let is_new = self.origin != next.origin || self.epoch > next.epoch;
        is_known && self.sequence == next.sequence || is_new && self.sequence == 0
    }
}

/// What a replica has, for the birth of an ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// No data, and a list of members with this hash: the replica would begin a new ensemble with them.
    Nothing { list: u64 },
    /// No data, but this other replica reported that it has some, so no ensemble begins here.
    Met { data_at: u64 },
    /// The data of an ensemble.
    Data,
    /// No data, and no list to begin with: the replica waits to join an ensemble.
    Joins,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum PeerMessage<'a> {
    /// A message of Raft. A snapshot message has no data, because that comes in chunks.
    Raft(Message),
    /// Writes of our clients that the leader of this term must propose: encoded commands, one after
    /// another.
    Forward {
        term: u64,
        place: Place,
        commands: &'a [u8],
    },
    /// Refuses a `Forward` or `Reconfigure`. All that was sent in this epoch is lost.
    Refused {
        epoch: u64,
    },
    /// Sessions that were active, for the leader that watches them.
    Alive {
        sessions: Vec<i64>,
    },
    /// A snapshot follows. Raft gets this message after the installation.
    SnapshotBegin(Message),
    SnapshotChunk {
        chunk: &'a [u8],
    },
    SnapshotEnd,
    /// A chunk was stored, so the next may come.
    SnapshotMore,
    /// The snapshot took effect, or was refused.
    SnapshotDone {
        is_installed: bool,
    },
    /// A change of members that one of our clients asks for: its encoded command.
    Reconfigure {
        epoch: u64,
        command: &'a [u8],
    },
    /// The leader refuses the change with this tag.
    ReconfigureRefused {
        tag: u64,
        error: i32,
    },
    /// Whether the sender's stores are full. This holds until its next message of this kind.
    Room {
        is_full: bool,
    },
    /// The members as the sender has them: the text of `/zookeeper/config`. A replica that was away while
    /// they changed may not know the address of its leader.
    Members {
        text: &'a str,
    },
    /// Sent by a replica without data again and again, and by the others as the answer.
    Holds(Holding),
}

const RAFT: u8 = 1;
const FORWARD: u8 = 2;
const REFUSED: u8 = 3;
const ALIVE: u8 = 4;
const SNAPSHOT_BEGIN: u8 = 5;
const SNAPSHOT_CHUNK: u8 = 6;
const SNAPSHOT_END: u8 = 7;
const SNAPSHOT_MORE: u8 = 8;
const SNAPSHOT_DONE: u8 = 9;
const RECONFIGURE: u8 = 10;
const RECONFIGURE_REFUSED: u8 = 11;
const ROOM: u8 = 12;
const HOLDS: u8 = 13;
const MEMBERS: u8 = 14;

impl<'a> PeerMessage<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        match self {
            PeerMessage::Raft(message) => {
                writer.raw(&[RAFT]);
                write_raft(&mut writer, message);
            }
            PeerMessage::Forward { term, place, commands } => {
                writer.raw(&[FORWARD]);
                for number in [*term, place.origin, place.epoch, place.sequence] {
                    writer.long(number as i64);
                }
                writer.raw(commands);
            }
            PeerMessage::Refused { epoch } => {
                writer.raw(&[REFUSED]);
                writer.long(*epoch as i64);
            }
            PeerMessage::Alive { sessions } => {
                writer.raw(&[ALIVE]);
                writer.list(sessions, |writer, session| writer.long(*session));
            }
            PeerMessage::SnapshotBegin(message) => {
                writer.raw(&[SNAPSHOT_BEGIN]);
                write_raft(&mut writer, message);
            }
            PeerMessage::SnapshotChunk { chunk } => {
                writer.raw(&[SNAPSHOT_CHUNK]);
                writer.raw(chunk);
            }
            PeerMessage::SnapshotEnd => writer.raw(&[SNAPSHOT_END]),
            PeerMessage::SnapshotMore => writer.raw(&[SNAPSHOT_MORE]),
            PeerMessage::SnapshotDone { is_installed } => {
                writer.raw(&[SNAPSHOT_DONE]);
                writer.boolean(*is_installed);
            }
            PeerMessage::Reconfigure { epoch, command } => {
                writer.raw(&[RECONFIGURE]);
                writer.long(*epoch as i64);
                writer.raw(command);
            }
            PeerMessage::ReconfigureRefused { tag, error } => {
                writer.raw(&[RECONFIGURE_REFUSED]);
                writer.long(*tag as i64);
                writer.int(*error);
            }
            PeerMessage::Room { is_full } => {
                writer.raw(&[ROOM]);
                writer.boolean(*is_full);
            }
            PeerMessage::Members { text } => {
                writer.raw(&[MEMBERS]);
                writer.raw(text.as_bytes());
            }
            PeerMessage::Holds(holding) => {
                let (kind, list) = match *holding {
                    Holding::Nothing { list } => (0, list),
                    Holding::Data => (1, 0),
                    Holding::Joins => (2, 0),
                    Holding::Met { data_at } => (3, data_at),
                };
                writer.raw(&[HOLDS, kind]);
                writer.long(list as i64);
            }
        }
        out
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<PeerMessage<'a>, JuteError> {
        let mut reader = Reader::new(bytes);
        let [kind] = *reader.take(1)? else { return Err(JuteError::Short) };
        Ok(match kind {
            RAFT => PeerMessage::Raft(read_raft(&mut reader)?),
            FORWARD => PeerMessage::Forward {
                term: reader.long()? as u64,
                place: Place {
                    origin: reader.long()? as u64,
                    epoch: reader.long()? as u64,
                    sequence: reader.long()? as u64,
                },
                commands: reader.rest(),
            },
            REFUSED => PeerMessage::Refused { epoch: reader.long()? as u64 },
            ALIVE => {
                PeerMessage::Alive { sessions: reader.list(Reader::long)?.unwrap_or_default() }
            }
            SNAPSHOT_BEGIN => PeerMessage::SnapshotBegin(read_raft(&mut reader)?),
            SNAPSHOT_CHUNK => PeerMessage::SnapshotChunk { chunk: reader.rest() },
            SNAPSHOT_END => PeerMessage::SnapshotEnd,
            SNAPSHOT_MORE => PeerMessage::SnapshotMore,
            SNAPSHOT_DONE => PeerMessage::SnapshotDone { is_installed: reader.boolean()? },
            RECONFIGURE => {
                PeerMessage::Reconfigure { epoch: reader.long()? as u64, command: reader.rest() }
            }
            RECONFIGURE_REFUSED => {
                PeerMessage::ReconfigureRefused { tag: reader.long()? as u64, error: reader.int()? }
            }
            ROOM => PeerMessage::Room { is_full: reader.boolean()? },
            MEMBERS => PeerMessage::Members {
                text: std::str::from_utf8(reader.rest()).map_err(|_| JuteError::Short)?,
            },
            HOLDS => {
                let [kind] = *reader.take(1)? else { return Err(JuteError::Short) };
                let number = reader.long()? as u64;
                PeerMessage::Holds(match kind {
                    0 => Holding::Nothing { list: number },
                    1 => Holding::Data,
                    2 => Holding::Joins,
                    3 => Holding::Met { data_at: number },
                    other => return Err(JuteError::Operation(i32::from(other))),
                })
            }
            other => return Err(JuteError::Operation(i32::from(other))),
        })
    }
}

fn write_raft(writer: &mut Writer<'_>, message: &Message) {
    writer.int(message.msg_type.value());
    for number in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
    ] {
        writer.long(number as i64);
    }
    writer.long(message.priority);
    writer.boolean(message.reject);
    writer.buffer(Some(&message.context));
    writer.list(&message.entries, |writer, entry| {
        writer.int(entry.entry_type.value());
        writer.long(entry.term as i64);
        writer.long(entry.index as i64);
        writer.buffer(Some(&entry.data));
        writer.buffer(Some(&entry.context));
    });
    let metadata = message.get_snapshot().get_metadata();
    writer.long(metadata.index as i64);
    if metadata.index != 0 {
        writer.long(metadata.term as i64);
        write_conf_state(writer, metadata.get_conf_state());
    }
}

fn read_raft(reader: &mut Reader<'_>) -> Result<Message, JuteError> {
    let kind = reader.int()?;
    let mut message = Message {
        msg_type: MessageType::from_i32(kind).ok_or(JuteError::Operation(kind))?,
        to: reader.long()? as u64,
        from: reader.long()? as u64,
        term: reader.long()? as u64,
        log_term: reader.long()? as u64,
        index: reader.long()? as u64,
        commit: reader.long()? as u64,
        commit_term: reader.long()? as u64,
        request_snapshot: reader.long()? as u64,
        reject_hint: reader.long()? as u64,
        priority: reader.long()?,
        reject: reader.boolean()?,
        context: shared(reader)?,
        ..Message::default()
    };
    message.entries = reader.list(read_entry)?.unwrap_or_default().into();
    let index = reader.long()? as u64;
    if index != 0 {
        let term = reader.long()? as u64;
        let conf_state = read_conf_state(reader)?;
        set_snapshot(&mut message, Applied { index, term, conf_state });
    }
    Ok(message)
}

/// Makes `message` name the snapshot that holds `applied`.
pub(super) fn set_snapshot(message: &mut Message, applied: Applied) {
    let metadata = message.mut_snapshot().mut_metadata();
    metadata.index = applied.index;
    metadata.term = applied.term;
    metadata.set_conf_state(applied.conf_state);
}

fn shared(reader: &mut Reader<'_>) -> Result<Bytes, JuteError> {
    Ok(Bytes::copy_from_slice(reader.buffer()?.unwrap_or_default()))
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, JuteError> {
    let kind = reader.int()?;
    Ok(Entry {
        entry_type: EntryType::from_i32(kind).ok_or(JuteError::Operation(kind))?,
        term: reader.long()? as u64,
        index: reader.long()? as u64,
        data: shared(reader)?,
        context: shared(reader)?,
        ..Entry::default()
    })
}

fn write_conf_state(writer: &mut Writer<'_>, state: &ConfState) {
    for list in [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next] {
        writer.list(list, |writer, id| writer.long(*id as i64));
    }
    writer.boolean(state.auto_leave);
}

fn read_conf_state(reader: &mut Reader<'_>) -> Result<ConfState, JuteError> {
    let ids = |reader: &mut Reader<'_>| -> Result<Vec<u64>, JuteError> {
        Ok(reader.list(|reader| reader.long().map(|id| id as u64))?.unwrap_or_default())
    };
    Ok(ConfState {
        voters: ids(reader)?,
        learners: ids(reader)?,
        voters_outgoing: ids(reader)?,
        learners_next: ids(reader)?,
        auto_leave: reader.boolean()?,
        ..ConfState::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_wire() {
        let mut raft = Message {
            msg_type: MessageType::MsgAppend,
            to: 1,
            from: 2,
            term: 3,
            log_term: 4,
            index: 5,
            commit: 6,
            commit_term: 7,
            request_snapshot: 8,
            reject_hint: 9,
            priority: -1,
            reject: true,
            context: Bytes::from_static(b"read"),
            ..Message::default()
        };
        raft.entries.push(Entry {
            entry_type: EntryType::EntryConfChangeV2,
            term: 3,
            index: 6,
            data: Bytes::from_static(b"data"),
            context: Bytes::from_static(b"context"),
            ..Entry::default()
        });
        let mut snapshot = Message { msg_type: MessageType::MsgSnapshot, ..raft.clone() };
        let conf_state = ConfState {
            voters: vec![1, 2],
            learners: vec![3],
            voters_outgoing: vec![1],
            learners_next: vec![4],
            auto_leave: true,
            ..ConfState::default()
        };
        set_snapshot(&mut snapshot, Applied { index: 9, term: 2, conf_state });
        for message in [
            PeerMessage::Raft(raft),
            PeerMessage::Raft(Message::default()),
            PeerMessage::Forward {
                term: 3,
                place: Place { origin: 1, epoch: 4, sequence: 2 },
                commands: b"commands",
            },
            PeerMessage::Refused { epoch: 5 },
            PeerMessage::Alive { sessions: vec![1, -2] },
            PeerMessage::SnapshotBegin(snapshot),
            PeerMessage::SnapshotChunk { chunk: b"chunk" },
            PeerMessage::SnapshotEnd,
            PeerMessage::SnapshotMore,
            PeerMessage::SnapshotDone { is_installed: true },
            PeerMessage::Reconfigure { epoch: 6, command: b"command" },
            PeerMessage::ReconfigureRefused { tag: 7, error: -14 },
            PeerMessage::Room { is_full: true },
            PeerMessage::Members { text: "server.1=a:1:2" },
            PeerMessage::Holds(Holding::Nothing { list: 9 }),
            PeerMessage::Holds(Holding::Data),
            PeerMessage::Holds(Holding::Joins),
            PeerMessage::Holds(Holding::Met { data_at: 3 }),
        ] {
            let bytes = message.encode();
            assert_eq!(PeerMessage::decode(&bytes), Ok(message));
            for length in 0..bytes.len() {
                // A shortened message may be refused or be another message, but nothing panics.
                let _ = PeerMessage::decode(&bytes[..length]);
            }
        }
        assert_eq!(PeerMessage::decode(&[99]), Err(JuteError::Operation(99)));
    }
}
