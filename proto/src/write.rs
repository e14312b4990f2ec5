//! Messages of a write: an object is brought in parts on one connection, and is seen whole or not at all.
//!
//! Like those of [`crate::message`], but for sides that both offered [`crate::feature::WRITES`]. Section 17 of
//! `PROTOCOL.md` says how they follow each other.

use rkyv::{Archive, Serialize};

/// What a part takes of a body besides its bytes.
pub const PART_OVERHEAD: u32 = size_of::<ArchivedPutPartRequest>() as u32;

const _: () = assert!(PART_OVERHEAD == 28);

/// What a path must be for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Anything.
    None,
    /// Nothing has the path.
    Absent,
    /// The path is a file in this version.
    Version(u64),
}

impl Condition {
    /// Returns the condition of a message; `None` for a number that is not known.
    pub fn from_wire(condition: u8, version: u64) -> Option<Condition> {
        match condition {
            0 => Some(Condition::None),
            1 => Some(Condition::Absent),
            2 => Some(Condition::Version(version)),
            _ => None,
        }
    }

    /// Returns the two fields that mean this condition in a message.
    pub fn to_wire(self) -> (u8, u64) {
        match self {
            Condition::None => (0, 0),
            Condition::Absent => (1, 0),
            Condition::Version(version) => (2, version),
        }
    }
}

/// `Put` and `Delete`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// Path of the file.
    pub path: String,
    /// A [`Condition`] as [`Condition::to_wire`] writes it.
    pub condition: u8,
    /// Version that the condition names, else 0.
    pub version: u64,
}

impl WriteRequest {
    /// Makes the request of a write under a condition.
    pub fn new(path: &str, condition: Condition) -> WriteRequest {
        let (condition, version) = condition.to_wire();
        WriteRequest { path: path.to_owned(), condition, version }
    }
}

/// `Rename`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct RenameRequest {
    /// Path of a file or a directory.
    pub path: String,
    /// The path that it gets.
    pub to: String,
    /// What `to` has to be: a [`Condition`] without a version, as [`Condition::to_wire`] writes it.
    pub condition: u8,
}

/// Reply to `Put`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutReply {
    /// Number of the upload, for the connection that asked for it.
    pub upload: u64,
    /// Most bytes of parts that may be unanswered at a time.
    pub credit: u32,
}

/// `PutPart`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct PutPartRequest {
    /// The upload.
    pub upload: u64,
    /// Offset of the first byte in the object.
    pub offset: u64,
    /// CRC-32 of the bytes.
    pub checksum: u32,
    /// At least one byte, and as many as a body has room for.
    pub bytes: Vec<u8>,
}

/// `PutEnd`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutEndRequest {
    /// The upload.
    pub upload: u64,
    /// Length of the whole object in bytes.
    pub length: u64,
}

/// `PutAbort`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutAbortRequest {
    /// The upload.
    pub upload: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_two_fields_and_others_are_refused() {
        for condition in [Condition::None, Condition::Absent, Condition::Version(7)] {
            let (number, version) = condition.to_wire();
            assert_eq!(Condition::from_wire(number, version), Some(condition));
        }
        assert_eq!(Condition::from_wire(3, 0), None);
    }
}
