//! Uploads: objects that clients write through the node, and what is told when a path has changed.
//!
//! ```text
//!  worker ── Step ──► one task for each upload ──► the store's Upload
//!                        │ PutEnd                      │ acknowledged
//!                        └── waits for as long         ▼
//!                            as the client does     note, drop blocks, tell the other members
//! ```
//!
//! Always holds: every step is answered; an upload ends with its connection, and leaves nothing unless its store
//! has acknowledged it. A change that the store was asked to make is waited for to its end, whether a client
//! still waits or not, because blocks of the version before have to go.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use millrace_client::peer::Peer;
use millrace_proto::message::{Entry, Kind, StatReply};
use millrace_proto::write::PutReply;
use millrace_proto::{Status, checksum, frame};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::lookups::{Caller, entry_of};
use super::write_cache::WriteCache;
use super::{Answer, Context, Failure, encode};
use crate::mailbox::{Requester, reply_header};
use crate::owner::Ticket;
use crate::store::{Condition, StoreError, Upload, Written};
use crate::upload::{CREDIT, Door, Step, StepKind};

/// How long an upload is kept of which nothing comes.
const IDLE: Duration = Duration::from_secs(60);
/// How long steps may still be on their way to an upload that has ended. Guessed: a turn of a shard is far shorter.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a store may take to remove what it has of an upload.
const ABORT_TIME: Duration = Duration::from_secs(30);
/// How long another member may take to drop its blocks. One that takes longer sees the change when it asks the
/// source.
const TELL_TIME: Duration = Duration::from_secs(2);

/// An upload that was asked for.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) path: Arc<str>,
    pub(crate) condition: Condition,
    /// Number of the upload.
    pub(crate) number: u64,
    pub(crate) steps: flume::Receiver<Step>,
    pub(crate) door: Arc<Door>,
    /// Its place among all uploads of the node.
    pub(crate) slot: OwnedSemaphorePermit,
}

/// An object that is being written.
struct Object {
    upload: Box<dyn Upload>,
    /// What of it is kept in memory, if its mount asks for that.
    kept: Option<WriteCache>,
}

/// A change that a store is asked to make.
enum Change {
    /// Has the object made visible, and its blocks, as far as they are kept.
    Put(Box<dyn Upload>, Option<WriteCache>),
    Delete(Condition),
    /// The path gets this one.
    Rename(Arc<str>, Condition),
}

fn invalid(message: &str) -> Failure {
    Failure::new(Status::InvalidArgument, message)
}

fn empty(requester: &Requester) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_empty(&mut bytes, reply_header(&requester.header, 0, Status::Ok));
    bytes
}

impl Context {
    /// Serves one upload from its first request to its end. `place` is one among look-ups, and is free again
    /// when the upload has begun, or not.
    pub(super) async fn upload(
        self: &Arc<Self>,
        requester: Requester,
        ticket: &Ticket,
        put: Put,
        place: OwnedSemaphorePermit,
    ) {
        let Put { path, condition, number, steps, door, slot } = put;
        let caller = Caller { requester: &requester, ticket };
        let opened = self.ask(caller, self.store.put(Arc::clone(&path), condition)).await;
        drop(place);
        let failure = match opened {
            Ok(upload) => {
                let reply = PutReply { upload: number, credit: CREDIT };
                self.answer(requester, Ok(encode(&requester, &reply))).await;
                self.take_steps(&path, upload, ticket, &steps, &door, slot).await
            }
            Err(failure) => {
                // Both make room for the next upload before the client hears of this one.
                drop(slot);
                door.shut();
                let Failure { status, message } = &failure;
                let rest = Failure { status: *status, message: message.clone() };
                self.answer(requester, Err(failure)).await;
                Some(rest)
            }
        };
        door.shut();
        let Some(Failure { status, message }) = failure else { return };
        // What was on its way is answered too; the worker brings no more, because it sees that this has ended.
        while let Ok(Ok(Step { requester, .. })) = timeout(DRAIN_TIME, steps.recv_async()).await {
            let failure = Failure { status, message: message.clone() };
            self.answer(requester, Err(failure)).await;
        }
    }

