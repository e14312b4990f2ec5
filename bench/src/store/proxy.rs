//! The far end of a store: a server of this process, or one elsewhere, behind a line that is slow.
//!
//! ```text
//!  reader ── request ──► counted ──► objects of this process, or the store elsewhere
//!         ◄── after the latency, at the connection's pace ── answer, counted
//! ```
//!
//! Owns the line and its counters. Objects of this process have no bytes of their own: their content follows
//! from their key, so that a large set takes no memory and no time. Only reads come here: a store elsewhere
//! gets its objects directly.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Bytes of which all content is made. Derived: not a multiple of a block, so that equal offsets of two blocks
/// have different bytes.
const CONTENT_LENGTH: usize = (8 << 20) + 4093;
/// Most bytes that travel as one on the line. Guessed: less than a millisecond at the usual pace.
const CHUNK: usize = 64 << 10;
/// How far a line may lag behind its pace and still make up for it. Derived: timers are as coarse as this.
const LAG_MAX: Duration = Duration::from_millis(2);
/// Longest head of a request in bytes.
const HEAD_MAX: u64 = 64 << 10;

/// The objects of a measurement, by their keys, and their content.
#[derive(Debug)]
pub struct Objects {
    lengths: BTreeMap<String, u64>,
    content: Bytes,
}

impl Objects {
    /// Makes objects of these keys and lengths in bytes.
    pub fn new(lengths: BTreeMap<String, u64>, seed: u64) -> Objects {
        let mut content = vec![0; CONTENT_LENGTH];
        fastrand::Rng::with_seed(seed).fill(&mut content);
        Objects { lengths, content: content.into() }
    }

    /// Returns all keys with their lengths in bytes.
    pub fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lengths.iter().map(|(key, length)| (key.as_str(), *length))
    }

    /// Returns a part of an object in pieces.
    pub fn pieces(&self, key: &str, range: Range<u64>) -> impl Iterator<Item = Bytes> {
        let add = |sum, byte| (sum * 8191 + usize::from(byte)) % CONTENT_LENGTH;
        let first = key.bytes().fold(0, add);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = (first + at as usize) % CONTENT_LENGTH;
            let length = (range.end - at).min((CONTENT_LENGTH - start) as u64).min(CHUNK as u64);
            at += length;
            (length > 0).then(|| self.content.slice(start..start + length as usize))
        })
    }

    /// Compares what was read with what is there.
    ///
    /// # Errors
    /// If a byte differs.
    pub fn check(&self, key: &str, offset: u64, mut bytes: &[u8]) -> Result<()> {
        for piece in self.pieces(key, offset..offset + bytes.len() as u64) {
            let (now, later) = bytes.split_at(piece.len());
            ensure!(now == piece, "'{key}' has wrong bytes in a read from {offset} on");
            bytes = later;
        }
        Ok(())
    }

    /// Answers a request as S3 does: objects, ranges of them, and listings that are empty.
    fn answer(&self, head: &str) -> Vec<Bytes> {
        let mut words = head.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if target.contains("list-type=") {
            let body = "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount>\
                        </ListBucketResult>";
            let length = body.len();
            return vec![
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into(),
            ];
        }
        let key = target.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let Some(&length) = self.lengths.get(key) else {
            return vec!["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()];
        };
        let (status, range, extra) = match range_of(head) {
            Some((start, end)) => {
                let end = (end + 1).min(length);
                let extra = format!("Content-Range: bytes {start}-{}/{length}\r\n", end - 1);
                ("206 Partial Content", start..end, extra)
            }
            None => ("200 OK", 0..length, String::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nLast-Modified: Thu, 01 Oct 2026 07:28:00 GMT\r\nETag: \"{length:x}\"\r\n\
             {extra}Content-Length: {}\r\n\r\n",
            range.end.saturating_sub(range.start)
        );
        let mut answer = vec![Bytes::from(head)];
        if method == "GET" {
            answer.extend(self.pieces(key, range));
        }
        answer
    }
}

/// Returns the first and the last byte that a request names.
fn range_of(head: &str) -> Option<(u64, u64)> {
    let mut lines = head.lines();
    let line = lines.find(|line| line.to_ascii_lowercase().starts_with("range: bytes="))?;
    let (first, last) = line.rsplit_once('=')?.1.split_once('-')?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

/// What has gone over a line since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reads of objects.
    pub reads: u64,
    /// Bytes of answers, their heads with them.
    pub bytes: u64,
}

impl std::ops::Sub for Traffic {
    type Output = Traffic;

    fn sub(self, before: Traffic) -> Traffic {
        Traffic { reads: self.reads - before.reads, bytes: self.bytes - before.bytes }
    }
}

/// How slow a line is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time from a request to the first byte of its answer.
    pub latency: Duration,
    /// Bytes a second of each connection.
    pub bytes_per_s: u64,
}

