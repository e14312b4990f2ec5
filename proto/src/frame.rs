//! The frame header: 40 bytes before every message, read in place from the receive buffer.
//!
//! ```text
//!  byte  0        4   5   6      8      10     12          16          20          24
//!       ┌────────┬───┬───┬──────┬──────┬──────┬───────────┬───────────┬───────────┐
//!       │ magic  │ver│op │flags │status│ part │ body_len  │payload_len│ budget_ms │
//!       ├────────┴───┴───┴──────┼──────┴──────┴┬──────────┴┬──────────┴───────────┘
//!    24 │ request_id            │ body_checksum│hdr_checksum│ 40
//!       └───────────────────────┴──────────────┴────────────┘
//! ```
//!
//! All numbers are little-endian and unaligned. `header_checksum` is the CRC-32 (ISO-HDLC, the one of
//! zlib) of bytes 0..36, `body_checksum` that of the body. The header is trusted before its body
//! arrives, and since it carries the body's checksum one flipped bit in either is found. Payload bytes
//! are covered by the checksums in the body of a `Read` reply (see [`crate::checksum`]).

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Failure, Panic};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::{Archive, Portable, Serialize};

use crate::op::Op;
use crate::status::Status;

/// Size of the header in bytes; the same in every protocol version.
pub const HEADER_SIZE: usize = 40;
/// First four bytes of every frame: `MILR`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"MILR");
/// Largest body in bytes, of a request or a reply, that any implementation has to accept.
pub const BODY_LENGTH_MAX: u32 = 64 << 10;
/// Largest payload in bytes of one frame. Derived: the largest block a node may be configured with.
pub const PAYLOAD_LENGTH_MAX: u32 = 16 << 20;

/// The header as a plain value. See the module for the layout on the wire.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// Protocol version of the body, [`crate::VERSION`].
    pub version: u8,
    /// Operation, see [`Op`]. A reply repeats the op of its request.
    pub op: u8,
    /// Bit 0: this frame is a reply. Bit 1: its checksums of payload cover the identity of the block.
    /// Bit 2: a reply to `List` that leaves names out.
    /// Other bits are zero; a receiver ignores those it does not know.
    pub flags: u16,
    /// Status of a reply, see [`Status`]; zero in a request.
    pub status: u16,
    /// In a `ReadMany` reply the index of the range it answers, from 0, or [`PART_ALL`]; otherwise zero.
    pub part: u16,
    /// Length of the body in bytes, at most [`BODY_LENGTH_MAX`].
    pub body_length: u32,
    /// Length of the payload in bytes, at most [`PAYLOAD_LENGTH_MAX`]; zero in a request.
    pub payload_length: u32,
    /// Request: milliseconds from receipt after which the answer is of no use, 0 for no limit.
    /// Reply with [`Status::Busy`]: milliseconds to wait before trying again.
    pub budget_ms: u32,
    /// Chosen by the client, repeated in the reply. Unique among its requests in flight.
    pub request_id: u64,
    /// CRC-32 of the body; 0 when there is none.
    pub body_checksum: u32,
    /// CRC-32 of header bytes 0..36.
    pub header_checksum: u32,
}

const _: () = assert!(size_of::<ArchivedHeader>() == HEADER_SIZE);
const _: () = assert!(align_of::<ArchivedHeader>() == 1);
const _: () = assert!(std::mem::offset_of!(ArchivedHeader, status) == 8);
const _: () = assert!(std::mem::offset_of!(ArchivedHeader, payload_length) == 16);
const _: () = assert!(std::mem::offset_of!(ArchivedHeader, request_id) == 24);
const _: () = assert!(std::mem::offset_of!(ArchivedHeader, header_checksum) == CHECKED_SIZE);

/// Bytes of the header that its checksum covers.
const CHECKED_SIZE: usize = 36;
/// `part` of a `ReadMany` reply that answers the request as a whole: no range of it was looked at.
pub const PART_ALL: u16 = u16::MAX;
/// Flag bit 0: a reply.
pub const FLAG_REPLY: u16 = 1 << 0;
/// Flag bit 1: checksums of payload in this reply cover the identity of the block too, see
/// [`crate::checksum::tag`].
pub const FLAG_IDENTITY: u16 = 1 << 1;

/// Flag bit 2: the body of this reply to `List` is a [`PartialListReply`].
///
/// [`PartialListReply`]: crate::message::PartialListReply
pub const FLAG_LEFT_OUT: u16 = 1 << 2;

