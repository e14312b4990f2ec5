//! etcd's v3 API: gRPC calls of the service `KV`, in the protocol buffers of `rpc.proto`.
//!
//! Owns which call stands for which operation. A create is a transaction that compares the key's
//! create revision with 0, so that it is refused where the key exists, as ZooKeeper's is; a set is
//! a plain put. Reads are serializable: the replica that is asked answers from its own state, as
//! ZooKeeper's and ours do.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use http::Uri;

use super::http2::Http2;
use super::{Exchange, Outcome, Refusal};
use crate::coord::operation::{Action, Operation, Values};

/// The calls that are made.
const CALLS: [&str; 4] = ["Range", "Put", "DeleteRange", "Txn"];

/// One connection's state.
pub(crate) struct Etcd {
    http: Http2,
    /// Of each call, in the order of [`CALLS`].
    uris: [Uri; CALLS.len()],
    path: String,
}

impl Etcd {
    pub(super) fn new(address: SocketAddr) -> Etcd {
        let uri = |call| format!("http://{address}/etcdserverpb.KV/{call}").parse();
        let uris = CALLS.map(|call| uri(call).expect("an address and a name make a URI"));
        Etcd { http: Http2::new(), uris, path: String::new() }
    }

    pub(super) fn settle(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.http.pump(out)
    }

    pub(super) fn has_room(&mut self) -> bool {
        self.http.has_room()
    }

    pub(super) fn request(
        &mut self,
        number: u64,
        operation: Operation,
        values: &Values,
    ) -> Result<()> {
        let key = operation.key.path(&mut self.path).as_bytes();
        let value = values.of(operation.key);
        let call = match operation.action {
            Action::Get => 0,
            Action::Set => 1,
            Action::Delete => 2,
            Action::Create => 3,
        };
        self.http.call(number, self.uris[call].clone(), |out| match operation.action {
            Action::Get => {
                bytes_field(out, 1, key);
                number_field(out, 7, 1); // serializable
            }
            Action::Set => put(out, key, value),
            Action::Delete => bytes_field(out, 1, key),
            Action::Create => create(out, key, value),
        })
    }

    pub(super) fn receive(&mut self, bytes: &[u8], exchange: &mut Exchange<'_>) -> Result<usize> {
        let Exchange { values, pending, out, done } = exchange;
        self.http.receive(bytes, out, |reply| {
            let operation = pending.get(reply.number)?.operation;
            let outcome = match reply.status {
                0 => judge(operation, &reply.message, values)
                    .with_context(|| format!("judge the reply to {operation:?}"))?,
                status => Err(Refusal(status)),
            };
            done(pending.take(reply.number)?, outcome);
            Ok(())
        })?;
        Ok(bytes.len())
    }
}

/// Appends a `PutRequest`.
fn put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    bytes_field(out, 1, key);
    bytes_field(out, 2, value);
}

/// Appends a `TxnRequest`: if the key was never created, put it.
fn create(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    nested(out, 1, |compare| {
        number_field(compare, 1, 0); // EQUAL
        number_field(compare, 2, 1); // CREATE
        bytes_field(compare, 3, key);
        number_field(compare, 5, 0); // create_revision
    });
    nested(out, 2, |operation| nested(operation, 2, |request| put(request, key, value)));
}

/// Compares a reply with the only one that is right.
fn judge(operation: Operation, message: &[u8], values: &Values) -> Result<Outcome> {
    let is_set = |number| match field(message, number) {
        Ok(Some(Field::Number(value))) => Ok(value != 0),
        Ok(Some(Field::Bytes(_))) => bail!("field {number} is not a number"),
        Ok(None) => Ok(false),
        Err(error) => Err(error),
    };
    Ok(match operation.action {
        Action::Set => {
            ensure!(field(message, 1)?.is_some(), "the reply has no header");
            Ok(())
        }
        Action::Create if is_set(2)? => Ok(()),
        Action::Create => Err(Refusal::NODE_EXISTS),
        Action::Delete if is_set(2)? => Ok(()),
        Action::Delete => Err(Refusal::NO_NODE),
        Action::Get => match field(message, 2)? {
            None => Err(Refusal::NO_NODE),
            Some(Field::Number(_)) => bail!("field 2 is not a message"),
            Some(Field::Bytes(pair)) => {
                let expected = Some(Field::Bytes(values.of(operation.key)));
                ensure!(field(pair, 5)? == expected, "the value is another one");
                Ok(())
            }
        },
    })
}

/// A field of a message of protocol buffers.
#[derive(Debug, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Returns the first field of this number, if the message has one.
fn field(message: &[u8], number: u64) -> Result<Option<Field<'_>>> {
    let mut rest = message;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?)?;
                let (bytes, behind) =
                    rest.split_at_checked(length).context("a message ends too early")?;
                rest = behind;
                Field::Bytes(bytes)
            }
            wire_type => bail!("a field of wire type {wire_type}, which etcd does not use here"),
        };
        if tag >> 3 == number {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, behind) = rest.split_first().context("a message ends too early")?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number has more than 64 bits")
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number_field(out: &mut Vec<u8>, number: u64, value: u64) {
    write_varint(out, number << 3);
    write_varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    write_varint(out, number << 3 | 2);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field that is a message itself; its length is put before it when it is known.
fn nested(out: &mut Vec<u8>, number: u64, write: impl FnOnce(&mut Vec<u8>)) {
    write_varint(out, number << 3 | 2);
    let start = out.len();
    write(out);
    let body = out.len();
    write_varint(out, (body - start) as u64);
    let length = out.len() - body;
    out[start..].rotate_right(length);
}
