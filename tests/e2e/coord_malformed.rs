//! Messages that no client would send to the coordination service. They cost the sender its connection
//! at most, and other clients nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use millrace_proto::zookeeper::{Error, Reader, ReplyHeader, Request, create_mode, opcode};
use millrace_tests::coord::client::create;
use millrace_tests::coord::{Client, Ensemble, Failure, Options, attach_any};
use millrace_tests::{HANG_GUARD, wait_until};

fn raw(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(HANG_GUARD)).expect("set a timeout");
    stream
}

/// Returns what the server still sends until it closes. A reset is an end too.
fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it closes");
    }
    bytes
}

/// Sends a whole message with this header and record.
fn send_record(client: &Client, xid: i32, code: i32, record: &[u8]) {
    let mut bytes = (8 + record.len() as i32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&xid.to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(record);
    let mut stream = client.stream();
    stream.write_all(&bytes).expect("send");
}

/// Checks that the record is answered with `expected`, and that the connection goes on.
#[track_caller]
fn check_refused(client: &mut Client, code: i32, record: &[u8], expected: Error) {
    send_record(client, 77, code, record);
    let reply = client.receive().expect("an answer");
    assert_eq!((reply.header.xid, reply.header.error), (77, expected.code()), "{record:?}");
    assert_eq!(reply.body, b"", "an error is a header and nothing else");
    client.ping().expect("the connection goes on");
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as i32).to_be_bytes()[..], text].concat()
}

#[test]
fn garbage_ends_the_connection_that_sent_it_and_nothing_else() {
    let ensemble = Ensemble::single(Options::new());
    let replica = &ensemble.replicas[0];
    let mut other = replica.client();
    other.make("/kept", b"value").expect("create");
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let length = random.usize(1..300);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        if round % 2 == 0 {
            // The frame is whole, but its content makes no sense.
            bytes.splice(0..0, (length as i32).to_be_bytes());
        }
        let mut stream = raw(replica.address());
        // The server may close before it has read everything.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        read_to_end(&stream);
    }
    assert_eq!(other.get("/kept", false).expect("read").0.as_deref(), Some(&b"value"[..]));
}

#[test]
fn garbage_after_the_handshake_leaves_the_session_alone() {
    let ensemble = Ensemble::single(Options::new());
    let replica = &ensemble.replicas[0];
    let mut random = fastrand::Rng::with_seed(8);
    let mut session = replica.client().session();
    for _ in 0..50 {
        let client = attach_any(&[replica.address()], session).expect("the session lives");
        session = client.session();
        let length = random.usize(1..200);
        let mut bytes = (length as i32).to_be_bytes().to_vec();
        bytes.extend((0..length).map(|_| random.u8(..)));
        // This is not the code of an operation that would succeed, such as the end of the session.
        if let Some(code) = bytes.get_mut(8) {
            *code = 0x70;
        }
        let mut stream = client.stream();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        read_to_end(stream);
    }
}

#[test]
fn a_length_that_cannot_be_ends_the_connection() {
    let ensemble = Ensemble::single(Options::new());
    let replica = &ensemble.replicas[0];
    for length in [-1, -2, i32::MIN, 0x10_0000, i32::MAX] {
        for has_session in [false, true] {
            let client = replica.client();
            let fresh = raw(replica.address());
            let mut stream = if has_session { client.stream() } else { &fresh };
            stream.write_all(&length.to_be_bytes()).expect("send");
            assert_eq!(read_to_end(stream), b"", "closed without a word after {length}");
            if has_session {
                attach_any(&[replica.address()], client.session()).expect("the session lives");
            }
        }
    }
}

#[test]
fn a_message_above_jute_maxbuffer_is_not_done_and_the_session_lives() {
    let ensemble = Ensemble::single(Options::new().line("jute.maxbuffer", 4096));
    let replica = &ensemble.replicas[0];
    let mut client = replica.client();
    // The other fields of a create are: header, path and its length, data's length, one ACL, flags.
    let rest = 8 + 4 + "/fits".len() + 4 + (4 + 4 + 4 + 5 + 4 + 6) + 4;
    client.make("/fits", &vec![1; 4096 - rest]).expect("exactly the limit fits");
    let refused = client.make("/more", &vec![1; 4096 - rest + 1]);
    assert!(matches!(refused, Err(Failure::Lost(_))), "{refused:?}");
    let mut again = attach_any(&[replica.address()], client.session()).expect("it lives");
    assert!(again.exists("/more", false).is_err_and(|failure| failure.is(Error::NoNode)));
    again.exists("/fits", false).expect("it is there");
}

