//! Text and the values it stands for: counts, sizes, flags, hosts and addresses.
//!
//! Owns the spelling that all sources of the configuration share. What is written is read back as
//! the same value.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const UNITS: [(u64, &str, &str); 4] =
    [(TIB, "t", "TiB"), (GIB, "g", "GiB"), (MIB, "m", "MiB"), (KIB, "k", "KiB")];
/// Longest host name in DNS.
const HOST_LENGTH_MAX: usize = 253;

/// Digits, with `_` between them where wanted, or hexadecimal after `0x`, as Java reads properties.
pub(super) fn parse_count(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(digits, 16).ok().filter(|_| is_hex);
    }
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return None;
    }
    let digits: String = text.chars().filter(|letter| *letter != '_').collect();
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Bytes in `512MiB`, `1G`, `64k` or a plain count. Units are powers of 1024, in any case.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    for (scale, short, long) in UNITS {
        let number =
            lower.strip_suffix(&long.to_ascii_lowercase()).or_else(|| lower.strip_suffix(short));
        if let Some(number) = number {
            return parse_count(number.trim_end())?.checked_mul(scale);
        }
    }
    parse_count(&lower)
}

/// The shortest exact form that [`parse_size`] reads, such as `512MiB`; odd sizes in bytes.
pub(super) fn format_size(size: u64) -> String {
    let fits = |scale: u64| size >= scale && size.is_multiple_of(scale);
    let unit = UNITS.iter().find(|(scale, ..)| fits(*scale));
    unit.map_or_else(|| size.to_string(), |(scale, _, name)| format!("{}{name}", size / scale))
}

/// `true` and `false`, or `yes` and `no`, in any case.
pub(super) fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        _ => None,
    }
}

/// Host and port of `host:port` or `[v6]:port`; the host comes without brackets. The port is not 0.
pub(super) fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = parse_port(port)?;
    match host.strip_prefix('[') {
        Some(host) => {
            let host = host.strip_suffix(']')?;
            host.parse::<Ipv6Addr>().is_ok().then_some((host, port))
        }
        None => is_name(host).then_some((host, port)),
    }
}

pub(super) fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

/// `host:port` with an IPv6 host in brackets: what [`split_host_port`] reads.
pub(super) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether `text` may be the name or IPv4 address of a host.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=HOST_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// The address of a host that may be a name; asks the resolver only then.
pub(super) fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host, port))?;
    addresses.next().ok_or_else(|| std::io::Error::other("the name has no address"))
}
