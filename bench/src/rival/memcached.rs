//! `memcached`: one worker thread, 200 requests served before it turns to another connection.

use std::path::Path;

use anyhow::Result;

use super::{Home, Server, command, spawn, store_by, wait_until_open};
use crate::address::Address;
use crate::content::ObjectSet;

pub(super) fn start(program: &Path, home: Home, set: &ObjectSet) -> Result<Server> {
    // Three times the payload and 256 MiB: slab classes round up, large values are made of chunks.
    let memory_mb = set.total_bytes() * 3 / (1 << 20) + 256;
    let mut command = command(program);
    match &home.address {
        Address::Tcp(address) => {
            command.args(["-l", "127.0.0.1", "-U", "0", "-p"]).arg(address.port().to_string())
        }
        Address::Unix(path) => command.arg("-s").arg(path),
    };
    command
        .args(["-t", "1", "-R", "200", "-M", "-I", "4m", "-c", "4096", "-m"])
        .arg(memory_mb.to_string());
    if rustix::process::geteuid().is_root() {
        // As root it has to be told whose rights to take, and another user's could not make a socket in
        // the scratch directory.
        command.args(["-u", if home.address.is_unix() { "root" } else { "nobody" }]);
    }
    let child = spawn(command, &home.scratch, None)?;
    wait_until_open(child, home)
}

pub(super) fn store(server: &Server, set: &ObjectSet) -> Result<()> {
    store_by(server, set, "STORED", |index, content, out| {
        let head = format!("set {} 0 0 {}\r\n", set.key(index), content.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    })
}
