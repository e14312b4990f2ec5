//! Where a node finds coordination.

use std::fmt;

use millrace_proto::coordination::{Place, SCHEME};

/// Where coordination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coordination {
    /// No coordination: the node is alone, without elections and drains.
    None,
    /// The node's own, for a cluster of one node: nothing listens for it.
    Embedded,
    /// A service that speaks the ZooKeeper protocol.
    Ensemble {
        /// `host:port` of one or more servers, joined by commas.
        servers: String,
        /// Path of the cluster there, such as `/millrace`.
        path: String,
    },
}

impl Coordination {
    /// Reads `embedded`, `none`, or `zk://HOST:PORT,HOST:PORT/PATH`.
    pub fn parse(text: &str) -> Option<Coordination> {
        match text {
            "none" => return Some(Coordination::None),
            "embedded" => return Some(Coordination::Embedded),
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
            Coordination::Embedded => out.write_str("embedded"),
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
