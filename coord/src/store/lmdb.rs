//! One LMDB environment: opened after its pages were verified, written by one writer at a time.
//!
//! Owns the only unsafe calls of the store, the errors of LMDB, and the latch: after a write or sync
//! failed, every later write is refused with the same reason. Always holds: after `Ok` a commit is on
//! stable storage (data by `fdatasync`, then the meta page through an `O_DSYNC` descriptor), and the header
//! record of each commit names the transaction that wrote it. Leaves keys and values to its users.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};

use super::StoreError;
use super::files::{Lock, remove_if_there};
use super::pages::{self, Damage, PageView};
use super::record::{self, HEADER_KEY};

/// The unnamed database of the environment, with all records.
pub(super) type Records = Database<Bytes, Bytes>;
/// A view that may move between threads and keeps the environment open.
pub(super) type OwnedView = RoTxn<'static, WithoutTls>;
/// A view that may not outlive its environment.
pub(super) type BorrowedView<'e> = RoTxn<'e, WithoutTls>;

/// Most readers at a time: the open snapshots of a state, and of the states it replaced.
const READERS_MAX: u32 = 126;
/// Bytes of LMDB's two meta pages. A file has only these before its first commit.
const META_BYTES: u64 = 2 * 4096;
/// Longest wait of a close for calls that are reading. These take milliseconds.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

pub(super) struct Environment {
    env: Env<WithoutTls>,
    records: Records,
    /// Its name in errors: what it is and where.
    name: String,
    path: PathBuf,
    limit_bytes: u64,
    /// The first write that failed.
    failed: OnceLock<StoreError>,
    /// Released when the last environment of the directory is closed.
    lock: Arc<Lock>,
}

impl Environment {
    /// Opens the environment in the directory `path`, which must exist, after verifying its file. An empty
    /// directory becomes a new environment. Returns the value of the header, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the file cannot be what LMDB wrote.
    pub(super) fn open(
        path: &Path,
        limit_bytes: u64,
        lock: Arc<Lock>,
    ) -> Result<(Environment, Option<Vec<u8>>), StoreError> {
        let name = format!("the state in {}", path.display());
        let limit_bytes = limit_bytes.next_multiple_of(rustix::param::page_size() as u64);
        let header = match data_bytes(path)? {
            0 => None,
            _ => read_header(path, &name, limit_bytes)?,
        };
        // A crash may have left these readers. Nothing reads, because the directory is locked.
        remove_if_there(&path.join("lock.mdb"))?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(limit_bytes as usize).max_readers(READERS_MAX);
        // SAFETY: this flag changes only what the kernel reads ahead, not what is durable.
        #[expect(unsafe_code, reason = "flags of LMDB can make it unsafe; this one does not")]
        unsafe {
            options.flags(EnvFlags::NO_READ_AHEAD)
        };
        // SAFETY: the map is sound while the file has the structure that LMDB wrote and no other process
        // writes it: its pages were verified above, and `lock` keeps other processes out.
        #[expect(unsafe_code, reason = "LMDB maps a file")]
        let env = unsafe { options.open(path) }
            .map_err(|error| StoreError::io("open the LMDB environment in", path, error))?;
        let env_records = open_records(&env);
        let records =
            env_records.map_err(|error| StoreError::io("open the database in", path, error))?;
        let path = path.to_owned();
        let failed = OnceLock::new();
        Ok((Environment { env, records, name, path, limit_bytes, failed, lock }, header))
    }

