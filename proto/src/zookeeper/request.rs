//! Every request a client may send, read in place and written.

use super::jute::{JuteError, Reader, Writer};
use super::opcode;
use super::record::{Acl, MultiHeader};

/// Which of the four creates was asked for: they differ in their record and their reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateKind {
    /// Answers with the path alone.
    Create,
    /// Answers with path and Stat, as do those below.
    Create2,
    Container,
    /// Carries a time to live.
    Ttl,
}

/// A request without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    Create {
        kind: CreateKind,
        path: &'a str,
        data: Option<&'a [u8]>,
        /// `None` and empty are both refused, by the state machine.
        acl: Option<Vec<Acl<'a>>>,
        /// A code of [`super::create_mode`], unchecked.
        flags: i32,
        /// Milliseconds; 0 where the record has none.
        ttl_ms: i64,
    },
    Delete {
        path: &'a str,
        version: i32,
    },
    Exists {
        path: &'a str,
        watch: bool,
    },
    GetData {
        path: &'a str,
        watch: bool,
    },
    SetData {
        path: &'a str,
        data: Option<&'a [u8]>,
        version: i32,
    },
    GetAcl {
        path: &'a str,
    },
    SetAcl {
        path: &'a str,
        acl: Option<Vec<Acl<'a>>>,
        version: i32,
    },
    GetChildren {
        path: &'a str,
        watch: bool,
    },
    /// Children with the parent's Stat.
    GetChildren2 {
        path: &'a str,
        watch: bool,
    },
    Sync {
        path: &'a str,
    },
    Ping,
    /// Stands in a multi only.
    Check {
        path: &'a str,
        version: i32,
    },
    Multi(Vec<Request<'a>>),
    MultiRead(Vec<Request<'a>>),
    Reconfig {
        joining: Option<&'a str>,
        leaving: Option<&'a str>,
        new_members: Option<&'a str>,
        /// Version of the configuration this replaces; -1 for any.
        config_id: i64,
    },
    CheckWatches {
        path: &'a str,
        kind: i32,
    },
    RemoveWatches {
        path: &'a str,
        kind: i32,
    },
    Auth {
        scheme: &'a str,
        auth: &'a [u8],
    },
    Sasl {
        token: &'a [u8],
    },
    /// Both records that set watches again; the older one has no last two lists.
    SetWatches {
        relative_zxid: i64,
        data: Vec<&'a str>,
        exist: Vec<&'a str>,
        child: Vec<&'a str>,
        persistent: Vec<&'a str>,
        recursive: Vec<&'a str>,
    },
    GetEphemerals {
        prefix: Option<&'a str>,
    },
    GetAllChildrenNumber {
        path: &'a str,
    },
    AddWatch {
        path: &'a str,
        mode: i32,
    },
    WhoAmI,
    CloseSession,
}

impl<'a> Request<'a> {
    /// Reads the record of operation `code`. Bytes after the record are ignored, as ZooKeeper does.
    ///
    /// # Errors
    ///
    /// [`JuteError::Operation`] for a code that no client may send, the others for a bad record.
    pub fn decode(code: i32, record: &'a [u8]) -> Result<Request<'a>, JuteError> {
        let mut reader = Reader::new(record);
        match code {
            opcode::MULTI => multi(&mut reader, is_write_of_multi).map(Request::Multi),
            opcode::MULTI_READ => multi(&mut reader, is_read_of_multi).map(Request::MultiRead),
            opcode::CHECK | opcode::DELETE_CONTAINER => Err(JuteError::Operation(code)),
            _ => simple(code, &mut reader),
        }
    }

    /// Returns the operation code. The older code is used where two have the same record.
    pub fn code(&self) -> i32 {
        match self {
            Request::Create { kind: CreateKind::Create, .. } => opcode::CREATE,
            Request::Create { kind: CreateKind::Create2, .. } => opcode::CREATE2,
            Request::Create { kind: CreateKind::Container, .. } => opcode::CREATE_CONTAINER,
            Request::Create { kind: CreateKind::Ttl, .. } => opcode::CREATE_TTL,
            Request::Delete { .. } => opcode::DELETE,
            Request::Exists { .. } => opcode::EXISTS,
            Request::GetData { .. } => opcode::GET_DATA,
            Request::SetData { .. } => opcode::SET_DATA,
            Request::GetAcl { .. } => opcode::GET_ACL,
            Request::SetAcl { .. } => opcode::SET_ACL,
            Request::GetChildren { .. } => opcode::GET_CHILDREN,
            Request::GetChildren2 { .. } => opcode::GET_CHILDREN2,
            Request::Sync { .. } => opcode::SYNC,
            Request::Ping => opcode::PING,
            Request::Check { .. } => opcode::CHECK,
            Request::Multi(_) => opcode::MULTI,
            Request::MultiRead(_) => opcode::MULTI_READ,
            Request::Reconfig { .. } => opcode::RECONFIG,
            Request::CheckWatches { .. } => opcode::CHECK_WATCHES,
            Request::RemoveWatches { .. } => opcode::REMOVE_WATCHES,
            Request::Auth { .. } => opcode::AUTH,
            Request::Sasl { .. } => opcode::SASL,
            Request::SetWatches { persistent, recursive, .. } => {
                if persistent.is_empty() && recursive.is_empty() {
                    opcode::SET_WATCHES
                } else {
                    opcode::SET_WATCHES2
                }
            }
            Request::GetEphemerals { .. } => opcode::GET_EPHEMERALS,
            Request::GetAllChildrenNumber { .. } => opcode::GET_ALL_CHILDREN_NUMBER,
            Request::AddWatch { .. } => opcode::ADD_WATCH,
            Request::WhoAmI => opcode::WHO_AM_I,
            Request::CloseSession => opcode::CLOSE_SESSION,
        }
    }

    /// Appends the record, without a header.
    pub fn encode(&self, writer: &mut Writer<'_>) {
        match self {
            Request::Create { kind, path, data, acl, flags, ttl_ms } => {
                writer.string(path);
                writer.buffer(*data);
                write_acl(writer, acl.as_deref());
                writer.int(*flags);
                if *kind == CreateKind::Ttl {
                    writer.long(*ttl_ms);
                }
            }
            Request::SetData { path, data, version } => {
                writer.string(path);
                writer.buffer(*data);
                writer.int(*version);
            }
            Request::SetAcl { path, acl, version } => {
                writer.string(path);
                write_acl(writer, acl.as_deref());
                writer.int(*version);
            }
            Request::Delete { path, version: number }
            | Request::Check { path, version: number }
            | Request::CheckWatches { path, kind: number }
            | Request::RemoveWatches { path, kind: number }
            | Request::AddWatch { path, mode: number } => {
                writer.string(path);
                writer.int(*number);
            }
            Request::Exists { path, watch }
            | Request::GetData { path, watch }
            | Request::GetChildren { path, watch }
            | Request::GetChildren2 { path, watch } => {
                writer.string(path);
                writer.boolean(*watch);
            }
            Request::GetAcl { path }
            | Request::Sync { path }
            | Request::GetAllChildrenNumber { path } => writer.string(path),
            Request::Multi(operations) | Request::MultiRead(operations) => {
                for operation in operations {
                    let operation_code = operation.code();
                    MultiHeader { operation: operation_code, done: false, error: -1 }
                        .encode(writer);
                    operation.encode(writer);
                }
                MultiHeader::END.encode(writer);
            }
            Request::Reconfig { joining, leaving, new_members, config_id } => {
                writer.optional_string(*joining);
                writer.optional_string(*leaving);
                writer.optional_string(*new_members);
                writer.long(*config_id);
            }
            Request::Auth { scheme, auth } => {
                writer.int(0);
                writer.string(scheme);
                writer.buffer(Some(auth));
            }
            Request::Sasl { token } => writer.buffer(Some(token)),
            Request::SetWatches { relative_zxid, data, exist, child, persistent, recursive } => {
                writer.long(*relative_zxid);
                let mut lists = vec![data, exist, child];
                if self.code() == opcode::SET_WATCHES2 {
                    lists.extend([persistent, recursive]);
                }
                for list in lists {
                    writer.list(list, |writer, path| writer.string(path));
                }
            }
            Request::GetEphemerals { prefix } => writer.optional_string(*prefix),
            Request::Ping | Request::WhoAmI | Request::CloseSession => {}
        }
    }
}

fn write_acl(writer: &mut Writer<'_>, acl: Option<&[Acl<'_>]>) {
    match acl {
        Some(acl) => writer.list(acl, |writer, acl| acl.encode(writer)),
        None => writer.int(-1),
    }
}

fn paths<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a str>, JuteError> {
    reader.list(|reader| reader.path())?.ok_or(JuteError::Length(-1))
}

/// True if a multi may hold this write or check.
fn is_write_of_multi(code: i32) -> bool {
    use opcode::{CHECK, CREATE, CREATE_CONTAINER, CREATE_TTL, CREATE2, DELETE, SET_DATA};
    [CREATE, CREATE2, CREATE_CONTAINER, CREATE_TTL, DELETE, SET_DATA, CHECK].contains(&code)
}

/// True if a multiRead may hold this read.
fn is_read_of_multi(code: i32) -> bool {
    code == opcode::GET_DATA || code == opcode::GET_CHILDREN
}

fn multi<'a>(
    reader: &mut Reader<'a>,
    is_allowed: fn(i32) -> bool,
) -> Result<Vec<Request<'a>>, JuteError> {
    let mut operations = Vec::new();
    loop {
        let header = MultiHeader::decode(reader)?;
        if header.done {
            return Ok(operations);
        }
        if !is_allowed(header.operation) {
            return Err(JuteError::Operation(header.operation));
        }
        operations.push(simple(header.operation, reader)?);
    }
}

