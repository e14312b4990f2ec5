//! Counts and sizes as operators write them, such as `10_000` and `512MiB`.
//!
//! What is written is read back as the same value.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const UNITS: [(u64, &str, &str); 5] =
    [(TIB, "t", "TiB"), (GIB, "g", "GiB"), (MIB, "m", "MiB"), (KIB, "k", "KiB"), (1, "b", "")];

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not start with a whole number.
    #[error("a size is a whole number with an optional unit, such as 512MiB or 65536")]
    NoNumber,
    /// The unit is unknown. `MB` is refused since it may mean 10^6 or 2^20.
    #[error("unknown unit of size: use KiB, MiB, GiB or TiB (or K, M, G, T), powers of 1024")]
    UnknownUnit,
    /// It does not fit 64 bits.
    #[error("the size does not fit 64 bits")]
    TooLarge,
}

/// Reads digits, which `_` may divide.
pub fn parse_count(text: &str) -> Option<u64> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return None;
    }
    let digits: String = text.chars().filter(|letter| *letter != '_').collect();
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Returns the bytes in `512MiB`, `1G`, `64k` or `10_000`. Units are powers of 1024, in any case.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits_end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '_');
    let (number, unit) = text.split_at(digits_end.unwrap_or(text.len()));
    let is_number =
        number.starts_with(|first: char| first.is_ascii_digit()) && !number.ends_with('_');
    if !is_number {
        return Err(SizeError::NoNumber);
    }
    let number = parse_count(number).ok_or(SizeError::TooLarge)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let (scale, ..) = UNITS
        .iter()
        .find(|(_, short, long)| unit == *short || unit == long.to_ascii_lowercase())
        .ok_or(SizeError::UnknownUnit)?;
    number.checked_mul(*scale).ok_or(SizeError::TooLarge)
}

/// Returns the shortest exact form that [`parse_size`] reads, such as `512MiB`; odd sizes in bytes.
pub fn format_size(size: u64) -> String {
    let fits = |scale: u64| size >= scale && size.is_multiple_of(scale);
    let unit = UNITS.iter().find(|(scale, ..)| fits(*scale));
    unit.map_or_else(|| size.to_string(), |(scale, _, name)| format!("{}{name}", size / scale))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_parse() {
        let check = |text: &str, expect| assert_eq!(parse_size(text), expect, "{text}");
        check("0", Ok(0));
        check("512MiB", Ok(512 << 20));
        check("1GiB", Ok(1 << 30));
        check("1G", Ok(1 << 30));
        check("64k", Ok(64 << 10));
        check("64 kib", Ok(64 << 10));
        check("10_000", Ok(10_000));
        check("7b", Ok(7));
        check("2T", Ok(2 << 40));
        for text in ["", "MiB", "-1", "+1", "_1", "1_", "1_MiB", ".5G"] {
            check(text, Err(SizeError::NoNumber));
        }
        for text in ["1MB", "1.5GiB", "1 G B", "1X", "0x10", "1e3"] {
            check(text, Err(SizeError::UnknownUnit));
        }
        for text in ["18446744073709551616", "16777216TiB"] {
            check(text, Err(SizeError::TooLarge));
        }
    }

    proptest! {
        #[test]
        fn sizes_round_trip(size in any::<u64>(), shift in 0u32..64) {
            for size in [size, size >> shift, size << shift, 1 << shift] {
                prop_assert_eq!(parse_size(&format_size(size)), Ok(size));
            }
        }
    }
}
