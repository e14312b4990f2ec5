//! The content of a Raft entry: a batch of commands, with the time that the leader gave it.
//!
//! A command is everything that `State::apply` needs beside the state: the session, its identities, and the
//! action. Nothing in it depends on the replica that applies it. The batch has the leader's wall clock, so
//! all replicas agree on every timestamp.
//!
//! ```text
//!  entry                                    command
//! ┌─────────┬─────────┬───────┬──────────┐  ┌────────┬─────┬─────────┬────────┬────────────┬────────┐
//! │ version │ time_ms │ flags │ command… │  │ origin │ tag │ session │ attach │ identities │ action │
//! └── u8 ───┴── i64 ──┴─ u8 ──┴──────────┘  └─ u64 ──┴ u64 ┴── i64 ──┴─ i64 ──┴── list ────┴────────┘
//! ```

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{JuteError, Reader, Writer};

/// The only layout so far.
const VERSION: u8 = 1;
/// Bytes before the first command of an entry.
pub const BATCH_HEADER_SIZE: usize = 10;

/// One identity that a client has proved: a scheme and an id, such as `digest` and `user:hash`.
///
/// An identity of scheme `super` passes every ACL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity<'a> {
    pub scheme: &'a str,
    pub id: &'a str,
}

/// Settings that change what apply does. The entry has them, so replicas cannot differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// True if writes beyond a hard quota are refused (`enforceQuota`).
    pub enforce_quota: bool,
    /// True if ACLs are not checked (`skipACL`).
    pub skip_acl: bool,
    /// True if TTL nodes are accepted (`zookeeper.extendedTypesEnabled`).
    pub ttl_nodes: bool,
}

impl Rules {
    fn bits(self) -> u8 {
        u8::from(self.enforce_quota) | u8::from(self.skip_acl) << 1 | u8::from(self.ttl_nodes) << 2
    }

    fn from_bits(bits: u8) -> Rules {
        Rules { enforce_quota: bits & 1 != 0, skip_acl: bits & 2 != 0, ttl_nodes: bits & 4 != 0 }
    }
}

