//! `MillraceStore`: what nodes have mounted, as a store of its own.
//!
//! Owns how the trait's calls become the client's. Always holds: the bytes that one call returns are of one
//! version of the object; a version that has gone is looked up again if nothing of it was returned yet, and
//! else an error says so. Only what is asked for is read: the gaps between ranges are not.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use millrace_client::{
    Client, ClientConfig, Condition, Error as ClientError, File, Kind, PutOptions, Status,
};
use tokio::io::AsyncRead;

use super::api::path::Path;
use super::api::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions as Put, PutPayload, PutResult, RenameOptions, RenameTargetMode,
    Result, UpdateVersion,
};
use super::upload::Parts;
use super::{failure, results, walk};
use crate::known::{BELIEVED_FOR, First, Known};

/// Bytes of a piece of a whole object. Derived: a block of the default size.
const PIECE: u64 = 1 << 20;
/// Pieces of one object that are read ahead. Guessed: with two shards each has some in flight.
const PIECES_AHEAD: usize = 4;
/// Reads up to this length in bytes get memory of their own, because a caller may keep a few bytes for
/// long, and with them all that came in the same buffer.
const COPIED_MAX: usize = 16 << 10;
/// Looks for an object that changes between look-up and read, before that is an error. Guessed.
const LOOKS_MAX: u32 = 3;
/// Time of a rename: a store may have to copy the object. As the command line has it.
const RENAME_DEADLINE: Duration = Duration::from_secs(600);
/// Look-ups under way of objects of one view. Guessed.
const LOOKS_AT_ONCE: usize = 32;
/// Deletes under way of one stream. Guessed: a quarter of the writes that a node has under way by default, so that
/// others have theirs.
const DELETES_AT_ONCE: usize = 4;

/// A store whose objects are the files that a node or a cluster serves.
///
/// Keys are paths below the served root, or below [`MillraceStore::with_prefix`]. The entity tag of an object
/// is its version at the node. Clones share connections. It needs the tokio runtime that it was connected in.
#[derive(Clone)]
pub struct MillraceStore {
    client: Client,
    /// Path below which keys are, with a `/` at its end unless it is empty.
    prefix: Arc<str>,
    known: Arc<Known<File>>,
    /// What each object was when it was looked at first, if that is to stay.
    first: Option<Arc<First<File>>>,
}

impl MillraceStore {
    /// Connects to `millrace://HOST:PORT/PREFIX`, with several addresses behind commas, or to a cluster by its
    /// coordination, `millrace+zk://HOST:PORT/PATH`.
    ///
    /// # Errors
    /// For another scheme, and those of [`Client::connect`].
    pub async fn connect(url: &str) -> Result<MillraceStore> {
        MillraceStore::connect_with(url, ClientConfig::new()).await
    }

