//! The bytes between replicas: the greeting of a stream, and its frames.
//!
//! ```text
//!  hello, 56 bytes, from the replica that dials
//! ┌───────┬─────────┬──────────┬─────────┬────────┬───────┬──────────┬──────┬───────┐
//! │ magic │ version │ features │ cluster │ sender │ store │ receiver │ zero │ crc32 │
//! └── 8 ──┴── u32 ──┴── u32 ───┴── u64 ──┴─ u64 ──┴─ u64 ─┴── u64 ───┴─ u32 ┴─ u32 ─┘
//!  answer: the same 56 bytes, then u32 size and text of the refusal; size 0 accepts
//!
//!  frame, from the replica that dialled; size 0 keeps the stream alive
//! ┌──────┬───────┬─────────┐
//! │ size │ crc32 │ payload │
//! └─ u32 ┴─ u32 ─┴─────────┘
//! ```
//!
//! All numbers are little-endian. Pure: no sockets here.

use crate::socket::Cut;

/// First bytes of every stream between replicas.
const MAGIC: [u8; 8] = *b"mr-coord";
/// Version of greeting and frames. A replica of another version is refused.
const VERSION: u32 = 1;
pub(crate) const HELLO_SIZE: usize = 56;
/// Longest refusal in bytes.
const REASON_SIZE_MAX: usize = 1024;
/// Largest answer in bytes.
pub(crate) const ANSWER_SIZE_MAX: usize = HELLO_SIZE + 4 + REASON_SIZE_MAX;
/// Bytes before the payload of a frame.
const FRAME_HEADER_SIZE: usize = 8;
/// Largest payload of a frame in bytes: a message with entries as large as a request may be.
pub(crate) const PAYLOAD_SIZE_MAX: usize = 64 * 1024 * 1024;

/// The bit of [`Hello::features`] for a sender without data.
pub(crate) const IS_EMPTY: u32 = 1;

/// The identity of the sender, and the intended receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// [`IS_EMPTY`], and bits of newer versions. Bits that both sides know may be used.
    pub(crate) features: u32,
    /// 0 if the sender has no ensemble, and takes the other's.
    pub(crate) cluster_id: u64,
    /// Id of the sender.
    pub(crate) sender: u64,
    /// Id of the sender's data directory.
    pub(crate) store_id: u64,
    /// Id of the intended receiver.
    pub(crate) receiver: u64,
}

impl Hello {
    /// True if the sender has no data. Data belongs to an ensemble, so a sender without one has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.features & IS_EMPTY != 0 || self.cluster_id == 0
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.cluster_id.to_le_bytes());
        out.extend_from_slice(&self.sender.to_le_bytes());
        out.extend_from_slice(&self.store_id.to_le_bytes());
        out.extend_from_slice(&self.receiver.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let sum = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// The mistake, for the log and the sender.
    pub(crate) fn decode(bytes: &[u8; HELLO_SIZE]) -> Result<Hello, String> {
        if bytes[..8] != MAGIC {
            return Err(
                "this is the port between replicas, and the greeting is not from a replica".into(),
            );
        }
        if number(bytes, HELLO_SIZE - 4) != crc32fast::hash(&bytes[..HELLO_SIZE - 4]) {
            return Err("the greeting was damaged on its way".into());
        }
        let version = number(bytes, 8);
        if version != VERSION {
            return Err(format!(
                "protocol version {version} between replicas, and this replica speaks {VERSION}: \
                 install the same release on both"
            ));
        }
        Ok(Hello {
            features: number(bytes, 12),
            cluster_id: long(bytes, 16),
            sender: long(bytes, 24),
            store_id: long(bytes, 32),
            receiver: long(bytes, 40),
        })
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}

/// The reply of the replica that was dialled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HelloAnswer {
    pub(crate) hello: Hello,
    /// The reason of a refusal.
    pub(crate) refusal: Option<String>,
}

impl HelloAnswer {
    /// Writes the answer. Cuts a long reason.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ANSWER_SIZE_MAX);
        self.hello.encode(&mut out);
        let reason = self.refusal.as_deref().unwrap_or_default();
        let reason = &reason.as_bytes()[..reason.len().min(REASON_SIZE_MAX)];
        out.extend_from_slice(&(reason.len() as u32).to_le_bytes());
        out.extend_from_slice(reason);
        out
    }

    /// Reads an answer, `None` while it is incomplete.
    ///
    /// # Errors
    /// The mistake.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<HelloAnswer>, String> {
        let Some((head, rest)) = bytes.split_first_chunk::<HELLO_SIZE>() else { return Ok(None) };
        let hello = Hello::decode(head)?;
        let Some((size, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_le_bytes(*size) as usize;
        if size > REASON_SIZE_MAX {
            return Err(format!("a refusal of {size} bytes, over {REASON_SIZE_MAX}"));
        }
        match rest.len() {
            given if given < size => Ok(None),
            given if given > size => Err("bytes after the answer".into()),
            0 => Ok(Some(HelloAnswer { hello, refusal: None })),
            _ => {
                let refusal = Some(String::from_utf8_lossy(rest).into_owned());
                Ok(Some(HelloAnswer { hello, refusal }))
            }
        }
    }
}

pub(crate) fn frame(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_SIZE_MAX);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Hands the payload of each whole frame in `bytes` to `handle`, except empty ones.
///
/// # Errors
/// The stream is damaged, and nothing after this can be trusted.
pub(crate) fn unframe(bytes: &[u8], mut handle: impl FnMut(&[u8])) -> Result<Cut, String> {
    let mut consumed = 0;
    loop {
        let rest = &bytes[consumed..];
        if rest.len() < FRAME_HEADER_SIZE {
            return Ok(Cut { consumed, needed: FRAME_HEADER_SIZE });
        }
        let size = number(rest, 0) as usize;
        if size > PAYLOAD_SIZE_MAX {
            return Err(format!("a frame of {size} bytes, over {PAYLOAD_SIZE_MAX}"));
        }
        let needed = FRAME_HEADER_SIZE + size;
        let Some(payload) = rest.get(FRAME_HEADER_SIZE..needed) else {
            return Ok(Cut { consumed, needed });
        };
        if crc32fast::hash(payload) != number(rest, 4) {
            return Err(format!("a frame of {size} bytes has a wrong checksum"));
        }
        if !payload.is_empty() {
            handle(payload);
        }
        consumed += needed;
    }
}
