//! The connections of a client: made when they are first needed, by each process for itself.

use millrace_client as client;
use millrace_client::{ClientConfig, Error};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use tokio::sync::Mutex;

use crate::failure::{self, Need};
use crate::file::File;
use crate::memory::{NewBytes, PerProcess};
use crate::waiting::{wait, wait_for};

/// See the module. No method must be called with the interpreter's lock held.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) address: String,
    pub(crate) config: ClientConfig,
    client: PerProcess<client::Client>,
    /// Held by the request of asyncio that connects, so that others wait for it.
    connecting: PerProcess<Mutex<()>>,
}

impl Connected {
    pub(crate) fn new(address: String, config: ClientConfig) -> Connected {
        let (client, connecting) = (PerProcess::new(), PerProcess::new());
        Connected { address, config, client, connecting }
    }

    /// Returns the connected client of this process.
    pub(crate) fn client(&self) -> PyResult<&client::Client> {
        self.client.get_or_try(|| {
            let connect = client::Client::connect(plain(&self.address), self.config.clone());
            wait(connect, Need::File)
        })
    }

    /// As [`Connected::client`], within a task of the runtime.
    pub(crate) async fn client_later(&self) -> PyResult<client::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let connecting = self.connecting.get_or_try(|| PyResult::Ok(Mutex::new(())))?;
        let _alone = connecting.lock().await;
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let made = client::Client::connect(plain(&self.address), self.config.clone()).await;
        let made = made.map_err(|error| failure::exception(error, Need::File))?;
        self.client.get_or_try(|| Ok(made)).cloned()
    }

    /// Returns one page of a directory, and the token of the next one.
    pub(crate) fn page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> PyResult<(Vec<File>, Option<String>)> {
        let client = self.client()?;
        let (entries, token) = wait(client.list_page(path, token, limit), Need::Directory)?;
        Ok((entries.iter().map(|entry| File(client.file(path, entry))).collect(), token))
    }

    /// Fills `target` with bytes of a file from `offset` on, which the file must have.
    pub(crate) fn fill(&self, file: &client::File, offset: u64, target: &mut [u8]) -> PyResult<()> {
        let client = self.client()?;
        // No runtime is entered for what lies in the memory of a node on this machine.
        if client.read_leased(file, offset, target) {
            return Ok(());
        }
        wait_for(fill(client, file, offset, target))?
    }

    /// Fills the targets of many ranges, all of which are asked for at once. There is one result for each.
    pub(crate) fn fill_many(&self, ranges: &mut [Fill<'_>]) -> PyResult<Vec<Result<(), Error>>> {
        let client = self.client()?;
        if ranges.iter_mut().all(|range| client.read_leased(range.file, range.offset, range.target))
        {
            return Ok(ranges.iter().map(|_| Ok(())).collect());
        }
        wait_for(fill_many(client, ranges))
    }

    /// Allocates the bytes of many ranges, each cut where its file ends.
    ///
    /// # Errors
    /// ValueError for more bytes than one call may ask for; MemoryError.
    pub(crate) fn room_for(
        &self,
        py: Python<'_>,
        ranges: Vec<(File, u64, u64)>,
    ) -> PyResult<Vec<Room>> {
        let mut total: u64 = 0;
        let mut lengths = Vec::with_capacity(ranges.len());
        for (file, offset, length) in &ranges {
            let length = (*length).min(file.0.length.saturating_sub(*offset));
            total = self.check_length(total.saturating_add(length))?;
            lengths.push(length);
        }
        let pairs = ranges.into_iter().zip(lengths);
        let rooms = pairs.map(|((file, offset, _), length)| {
            Ok(Room { file: file.0, offset, made: NewBytes::new(py, length)? })
        });
        rooms.collect()
    }

    /// Passes a length that one call may ask for.
    pub(crate) fn check_length(&self, length: u64) -> PyResult<u64> {
        if length > self.config.read_length_max {
            return Err(PyValueError::new_err(format!(
                "a read of {length} bytes is longer than read_length_max, {}; read the file in parts",
                self.config.read_length_max
            )));
        }
        Ok(length)
    }
}

/// A range of a file, and where its bytes go.
#[derive(Debug)]
pub(crate) struct Fill<'a> {
    pub(crate) file: &'a client::File,
    pub(crate) offset: u64,
    pub(crate) target: &'a mut [u8],
}

/// A range of a file, and the object that its bytes will be.
#[derive(Debug)]
pub(crate) struct Room {
    file: client::File,
    offset: u64,
    pub(crate) made: NewBytes,
}

/// Returns where the bytes of many ranges go.
pub(crate) fn fills(rooms: &mut [Room]) -> Vec<Fill<'_>> {
    let fills = rooms.iter_mut().map(|Room { file, offset, made }| Fill {
        file,
        offset: *offset,
        target: made.target(),
    });
    fills.collect()
}

/// Reads bytes that a file must have into the whole of `target`.
pub(crate) async fn fill(
    client: &client::Client,
    file: &client::File,
    offset: u64,
    target: &mut [u8],
) -> PyResult<()> {
    if client.read_leased(file, offset, target) {
        return Ok(());
    }
    let read = client.read(file, offset, target.len() as u64).await;
    let bytes = read.map_err(|error| failure::exception(error, Need::File))?;
    if bytes.len() != target.len() {
        let text = format!("{} bytes came for {} of '{}'", bytes.len(), target.len(), file.path);
        return Err(PyOSError::new_err((libc::EIO, text)));
    }
    target.copy_from_slice(&bytes);
    Ok(())
}

/// Reads many ranges: what is leased in place, all else at once.
pub(crate) async fn fill_many(
    client: &client::Client,
    ranges: &mut [Fill<'_>],
) -> Vec<Result<(), Error>> {
    let mut results: Vec<Result<(), Error>> = Vec::with_capacity(ranges.len());
    results.resize_with(ranges.len(), || Ok(()));
    let mut missing = Vec::new();
    for (index, range) in ranges.iter_mut().enumerate() {
        if !client.read_leased(range.file, range.offset, range.target) {
            missing.push(index);
        }
    }
    let wanted: Vec<_> = missing
        .iter()
        .map(|&index| {
            let range = &ranges[index];
            (range.file, range.offset, range.target.len() as u64)
        })
        .collect();
    let answers = client.read_many(&wanted).await;
    for (index, answer) in missing.into_iter().zip(answers) {
        let target = &mut *ranges[index].target;
        results[index] = answer.and_then(|bytes| {
            if bytes.len() != target.len() {
                let text = format!("{} bytes came for {}", bytes.len(), target.len());
                return Err(Error::Protocol(text.into()));
            }
            target.copy_from_slice(&bytes);
            Ok(())
        });
    }
    results
}

/// Returns an address as the client takes it: a URL of nodes or of a cluster names the same without its scheme.
fn plain(address: &str) -> String {
    if let Some(place) = address.strip_prefix("millrace+zk://") {
        return format!("zk://{place}");
    }
    let nodes =
        address.strip_prefix("millrace://").map(|nodes| nodes.strip_suffix('/').unwrap_or(nodes));
    nodes.unwrap_or(address).to_owned()
}
