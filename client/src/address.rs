//! Addresses: of nodes, of shards, of coordination, and of this machine.

use std::sync::{Arc, LazyLock};

use millrace_proto::coordination::{Place, SCHEME};

use crate::connection::socket_path;
use crate::error::Error;

/// Most addresses to begin with.
pub(crate) const SEEDS_MAX: usize = 64;

/// Where a client learns of the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seeds {
    /// Nodes, tried in order.
    Addresses(Vec<Arc<str>>),
    /// Where the nodes of a cluster register.
    Coordination(Place),
}

impl Seeds {
    /// Reads one address or several, separated by commas, or the place of a cluster.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is neither `host:port` nor `unix:PATH`, and for a
    /// place that cannot be read.
    pub(crate) fn parse(text: &str) -> Result<Seeds, Error> {
        let text = text.trim();
        if text.starts_with(SCHEME) {
            return Place::parse(text).map(Seeds::Coordination).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "'{text}' is not where a cluster registers; write zk://HOST:PORT/PATH, several \
                     servers behind commas, as the nodes have it for --coord"
                ))
            });
        }
        let addresses: Vec<Arc<str>> = text.split(',').map(|part| part.trim().into()).collect();
        if addresses.len() > SEEDS_MAX {
            return Err(Error::InvalidArgument(format!(
                "{} addresses are more than {SEEDS_MAX}; a few are enough to find the others",
                addresses.len()
            )));
        }
        for address in &addresses {
            check_address(address)?;
        }
        Ok(Seeds::Addresses(addresses))
    }
}

pub(crate) fn check_address(address: &str) -> Result<(), Error> {
    let is_valid = match socket_path(address) {
        Some(path) => !path.is_empty(),
        None => is_host_and_port(address),
    };
    if is_valid {
        return Ok(());
    }
    let advice = "write host:port, such as node1:7070, unix:PATH, or zk://HOST:PORT/PATH";
    Err(Error::InvalidArgument(format!("'{address}' is not an address; {advice}")))
}

/// True if a node can be reached at such an address over TCP.
pub(crate) fn is_host_and_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Returns the address of a shard; an empty host means the host of the main address.
pub(crate) fn shard_address(main: &Arc<str>, shard: &str) -> Arc<str> {
    match (shard.strip_prefix(':'), main.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("{host}:{port}").into(),
        _ => shard.into(),
    }
}

/// Returns the name of the run of this machine's kernel: proc(5), `random/boot_id`. Empty if it is
/// hidden.
pub(crate) fn machine() -> &'static str {
    static MACHINE: LazyLock<String> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    });
    &MACHINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_one_address_or_several() {
        let check = |text: &str, expect: &[&str]| {
            let expect = expect.iter().map(|&address| address.into()).collect();
            assert_eq!(Seeds::parse(text).unwrap(), Seeds::Addresses(expect));
        };
        check("node1:7070", &["node1:7070"]);
        check("node1:7070, node2:7070,unix:/run/a", &["node1:7070", "node2:7070", "unix:/run/a"]);
        for text in ["", "node1", "node1:7070,", ":7070", "unix:", "a:1,,b:2", "a:1,zk://b:2/m"] {
            assert!(matches!(Seeds::parse(text), Err(Error::InvalidArgument(_))), "{text}");
        }
    }

    #[test]
    fn seeds_may_be_left_to_coordination() {
        let seeds = Seeds::parse("zk://a:2181,b:2181/millrace/eu").unwrap();
        let (servers, path) = ("a:2181,b:2181".to_owned(), "/millrace/eu".to_owned());
        assert_eq!(seeds, Seeds::Coordination(Place { servers, path }));
        for text in ["zk://", "zk://a:2181", "zk://a:2181/", "zk://a/m", "zk://a:1/m,zk://b:1/m"] {
            let told = Seeds::parse(text).unwrap_err().to_string();
            assert!(told.contains("zk://HOST:PORT/PATH"), "{text}: {told}");
        }
    }

    #[test]
    fn empty_host_of_a_shard_is_the_host_that_was_connected_to() {
        let check = |main: &str, shard, expect| {
            assert_eq!(&*shard_address(&main.into(), shard), expect);
        };
        check("node1:7070", ":7601", "node1:7601");
        check("[::1]:7070", ":7601", "[::1]:7601");
        check("node1:7070", "10.0.0.2:7601", "10.0.0.2:7601");
    }
}
