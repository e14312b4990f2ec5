//! Look-ups: what a path is, what a directory holds, and what is dropped when a file has changed.
//!
//! Always holds: when a client gets a new version of a file, the blocks of the one before are gone; what is
//! answered without asking a source is as young as the mount wants it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use millrace_proto::message::{
    Entry, FreeReply, Kind, LIST_PAGE_BYTES_MAX, ListReply, PartialListReply, StatReply,
};
use millrace_proto::{FileId, Status, frame};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::listings::PageName;
use super::{Answer, Context, Failure, LookupJob, PathLookup, encode};
use crate::files::{FileRecord, Look, Noted};
use crate::mailbox::{DropJob, Dropped, Mail, Requester, reply_header};
use crate::owner::{LoadLimits, Ticket};
use crate::store::{Found, StoreError, check_path};

/// Sources whose queues may be full at once before others are answered `Busy`. Guessed.
const SOURCES_MAX: usize = 8;
/// Most entries of one `List` page.
const LIST_PAGE_MAX: usize = 1000;
/// Why a name that clients cannot ask for is left out.
pub(super) const NOT_SERVABLE: &str =
    "no client can ask for it: the path is not one, or the file is too long";
/// Bytes of an archived entry without its name.
const ENTRY_SIZE: usize = 64;

/// Serves look-ups, each in a task of its own, at most `jobs_max` of each source.
pub(super) async fn serve(
    context: Arc<Context>,
    jobs: flume::Receiver<LookupJob<PathLookup>>,
    jobs_max: usize,
) {
    let slots = Arc::new(Semaphore::new(SOURCES_MAX * jobs_max));
    let load_limits = LoadLimits::of(context.loads.available_permits());
    while let Ok(LookupJob { requester, ticket, lookup }) = jobs.recv_async().await {
        if ticket.is_gone() {
            continue;
        }
        // Loads take long and wait for look-ups of other clients to go on: they have slots of their own,
        // of which no client gets all, however many connections its machine has.
        let is_load = matches!(lookup, PathLookup::Load { .. } | PathLookup::LoadPart(_));
        let (slots, message) = match is_load {
            true => (&context.loads, "as many loads as allowed are under way (load_concurrency)"),
            false => (&slots, "too many requests wait for sources (metadata_queue_max)"),
        };
        let share = if is_load { ticket.load(load_limits) } else { None };
        let slot = Arc::clone(slots).try_acquire_owned();
        let (Ok(slot), true) = (slot, share.is_some() == is_load) else {
            if let PathLookup::Put(put) = &lookup {
                put.door.shut();
            }
            context.answer(requester, Err(Failure::new(Status::Busy, message))).await;
            continue;
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let caller = Caller { requester: &requester, ticket: &ticket };
            let answer = match lookup {
                PathLookup::Stat { path } => context.stat(caller, path).await,
                PathLookup::List { path, token, limit } => {
                    context.list(caller, path, token, limit).await
                }
                PathLookup::Refresh { path, recursive } => {
                    context.refresh(caller, path, recursive).await
                }
                PathLookup::Free { path, everywhere } => {
                    context.free(caller, path, everywhere).await
                }
                PathLookup::Load { path, copies } => context.load(caller, path, copies).await,
                PathLookup::LoadPart(part) => context.load_part(caller, part).await,
                PathLookup::Delete { path, condition, slot } => {
                    context.delete(&requester, path, condition, slot).await
                }
                PathLookup::Rename { path, to, condition, slot, under_way } => {
                    let places = (slot, under_way);
                    context.rename(&requester, (path, to), condition, places).await
                }
                // It answers more than this one request.
                PathLookup::Put(put) => {
                    return context.upload(requester, &ticket, put, slot).await;
                }
            };
            context.answer(requester, answer).await;
            drop((slot, share));
        });
    }
}

/// The connection that waits for a look-up.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) requester: &'a Requester,
    pub(super) ticket: &'a Ticket,
}

