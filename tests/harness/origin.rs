//! A store in this process, which speaks enough of S3 and HTTP, well or badly.
//!
//! Owns objects in memory and counts what it is asked for. An object is at `/BUCKET/KEY` for S3 in path style, and
//! the same URL is a plain web server's. Faults answer reads of objects; look-ups and listings stay right.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

mod writes;

pub use writes::WriteFault;

/// What is wrong with the answer to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status and no body of the object.
    Status(u16),
    /// The connection ends when this many bytes of the body are missing; after 0 it ends where it should go on.
    Cut(usize),
    /// The connection is reset when this many bytes of the body are missing.
    Reset(usize),
    /// The answer is right, and begins after this time.
    Late(Duration),
    /// The answer is right, and comes in pieces of 16 KiB, each after this time.
    Trickle(Duration),
    /// Half of the body, and then nothing more.
    Stuck,
    /// No body, though the head promises one.
    Empty,
    /// A part of length 0 that calls itself the right one.
    EmptyPart,
    /// The whole object instead of a part.
    Whole,
    /// The next part, which says so.
    OtherPart,
    /// Twice the part that was asked for.
    Long,
    /// Half of the part, which says so.
    Short,
    /// Another tag than the one that was looked up.
    OtherTag,
    /// Bytes that name another encoding, shorter than the part.
    Zipped,
    /// Nothing at all.
    Hang,
}

/// One object.
#[derive(Clone, Debug)]
struct Object {
    bytes: Arc<Vec<u8>>,
    /// How often it was put.
    number: u64,
}

/// By bucket and key.
type Objects = BTreeMap<(String, String), Object>;

#[derive(Default)]
struct State {
    objects: Objects,
    put_count: u64,
    /// The faults of the next reads, one each; None for a read that goes right.
    faults: VecDeque<Option<Fault>>,
    /// The fault of the reads after these, and how many have it.
    fault: Option<(Fault, usize)>,
    /// What listings show, if it is not what is there.
    shown: Option<Objects>,
    /// True if listings end in the middle.
    has_cut_listings: bool,
    /// True if objects have no entity tags.
    has_no_tags: bool,
    /// True if objects have no times.
    has_no_times: bool,
    writes: writes::Writes,
    /// How long each read takes.
    read_pause: Duration,
    /// How long each look-up of an object takes.
    lookup_pause: Duration,
    /// Reads under way, and the most there were.
    reading_count: usize,
    reading_max: usize,
    /// Buckets that are for one access key alone. The signature is not looked at.
    keys: BTreeMap<String, String>,
    /// Buckets that refuse everything, with the status and code of S3.
    refusals: BTreeMap<String, (u16, String)>,
}

/// The store. Its threads end with the process.
pub struct Origin {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    reads: Arc<AtomicUsize>,
    lookups: Arc<AtomicUsize>,
}

