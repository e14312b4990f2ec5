//! What a store's error means to the client that waits, and whether the store is away.

use millrace_node::under_store::StoreError;
use object_store::Error;
use std::error::Error as _;

/// Longest text of a store that is passed on, in bytes. Stores answer with whole documents.
const TEXT_LENGTH_MAX: usize = 400;

/// S3's error codes for what an operator has to mend.
const CODES: [(&str, &str); 8] = [
    ("SignatureDoesNotMatch", "the secret key is not the one of the access key"),
    ("InvalidAccessKeyId", "the store does not know the access key"),
    ("ExpiredToken", "the session token is too old"),
    ("RequestTimeTooSkewed", "the clock of this machine and that of the store differ too much"),
    ("NoSuchBucket", "there is no such bucket"),
    ("AuthorizationHeaderMalformed", "the region is not the one of the bucket: set region"),
    ("PermanentRedirect", "the bucket is in another region or at another endpoint: set both"),
    ("InvalidBucketName", "this cannot be the name of a bucket"),
];
/// Words of the causes of a connection that does not come about, and what they mean.
const CAUSES: [(&str, &str); 7] = [
    ("lookup address", "the host of the store is not known: check its name and endpoint"),
    ("Connection refused", "nothing listens at the address of the store: check endpoint"),
    ("InvalidContentType", "the store does not speak TLS there: write http:// if that is meant"),
    ("handshake eof", "the store ends connections that begin with TLS: does it speak TLS there?"),
    (
        "onnection reset",
        "the store ends the connection: check endpoint, and whether it speaks TLS there",
    ),
    ("timed out", "the store does not answer in time (source_timeout_ms)"),
    ("peer certificate", "this machine does not trust the certificate of the store"),
];
/// What comes before the status in the library's texts.
const STATUS: &str = "non-2xx status code: ";

/// Why a request brought nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: StoreError,
    /// True if the store did not answer, or says that it cannot.
    pub(crate) is_outage: bool,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure { error, is_outage: false }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::NotFound { .. } if code_of(&error.to_string()).is_none() => {
                StoreError::NotFound.into()
            }
            Error::Precondition { .. } | Error::NotModified { .. } => StoreError::Changed.into(),
            Error::InvalidPath { .. } => {
                let text = shortened(&error.to_string());
                StoreError::Unusable(format!("a key that this program cannot name: {text}")).into()
            }
            Error::NotSupported { .. } | Error::NotImplemented { .. } => {
                let text = shortened(&error.to_string());
                StoreError::Unusable(format!("the store cannot do this: {text}")).into()
            }
            error => judged(&error),
        }
    }
}

fn judged(error: &Error) -> Failure {
    let text = error.to_string();
    if let Some((code, meaning)) = code_of(&text) {
        return StoreError::Unusable(format!("{meaning} ({code})")).into();
    }
    let status = match error {
        Error::PermissionDenied { .. } => Some(403),
        Error::Unauthenticated { .. } => Some(401),
        _ => status_of(&text),
    };
    let text = shortened(&text);
    match status {
        Some(401) => StoreError::Unusable(format!(
            "the store wants credentials, or better ones; see docs/STORES.md: {text}"
        ))
        .into(),
        Some(403) => StoreError::Denied(
            "the store refuses: the node's credentials may not read or list this; check the policy of the bucket",
        )
        .into(),
        Some(429 | 503) => StoreError::Busy(format!("the store wants fewer requests: {text}")).into(),
        Some(400..500) => StoreError::Failed(text).into(),
        _ => Failure { error: StoreError::Failed(with_cause(error, text)), is_outage: true },
    }
}

/// Puts what a failed connection means before the text of its error, which has only its outermost words.
fn with_cause(error: &Error, text: String) -> String {
    let mut cause: Option<&dyn std::error::Error> = error.source();
    while let Some(next) = cause {
        let told = next.to_string();
        if let Some((_, meaning)) = CAUSES.iter().find(|(words, _)| told.contains(words)) {
            return format!("{meaning} ({}): {text}", shortened(&told));
        }
        cause = next.source();
    }
    text
}

/// Finds the code in S3's document. Keys are encoded in URLs, so none looks like one.
fn code_of(text: &str) -> Option<&'static (&'static str, &'static str)> {
    CODES.iter().find(|(code, _)| text.contains(&format!("<Code>{code}</Code>")))
}

/// Finds the status that the library tells.
fn status_of(text: &str) -> Option<u16> {
    let (_, rest) = text.rsplit_once(STATUS)?;
    rest.get(..3)?.parse().ok()
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

    fn generic(text: &'static str) -> Failure {
        Error::Generic { store: "S3", source: text.into() }.into()
    }

    #[test]
    fn an_error_says_what_to_do_and_whether_the_store_is_away() {
        let told = generic("... <Code>SignatureDoesNotMatch</Code> ...");
        let text = "the secret key is not the one of the access key (SignatureDoesNotMatch)";
        assert_eq!((told.error.to_string().as_str(), told.is_outage), (text, false));
        let busy = generic("Server returned non-2xx status code: 503 Service Unavailable: ");
        assert!(matches!(busy, Failure { error: StoreError::Busy(_), is_outage: false }));
        let list = generic("Server returned non-2xx status code: 403 Forbidden: ");
        assert!(matches!(list, Failure { error: StoreError::Denied(_), is_outage: false }));
        let odd = generic(
            "GET http://host/part-503 in 429.1ms - status code: 400, \
                           Server returned non-2xx status code: 400 Bad Request: ",
        );
        assert!(matches!(odd, Failure { error: StoreError::Failed(_), is_outage: false }));
        for away in ["connection refused", "Server returned non-2xx status code: 500 It: "] {
            assert!(generic(away).is_outage, "{away}");
        }
        // The name of an object is not an answer.
        let (path, source) = ("ExpiredToken".to_owned(), "412".into());
        assert_eq!(Failure::from(Error::Precondition { path, source }).error, StoreError::Changed);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let told = shortened(&"ä\n".repeat(1000));
        assert!(told.len() <= TEXT_LENGTH_MAX + 3 && told.ends_with('…'), "{told}");
    }
}
