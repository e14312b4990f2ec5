//! One request of HTTP/1.1 and its answer; then the connection is closed.
//!
//! As little of HTTP as curl, browsers and Prometheus need. Always holds: a request takes bounded
//! memory and time, however slowly or wrongly it is sent.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes of a request up to its body.
pub(super) const HEAD_MAX_BYTES: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// Bytes of a body: the longest list of members fits.
pub(super) const BODY_MAX_BYTES: usize = 64 << 10;
/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a client may take to receive a part of its answer.
const WRITE_TIME: Duration = Duration::from_secs(10);

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// A connection, of either family.
pub(super) trait Stream: Read + Write + Send {
    fn set_times(&self, read: Duration, write: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_times(&self, read: Duration, write: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(read))?;
        self.set_write_timeout(Some(write))
    }
}

impl Stream for TcpStream {
    fn set_times(&self, read: Duration, write: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(read))?;
        self.set_write_timeout(Some(write))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Post,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// With its query, as it came.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
    /// The head alone is sent, as HEAD asks.
    pub(super) is_head: bool,
}

impl Response {
    pub(super) fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<String>,
    ) -> Response {
        Response { status, content_type, body: body.into(), is_head: false }
    }

    /// A line of text that says why not.
    pub(super) fn refusal(status: u16, reason: &str) -> Response {
        Response::new(status, TEXT, format!("{reason}\n"))
    }

    pub(super) fn write(&self, stream: &mut dyn Stream) -> io::Result<()> {
        let Response { status, content_type, body, is_head } = self;
        let reason = reason(*status);
        let length = body.len();
        let mut bytes = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        if !is_head {
            bytes.push_str(body);
        }
        stream.write_all(bytes.as_bytes())?;
        stream.flush()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

/// Reads a request.
///
/// # Errors
/// The answer to one that cannot be read; `None` where nobody is there to be answered.
pub(super) fn read_request(stream: &mut dyn Stream) -> Result<Request, Option<Response>> {
    let deadline = Instant::now() + REQUEST_TIME;
    let mut bytes = Vec::new();
    let (head, size) = loop {
        if let Some(found) = parse_head(&bytes)? {
            break found;
        }
        if bytes.len() >= HEAD_MAX_BYTES {
            return Err(Some(Response::refusal(431, "The head of the request is too long")));
        }
        receive(stream, &mut bytes, HEAD_MAX_BYTES, deadline)?;
    };
    if head.body_bytes > BODY_MAX_BYTES {
        return Err(Some(Response::refusal(413, "The body of the request is too long")));
    }
    let end = size + head.body_bytes;
    while bytes.len() < end {
        receive(stream, &mut bytes, end, deadline)?;
    }
    bytes.truncate(end);
    let body = bytes.split_off(size);
    Ok(Request { method: head.method, path: head.path, body })
}

/// Receives more, up to `bytes_max` in all.
fn receive(
    stream: &mut dyn Stream,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
    deadline: Instant,
) -> Result<(), Option<Response>> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A time-out of zero would mean none.
    if left.is_zero() || stream.set_times(left, WRITE_TIME).is_err() {
        return Err(Some(Response::refusal(408, "The request took too long")));
    }
    let mut part = [0; 4096];
    let room = (bytes_max - bytes.len()).min(part.len());
    match stream.read(&mut part[..room]) {
        Ok(0) => Err(None),
        Ok(count) => {
            bytes.extend_from_slice(&part[..count]);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(Some(Response::refusal(408, "The request took too long")))
        }
        Err(_) => Err(None),
    }
}

struct Head {
    method: Method,
    path: String,
    body_bytes: usize,
}

/// The head at the front of `bytes` and its size, once it is complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Option<Response>> {
    let refuse = |status, reason| Err(Some(Response::refusal(status, reason)));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let size = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "There are too many headers"),
        Err(_) => return refuse(400, "This is no request of HTTP/1.1"),
    };
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => return refuse(405, "Only GET, HEAD and POST are understood"),
    };
    let mut body_bytes = 0;
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(411, "The body needs a Content-Length");
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
            let Some(length) = length else { return refuse(400, "Content-Length is no number") };
            body_bytes = length;
        }
    }
    let path = parsed.path.unwrap_or_default().to_owned();
    Ok(Some((Head { method, path, body_bytes }, size)))
}
