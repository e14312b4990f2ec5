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
#[cfg(feature = "s3")]
use crate::profile::{DEFAULT, Files};

/// Schemes that are known, whatever this program was built with.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https"];
/// Key of a profile of the AWS tools, which the store library does not know.
const PROFILE: &str = "profile";
/// Longest wait for a connection. Guessed: a store within reach answers in much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries after the first one of a request. The time that they take together is bounded, too.
const RETRIES_MAX: usize = 5;

/// With what a source is opened.
#[derive(Clone, Copy)]
pub(crate) enum Access<'a> {
    /// With the options of the node, and what the environment has.
    Common(&'a [(String, String)]),
    /// With the options of the credential of this name, and nothing else.
    Named(&'a str, &'a [(String, String)]),
}

/// A store that nothing was asked of yet.
pub(crate) struct Opening {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same store, by a client that sends no request twice.
    pub(crate) once: Arc<dyn ObjectStore>,
    /// The same store, if it lists page by page.
    pub(crate) pages: Option<Arc<dyn PaginatedListStore>>,
    /// What all keys begin with; no `/` at its end.
    pub(crate) prefix: String,
    /// True if the store judges a condition when an object in parts becomes complete.
    pub(crate) judges_completion: bool,
}

/// Makes a client for the store that a URL names.
///
/// # Errors
/// [`StoreError::InvalidPath`] for a scheme that is not known here, [`StoreError::Unusable`] for options that
/// the store does not take.
pub(crate) fn open(
    source: &str,
    access: Access<'_>,
    limits: StoreLimits,
) -> Result<Opening, StoreError> {
    // The library asks the process which cryptography to use; a second answer changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let invalid = StoreError::InvalidPath("write SCHEME://BUCKET/PREFIX");
    let (scheme, rest) = source.split_once("://").ok_or(invalid)?;
    let (place, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let request = Request { source, place, prefix, access, limits };
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
    access: Access<'a>,
    limits: StoreLimits,
}

/// True if a key is one of any store that this program was built with, or of credentials.
pub(crate) fn is_known(key: &str) -> bool {
    #[cfg(feature = "s3")]
    if key == PROFILE || key.parse::<object_store::aws::AmazonS3ConfigKey>().is_ok() {
        return true;
    }
    #[cfg(feature = "gcs")]
    if key.parse::<object_store::gcp::GoogleConfigKey>().is_ok() {
        return true;
    }
    #[cfg(feature = "azure")]
    if key.parse::<object_store::azure::AzureConfigKey>().is_ok() {
        return true;
    }
    key.parse::<object_store::ClientConfigKey>().is_ok()
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
            // What a request may take is counted here, because a long answer that keeps coming does not hang.
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_TIMEOUT.min(self.limits.patience))
    }

    /// Returns the options that were given for this source.
    fn options(&self) -> &[(String, String)] {
        let (Access::Common(options) | Access::Named(_, options)) = self.access;
        options
    }

    /// Applies the options, each by its key.
    fn configure<B, K: FromStr>(
        &self,
        mut builder: B,
        set: impl Fn(B, K, &str) -> B,
    ) -> Result<B, StoreError> {
        for (key, value) in self.options().iter().filter(|(key, _)| key != PROFILE) {
            let Ok(known) = key.parse() else {
                let option = match self.access {
                    Access::Common(_) => format!("source option {key}"),
                    Access::Named(name, _) => format!("key {key} of [credential.{name}]"),
                };
                return Err(StoreError::Unusable(format!(
                    "{option} is not one of {}; docs/STORES.md names them",
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

    /// Returns what is known besides the options: variables of the process, but not for a credential, and the
    /// profile of the AWS tools, where the keys of a user come from nowhere else. Later ones count.
    #[cfg(feature = "s3")]
    fn surroundings(&self) -> Result<Vec<(String, String)>, StoreError> {
        let variables = match self.access {
            Access::Common(_) => environment("AWS_"),
            Access::Named(..) => Vec::new(),
        };
        let given = |name: &str| {
            let all = self.options().iter().chain(&variables);
            all.rev().find(|(key, _)| key.trim_start_matches("aws_") == name).map(|(_, it)| it)
        };
        let has_keys = ["access_key_id", "web_identity_token_file", "skip_signature"];
        if has_keys.into_iter().any(|name| given(name).is_some()) {
            return Ok(variables);
        }
        let files = Files::of(|name| std::env::var(name).ok());
        let named = given(PROFILE).map(String::as_str);
        let profile = match (named, self.access) {
            (None, Access::Named(..)) => None,
            (named, _) => files.profile(named.unwrap_or(DEFAULT))?,
        };
        match (named, profile) {
            (Some(name), None) => Err(StoreError::Unusable(format!(
                "there is no profile {name} in {}",
                files.names()
            ))),
            (_, profile) => Ok(profile.into_iter().flatten().chain(variables).collect()),
        }
    }

    #[cfg(feature = "s3")]
    fn s3(&self) -> Result<Opening, StoreError> {
        use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
        let set =
            |it: AmazonS3Builder, key: AmazonS3ConfigKey, value: &str| it.with_config(key, value);
        let builder = AmazonS3Builder::new().with_client_options(self.client());
        let surroundings = self.surroundings()?;
        // What the library's `from_env` does, but after the limits, which are for what no variable sets.
        let builder =
            surroundings.iter().fold(builder, |builder, (key, value)| match key.parse() {
                Ok(known) => set(builder, known, value),
                Err(_) => builder,
            });
        // An endpoint without TLS was named on purpose.
        let all = surroundings.iter().chain(self.options());
        let endpoint =
            all.rev().find(|(key, _)| key.contains("endpoint") && !key.contains("metadata"));
        let builder = match endpoint {
            Some((_, endpoint)) if endpoint.starts_with("http://") => builder.with_allow_http(true),
            _ => builder,
        };
        // One object is deleted at a time, and not every store knows the request that deletes many.
        let builder = builder.with_disable_bulk_delete(true);
        let builder = self.configure(builder, set)?;
        let builder = builder.with_bucket_name(self.place).with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        // An operator who says that the store knows no conditions means this request, too.
        let conditions = builder.get_config_value(&AmazonS3ConfigKey::ConditionalPut);
        let judges_completion = conditions.as_deref() != Some("disabled");
        let once = builder.clone().with_retry(RetryConfig { max_retries: 0, ..self.retries() });
        let once = Arc::new(once.build().map_err(|error| self.unusable(error))?);
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        let pages = Some(store.clone() as Arc<dyn PaginatedListStore>);
        let prefix = self.prefix.to_owned();
        Ok(Opening { pages, store, once, prefix, judges_completion })
    }

    #[cfg(feature = "gcs")]
    fn gcs(&self) -> Result<Opening, StoreError> {
        use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
        let builder = match self.access {
            Access::Common(_) => GoogleCloudStorageBuilder::from_env(),
            Access::Named(..) => GoogleCloudStorageBuilder::new(),
        };
        let builder = builder.with_client_options(self.client());
        let set = |it: GoogleCloudStorageBuilder, key: GoogleConfigKey, value: &str| {
            it.with_config(key, value)
        };
        let builder = self.configure(builder, set)?;
        let builder = builder.with_bucket_name(self.place).with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        let once = builder.clone().with_retry(RetryConfig { max_retries: 0, ..self.retries() });
        let once = Arc::new(once.build().map_err(|error| self.unusable(error))?);
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        let pages = Some(store.clone() as Arc<dyn PaginatedListStore>);
        let prefix = self.prefix.to_owned();
        Ok(Opening { pages, store, once, prefix, judges_completion: false })
    }

    #[cfg(feature = "azure")]
    fn azure(&self) -> Result<Opening, StoreError> {
        use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
        let builder = match self.access {
            Access::Common(_) => MicrosoftAzureBuilder::from_env(),
            Access::Named(..) => MicrosoftAzureBuilder::new(),
        };
        let builder = builder.with_client_options(self.client()).with_url(self.source);
        let set = |it: MicrosoftAzureBuilder, key: AzureConfigKey, value: &str| {
            it.with_config(key, value)
        };
        let builder = self.configure(builder, set)?.with_retry(self.retries());
        let builder = builder.with_http_connector(LengthConnector::default());
        let once = builder.clone().with_retry(RetryConfig { max_retries: 0, ..self.retries() });
        let once = Arc::new(once.build().map_err(|error| self.unusable(error))?);
        let store = Arc::new(builder.build().map_err(|error| self.unusable(error))?);
        let pages = Some(store.clone() as Arc<dyn PaginatedListStore>);
        let prefix = self.prefix.to_owned();
        Ok(Opening { pages, store, once, prefix, judges_completion: false })
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
        let once: Arc<dyn ObjectStore> = store.clone();
        let prefix = String::new();
        Ok(Opening { store, once, pages: None, prefix, judges_completion: false })
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

#[cfg(test)]
mod tests {
    use object_store::ClientConfigKey;

    use super::*;

    #[test]
    fn no_clock_of_the_library_ends_a_long_answer() {
        let limits = StoreLimits {
            patience: Duration::from_secs(60),
            concurrency: 1,
            bandwidth: None,
            is_hedged: false,
        };
        let access = Access::Common(&[]);
        let request = Request { source: "s3://box", place: "box", prefix: "", access, limits };
        let client = request.client();
        // It would be 30 seconds for all of an answer, however steadily it comes.
        assert_eq!(client.get_config_value(&ClientConfigKey::Timeout), None);
        let connect = client.get_config_value(&ClientConfigKey::ConnectTimeout);
        assert!(connect.is_some_and(|it| it.starts_with('5')), "a connection has its time");
    }
}
