//! Pages over HTTP, as a monitor asks for them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::{HANG_GUARD, Node};

/// The content type of OpenMetrics, as a monitor asks for it.
pub const OPEN_METRICS: &str = "application/openmetrics-text";

/// An answer.
#[derive(Debug)]
pub struct Page {
    /// Status, such as 200; 0 if the connection was closed without an answer.
    pub status: u16,
    /// The headers as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Asks for a page.
///
/// # Panics
/// If the service cannot be reached or does not answer.
pub fn get(address: SocketAddr, path: &str, accept: &str) -> Page {
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\n\r\n");
    send(address, request.as_bytes())
}

/// Sends bytes and reads to the end.
///
/// # Panics
/// As [`get`].
pub fn send(address: SocketAddr, request: &[u8]) -> Page {
    let mut stream = TcpStream::connect(address).expect("connect to the pages");
    stream.set_read_timeout(Some(HANG_GUARD)).expect("a time-out");
    // The service may refuse a request before it has read all of it.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    // A refused request that was not read to its end resets the connection behind the answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("pages are UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Page { status, head: head.to_owned(), body: body.to_owned() }
}

impl Node {
    /// Returns where the pages of the node are; the node must be configured to serve them.
    ///
    /// # Panics
    /// If its log does not say.
    pub fn pages(&self) -> SocketAddr {
        pages_in(&self.log()).expect("the log tells where the pages are")
    }
}

/// Returns where pages are, by the log of a node.
pub fn pages_in(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("pages for operators at http://"))?;
    line.rsplit_once("http://")?.1.trim().parse().ok()
}
