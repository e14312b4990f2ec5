//! Coordination in the node's own process: one replica, for a cluster of one node.
//!
//! Owns the replica and where its state lies: in the node's data directory, or, where nothing is to be
//! kept, in a directory that goes with the process.

use std::net::{Ipv4Addr, SocketAddr};

use millrace_coord::Coord;
use millrace_coord::config::Source;
use millrace_node::Config;
use millrace_node::config::Coordination;
use tempfile::TempDir;

use crate::failure::Failure;

/// A replica that runs for this process's node.
pub(crate) struct Embedded {
    coord: Coord,
    /// Removed at the end, where nothing is kept.
    _scratch: Option<TempDir>,
}

impl Embedded {
    /// Starts a replica if the configuration wants one, and notes its address there.
    ///
    /// # Errors
    /// If its directory cannot be used, or it cannot start.
    pub(crate) fn start(config: &mut Config) -> Result<Option<Embedded>, Failure> {
        if config.coord != Coordination::Embedded(None) {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!("cannot start embedded coordination: {error}"))
        };
        let (directory, scratch) = if config.data.as_os_str().is_empty() {
            let scratch = tempfile::Builder::new().prefix("millrace-").tempdir();
            let scratch = scratch.map_err(|error| failed(&error))?;
            (scratch.path().to_owned(), Some(scratch))
        } else {
            (config.data.join("coord"), None)
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let values = [
            ("data_dir", directory.display().to_string()),
            ("client_address", address.to_string()),
            // This node, and whoever looks at what it wrote.
            ("max_client_connections", "64".to_owned()),
            // Sessions as short as the node asks for.
            ("min_session_timeout_ms", "100".to_owned()),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), value));
        let replica = millrace_coord::Config::load(Source::None, &values);
        let replica = replica.map_err(|error| failed(&error))?;
        let coord = Coord::start(replica).map_err(|error| failed(&error))?;
        config.coord = Coordination::Embedded(Some(coord.client_address()));
        Ok(Some(Embedded { coord, _scratch: scratch }))
    }

    /// Stops the replica, after its node.
    pub(crate) fn stop(self) {
        if let Err(error) = self.coord.stop() {
            tracing::warn!("stop embedded coordination: {error}");
        }
    }
}