impl Context {
    /// Asks a source, for as long as a caller waits and there is time for it.
    pub(super) async fn ask<T>(
        &self,
        caller: Caller<'_>,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        let budget = self.budget(caller.requester);
        tokio::select! {
            answer = timeout(budget.unwrap_or(self.patience), answer) => match answer {
                Ok(answer) => Ok(answer?),
                Err(_) if budget.is_some() => {
                    let message = "the deadline passed before the source had answered";
                    Err(Failure::new(Status::DeadlineExceeded, message))
                }
                Err(_) => {
                    let ms = self.patience.as_millis();
                    let message =
                        format!("the source has not answered for {ms} ms (source_timeout_ms)");
                    Err(Failure::new(Status::SourceError, &message))
                }
            },
            () = caller.ticket.gone() => Err(Failure::gone()),
        }
    }

    /// Notes what the source reported of a path, at a look that began before it was asked, and makes it
    /// an entry. If the version is new, the blocks of the one before are gone when this returns.
    pub(super) async fn note(
        &self,
        path: &Arc<str>,
        name: String,
        found: Found,
        look: Ask,
    ) -> Entry {
        let id = self.store.identify(path);
        let mut noted = Noted::Known;
        if found.kind == Kind::File {
            let (version, length) = (found.version, found.length);
            let is_read_in_parts = self.store.is_read_in_parts(path);
            let is_stored = self.store.is_stored(path);
            let known_as = Arc::clone(path);
            let record =
                FileRecord { path: known_as, version, length, is_read_in_parts, is_stored };
            // A look that was overtaken by a newer one shows at the first read: the version is stale.
            noted = self.files.note_at(id, record, look.look);
            if noted == Noted::Instead {
                self.beliefs.listings.forget(path, Instant::now());
                self.drop_blocks(id).await;
            }
        }
        if noted != Noted::TooLate && !self.store.stale_after(path).is_zero() {
            self.beliefs.note(path, id, Some(found.clone()), look.at);
        }
        entry_of(name, id, found)
    }

    /// Begins to ask a source.
    pub(super) fn begin(&self) -> Ask {
        Ask { look: self.files.look(), at: Instant::now() }
    }

    /// Returns what a look-up found a moment ago, if the mount lets that be believed.
    fn believed(&self, path: &Arc<str>) -> Option<Result<Entry, Failure>> {
        let bound = self.store.stale_after(path);
        if bound.is_zero() {
            return None;
        }
        self.believe_this_epoch();
        let id = self.store.identify(path);
        let Some(found) = self.beliefs.get(path, id, bound, Instant::now())? else {
            return Some(Err(StoreError::NotFound.into()));
        };
        // A read has found out more since, or wants a version that another node has seen.
        let is_known = || self.files.get(id).is_some_and(|it| it.version == found.version);
        if found.kind == Kind::File && (self.files.is_doubted(id) || !is_known()) {
            return None;
        }
        Some(Ok(entry_of(path.to_string(), id, found)))
    }

    /// Forgets all answers of another epoch: what is mounted where, and what of it is shown, may be another by now.
    fn believe_this_epoch(&self) {
        let epoch = self.cluster.view().layout.epoch;
        if self.believed_epoch.swap(epoch, Ordering::Relaxed) != epoch {
            self.beliefs.forget_below("", Instant::now());
        }
    }

    /// Has the next look-up of a path ask the source: of two writes at once it is not known here which one was
    /// the last.
    pub(super) fn believe_nothing(&self, path: &str) {
        self.beliefs.forget(path, Instant::now());
    }

    /// Has the next look-ups of all paths below a directory ask the source.
    pub(super) fn believe_nothing_below(&self, path: &str) {
        self.beliefs.forget_below(path, Instant::now());
    }

    /// Forgets what is known of a path, and drops its blocks.
    pub(super) async fn forget_all(&self, path: &str) {
        let id = self.store.identify(path);
        self.beliefs.forget(path, Instant::now());
        self.files.forget(id);
        self.drop_blocks(id).await;
    }

    /// Forgets all files below a directory that is gone, and drops their blocks.
    pub(super) async fn forget_below(&self, path: &str) {
        self.beliefs.forget_below(path, Instant::now());
        for id in self.files.forget_below(path) {
            self.drop_blocks(id).await;
        }
    }

    /// Forgets a file that is no longer in this version, and drops its blocks.
    pub(super) async fn forget(&self, id: FileId, version: u64) {
        if self.files.get(id).is_some_and(|record| record.version == version)
            && let Some(record) = self.files.forget(id)
        {
            self.beliefs.listings.forget(&record.path, Instant::now());
            self.drop_blocks(id).await;
        }
    }

