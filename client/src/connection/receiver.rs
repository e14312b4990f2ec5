//! Bytes from the socket, cut into replies.
//!
//! ```text
//!  receive buffer, 64 KiB                                  landing of a large payload
//! ┌────────┬──────┬─────────┬────────┬──────┬───────┐     ┌───────┬──────────────────┐
//! │ header │ body │ payload │ header │ body │ ahead │ ──► │ ahead │ read straight in │
//! └────────┴──────┴─────────┴────────┴──────┴───────┘     └───────┴──────────────────┘
//!           slices, no copy                  copied once
//! ```
//!
//! Always holds: no payload byte is buffered twice; nothing is trusted before its checksum or limit was
//! judged; the buffer never grows beyond one frame without a large payload. A slice keeps its 64 KiB
//! receive buffer alive, so a caller that keeps small payloads for long should copy them.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_proto::frame::BODY_LENGTH_MAX;
use millrace_proto::{FrameError, HEADER_SIZE, Header, frame};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::in_flight::{InFlight, Want};
use super::{Landed, Landing};
use crate::error::Error;

/// Size of the receive buffer in bytes. Guessed: sixteen 4 KiB replies a read.
const BUFFER_SIZE: usize = 64 << 10;
/// Largest payload in bytes that is always left in the receive buffer. Guessed: above it one copy of
/// what was read ahead costs less than keeping 64 KiB alive.
const SLICE_SIZE_MAX: usize = 16 << 10;
/// A read with less spare room than this in bytes is not worth its system call.
const SPARE_SIZE_MIN: usize = 8 << 10;

const _: () = assert!(SLICE_SIZE_MAX + SPARE_SIZE_MIN < BUFFER_SIZE);

/// A payload that comes in straight from the socket.
#[derive(Debug)]
struct Fill {
    header: Header,
    body: Bytes,
    destination: BytesMut,
    /// Bytes still to come, at least 1.
    remaining: usize,
    /// True if the destination is the caller's.
    is_lent: bool,
}

#[derive(Debug)]
enum State {
    Head,
    Fill(Fill),
    /// Payload bytes that no caller waits for.
    Skip(usize),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: BytesMut,
    state: State,
    /// Bytes the buffer has to hold for the next step.
    need: usize,
}

impl Receiver {
    pub(super) fn new() -> Receiver {
        Receiver {
            buffer: BytesMut::with_capacity(BUFFER_SIZE),
            state: State::Head,
            need: HEADER_SIZE,
        }
    }

    /// Reads once, to where the next bytes belong. 0 means that the peer has closed. Dropping the
    /// future loses nothing.
    pub(super) async fn read<R>(&mut self, reader: &mut R) -> io::Result<usize>
    where
        R: AsyncRead + Unpin,
    {
        if let State::Fill(fill) = &mut self.state {
            let mut target = (&mut fill.destination).limit(fill.remaining);
            let count = reader.read_buf(&mut target).await?;
            fill.remaining -= count;
            return Ok(count);
        }
        let missing = self.need.saturating_sub(self.buffer.len());
        if self.buffer.capacity() - self.buffer.len() < missing.max(SPARE_SIZE_MIN) {
            // Moves the rest to the front when no slice is alive, else starts a new buffer.
            self.buffer.reserve(missing.max(BUFFER_SIZE.saturating_sub(self.buffer.len())));
        }
        reader.read_buf(&mut self.buffer).await
    }

    /// Answers every request whose reply is complete.
    ///
    /// # Errors
    /// [`Error::Protocol`]: the stream cannot be trusted any more.
    pub(super) fn advance(&mut self, in_flight: &mut InFlight) -> Result<(), Error> {
        loop {
            match std::mem::replace(&mut self.state, State::Head) {
                State::Fill(fill) if fill.remaining > 0 => {
                    self.state = State::Fill(fill);
                    return Ok(());
                }
                State::Fill(fill) => {
                    let landed = if fill.is_lent {
                        Landed::Buffer(fill.destination)
                    } else {
                        Landed::Slice(fill.destination.freeze())
                    };
                    in_flight.answer(fill.header, fill.body, landed);
                }
                State::Skip(count) => {
                    let here = count.min(self.buffer.len());
                    self.buffer.advance(here);
                    if here < count {
                        self.state = State::Skip(count - here);
                        self.need = 1;
                        return Ok(());
                    }
                }
                State::Head => {
                    if !self.next_reply(in_flight)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Begins with the next reply; returns false if more bytes are needed first.
    fn next_reply(&mut self, in_flight: &mut InFlight) -> Result<bool, Error> {
        self.need = HEADER_SIZE;
        let Some(head) = self.buffer.first_chunk() else {
            return Ok(false);
        };
        let header = Header::decode(head)?;
        header.check_lengths(BODY_LENGTH_MAX, frame::PAYLOAD_LENGTH_MAX)?;
        let payload_length = header.payload_length as usize;
        let body_end = HEADER_SIZE + header.body_length as usize;
        let want = in_flight.want(&header)?;
        let is_small = want == Want::Any && payload_length <= SLICE_SIZE_MAX;
        self.need = body_end + if is_small { payload_length } else { 0 };
        if self.buffer.len() < self.need {
            return Ok(false);
        }
        let Some(body) = self.buffer.get(HEADER_SIZE..body_end) else {
            return Err(FrameError::BadBody.into());
        };
        header.check_body(body)?;
        let is_here = want == Want::Any && self.buffer.len() - body_end >= payload_length;
        if is_here {
            self.buffer.advance(HEADER_SIZE);
            let body = self.buffer.split_to(body_end - HEADER_SIZE).freeze();
            let payload = self.buffer.split_to(payload_length).freeze();
            in_flight.answer(header, body, Landed::Slice(payload));
            return Ok(true);
        }
        // A copy of these few bytes leaves the buffer without slices, so that it is used again.
        let body = Bytes::copy_from_slice(body);
        self.buffer.advance(body_end);
        if want == Want::Nothing {
            in_flight.answer(header, body, Landed::Slice(Bytes::new()));
            self.state = State::Skip(payload_length);
            return Ok(true);
        }
        let (mut destination, is_lent) = match in_flight.take_landing(&header) {
            Some(Landing::Buffer(buffer)) => (buffer, true),
            _ => (BytesMut::with_capacity(payload_length), false),
        };
        let ahead = payload_length.min(self.buffer.len());
        destination.extend_from_slice(&self.buffer[..ahead]);
        self.buffer.advance(ahead);
        self.state = State::Fill(Fill {
            header,
            body,
            destination,
            remaining: payload_length - ahead,
            is_lent,
        });
        Ok(true)
    }

    /// Gives the landing of a half received payload back, at the end of the connection.
    pub(super) fn abandon(self, in_flight: &mut InFlight) {
        if let State::Fill(fill) = self.state {
            let landing = if fill.is_lent {
                let mut buffer = fill.destination;
                buffer.clear();
                Landing::Buffer(buffer)
            } else {
                Landing::Any
            };
            in_flight.put_back(&fill.header, landing);
        }
    }
}

#[cfg(test)]
mod tests;
