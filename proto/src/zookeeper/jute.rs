//! Jute primitives: how ZooKeeper writes integers, strings, buffers and lists.
//!
//! A string, buffer or list of length -1 is null, and null is not empty. Nothing is padded.

/// Why a record could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JuteError {
    /// The record ends before a field does.
    #[error("a record ends before its fields do")]
    Short,
    /// A length is below -1 or runs past the end of the record.
    #[error("length {0} is negative or runs past the end of the record")]
    Length(i32),
    /// An operation code that does not exist, or one that may not stand here.
    #[error("operation {0} is unknown or may not stand here")]
    Operation(i32),
}

/// What a string reads as if it is not UTF-8. Java puts U+FFFD where it cannot decode. No path and no
/// credential may hold that character, so one stands for all of them.
const NOT_TEXT: &str = "/\u{fffd}";

/// Reads primitives from the front of a record.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(record: &'a [u8]) -> Reader<'a> {
        Reader { rest: record }
    }

    /// Returns what has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes the next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], JuteError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(JuteError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], JuteError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(JuteError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn int(&mut self) -> Result<i32, JuteError> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn long(&mut self) -> Result<i64, JuteError> {
        self.array().map(i64::from_be_bytes)
    }

    pub fn boolean(&mut self) -> Result<bool, JuteError> {
        self.array::<1>().map(|[byte]| byte != 0)
    }

    /// Reads a length prefix; `None` is null.
    fn length(&mut self) -> Result<Option<usize>, JuteError> {
        match self.int()? {
            -1 => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| JuteError::Length(length)),
        }
    }

    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, JuteError> {
        let Some(length) = self.length()? else { return Ok(None) };
        self.take(length).map(Some).map_err(|_| JuteError::Length(length as i32))
    }

    pub fn string(&mut self) -> Result<Option<&'a str>, JuteError> {
        let Some(bytes) = self.buffer()? else { return Ok(None) };
        Ok(Some(std::str::from_utf8(bytes).unwrap_or(NOT_TEXT)))
    }

    /// Reads a path: a string that may not be null.
    pub fn path(&mut self) -> Result<&'a str, JuteError> {
        self.string()?.ok_or(JuteError::Length(-1))
    }

    /// Reads a string for which null reads as empty.
    pub fn text(&mut self) -> Result<&'a str, JuteError> {
        Ok(self.string()?.unwrap_or_default())
    }

    /// Reads a list; null reads as `None`.
    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Reader<'a>) -> Result<T, JuteError>,
    ) -> Result<Option<Vec<T>>, JuteError> {
        // As Java's loops over a vector: any other negative count is an empty list.
        let count = match self.int()? {
            -1 => return Ok(None),
            count => usize::try_from(count).unwrap_or(0),
        };
        // A count is only a claim. An item takes at least a byte, so the rest bounds what is reserved.
        if count > self.rest.len() {
            return Err(JuteError::Length(count as i32));
        }
        let mut items = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(Some(items))
    }
}

/// Appends primitives to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Writer<'a> {
        Writer { out }
    }

    pub fn int(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub fn long(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    pub fn boolean(&mut self, value: bool) {
        self.out.push(u8::from(value));
    }

    /// Appends bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub fn buffer(&mut self, value: Option<&[u8]>) {
        match value {
            Some(bytes) => {
                self.int(bytes.len() as i32);
                self.raw(bytes);
            }
            None => self.int(-1),
        }
    }

    pub fn string(&mut self, value: &str) {
        self.buffer(Some(value.as_bytes()));
    }

    pub fn optional_string(&mut self, value: Option<&str>) {
        self.buffer(value.map(str::as_bytes));
    }

    /// Appends a list, never null.
    pub fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Writer<'_>, &T)) {
        self.int(items.len() as i32);
        for value in items {
            item(self, value);
        }
    }
}

/// Appends one message, and fills in its length after `body` wrote it.
pub fn message(out: &mut Vec<u8>, body: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(&mut Writer::new(out));
    let length = (out.len() - start - 4) as i32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}
