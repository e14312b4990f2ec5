//! The condition of the one request that makes an object in parts visible, which the store library sends without one.
//!
//! Always holds: a request with a condition is sent once. A second one could meet what the first has made, and would
//! say that the condition does not hold.
//!
//! The headers are not signed, as those that the library itself adds to this request are not; S3 asks for the
//! signature of `host` and of its own headers alone.

use std::sync::atomic::{AtomicBool, Ordering};

use object_store::client::{HttpError, HttpErrorKind, HttpRequest};

/// What must be at the place of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    /// Nothing.
    Absence,
    /// An object with this entity tag, as the store writes it.
    Tag(String),
}

struct Pending {
    needed: Needed,
    is_sent: AtomicBool,
}

tokio::task_local! {
    static PENDING: Pending;
}

#[derive(Debug, thiserror::Error)]
enum CannotSend {
    #[error(
        "the store did not answer clearly whether the object is complete, and is not asked twice"
    )]
    Twice,
    #[error("the entity tag of the store cannot be sent back to it")]
    OddTag,
}

/// Runs the completion of an upload in parts on a condition, of which the store is told.
pub(crate) async fn on_condition<T>(needed: Needed, completion: impl Future<Output = T>) -> T {
    PENDING.scope(Pending { needed, is_sent: AtomicBool::new(false) }, completion).await
}

/// Writes the condition into a request, if it is the one that completes an upload.
///
/// # Errors
/// If it was sent before, or the condition cannot be written.
pub(crate) fn prepare(request: &mut HttpRequest) -> Result<(), HttpError> {
    let query = request.uri().query().unwrap_or_default();
    // Credentials may be asked for meanwhile.
    if request.method().as_str() != "POST" || !query.contains("uploadId=") {
        return Ok(());
    }
    let refused = |why| HttpError::new(HttpErrorKind::Decode, why);
    let write = |pending: &Pending| {
        if pending.is_sent.swap(true, Ordering::Relaxed) {
            return Err(refused(CannotSend::Twice));
        }
        let (name, value) = match &pending.needed {
            Needed::Absence => ("if-none-match", "*"),
            Needed::Tag(tag) => ("if-match", tag.as_str()),
        };
        let value = value.parse().map_err(|_| refused(CannotSend::OddTag))?;
        request.headers_mut().insert(name, value);
        Ok(())
    };
    PENDING.try_with(write).unwrap_or(Ok(()))
}