    /// As [`MillraceStore::connect`], with other settings of the client.
    ///
    /// # Errors
    /// As [`MillraceStore::connect`].
    pub async fn connect_with(url: &str, config: ClientConfig) -> Result<MillraceStore> {
        let (address, prefix) = if let Some(rest) = url.strip_prefix("millrace+zk://") {
            (format!("zk://{rest}"), "")
        } else if let Some(rest) = url.strip_prefix("millrace://") {
            let (address, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            (address.to_owned(), prefix)
        } else {
            let text =
                format!("'{url}' is not millrace://HOST:PORT or millrace+zk://HOST:PORT/PATH");
            return Err(failure::refused(text));
        };
        let client = Client::connect(address, config).await;
        let client = client.map_err(|error| failure::error(url, error))?;
        Ok(MillraceStore::new(client).with_prefix(prefix))
    }

    /// Makes a store of a client that is connected.
    pub fn new(client: Client) -> MillraceStore {
        let known = Arc::new(Known::new(BELIEVED_FOR));
        MillraceStore { client, prefix: "".into(), known, first: None }
    }

    /// Returns this store with all keys below a path.
    pub fn with_prefix(self, prefix: &str) -> MillraceStore {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let known = Arc::new(Known::new(self.known.believed_for()));
        let first = self.first.map(|_| Arc::new(First::new()));
        MillraceStore { client: self.client, prefix: prefix.into(), known, first }
    }

    /// Returns this store with another time for which reads of ranges believe the last look-up of their
    /// object, beside what the node itself believes. Default 1 s; with zero each read asks the node first.
    /// `head`, reads of whole objects, conditions and listings always ask.
    pub fn with_believed_for(self, time: Duration) -> MillraceStore {
        MillraceStore { known: Arc::new(Known::new(time)), ..self }
    }

    /// Returns a view of this store for one query. Each object keeps the version that it had when it was looked
    /// at or read first: any later read of another version ends with `Precondition`. Then all reads of one object
    /// are of one version, though none of them has a condition, and an object is looked up once. Listings show
    /// what is there. It is for up to 1,048,576 objects; a read of more is an error.
    pub fn with_first_versions(&self) -> MillraceStore {
        MillraceStore { first: Some(Arc::new(First::new())), ..self.clone() }
    }

    /// True if this view may go on: no more than `most` objects were looked at in it, the nodes were asked for each
    /// of them again, and all have the versions that they had. What an engine has kept of them, such as footers,
    /// may be used again then. False for a store that is not such a view.
    pub async fn first_versions_hold(&self, most: usize) -> bool {
        let Some(files) = self.first.as_ref().and_then(|first| first.all(most)) else {
            return false;
        };
        let looks = stream::iter(files).map(|file| async move {
            let now = self.client.stat(&file.path).await;
            now.is_ok_and(|now| now.version == file.version && now.length == file.length)
        });
        looks.buffer_unordered(LOOKS_AT_ONCE).all(|holds| async move { holds }).await
    }

    /// Returns the client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the node's path of a key.
    fn path_of(&self, location: &Path) -> String {
        format!("{}{location}", self.prefix)
    }

    /// Returns the node's path of a directory.
    fn directory_of(&self, prefix: Option<&Path>) -> Arc<str> {
        let below = prefix.map(|prefix| self.path_of(prefix));
        below.unwrap_or_else(|| (*self.prefix).to_owned()).trim_end_matches('/').into()
    }

    /// Looks an object up at the node.
    async fn look_up(&self, path: &str) -> Result<File> {
        let began = Instant::now();
        let found = self.client.stat(path).await;
        let file = found.map_err(|error| failure::error(path, error))?;
        if file.kind == Kind::Directory {
            let source = "it is a directory".into();
            return Err(Error::NotFound { path: path.to_owned(), source });
        }
        self.known.note(path, began, file.clone());
        let Some(first) = &self.first else { return Ok(file) };
        first
            .note(path, file)
            .ok_or_else(|| failure::refused("a query of too many objects".to_owned()))
    }

    /// Returns what is known of an object, if that may be believed.
    fn known(&self, path: &str) -> Option<File> {
        match &self.first {
            Some(first) => first.get(path),
            None => self.known.get(path),
        }
    }

    /// Forgets what is known of an object, because it was written here.
    fn forget(&self, path: &str) {
        self.known.forget(path);
        if let Some(first) = &self.first {
            first.forget(path);
        }
    }

    /// True if an object may be looked up again after this many looks, because it has changed.
    fn may_look_again(&self, looks: u32) -> bool {
        self.first.is_none() && looks < LOOKS_MAX
    }

    /// Returns the trait's description of a file.
    fn meta(&self, file: &File) -> Result<ObjectMeta> {
        let key = file.path.strip_prefix(&*self.prefix).unwrap_or(&file.path);
        Ok(ObjectMeta {
            location: failure::location(key)?,
            last_modified: DateTime::from_timestamp_millis(file.modified_ms).unwrap_or_default(),
            size: file.length,
            e_tag: Some(tag(file)),
            version: None,
        })
    }

    /// Reads ranges of one version of an object.
    async fn read_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.path_of(location);
        let mut looks = 0;
        loop {
            let file = match self.known(&path) {
                Some(file) => file,
                None => self.look_up(&path).await?,
            };
            looks += 1;
            let asked = checked(&file, ranges)?;
            let mut results = Vec::with_capacity(asked.len());
            let mut is_stale = false;
            for result in self.client.read_many(&asked).await {
                match result {
                    Ok(bytes) => results.push(owned(bytes)),
                    Err(ClientError::Stale { .. }) if self.may_look_again(looks) => is_stale = true,
                    Err(error) => return Err(failure::error(&path, error)),
                }
            }
            if !is_stale {
                return Ok(results);
            }
            self.known.forget(&path);
        }
    }

