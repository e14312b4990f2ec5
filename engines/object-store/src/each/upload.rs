//! Multipart uploads: parts that a caller gives in order and may wait for in any.
//!
//! Owns the task that writes. Always holds: parts are written in the order in which they were given; an
//! upload that is dropped, aborted or failed leaves nothing at its path.

use std::fmt;

use async_trait::async_trait;
use millrace_client::{Client, File, PutOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::api::{Error, MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use super::failure;

/// A part, and where it is told that it is written.
type Part = (PutPayload, oneshot::Sender<Result<()>>);

/// An upload that was begun.
pub(super) struct Parts {
    path: String,
    /// None once it is complete or aborted.
    parts: Option<mpsc::UnboundedSender<Part>>,
    task: JoinHandle<Result<File>>,
    done: Box<dyn Fn(&File) -> PutResult + Send + Sync>,
}

impl Parts {
    /// Prepares to write to a path. The upload begins with the first part, because until then the node would
    /// keep a place for it. `done` is told of the file that it becomes.
    pub(super) fn new(
        client: &Client,
        path: &str,
        done: impl Fn(&File) -> PutResult + Send + Sync + 'static,
    ) -> Parts {
        // The parts that wait are the caller's own memory; the trait leaves their number to the caller.
        let (sender, receiver) = mpsc::unbounded_channel::<Part>();
        let task = tokio::spawn(write(client.clone(), path.to_owned(), receiver));
        Parts { path: path.to_owned(), parts: Some(sender), task, done: Box::new(done) }
    }

    fn ended(&self) -> Error {
        failure::refused(format!("the upload of '{}' has ended", self.path))
    }
}

/// Writes parts in order, and ends the upload when no more come.
async fn write(
    client: Client,
    path: String,
    mut parts: mpsc::UnboundedReceiver<Part>,
) -> Result<File> {
    let first = parts.recv().await;
    let upload = client.upload(&path, PutOptions::new()).await;
    let mut upload = upload.map_err(|error| failure::error(&path, error))?;
    let mut next = first;
    while let Some((payload, told)) = next {
        for bytes in &payload {
            if let Err(error) = upload.write(bytes).await {
                // The caller may not wait for this part; `complete` says it again.
                let _ = told.send(Err(failure::error(&path, error.clone())));
                return Err(failure::error(&path, error));
            }
        }
        let _ = told.send(Ok(()));
        next = parts.recv().await;
    }
    upload.finish().await.map_err(|error| failure::error(&path, error))
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (told, written) = oneshot::channel();
        // If the task has ended, `told` is dropped, which the future below sees.
        if let Some(parts) = &self.parts {
            let _ = parts.send((data, told));
        }
        let ended = self.ended();
        Box::pin(async move { written.await.unwrap_or(Err(ended)) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        if self.parts.take().is_none() {
            return Err(self.ended());
        }
        match (&mut self.task).await {
            Ok(file) => file.map(|file| (self.done)(&file)),
            Err(_) => Err(self.ended()),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.task.abort();
        self.parts = None;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // Without this the task would take the end of its channel for the end of the object.
        self.task.abort();
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Parts").field("path", &self.path).finish_non_exhaustive()
    }
}