#[test]
fn the_largest_message_of_the_default_is_served() {
    let ensemble = Ensemble::single(Options::new());
    let mut client = ensemble.replicas[0].client();
    let data = vec![9; 1_048_000];
    client.make("/large", &data).expect("create");
    assert_eq!(client.get("/large", false).expect("read").0, Some(data));
}

#[test]
fn records_that_end_early_or_lie_about_lengths_are_refused_in_place() {
    let ensemble = Ensemble::single(Options::new());
    let mut client = ensemble.replicas[0].client();
    let client = &mut client;
    let bad = Error::MarshallingError;
    check_refused(client, opcode::GET_DATA, b"", bad);
    check_refused(client, opcode::GET_DATA, &[0, 0], bad);
    // A string is longer than what is left of the message, or has no length at all.
    check_refused(client, opcode::GET_DATA, &[&1000_i32.to_be_bytes()[..], b"/a"].concat(), bad);
    check_refused(client, opcode::GET_DATA, &(-2_i32).to_be_bytes(), bad);
    check_refused(client, opcode::GET_DATA, &i32::MIN.to_be_bytes(), bad);
    let data_of = |length: i32| [&string(b"/a")[..], &length.to_be_bytes()].concat();
    check_refused(client, opcode::SET_DATA, &data_of(-7), bad);
    check_refused(client, opcode::SET_DATA, &data_of(i32::MAX), bad);
    // A list has more items than bytes.
    let list = [&string(b"/a")[..], &string(b"x"), &i32::MAX.to_be_bytes()].concat();
    check_refused(client, opcode::CREATE, &list, bad);
    let watches = [&0_i64.to_be_bytes()[..], &0x0fff_ffff_i32.to_be_bytes()].concat();
    check_refused(client, opcode::SET_WATCHES, &watches, bad);
    // A multi has no end.
    let open = [&opcode::CHECK.to_be_bytes()[..], &[0], &(-1_i32).to_be_bytes()].concat();
    check_refused(client, opcode::MULTI, &open, bad);
    // A path that is not text names no node, as in ZooKeeper, which reads it as if it were.
    let no_text = [&string(b"/\xff\xfe")[..], &[0]].concat();
    check_refused(client, opcode::EXISTS, &no_text, Error::NoNode);
    assert!(client.exists("/a", false).is_err_and(|failure| failure.is(Error::NoNode)));
}

#[test]
fn paths_that_cannot_be_name_no_node() {
    let ensemble = Ensemble::single(Options::new());
    let mut client = ensemble.replicas[0].client();
    client.make("/a", b"").expect("create");
    let bad = [
        "",
        "a",
        "//",
        "/a/",
        "/a//b",
        "/./a",
        "/a/.",
        "/a/..",
        "/../a",
        "/a\0b",
        "/a\u{1}",
        "/\u{7f}",
        "/\u{9f}",
        "/\u{f8ff}",
        "/\u{fff0}",
        "/a/./b",
    ];
    for path in bad {
        let reply = client.call(&create(path, b"", create_mode::PERSISTENT)).expect("answered");
        // ZooKeeper looks for the parent first, and some of these have an impossible parent.
        let refusals = [Error::BadArguments.code(), Error::NoNode.code()];
        assert!(refusals.contains(&reply.header.error), "create {path:?}: {:?}", reply.header);
        let failed = client.set(path, b"", -1);
        assert!(failed.is_err(), "set {path:?}");
        let failed = client.delete(path, -1);
        assert!(failed.is_err(), "delete {path:?}");
        // The empty path is ZooKeeper's other name of the root, for reads.
        assert!(path.is_empty() || client.get(path, false).is_err(), "get {path:?}");
    }
    assert_eq!(client.children("/", false).expect("list"), ["a", "zookeeper"]);
    let long = format!("/{}", "n".repeat(500_000));
    client.make(&long, b"").expect("a long name is a name");
    client.exists(&long, false).expect("it is there");
    let deep = format!("/a{}", "/b".repeat(1000));
    let failed = client.make(&deep, b"");
    assert!(failed.is_err_and(|failure| failure.is(Error::NoNode)), "its parent is not there");
}

