//! Hosts, ports and addresses as text.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Longest host name in DNS.
pub const HOST_LENGTH_MAX: usize = 253;

/// Returns host and port of `host:port` or `[v6]:port`; the host comes without brackets. The port is
/// not 0.
pub fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = parse_port(port)?;
    match host.strip_prefix('[') {
        Some(host) => {
            let host = host.strip_suffix(']')?;
            host.parse::<Ipv6Addr>().is_ok().then_some((host, port))
        }
        None => is_host_name(host).then_some((host, port)),
    }
}

/// Reads a port from 1 to 65535.
pub fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

/// Returns `host:port` with an IPv6 host in brackets: what [`split_host_port`] reads.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// True if `text` may be the name or IPv4 address of a host.
pub fn is_host_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=HOST_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// Returns the address of a host. The resolver is asked only if the host is a name.
///
/// # Errors
/// Those of the resolver, and where a name has no address.
pub fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host, port))?;
    addresses.next().ok_or_else(|| std::io::Error::other("the name has no address"))
}