    /// Takes the steps of an upload; returns why it ended without the client's having ended it.
    async fn take_steps(
        self: &Arc<Self>,
        path: &Arc<str>,
        upload: Box<dyn Upload>,
        ticket: &Ticket,
        steps: &flume::Receiver<Step>,
        door: &Door,
        slot: OwnedSemaphorePermit,
    ) -> Option<Failure> {
        let (mut taken, mut object) = (0, Object { upload, kept: self.write_cache(path) });
        loop {
            let step = match timeout(IDLE, steps.recv_async()).await {
                Ok(Ok(step)) => step,
                Ok(Err(_)) => {
                    // The connection is gone.
                    object.give_up().await;
                    return None;
                }
                Err(_) => {
                    object.give_up().await;
                    return Some(invalid("the upload has ended: nothing came of it for a minute"));
                }
            };
            let requester = step.requester;
            let answer = match step.kind {
                StepKind::Part { offset, checksum, bytes } => {
                    let length = bytes.len() as u64;
                    let caller = Caller { requester: &requester, ticket };
                    let part = (taken, offset, checksum, bytes);
                    let answer = self.take_part(caller, &mut object, part).await;
                    taken += length;
                    door.leave(length as usize);
                    answer
                }
                StepKind::End { length } if length != taken => {
                    let message = format!("{taken} bytes came, and not the {length} of the object");
                    Err(invalid(&message))
                }
                StepKind::End { .. } => {
                    let change = Change::Put(object.upload, object.kept);
                    let entry = self.make(&requester, path, change, slot).await;
                    let entry = entry.and_then(|entry| entry.ok_or_else(Failure::gone));
                    let block_size = self.block_size;
                    let reply =
                        entry.map(|entry| encode(&requester, &StatReply { entry, block_size }));
                    self.answer(requester, reply).await;
                    return None;
                }
                StepKind::Abort => {
                    object.give_up().await;
                    self.answer(requester, Ok(empty(&requester))).await;
                    return None;
                }
            };
            if let Err(Failure { status, message }) = &answer {
                let failure = Failure { status: *status, message: message.clone() };
                object.give_up().await;
                door.shut();
                self.answer(requester, answer).await;
                return Some(failure);
            }
            self.answer(requester, answer).await;
        }
    }

    async fn take_part(
        &self,
        caller: Caller<'_>,
        object: &mut Object,
        (taken, offset, sum, bytes): (u64, u64, u32, Bytes),
    ) -> Answer {
        if offset != taken {
            let message = format!("the part begins at {offset}, and {taken} bytes came before it");
            return Err(invalid(&message));
        }
        if checksum::of(&bytes) != sum {
            return Err(Failure::new(Status::BadChecksum, "the part was damaged on the way"));
        }
        if let Some(kept) = &mut object.kept {
            kept.take(&bytes).await;
        }
        self.ask(caller, object.upload.write(bytes)).await?;
        Ok(empty(caller.requester))
    }

    /// Deletes a file at its source.
    pub(super) async fn delete(
        self: &Arc<Self>,
        requester: &Requester,
        path: Arc<str>,
        condition: Condition,
        slot: OwnedSemaphorePermit,
    ) -> Answer {
        self.make(requester, &path, Change::Delete(condition), slot).await?;
        Ok(empty(requester))
    }

    /// Gives a file or a directory another path at its source.
    pub(super) async fn rename(
        self: &Arc<Self>,
        requester: &Requester,
        (path, to): (Arc<str>, Arc<str>),
        condition: Condition,
        places: impl Send + 'static,
    ) -> Answer {
        let entry = self.make(requester, &path, Change::Rename(to, condition), places).await?;
        let entry = entry.ok_or_else(Failure::gone)?;
        Ok(encode(requester, &StatReply { entry, block_size: self.block_size }))
    }