/// Reads a record that holds no other requests.
fn simple<'a>(code: i32, reader: &mut Reader<'a>) -> Result<Request<'a>, JuteError> {
    Ok(match code {
        opcode::CREATE | opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => {
            let kind = match code {
                opcode::CREATE => CreateKind::Create,
                opcode::CREATE2 => CreateKind::Create2,
                opcode::CREATE_CONTAINER => CreateKind::Container,
                _ => CreateKind::Ttl,
            };
            Request::Create {
                kind,
                path: reader.path()?,
                data: reader.buffer()?,
                acl: reader.list(Acl::decode)?,
                flags: reader.int()?,
                ttl_ms: if kind == CreateKind::Ttl { reader.long()? } else { 0 },
            }
        }
        opcode::DELETE => Request::Delete { path: reader.path()?, version: reader.int()? },
        opcode::EXISTS => Request::Exists { path: reader.path()?, watch: reader.boolean()? },
        opcode::GET_DATA => Request::GetData { path: reader.path()?, watch: reader.boolean()? },
        // Null is as good as empty here: a path that no check lets pass.
        opcode::SET_DATA => Request::SetData {
            path: reader.text()?,
            data: reader.buffer()?,
            version: reader.int()?,
        },
        opcode::GET_ACL => Request::GetAcl { path: reader.path()? },
        opcode::SET_ACL => Request::SetAcl {
            path: reader.text()?,
            acl: reader.list(Acl::decode)?,
            version: reader.int()?,
        },
        opcode::GET_CHILDREN => {
            Request::GetChildren { path: reader.path()?, watch: reader.boolean()? }
        }
        opcode::GET_CHILDREN2 => {
            Request::GetChildren2 { path: reader.path()?, watch: reader.boolean()? }
        }
        opcode::SYNC => Request::Sync { path: reader.text()? },
        opcode::PING => Request::Ping,
        opcode::CHECK => Request::Check { path: reader.path()?, version: reader.int()? },
        opcode::RECONFIG => Request::Reconfig {
            joining: reader.string()?,
            leaving: reader.string()?,
            new_members: reader.string()?,
            config_id: reader.long()?,
        },
        opcode::CHECK_WATCHES => {
            Request::CheckWatches { path: reader.path()?, kind: reader.int()? }
        }
        opcode::REMOVE_WATCHES => {
            Request::RemoveWatches { path: reader.text()?, kind: reader.int()? }
        }
        opcode::AUTH => {
            let _kind = reader.int()?;
            Request::Auth { scheme: reader.text()?, auth: reader.buffer()?.unwrap_or_default() }
        }
        opcode::SASL => Request::Sasl { token: reader.buffer()?.unwrap_or_default() },
        opcode::SET_WATCHES | opcode::SET_WATCHES2 => {
            let is_second = code == opcode::SET_WATCHES2;
            Request::SetWatches {
                relative_zxid: reader.long()?,
                data: paths(reader)?,
                exist: paths(reader)?,
                child: paths(reader)?,
                persistent: if is_second { paths(reader)? } else { Vec::new() },
                recursive: if is_second { paths(reader)? } else { Vec::new() },
            }
        }
        opcode::GET_EPHEMERALS => Request::GetEphemerals { prefix: reader.string()? },
        opcode::GET_ALL_CHILDREN_NUMBER => Request::GetAllChildrenNumber { path: reader.path()? },
        opcode::ADD_WATCH => Request::AddWatch { path: reader.path()?, mode: reader.int()? },
        opcode::WHO_AM_I => Request::WhoAmI,
        opcode::CLOSE_SESSION => Request::CloseSession,
        _ => return Err(JuteError::Operation(code)),
    })
}
