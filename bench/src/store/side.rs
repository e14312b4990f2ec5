//! The two ways to the objects: the store itself, and a node. What reads is the same code for both.
//!
//! Owns clients, and the check of every byte that comes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_client::{Client, ClientConfig, File};
use object_store::ObjectStoreExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;

use super::proxy::Objects;

/// Time of one read of a node, and of one request to the store.
const DEADLINE: Duration = Duration::from_secs(60);

/// Makes a client of a bucket at this address, with the credentials of the environment if it has any.
///
/// # Errors
/// If the client cannot be made.
pub fn bucket(endpoint: &str, name: &str) -> Result<AmazonS3> {
    // The library asks the process which cryptography to use; a second answer changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = object_store::ClientOptions::new().with_timeout(DEADLINE).with_allow_http(true);
    AmazonS3Builder::from_env()
        .with_client_options(options)
        .with_endpoint(endpoint)
        .with_bucket_name(name)
        .with_skip_signature(!has_credentials())
        .build()
        .context("make a client of the store")
}

/// True if the environment has a key for the store.
pub(super) fn has_credentials() -> bool {
    std::env::var_os("AWS_ACCESS_KEY_ID").is_some()
}

/// A way to the objects.
pub(super) enum Way {
    Direct(AmazonS3),
    Node(Client),
}

/// One of the ways, and what it leads to.
#[derive(Clone)]
pub(super) struct Side {
    way: Arc<Way>,
    objects: Arc<Objects>,
}

/// An object that was looked up.
pub(super) struct Opened {
    side: Side,
    key: String,
    pub(super) length: u64,
    /// What the node calls it.
    file: Option<File>,
}

impl Side {
    pub(super) fn new(way: Way, objects: &Arc<Objects>) -> Side {
        Side { way: Arc::new(way), objects: Arc::clone(objects) }
    }

    /// Connects to a node as a client on another machine does: no block is read in its memory.
    pub(super) async fn node(address: String, objects: &Arc<Objects>) -> Result<Side> {
        let config = ClientConfig { local: false, deadline: DEADLINE, ..ClientConfig::new() };
        let client = Client::connect(address, config).await.context("connect to the node")?;
        Ok(Side::new(Way::Node(client), objects))
    }

    /// Looks an object up.
    pub(super) async fn open(&self, key: &str) -> Result<Opened> {
        let (length, file) = match &*self.way {
            Way::Direct(store) => (store.head(&Path::from(key)).await?.size, None),
            Way::Node(client) => {
                let file = client.stat(key).await?;
                (file.length, Some(file))
            }
        };
        Ok(Opened { side: self.clone(), key: key.to_owned(), length, file })
    }

    /// Has a node bring a whole object into its memory.
    pub(super) async fn load(&self, key: &str) -> Result<()> {
        if let Way::Node(client) = &*self.way {
            client.load(key).await.with_context(|| format!("load '{key}'"))?;
        }
        Ok(())
    }
}

impl Opened {
    /// Reads a range.
    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<()> {
        let bytes: Bytes = match (&*self.side.way, &self.file) {
            (Way::Node(client), Some(file)) => client.read(file, offset, length).await?,
            (Way::Direct(store), _) => {
                store.get_range(&Path::from(&*self.key), offset..offset + length).await?
            }
            (Way::Node(_), None) => anyhow::bail!("'{}' was not looked up", self.key),
        };
        ensure!(bytes.len() as u64 == length, "{} bytes came for {length}", bytes.len());
        self.side.objects.check(&self.key, offset, &bytes)
    }

    /// Reads all of it in order, as a stream.
    pub(super) async fn read_whole(&self) -> Result<()> {
        let mut stream = match (&*self.side.way, &self.file) {
            (Way::Node(client), Some(file)) => {
                client.reader(file).into_stream().map_err(anyhow::Error::from).boxed()
            }
            (Way::Direct(store), _) => {
                let answer = store.get(&Path::from(&*self.key)).await?;
                answer.into_stream().map_err(anyhow::Error::from).boxed()
            }
            (Way::Node(_), None) => anyhow::bail!("'{}' was not looked up", self.key),
        };
        let mut offset = 0;
        while let Some(bytes) = stream.try_next().await? {
            self.side.objects.check(&self.key, offset, &bytes)?;
            offset += bytes.len() as u64;
        }
        ensure!(offset == self.length, "{offset} bytes came of {}", self.length);
        Ok(())
    }
}

/// Puts all objects into a bucket.
///
/// # Errors
/// Those of the store.
pub(super) async fn put_all(store: &AmazonS3, objects: &Objects) -> Result<()> {
    for (key, length) in objects.all() {
        let pieces: object_store::PutPayload = objects.pieces(key, 0..length).collect();
        store.put(&Path::from(key), pieces).await.with_context(|| format!("put '{key}'"))?;
    }
    Ok(())
}

/// Removes them again. What is not there is left out.
pub(super) async fn remove_all(store: &AmazonS3, objects: &Objects) {
    for (key, _) in objects.all() {
        // The result is measured by now; an object that stays costs room alone.
        let _ = store.delete(&Path::from(key)).await;
    }
}
