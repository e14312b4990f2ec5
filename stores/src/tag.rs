//! Which content of an object is meant: the store's own word, and the version that follows from it.
//!
//! Always holds: look-ups, listings and reads of one content give one version, on every node.

use object_store::ObjectMeta;
use twox_hash::XxHash3_64;

/// What a store says of one content of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The entity tag, if the store promises that no two contents have the same.
    pub(crate) etag: Option<String>,
    /// Length in bytes.
    pub(crate) size: u64,
    /// Time of the last change in seconds since the Unix epoch.
    pub(crate) modified_s: i64,
}

impl Tag {
    /// Reads the tag of an object. A weak one (RFC 9110, section 8.8.1) names no bytes and counts as none.
    pub(crate) fn of(meta: &ObjectMeta) -> Tag {
        let etag = meta.e_tag.clone().filter(|it| !it.is_empty() && !it.starts_with("W/"));
        Tag { etag, size: meta.size, modified_s: meta.last_modified.timestamp() }
    }

    /// True if both are of one content, as far as the store tells.
    pub(crate) fn is(&self, other: &Tag) -> bool {
        let is_same = self.etag == other.etag && self.size == other.size;
        is_same && (self.etag.is_some() || self.modified_s == other.modified_s)
    }

    /// Computes the version: XXH3-64 of the length as 8 bytes little-endian, and then of the byte 1 and the
    /// tag, or, without one, of the byte 2 and the time in seconds as 8 bytes.
    pub(crate) fn version(&self) -> u64 {
        let mut bytes = self.size.to_le_bytes().to_vec();
        match &self.etag {
            Some(etag) => {
                bytes.push(1);
                bytes.extend(etag.as_bytes());
            }
            None => {
                bytes.push(2);
                bytes.extend(self.modified_s.to_le_bytes());
            }
        }
        XxHash3_64::oneshot(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(etag: Option<&str>, size: u64, modified_s: i64) -> Tag {
        Tag { etag: etag.map(str::to_owned), size, modified_s }
    }

    #[test]
    fn a_tag_decides_and_time_only_without_one() {
        let tagged = tag(Some("\"a\""), 5, 1);
        assert!(tagged.is(&tag(Some("\"a\""), 5, 2)), "a copy may have another time");
        for other in [tag(Some("\"b\""), 5, 1), tag(Some("\"a\""), 6, 1), tag(None, 5, 1)] {
            assert!(!tagged.is(&other) && tagged.version() != other.version(), "{other:?}");
        }
        let timed = tag(None, 5, 1);
        assert!(!timed.is(&tag(None, 5, 2)) && timed.version() != tag(None, 5, 2).version());
    }

    #[test]
    fn a_weak_tag_is_none() {
        let meta = |e_tag: &str| ObjectMeta {
            location: "a".into(),
            last_modified: Default::default(),
            size: 1,
            e_tag: Some(e_tag.to_owned()),
            version: None,
        };
        assert_eq!(Tag::of(&meta("W/\"a\"")).etag, None);
        assert_eq!(Tag::of(&meta("\"a\"")).etag.as_deref(), Some("\"a\""));
    }
}
