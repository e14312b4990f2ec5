//! A log of ZooKeeper: a header, then transactions, each with its checksum, then zeros.

use std::path::{Path, PathBuf};

use millrace_proto::zookeeper::{JuteError, Reader};

use super::change::Transaction;
use super::{ImportError, ZXID_MAX};

/// "ZKLG".
const MAGIC: i32 = 0x5a4b_4c47;
const VERSION: i32 = 2;
/// Ends each transaction.
const END: u8 = b'B';

/// The transactions of a log, from the first.
pub(super) struct Transactions<'a> {
    path: PathBuf,
    size: usize,
    reader: Reader<'a>,
    last_zxid: i64,
    /// True if the last transaction was not written whole, so that no client was told of it.
    pub(super) is_cut: bool,
}

impl<'a> Transactions<'a> {
    /// Reads the header. A log whose server ended before the header was there has no transaction.
    pub(super) fn new(path: &Path, bytes: &'a [u8]) -> Result<Transactions<'a>, ImportError> {
        let mut reader = Reader::new(bytes);
        let is_cut = bytes.len() < 16 || bytes.iter().all(|byte| *byte == 0);
        let mut transactions =
            Transactions { path: path.to_owned(), size: bytes.len(), reader, last_zxid: 0, is_cut };
        if is_cut {
            transactions.reader = Reader::new(&[]);
            return Ok(transactions);
        }
        let header = (|| Ok((reader.int()?, reader.int()?, reader.long()?)))();
        match header.map_err(|error: JuteError| transactions.damaged(error))? {
            (MAGIC, VERSION, _) => {}
            (magic, version, _) => {
                let words =
                    format!("it begins with {magic:#x}, version {version}, and not as a log");
                return Err(transactions.damaged(words));
            }
        }
        transactions.reader = reader;
        Ok(transactions)
    }

    /// Returns the next transaction; `None` at the end.
    pub(super) fn next_one(&mut self) -> Result<Option<Transaction<'a>>, ImportError> {
        let before = self.reader;
        let parts = (|| {
            let (sum, bytes) = (self.reader.long()?, self.reader.buffer()?.unwrap_or_default());
            let end = if bytes.is_empty() { END } else { self.reader.take(1)?[0] };
            Ok((sum, bytes, end))
        })();
        let (sum, bytes, end) = match parts {
            Ok(parts) => parts,
            // The file ends in the middle of a transaction, or in the zeros behind the last.
            Err(JuteError::Short | JuteError::Length(0..)) => {
                self.is_cut |= before.rest().iter().any(|byte| *byte != 0);
                return Ok(None);
            }
            Err(error) => return Err(self.damaged(error)),
        };
        if bytes.is_empty() {
            return match before.rest().iter().any(|byte| *byte != 0) {
                true => Err(self.damaged("bytes follow the end")),
                false => Ok(None),
            };
        }
        // The space was reserved with zeros, and the transaction did not fill all of its own.
        let is_last = self.reader.rest().iter().all(|byte| *byte == 0);
        if end != END || i64::from(adler2::adler32_slice(bytes)) != sum {
            if is_last && end == 0 {
                self.is_cut = true;
                self.reader = Reader::new(&[]);
                return Ok(None);
            }
            return Err(self.damaged("the checksum of a transaction does not fit"));
        }
        let transaction = Transaction::read(bytes).map_err(|error| self.damaged(error))?;
        if transaction.zxid <= self.last_zxid || transaction.zxid >= ZXID_MAX {
            let (zxid, last) = (transaction.zxid, self.last_zxid);
            return Err(self.damaged(format!("zxid {zxid:#x} follows {last:#x}")));
        }
        self.last_zxid = transaction.zxid;
        Ok(Some(transaction))
    }

    fn damaged(&self, problem: impl std::fmt::Display) -> ImportError {
        let at = self.size - self.reader.rest().len();
        ImportError::Damaged { path: self.path.clone(), at: format!("{problem}, near byte {at}") }
    }
}