    /// Returns a range of a file as a stream, whose first piece is read already.
    async fn stream(
        &self,
        file: &File,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>, ClientError> {
        let first_end = range.end.min(range.start - range.start % PIECE + PIECE);
        let first = self.client.read(file, range.start, first_end - range.start).await?;
        let (client, file) = (self.client.clone(), file.clone());
        let starts = (first_end..range.end).step_by(PIECE as usize);
        let rest = stream::iter(starts).map(move |start| {
            let (client, file) = (client.clone(), file.clone());
            let length = PIECE.min(range.end - start);
            async move {
                let read = client.read(&file, start, length).await;
                read.map_err(|error| failure::error(&file.path, error))
            }
        });
        let first = stream::iter([Ok(owned(first))]);
        Ok(first.chain(rest.buffered(PIECES_AHEAD)).boxed())
    }

    async fn put(
        &self,
        path: &str,
        reader: impl AsyncRead + Unpin,
        condition: Condition,
    ) -> Result<File> {
        let written = self.client.put(path, reader, PutOptions { condition }).await;
        // A look that was under way may have noted what was there before.
        self.forget(path);
        written.map_err(|error| failed_write(path, condition, error))
    }

    /// Copies an object through this machine, because the protocol has no copy at the source.
    async fn copy(&self, from: &Path, to: &Path, condition: Condition) -> Result<()> {
        let (from, to) = (self.path_of(from), self.path_of(to));
        let file = self.look_up(&from).await?;
        let reader = self.client.reader(&file);
        self.put(&to, reader, condition).await.map(drop)
    }
}

/// Returns the error of the trait for a write with a condition.
fn failed_write(path: &str, condition: Condition, error: ClientError) -> Error {
    match (failure::error(path, error), condition) {
        (Error::Precondition { path, source }, Condition::Absent) => {
            Error::AlreadyExists { path, source }
        }
        // What is not there has not the version either.
        (Error::NotFound { path, source }, Condition::Version(_)) => {
            Error::Precondition { path, source }
        }
        (error, _) => error,
    }
}

/// Returns the entity tag of a version of a file.
fn tag(file: &File) -> String {
    format!("\"{:016x}\"", file.version)
}

/// Returns the version that an entity tag of ours names.
fn version_of(update: &UpdateVersion) -> Option<u64> {
    let tag = update.e_tag.as_deref()?.strip_prefix('"')?.strip_suffix('"')?;
    u64::from_str_radix(tag, 16).ok()
}

/// Returns small bytes in memory of their own.
fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() <= COPIED_MAX { Bytes::copy_from_slice(&bytes) } else { bytes }
}

/// Returns what to ask for.
///
/// # Errors
/// For a range that is the wrong way round, or begins behind the end of the file.
fn checked<'a>(file: &'a File, ranges: &[Range<u64>]) -> Result<Vec<(&'a File, u64, u64)>> {
    let check = |range: &Range<u64>| {
        if range.start > range.end || range.start > file.length {
            let length = file.length;
            let text = format!("range {range:?} does not fit '{}' of {length} bytes", file.path);
            return Err(failure::refused(text));
        }
        Ok((file, range.start, range.end.min(file.length) - range.start))
    };
    ranges.iter().map(check).collect()
}

/// Refuses what no source takes through a node.
fn refuse_attributes(attributes: &Attributes) -> Result<()> {
    if attributes.is_empty() {
        Ok(())
    } else {
        Err(failure::not_implemented("put with attributes"))
    }
}

