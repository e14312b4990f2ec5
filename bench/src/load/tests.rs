//! The generator against real sockets: a small node in a thread, and redis where it is installed.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use millrace_proto::message::{
    ArchivedRange, ArchivedReadManyRequest, ArchivedStatRequest, Entry, HelloReply, Kind, Range,
    ReadReply, StatReply,
};
use millrace_proto::{FileId, HEADER_SIZE, Header, Op, Status, VERSION, checksum, feature, frame};

use super::*;
use crate::control::Control;
use crate::keys::Distribution;
use crate::rival::{self, Rival, Start, Transport};
use crate::wire::{FileRanges, Millrace, Redis};

const SET: ObjectSet = ObjectSet { count: 50, size: 10_000, seed: 4 };
const BLOCK_SIZE: u32 = 1 << 20;

/// How the small node misbehaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A byte of each payload is wrong, and so are its checksums.
    Content,
    /// A byte of each payload is wrong, its checksums are right.
    Payload,
    /// Each payload is a byte short.
    Length,
    /// The first part of a batch is answered twice.
    Twice,
    /// The connection is closed at the first read.
    Close,
}

/// Serves every connection in a thread of its own, until its peer closes.
fn start_node(fault: Fault) -> Address {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream, fault));
        }
    });
    address.into()
}

/// Answers what has arrived, newest request first: replies overtake each other.
fn serve(mut stream: TcpStream, fault: Fault) {
    let (mut input, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => input.extend_from_slice(&buffer[..length]),
        }
        let mut replies = VecDeque::new();
        while let Some((header, body)) = take_frame(&mut input) {
            let op = Op::from_code(header.op).unwrap();
            if fault == Fault::Close && op == Op::Read {
                return;
            }
            replies.push_front(answer(op, header, &body, fault));
        }
        if stream.write_all(replies.make_contiguous().concat().as_slice()).is_err() {
            return;
        }
    }
}

fn take_frame(input: &mut Vec<u8>) -> Option<(Header, Vec<u8>)> {
    let header = Header::decode(input.first_chunk()?).unwrap();
    let end = HEADER_SIZE + header.body_length as usize;
    let body = input.get(HEADER_SIZE..end)?.to_vec();
    header.check_body(&body).unwrap();
    input.drain(..end);
    Some((header, body))
}

fn answer(op: Op, header: Header, body: &[u8], fault: Fault) -> Vec<u8> {
    let mut out = Vec::new();
    let reply = header.reply(Status::Ok);
    match op {
        Op::Hello => {
            let hello = HelloReply {
                server: "small node".into(),
                version: VERSION,
                features: feature::ALL,
                block_size: BLOCK_SIZE,
                body_length_max: 64 << 10,
                requests_in_flight_max: 1024,
                ranges_max: 1024,
                shards: Vec::new(),
            };
            frame::encode(&mut out, reply, &hello);
        }
        Op::Stat => {
            let request = frame::body::<ArchivedStatRequest>(body).unwrap();
            let name = request.path.as_str().to_owned();
            let index: u128 = name.rsplit('/').next().unwrap().parse().unwrap();
            let entry = Entry {
                name,
                kind: Kind::File,
                id: FileId(index),
                version: 1,
                length: SET.size as u64,
                modified_ms: 0,
            };
            frame::encode(&mut out, reply, &StatReply { entry, block_size: BLOCK_SIZE });
        }
        Op::Read => {
            let range = frame::body::<ArchivedRange>(body).unwrap();
            answer_range(&mut out, reply, range.into(), fault);
        }
        Op::ReadMany => {
            let request = frame::body::<ArchivedReadManyRequest>(body).unwrap();
            for (part, range) in request.ranges.iter().enumerate().rev() {
                let mut reply = reply;
                reply.part = if fault == Fault::Twice { 0 } else { part as u16 };
                answer_range(&mut out, reply, range.into(), fault);
            }
        }
        _ => frame::encode_empty(&mut out, header.reply(Status::UnknownOp)),
    }
    out
}

fn answer_range(out: &mut Vec<u8>, mut reply: Header, range: Range, fault: Fault) {
    let mut content = Vec::new();
    SET.fill(range.file.0 as u64, &mut content);
    let offset = range.offset as usize;
    if fault == Fault::Content {
        content[offset] ^= 1;
    }
    let mut length = range.length.min(SET.size as u32 - range.offset as u32);
    if fault == Fault::Length {
        length -= 1;
    }
    let checksums = checksum::pieces(offset as u32, length, SET.size as u32)
        .map(|piece| checksum::of(&content[piece.offset as usize..][..piece.length as usize]))
        .collect();
    if fault == Fault::Payload {
        content[offset] ^= 1;
    }
    reply.payload_length = length;
    frame::encode(out, reply, &ReadReply { checksums });
    out.extend_from_slice(&content[offset..offset + length as usize]);
}

fn wire_to(address: &Address, size: u32, batch: usize) -> (Millrace, u64) {
    let mut control = Control::connect(address).unwrap();
    let node = control.hello().unwrap();
    let paths: Vec<String> = (0..SET.count).map(|index| SET.path(index)).collect();
    let entries = control.stat_many(&paths).unwrap();
    let ranges = FileRanges::new(entries, size, node.block_size).unwrap();
    let count = ranges.count();
    (Millrace::new(&node, ranges, batch, true).unwrap(), count)
}

fn options(check: Check) -> LoadOptions {
    LoadOptions {
        connections: 3,
        depth: 5,
        warmup_seconds: 0.05,
        seconds: 0.3,
        server_pid: Some(std::process::id()),
        check,
        ..LoadOptions::default()
    }
}

