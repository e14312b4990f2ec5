//! The client for code without async: each method waits for its answer.
//!
//! Owns a tokio runtime of one worker thread, which moves the bytes; the calling thread verifies
//! checksums. A [`Client`] may be shared by many threads, whose calls then run side by side. It must not
//! be used or dropped inside an async task, where waiting would stop everything else: use
//! [`crate::Client`] there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_proto::write::Condition;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt};
use tokio::runtime::{self, Handle, Runtime};

use crate::config::ClientConfig;
use crate::error::Error;
use crate::file::{
    ClusterInfo, Entry, File, FreeReport, HelloInfo, LoadReport, MountInfo, NodeStatus,
};
use crate::job::{JobId, JobOptions, JobReport};
use crate::lease::Lease;
use crate::read::ReadOptions;
use crate::refresh::Refreshed;
use crate::write::PutOptions;

/// Bytes that are read at once from what is written.
const PUT_BUFFER: usize = 256 << 10;

/// A client of one node whose methods wait. Cloning is cheap, and clones share their connections.
///
/// Methods, arguments and errors are those of [`crate::Client`].
///
/// # Panics
/// Every method, when called inside an async task.
#[derive(Clone, Debug)]
pub struct Client {
    // The client comes first, so that it is dropped before its runtime.
    client: crate::Client,
    runtime: Arc<Threads>,
}

/// A runtime that ends without waiting: a source that hangs may hold one of its threads for good.
#[derive(Debug)]
struct Threads {
    /// None once it ends.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Threads {
    /// Starts a thread that moves bytes.
    ///
    /// # Errors
    /// What the system says.
    fn start() -> io::Result<Threads> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("millrace-client")
            .enable_all()
            .build()?;
        Ok(Threads { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    /// See [`crate::Client::connect`].
    ///
    /// # Errors
    /// Also [`Error::Connect`] when the system grants no thread.
    pub fn connect(address: impl Into<String>, config: ClientConfig) -> Result<Client, Error> {
        let address = address.into();
        let runtime = Threads::start().map_err(|source| Error::Connect {
            address: address.as_str().into(),
            source: Arc::new(source),
        })?;
        let client = runtime.handle.block_on(crate::Client::connect(address, config))?;
        Ok(Client { client, runtime: Arc::new(runtime) })
    }

    /// See [`crate::Client::with_deadline`].
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { client: self.client.with_deadline(deadline), runtime: self.runtime.clone() }
    }

    /// See [`crate::Client::hello`].
    pub fn hello(&self) -> HelloInfo {
        self.client.hello()
    }

    /// Reads from leased blocks. True if `target` was filled; see [`crate::Client::read_leased`].
    pub fn read_leased(&self, file: &File, offset: u64, target: &mut [u8]) -> bool {
        self.client.read_leased(file, offset, target)
    }

    /// See [`crate::Client::lease`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn lease(
        &self,
        file: &File,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Option<Lease>>, Error> {
        self.runtime.handle.block_on(self.client.lease(file, offset, length))
    }

    /// See [`crate::Client::stat`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn stat(&self, path: &str) -> Result<File, Error> {
        self.runtime.handle.block_on(self.client.stat(path))
    }

