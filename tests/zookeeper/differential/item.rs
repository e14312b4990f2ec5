//! What a server said, taken apart: a list of named fields for each reply, event and handshake.
//!
//! Owns the layout of replies. Differences that are allowed between two servers are left to `compare`: a
//! field only knows what kind of value it holds. Names of children are sorted here, because their order
//! is not specified.

use std::fmt;

use millrace_proto::zookeeper::{
    Acl, ConnectResponse, JuteError, MultiHeader, Reader, ReplyHeader, Stat, opcode, xid,
};

/// Most bytes of a value that are printed.
const SHOWN_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(i64),
    /// The zxid of a transaction. Equal by rank: the servers count differently, in the same order.
    Zxid(i64),
    /// The last zxid that the server applied, in the header of a reply.
    LastZxid(i64),
    /// The zxid of a watch event: see `exceptions`.
    EventZxid(i64),
    /// Milliseconds since 1970, of the transaction `zxid`.
    Time {
        zxid: i64,
        ms: i64,
    },
    /// Equal by the client that got it.
    Session(i64),
    Bytes(Option<Vec<u8>>),
    Names(Vec<Vec<u8>>),
    /// Permissions, scheme, id.
    Acl(Vec<(i32, String, String)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An answer to the handshake.
    Connected,
    /// An answer to the operation of this code.
    Reply(i32),
    Event,
    /// The server closed the connection.
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) fields: Vec<Field>,
    /// Which operation of a burst it answers, by position.
    pub(crate) answers: Option<usize>,
}

impl Item {
    pub(crate) const CLOSED: Item = Item { kind: Kind::Closed, fields: Vec::new(), answers: None };

    /// Takes a frame apart; if it is a reply, it answers operation `code`.
    pub(crate) fn decode(frame: &[u8], code: i32) -> Item {
        let mut fields = Fields(Vec::new());
        let mut reader = Reader::new(frame);
        let Ok(header) = ReplyHeader::decode(&mut reader) else {
            fields.bytes("undecodable header", Some(frame));
            return fields.item(Kind::Reply(opcode::ERROR));
        };
        fields.number("xid", header.xid);
        let kind = if header.xid == xid::NOTIFICATION {
            fields.push("event zxid", Value::EventZxid(header.zxid));
            Kind::Event
        } else {
            fields.push("zxid", Value::LastZxid(header.zxid));
            Kind::Reply(code)
        };
        fields.number("error", header.error);
        let before = (fields.0.len(), reader);
        let outcome = match kind {
            Kind::Event => fields.event(&mut reader),
            Kind::Reply(code) if header.error == 0 => fields.body(code, &mut reader),
            _ => Ok(()),
        };
        if outcome.is_err() {
            fields.0.truncate(before.0);
            reader = before.1;
        }
        if !reader.rest().is_empty() {
            fields.bytes("unexpected bytes", Some(reader.rest()));
        }
        fields.item(kind)
    }

    /// Takes the answer to a handshake apart. The password is random and left out.
    pub(crate) fn connected(frame: &[u8]) -> (Item, Option<ConnectResponse>) {
        let mut fields = Fields(Vec::new());
        let response = ConnectResponse::decode(frame).ok();
        match &response {
            Some(response) => {
                fields.number("timeout_ms", response.timeout_ms);
                fields.push("session", Value::Session(response.session));
                let is_zero = response.password.iter().all(|byte| *byte == 0);
                fields.number("password is zero", i32::from(is_zero));
                fields.number("read only", response.read_only.map_or(-1, i32::from));
                fields.number("size", frame.len() as i32);
            }
            None => fields.bytes("undecodable handshake", Some(frame)),
        }
        (fields.item(Kind::Connected), response)
    }

    /// Returns the values of fields of this name that are numbers.
    pub(crate) fn numbers(&self, name: &str) -> impl Iterator<Item = i64> {
        self.fields.iter().filter(move |field| field.name == name).filter_map(|field| {
            match field.value {
                Value::Number(number) | Value::Zxid(number) | Value::LastZxid(number) => {
                    Some(number)
                }
                _ => None,
            }
        })
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.numbers(name).next()
    }

    /// Returns the code of the error, if this is a reply.
    pub(crate) fn error(&self) -> Option<i64> {
        matches!(self.kind, Kind::Reply(_)).then(|| self.number("error")).flatten()
    }

    /// Returns all values of fields of this name that are bytes, as text.
    pub(crate) fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(move |field| field.name == name).filter_map(|field| {
            let Value::Bytes(Some(bytes)) = &field.value else { return None };
            std::str::from_utf8(bytes).ok()
        })
    }

    pub(crate) fn names(&self) -> &[Vec<u8>] {
        let names = self.fields.iter().find_map(|field| match &field.value {
            Value::Names(names) => Some(names.as_slice()),
            _ => None,
        });
        names.unwrap_or_default()
    }
}

/// Fields as they are read.
struct Fields(Vec<Field>);

impl Fields {
    fn item(self, kind: Kind) -> Item {
        Item { kind, fields: self.0, answers: None }
    }

    fn push(&mut self, name: &'static str, value: Value) {
        self.0.push(Field { name, value });
    }

