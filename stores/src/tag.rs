//! Which content of an object is meant: the store's own word, and the version that follows from it.
//!
//! Always holds: look-ups, listings and reads of one content give one version, on every node.

use std::time::Duration;

use millrace_proto::version;
use object_store::ObjectMeta;

/// How long an object without a tag is left alone after it changed. Derived: two of its seconds, and a little.
const SETTLE: Duration = Duration::from_millis(2200);

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
        let etag = version::strong_tag(meta.e_tag.as_deref());
        Tag { etag, size: meta.size, modified_s: meta.last_modified.timestamp() }
    }

    /// True if the store says neither a tag nor a time, so that no change would be seen.
    pub(crate) fn is_blind(&self) -> bool {
        self.etag.is_none() && self.modified_s == 0
    }

    /// Returns how long the object has to be left alone at this time until a further change would show: its
    /// time has whole seconds.
    pub(crate) fn settle(&self, now_s: i64) -> Duration {
        match self.etag {
            None if now_s <= self.modified_s + 1 => SETTLE,
            _ => Duration::ZERO,
        }
    }

    /// True if both are of one content, as far as the store tells.
    pub(crate) fn is(&self, other: &Tag) -> bool {
        let is_same = self.etag == other.etag && self.size == other.size;
        is_same && (self.etag.is_some() || self.modified_s == other.modified_s)
    }

    /// Computes the version, see [`version::of_object`].
    pub(crate) fn version(&self) -> u64 {
        version::of_object(self.etag.as_deref(), self.size, self.modified_s)
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
        for quoted in ["\"a\"", "a"] {
            assert_eq!(Tag::of(&meta(quoted)).etag.as_deref(), Some("\"a\""));
        }
        assert!(Tag::of(&meta("")).is_blind() && !Tag::of(&meta("a")).is_blind());
    }

    #[test]
    fn an_object_without_a_tag_settles() {
        let timed = tag(None, 5, 100);
        assert!(!timed.settle(100).is_zero() && !timed.settle(101).is_zero());
        assert!(timed.settle(102).is_zero() && tag(Some("a"), 5, 100).settle(100).is_zero());
    }
}