    pub(super) fn records(&self) -> Records {
        self.records
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock(&self) -> &Arc<Lock> {
        &self.lock
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Returns the bytes of the pages with records.
    pub(super) fn used_bytes(&self) -> u64 {
        let stat = self.env.stat();
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        pages as u64 * u64::from(stat.page_size)
    }

    /// Opens a view of the last commit.
    pub(super) fn view(&self) -> Result<BorrowedView<'_>, StoreError> {
        self.env.read_txn().map_err(|error| self.error(error))
    }

    /// Opens a view that does not borrow the environment.
    pub(super) fn owned_view(&self) -> Result<OwnedView, StoreError> {
        self.env.clone().static_read_txn().map_err(|error| self.error(error))
    }

    /// Runs `change` in a transaction and commits it durably, all or nothing. `change` gets the
    /// transaction's number, for the header that it must write.
    ///
    /// # Errors
    /// Errors of `change`; [`StoreError::Full`]; [`StoreError::Failed`], from then on for every write.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&mut RwTxn<'_>, Records, u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.check()?;
        let attempt = || {
            let mut transaction = self.env.write_txn().map_err(|error| self.error(error))?;
            let number = transaction.id() as u64;
            let changed = change(&mut transaction, self.records, number)?;
            transaction.commit().map_err(|error| self.error(error))?;
            Ok(changed)
        };
        attempt().inspect_err(|error| {
            if matches!(error, StoreError::Failed { .. }) {
                tracing::error!("{error}");
                // Only the first reason is kept. There is one writer, so this is the first.
                let _ = self.failed.set(error.clone());
            }
        })
    }

    /// Converts an error of LMDB.
    pub(super) fn error(&self, error: heed::Error) -> StoreError {
        let what = self.name.clone();
        match error {
            heed::Error::Mdb(MdbError::MapFull) => {
                StoreError::Full { what, limit_bytes: self.limit_bytes }
            }
            heed::Error::Mdb(MdbError::PageNotFound | MdbError::Corrupted | MdbError::Invalid) => {
                self.corrupt(error.to_string())
            }
            error => StoreError::Failed { what, reason: error.to_string() },
        }
    }

    /// Builds the error for damage that was found after opening.
    pub(super) fn corrupt(&self, at: impl Into<String>) -> StoreError {
        StoreError::corrupt(&self.name, at)
    }

    /// Returns its name in errors: what it is and where.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Fails with the error of the first failed write, if there is one.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Closes it, if no view is open any more, and waits until it is closed.
    pub(super) fn close(self) -> Result<(), StoreError> {
        let Environment { env, path, .. } = self;
        if env.prepare_for_closing().wait_timeout(CLOSE_WAIT) {
            Ok(())
        } else {
            Err(StoreError::io("close the LMDB environment in", &path, "it is still being read"))
        }
    }
}

fn open_records(env: &Env<WithoutTls>) -> Result<Records, heed::Error> {
    // The unnamed database always exists, so a view is enough to open it, once.
    let view = env.read_txn()?;
    let records = env.open_database(&view, None)?;
    view.commit()?;
    Ok(records.expect("LMDB has its unnamed database in every file"))
}

/// Returns the bytes of the data file in `path` if it may have a commit, otherwise 0.
pub(super) fn data_bytes(path: &Path) -> Result<u64, StoreError> {
    let file = path.join("data.mdb");
    match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > META_BYTES => Ok(metadata.len()),
        Ok(_) => Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(StoreError::io("look at", &file, error)),
    }
}

/// Verifies the data file in `path` and returns its header. Both meta pages must lead to a header that
/// their transaction wrote, because a changed meta page leads to another one, or to none.
fn read_header(path: &Path, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let path = path.join("data.mdb");
    let corrupt = |at: &str| StoreError::corrupt(name, format!("{at} (file {})", path.display()));
    let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
    let report = pages::verify(&file, limit_bytes).map_err(|damage| match damage {
        Damage::Io(error) => StoreError::io("read", &path, error),
        Damage::Page { number, reason } => corrupt(&format!("page {number}: {reason}")),
    })?;
    tracing::debug!(
        used_pages = report.used_pages,
        free_pages = report.free_pages,
        "verified {}",
        path.display()
    );
    if let Some(older) = report.older {
        check_view(&older).map_err(corrupt)?;
    }
    check_view(&report.newest).map_err(corrupt)?;
    Ok(report.newest.first.map(|(_, value)| value))
}

/// Checks that the first record that a transaction sees is a header which it wrote itself.
fn check_view(view: &PageView) -> Result<(), &'static str> {
    let Some((key, value)) = &view.first else {
        // Every commit writes a header, so a file without one had no commit.
        return if view.transaction == 0 { Ok(()) } else { Err("its header is missing") };
    };
    if key != HEADER_KEY {
        return Err("its header is missing");
    }
    let (origin, _) = record::read_origin(value)?;
    if origin.transaction != view.transaction {
        return Err("a meta page leads to a header that another transaction wrote");
    }
    Ok(())
}
