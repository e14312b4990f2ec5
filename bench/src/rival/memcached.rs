//! `memcached`: one worker thread, 200 requests served before it turns to another connection.

use std::path::Path;

use anyhow::Result;

use super::{Server, command, free_address, scratch_directory, spawn, store_by, wait_for_port};
use crate::content::ObjectSet;

pub(super) fn start(program: &Path, set: &ObjectSet) -> Result<Server> {
    let scratch = scratch_directory()?;
    let address = free_address()?;
    // Three times the payload and 256 MiB: slab classes round up, large values are made of chunks.
    let memory_mb = set.total_bytes() * 3 / (1 << 20) + 256;
    let mut command = command(program);
    command
        .args(["-l", "127.0.0.1", "-U", "0", "-t", "1", "-R", "200", "-M"])
        .args(["-I", "4m", "-c", "4096", "-p"])
        .arg(address.port().to_string())
        .arg("-m")
        .arg(memory_mb.to_string());
    if rustix::process::geteuid().is_root() {
        // It refuses to run as root without being told whose rights to take.
        command.args(["-u", "nobody"]);
    }
    let child = spawn(command, &scratch, None)?;
    wait_for_port(child, address, scratch)
}

pub(super) fn store(server: &Server, set: &ObjectSet) -> Result<()> {
    store_by(server, set, "STORED", |index, content, out| {
        let head = format!("set {} 0 0 {}\r\n", set.key(index), content.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    })
}
