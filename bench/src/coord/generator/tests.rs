//! The generator against a server that answers at once, in this process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_proto::zookeeper::jute::{self, Reader};
use millrace_proto::zookeeper::{ConnectResponse, ReplyHeader, Request, Stat, xid};

use super::*;
use crate::coord::operation::{Action, Key, Requests, Workload};

const VALUE_LENGTH: usize = 128;

/// Decides the answer of the server to a request: an error code, or 0.
type Judge = fn(number: i32) -> i32;

/// A server of ZooKeeper's protocol that keeps nothing: a read is answered with the value that the
/// key must have.
struct Server {
    address: SocketAddr,
    /// Sessions that were closed by their client.
    closed: Arc<AtomicUsize>,
}

impl Server {
    fn start(judge: Judge) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let closed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&closed);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || serve(stream, judge, &counter));
            }
        });
        Server { address, closed }
    }
}

fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn serve(mut stream: TcpStream, judge: Judge, closed: &AtomicUsize) -> Option<()> {
    let values = Values::new(VALUE_LENGTH, 1);
    read_message(&mut stream)?;
    let response =
        ConnectResponse { timeout_ms: 1000, session: 1, password: [1; 16], read_only: Some(false) };
    let mut out = Vec::new();
    jute::message(&mut out, |writer| response.encode(writer));
    loop {
        stream.write_all(&out).ok()?;
        let message = read_message(&mut stream)?;
        let mut reader = Reader::new(&message);
        let (number, code) = (reader.int().unwrap(), reader.int().unwrap());
        let request = Request::decode(code, reader.rest()).unwrap();
        let error = if number == xid::PING { 0 } else { judge(number) };
        out.clear();
        jute::message(&mut out, |writer| {
            ReplyHeader { xid: number, zxid: 1, error }.encode(writer);
            match request {
                _ if error != 0 => {}
                Request::Create { path, .. } => writer.string(path),
                Request::GetData { path, .. } => {
                    let key = path.strip_prefix("/bench/kept-").unwrap().parse().unwrap();
                    writer.buffer(Some(values.of(Key::Kept(key))));
                    Stat::default().encode(writer);
                }
                Request::SetData { data, .. } => {
                    let data_length = data.unwrap().len() as i32;
                    Stat { data_length, ..Stat::default() }.encode(writer);
                }
                _ => {}
            }
        });
        if request == Request::CloseSession {
            closed.fetch_add(1, Ordering::SeqCst);
            return None;
        }
    }
}

/// Returns a load of ten requests in flight over four connections.
fn load<'a>(addresses: &'a [SocketAddr], values: &'a Values) -> Load<'a> {
    Load {
        system: System::Millrace,
        addresses,
        values,
        connections: 4,
        outstanding: 10,
        warmup_seconds: 0.0,
        seconds: f64::INFINITY,
        cpu: None,
        pids: &[],
    }
}

#[test]
fn every_operation_is_done_once_and_sessions_are_closed() {
    let servers = [(); 3].map(|()| Server::start(|_| 0));
    let addresses = [0, 1, 2].map(|index: usize| servers[index].address);
    let values = Values::new(VALUE_LENGTH, 1);
    let key = Key::Kept;
    let mut operations =
        (0..1000).map(|number| Operation { action: Action::Get, key: key(number) });
    let found = run(&load(&addresses, &values), &mut operations).unwrap();
    assert_eq!((found.operations, found.refused_count()), (1000, 0));
    assert!(found.latency.p50_us > 0.0 && found.latency.p50_us <= found.latency.p999_us);
    let closed = servers.map(|server| server.closed.load(Ordering::SeqCst));
    assert_eq!(closed, [2, 1, 1], "connections are spread over the replicas");
}

#[test]
fn a_measured_time_ends() {
    let server = Server::start(|_| 0);
    let values = Values::new(VALUE_LENGTH, 1);
    let addresses = [server.address];
    for workload in Workload::ALL {
        let mut requests = Requests::new(workload, 100, 0, 1);
        let pids = [std::process::id()];
        let load =
            Load { warmup_seconds: 0.02, seconds: 0.05, pids: &pids, ..load(&addresses, &values) };
        let found = run(&load, &mut requests).unwrap();
        assert!(found.operations > 0, "{workload:?}: {found:?}");
        assert!((0.05..2.0).contains(&found.seconds), "{workload:?}: {found:?}");
        let rate = found.operations as f64 / found.seconds;
        assert!((rate - found.operations_per_s).abs() < 1e-6, "{workload:?}: {found:?}");
    }
}

#[test]
fn what_is_refused_is_counted_by_reason_and_is_no_success() {
    let server = Server::start(|number| match number % 4 {
        0 => -101,
        1 => -127,
        _ => 0,
    });
    let values = Values::new(VALUE_LENGTH, 1);
    let addresses = [server.address];
    let load = Load { connections: 1, ..load(&addresses, &values) };
    let set = Operation { action: Action::Set, key: Key::Kept(1) };
    let found = run(&load, &mut std::iter::repeat_n(set, 100)).unwrap();
    assert_eq!(found.operations, 50);
    let refused = found.refused.iter().map(|(why, &count)| (why.as_str(), count));
    let expected = [("error -127", 25), ("no such key", 25)];
    assert_eq!(refused.collect::<Vec<_>>(), expected);
}

#[test]
fn one_request_in_flight_takes_one_connection() {
    let servers = [(); 2].map(|()| Server::start(|_| 0));
    let addresses = [0, 1].map(|index: usize| servers[index].address);
    let values = Values::new(VALUE_LENGTH, 1);
    let load = Load { outstanding: 1, ..load(&addresses, &values) };
    let get = Operation { action: Action::Get, key: Key::Kept(3) };
    let found = run(&load, &mut std::iter::repeat_n(get, 10)).unwrap();
    assert_eq!(found.operations, 10);
    let closed = servers.map(|server| server.closed.load(Ordering::SeqCst));
    assert_eq!(closed, [1, 0]);
}

#[test]
fn a_value_that_is_another_one_ends_the_run() {
    let server = Server::start(|_| 0);
    let values = Values::new(VALUE_LENGTH, 2);
    let addresses = [server.address];
    let get = Operation { action: Action::Get, key: Key::Kept(3) };
    let error = run(&load(&addresses, &values), &mut std::iter::once(get)).unwrap_err();
    assert!(format!("{error:#}").contains("the value is another one"), "{error:#}");
}

#[test]
fn a_server_that_goes_away_ends_the_run() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addresses = [listener.local_addr().unwrap()];
    drop(listener);
    let values = Values::new(VALUE_LENGTH, 1);
    let error = run(&load(&addresses, &values), &mut std::iter::empty()).unwrap_err();
    assert!(error.to_string().contains("open connection 0 to 127.0.0.1"), "{error}");
}
