//! Writes: objects that are brought to a node in parts, and are seen whole or not at all.
//!
//! Owns the window of parts that are not answered. Always holds: an upload has a connection of its own, so that
//! it ends with it, and reads do not wait behind it; nothing is written twice. Where the answer to a write was
//! lost the error says that its outcome is unknown, and trying again is left to the caller.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use millrace_proto::frame::BODY_LENGTH_MAX;
use millrace_proto::write::{
    ArchivedPutReply, Condition, PART_OVERHEAD, PutEndRequest, PutPartRequest, RenameRequest,
    WriteRequest,
};
use millrace_proto::{Status, checksum, feature, frame};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::time::{self, Instant};

use crate::client::{Client, check_path, stat_reply};
use crate::connection::{Answer, Body, Landing, Lane, Reply};
use crate::error::Error;
use crate::file::File;
use crate::reply::{self, Setback};

/// Bytes that are read at once from what is written.
const READ_SIZE: usize = 256 << 10;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOptions {
    /// What the path must be for the write to happen. Default: anything.
    pub condition: Condition,
}

impl PutOptions {
    /// Returns the defaults.
    pub fn new() -> PutOptions {
        PutOptions { condition: Condition::None }
    }
}

impl Default for PutOptions {
    fn default() -> PutOptions {
        PutOptions::new()
    }
}

impl Client {
    /// Writes what a reader has, up to its end, to a path; returns the file that the path is by it. Bytes are a
    /// reader too: `&bytes[..]`. Readers of the path see the file before or the new one, whole, and this client
    /// and all others see the new one at their next `stat`. Directories above it are made where the source has
    /// directories. Each step has to be done within the deadline, the whole may take as long as it takes.
    ///
    /// ```no_run
    /// # async fn example(client: millrace_client::Client) -> Result<(), millrace_client::Error> {
    /// use millrace_client::{PutOptions, Status};
    ///
    /// let file = client.put("out/model.bin", &b"weights"[..], PutOptions::new()).await?;
    /// assert_eq!(file.length, 7);
    /// // A second writer of the same path learns that it is one.
    /// let taken = client.put_if_absent("out/model.bin", &b"others"[..]).await.unwrap_err();
    /// assert_eq!(taken.status(), Some(Status::ConditionFailed));
    /// client.delete("out/model.bin").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Status`] with `PermissionDenied` where the source takes no writes, with `ConditionFailed`, and
    /// with `WrongKind` for a directory; [`Error::OutcomeUnknown`] if the last answer was lost. After every other
    /// error nothing was written. [`Error::Unreadable`] if the reader fails.
    pub async fn put(
        &self,
        path: &str,
        mut reader: impl AsyncRead + Unpin,
        options: PutOptions,
    ) -> Result<File, Error> {
        let mut upload = self.upload(path, options).await?;
        let mut buffer = BytesMut::with_capacity(READ_SIZE);
        loop {
            buffer.clear();
            let count = reader.read_buf(&mut buffer).await.map_err(unreadable)?;
            if count == 0 {
                return upload.finish().await;
            }
            upload.write(&buffer).await?;
        }
    }