fn run_once(fault: Fault, check: Check, batch: usize) -> Result<LoadResult> {
    let address = start_node(fault);
    let (mut wire, count) = wire_to(&address, SET.size as u32, batch);
    let mut keys = Keys::new(Distribution::Uniform, count, 1)?;
    let options = LoadOptions { batch, ..options(check) };
    run(&mut wire, &[address], &mut keys, &options)
}

fn check_error(fault: Fault, check: Check, batch: usize, words: &str) {
    let error = format!("{:#}", run_once(fault, check, batch).unwrap_err());
    assert!(error.contains(words), "{error}");
}

#[test]
fn closed_loop_reads_a_node() {
    for check in [Check::Lengths, Check::Checksums, Check::Content(&SET)] {
        let result = run_once(Fault::None, check, 1).unwrap();
        assert!(result.reads > 0);
        assert_eq!(result.bytes, result.reads * SET.size as u64);
        assert_eq!((result.requests, result.unanswered), (result.reads, 0));
        assert!(result.latency.p50_us <= result.latency.max_us);
        assert!(result.server_cpu_s.is_some());
    }
}

#[test]
fn connections_take_turns_where_all_have_one_limit() {
    let address = start_node(Fault::None);
    let (mut wire, count) = wire_to(&address, 4096, 1);
    let mut keys = Keys::new(Distribution::Uniform, count, 1).unwrap();
    let options =
        LoadOptions { connections: 9, in_flight_max: Some(4), ..options(Check::Checksums) };
    let result = run(&mut wire, &[address], &mut keys, &options).unwrap();
    assert!(result.reads > 0 && result.requests == result.reads);
}

#[test]
fn batches_are_answered_in_any_order() {
    let result = run_once(Fault::None, Check::Content(&SET), 8).unwrap();
    // A request that straddles the start or the end counts some of its reads.
    assert!(result.reads.abs_diff(result.requests * 8) <= 2 * 8 * 15);
}

#[test]
fn open_loop_sends_what_is_due() {
    let address = start_node(Fault::None);
    let (mut wire, count) = wire_to(&address, 4096, 1);
    let mut keys = Keys::new(Distribution::Zipf(0.99), count, 1).unwrap();
    let options = LoadOptions { rate: Some(1000.0), ..options(Check::Checksums) };
    let result = run(&mut wire, &[address], &mut keys, &options).unwrap();
    assert!(result.kept_away_share.is_some_and(|share| (0.0..=1.0).contains(&share)));
    // At most what was due within the time, and what was late from the warm-up.
    assert!(result.reads > 0 && result.reads <= 352, "{}", result.reads);
}

#[test]
fn open_loop_faster_than_the_server_still_ends() {
    let address = start_node(Fault::None);
    let (mut wire, count) = wire_to(&address, 10_000, 1);
    let mut keys = Keys::new(Distribution::Uniform, count, 1).unwrap();
    let options =
        LoadOptions { connections: 1, depth: 1, rate: Some(3e6), ..options(Check::Lengths) };
    let result = run(&mut wire, &[address], &mut keys, &options).unwrap();
    assert!(result.unanswered > 0);
    assert!(result.latency.max_us > 100_000.0, "the clocks of waiting requests run");
}

#[test]
fn each_key_is_read_once() {
    let address = start_node(Fault::None);
    let (mut wire, count) = wire_to(&address, 4096, 1);
    let mut keys = Keys::new(Distribution::Once, count, 1).unwrap();
    let options = LoadOptions { warmup_seconds: 0.0, seconds: 60.0, ..options(Check::Checksums) };
    let result = run(&mut wire, &[address], &mut keys, &options).unwrap();
    assert_eq!((result.reads, result.bytes), (150, SET.total_bytes()));
}

#[test]
fn wrong_replies_end_the_run() {
    check_error(Fault::Payload, Check::Checksums, 1, "checksum mismatch");
    check_error(Fault::Content, Check::Content(&SET), 1, "wrong content from byte 0");
    check_error(Fault::Length, Check::Lengths, 1, "a reply of 9999 bytes");
    check_error(Fault::Twice, Check::Lengths, 4, "answered twice");
    check_error(Fault::Close, Check::Lengths, 1, "closed the connection");
}

#[test]
fn senseless_options_are_refused() {
    let refused = |change: fn(&mut LoadOptions)| {
        let mut options = LoadOptions::default();
        change(&mut options);
        check_options(&options).unwrap_err();
    };
    check_options(&LoadOptions::default()).unwrap();
    refused(|options| options.connections = 0);
    refused(|options| options.depth = DEPTH_MAX + 1);
    refused(|options| options.batch = 0);
    refused(|options| options.in_flight_max = Some(0));
    refused(|options| options.seconds = f64::NAN);
    refused(|options| options.warmup_seconds = -1.0);
    refused(|options| options.rate = Some(0.0));
}

#[test]
fn redis_is_loaded_if_installed() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let start = rival::start(Rival::Redis, &SET, Path::new("."), 0, transport).unwrap();
        let Start::Running(server) = start else {
            println!("skipped: redis-server is not installed");
            return;
        };
        assert_eq!(server.address().is_unix(), transport == Transport::Unix);
        for batch in [1, 8] {
            let mut wire = Redis::new(&SET, batch);
            let mut keys = Keys::new(Distribution::Uniform, SET.count, 1).unwrap();
            let pid = Some(server.pid());
            let options = LoadOptions { batch, server_pid: pid, ..options(Check::Content(&SET)) };
            let addresses = std::slice::from_ref(server.address());
            let result = run(&mut wire, addresses, &mut keys, &options).unwrap();
            assert!(result.reads > 0 && result.server_cpu_s.is_some());
        }
    }
}
