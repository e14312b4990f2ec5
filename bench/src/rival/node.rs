//! The Millrace node: the program this harness is part of, started by its own `node` command.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Home, Server, Transport, command};
use crate::address::Address;
use crate::machine;

/// Line by which a node says on stdout that it serves.
const READY_PREFIX: &str = "listening on ";

/// How the node is started.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The program; `None` for the one that is running.
    pub program: Option<PathBuf>,
    /// Cache size in bytes.
    pub memory_bytes: u64,
    /// Further arguments after those of the harness.
    pub arguments: Vec<String>,
}

pub(super) fn start(
    options: &NodeOptions,
    directory: &Path,
    cpus: &[usize],
    transport: Transport,
) -> Result<Server> {
    let home = Home::new(transport)?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("find the program that is running")?,
    };
    let mut command = command(&program);
    command
        .args(["node", "--listen", "127.0.0.1:0", "--shards"])
        .arg(cpus.len().to_string())
        .arg("--cpus")
        .arg(machine::cpu_list(cpus))
        .arg("--memory")
        .arg(options.memory_bytes.to_string())
        .arg("--source")
        .arg(directory)
        .args(&options.arguments);
    if let Address::Unix(path) = &home.address {
        command.arg("--socket").arg(path);
    }
    let (mut server, listening) = home.spawn_until_line(command, READY_PREFIX)?;
    if transport == Transport::Tcp {
        server.address = Address::resolve(&listening)?;
    }
    Ok(server)
}