/// Why bytes are not a frame. The variants are decisions: see [`FrameError::is_fatal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are not [`MAGIC`]: the peer speaks another protocol.
    #[error(
        "the stream does not start with the Millrace magic 'MILR' but with {0:#010x}; is this another protocol?"
    )]
    BadMagic(u32),
    /// The header's own checksum does not match: its lengths cannot be trusted.
    #[error("frame header checksum mismatch: the header was damaged on the way")]
    BadHeaderChecksum,
    /// The body is longer than allowed, in bytes.
    #[error("frame body of {0} bytes is longer than the limit of {1}")]
    BodyTooLarge(u32, u32),
    /// The payload is longer than allowed, in bytes.
    #[error("frame payload of {0} bytes is longer than the limit of {1}")]
    PayloadTooLarge(u32, u32),
    /// The body's checksum does not match; the stream itself is still in step.
    #[error("frame body checksum mismatch: the body was damaged on the way")]
    BadBodyChecksum,
    /// The body is not the archive that the op asks for; the stream itself is still in step.
    #[error("frame body is not a valid message for this operation")]
    BadBody,
}

impl FrameError {
    /// True if the frame's lengths cannot be trusted, so that the connection has to be closed.
    pub fn is_fatal(self) -> bool {
        !matches!(self, FrameError::BadBodyChecksum | FrameError::BadBody)
    }

    /// Returns the status that reports this error to the peer.
    pub fn status(self) -> Status {
        match self {
            FrameError::BadMagic(_) | FrameError::BadHeaderChecksum | FrameError::BadBody => {
                Status::BadFrame
            }
            FrameError::BodyTooLarge(..) | FrameError::PayloadTooLarge(..) => Status::FrameTooLarge,
            FrameError::BadBodyChecksum => Status::BadChecksum,
        }
    }
}

impl Header {
    /// Returns the header of a request; [`encode`] fills in lengths and checksums.
    pub fn request(op: Op, request_id: u64, budget_ms: u32) -> Header {
        Header {
            magic: MAGIC,
            version: crate::VERSION,
            op: op as u8,
            flags: 0,
            status: 0,
            part: 0,
            body_length: 0,
            payload_length: 0,
            budget_ms,
            request_id,
            body_checksum: 0,
            header_checksum: 0,
        }
    }

    /// Returns the header of a reply to `self`; [`encode`] fills in lengths and checksums.
    pub fn reply(&self, status: Status) -> Header {
        Header {
            version: crate::VERSION,
            flags: FLAG_REPLY,
            status: status as u16,
            part: 0,
            budget_ms: 0,
            body_length: 0,
            payload_length: 0,
            body_checksum: 0,
            header_checksum: 0,
            ..*self
        }
    }