    /// As [`Client::put`], if nothing has the path. Of several writers at once one wins, and the others get
    /// `ConditionFailed`.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_if_absent(
        &self,
        path: &str,
        reader: impl AsyncRead + Unpin,
    ) -> Result<File, Error> {
        self.put(path, reader, PutOptions { condition: Condition::Absent }).await
    }

    /// As [`Client::put`], if the file at the path is in this [`File::version`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_if_version(
        &self,
        path: &str,
        version: u64,
        reader: impl AsyncRead + Unpin,
    ) -> Result<File, Error> {
        self.put(path, reader, PutOptions { condition: Condition::Version(version) }).await
    }

    /// Begins to write an object whose bytes come bit by bit. Dropped before [`Upload::finish`] it leaves nothing.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn upload(&self, path: &str, options: PutOptions) -> Result<Upload, Error> {
        check_path(path)?;
        let deadline = self.deadline();
        let mut retry = self.retry(deadline);
        loop {
            let topology = self.topology();
            let mut last = None;
            // An upload that was begun and is lost leaves nothing, so any member will do.
            for index in topology.order_of_path(path) {
                let lane = topology.member(index).own_lane();
                match self.begin(lane, path, options, deadline).await {
                    Ok(upload) => return Ok(upload),
                    Err(Setback::Again { wait_min, cause }) => last = Some((wait_min, cause)),
                    Err(other) => return Err(retry.end(other.into_error())),
                }
            }
            let (wait_min, cause) = last.unwrap_or_else(|| (Default::default(), self.stopped()));
            retry.pause(wait_min, cause).await?;
        }
    }

    async fn begin(
        &self,
        lane: Lane,
        path: &str,
        options: PutOptions,
        deadline: Instant,
    ) -> Result<Upload, Setback> {
        ask(&lane, Body::Ping, deadline).await?;
        let hello = lane.link().borrow().hello.clone();
        let hello = hello.ok_or_else(|| Setback::Fail(lane.gone()))?;
        if !hello.offers(feature::WRITES) {
            let message = "the node takes no writes, because its program is older".to_owned();
            return Err(Setback::Fail(Error::Status { status: Status::UnknownOp, message }));
        }
        let request = WriteRequest::new(path, options.condition);
        let reply = ask(&lane, Body::Put(request), deadline).await?;
        let told = frame::body::<ArchivedPutReply>(&reply.body);
        let told = told.map_err(|error| Setback::Fail(error.into()))?;
        let part_max = hello.body_length_max.min(BODY_LENGTH_MAX).saturating_sub(PART_OVERHEAD);
        let credit = told.credit.to_native();
        if part_max == 0 || credit == 0 {
            let error = Error::protocol("a node takes an upload and no bytes of it");
            return Err(Setback::Fail(error));
        }
        Ok(Upload {
            client: self.clone(),
            lane,
            path: path.into(),
            number: told.upload.to_native(),
            part_max: part_max.min(credit) as usize,
            credit: credit as usize,
            buffer: Vec::new(),
            offset: 0,
            unanswered: VecDeque::new(),
            ahead: 0,
            is_broken: false,
        })
    }

    /// Deletes the file at a path from its source. No client finds it afterwards.
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound`, with `WrongKind` for a directory and with `PermissionDenied` where the
    /// source takes no writes; [`Error::OutcomeUnknown`] if the answer was lost.
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        self.delete_if(path, Condition::None).await
    }

    /// As [`Client::delete`], if the file is in this [`File::version`].
    ///
    /// # Errors
    /// As [`Client::delete`], and [`Error::Status`] with `ConditionFailed`.
    pub async fn delete_if_version(&self, path: &str, version: u64) -> Result<(), Error> {
        self.delete_if(path, Condition::Version(version)).await
    }

    async fn delete_if(&self, path: &str, condition: Condition) -> Result<(), Error> {
        check_path(path)?;
        let body = || Body::Delete(WriteRequest::new(path, condition));
        self.change(path, body).await.map(drop)
    }

    /// Gives the file at a path another path of the same mount, and replaces the file that is there; returns the file
    /// that the new path is by it. A directory moves with all that is below it where the source does that in one
    /// step, to a path that nothing has. A store that cannot rename copies and then deletes, so that readers may see
    /// both paths for a while; see docs/STORES.md.
    ///
    /// ```no_run
    /// # async fn example(client: millrace_client::Client) -> Result<(), millrace_client::Error> {
    /// let file = client.rename("out/model.tmp", "out/model.bin").await?;
    /// assert_eq!(&*file.path, "out/model.bin");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound`, with `WrongKind` for a directory that the source does not move or that has
    /// the new path, with `InvalidArgument` for paths of two mounts, with `PermissionDenied` where the source takes no
    /// writes, and with `UnknownOp` from a node of an earlier version; [`Error::OutcomeUnknown`] if the answer was
    /// lost, and if a store has made the first of two steps.
    pub async fn rename(&self, path: &str, to: &str) -> Result<File, Error> {
        self.rename_if(path, to, Condition::None).await
    }

    /// As [`Client::rename`], if nothing has the new path. Of several at once one wins.
    ///
    /// # Errors
    /// As [`Client::rename`], and [`Error::Status`] with `ConditionFailed`.
    pub async fn rename_if_absent(&self, path: &str, to: &str) -> Result<File, Error> {
        self.rename_if(path, to, Condition::Absent).await
    }

    async fn rename_if(&self, path: &str, to: &str, condition: Condition) -> Result<File, Error> {
        check_path(path)?;
        check_path(to)?;
        let (condition, _) = condition.to_wire();
        let body =
            || Body::Rename(RenameRequest { path: path.to_owned(), to: to.to_owned(), condition });
        match self.change(path, body).await {
            Ok(reply) => stat_reply(&to.into(), &reply),
            Err(Error::Status { status: Status::UnknownOp, .. }) => Err(Error::Status {
                status: Status::UnknownOp,
                message: "the node cannot rename, because its program is older".to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Has a node make a change, and asks no second time once it may be made.
    async fn change(&self, path: &str, body: impl Fn() -> Body) -> Result<Reply, Error> {
        let deadline = self.deadline();
        let mut retry = self.retry(deadline);
        loop {
            let topology = self.topology();
            let mut last = None;
            for index in topology.order_of_path(path) {
                let lane = topology.member(index).main();
                match ask(lane, body(), deadline).await {
                    Ok(reply) => return Ok(reply),
                    Err(Setback::Again { cause, .. }) if may_be_done(&cause) => {
                        return Err(unknown(path, &cause));
                    }
                    Err(Setback::Again { wait_min, cause }) => last = Some((wait_min, cause)),
                    Err(Setback::Fail(cause @ Error::DeadlineExceeded)) => {
                        return Err(unknown(path, &cause));
                    }
                    Err(other) => return Err(other.into_error()),
                }
            }
            let (wait_min, cause) = last.unwrap_or_else(|| (Default::default(), self.stopped()));
            retry.pause(wait_min, cause).await?;
        }
    }
}

/// An object that is being written. Dropped before [`Upload::finish`] it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    client: Client,
    /// Its own connection: the node gives the upload up when that ends.
    lane: Lane,
    path: Arc<str>,
    number: u64,
    part_max: usize,
    credit: usize,
    /// Bytes that do not make a part yet.
    buffer: Vec<u8>,
    /// Bytes that were sent.
    offset: u64,
    /// Parts that were sent, each with its length.
    unanswered: VecDeque<(usize, oneshot::Receiver<Answer>)>,
    /// Bytes of these parts.
    ahead: usize,
    /// True if a write has failed, or was dropped before it was done: bytes may be missing.
    is_broken: bool,
}

impl Upload {
    /// Returns the path that is written.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes the next bytes. It waits while the node has as much of this upload as it takes.
    ///
    /// # Errors
    /// As [`Client::put`]. Nothing was written, and the upload is of no more use. The same goes for one whose write
    /// was dropped before it was done: [`Error::InvalidArgument`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.check()?;
        self.is_broken = true;
        self.take(bytes).await?;
        self.is_broken = false;
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        match self.is_broken {
            true => Err(Error::InvalidArgument(format!(
                "an earlier write to '{}' failed or was dropped before it was done; begin the upload again",
                self.path
            ))),
            false => Ok(()),
        }
    }

    async fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let count = bytes.len().min(self.part_max - self.buffer.len());
            let (now, later) = bytes.split_at(count);
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == self.part_max {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    /// Has the source acknowledge the whole object; returns the file that the path is by it.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn finish(mut self) -> Result<File, Error> {
        self.check()?;
        if !self.buffer.is_empty() {
            self.send_part().await?;
        }
        let deadline = self.client.deadline();
        let end = PutEndRequest { upload: self.number, length: self.offset };
        let end = self.send(Body::PutEnd(end), deadline).await?;
        // From here on the object may be there though an answer is lost.
        while !self.unanswered.is_empty() {
            self.take_answer(deadline).await.map_err(|error| self.judge(error))?;
        }
        let reply = self.answer(end, deadline).await.map_err(|error| self.judge(error))?;
        stat_reply(&self.path, &reply)
    }

    /// Returns the error of a write whose end was asked for.
    fn judge(&self, error: Error) -> Error {
        match may_be_done(&error) {
            true => unknown(&self.path, &error),
            false => error,
        }
    }

    async fn send_part(&mut self) -> Result<(), Error> {
        let deadline = self.client.deadline();
        let length = self.buffer.len();
        while self.ahead + length > self.credit {
            self.take_answer(deadline).await?;
        }
        let bytes = std::mem::take(&mut self.buffer);
        let checksum = checksum::of(&bytes);
        let part = PutPartRequest { upload: self.number, offset: self.offset, checksum, bytes };
        let answer = self.send(Body::PutPart(part), deadline).await?;
        self.unanswered.push_back((length, answer));
        self.ahead += length;
        self.offset += length as u64;
        Ok(())
    }

    async fn send(
        &self,
        body: Body,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, Error> {
        let sent = self.lane.begin(body, Landing::Any, deadline, false);
        time::timeout_at(deadline, sent).await.unwrap_or(Err(Error::DeadlineExceeded))
    }

    /// Waits until the first part that is not answered is.
    async fn take_answer(&mut self, deadline: Instant) -> Result<(), Error> {
        let Some((length, answer)) = self.unanswered.pop_front() else { return Ok(()) };
        self.answer(answer, deadline).await?;
        self.ahead -= length;
        Ok(())
    }

    async fn answer(
        &self,
        answer: oneshot::Receiver<Answer>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let answer = match time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.map_err(|_| self.lane.gone())?,
            Err(_) => return Err(Error::DeadlineExceeded),
        };
        // Nothing is sent twice, whatever the status allows.
        reply::judge(answer.outcome).map_err(Setback::into_error)
    }
}

/// Asks once, and waits until the deadline.
async fn ask(lane: &Lane, body: Body, deadline: Instant) -> Result<Reply, Setback> {
    let answer = lane.ask_until(body, deadline).await;
    match answer {
        Err(error @ Error::DeadlineExceeded) => Err(Setback::Fail(error)),
        outcome => reply::judge(outcome),
    }
}

/// True if a write that failed with this error may still have been made.
fn may_be_done(error: &Error) -> bool {
    matches!(error, Error::ConnectionLost { .. } | Error::DeadlineExceeded)
}

fn unknown(path: &str, cause: &Error) -> Error {
    let reason = match cause {
        Error::ConnectionLost { reason, .. } => format!("the connection was lost ({reason})"),
        _ => "no answer came before the deadline".to_owned(),
    };
    Error::OutcomeUnknown { path: path.into(), reason: reason.into() }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::Unreadable { source: Arc::new(error) }
}
