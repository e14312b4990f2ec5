//! Where the nodes of a cluster register: servers that speak the ZooKeeper protocol, and a path there.
//!
//! Nodes and clients read the same text, so one address serves for both. What lies at the path is JSON;
//! a client that only looks for nodes needs one field of it.

use std::fmt;

/// How the address of a place begins.
pub const SCHEME: &str = "zk://";
/// Directory of the nodes below the path of a cluster: it has one child for each registered node, named
/// by its id.
pub const MEMBERS: &str = "/members";
/// Field of such a child with the `host:port` of the node.
pub const ADDRESS_FIELD: &str = "address";

/// Coordination, and the path of a cluster there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `host:port` of one or more servers, joined by commas.
    pub servers: String,
    /// Path of the cluster, such as `/millrace`; never the root.
    pub path: String,
}

impl Place {
    /// Reads `zk://HOST:PORT,HOST:PORT/PATH`; None for anything else.
    pub fn parse(text: &str) -> Option<Place> {
        let rest = text.strip_prefix(SCHEME)?;
        let (servers, path) = rest.split_at(rest.find('/')?);
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
            .then(|| Place { servers: servers.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{SCHEME}{}{}", self.servers, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        for text in ["zk://a:1/m", "zk://[::1]:2181,b:2/x/y"] {
            assert_eq!(Place::parse(text).unwrap().to_string(), text);
        }
        let slash = Place::parse("zk://a:1,b:2/m/").unwrap();
        assert_eq!((slash.servers.as_str(), slash.path.as_str()), ("a:1,b:2", "/m"));
        let refused = [
            "",
            "zk://",
            "zk://a:1",
            "zk://a:1/",
            "zk://a/m",
            "zk://a:0/m",
            "zk://a:1,/m",
            "zk://a:1, b:1/m",
            "zk://a:1/m//n",
            "zk://a:1/../n",
            "http://a:1/m",
            "a:1/m",
        ];
        for text in refused {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }
}
