//! As much of HTTP/2 (RFC 9113) and HPACK (RFC 7541) as unary calls of gRPC need.
//!
//! Owns frames, the table of request headers, and flow control in both directions. A client library
//! would cost the load generator more than the server's answer is worth: here a call is some 60
//! bytes of frames, as in gRPC's own clients, and no allocation. Always holds: the server is told
//! to keep no table for its replies, so their headers can be read one block at a time; what this
//! reader does not know is an error, never passed over.
//!
//! ```text
//!  request   HEADERS (path, authority, type) ─ DATA (0, length, message), end of stream
//!  reply     HEADERS (:status) ─ DATA (0, length, message) ─ HEADERS (grpc-status), end of stream
//! ```

use anyhow::{Context, Result, bail, ensure};

/// Opens every connection of a client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header in bytes.
const FRAME_HEADER: usize = 9;
/// Longest payload of a frame in bytes; the default, which is not changed.
const FRAME_MAX: usize = 16 << 10;
/// Bytes that either side may send before it is allowed more; the default.
const WINDOW: i64 = 65_535;
/// What this side allows beyond that, in bytes, and allows again when half of it is used.
const RECEIVE_WINDOW: u32 = 1 << 30;
/// Length of gRPC's prefix of a message: compressed or not, and its length.
const MESSAGE_PREFIX: usize = 5;
/// Longest reply of a call in bytes. Derived: the longest value, and as much again for its
/// wrapping.
const REPLY_MAX: usize = 64 << 10;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

mod flag {
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// Settings of a client: no table, no pushes, 1 MiB for each reply.
const SETTINGS: [(u16, u32); 3] = [(1, 0), (2, 0), (4, 1 << 20)];

/// Index of the first entry that is not of HPACK's static table.
const TABLE_FIRST: usize = 62;
/// Headers that are alike in every request; the paths have their places behind them.
const FIXED_HEADERS: usize = 3;
/// `grpc-status` as it is, and in HPACK's Huffman code.
const STATUS_NAMES: [&[u8]; 2] =
    [b"grpc-status", &[0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f]];

/// A call that has ended.
pub(super) struct Reply<'a> {
    /// The number it was sent with.
    pub(super) number: u64,
    /// Status of gRPC, 0 for success.
    pub(super) status: i32,
    /// The message, empty where there is none.
    pub(super) message: &'a [u8],
}

