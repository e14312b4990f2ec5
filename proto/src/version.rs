//! Versions of objects: the 64-bit number of one content, from what its store says of it.
//!
//! Always holds: all that ask one store of one content come to one number, nodes and clients alike, so that
//! a client that has looked at a store itself knows which version to expect from a node.

use twox_hash::XxHash3_64;

/// Returns a store's entity tag in quotes, as some leave them out of listings; None for an empty or a weak one,
/// because a weak one (`W/"…"`, RFC 9110, section 8.8.1) names no bytes.
pub fn strong_tag(tag: Option<&str>) -> Option<String> {
    let tag = tag.filter(|it| !it.is_empty() && !it.starts_with("W/"));
    tag.map(|it| format!("\"{}\"", it.trim_matches('"')))
}

/// Returns the version of an object of a store: XXH3-64 of the length as 8 bytes little-endian, and then of the
/// byte 1 and the strong tag, or, without one, of the byte 2 and the time of the last change in seconds since
/// the Unix epoch as 8 bytes.
pub fn of_object(tag: Option<&str>, length: u64, modified_s: i64) -> u64 {
    let mut bytes = length.to_le_bytes().to_vec();
    match strong_tag(tag) {
        Some(tag) => {
            bytes.push(1);
            bytes.extend(tag.as_bytes());
        }
        None => {
            bytes.push(2);
            bytes.extend(modified_s.to_le_bytes());
        }
    }
    XxHash3_64::oneshot(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_tag_decides_and_time_only_without_one() {
        assert_eq!(strong_tag(Some("a")), Some("\"a\"".to_owned()));
        assert_eq!(strong_tag(Some("\"a\"")), Some("\"a\"".to_owned()));
        assert_eq!(
            (strong_tag(Some("W/\"a\"")), strong_tag(Some("")), strong_tag(None)),
            (None, None, None)
        );
        let version = of_object(Some("a"), 5, 7);
        assert_eq!(version, of_object(Some("\"a\""), 5, 8));
        assert_ne!(version, of_object(Some("b"), 5, 7));
        assert_ne!(version, of_object(Some("a"), 6, 7));
        assert_ne!(of_object(None, 5, 7), of_object(None, 5, 8));
        // Nodes of other versions of the program come to the same.
        assert_eq!(of_object(Some("abc"), 3, 0), 0x0f1e_edc7_1ef8_4116);
    }
}