    /// See [`crate::Client::list`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        self.runtime.handle.block_on(self.client.list(path))
    }

    /// See [`crate::Client::list_page`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn list_page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Entry>, Option<String>), Error> {
        let page = self.client.list_page(path, token, limit);
        self.runtime.handle.block_on(page)
    }

    /// See [`crate::Client::file`].
    pub fn file(&self, directory: &str, entry: &Entry) -> File {
        self.client.file(directory, entry)
    }

    /// See [`crate::Client::read`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read(&self, file: &File, offset: u64, length: u64) -> Result<Bytes, Error> {
        self.runtime.handle.block_on(self.client.read(file, offset, length))
    }

    /// See [`crate::Client::read_with`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read_with(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        options: ReadOptions,
    ) -> Result<Bytes, Error> {
        let read = self.client.read_with(file, offset, length, options);
        self.runtime.handle.block_on(read)
    }

    /// See [`crate::Client::read_into`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read_into(
        &self,
        file: &File,
        offset: u64,
        buffer: BytesMut,
        length: u64,
    ) -> Result<BytesMut, Error> {
        let read = self.client.read_into(file, offset, buffer, length);
        self.runtime.handle.block_on(read)
    }

    /// See [`crate::Client::read_into_with`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read_into_with(
        &self,
        file: &File,
        offset: u64,
        buffer: BytesMut,
        length: u64,
        options: ReadOptions,
    ) -> Result<BytesMut, Error> {
        let read = self.client.read_into_with(file, offset, buffer, length, options);
        self.runtime.handle.block_on(read)
    }

    /// See [`crate::Client::read_many`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read_many(&self, ranges: &[(&File, u64, u64)]) -> Vec<Result<Bytes, Error>> {
        self.runtime.handle.block_on(self.client.read_many(ranges))
    }

    /// See [`crate::Client::read_many_with`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn read_many_with(
        &self,
        ranges: &[(&File, u64, u64)],
        options: ReadOptions,
    ) -> Vec<Result<Bytes, Error>> {
        self.runtime.handle.block_on(self.client.read_many_with(ranges, options))
    }

    /// See [`crate::Client::reader`].
    pub fn reader(&self, file: &File) -> Reader {
        Reader { reader: self.client.reader(file), runtime: self.runtime.clone() }
    }

    /// See [`crate::Client::put`]; the reader is one of the standard library.
    ///
    /// # Errors
    /// Those of the async method.
    pub fn put(
        &self,
        path: &str,
        mut reader: impl io::Read,
        options: PutOptions,
    ) -> Result<File, Error> {
        let wait = &self.runtime.handle;
        let mut upload = wait.block_on(self.client.upload(path, options))?;
        let mut buffer = vec![0; PUT_BUFFER];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return wait.block_on(upload.finish()),
                Ok(count) => wait.block_on(upload.write(&buffer[..count]))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Error::Unreadable { source: Arc::new(error) }),
            }
        }
    }

    /// See [`crate::Client::put_if_absent`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn put_if_absent(&self, path: &str, reader: impl io::Read) -> Result<File, Error> {
        self.put(path, reader, PutOptions { condition: Condition::Absent })
    }

    /// See [`crate::Client::put_if_version`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn put_if_version(
        &self,
        path: &str,
        version: u64,
        reader: impl io::Read,
    ) -> Result<File, Error> {
        self.put(path, reader, PutOptions { condition: Condition::Version(version) })
    }

    /// See [`crate::Client::delete`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn delete(&self, path: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.delete(path))
    }

    /// See [`crate::Client::delete_if_version`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn delete_if_version(&self, path: &str, version: u64) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.delete_if_version(path, version))
    }

    /// See [`crate::Client::rename`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn rename(&self, path: &str, to: &str) -> Result<File, Error> {
        self.runtime.handle.block_on(self.client.rename(path, to))
    }

    /// See [`crate::Client::rename_if_absent`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn rename_if_absent(&self, path: &str, to: &str) -> Result<File, Error> {
        self.runtime.handle.block_on(self.client.rename_if_absent(path, to))
    }

    /// See [`crate::Client::load`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn load(&self, path: &str) -> Result<LoadReport, Error> {
        self.runtime.handle.block_on(self.client.load(path))
    }

    /// See [`crate::Client::load_replicas`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn load_replicas(&self, path: &str, replicas: u8) -> Result<LoadReport, Error> {
        self.runtime.handle.block_on(self.client.load_replicas(path, replicas))
    }

    /// See [`crate::Client::free`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn free(&self, path: &str) -> Result<FreeReport, Error> {
        self.runtime.handle.block_on(self.client.free(path))
    }

    /// See [`crate::Client::status`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn status(&self) -> Result<NodeStatus, Error> {
        self.runtime.handle.block_on(self.client.status())
    }

    /// See [`crate::Client::refresh`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn refresh(&self, path: &str, recursive: bool) -> Result<Vec<Refreshed>, Error> {
        self.runtime.handle.block_on(self.client.refresh(path, recursive))
    }

    /// See [`crate::Client::statuses`].
    pub fn statuses(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        self.runtime.handle.block_on(self.client.statuses())
    }

    /// See [`crate::Client::cluster`].
    pub fn cluster(&self) -> Option<ClusterInfo> {
        self.client.cluster()
    }

    /// See [`crate::Client::drain`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn drain(&self, node: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.drain(node))
    }

    /// See [`crate::Client::undrain`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn undrain(&self, node: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.undrain(node))
    }

    /// See [`crate::Client::mount`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn mount(&self, mount: &MountInfo) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.mount(mount))
    }

    /// See [`crate::Client::unmount`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn unmount(&self, prefix: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.unmount(prefix))
    }

    /// See [`crate::Client::pin`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn pin(&self, path: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.pin(path))
    }

    /// See [`crate::Client::unpin`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn unpin(&self, path: &str) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.unpin(path))
    }

    /// See [`crate::Client::pins`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn pins(&self) -> Result<Vec<String>, Error> {
        self.runtime.handle.block_on(self.client.pins())
    }

    /// See [`crate::Client::start_job`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn start_job(&self, paths: &[String], options: &JobOptions) -> Result<JobId, Error> {
        self.runtime.handle.block_on(self.client.start_job(paths, options))
    }

    /// See [`crate::Client::cancel_job`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn cancel_job(&self, id: JobId) -> Result<(), Error> {
        self.runtime.handle.block_on(self.client.cancel_job(id))
    }

    /// See [`crate::Client::jobs`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn jobs(&self) -> Result<Vec<JobReport>, Error> {
        self.runtime.handle.block_on(self.client.jobs())
    }

    /// See [`crate::Client::job`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn job(&self, id: JobId) -> Result<JobReport, Error> {
        self.runtime.handle.block_on(self.client.job(id))
    }

    /// See [`crate::Client::fallback_count`].
    pub fn fallback_count(&self) -> u64 {
        self.client.fallback_count()
    }

    /// See [`crate::Client::ping`].
    ///
    /// # Errors
    /// Those of the async method.
    pub fn ping(&self) -> Result<Duration, Error> {
        self.runtime.handle.block_on(self.client.ping())
    }
}

/// Reads one version of a file from a position on, as a local file is read; see [`crate::Reader`].
///
/// # Panics
/// Every method, when called inside an async task.
#[derive(Debug)]
pub struct Reader {
    // First, so that it is dropped before its runtime.
    reader: crate::Reader,
    runtime: Arc<Threads>,
}

impl Reader {
    /// See [`crate::Reader::with_read_ahead`].
    pub fn with_read_ahead(self, byte_count: u64) -> Reader {
        Reader { reader: self.reader.with_read_ahead(byte_count), runtime: self.runtime }
    }

    /// See [`crate::Reader::with_options`].
    pub fn with_options(self, options: ReadOptions) -> Reader {
        Reader { reader: self.reader.with_options(options), runtime: self.runtime }
    }
}

impl io::Read for Reader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.runtime.handle.block_on(self.reader.read(target))
    }
}

impl io::BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.runtime.handle.block_on(self.reader.fill_buf())
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }
}

impl io::Seek for Reader {
    fn seek(&mut self, target: io::SeekFrom) -> io::Result<u64> {
        self.runtime.handle.block_on(self.reader.seek(target))
    }
}