/// One connection.
pub(super) struct Http2 {
    authority: String,
    is_ready: bool,
    /// Headers that the server keeps in its table, oldest first, by their place among all that
    /// there are.
    kept: Vec<usize>,
    /// Bytes the server takes on this connection.
    send_window: i64,
    /// Bytes received since the server was last allowed more.
    received: u32,
    /// Replies that have begun, by their number; few, so a search finds them.
    open: Vec<(u64, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl Http2 {
    pub(super) fn new(authority: String) -> Http2 {
        Http2 {
            authority,
            is_ready: false,
            kept: Vec::new(),
            send_window: WINDOW,
            received: 0,
            open: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Whether a message of this length may be sent now.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.send_window >= (MESSAGE_PREFIX + length) as i64
    }

    pub(super) fn greet(out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        frame_header(out, SETTINGS.len() * 6, kind::SETTINGS, 0, 0);
        for (name, value) in SETTINGS {
            out.extend_from_slice(&name.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        frame_header(out, 4, kind::WINDOW_UPDATE, 0, 0);
        out.extend_from_slice(&RECEIVE_WINDOW.to_be_bytes());
    }

    /// Appends the call `number` of `paths[path]`; the message is what `write` appends.
    pub(super) fn call(
        &mut self,
        number: u64,
        paths: &[&str],
        path: usize,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let stream = u32::try_from(number * 2 + 1).ok().filter(|&stream| stream < 1 << 31);
        let stream = stream.context("a connection has used its numbers up")?;
        let start = out.len();
        frame_header(out, 0, kind::HEADERS, flag::END_HEADERS, stream);
        self.request_headers(paths, path, out);
        set_length(out, start)?;

        let start = out.len();
        frame_header(out, 0, kind::DATA, flag::END_STREAM, stream);
        out.extend_from_slice(&[0; MESSAGE_PREFIX]);
        let message = out.len();
        write(out);
        let length = (out.len() - message) as u32;
        out[message - 4..message].copy_from_slice(&length.to_be_bytes());
        self.send_window -= (MESSAGE_PREFIX as u32 + length) as i64;
        set_length(out, start)
    }

    /// Headers in HPACK: whole on their first use, then by their index in the server's table.
    fn request_headers(&mut self, paths: &[&str], path: usize, out: &mut Vec<u8>) {
        const STATIC_POST: u8 = 0x80 | 3;
        const STATIC_HTTP: u8 = 0x80 | 6;
        out.extend_from_slice(&[STATIC_POST, STATIC_HTTP]);
        // Names are indexes of the static table, 0 for one that it does not have. Those that begin
        // with a colon have to come first.
        let headers: [(usize, (u8, &str, &str)); 4] = [
            (FIXED_HEADERS + path, (4, "", paths[path])),
            (0, (1, "", &self.authority)),
            (1, (31, "", "application/grpc")),
            (2, (0, "te", "trailers")),
        ];
        for (place, (name_index, name, value)) in headers {
            if let Some(age) = self.kept.iter().rev().position(|&kept| kept == place) {
                out.push(0x80 | (TABLE_FIRST + age) as u8);
                continue;
            }
            self.kept.push(place);
            out.push(0x40 | name_index);
            for text in [name, value].into_iter().skip(usize::from(name_index != 0)) {
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Reads the whole frames at the start of `bytes`: their length. Appends to `out` what they
    /// have to be answered with, and tells `done` of every call that has ended.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut done: impl FnMut(Reply<'_>) -> Result<()>,
    ) -> Result<usize> {
        let mut used = 0;
        while let Some((head, rest)) = bytes[used..].split_first_chunk::<FRAME_HEADER>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            ensure!(length <= FRAME_MAX, "the reply is not of HTTP/2");
            let Some(payload) = rest.get(..length) else {
                break;
            };
            used += FRAME_HEADER + length;
            let [kind, flags] = [head[3], head[4]];
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            match kind {
                kind::DATA | kind::HEADERS | kind::RST_STREAM => {
                    self.stream_frame(kind, flags, stream, payload, out, &mut done)?;
                }
                kind::SETTINGS if flags & flag::ACK == 0 => {
                    self.is_ready = true;
                    frame_header(out, 0, kind::SETTINGS, flag::ACK, 0);
                }
                kind::PING if flags & flag::ACK == 0 => {
                    frame_header(out, length, kind::PING, flag::ACK, 0);
                    out.extend_from_slice(payload);
                }
                kind::WINDOW_UPDATE if stream == 0 => {
                    self.send_window += i64::from(integer_of(payload)?);
                }
                kind::GOAWAY => bail!("the server ends the connection: {}", lossy(payload)),
                _ => {}
            }
        }
        Ok(used)
    }

    fn stream_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
        done: &mut impl FnMut(Reply<'_>) -> Result<()>,
    ) -> Result<()> {
        ensure!(stream % 2 == 1, "a reply on stream {stream}");
        let number = u64::from(stream / 2);
        if kind == kind::RST_STREAM {
            bail!("the server broke call {number} off with error {}", integer_of(payload)?);
        }
        ensure!(flags & (flag::PADDED | flag::PRIORITY) == 0, "a reply with padding or priority");
        if kind == kind::DATA {
            ensure!(flags & flag::END_STREAM == 0, "a reply of gRPC without a status");
            return self.data(number, payload, out);
        }
        ensure!(flags & flag::END_HEADERS != 0, "headers of a reply in several frames");
        let status = grpc_status(payload).context("read the headers of a reply")?;
        if flags & flag::END_STREAM == 0 {
            return Ok(());
        }
        let status = status.context("a reply of gRPC without a status")?;
        let place = self.open.iter().position(|&(open, _)| open == number);
        let mut body = place.map(|place| self.open.swap_remove(place).1).unwrap_or_default();
        let message = match body.split_first_chunk::<MESSAGE_PREFIX>() {
            None => &[][..],
            Some((&[compressed, a, b, c, d], message)) => {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                ensure!(compressed == 0 && length == message.len(), "a message that is not whole");
                message
            }
        };
        done(Reply { number, status, message })?;
        body.clear();
        self.spare.push(body);
        Ok(())
    }

    fn data(&mut self, number: u64, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let place = self.open.iter().position(|&(open, _)| open == number);
        let place = place.unwrap_or_else(|| {
            self.open.push((number, self.spare.pop().unwrap_or_default()));
            self.open.len() - 1
        });
        let body = &mut self.open[place].1;
        body.extend_from_slice(payload);
        ensure!(body.len() <= REPLY_MAX, "a reply of more than {REPLY_MAX} bytes");
        self.received += payload.len() as u32;
        if self.received > RECEIVE_WINDOW / 2 {
            frame_header(out, 4, kind::WINDOW_UPDATE, 0, 0);
            out.extend_from_slice(&self.received.to_be_bytes());
            self.received = 0;
        }
        Ok(())
    }
}

fn frame_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Fills the length of the frame at `start` in, once its payload is there.
fn set_length(out: &mut [u8], start: usize) -> Result<()> {
    let length = out.len() - start - FRAME_HEADER;
    ensure!(length <= FRAME_MAX, "a request of {length} bytes does not fit in one frame");
    out[start..start + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
    Ok(())
}

fn integer_of(payload: &[u8]) -> Result<u32> {
    let bytes = payload.first_chunk::<4>().context("a frame that is too short")?;
    Ok(u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

fn lossy(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned()
}

/// The `grpc-status` of a block of headers, if it has one.
fn grpc_status(block: &[u8]) -> Result<Option<i32>> {
    let mut rest = block;
    let mut status = None;
    while let [first, ..] = *rest {
        if first & 0x80 != 0 {
            check_index(hpack_integer(&mut rest, 7)?)?;
        } else if first & 0xe0 == 0x20 {
            let size = hpack_integer(&mut rest, 5)?;
            ensure!(size == 0, "the server keeps a table of {size} bytes that it was denied");
        } else {
            let name_index = hpack_integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 })?;
            let is_status = if name_index == 0 {
                STATUS_NAMES.contains(&hpack_string(&mut rest)?)
            } else {
                check_index(name_index)?;
                false
            };
            let value = hpack_string(&mut rest)?;
            if is_status {
                let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                status = Some(text.with_context(|| format!("status {value:?} is no number"))?);
            }
        }
    }
    Ok(status)
}

fn check_index(index: usize) -> Result<()> {
    ensure!((1..TABLE_FIRST).contains(&index), "header {index} is of a table that was denied");
    Ok(())
}

/// An integer with a prefix of `bits` bits.
fn hpack_integer(rest: &mut &[u8], bits: u32) -> Result<usize> {
    let mask = (1_usize << bits) - 1;
    let mut next = || -> Result<usize> {
        let (&byte, behind) = rest.split_first().context("the headers end too early")?;
        *rest = behind;
        Ok(usize::from(byte))
    };
    let mut value = next()? & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a length in the headers is too large")
}

/// The bytes of a string, in Huffman code or not.
fn hpack_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = hpack_integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length).context("the headers end too early")?;
    *rest = behind;
    Ok(text)
}
