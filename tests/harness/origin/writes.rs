//! What the store in this process does with writes: whole objects, objects in parts, conditions, deletes.
//!
//! Owns the parts of objects that are not complete. Faults answer writes; what a write did before a fault stays.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{Object, Origin, Request, State, answer, lock, tag_of};

/// What is wrong with the answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// This status, and nothing is written.
    Status(u16),
    /// The write is made, and no answer comes.
    Silent,
    /// The write is made, and then answered with this status.
    Late(u16),
    /// An object in parts is made complete, and then answered with this status; other writes go right.
    LateEnd(u16),
}

/// Objects that are brought in parts.
#[derive(Default)]
pub(super) struct Writes {
    open: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    begun_count: u64,
    /// Requests that came and may have no answer yet.
    asked_count: usize,
    /// Whole objects and parts that came.
    put_count: usize,
    fault: Option<WriteFault>,
    /// What another writer puts just before an object in parts is made complete.
    overtaking: Option<((String, String), Vec<u8>)>,
    /// How long each takes.
    pause: Duration,
}

impl Origin {
    /// Has all writes go wrong from now on; None has them go right again.
    pub fn break_writes(&self, fault: Option<WriteFault>) {
        self.state().writes.fault = fault;
    }

    /// Has each object and each part take this long from now on.
    pub fn slow_writes(&self, pause: Duration) {
        self.state().writes.pause = pause;
    }

    /// Counts the objects whose parts came, and which are neither complete nor aborted.
    pub fn open_count(&self) -> usize {
        self.state().writes.open.len()
    }

    /// Has another writer put these bytes just before the next object in parts is made complete.
    pub fn replace_at_next_end(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.state().writes.overtaking = Some(((bucket.to_owned(), key.to_owned()), bytes));
    }

    /// Counts the objects in parts that were begun.
    pub fn begun_count(&self) -> u64 {
        self.state().writes.begun_count
    }

    /// Counts the requests for writes that came, those without an answer among them.
    pub fn asked_count(&self) -> usize {
        self.state().writes.asked_count
    }

    /// Counts the objects and parts that came.
    pub fn put_count(&self) -> usize {
        self.state().writes.put_count
    }

    /// Returns an object.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.objects.get(&(bucket.to_owned(), key.to_owned())).map(|it| it.bytes.to_vec())
    }
}

/// Answers a request that changes something.
pub(super) fn serve(
    out: &mut impl Write,
    request: &Request,
    (bucket, key): (&str, &str),
    found: Option<Object>,
    state: &Mutex<State>,
) -> io::Result<()> {
    let (fault, pause) = {
        let mut state = lock(state);
        state.writes.asked_count += 1;
        (state.writes.fault, state.writes.pause)
    };
    thread::sleep(pause);
    if let Some(WriteFault::Status(status)) = fault {
        return answer(out, status, "", b"");
    }
    let is_end = request.method == "POST" && request.query.contains_key("uploadId");
    let (status, headers, body) = {
        let mut state = lock(state);
        if let Some((place, bytes)) = state.writes.overtaking.take_if(|_| is_end) {
            put(&mut state, place, bytes);
        }
        change(&mut state, request, (bucket, key), found)
    };
    if fault == Some(WriteFault::Silent) {
        thread::sleep(Duration::from_secs(3600));
    }
    match fault {
        Some(WriteFault::Late(late)) if status < 300 => answer(out, late, "", b""),
        Some(WriteFault::LateEnd(late)) if status < 300 && is_end => answer(out, late, "", b""),
        _ => answer(out, status, &headers, body.as_bytes()),
    }
}

type Done = (u16, String, String);

fn plain(status: u16) -> Done {
    (status, String::new(), String::new())
}

fn change(
    state: &mut State,
    request: &Request,
    (bucket, key): (&str, &str),
    found: Option<Object>,
) -> Done {
    let place = (bucket.to_owned(), key.to_owned());
    let upload = request.query.get("uploadId");
    // It may have come since the request was looked at.
    let found = state.objects.get(&place).cloned().or(found);
    let tag = found.map(|it| tag_of(it.number, it.bytes.len()));
    let is_taken = request.headers.contains_key("if-none-match") && tag.is_some();
    let is_other = request.headers.get("if-match").is_some_and(|it| Some(it) != tag.as_ref());
    if is_taken || is_other {
        return plain(412);
    }
    match (request.method.as_str(), upload) {
        ("PUT", None) if request.headers.contains_key("x-amz-copy-source") => {
            let source = super::decoded(&request.headers["x-amz-copy-source"]);
            let (bucket, key) = source.split_once('/').unwrap_or_default();
            let source = state.objects.get(&(bucket.to_owned(), key.to_owned()));
            let Some(bytes) = source.map(|it| it.bytes.to_vec()) else { return plain(404) };
            let (status, headers, _) = put(state, place, bytes);
            (status, headers, "<CopyObjectResult></CopyObjectResult>".to_owned())
        }
        ("PUT", None) => {
            state.writes.put_count += 1;
            put(state, place, request.body.clone())
        }
        ("PUT", Some(upload)) => {
            let part = request.query.get("partNumber").and_then(|it| it.parse().ok());
            let parts = state.writes.open.get_mut(upload).zip(part);
            let Some((parts, part)) = parts else { return plain(404) };
            parts.insert(part, request.body.clone());
            state.writes.put_count += 1;
            (200, format!("ETag: \"part-{part}\"\r\n"), String::new())
        }
        ("POST", None) if request.query.contains_key("uploads") => {
            state.writes.begun_count += 1;
            let upload = format!("upload-{}", state.writes.begun_count);
            state.writes.open.insert(upload.clone(), BTreeMap::new());
            let body = format!(
                "<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>\
                 </InitiateMultipartUploadResult>"
            );
            (200, "Content-Type: application/xml\r\n".to_owned(), body)
        }
        ("POST", Some(upload)) => {
            let Some(parts) = state.writes.open.remove(upload) else { return plain(404) };
            let (status, headers, _) = put(state, place, parts.into_values().flatten().collect());
            let tag = headers.trim().trim_start_matches("ETag: ").replace('"', "&quot;");
            let body = format!(
                "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            );
            (status, "Content-Type: application/xml\r\n".to_owned(), body)
        }
        ("DELETE", Some(upload)) => {
            state.writes.open.remove(upload);
            plain(204)
        }
        ("DELETE", None) => {
            state.objects.remove(&place);
            plain(204)
        }
        _ => plain(405),
    }
}

fn put(state: &mut State, place: (String, String), bytes: Vec<u8>) -> Done {
    state.put_count += 1;
    let (number, length) = (state.put_count, bytes.len());
    state.objects.insert(place, Object { bytes: Arc::new(bytes), number });
    // A weak tag names no bytes.
    let weak = if state.has_no_tags { "W/" } else { "" };
    (200, format!("ETag: {weak}{}\r\n", tag_of(number, length)), String::new())
}
