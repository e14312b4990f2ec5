//! Where a node finds coordination.

use std::fmt;
use std::net::SocketAddr;

use millrace_proto::coordination::{Place, SCHEME};

/// Where coordination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coordination {
    /// There is none: the node is alone, and nobody elects or drains anything.
    None,
    /// A replica in the same process, for a cluster of one node. The program starts it and puts its
    /// address here; without one it is as if there were none.
    Embedded(Option<SocketAddr>),
    /// A service that speaks the ZooKeeper protocol.
    Ensemble {
        /// `host:port` of one or more servers, joined by commas.
        servers: String,
        /// Path of the cluster there, such as `/millrace`.
        path: String,
    },
}

/// Path of the cluster in embedded coordination.
const EMBEDDED_PATH: &str = "/millrace";

impl Coordination {
    /// Servers and path, if the node is in a cluster.
    pub fn place(&self) -> Option<(String, String)> {
        match self {
            Coordination::None | Coordination::Embedded(None) => None,
            Coordination::Embedded(Some(address)) => {
                Some((address.to_string(), EMBEDDED_PATH.to_owned()))
            }
            Coordination::Ensemble { servers, path } => Some((servers.clone(), path.clone())),
        }
    }

    /// Reads `embedded`, `none`, or `zk://HOST:PORT,HOST:PORT/PATH`.
    pub fn parse(text: &str) -> Option<Coordination> {
        match text {
            "none" => return Some(Coordination::None),
            "embedded" => return Some(Coordination::Embedded(None)),
            _ => (),
        }
        let Place { servers, path } = Place::parse(text)?;
        Some(Coordination::Ensemble { servers, path })
    }
}

impl fmt::Display for Coordination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Coordination::None => out.write_str("none"),
            Coordination::Embedded(_) => out.write_str("embedded"),
            Coordination::Ensemble { servers, path } => write!(out, "{SCHEME}{servers}{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["none", "embedded", "zk://a:1/m", "zk://[::1]:2181,b:2/x/y"] {
            assert_eq!(Coordination::parse(text).unwrap().to_string(), text);
        }
        let refused = ["", "zk://a:1", "a:1/m", "embedded/m"];
        for text in refused {
            assert_eq!(Coordination::parse(text), None, "{text}");
        }
    }
}
