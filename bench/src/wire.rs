//! The protocols the load generator speaks, as pure functions between requests and bytes.
//!
//! Owns the [`Wire`] trait; each protocol has a file of its own. A wire never holds the state of a
//! connection: where a reply has several pieces, the `Stage` says which one comes next. A wire checks
//! status and framing; [`crate::load`] checks lengths, order and content, for all wires alike.

use anyhow::{Result, bail};

mod http;
mod memcached;
mod millrace;
mod redis;

pub use http::Http;
pub use memcached::Memcached;
pub use millrace::{FileRanges, Millrace};
pub use redis::Redis;

use crate::address::Stream;
use crate::content::ObjectSet;

/// Longest protocol part of a reply in bytes. Derived: a Millrace header and its longest body.
pub const HEAD_LENGTH_MAX: usize =
    millrace_proto::HEADER_SIZE + millrace_proto::frame::BODY_LENGTH_MAX as usize;

/// Most reads in one batched request. Derived: the ranges of a `ReadMany`.
pub const BATCH_MAX: usize = millrace_proto::message::RANGES_MAX;

/// One piece of a reply: protocol bytes, then perhaps payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Protocol bytes to pass over.
    pub head: usize,
    /// Length of the payload behind them in bytes, if this piece has one.
    pub payload: Option<usize>,
    /// Which key of a batched request this answers, from 0.
    pub part: usize,
    /// The slot of the request, or `None` where [`Wire::IN_ORDER`].
    pub slot: Option<u32>,
    /// True if the request is answered after this piece, given that all its parts are.
    pub done: bool,
}

/// A protocol.
pub trait Wire {
    /// Position within a reply, one per connection.
    type Stage: Default;
    /// True if replies come in the order of requests; else a [`Step`] names its slot.
    const IN_ORDER: bool;

    /// Prepares a new connection, still blocking, for requests.
    ///
    /// # Errors
    /// If the server does not speak this protocol.
    fn greet(&mut self, _stream: &mut Stream) -> Result<()> {
        Ok(())
    }

    /// Appends one request for `keys`, one or as many as the wire was made for.
    fn encode(&mut self, slot: u32, keys: &[u64], out: &mut Vec<u8>);

    /// Returns the length in bytes that the reply for `key` must have.
    fn length(&self, key: u64) -> usize;

    /// Reads the next piece at the start of `bytes`, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the server reports an error or the bytes are not of this protocol.
    fn step(&self, stage: &mut Self::Stage, bytes: &[u8]) -> Result<Option<Step>>;

    /// Compares a payload with the checksums in its head, if the protocol has any.
    ///
    /// # Errors
    /// If they do not match.
    fn verify(&self, _key: u64, _head: &[u8], _payload: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Returns how many addresses keys are divided among; connection `i` goes to lane `i % lanes`.
    fn lanes(&self) -> usize {
        1
    }

    /// Returns the lane of a key.
    fn lane(&self, _key: u64) -> usize {
        0
    }
}

/// Requests of a text protocol, encoded before the clock starts: `prefix item.. suffix`.
struct Texts {
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    items: Vec<u8>,
    /// End of each item in `items`.
    ends: Vec<u32>,
}

impl Texts {
    fn new(
        set: &ObjectSet,
        prefix: impl Into<Vec<u8>>,
        suffix: impl Into<Vec<u8>>,
        item: impl Fn(u64) -> String,
    ) -> Texts {
        let mut texts = Texts {
            prefix: prefix.into(),
            suffix: suffix.into(),
            items: Vec::new(),
            ends: Vec::with_capacity(set.count as usize),
        };
        for index in 0..set.count {
            texts.items.extend_from_slice(item(index).as_bytes());
            texts.ends.push(texts.items.len() as u32);
        }
        texts
    }

    #[inline]
    fn encode(&self, keys: &[u64], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        for &key in keys {
            let end = self.ends[key as usize] as usize;
            let start = match key.checked_sub(1) {
                Some(before) => self.ends[before as usize] as usize,
                None => 0,
            };
            out.extend_from_slice(&self.items[start..end]);
        }
        out.extend_from_slice(&self.suffix);
    }
}

/// Returns the first line of `bytes` without its CR LF, or `None` if the line is not complete.
///
/// # Errors
/// If no line ends within 512 bytes.
#[inline]
fn line(bytes: &[u8]) -> Result<Option<&[u8]>> {
    const LINE_LENGTH_MAX: usize = 512;
    let window = &bytes[..bytes.len().min(LINE_LENGTH_MAX)];
    match window.iter().position(|&byte| byte == b'\n') {
        Some(end) if end > 0 && window[end - 1] == b'\r' => Ok(Some(&window[..end - 1])),
        None if window.len() < LINE_LENGTH_MAX => Ok(None),
        _ => bail!("the reply is not made of lines: {:?}", preview(bytes)),
    }
}

/// Reads a decimal number.
#[inline]
fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0_usize, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + usize::from(digit - b'0'))
    })
}

/// Returns the start of a reply for an error message.
fn preview(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

/// Returns whether `bytes` starts with `expected`, or `None` if it is too short to say.
#[inline]
fn starts(bytes: &[u8], expected: &[u8]) -> Option<bool> {
    let length = bytes.len().min(expected.len());
    if bytes[..length] != expected[..length] {
        Some(false)
    } else if length == expected.len() {
        Some(true)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