    fn number(&mut self, name: &'static str, number: i32) {
        self.push(name, Value::Number(i64::from(number)));
    }

    fn bytes(&mut self, name: &'static str, bytes: Option<&[u8]>) {
        self.push(name, Value::Bytes(bytes.map(<[u8]>::to_vec)));
    }

    fn event(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        self.number("type", reader.int()?);
        self.number("state", reader.int()?);
        self.bytes("path", reader.buffer()?);
        Ok(())
    }

    /// Reads the record that answers operation `code`.
    fn body(&mut self, code: i32, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        match code {
            opcode::CREATE | opcode::SYNC => self.bytes("path", reader.buffer()?),
            opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => {
                self.bytes("path", reader.buffer()?);
                self.stat(reader)?;
            }
            opcode::EXISTS | opcode::SET_DATA | opcode::SET_ACL => self.stat(reader)?,
            opcode::GET_DATA | opcode::RECONFIG => {
                self.bytes("data", reader.buffer()?);
                self.stat(reader)?;
            }
            opcode::GET_ACL => {
                self.acl(reader)?;
                self.stat(reader)?;
            }
            opcode::GET_CHILDREN | opcode::GET_EPHEMERALS => self.names(reader)?,
            opcode::GET_CHILDREN2 => {
                self.names(reader)?;
                self.stat(reader)?;
            }
            opcode::MULTI | opcode::MULTI_READ => self.results(reader)?,
            opcode::SASL => self.bytes("token", reader.buffer()?),
            opcode::GET_ALL_CHILDREN_NUMBER => self.number("descendants", reader.int()?),
            opcode::ADD_WATCH => self.number("add watch error", reader.int()?),
            opcode::WHO_AM_I => self.who_am_i(reader)?,
            _ => {}
        }
        Ok(())
    }

    fn results(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        loop {
            let header = MultiHeader::decode(reader)?;
            self.number("result", header.operation);
            self.number("result done", i32::from(header.done));
            self.number("result header error", header.error);
            if header.done {
                return Ok(());
            }
            if header.operation == opcode::ERROR {
                self.number("result error", reader.int()?);
            } else {
                self.body(header.operation, reader)?;
            }
        }
    }

    fn stat(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        let stat = Stat::decode(reader)?;
        self.push("czxid", Value::Zxid(stat.czxid));
        self.push("mzxid", Value::Zxid(stat.mzxid));
        self.push("ctime", Value::Time { zxid: stat.czxid, ms: stat.ctime });
        self.push("mtime", Value::Time { zxid: stat.mzxid, ms: stat.mtime });
        self.number("version", stat.version);
        self.number("cversion", stat.cversion);
        self.number("aversion", stat.aversion);
        self.push("ephemeralOwner", Value::Session(stat.ephemeral_owner));
        self.number("dataLength", stat.data_length);
        self.number("numChildren", stat.child_count);
        self.push("pzxid", Value::Zxid(stat.pzxid));
        Ok(())
    }

    fn names(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        let names = reader.list(|reader| reader.buffer().map(|name| name.map(<[u8]>::to_vec)))?;
        self.number("names are null", i32::from(names.is_none()));
        let mut names: Vec<Vec<u8>> = names.unwrap_or_default().into_iter().flatten().collect();
        names.sort_unstable();
        self.push("names", Value::Names(names));
        Ok(())
    }

    fn acl(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        let acl = reader.list(Acl::decode)?;
        self.number("acl is null", i32::from(acl.is_none()));
        let entry = |acl: Acl<'_>| (acl.perms, acl.scheme.to_owned(), acl.id.to_owned());
        let entries = acl.unwrap_or_default().into_iter().map(entry).collect();
        self.push("acl", Value::Acl(entries));
        Ok(())
    }

    /// Reads schemes and users of the connection: a set, so sorted.
    fn who_am_i(&mut self, reader: &mut Reader<'_>) -> Result<(), JuteError> {
        let list = reader.list(|reader| Ok((reader.string()?, reader.string()?)))?;
        self.number("list is null", i32::from(list.is_none()));
        let entry = |(scheme, user)| format!("{scheme:?} {user:?}").into_bytes();
        let mut names: Vec<Vec<u8>> = list.unwrap_or_default().into_iter().map(entry).collect();
        names.sort_unstable();
        self.push("who", Value::Names(names));
        Ok(())
    }
}

/// Returns bytes as text with escapes, cut when long.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let rest = bytes.len() - shown.len();
    let more = if rest > 0 { format!(".. and {rest} bytes") } else { String::new() };
    format!("\"{}\"{more}", shown.escape_ascii())
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Zxid(zxid) | Value::LastZxid(zxid) | Value::EventZxid(zxid) => {
                write!(f, "z{zxid}")
            }
            Value::Time { ms, .. } => write!(f, "{ms}ms"),
            Value::Session(id) => write!(f, "{id:#x}"),
            Value::Bytes(None) => write!(f, "null"),
            Value::Bytes(Some(bytes)) => write!(f, "{}", escaped(bytes)),
            Value::Names(names) => {
                let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
                write!(f, "[{}]", names.join(" "))
            }
            Value::Acl(entries) => write!(f, "{entries:?}"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        for field in &self.fields {
            write!(f, " {}={}", field.name, field.value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
