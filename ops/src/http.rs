//! Pages over HTTP/1.1: one request and its answer; then the connection is closed.
//!
//! Has only the part of HTTP that curl, browsers and Prometheus need. Always holds: a request takes
//! bounded memory and time, however slowly or wrongly it is sent. [`Server`] owns the listeners.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

mod server;

pub use server::{CONNECTIONS_MAX, Listener, Server};

/// Most bytes of a request up to its body.
pub const HEAD_MAX_BYTES: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// Most bytes of a body: the longest list of members fits.
pub const BODY_MAX_BYTES: usize = 64 << 10;
/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a client may take to receive a part of its answer.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// JSON.
pub const JSON: &str = "application/json";
/// Plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A connection, of either family.
pub trait Stream: Read + Write + Send {
    /// Sets how long a read and a write may take.
    ///
    /// # Errors
    /// Those of `setsockopt`.
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

/// The operation that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The operation that is asked for.
    pub method: Method,
    /// The path with its query, as it came.
    pub path: String,
    /// The content types that the client takes, as it says; empty if it says nothing.
    pub accept: String,
    /// The bytes that came with it; empty if there are none.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status, such as 200.
    pub status: u16,
    /// Content type of the body.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
    /// True if only the head is sent, because the request was HEAD.
    pub is_head: bool,
}

impl Response {
    /// Returns an answer with this body.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<String>) -> Response {
        Response { status, content_type, body: body.into(), is_head: false }
    }

    /// Returns an answer whose body is one line that says why the request is refused.
    pub fn refusal(status: u16, reason: &str) -> Response {
        Response::new(status, TEXT, format!("{reason}\n"))
    }

    /// Writes the answer.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn write(&self, stream: &mut dyn Stream) -> io::Result<()> {
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
/// The answer to a request that cannot be read; `None` if the client has gone.
pub fn read_request(stream: &mut dyn Stream) -> Result<Request, Option<Response>> {
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
    Ok(Request { method: head.method, path: head.path, accept: head.accept, body })
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
    accept: String,
    body_bytes: usize,
}

/// Returns the head at the front of `bytes` and its size, once it is complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Option<Response>> {
    let refuse = |status, reason| Err(Some(Response::refusal(status, reason)));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let size = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "There are too many headers"),
        Err(_) => return refuse(400, "This is not a request of HTTP/1.1"),
    };
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => return refuse(405, "Only GET, HEAD and POST are understood"),
    };
    let (mut body_bytes, mut accept) = (0, String::new());
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(411, "The body needs a Content-Length");
        }
        if header.name.eq_ignore_ascii_case("accept") {
            accept = String::from_utf8_lossy(header.value).into_owned();
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
            let Some(length) = length else { return refuse(400, "Content-Length is not a number") };
            body_bytes = length;
        }
    }
    let path = parsed.path.unwrap_or_default().to_owned();
    Ok(Some((Head { method, path, accept, body_bytes }, size)))
}