    /// Drops the blocks of a file on every shard, because it is another one now.
    pub(super) async fn drop_blocks(&self, file: FileId) -> Dropped {
        self.drop_by(file, false).await
    }

    /// Drops the blocks of a file on every shard and every disk, so that they do not come back after a restart.
    pub(super) async fn free_blocks(&self, file: FileId) -> Dropped {
        self.drop_by(file, true).await
    }

    async fn drop_by(&self, file: FileId, is_for_good: bool) -> Dropped {
        self.stays.forget(file);
        let mut total = Dropped::default();
        let mut replies = Vec::with_capacity(self.shards.len());
        for shard in self.shards.iter() {
            let (job, receiver) = DropJob::new(file, is_for_good);
            shard.post_when_room(Mail::Drop(job)).await;
            replies.push(receiver);
        }
        for reply in replies {
            // A shard that stopped meanwhile has dropped everything.
            if let Ok(dropped) = reply.recv_async().await {
                total.block_count += dropped.block_count;
                total.byte_count += dropped.byte_count;
            }
        }
        total
    }

    /// True if a file of this length may be noted under this path: no other is found by a look-up.
    pub(super) fn is_servable(&self, path: &str, length: u64) -> bool {
        let block_count = length.div_ceil(u64::from(self.block_size));
        check_path(path).is_ok() && block_count <= u64::from(u32::MAX)
    }

    /// Looks a path up in the source.
    pub(super) async fn look_up(
        &self,
        caller: Caller<'_>,
        path: &Arc<str>,
    ) -> Result<Entry, Failure> {
        check_path(path)?;
        let look = self.begin();
        let found = self.ask(caller, self.store.stat(Arc::clone(path))).await;
        self.judge(path, found, look).await
    }

    /// As [`Context::look_up`], for no caller: the time is bounded elsewhere.
    pub(super) async fn see_now(&self, path: &Arc<str>) -> Result<Entry, Failure> {
        let look = self.begin();
        let found = self.store.stat(Arc::clone(path)).await.map_err(Failure::from);
        self.judge(path, found, look).await
    }

    /// Notes what a look that began before the source was asked has found, or not.
    async fn judge(
        &self,
        path: &Arc<str>,
        found: Result<Found, Failure>,
        look: Ask,
    ) -> Result<Entry, Failure> {
        match found {
            Ok(found) => {
                if !self.is_servable(path, found.length) {
                    let message =
                        "the file has more than 2^32 blocks: use a larger block_size".to_owned();
                    return Err(Failure { status: Status::InvalidArgument, message });
                }
                Ok(self.note(path, path.to_string(), found, look).await)
            }
            Err(failure) => {
                if failure.status == Status::NotFound {
                    let id = self.store.identify(path);
                    let record = self.files.get_from_before(id, look.look);
                    // A path that shows a part of a source says nothing of the same file at another one.
                    if let Some(record) = record.filter(|record| record.path == *path) {
                        self.forget(id, record.version).await;
                    }
                    if !self.store.stale_after(path).is_zero() {
                        self.beliefs.note(path, id, None, look.at);
                    }
                }
                Err(failure)
            }
        }
    }

    /// Looks a path up that has to be a file.
    pub(super) async fn look_up_file(
        &self,
        caller: Caller<'_>,
        path: &Arc<str>,
    ) -> Result<Entry, Failure> {
        let entry = self.look_up(caller, path).await?;
        if entry.kind == Kind::File {
            return Ok(entry);
        }
        let message = "a directory: name a file, or list it and go through its files".to_owned();
        Err(Failure { status: Status::WrongKind, message })
    }

    async fn stat(self: &Arc<Self>, caller: Caller<'_>, path: Arc<str>) -> Answer {
        check_path(&path)?;
        let entry = match self.believed(&path) {
            Some(believed) => believed?,
            None => self.look_up_together(caller, &path).await?,
        };
        Ok(encode(caller.requester, &StatReply { entry, block_size: self.block_size }))
    }

    async fn refresh(&self, caller: Caller<'_>, path: Arc<str>, recursive: bool) -> Answer {
        check_path(&path)?;
        self.beliefs.forget(&path, Instant::now());
        if recursive {
            self.beliefs.forget_below(&path, Instant::now());
        }
        let found = self.look_up(caller, &path).await;
        if recursive && let Err(Failure { status: Status::NotFound, .. }) = &found {
            self.forget_below(&path).await;
        }
        let entry = found?;
        Ok(encode(caller.requester, &StatReply { entry, block_size: self.block_size }))
    }

