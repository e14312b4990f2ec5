//! One operation as it is sent: its bytes for each server, and its form for people.

use std::fmt;

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{Request, jute, opcode};

use crate::item::escaped;

/// Most letters of a request that are printed.
const SHOWN_LETTERS_MAX: usize = 600;

/// How the server is expected to go on after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It answers in order, and may be sent more meanwhile.
    Answers,
    /// It answers out of order: it is sent nothing else meanwhile.
    AnswersAlone,
    /// It closes the connection, after an answer or without.
    Closes,
}

#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) xid: i32,
    pub(crate) code: i32,
    /// The record for the left and the right server: they differ in zxids only.
    pub(crate) records: [Vec<u8>; 2],
    pub(crate) then: Then,
    /// True if the frame has no header of a request: only `records` is sent, as it is.
    pub(crate) is_raw: bool,
}

impl Op {
    /// Returns an ordinary request.
    pub(crate) fn new(request: &Request<'_>) -> Op {
        let mut record = Vec::new();
        request.encode(&mut jute::Writer::new(&mut record));
        Op::of_record(request.code(), record)
    }

    /// Returns a request whose record may be wrong.
    pub(crate) fn of_record(code: i32, record: Vec<u8>) -> Op {
        let then = match code {
            opcode::AUTH | opcode::SASL => Then::AnswersAlone,
            opcode::CLOSE_SESSION => Then::Closes,
            _ => Then::Answers,
        };
        Op { xid: 0, code, records: [record.clone(), record], then, is_raw: false }
    }

    /// Returns bytes that are sent as they are, and after which every server closes.
    pub(crate) fn raw(bytes: Vec<u8>) -> Op {
        let records = [bytes.clone(), bytes];
        Op { xid: 0, code: opcode::ERROR, records, then: Then::Closes, is_raw: true }
    }

    /// Appends the operation as one message to the server of `side`.
    pub(crate) fn write(&self, side: usize, out: &mut Vec<u8>) {
        if self.is_raw {
            out.extend_from_slice(&self.records[side]);
            return;
        }
        jute::message(out, |writer| {
            writer.int(self.xid);
            writer.int(self.code);
            writer.raw(&self.records[side]);
        });
    }

    /// Returns the request, if its record is right.
    pub(crate) fn request(&self) -> Option<Request<'_>> {
        (!self.is_raw).then(|| Request::decode(self.code, &self.records[0]).ok()).flatten()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_raw {
            return write!(f, "bytes {}", escaped(&self.records[0]));
        }
        write!(f, "xid={} code={} ", self.xid, self.code)?;
        let Some(request) = self.request() else {
            return write!(f, "record {}", escaped(&self.records[0]));
        };
        let mut record = Vec::new();
        request.encode(&mut jute::Writer::new(&mut record));
        write!(f, "{}", told(request))?;
        if record != self.records[0] {
            write!(f, " as {}", escaped(&self.records[0]))?;
        }
        if self.records[0] != self.records[1] {
            write!(f, ", another zxid on the right")?;
        }
        Ok(())
    }
}

/// Returns a request in one short line: data as text, the usual list of access rights as `open`.
fn told(mut request: Request<'_>) -> String {
    let data = match &mut request {
        Request::Create { data, .. } | Request::SetData { data, .. } => data.take(),
        _ => None,
    };
    let open = format!("{:?}", Some([OPEN_ACL]));
    let text = format!("{request:?}").replace(&open, "open");
    let text: String = text.chars().take(SHOWN_LETTERS_MAX).collect();
    match data {
        Some(data) => text.replacen("data: None", &format!("data: {}", escaped(data)), 1),
        None => text,
    }
}
