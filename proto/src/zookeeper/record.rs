//! Records that both sides exchange: handshake, headers, Stat, ACL, events.

use super::jute::{JuteError, Reader, Writer};

/// Length of a session's password in bytes.
pub const PASSWORD_SIZE: usize = 16;

/// The client's first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRequest<'a> {
    pub protocol_version: i32,
    /// Highest zxid the client has seen: a server that is behind it must not accept it.
    pub last_zxid_seen: i64,
    /// Session timeout in milliseconds that the client asks for.
    pub timeout_ms: i32,
    /// 0 asks for a new session.
    pub session: i64,
    pub password: Option<&'a [u8]>,
    /// `None` when the client is of version 3.3 or older and sent no such field.
    pub read_only: Option<bool>,
}

impl<'a> ConnectRequest<'a> {
    pub fn decode(record: &'a [u8]) -> Result<ConnectRequest<'a>, JuteError> {
        let mut reader = Reader::new(record);
        Ok(ConnectRequest {
            protocol_version: reader.int()?,
            last_zxid_seen: reader.long()?,
            timeout_ms: reader.int()?,
            session: reader.long()?,
            password: reader.buffer()?,
            read_only: if reader.rest().is_empty() { None } else { Some(reader.boolean()?) },
        })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.protocol_version);
        writer.long(self.last_zxid_seen);
        writer.int(self.timeout_ms);
        writer.long(self.session);
        writer.buffer(self.password);
        if let Some(read_only) = self.read_only {
            writer.boolean(read_only);
        }
    }
}

/// The server's first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Granted session timeout in milliseconds; 0 when the session is gone.
    pub timeout_ms: i32,
    pub session: i64,
    pub password: [u8; PASSWORD_SIZE],
    /// `None` leaves the field out, as a client that did not send one expects.
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    pub fn decode(record: &[u8]) -> Result<ConnectResponse, JuteError> {
        let mut reader = Reader::new(record);
        let _protocol_version = reader.int()?;
        let timeout_ms = reader.int()?;
        let session = reader.long()?;
        let password = reader.buffer()?.unwrap_or_default();
        let password = password.try_into().map_err(|_| JuteError::Length(password.len() as i32))?;
        let read_only = if reader.rest().is_empty() { None } else { Some(reader.boolean()?) };
        Ok(ConnectResponse { timeout_ms, session, password, read_only })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(0);
        writer.int(self.timeout_ms);
        writer.long(self.session);
        writer.buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            writer.boolean(read_only);
        }
    }
}

/// What opens every reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    pub xid: i32,
    pub zxid: i64,
    /// 0, or a code of [`super::Error`].
    pub error: i32,
}

impl ReplyHeader {
    pub fn decode(reader: &mut Reader<'_>) -> Result<ReplyHeader, JuteError> {
        Ok(ReplyHeader { xid: reader.int()?, zxid: reader.long()?, error: reader.int()? })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.xid);
        writer.long(self.zxid);
        writer.int(self.error);
    }
}

/// What a znode's metadata looks like on the wire: 68 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    pub czxid: i64,
    pub mzxid: i64,
    /// Milliseconds since 1970.
    pub ctime: i64,
    /// Milliseconds since 1970.
    pub mtime: i64,
    pub version: i32,
    pub cversion: i32,
    pub aversion: i32,
    /// The owning session, or 0.
    pub ephemeral_owner: i64,
    pub data_length: i32,
    pub child_count: i32,
    pub pzxid: i64,
}

impl Stat {
    pub fn decode(reader: &mut Reader<'_>) -> Result<Stat, JuteError> {
        Ok(Stat {
            czxid: reader.long()?,
            mzxid: reader.long()?,
            ctime: reader.long()?,
            mtime: reader.long()?,
            version: reader.int()?,
            cversion: reader.int()?,
            aversion: reader.int()?,
            ephemeral_owner: reader.long()?,
            data_length: reader.int()?,
            child_count: reader.int()?,
            pzxid: reader.long()?,
        })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.long(self.czxid);
        writer.long(self.mzxid);
        writer.long(self.ctime);
        writer.long(self.mtime);
        writer.int(self.version);
        writer.int(self.cversion);
        writer.int(self.aversion);
        writer.long(self.ephemeral_owner);
        writer.int(self.data_length);
        writer.int(self.child_count);
        writer.long(self.pzxid);
    }
}

/// One entry of an access control list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Acl<'a> {
    /// Bits of [`super::perms`].
    pub perms: i32,
    pub scheme: &'a str,
    pub id: &'a str,
}

/// Anyone may do anything: what most clients send.
pub const OPEN_ACL: Acl<'static> = Acl { perms: super::perms::ALL, scheme: "world", id: "anyone" };

impl<'a> Acl<'a> {
    pub fn decode(reader: &mut Reader<'a>) -> Result<Acl<'a>, JuteError> {
        Ok(Acl { perms: reader.int()?, scheme: reader.text()?, id: reader.text()? })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.perms);
        writer.string(self.scheme);
        writer.string(self.id);
    }
}

/// What a watch reports: sent with xid -1, its zxid in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchEvent<'a> {
    /// A kind of [`super::event`].
    pub kind: i32,
    pub state: i32,
    pub path: &'a str,
}

impl<'a> WatchEvent<'a> {
    pub fn decode(reader: &mut Reader<'a>) -> Result<WatchEvent<'a>, JuteError> {
        Ok(WatchEvent { kind: reader.int()?, state: reader.int()?, path: reader.path()? })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.kind);
        writer.int(self.state);
        writer.string(self.path);
    }
}

/// What precedes each operation and each result of a multi, and ends both lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiHeader {
    pub operation: i32,
    pub done: bool,
    pub error: i32,
}

impl MultiHeader {
    /// Ends a list.
    pub const END: MultiHeader = MultiHeader { operation: -1, done: true, error: -1 };

    pub fn decode(reader: &mut Reader<'_>) -> Result<MultiHeader, JuteError> {
        Ok(MultiHeader { operation: reader.int()?, done: reader.boolean()?, error: reader.int()? })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.operation);
        writer.boolean(self.done);
        writer.int(self.error);
    }
}
