//! `redis-server`: no persistence, no eviction, one thread.

use std::path::Path;

use anyhow::Result;

use super::{Home, Server, command, spawn, store_by, wait_until_open};
use crate::address::Address;
use crate::content::ObjectSet;

pub(super) fn start(program: &Path, home: Home, set: &ObjectSet) -> Result<Server> {
    // Twice the payload and 256 MiB: redis rounds values up and keeps a table.
    let memory_bytes = set.total_bytes() * 2 + (256 << 20);
    let mut command = command(program);
    match &home.address {
        Address::Tcp(address) => {
            command.args(["--bind", "127.0.0.1", "--port"]).arg(address.port().to_string())
        }
        Address::Unix(path) => command.args(["--port", "0", "--unixsocket"]).arg(path),
    };
    command
        .args(["--save", "", "--appendonly", "no", "--io-threads", "1"])
        .args(["--maxmemory-policy", "noeviction", "--maxmemory"])
        .arg(memory_bytes.to_string())
        .arg("--dir")
        .arg(home.scratch.path());
    let child = spawn(command, &home.scratch, None)?;
    wait_until_open(child, home)
}

pub(super) fn store(server: &Server, set: &ObjectSet) -> Result<()> {
    store_by(server, set, "+OK", |index, content, out| {
        let key = set.key(index);
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), content.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    })
}