    async fn list(
        &self,
        caller: Caller<'_>,
        path: Arc<str>,
        token: Arc<str>,
        limit: u32,
    ) -> Answer {
        check_path(&path)?;
        let limit = if limit == 0 { LIST_PAGE_MAX } else { LIST_PAGE_MAX.min(limit as usize) };
        let name = PageName { path: Arc::clone(&path), token: Arc::clone(&token), limit };
        let (bound, id) = (self.store.stale_after(&path), self.store.identify(&path));
        if !bound.is_zero() {
            self.believe_this_epoch();
            if let Some(reply) = self.beliefs.listings.get(&name, id, bound, Instant::now()) {
                return Ok(encode_list(caller.requester, &reply));
            }
        }
        // A directory is read whole for one page: one client's do not run side by side.
        let page = async {
            let _turn = caller.ticket.turn().await.ok_or_else(|| {
                StoreError::Busy("too many listings of this connection wait".to_owned())
            })?;
            self.store.list(Arc::clone(&path), token, limit).await
        };
        let look = self.begin();
        let mut page = self.ask(caller, page).await?;
        let mut reply = ListReply {
            entries: Vec::with_capacity(page.entries.len()),
            next: page.next.take().unwrap_or_default(),
        };
        let mut size = 0;
        let entries = std::mem::take(&mut page.entries);
        let mut last = String::new();
        for (name, found) in entries {
            let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            // A name that a look-up refuses is not shown, and least of all noted.
            if !self.is_servable(&whole, found.length) {
                page.left_out.named.push((name, NOT_SERVABLE.to_owned()));
                continue;
            }
            size += ENTRY_SIZE + name.len();
            if size > LIST_PAGE_BYTES_MAX {
                reply.next = last;
                break;
            }
            last = page.token(&name, found.kind);
            reply.entries.push(self.note(&whole.into(), name, found, look).await);
        }
        if !reply.next.is_empty() {
            page.left_out.end_at(&reply.next);
        }
        let (left_out_count, example) = (page.left_out.count(), page.left_out.example());
        let reply = PartialListReply { left_out_count, example, page: reply };
        let frame = encode_list(caller.requester, &reply);
        if !bound.is_zero() {
            self.beliefs.listings.note(name, id, Arc::new(reply), look.at);
        }
        Ok(frame)
    }

    async fn free(&self, caller: Caller<'_>, path: Arc<str>, everywhere: bool) -> Answer {
        check_path(&path)?;
        if everywhere {
            // Members that it does not know of would keep their blocks.
            self.cluster.view().check_agreement()?;
        }
        let id = self.store.identify(&path);
        // What another node has written is freed here, too, and the next look-up is to see it.
        self.beliefs.forget(&path, Instant::now());
        // Only the table is asked, so a file whose source is gone can still be freed.
        if self.files.get(id).is_none() {
            self.look_up_file(caller, &path).await?;
        }
        let Dropped { mut block_count, mut byte_count } = self.free_blocks(id).await;
        if everywhere {
            let others = self.free_at_others(&path, self.budget(caller.requester)).await?;
            block_count += others.block_count;
            byte_count += others.byte_count;
        }
        Ok(encode(caller.requester, &FreeReply { block_count, byte_count }))
    }
}

/// Makes the frame of a page, in the short form if no name is left out.
fn encode_list(requester: &Requester, reply: &PartialListReply) -> Vec<u8> {
    if reply.left_out_count == 0 {
        return encode(requester, &reply.page);
    }
    let mut bytes = Vec::new();
    let mut header = reply_header(&requester.header, requester.part, Status::Ok);
    header.flags |= frame::FLAG_LEFT_OUT;
    frame::encode(&mut bytes, header, reply);
    bytes
}

/// When a source began to be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    look: Look,
    at: Instant,
}

/// Makes what was found an entry. A directory has no id.
pub(super) fn entry_of(name: String, id: FileId, found: Found) -> Entry {
    let Found { kind, version, length, modified_ms } = found;
    let id = if kind == Kind::Directory { FileId(0) } else { id };
    Entry { name, kind, id, version, length, modified_ms }
}