/// The action of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act<'a> {
    /// A write of a client: operation code and record as they came.
    Request { code: i32, record: &'a [u8] },
    /// Opens a session; its id is chosen by apply.
    CreateSession { timeout_ms: i32, password: [u8; PASSWORD_SIZE] },
    /// Connects a client to `Command::session` again, maybe at another replica, and with another time-out
    /// than before.
    Attach { timeout_ms: i32, password: [u8; PASSWORD_SIZE] },
    /// Closes `Command::session`, because its client asks, or the leader found it silent.
    CloseSession,
    /// Deletes a container or TTL node that the leader found due; apply checks again.
    DeleteContainer { path: &'a str },
    /// Sets the members. `text`, with a line for each, becomes the data of `/zookeeper/config`, and the
    /// zxid of this command its version. The text is empty for a replica by itself.
    SetConfig { text: &'a str },
}

/// One command of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    /// The replica process that waits for the outcome; 0 if none does.
    pub origin: u64,
    /// A number that the origin chooses to find the waiting client again.
    pub tag: u64,
    /// The session of the client; 0 for `CreateSession` and commands of the service itself.
    pub session: i64,
    /// The attachment (`SessionView::attach`) of the client. A command of an older attachment is refused,
    /// because the client has connected elsewhere since.
    pub attach: i64,
    pub identities: Vec<Identity<'a>>,
    pub act: Act<'a>,
}

const REQUEST: u8 = 1;
const CREATE_SESSION: u8 = 2;
const ATTACH: u8 = 3;
const CLOSE_SESSION: u8 = 4;
const DELETE_CONTAINER: u8 = 5;
const SET_CONFIG: u8 = 6;

impl<'a> Command<'a> {
    /// Appends the command.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.long(self.origin as i64);
        writer.long(self.tag as i64);
        writer.long(self.session);
        writer.long(self.attach);
        writer.list(&self.identities, |writer, identity| {
            writer.string(identity.scheme);
            writer.string(identity.id);
        });
        match self.act {
            Act::Request { code, record } => {
                writer.raw(&[REQUEST]);
                writer.int(code);
                writer.buffer(Some(record));
            }
            Act::CreateSession { timeout_ms, password } => {
                writer.raw(&[CREATE_SESSION]);
                writer.int(timeout_ms);
                writer.raw(&password);
            }
            Act::Attach { timeout_ms, password } => {
                writer.raw(&[ATTACH]);
                writer.int(timeout_ms);
                writer.raw(&password);
            }
            Act::CloseSession => writer.raw(&[CLOSE_SESSION]),
            Act::DeleteContainer { path } => {
                writer.raw(&[DELETE_CONTAINER]);
                writer.string(path);
            }
            Act::SetConfig { text } => {
                writer.raw(&[SET_CONFIG]);
                writer.string(text);
            }
        }
    }

    /// Reads one command from the front of `reader`.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Command<'a>, JuteError> {
        let origin = reader.long()? as u64;
        let tag = reader.long()? as u64;
        let session = reader.long()?;
        let attach = reader.long()?;
        let identities = reader
            .list(|reader| Ok(Identity { scheme: reader.text()?, id: reader.text()? }))?
            .unwrap_or_default();
        let [kind] = *reader.take(1)? else { return Err(JuteError::Short) };
        let act = match kind {
            REQUEST => {
                Act::Request { code: reader.int()?, record: reader.buffer()?.unwrap_or_default() }
            }
            CREATE_SESSION => {
                Act::CreateSession { timeout_ms: reader.int()?, password: password(reader)? }
            }
            ATTACH => Act::Attach { timeout_ms: reader.int()?, password: password(reader)? },
            CLOSE_SESSION => Act::CloseSession,
            DELETE_CONTAINER => Act::DeleteContainer { path: reader.path()? },
            SET_CONFIG => Act::SetConfig { text: reader.text()? },
            other => return Err(JuteError::Operation(i32::from(other))),
        };
        Ok(Command { origin, tag, session, attach, identities, act })
    }
}

fn password(reader: &mut Reader<'_>) -> Result<[u8; PASSWORD_SIZE], JuteError> {
    reader.take(PASSWORD_SIZE)?.try_into().map_err(|_| JuteError::Short)
}

/// Writes the head of an entry.
pub fn begin_batch(out: &mut Vec<u8>, time_ms: i64, rules: Rules) {
    out.push(VERSION);
    out.extend_from_slice(&time_ms.to_be_bytes());
    out.push(rules.bits());
}

/// The commands of an entry, in order.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Milliseconds since 1970 at the leader when it proposed the entry.
    pub time_ms: i64,
    pub rules: Rules,
    reader: Reader<'a>,
}

impl<'a> Batch<'a> {
    /// Reads the head of an entry.
    ///
    /// # Errors
    ///
    /// Fails for an entry of a newer version, or a damaged one.
    pub fn decode(entry: &'a [u8]) -> Result<Batch<'a>, JuteError> {
        let mut reader = Reader::new(entry);
        match *reader.take(1)? {
            [VERSION] => {}
            [version] => return Err(JuteError::Operation(i32::from(version))),
            _ => return Err(JuteError::Short),
        }
        let time_ms = reader.long()?;
        let rules = match *reader.take(1)? {
            [bits] => Rules::from_bits(bits),
            _ => return Err(JuteError::Short),
        };
        Ok(Batch { time_ms, rules, reader })
    }

    /// Returns the next command, or `None` at the end of the entry.
    pub fn next_command(&mut self) -> Result<Option<Command<'a>>, JuteError> {
        if self.reader.rest().is_empty() {
            return Ok(None);
        }
        Command::decode(&mut self.reader).map(Some)
    }
}
