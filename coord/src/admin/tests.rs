//! A replica in this process, asked over real sockets.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use millrace_ops::http::{self, BODY_MAX_BYTES, CONNECTIONS_MAX, HEAD_MAX_BYTES};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::Coord;

/// The time that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(90);

struct Asked {
    coord: Coord,
    admin: Admin,
    directory: TempDir,
}

impl Asked {
    fn start() -> Asked {
        let directory = tempfile::tempdir().unwrap();
        let loopback = Some("127.0.0.1:0".parse().unwrap());
        let config = Config {
            admin: loopback,
            metrics: loopback,
            ..Config::tiny(directory.path().to_owned())
        };
        let coord = Coord::start(config.clone()).unwrap();
        let config = Config { client_address: coord.client_address(), ..config };
        let admin = Admin::start(&config, coord.operator()).unwrap();
        let asked = Asked { coord, admin, directory };
        let start = Instant::now();
        while asked.get(Door::Metrics, "/health").0 != 200 {
            assert!(start.elapsed() < PATIENCE, "it does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        asked
    }

    fn open(&self, door: Door) -> Box<dyn http::Stream> {
        let stream: Box<dyn http::Stream> = match door {
            Door::Socket => Box::new(connect(self.directory.path()).unwrap()),
            Door::Admin => Box::new(TcpStream::connect(self.admin.admin_address.unwrap()).unwrap()),
            Door::Metrics => {
                Box::new(TcpStream::connect(self.admin.metrics_address.unwrap()).unwrap())
            }
        };
        stream.set_times(PATIENCE, PATIENCE).unwrap();
        stream
    }

    /// Sends bytes and returns the status and the body of the answer; 0 for none.
    fn exchange(&self, door: Door, request: &[u8]) -> (u16, String) {
        let mut stream = self.open(door);
        // The request may be refused before it is read to the end.
        let _ = stream.write_all(request);
        answer_of(stream.as_mut())
    }

    fn get(&self, door: Door, path: &str) -> (u16, String) {
        self.exchange(door, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
    }

    fn post(&self, door: Door, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!("POST {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        let (status, body) = self.exchange(door, request.as_bytes());
        (status, serde_json::from_str(&body).unwrap_or_default())
    }
}

fn answer_of(stream: &mut dyn http::Stream) -> (u16, String) {
    let mut bytes = Vec::new();
    // Bytes before a reset count.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return (0, text) };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[test]
fn each_door_shows_what_it_may() {
    let asked = Asked::start();
    let check = |door, path, expect| {
        assert_eq!(asked.get(door, path).0, expect, "{door:?} {path}");
    };
    for door in [Door::Socket, Door::Admin] {
        for path in ["/status", "/metrics", "/health", "/commands", "/commands/mntr", "/status?a"] {
            check(door, path, 200);
        }
        check(door, "/", 404);
    }
    check(Door::Metrics, "/metrics", 200);
    check(Door::Metrics, "/health", 200);
    for path in ["/status", "/commands", "/commands/mntr", "/commands/stat_reset"] {
        check(Door::Metrics, path, 404);
    }
    check(Door::Admin, "/commands/stat_reset", 403);
    check(Door::Admin, "/commands/crst", 403);
    check(Door::Socket, "/commands/stat_reset", 200);
}

#[test]
fn status_tells_where_clients_are_served() {
    let asked = Asked::start();
    let (_, body) = asked.get(Door::Admin, "/status");
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!(status.client_address, asked.coord.client_address().to_string());
    assert_eq!((status.mode.as_str(), status.replica, status.nodes), ("standalone", 1, 4));
    assert_eq!(status.members, []);
    assert_eq!(status.latencies.len(), 4);
}

#[test]
fn commands_are_taken_by_the_socket_alone() {
    let asked = Asked::start();
    for door in [Door::Admin, Door::Metrics] {
        for path in ["/transfer", "/reconfigure", "/checkpoint", "/backup", "/digest", "/x"] {
            assert_eq!(asked.post(door, path, "{}").0, 403, "{door:?} {path}");
        }
    }
    let check = |path, body, expect: u16, words: &str| {
        let (status, fields) = asked.post(Door::Socket, path, body);
        assert_eq!(status, expect, "{path} {body}: {fields}");
        let told = fields["result"].as_str().or(fields["error"].as_str()).unwrap();
        assert!(told.contains(words), "{path} {body}: {told}");
    };
    check("/digest", "", 200, "digest ");
    check("/checkpoint", "{}", 200, "durable up to");
    check("/transfer", "{}", 409, "no other");
    check("/transfer", "{\"to\": 7}", 409, "no other");
    check("/reconfigure", "{\"joining\": \"server.2=a:1:2;3\"}", 409, "refused");
    check("/backup", "{}", 400, "path");
    check("/backup", "{\"path\": \"relative\"}", 400, "absolute");
    check("/digest", "{\"to\": 1}", 400, "unknown field");
    check("/transfer", "{\"to\": -1}", 400, "body");
    check("/transfer", "nonsense", 400, "body");
    check("/reboot", "", 404, "no such command");
}

#[test]
fn a_backup_loads_with_the_digest_of_the_replica() {
    let asked = Asked::start();
    let file = asked.directory.path().join("backup");
    let body = serde_json::json!({ "path": &file }).to_string();
    assert_eq!(asked.post(Door::Socket, "/backup", &body).0, 200);
    let digest = asked.post(Door::Socket, "/digest", "").1["result"].as_str().unwrap().to_owned();
    let offline = offline::open_backup(&file).unwrap();
    assert!(digest.ends_with(&format!("digest {:016x}", offline.state.digest())), "{digest}");
    let (status, fields) = asked.post(Door::Socket, "/backup", &body);
    assert_eq!(status, 409, "a file that exists is kept");
    assert!(fields["error"].as_str().unwrap().contains("exists"), "{fields}");
}

#[test]
fn bad_requests_are_refused_each_in_its_way() {
    let asked = Asked::start();
    let check = |request: &[u8], expect| {
        assert_eq!(asked.exchange(Door::Admin, request).0, expect, "{}", request.escape_ascii());
    };
    check(b"\0\0\0\x2c\0\0\0\0\r\n\r\n", 400);
    check(b"GET /status\r\n\r\n", 400);
    check(b"DELETE /status HTTP/1.1\r\n\r\n", 405);
    check(b"POST /digest HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411);
    check(b"POST /digest HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400);
    let length = BODY_MAX_BYTES + 1;
    check(format!("POST /digest HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").as_bytes(), 413);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_MAX_BYTES));
    check(long.as_bytes(), 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    check(many.as_bytes(), 431);
    assert_eq!(asked.get(Door::Admin, "/health").0, 200, "and it goes on serving");
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let asked = Asked::start();
    let mut stream = asked.open(Door::Socket);
    for byte in b"POST /digest HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(answer_of(stream.as_mut()).0, 200);
    let head = asked.exchange(Door::Admin, b"HEAD /health HTTP/1.0\r\n\r\n");
    assert_eq!(head, (200, String::new()), "the head alone");
}

#[test]
fn idle_connections_keep_nobody_out_for_long() {
    let asked = Asked::start();
    let start = Instant::now();
    let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| asked.open(Door::Admin)).collect();
    // All places are taken when the last one is. Then one more connection is closed at once.
    while asked.get(Door::Admin, "/health").0 != 0 {
        assert!(start.elapsed() < PATIENCE, "places do not run out");
    }
    assert_eq!(asked.get(Door::Socket, "/health").0, 200, "other doors have places of their own");
    assert_eq!(answer_of(idle[0].as_mut()).0, 408, "a silent client is sent away");
    while asked.get(Door::Admin, "/health").0 != 200 {
        assert!(start.elapsed() < PATIENCE, "places do not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_socket_is_the_owners_and_a_dead_ones_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    // The path is longer than the address of a socket may be.
    let directory = root.path().join("d".repeat(150));
    fs::create_dir(&directory).unwrap();
    assert_eq!(connect(&directory).unwrap_err().kind(), io::ErrorKind::NotFound);
    drop(listen_in(&directory).unwrap());
    assert_eq!(connect(&directory).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let _listener = listen_in(&directory).unwrap();
    connect(&directory).unwrap();
    let metadata = fs::symlink_metadata(directory.join(SOCKET)).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_taken_address_is_named() {
    let asked = Asked::start();
    let taken = asked.admin.admin_address;
    let other = tempfile::tempdir().unwrap();
    let config = Config { metrics: taken, ..Config::tiny(other.path().to_owned()) };
    let error = Admin::start(&config, asked.coord.operator()).err().unwrap().to_string();
    assert!(error.contains(&format!("{}, the metrics endpoint", taken.unwrap())), "{error}");
}

#[test]
fn nobody_is_let_in_after_the_end() {
    let asked = Asked::start();
    let address = asked.admin.admin_address.unwrap();
    drop(asked.admin);
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(
        connect(asked.directory.path()).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}
