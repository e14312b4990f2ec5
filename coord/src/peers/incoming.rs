//! A stream that another replica dialled: greeted, then only received from.

use std::net::SocketAddr;

use mio::net::TcpStream;

use super::admission::Admission;
use super::hello::{self, HELLO_SIZE, Hello, HelloAnswer};
use crate::socket::{self, Cut, Inbox, Received};

/// Milliseconds of silence after which a stream is closed. Its sender sends at least an empty frame each
/// second.
const SILENCE_MS_MAX: u64 = 10_000;
/// Milliseconds that a new stream has for its hello.
const GREETING_MS: u64 = 5000;

/// A stream that was dialled to us; see the module.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: TcpStream,
    pub(super) address: SocketAddr,
    /// Id of the peer, once it is accepted.
    pub(super) peer: Option<u64>,
    /// True if the socket has news.
    pub(super) ready: bool,
    inbox: Inbox,
    deadline_ms: u64,
}

impl Incoming {
    pub(super) fn new(now_ms: u64, stream: TcpStream, address: SocketAddr) -> Incoming {
        Incoming {
            stream,
            address,
            peer: None,
            ready: false,
            inbox: Inbox::default(),
            deadline_ms: now_ms + GREETING_MS,
        }
    }

    /// Returns the time at which the stream has been silent for too long.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// Receives once and hands each message to `handle`. True if more may wait.
    ///
    /// # Errors
    /// The reason that the stream must be closed.
    pub(super) fn receive(
        &mut self,
        now_ms: u64,
        shared: &mut [u8],
        admission: &mut Admission,
        handle: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<bool, String> {
        let mut outcome = Ok(());
        let (stream, peer) = (&self.stream, &mut self.peer);
        let received = self.inbox.receive(stream, shared, |bytes| {
            match cut(bytes, peer, |hello| greet(stream, admission, hello), handle) {
                Ok(done) => done,
                Err(why) => {
                    outcome = Err(why);
                    Cut { consumed: bytes.len(), needed: 0 }
                }
            }
        });
        outcome?;
        match received.map_err(|error| error.to_string())? {
            Received::Nothing => Ok(false),
            Received::End => Err("closed by the other side".into()),
            Received::Bytes { more, .. } => {
                if self.peer.is_some() {
                    self.deadline_ms = now_ms + SILENCE_MS_MAX;
                }
                Ok(more)
            }
        }
    }
}

/// Takes the hello if it has not come yet, then frames.
fn cut(
    bytes: &[u8],
    peer: &mut Option<u64>,
    greet: impl FnOnce(&[u8; HELLO_SIZE]) -> Result<u64, String>,
    handle: &mut dyn FnMut(u64, &[u8]),
) -> Result<Cut, String> {
    let mut start = 0;
    let sender = match *peer {
        Some(sender) => sender,
        None => {
            let Some(hello) = bytes.first_chunk() else {
                return Ok(Cut { consumed: 0, needed: HELLO_SIZE });
            };
            start = HELLO_SIZE;
            *peer.insert(greet(hello)?)
        }
    };
    let done = hello::unframe(&bytes[start..], |message| handle(sender, message))?;
    Ok(Cut { consumed: start + done.consumed, needed: done.needed })
}

/// Answers a hello. Returns the id of an accepted sender.
fn greet(
    stream: &TcpStream,
    admission: &mut Admission,
    bytes: &[u8; HELLO_SIZE],
) -> Result<u64, String> {
    let judged = Hello::decode(bytes).and_then(|hello| {
        admission.judge(&hello)?;
        Ok(hello.sender)
    });
    let answer = HelloAnswer {
        // This comes after the judgement, because that gives a joining replica its ensemble.
        hello: admission.hello(judged.as_ref().copied().unwrap_or_default()),
        refusal: judged.as_ref().err().cloned(),
    };
    let answer = answer.encode();
    match socket::send(stream, &answer) {
        Ok(sent) if sent == answer.len() => judged,
        // A new socket has room for this, so the other side is not a replica of ours.
        Ok(_) => Err("does not take our answer".into()),
        Err(error) => Err(error.to_string()),
    }
}