/// A line to a store. Its thread ends with the process.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    /// Lays a line to the store at this address, or to the objects of this process.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(objects: Arc<Objects>, store: Option<SocketAddr>, pace: Pace) -> Result<Proxy> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.context("listen for the proxy")?;
        listener.set_nonblocking(true)?;
        let (address, counters) = (listener.local_addr()?, Arc::<Counters>::default());
        let counting = Arc::clone(&counters);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let line = Line { objects: Arc::clone(&objects), store, pace };
                let counters = Arc::clone(&counting);
                // A reader that goes away ends its connection.
                tokio::spawn(async move { line.serve(stream, &counters).await });
            }
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned());
        thread.spawn(move || runtime.block_on(serve)).context("start the proxy's thread")?;
        Ok(Proxy { address, counters })
    }

    /// Returns what has gone over the line so far.
    pub fn traffic(&self) -> Traffic {
        let Counters { reads, bytes } = &*self.counters;
        Traffic { reads: reads.load(Ordering::SeqCst), bytes: bytes.load(Ordering::SeqCst) }
    }
}

/// One connection of a line.
struct Line {
    objects: Arc<Objects>,
    store: Option<SocketAddr>,
    pace: Pace,
}

impl Line {
    async fn serve(self, stream: TcpStream, counters: &Counters) -> Result<()> {
        stream.set_nodelay(true)?;
        let Pace { latency, bytes_per_s } = self.pace;
        let (requests, mut answers) = stream.into_split();
        // What is on its way at the full pace, and once more for answers of small pieces.
        let under_way = bytes_per_s as f64 * latency.as_secs_f64() / CHUNK as f64;
        let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(2 * under_way as usize + 64);
        let shaped = async {
            let mut free_at = Instant::now();
            while let Some((due, bytes)) = receiver.recv().await {
                let at = due.max(free_at);
                sleep_until(at).await;
                // Counted first, because the reader looks at the count once it has the bytes.
                counters.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                answers.write_all(&bytes).await?;
                let from = at.max(Instant::now() - LAG_MAX);
                free_at = from + Duration::from_secs_f64(bytes.len() as f64 / bytes_per_s as f64);
            }
            Ok(())
        };
        let requests = BufReader::new(requests);
        match self.store {
            None => tokio::try_join!(self.answer(requests, sender, counters), shaped)?,
            Some(store) => {
                let (mut reading, mut writing) = TcpStream::connect(store).await?.into_split();
                let forward = async {
                    let mut requests = requests;
                    while let Some(head) = receive(&mut requests, counters).await? {
                        writing.write_all(head.as_bytes()).await?;
                    }
                    bail!("the reader has gone")
                };
                let back = async {
                    loop {
                        let mut bytes = BytesMut::with_capacity(CHUNK);
                        if reading.read_buf(&mut bytes).await? == 0 {
                            bail!("the store has gone");
                        }
                        sender.send((Instant::now() + latency, bytes.freeze())).await?;
                    }
                };
                let ((), (), ()) = tokio::try_join!(forward, back, shaped)?;
                ((), ())
            }
        };
        Ok(())
    }

    /// Answers requests from the objects of this process.
    async fn answer(
        &self,
        mut requests: impl AsyncBufReadExt + Unpin,
        sender: mpsc::Sender<(Instant, Bytes)>,
        counters: &Counters,
    ) -> Result<()> {
        while let Some(head) = receive(&mut requests, counters).await? {
            let due = Instant::now() + self.pace.latency;
            for bytes in self.objects.answer(&head) {
                sender.send((due, bytes)).await?;
            }
        }
        Ok(())
    }
}

/// Receives the head of a request and counts it; None if the reader has gone.
async fn receive(
    requests: &mut (impl AsyncBufReadExt + Unpin),
    counters: &Counters,
) -> Result<Option<String>> {
    let (mut head, mut requests) = (String::new(), requests.take(HEAD_MAX));
    while !head.ends_with("\r\n\r\n") {
        if requests.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    if head.starts_with("GET ") && !head.contains("list-type=") {
        counters.reads.fetch_add(1, Ordering::SeqCst);
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Objects {
        Objects::new(BTreeMap::from([("a/b".to_owned(), 20 << 20)]), 1)
    }

    #[test]
    fn content_follows_from_the_key_and_the_offset() {
        let objects = objects();
        let read = |key: &str, range: Range<u64>| -> Vec<u8> {
            objects.pieces(key, range).flatten().collect()
        };
        let whole = read("a/b", 0..20 << 20);
        assert_eq!(whole.len(), 20 << 20);
        assert_eq!(whole[9_000_000..9_100_000], read("a/b", 9_000_000..9_100_000));
        assert_ne!(whole[..100], read("a/c", 0..100));
        objects.check("a/b", 77, &whole[77..100_000]).unwrap();
        assert!(objects.check("a/b", 78, &whole[77..100_000]).is_err());
    }

    #[test]
    fn a_request_is_answered_as_it_asks() {
        let head = "GET /box/a/b HTTP/1.1\r\nRange: bytes=5-9\r\n\r\n";
        let answer = objects().answer(head);
        let text = String::from_utf8_lossy(&answer[0]);
        assert!(text.contains(" 206 ") && text.contains("bytes 5-9/20971520"), "{text}");
        assert_eq!((answer.len(), answer[1].len()), (2, 5));
        let head = objects().answer("HEAD /box/a/b HTTP/1.1\r\n\r\n");
        assert!(head.len() == 1 && head[0].starts_with(b"HTTP/1.1 200"));
        assert!(objects().answer("GET /box/c HTTP/1.1\r\n\r\n")[0].starts_with(b"HTTP/1.1 404"));
    }
}
