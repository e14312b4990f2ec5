//! The length of an answer: it is known before the first byte is used, or the whole answer is waited for.
//!
//! Owns the way of requests to the network, where [`completion`] adds what the library leaves out. Always holds: a
//! part whose head says another length than its range is refused; an answer with [`LengthKnown`] ends after the bytes
//! of its range, or breaks.

use std::pin::Pin;

use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};

use crate::completion;

/// Says of an answer that its head names the length of its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LengthKnown;

/// Connects as the library does, and looks at the length of each answer.
#[derive(Debug, Default)]
pub(crate) struct LengthConnector(ReqwestConnector);

impl HttpConnector for LengthConnector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(LengthService(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct LengthService(HttpClient);

#[derive(Debug, thiserror::Error)]
#[error("the store says that it sends {told} bytes for a part of {asked}")]
struct WrongLength {
    told: u64,
    asked: u64,
}

impl HttpService for LengthService {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let mut request = request;
            completion::prepare(&mut request)?;
            let mut response = self.0.execute(request).await?;
            let header = |name| response.headers().get(name)?.to_str().ok();
            let told = header("content-length").and_then(|text| text.parse::<u64>().ok());
            let asked = header("content-range").and_then(length_of);
            if let Some(told) = told {
                if response.status() == 206
                    && let Some(asked) = asked.filter(|asked| *asked != told)
                {
                    // It is not tried again: a store that says so once says so again.
                    return Err(HttpError::new(HttpErrorKind::Decode, WrongLength { told, asked }));
                }
                response.extensions_mut().insert(LengthKnown);
            }
            Ok(response)
        })
    }
}

/// Returns the bytes of a part, of which a header says `bytes 5-9/100`.
fn length_of(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_a_length() {
        assert_eq!(length_of("bytes 5-9/100"), Some(5));
        assert_eq!(length_of("bytes 0-0/*"), Some(1));
        for text in ["bytes */100", "bytes 9-5/100", "items 5-9/100", "bytes 5-9", ""] {
            assert_eq!(length_of(text), None, "{text}");
        }
    }
}
