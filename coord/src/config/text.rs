//! Numbers and flags as ZooKeeper's users write them.

use millrace_ops::size;

/// Reads digits, with optional `_` between them, or hexadecimal after `0x`, as Java reads properties.
pub(super) fn parse_count(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(digits, 16).ok().filter(|_| is_hex);
    }
    size::parse_count(text)
}

/// Returns the bytes in `512MiB`, `1G`, `64k` or a count.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    parse_count(text).or_else(|| size::parse_size(text).ok())
}

/// Reads `true` and `false`, or `yes` and `no`, in any case.
pub(super) fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        _ => None,
    }
}
