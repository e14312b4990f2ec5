//! Where a node finds coordination.

use std::fmt;
use std::net::SocketAddr;

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

/// How addresses of coordination begin.
const SCHEME: &str = "zk://";

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
        let rest = text.strip_prefix(SCHEME)?;
        let (servers, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => return None,
        };
        let is_server = |server: &str| {
            server.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(char::is_whitespace)
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        let is_part = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(|it| it > b' ')
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        let parts = path.strip_prefix('/')?;
        (servers.split(',').all(is_server) && parts.split('/').all(is_part))
            .then(|| Coordination::Ensemble { servers: servers.to_owned(), path: path.to_owned() })
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
        let slash = Coordination::parse("zk://a:1/m/").unwrap();
        assert_eq!(slash.to_string(), "zk://a:1/m");
        let refused = [
            "",
            "zk://",
            "zk://a:1",
            "zk://a:1/",
            "zk://a/m",
            "zk://a:0/m",
            "zk://a:1,/m",
            "zk://a:1/m//n",
            "zk://a:1/../n",
            "http://a:1/m",
            "a:1/m",
        ];
        for text in refused {
            assert_eq!(Coordination::parse(text), None, "{text}");
        }
    }
}