#[async_trait]
impl ObjectStore for MillraceStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: Put) -> Result<PutResult> {
        refuse_attributes(&opts.attributes)?;
        let path = self.path_of(location);
        let condition = match &opts.mode {
            PutMode::Overwrite => Condition::None,
            PutMode::Create => Condition::Absent,
            PutMode::Update(update) => {
                let version = version_of(update).ok_or_else(|| Error::Precondition {
                    path: path.clone(),
                    source: "the entity tag is not one of this store".into(),
                })?;
                Condition::Version(version)
            }
        };
        let file = self.put(&path, Payload::new(payload), condition).await?;
        Ok(results::put(tag(&file)))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        refuse_attributes(&opts.attributes)?;
        let path = self.path_of(location);
        let store = self.clone();
        let done = move |file: &File| {
            store.forget(&file.path);
            results::put(tag(file))
        };
        Ok(Box::new(Parts::new(&self.client, &path, done)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            return Err(failure::not_implemented("get of an old version"));
        }
        let path = self.path_of(location);
        let mut looks = 0;
        loop {
            // A part of an object is read by a caller that has looked at it before.
            let is_known = is_plain_part(&options) || self.first.is_some();
            let known = if is_known { self.known(&path) } else { None };
            let file = match known {
                Some(file) => file,
                None => self.look_up(&path).await?,
            };
            looks += 1;
            let meta = self.meta(&file)?;
            options.check_preconditions(&meta)?;
            let range = match &options.range {
                Some(range) => as_range(range, &path, file.length)?,
                None => 0..file.length,
            };
            if options.head || range.is_empty() {
                let payload = GetResultPayload::Stream(stream::empty().boxed());
                return Ok(results::got(payload, meta, range));
            }
            match self.stream(&file, range.clone()).await {
                Ok(bytes) => {
                    return Ok(results::got(GetResultPayload::Stream(bytes), meta, range));
                }
                Err(ClientError::Stale { .. }) if self.may_look_again(looks) => {
                    self.known.forget(&path);
                }
                Err(error) => return Err(failure::error(&path, error)),
            }
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.read_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deletes = locations.map(move |location| {
            let store = store.clone();
            async move {
                let location = location?;
                let path = store.path_of(&location);
                let deleted = store.client.delete(&path).await;
                store.forget(&path);
                deleted.map_err(|error| failure::error(&path, error))?;
                Ok(location)
            }
        });
        deletes.buffered(DELETES_AT_ONCE).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let files = walk::files(self.client.clone(), self.directory_of(prefix));
        files.map(move |file| store.meta(&file?)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut entries = walk::entries(self.client.clone(), self.directory_of(prefix));
        let (mut prefixes, mut objects) = (Vec::new(), Vec::new());
        while let Some(file) = entries.try_next().await? {
            let meta = self.meta(&file)?;
            match file.kind {
                Kind::Directory => prefixes.push(meta.location),
                Kind::File => objects.push(meta),
            }
        }
        Ok(results::listed(prefixes, objects))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let condition = match options.mode {
            CopyMode::Overwrite => Condition::None,
            CopyMode::Create => Condition::Absent,
        };
        self.copy(from, to, condition).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (path, target) = (self.path_of(from), self.path_of(to));
        // What is at the old path is not a directory, which a node would move as a whole.
        self.look_up(&path).await?;
        let client = self.client.with_deadline(RENAME_DEADLINE);
        let (renamed, condition) = match options.target_mode {
            RenameTargetMode::Overwrite => (client.rename(&path, &target).await, Condition::None),
            RenameTargetMode::Create => {
                (client.rename_if_absent(&path, &target).await, Condition::Absent)
            }
        };
        [&path, &target].into_iter().for_each(|path| self.forget(path));
        match renamed.map_err(|error| (error.status(), error)) {
            Ok(_) => Ok(()),
            // Some stores copy on a condition only where their operator says so, and all write on one.
            Err((Some(Status::PermissionDenied | Status::UnknownOp), _))
                if condition == Condition::Absent =>
            {
                self.copy(from, to, condition).await?;
                self.delete(from).await
            }
            Err((Some(Status::ConditionFailed), error)) => {
                Err(failed_write(&target, condition, error))
            }
            Err((_, error)) => Err(failed_write(&path, condition, error)),
        }
    }
}

/// True if some bytes are asked for, and of any version.
fn is_plain_part(options: &GetOptions) -> bool {
    let has_condition = options.if_match.is_some()
        || options.if_none_match.is_some()
        || options.if_modified_since.is_some()
        || options.if_unmodified_since.is_some();
    options.range.is_some() && !options.head && !has_condition
}

/// Returns the bytes that a range means of an object of this length.
fn as_range(range: &GetRange, path: &str, length: u64) -> Result<Range<u64>> {
    range.as_range(length).map_err(|error| failure::refused(format!("'{path}': {error}")))
}

/// The bytes of a payload, one piece after the other.
struct Payload {
    pieces: std::vec::IntoIter<Bytes>,
    piece: Bytes,
}

impl Payload {
    fn new(payload: PutPayload) -> Payload {
        let pieces: Vec<Bytes> = payload.into_iter().collect();
        Payload { pieces: pieces.into_iter(), piece: Bytes::new() }
    }
}

impl AsyncRead for Payload {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        while self.piece.is_empty() {
            let Some(piece) = self.pieces.next() else { return std::task::Poll::Ready(Ok(())) };
            self.piece = piece;
        }
        let count = self.piece.len().min(buffer.remaining());
        buffer.put_slice(&self.piece.split_to(count));
        std::task::Poll::Ready(Ok(()))
    }
}

impl fmt::Display for MillraceStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Millrace({})", self.prefix)
    }
}

impl fmt::Debug for MillraceStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("MillraceStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
