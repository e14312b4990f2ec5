//! From a URL and options to a store of the library.

#[cfg(feature = "s3")]
use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use millrace_node::under_store::{StoreError, StoreLimits};
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::lengths::LengthConnector;

/// Schemes that are known, whatever this program was built with.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https"];
/// Longest wait for a connection. Guessed: a store within reach answers in much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries after the first one of a request. The time that they take together is bounded, too.
const RETRIES_MAX: usize = 5;

/// A store that nothing was asked of yet.
pub(crate) struct Opening {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same store, if it lists page by page.
    pub(crate) pages: Option<Arc<dyn PaginatedListStore>>,
    /// What all keys begin with; no `/` at its end.
    pub(crate) prefix: String,
}

/// Makes a client for the store that a URL names.
///
/// # Errors
/// [`StoreError::InvalidPath`] for a scheme that is not known here, [`StoreError::Unusable`] for options that
/// the store does not take.
pub(crate) fn open(
    source: &str,
    options: &[(String, String)],
    limits: StoreLimits,
) -> Result<Opening, StoreError> {
    let invalid = StoreError::InvalidPath("write SCHEME://BUCKET/PREFIX");
    let (scheme, rest) = source.split_once("://").ok_or(invalid)?;
    let (place, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let request = Request { source, place, prefix, options, limits };
    match scheme {
        #[cfg(feature = "s3")]
        "s3" | "s3a" => request.s3(),
        #[cfg(feature = "gcs")]
        "gs" => request.gcs(),
        #[cfg(feature = "azure")]
        "az" | "abfs" | "abfss" => request.azure(),
        #[cfg(feature = "http")]
        "http" | "https" => request.http(),
        other if SCHEMES.contains(&other) => Err(StoreError::InvalidPath(
            "this program was built without that store: build it with --features gcs,azure",
        )),
        _ => Err(StoreError::InvalidPath(
            "no store has this scheme: s3://, gs://, az://, abfss://, https:// and file:// are known",
        )),
    }
}

struct Request<'a> {
    source: &'a str,
    /// Bucket, container or host.
    place: &'a str,
    prefix: &'a str,
    options: &'a [(String, String)],
    limits: StoreLimits,
}

impl Request<'_> {
    fn retries(&self) -> RetryConfig {
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        };
        RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: self.limits.patience / 2 }
    }

    fn client(&self) -> ClientOptions {
        ClientOptions::new()
            .with_timeout(self.limits.patience)
            .with_connect_timeout(CONNECT_TIMEOUT.min(self.limits.patience))
    }

    /// Applies the options, each by its key.
    fn configure<B, K: FromStr>(
        &self,
        mut builder: B,
        set: impl Fn(B, K, &str) -> B,
    ) -> Result<B, StoreError> {
        for (key, value) in self.options {
            let Ok(known) = key.parse() else {
                return Err(StoreError::Unusable(format!(
                    "source option {key} is not one of {}; docs/STORES.md names them",
                    self.source
                )));
            };
            builder = set(builder, known, value);
        }
        Ok(builder)
    }

    fn unusable(&self, error: impl Display) -> StoreError {
        StoreError::Unusable(format!("{}: {error}", self.source))
    }

    /// True if the operator named an endpoint without TLS.
    #[cfg(feature = "s3")]
    fn has_plain_endpoint(&self) -> bool {
        let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
        let option = self.options.iter().find(|(key, _)| key.contains("endpoint"));
        let variable = || variables.iter().find_map(|name| std::env::var(name).ok());
        let endpoint = option.map(|(_, value)| value.clone()).or_else(variable);
        endpoint.is_some_and(|it| it.starts_with("http://"))
    }

    #[cfg(feature = "s3")]
    fn s3(&self) -> Result<Opening, StoreError> {
        use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
        let set =
            |it: AmazonS3Builder, key: AmazonS3ConfigKey, value: &str| it.with_config(key, value);
        let builder = AmazonS3Builder::new().with_client_options(self.client());
        // What the library's `from_env` does, but after the limits, which are for what no variable sets.
        let builder = environment("AWS_").into_iter().fold(builder, |builder, (key, value)| {
            match key.parse() {
                Ok(known) => set(builder, known, &value),
                Err(_) => builder,
            }
        });
        let builder = match self.has_plain_endpoint() {
            true => builder.with_allow_http(true),
            false => builder,
        };
        // One object is deleted at a time, and not every store knows the request that deletes many.
        let builder = builder.with_disable_bulk_delete(true);
        let builder = self.configure(builder, set)?;
        let builder = builder.with_bucket_name(self.place).with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        Ok(Opening { pages: Some(store.clone()), store, prefix: self.prefix.to_owned() })
    }

    #[cfg(feature = "gcs")]
    fn gcs(&self) -> Result<Opening, StoreError> {
        use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
        let builder = GoogleCloudStorageBuilder::from_env().with_client_options(self.client());
        let set = |it: GoogleCloudStorageBuilder, key: GoogleConfigKey, value: &str| {
            it.with_config(key, value)
        };
        let builder = self.configure(builder, set)?;
        let builder = builder.with_bucket_name(self.place).with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        Ok(Opening { pages: Some(store.clone()), store, prefix: self.prefix.to_owned() })
    }

    #[cfg(feature = "azure")]
    fn azure(&self) -> Result<Opening, StoreError> {
        use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
        let builder = MicrosoftAzureBuilder::from_env().with_client_options(self.client());
        let builder = builder.with_url(self.source);
        let set = |it: MicrosoftAzureBuilder, key: AzureConfigKey, value: &str| {
            it.with_config(key, value)
        };
        let builder = self.configure(builder, set)?.with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        Ok(Opening { pages: Some(store.clone()), store, prefix: self.prefix.to_owned() })
    }

    #[cfg(feature = "http")]
    fn http(&self) -> Result<Opening, StoreError> {
        use object_store::ClientConfigKey;
        use object_store::http::HttpBuilder;
        let client = self.client().with_allow_http(self.source.starts_with("http://"));
        let set = |it: ClientOptions, key: ClientConfigKey, value: &str| it.with_config(key, value);
        let client = self.configure(client, set)?;
        let builder = HttpBuilder::new().with_url(self.source).with_client_options(client);
        let builder = builder.with_http_connector(LengthConnector::default());
        let store = builder.with_retry(self.retries()).build();
        let store = Arc::new(store.map_err(|error| self.unusable(error))?);
        // The URL has the prefix already, and a plain web server lists nothing.
        Ok(Opening { store, pages: None, prefix: String::new() })
    }
}

/// Returns the variables of the process that begin so, with their names in small letters.
#[cfg(feature = "s3")]
fn environment(prefix: &str) -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let variables = std::env::vars_os().filter_map(text);
    let named = variables.filter(|(name, _)| name.starts_with(prefix));
    named.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}