    /// Has the store make a change, and waits for as long as the request may take. The change itself goes on, and
    /// keeps its places until it has ended.
    async fn make(
        self: &Arc<Self>,
        requester: &Requester,
        path: &Arc<str>,
        change: Change,
        places: impl Send + 'static,
    ) -> Result<Option<Entry>, Failure> {
        let patience = self.budget(requester).unwrap_or(2 * self.patience);
        let (sender, made) = oneshot::channel();
        let (context, path) = (Arc::clone(self), Arc::clone(path));
        tokio::spawn(async move {
            let done = context.change(&path, change).await;
            drop(places);
            // The client may have gone.
            let _ = sender.send(done);
        });
        match timeout(patience, made).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Failure::gone()),
            Err(_) => {
                let error = StoreError::Unknown("the source has not answered yet".to_owned());
                Err(error.into())
            }
        }
    }

    /// Makes a change at the store, then sees to it that everything of the version before is gone.
    async fn change(
        self: &Arc<Self>,
        path: &Arc<str>,
        change: Change,
    ) -> Result<Option<Entry>, Failure> {
        let mut kept = None;
        let done = match change {
            Change::Rename(to, condition) => return self.move_to(path, &to, condition).await,
            Change::Put(upload, blocks) => {
                kept = blocks;
                upload.finish().await.map(Some)
            }
            Change::Delete(condition) => {
                self.store.delete(Arc::clone(path), condition).await.map(|()| None)
            }
        };
        let is_made = matches!(&done, Ok(Some(it)) if self.is_servable(path, it.found.length));
        if let Some(kept) = kept.take_if(|_| !is_made) {
            kept.give_up().await;
        }
        match done {
            Ok(Some(Written { found, .. })) if !self.is_servable(path, found.length) => {
                self.tell_others(path).await;
                let message =
                    "the file is written, and has more than 2^32 blocks: use a larger block_size";
                Err(invalid(message))
            }
            Ok(Some(written)) => {
                let look = self.begin();
                let entry = self.note(path, path.to_string(), written.found.clone(), look).await;
                let kept = match kept {
                    Some(blocks) => blocks.keep(&written).await,
                    None => None,
                };
                self.believe_nothing(path);
                self.tell_others(path).await;
                if let Some(part) = kept {
                    self.offer(part);
                }
                Ok(Some(entry))
            }
            Ok(None) => {
                self.see(path).await;
                self.believe_nothing(path);
                self.tell_others(path).await;
                Ok(None)
            }
            // A store may judge the second try of a request that it has served: that may be the change.
            Err(error @ (StoreError::Unknown(_) | StoreError::Condition(_))) => {
                self.see(path).await;
                self.believe_nothing(path);
                self.tell_others(path).await;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the store give a path another name, then sees to it that everything that both had before is gone.
    async fn move_to(
        &self,
        path: &Arc<str>,
        to: &Arc<str>,
        condition: Condition,
    ) -> Result<Option<Entry>, Failure> {
        let done = self.store.rename(Arc::clone(path), Arc::clone(to), condition).await;
        let may_be_done =
            matches!(done, Ok(_) | Err(StoreError::Unknown(_) | StoreError::Condition(_)));
        if !may_be_done {
            return Err(done.err().map_or_else(Failure::gone, Failure::from));
        }
        let may_be_directory = !done.as_ref().is_ok_and(|found| found.kind == Kind::File);
        for changed in [path, to] {
            self.see(changed).await;
            self.believe_nothing(changed);
            if may_be_directory {
                self.see_below(changed).await;
                self.tell_others_below(changed).await;
            }
            self.tell_others(changed).await;
        }
        let found = done?;
        if !self.is_servable(to, found.length) {
            let message =
                "the file has its new name, and more than 2^32 blocks: use a larger block_size";
            return Err(invalid(message));
        }
        let id = self.store.identify(to);
        Ok(Some(entry_of(to.to_string(), id, found)))
    }

    /// Believes nothing of what is below a directory, and frees what is known of files below it if that is gone.
    async fn see_below(&self, path: &Arc<str>) {
        let seen = timeout(self.patience, self.store.stat(Arc::clone(path))).await;
        match seen {
            Ok(Ok(found)) if found.kind == Kind::Directory => self.believe_nothing_below(path),
            _ => self.forget_below(path).await,
        }
    }

    /// Has all other members do as [`Context::see_below`].
    async fn tell_others_below(&self, path: &Arc<str>) {
        let told = |peer: Arc<Peer>| {
            let path = Arc::clone(path);
            async move { peer.look_again_below(&path, TELL_TIME).await }
        };
        self.tell_each(path, told).await;
    }

    /// Looks what a path is now; blocks of what it was before are gone afterwards.
    async fn see(&self, path: &Arc<str>) {
        let seen = timeout(self.patience, self.see_now(path)).await;
        if !matches!(seen, Ok(Ok(_)) | Ok(Err(Failure { status: Status::NotFound, .. }))) {
            // Nothing tells what the source has: nothing is believed until it does.
            self.forget_all(path).await;
        }
    }

    /// Has all other members drop what they have of a path. One that does not answer sees the change when it
    /// asks the source.
    async fn tell_others(&self, path: &Arc<str>) {
        let told = |peer: Arc<Peer>| {
            let path = Arc::clone(path);
            async move { peer.forget(&path, TELL_TIME).await }
        };
        self.tell_each(path, told).await;
    }

    async fn tell_each<F>(&self, path: &str, tell: impl Fn(Arc<Peer>) -> F)
    where
        F: Future<Output = Result<(), millrace_client::Error>>,
    {
        let view = self.cluster.view();
        let others = view.layout.members.iter().filter(|member| member.id != view.me);
        let mut told: FuturesUnordered<_> = others
            .map(|member| {
                let (id, answer) = (member.id.clone(), tell(self.peers.get_in_any_case(member)));
                async move { (id, answer.await) }
            })
            .collect();
        while let Some((id, result)) = told.next().await {
            if let Err(error) = result {
                tracing::warn!("{id} was not told that '{path}' has changed: {error}");
            }
        }
    }
}

impl Object {
    /// Removes what the store and the shards have of it.
    async fn give_up(self) {
        if let Some(kept) = self.kept {
            kept.give_up().await;
        }
        if timeout(ABORT_TIME, self.upload.abort()).await.is_err() {
            tracing::warn!("a source does not remove what it has of an upload that was given up");
        }
    }
}