impl Origin {
    /// Starts an empty store.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (state, reads) = (Arc::<Mutex<State>>::default(), Arc::<AtomicUsize>::default());
        let lookups = Arc::<AtomicUsize>::default();
        let serving = (Arc::clone(&state), Arc::clone(&reads), Arc::clone(&lookups));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Head and body are two writes.
                let _ = stream.set_nodelay(true);
                let (state, reads, lookups) = serving.clone();
                // A client that goes away ends its thread.
                thread::spawn(move || serve(&stream, &state, &reads, &lookups));
            }
        });
        Origin { address, state, reads, lookups }
    }

    /// Returns the URL of the store.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Puts an object.
    pub fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        state.put_count += 1;
        let object = Object { bytes: Arc::new(bytes), number: state.put_count };
        state.objects.insert((bucket.to_owned(), key.to_owned()), object);
    }

    /// Removes an object.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.state().objects.remove(&(bucket.to_owned(), key.to_owned()));
    }

    /// Has the next `count` reads of objects go wrong.
    pub fn break_reads(&self, fault: Fault, count: usize) {
        self.state().fault = Some((fault, count));
    }

    /// Has each of the next reads go wrong in its own way, or go right, in this order.
    pub fn break_reads_in_turn(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults = faults.into_iter().collect();
    }

    /// Has reads and listings go right again.
    pub fn mend(&self) {
        let mut state = self.state();
        state.fault = None;
        state.faults.clear();
        state.shown = None;
        state.has_cut_listings = false;
    }

    /// Has listings show for ever what is there now, as those of a store that lags behind.
    pub fn freeze_listings(&self) {
        let mut state = self.state();
        state.shown = Some(state.objects.clone());
    }

    /// Has listings end in the middle.
    pub fn cut_listings(&self) {
        self.state().has_cut_listings = true;
    }

    /// Leaves entity tags out from now on.
    pub fn forget_tags(&self) {
        self.state().has_no_tags = true;
    }

    /// Leaves times out from now on.
    pub fn forget_times(&self) {
        self.state().has_no_times = true;
    }

    /// Lets only requests with this access key at a bucket.
    pub fn require_key(&self, bucket: &str, access_key: &str) {
        self.state().keys.insert(bucket.to_owned(), access_key.to_owned());
    }

    /// Refuses every request at a bucket from now on with this status, and a code of S3.
    pub fn refuse(&self, bucket: &str, status: u16, code: &str) {
        self.state().refusals.insert(bucket.to_owned(), (status, code.to_owned()));
    }

    /// Has each read of an object take this long from now on.
    pub fn slow_reads(&self, pause: Duration) {
        self.state().read_pause = pause;
    }

    /// Has each look-up of an object take this long from now on.
    pub fn slow_lookups(&self, pause: Duration) {
        self.state().lookup_pause = pause;
    }

    /// Returns the most reads that were under way at once so far.
    pub fn reads_at_once_max(&self) -> usize {
        self.state().reading_max
    }

    /// Counts the look-ups of objects so far: requests for a head, and for a listing.
    pub fn lookup_count(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    /// Counts the reads of objects so far.
    pub fn read_count(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn receive(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    // A space in a query is a plus.
    let plain = |text: &str| decoded(&text.replace('+', "%20"));
    let query = query.map(|(key, value)| (plain(key), plain(value))).collect();
    Ok(Some(Request { method, path: decoded(path), query, headers, body }))
}

/// Undoes `%41`.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|it| std::str::from_utf8(it).ok());
        let code = hex.and_then(|it| u8::from_str_radix(it, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &after[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn serve(
    stream: &TcpStream,
    state: &Mutex<State>,
    reads: &AtomicUsize,
    lookups: &AtomicUsize,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = receive(&mut reader)? {
        let mut out = stream;
        let bare = request.path.trim_start_matches('/').to_owned();
        let (bucket, key) = bare.split_once('/').unwrap_or((&bare, ""));
        let refusal = refusal_of(&lock(state), bucket, &request);
        if let Some((status, code)) = refusal {
            let body = format!("<Error><Code>{code}</Code></Error>");
            let body = if request.method == "HEAD" { "" } else { &body };
            answer(&mut out, status, "", body.as_bytes())?;
            continue;
        }
        if request.method == "HEAD" || request.query.contains_key("list-type") {
            lookups.fetch_add(1, Ordering::SeqCst);
        }
        if request.query.contains_key("list-type") {
            let (body, is_cut) = {
                let state = lock(state);
                (listing(&state, bucket, &request.query), state.has_cut_listings)
            };
            match body {
                Some(body) if is_cut => {
                    let half = &body[..body.len() / 2];
                    answer(&mut out, 200, "Content-Type: application/xml\r\n", half)?;
                }
                Some(body) => answer(&mut out, 200, "Content-Type: application/xml\r\n", &body)?,
                None => {
                    let body = "<Error><Code>NoSuchBucket</Code></Error>";
                    answer(&mut out, 404, "", body.as_bytes())?;
                }
            }
            continue;
        }
        let found = lock(state).objects.get(&(bucket.to_owned(), key.to_owned())).cloned();
        match (request.method.as_str(), found) {
            ("GET" | "HEAD", Some(object)) => {
                wait(&request.method, state);
                let sent = send(&mut out, &request, &object, state, reads);
                if sent.as_ref().is_err_and(|it| it.kind() == io::ErrorKind::ConnectionReset) {
                    let now = Some(Duration::ZERO);
                    let _ = rustix::net::sockopt::set_socket_linger(stream, now);
                }
                sent?;
            }
            ("GET" | "HEAD", None) => answer(&mut out, 404, "", b"")?,
            (_, found) => writes::serve(&mut out, &request, (bucket, key), found, state)?,
        }
    }
    Ok(())
}

/// Waits as a look-up or a read of an object is to take, and counts reads that are under way.
fn wait(method: &str, state: &Mutex<State>) {
    if method == "HEAD" {
        let pause = lock(state).lookup_pause;
        return thread::sleep(pause);
    }
    let pause = {
        let mut state = lock(state);
        state.reading_count += 1;
        state.reading_max = state.reading_max.max(state.reading_count);
        state.read_pause
    };
    thread::sleep(pause);
    lock(state).reading_count -= 1;
}

/// Returns the tag of the object that was put with this number.
fn tag_of(number: u64, length: usize) -> String {
    format!("\"{number:x}-{length:x}\"")
}

/// Returns why a bucket does not answer a request, if it does not.
fn refusal_of(state: &State, bucket: &str, request: &Request) -> Option<(u16, String)> {
    let given = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
    let is_let_in = |key: &String| given.contains(&format!("Credential={key}/"));
    match state.keys.get(bucket) {
        Some(key) if !is_let_in(key) => Some((403, "InvalidAccessKeyId".to_owned())),
        _ => state.refusals.get(bucket).cloned(),
    }
}

fn answer(out: &mut impl Write, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    write!(out, "HTTP/1.1 {status} It\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
    out.write_all(body)
}

/// Takes the fault that this read has, if it has one.
fn fault_of(state: &mut State) -> Option<Fault> {
    if let Some(fault) = state.faults.pop_front() {
        return fault;
    }
    let (fault, left) = state.fault?;
    state.fault = (left > 1).then_some((fault, left - 1));
    Some(fault)
}

fn send(
    out: &mut impl Write,
    request: &Request,
    object: &Object,
    state: &Mutex<State>,
    reads: &AtomicUsize,
) -> io::Result<()> {
    let length = object.bytes.len();
    let is_read = request.method == "GET";
    let (fault, has_no_tags, has_no_times) = {
        let mut state = lock(state);
        let fault = if is_read { fault_of(&mut state) } else { None };
        (fault, state.has_no_tags, state.has_no_times)
    };
    if is_read {
        reads.fetch_add(1, Ordering::SeqCst);
    }
    let number = if fault == Some(Fault::OtherTag) { object.number + 1 } else { object.number };
    let tag = tag_of(number, length);
    if request.headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
        return answer(out, 412, "", b"");
    }
    let day = object.number % 28 + 1;
    // The first of October 2026 is a Thursday.
    let weekday = ["Wed", "Thu", "Fri", "Sat", "Sun", "Mon", "Tue"][day as usize % 7];
    let mut headers = String::new();
    if !has_no_times {
        headers += &format!("Last-Modified: {weekday}, {day:02} Oct 2026 07:28:00 GMT\r\n");
    }
    if !has_no_tags {
        headers += &format!("ETag: {tag}\r\n");
    }
    let range = request.headers.get("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (start, end): (usize, usize) = (start.parse().ok()?, end.parse().ok()?);
        Some(start..(end + 1).min(length))
    });
    if !is_read {
        return write!(out, "HTTP/1.1 200 It\r\n{headers}Content-Length: {length}\r\n\r\n");
    }
    let (mut status, mut part) = match range {
        Some(range) => (206, range),
        None => (200, 0..length),
    };
    let wanted = part.clone();
    match fault {
        Some(Fault::Status(status)) => return answer(out, status, "Retry-After: 1\r\n", b""),
        Some(Fault::Whole) => (status, part) = (200, 0..length),
        Some(Fault::OtherPart) => part = wanted.end.min(length - 1)..length,
        Some(Fault::Long) => part.end = (part.end + part.len()).min(length),
        Some(Fault::Short) => part.end = part.start + part.len() / 2,
        Some(Fault::Hang) => {
            thread::sleep(Duration::from_secs(3600));
            return Ok(());
        }
        Some(Fault::Late(pause)) => thread::sleep(pause),
        _ => (),
    }
    let says = if fault == Some(Fault::Long) { &wanted } else { &part };
    if status == 206 {
        let last = says.end.max(1) - 1;
        headers += &format!("Content-Range: bytes {}-{last}/{length}\r\n", says.start);
    }
    let body = &object.bytes[part];
    let sent = match fault {
        Some(Fault::Zipped) => {
            return answer_with(out, status, &headers, &body[..body.len() / 3], true);
        }
        Some(Fault::EmptyPart) => return answer_with(out, status, &headers, b"", false),
        Some(Fault::Empty) => 0,
        Some(Fault::Cut(missing) | Fault::Reset(missing)) => body.len().saturating_sub(missing),
        Some(Fault::Stuck) => body.len() / 2,
        Some(Fault::Trickle(_)) => 0,
        _ => return answer_with(out, status, &headers, body, false),
    };
    write!(out, "HTTP/1.1 {status} It\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
    out.write_all(&body[..sent])?;
    match fault {
        Some(Fault::Trickle(pause)) => {
            for piece in body.chunks(16 << 10) {
                thread::sleep(pause);
                out.write_all(piece)?;
            }
            Ok(())
        }
        Some(Fault::Stuck) => {
            thread::sleep(Duration::from_secs(3600));
            Ok(())
        }
        Some(Fault::Reset(_)) => Err(io::ErrorKind::ConnectionReset.into()),
        // The connection ends here.
        _ => Err(io::ErrorKind::Other.into()),
    }
}

fn answer_with(
    out: &mut impl Write,
    status: u16,
    headers: &str,
    body: &[u8],
    is_zipped: bool,
) -> io::Result<()> {
    let encoding = if is_zipped { "Content-Encoding: gzip\r\n" } else { "" };
    answer(out, status, &format!("{headers}{encoding}"), body)
}

/// Answers ListObjectsV2; None if there is no such bucket.
fn listing(state: &State, bucket: &str, query: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let limit: usize = text("max-keys").parse().unwrap_or(1000);
    let after = text("continuation-token").max(text("start-after"));
    let objects = state.shown.as_ref().unwrap_or(&state.objects);
    let keys = |from: &str| objects.range((bucket.to_owned(), from.to_owned())..);
    keys("").next().filter(|((other, _), _)| other == bucket)?;
    let (mut body, mut count, mut last, mut is_cut) = (String::new(), 0, String::new(), false);
    for ((other, key), object) in keys(after.max(prefix)) {
        let Some(rest) = key.strip_prefix(prefix).filter(|_| other == bucket) else { break };
        let cut = if delimiter.is_empty() { None } else { rest.find(delimiter) };
        let common = cut.map(|at| &key[..prefix.len() + at + delimiter.len()]);
        let name = common.unwrap_or(key);
        let is_behind = key.as_str() <= after || common.is_some_and(|it| after == it || last == it);
        if is_behind || (common.is_some() && after.starts_with(name) && after != prefix) {
            continue;
        }
        if count == limit {
            is_cut = true;
            break;
        }
        count += 1;
        last = name.to_owned();
        body += &match common {
            Some(common) => {
                format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(common))
            }
            None => {
                let length = object.bytes.len();
                let tag = match state.has_no_tags {
                    true => String::new(),
                    false => format!("<ETag>&quot;{:x}-{length:x}&quot;</ETag>", object.number),
                };
                format!(
                    "<Contents><Key>{}</Key><LastModified>2026-10-{:02}T07:28:00.000Z</LastModified>\
                     {tag}<Size>{length}</Size></Contents>",
                    escaped(key),
                    object.number % 28 + 1,
                )
            }
        };
    }
    let token = match is_cut {
        true => format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&last)),
        false => String::new(),
    };
    let head = format!("<IsTruncated>{is_cut}</IsTruncated><KeyCount>{count}</KeyCount>");
    Some(format!("<ListBucketResult>{head}{token}{body}</ListBucketResult>").into_bytes())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