#[test]
fn an_unknown_operation_is_told_so_and_ends_the_connection() {
    let ensemble = Ensemble::single(Options::new());
    let replica = &ensemble.replicas[0];
    for code in [0, 10, opcode::CHECK, 23, 99, 108, 500, -1, -2, i32::MIN, i32::MAX] {
        let client = replica.client();
        send_record(&client, 5, code, b"rubbish");
        let said = read_to_end(client.stream());
        let mut reader = Reader::new(said.get(4..).unwrap_or_default());
        let header = ReplyHeader::decode(&mut reader);
        let header = header.unwrap_or_else(|_| panic!("{code} is answered, not {said:?}"));
        assert_eq!((header.xid, header.error), (5, Error::Unimplemented.code()), "{code}");
        attach_any(&[replica.address()], client.session()).expect("the session lives");
    }
}

#[test]
fn handshakes_that_make_no_sense_get_no_session() {
    let ensemble = Ensemble::single(Options::new());
    let replica = &ensemble.replicas[0];
    let mut good = replica.client();
    good.create("/mine", b"", create_mode::EPHEMERAL).expect("create");
    for length in [0, 1, 4, 24, 27] {
        let mut stream = raw(replica.address());
        let bytes = [&(length as i32).to_be_bytes()[..], &vec![0; length]].concat();
        stream.write_all(&bytes).expect("send");
        assert_eq!(read_to_end(&stream), b"", "a handshake of {length} bytes");
    }
    // One session is another client's with a wrong password, and one never existed.
    let session = good.session();
    let mut wrong = session;
    wrong.password[3] ^= 1;
    let mut unknown = session;
    unknown.id ^= 0x1234;
    for stolen in [wrong, unknown] {
        let answer = Client::attach(replica.address(), stolen, HANG_GUARD).map(|_| ());
        assert_eq!(answer, Err(Failure::Expired));
    }
    // The owner may lose its connection, as with ZooKeeper, but no more than that.
    let mut good = attach_any(&[replica.address()], session).expect("the session lives");
    good.exists("/mine", false).expect("and has its node");
    // One client has seen what this server has not.
    let ahead = millrace_tests::coord::Session { zxid: i64::MAX, ..session };
    let answer = Client::attach(replica.address(), ahead, HANG_GUARD).map(|_| ());
    assert!(matches!(answer, Err(Failure::Lost(_))), "{answer:?}");
}

#[test]
fn a_client_that_sends_byte_by_byte_is_understood() {
    let ensemble = Ensemble::single(Options::new());
    let mut client = ensemble.replicas[0].client();
    let mut stream = client.stream().try_clone().expect("clone");
    let request = Request::GetData { path: "/zookeeper/config", watch: false };
    let mut record = Vec::new();
    request.encode(&mut millrace_proto::zookeeper::Writer::new(&mut record));
    let mut bytes = (8 + record.len() as i32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&41_i32.to_be_bytes());
    bytes.extend_from_slice(&opcode::GET_DATA.to_be_bytes());
    bytes.extend_from_slice(&record);
    for byte in bytes {
        stream.write_all(&[byte]).expect("send");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let reply = client.receive().expect("an answer");
    assert_eq!((reply.header.xid, reply.header.error), (41, 0));
}

#[test]
fn watches_that_a_client_cannot_ask_for_again_are_named_in_the_log() {
    let mut ensemble = Ensemble::single(Options::new().line("jute.maxbuffer", 4096));
    let replica = &mut ensemble.replicas[0];
    let mut session = replica.client().session();
    // A client does this each time when it returns, so the log has to say why it is closed each time.
    for code in [opcode::SET_WATCHES, opcode::SET_WATCHES2] {
        let client = attach_any(&[replica.address()], session).expect("the session lives");
        session = client.session();
        send_record(&client, -8, code, &[0; 4096]);
        assert_eq!(read_to_end(client.stream()), b"");
    }
    let words = ["setWatches", "4104 bytes", "4096 are allowed", "max_message_bytes"];
    wait_until("the log says it", || {
        let log = replica.process().log();
        log.lines().any(|line| words.iter().all(|word| line.contains(word)))
    });
}
