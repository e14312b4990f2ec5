//! `nginx`: one process, `sendfile` from files in memory, open files kept open.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Home, Server, command, spawn, wait_until_open};

pub(super) fn start(program: &Path, home: Home, directory: &Path) -> Result<Server> {
    let scratch = home.scratch.path();
    let path = scratch.join("nginx.conf");
    // It writes the address of a Unix socket as we do.
    let text = configuration(scratch, directory, &home.address.to_string());
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let mut command = command(program);
    command.arg("-p").arg(scratch);
    command.arg("-e").arg(scratch.join("error.log"));
    command.arg("-c").arg(path);
    let child = spawn(command, &home.scratch, None)?;
    wait_until_open(child, home)
}

fn configuration(scratch: &Path, root: &Path, address: &str) -> String {
    let user = if rustix::process::geteuid().is_root() {
        // A worker of another user could not enter the scratch directory.
        "user root;"
    } else {
        ""
    };
    let scratch = scratch.display();
    let root = root.display();
    format!(
        "{user}
daemon off;
master_process off;
worker_processes 1;
pid {scratch}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 70000;
events {{ worker_connections 4096; multi_accept on; use epoll; }}
http {{
    access_log off;
    default_type application/octet-stream;
    etag off;
    server_tokens off;
    sendfile on;
    sendfile_max_chunk 0;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_time 24h;
    keepalive_requests 1000000000;
    open_file_cache max=65536 inactive=3600s;
    open_file_cache_valid 3600s;
    open_file_cache_min_uses 1;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    server {{ listen {address} backlog=4096; root {root}; }}
}}
"
    )
}
