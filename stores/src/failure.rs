//! What a store's error means to the client that waits.

use millrace_node::under_store::StoreError;
use object_store::Error;

/// Longest text of a store that is passed on, in bytes. Stores answer with whole documents.
const TEXT_LENGTH_MAX: usize = 400;

/// What stores say about credentials that do not fit: words of S3's error codes.
const CREDENTIAL_WORDS: [(&str, &str); 5] = [
    ("SignatureDoesNotMatch", "the secret key is not the one of the access key"),
    ("InvalidAccessKeyId", "the store does not know the access key"),
    ("ExpiredToken", "the session token is too old"),
    ("RequestTimeTooSkewed", "the clock of this machine and that of the store differ too much"),
    ("NoSuchBucket", "there is no such bucket"),
];
/// What says that fewer requests are wanted.
const THROTTLE_WORDS: [&str; 5] = ["SlowDown", "TooManyRequests", "429", "503 ", "ServerBusy"];

/// Turns an error of the library into one of ours.
pub(crate) fn failure(error: &Error) -> StoreError {
    let text = shortened(&error.to_string());
    if let Some((word, meaning)) = CREDENTIAL_WORDS.iter().find(|(word, _)| text.contains(word)) {
        return StoreError::Unusable(format!("{meaning} ({word})"));
    }
    match error {
        Error::NotFound { .. } => StoreError::NotFound,
        Error::Precondition { .. } | Error::NotModified { .. } => StoreError::Changed,
        Error::InvalidPath { .. } => {
            StoreError::Failed(format!("a key that this program cannot name: {text}"))
        }
        Error::PermissionDenied { .. } => StoreError::Denied(
            "the store refuses: the node's credentials may not read this; check the policy of the bucket",
        ),
        Error::Unauthenticated { .. } => StoreError::Unusable(format!(
            "the store wants credentials, or better ones; see docs/STORES.md: {text}"
        )),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            StoreError::Unusable(format!("the store cannot do this: {text}"))
        }
        _ if THROTTLE_WORDS.iter().any(|word| text.contains(word)) => {
            StoreError::Busy(format!("the store wants fewer requests: {text}"))
        }
        _ => StoreError::Failed(text),
    }
}

/// True if an error says that the store is away, and not that it refuses something.
pub(crate) fn is_outage(error: &StoreError) -> bool {
    matches!(error, StoreError::Failed(_) | StoreError::Hangs(_))
}

fn shortened(text: &str) -> String {
    let mut end = TEXT_LENGTH_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let rest = if end < text.len() { "…" } else { "" };
    let line: Vec<&str> = text[..end].split_whitespace().collect();
    format!("{}{rest}", line.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &'static str) -> StoreError {
        failure(&Error::Generic { store: "S3", source: text.into() })
    }

    #[test]
    fn an_error_says_what_to_do() {
        let told = generic("... <Code>SignatureDoesNotMatch</Code> ...").to_string();
        assert_eq!(told, "the secret key is not the one of the access key (SignatureDoesNotMatch)");
        assert!(matches!(generic("status 503 Service Unavailable"), StoreError::Busy(_)));
        assert!(matches!(generic("connection refused"), StoreError::Failed(_)));
        let error = Error::Precondition { path: "a".into(), source: "412".into() };
        assert_eq!(failure(&error), StoreError::Changed);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let told = shortened(&"ä\n".repeat(1000));
        assert!(told.len() <= TEXT_LENGTH_MAX + 3 && told.ends_with('…'), "{told}");
    }
}
