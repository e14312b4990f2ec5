//! Unary calls of gRPC over HTTP/2, by the crate `h2`.
//!
//! Owns the way between the bytes of the load generator, which has the socket, and the library,
//! which takes one end of a pipe in memory for it. No runtime is needed: before bytes are sent, and
//! when some are received, the library is polled until it has nothing more to send.
//!
//! ```text
//! request   HEADERS (path, authority, type) ─ DATA (0, length, message), end of stream
//! reply     HEADERS (:status) ─ DATA (0, length, message) ─ HEADERS (grpc-status), end of stream
//! ```

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Method, Request, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// Bytes that the pipe holds in each direction. Derived: several receives of the load generator.
const PIPE_SIZE: usize = 1 << 20;
/// Bytes that the server may send before it is allowed more: for one call, and for all.
const WINDOWS: [u32; 2] = [1 << 20, 1 << 30];
/// Length of gRPC's prefix of a message: compressed or not, and its length.
const MESSAGE_PREFIX: usize = 5;
/// Longest reply of a call in bytes. Derived: the longest value, and as much again for its
/// wrapping.
const REPLY_MAX: usize = 64 << 10;

/// A call that has ended.
pub(super) struct Reply {
    /// The number it was sent with.
    pub(super) number: u64,
    /// Status of gRPC, 0 for success.
    pub(super) status: i32,
    /// The message, empty where there is none.
    pub(super) message: Vec<u8>,
}

/// One connection.
pub(super) struct Http2 {
    /// The server's end of the pipe.
    pipe: DuplexStream,
    connection: Connection<DuplexStream>,
    requests: SendRequest<Bytes>,
    calls: FuturesUnordered<BoxFuture<'static, Result<Reply>>>,
}

impl Http2 {
    pub(super) fn new() -> Http2 {
        let (socket, pipe) = duplex(PIPE_SIZE);
        let [call_window, window] = WINDOWS;
        let mut builder = Builder::new();
        builder.enable_push(false).initial_window_size(call_window);
        let greeting = builder.initial_connection_window_size(window).handshake(socket);
        let greeted = greeting.now_or_never().expect("the pipe takes a greeting at once");
        let (requests, connection) = greeted.expect("the settings are allowed");
        Http2 { pipe, connection, requests, calls: FuturesUnordered::new() }
    }

    /// True if another call may begin now, by what the server allows.
    pub(super) fn has_room(&mut self) -> bool {
        // A broken connection has room: the call then says what is wrong.
        self.requests.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Lets the library go on, and appends what it has to send to `out`.
    pub(super) fn pump(&mut self, out: &mut Vec<u8>) -> Result<()> {
        loop {
            let context = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(context) {
                ended.context("the connection has ended")?;
                bail!("the server ends the connection");
            }
            match self.pipe.read_buf(out).now_or_never() {
                Some(read) => read?,
                None => return Ok(()),
            };
        }
    }

    /// Begins the call `number` of `uri`; the message is what `write` appends.
    pub(super) fn call(
        &mut self,
        number: u64,
        uri: Uri,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let mut body = vec![0; MESSAGE_PREFIX];
        write(&mut body);
        let length = (body.len() - MESSAGE_PREFIX) as u32;
        body[1..MESSAGE_PREFIX].copy_from_slice(&length.to_be_bytes());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let (response, mut stream) = self.requests.send_request(request, false)?;
        stream.send_data(body.into(), true)?;
        self.calls.push(answer(number, response).boxed());
        Ok(())
    }

    /// Reads `bytes` and calls `done` for each call that has ended. What they have to be answered
    /// with is appended to `out`, but for what [`Http2::pump`] brings: leave to send more.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut done: impl FnMut(Reply) -> Result<()>,
    ) -> Result<()> {
        let taken = self.pipe.write_all(bytes).now_or_never();
        taken.context("the pipe is full")??;
        self.pump(out)?;
        while let Some(Some(reply)) = self.calls.next().now_or_never() {
            done(reply?)?;
        }
        Ok(())
    }
}

/// Waits for the answer to a call.
async fn answer(number: u64, response: ResponseFuture) -> Result<Reply> {
    let (head, mut body) = response.await?.into_parts();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        message.extend_from_slice(&part);
        ensure!(message.len() <= REPLY_MAX, "a reply of more than {REPLY_MAX} bytes");
    }
    let trailers = body.trailers().await?;
    let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
    let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
    let status = status.context("a reply of gRPC without a status")?;
    if let Some(&[compressed, a, b, c, d]) = message.first_chunk::<MESSAGE_PREFIX>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let is_whole = compressed == 0 && MESSAGE_PREFIX + length == message.len();
        ensure!(is_whole, "a message that is not whole");
        message.drain(..MESSAGE_PREFIX);
    }
    Ok(Reply { number, status, message })
}
