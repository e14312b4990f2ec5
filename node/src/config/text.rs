//! Text and the values it stands for: sizes, counts, core lists, host names.
//!
//! Owns the spelling that every layer of the configuration shares. What is written is read back as the
//! same value.

use std::net::IpAddr;

use millrace_proto::cluster::NAME_LENGTH_MAX;

use super::keys::{CPUS_MAX, GIB, HOST_LENGTH_MAX, KIB, MIB, TIB};

/// Cores this process may run on, ascending.
pub fn usable_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CPUS_MAX).filter(|cpu| set.is_set(*cpu)).collect(),
        // The kernel refuses where it has more cores than the mask has bits: count upwards instead.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// Core numbers and ranges such as `0,2-5`, in the order given, each core once.
pub(super) fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first = parse_count(first.trim())? as usize;
        let last = parse_count(last.trim())? as usize;
        if first > last || last >= CPUS_MAX {
            return None;
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return None;
            }
            cpus.push(cpu);
        }
    }
    Some(cpus)
}

/// The list as [`parse_cpus`] reads it, with runs of neighbours as ranges.
pub(super) fn format_cpus(cpus: &[usize]) -> String {
    cpus.chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [only] => only.to_string(),
            _ => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// Whether `text` can stand before `:port`; the empty text may.
pub(super) fn is_host(text: &str) -> bool {
    let is_name = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        text.len() <= HOST_LENGTH_MAX && text.bytes().all(allowed)
    };
    is_name(text) || text.parse::<IpAddr>().is_ok()
}

/// Whether a text is a name of a node or a zone: short, and safe in paths and tables.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_LENGTH_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && text != "."
        && text != ".."
}

/// Digits, with `_` between them where wanted.
pub(super) fn parse_count(text: &str) -> Option<u64> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return None;
    }
    let digits: String = text.chars().filter(|letter| *letter != '_').collect();
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

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

const UNITS: [(u64, &str, &str); 5] =
    [(TIB, "t", "TiB"), (GIB, "g", "GiB"), (MIB, "m", "MiB"), (KIB, "k", "KiB"), (1, "b", "")];

/// Bytes in `512MiB`, `1G`, `64k` or `10_000`. Units are powers of 1024, in any case.
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

/// The shortest exact form that [`parse_size`] reads, such as `512MiB`; `0` and odd sizes in bytes.
pub fn format_size(size: u64) -> String {
    let fits = |scale: u64| size >= scale && size.is_multiple_of(scale);
    let unit = UNITS.iter().find(|(scale, ..)| fits(*scale));
    unit.map_or_else(|| size.to_string(), |(scale, _, name)| format!("{}{name}", size / scale))
}
