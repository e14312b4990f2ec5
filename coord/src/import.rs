//! The data directory of Apache ZooKeeper 3.4 to 3.9, read into a state.
//!
//! ```text
//!  version-2/snapshot.ZXID ─► nodes, ACLs ─┐
//!  version-2/log.ZXID ... ─► transactions ─┴─► a tree ─► without what belongs to sessions ─► a state
//! ```
//!
//! Always holds: nothing is changed where ZooKeeper's data is; every byte of the snapshot and of the transactions is
//! under a checksum that fits, or the import ends with an error. Sessions do not move, so ephemeral nodes are removed
//! as if their sessions had ended. The node `/zookeeper/config` is left out: the new ensemble has its own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::state::{LoadError, State};

mod change;
mod snapshot;
mod transactions;
mod tree;

#[cfg(test)]
mod tests;

use snapshot::SnapshotError;
use transactions::Transactions;
use tree::ForeignTree;

/// The folder in which ZooKeeper has its files.
pub const VERSION_2: &str = "version-2";

/// The reason that data of ZooKeeper cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot {doing} {}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{} has no snapshot and no log of ZooKeeper: give its dataDir", path.display())]
    NoData { path: PathBuf },
    #[error(
        "{} is compressed: have ZooKeeper write one without compression \
         (snapshot.compression.method, then a restart)",
        path.display()
    )]
    Compressed { path: PathBuf },
    #[error(
        "{} is damaged: {at}. Take the data directory of another server of the ensemble",
        path.display()
    )]
    Damaged { path: PathBuf, at: String },
    #[error(
        "transactions are missing: {next:#x} is the next after {after:#x}. Give the directory of the logs \
         (dataLogDir) with --log-dir, or take the data directory of another server of the ensemble"
    )]
    Gap { after: i64, next: i64 },
    #[error("the nodes do not make a tree: {0}")]
    Tree(#[from] LoadError),
}

/// Names of files, and transactions, are below this, so that changes can follow.
const ZXID_MAX: i64 = i64::MAX >> 1;

/// What was read.
pub struct Imported {
    pub state: State,
    /// The snapshot that it began with; `None` if the logs begin with an empty tree.
    pub snapshot: Option<PathBuf>,
    /// Transactions of the logs behind the snapshot.
    pub transactions: u64,
    /// Ephemeral nodes, which were removed.
    pub ephemerals: u64,
    /// Snapshots that are not whole, and were passed over for an older one.
    pub passed_over: Vec<PathBuf>,
    /// The log whose last transaction was cut short by the end of the server, if there is one.
    pub cut: Option<PathBuf>,
}

/// True if a directory has data of ZooKeeper.
pub fn is_zookeeper(directory: &Path) -> bool {
    let folder = directory.join(VERSION_2);
    ["snapshot.", "log."]
        .iter()
        .any(|kind| numbered(&folder, kind).is_ok_and(|all| !all.is_empty()))
}

/// Reads the data of a server that does not run. `log_dir` is its `dataLogDir`, which may be the same directory. Both
/// may also be given as the folder `version-2` in them.
///
/// # Errors
/// [`ImportError`]; nothing was changed.
pub fn read(data_dir: &Path, log_dir: &Path) -> Result<Imported, ImportError> {
    let (data, logs) = (folder(data_dir), folder(log_dir));
    let mut snapshots = numbered(&data, "snapshot.")?;
    let logs = numbered(&logs, "log.")?;
    if snapshots.is_empty() && logs.is_empty() {
        return Err(ImportError::NoData { path: data_dir.to_owned() });
    }
    let mut passed_over = Vec::new();
    let mut tree = ForeignTree::fresh();
    let mut begun = None;
    while let Some(File { path, zxid }) = snapshots.pop() {
        match snapshot::read(&path, zxid) {
            Ok(read) => {
                (tree, begun) = (read, Some(path));
                break;
            }
            // As ZooKeeper does: a server may end while it writes one, and the logs lead on from an older one.
            Err(SnapshotError::NotWhole) if !snapshots.is_empty() || !logs.is_empty() => {
                passed_over.push(path);
            }
            Err(SnapshotError::NotWhole) => {
                let at = "it is not whole, and there is no other".to_owned();
                return Err(ImportError::Damaged { path, at });
            }
            Err(SnapshotError::Other(error)) => return Err(error),
        }
    }
    let (transactions, cut) = follow(&mut tree, &logs)?;
    let ephemerals = tree.end_sessions();
    let state = tree.into_state()?;
    Ok(Imported { state, snapshot: begun, transactions, ephemerals, passed_over, cut })
}

/// Applies what came after the tree. Returns how many transactions that were, and the log that was cut short.
fn follow(tree: &mut ForeignTree, logs: &[File]) -> Result<(u64, Option<PathBuf>), ImportError> {
    // The last log that begins at or before the tree has what follows.
    let first = logs.iter().rposition(|log| log.zxid <= tree.zxid).unwrap_or(0);
    let (mut count, mut cut) = (0, None);
    for log in &logs[first..] {
        let bytes = read_file(&log.path)?;
        let mut transactions = Transactions::new(&log.path, &bytes)?;
        while let Some(transaction) = transactions.next_one()? {
            if transaction.zxid <= tree.zxid {
                continue;
            }
            if !follows(tree.zxid, transaction.zxid) {
                return Err(ImportError::Gap { after: tree.zxid, next: transaction.zxid });
            }
            tree.apply(&transaction);
            count += 1;
        }
        cut = transactions.is_cut.then(|| log.path.clone());
    }
    Ok((count, cut))
}

/// True if no transaction was between the two: a leader counts its own from 1, in the lower half.
fn follows(zxid: i64, next: i64) -> bool {
    Some(next) == zxid.checked_add(1) || (next >> 32 > zxid >> 32 && next & 0xffff_ffff == 1)
}

/// A file whose name ends with the zxid at which it begins.
struct File {
    path: PathBuf,
    zxid: i64,
}

/// Returns the folder of ZooKeeper's files.
fn folder(directory: &Path) -> PathBuf {
    let inner = directory.join(VERSION_2);
    if inner.is_dir() { inner } else { directory.to_owned() }
}

/// Lists the files of a kind, by their zxids. Without the folder there are none.
fn numbered(folder: &Path, kind: &str) -> Result<Vec<File>, ImportError> {
    let fail = |error| ImportError::Io { doing: "list", path: folder.to_owned(), error };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(number) = name.strip_prefix(kind) else { continue };
        if number.ends_with(".gz") || number.ends_with(".snappy") {
            return Err(ImportError::Compressed { path });
        }
        let zxid = i64::from_str_radix(number, 16).ok().filter(|zxid| (0..ZXID_MAX).contains(zxid));
        if let Some(zxid) = zxid {
            files.push(File { path, zxid });
        }
    }
    files.sort_by_key(|file| file.zxid);
    Ok(files)
}

fn read_file(path: &Path) -> Result<Vec<u8>, ImportError> {
    fs::read(path).map_err(|error| ImportError::Io { doing: "read", path: path.to_owned(), error })
}