    /// Reads a header in place from the first [`HEADER_SIZE`] bytes.
    ///
    /// # Errors
    /// [`FrameError::BadMagic`], [`FrameError::BadHeaderChecksum`]. Version and op are not judged here:
    /// a frame of a later version can be skipped by its lengths, which is how evolution works.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Header, FrameError> {
        let archived = match rkyv::access::<ArchivedHeader, Failure>(bytes) {
            Ok(archived) => archived,
            // Every bit pattern of a header of plain numbers is valid, so this cannot be reached. A
            // refusal is still the right answer if a field of another kind is ever added.
            Err(Failure) => return Err(FrameError::BadHeaderChecksum),
        };
        if archived.magic != MAGIC {
            return Err(FrameError::BadMagic(archived.magic.to_native()));
        }
        if archived.header_checksum != crc32fast::hash(&bytes[..CHECKED_SIZE]) {
            return Err(FrameError::BadHeaderChecksum);
        }
        Ok(Header {
            magic: MAGIC,
            version: archived.version,
            op: archived.op,
            flags: archived.flags.to_native(),
            status: archived.status.to_native(),
            part: archived.part.to_native(),
            body_length: archived.body_length.to_native(),
            payload_length: archived.payload_length.to_native(),
            budget_ms: archived.budget_ms.to_native(),
            request_id: archived.request_id.to_native(),
            body_checksum: archived.body_checksum.to_native(),
            header_checksum: archived.header_checksum.to_native(),
        })
    }

    /// Writes the header with its checksum: the bytes that rkyv would write, as a test checks.
    #[inline]
    pub fn encode(self, out: &mut [u8; HEADER_SIZE]) {
        out[0..4].copy_from_slice(&self.magic.to_le_bytes());
        out[4] = self.version;
        out[5] = self.op;
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        out[8..10].copy_from_slice(&self.status.to_le_bytes());
        out[10..12].copy_from_slice(&self.part.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_length.to_le_bytes());
        out[16..20].copy_from_slice(&self.payload_length.to_le_bytes());
        out[20..24].copy_from_slice(&self.budget_ms.to_le_bytes());
        out[24..32].copy_from_slice(&self.request_id.to_le_bytes());
        out[32..36].copy_from_slice(&self.body_checksum.to_le_bytes());
        let checksum = crc32fast::hash(&out[..CHECKED_SIZE]);
        out[CHECKED_SIZE..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Compares the lengths with what this side accepts, in bytes.
    ///
    /// # Errors
    /// [`FrameError::BodyTooLarge`], [`FrameError::PayloadTooLarge`].
    pub fn check_lengths(&self, body_max: u32, payload_max: u32) -> Result<(), FrameError> {
        if self.body_length > body_max {
            return Err(FrameError::BodyTooLarge(self.body_length, body_max));
        }
        if self.payload_length > payload_max {
            return Err(FrameError::PayloadTooLarge(self.payload_length, payload_max));
        }
        Ok(())
    }

    /// Compares the body with the checksum in the header.
    ///
    /// # Errors
    /// [`FrameError::BadBodyChecksum`].
    #[inline]
    pub fn check_body(&self, body: &[u8]) -> Result<(), FrameError> {
        let expected = if body.is_empty() { 0 } else { crc32fast::hash(body) };
        if expected == self.body_checksum { Ok(()) } else { Err(FrameError::BadBodyChecksum) }
    }

    /// True if this frame is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// True if the checksums of payload in this reply cover the identity of the block.
    pub fn covers_identity(&self) -> bool {
        self.flags & FLAG_IDENTITY != 0
    }

    /// True if this reply to `List` leaves names out.
    pub fn leaves_names_out(&self) -> bool {
        self.flags & FLAG_LEFT_OUT != 0
    }

    /// Returns the status of a reply. An unknown code becomes [`Status::Internal`].
    pub fn status(&self) -> Status {
        Status::from_code(self.status)
    }
}

/// Returns op and body of the frame in front, and the bytes after it, without judging anything: for
/// looking ahead. `None` if the frame is not whole.
#[inline]
pub fn peek(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEADER_SIZE>()?;
    let body_length = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let (body, next) = rest.split_at_checked(body_length as usize)?;
    Some((head[5], body, next))
}

/// A message that can be a body. Every struct of [`crate::message`] is one.
pub trait Body: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Panic>> {}

impl<T> Body for T where T: for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, Panic>> {}

/// Appends one frame without payload bytes: header, then `body`.
///
/// `header` brings everything but the body's length and the checksums; its `payload_length` is kept,
/// since a sender passes payload bytes to the kernel from where they lie.
///
/// # Panics
/// If the body is longer than [`BODY_LENGTH_MAX`]: lists in bodies are bounded before they are encoded.
pub fn encode<T: Body>(out: &mut Vec<u8>, mut header: Header, body: &T) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_SIZE]);
    let Ok(bytes) = rkyv::api::high::to_bytes_in::<Vec<u8>, Panic>(body, std::mem::take(out));
    *out = bytes;
    let body_length = out.len() - start - HEADER_SIZE;
    assert!(body_length <= BODY_LENGTH_MAX as usize, "a body of {body_length} bytes is too long");
    header.body_length = body_length as u32;
    header.body_checksum = crc32fast::hash(&out[start + HEADER_SIZE..]);
    write_header(out, start, header);
}

/// Appends the frame of a reply to a read, whose body is a [`ReadReply`] of these checksums. The bytes
/// are those that [`encode`] would write, as a test checks. This is faster, and replies to reads are
/// most of what a node writes.
///
/// # Panics
/// As [`encode`].
///
/// [`ReadReply`]: crate::message::ReadReply
#[inline]
pub fn encode_read_reply(out: &mut Vec<u8>, mut header: Header, checksums: &[u32]) {
    let start = out.len();
    let list_size = size_of_val(checksums);
    let body_length = list_size + LIST_SIZE;
    assert!(body_length <= BODY_LENGTH_MAX as usize, "a body of {body_length} bytes is too long");
    out.reserve(HEADER_SIZE + body_length);
    out.extend_from_slice(&[0; HEADER_SIZE]);
    for checksum in checksums {
        out.extend_from_slice(&checksum.to_le_bytes());
    }
    // The list lies directly before itself.
    out.extend_from_slice(&(-(list_size as i32)).to_le_bytes());
    out.extend_from_slice(&(checksums.len() as u32).to_le_bytes());
    header.body_length = body_length as u32;
    header.body_checksum = crc32fast::hash(&out[start + HEADER_SIZE..]);
    write_header(out, start, header);
}

/// Size of a list in a structure: where its elements are, and how many.
const LIST_SIZE: usize = size_of::<i32>() + size_of::<u32>();

/// Appends one frame that has neither body nor payload bytes.
pub fn encode_empty(out: &mut Vec<u8>, mut header: Header) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_SIZE]);
    header.body_length = 0;
    header.body_checksum = 0;
    write_header(out, start, header);
}

fn write_header(out: &mut [u8], start: usize, header: Header) {
    let (bytes, _) = out[start..].split_first_chunk_mut().expect("room for the header was made");
    header.encode(bytes);
}

/// Reads a body in place after checking that it is a valid archive of `T`.
///
/// # Errors
/// [`FrameError::BadBody`].
pub fn body<T>(bytes: &[u8]) -> Result<&T, FrameError>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, Failure>>,
{
    rkyv::access::<T, Failure>(bytes).map_err(|Failure| FrameError::BadBody)
}

#[cfg(test)]
mod tests;
