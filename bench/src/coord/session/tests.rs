//! Bytes of both protocols, as servers send and expect them.

use std::net::{Ipv4Addr, SocketAddr};

use millrace_proto::zookeeper::jute;
use millrace_proto::zookeeper::{ConnectResponse, ReplyHeader, Stat};

use super::*;
use crate::coord::operation::{Action, Key};

const VALUE_LENGTH: usize = 16;

fn operation(action: Action, number: u32) -> Operation {
    Operation { action, key: Key::Kept(number) }
}

/// A session with what it works on, and its answers.
struct Fixture {
    session: Session,
    pending: Pending,
    values: Values,
    out: Vec<u8>,
    answered: Vec<(Operation, Outcome)>,
}

impl Fixture {
    fn new(system: System) -> Fixture {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 2379));
        Fixture {
            session: Session::new(system, address, 10_000, None),
            pending: Pending::default(),
            values: Values::new(VALUE_LENGTH, 1),
            out: Vec::new(),
            answered: Vec::new(),
        }
    }

    fn request(&mut self, operation: Operation) -> Vec<u8> {
        let sent = Sent { operation, at_ns: 0 };
        let mut out = Vec::new();
        self.session.request(sent, &self.values, &mut self.pending, &mut out).unwrap();
        self.session.settle(&mut out).unwrap();
        out
    }

    /// Feeds bytes in pieces of `piece`, as a socket may.
    fn receive(&mut self, bytes: &[u8], piece: usize) -> Result<()> {
        let mut carry = Vec::new();
        for piece in bytes.chunks(piece) {
            carry.extend_from_slice(piece);
            let answered = &mut self.answered;
            let mut exchange = Exchange {
                values: &self.values,
                pending: &mut self.pending,
                out: &mut self.out,
                done: &mut |sent, outcome| answered.push((sent.operation, outcome)),
            };
            let used = self.session.receive(&carry, &mut exchange)?;
            carry.drain(..used);
        }
        assert!(carry.is_empty(), "the last message is whole");
        Ok(())
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

mod zookeeper {
    use super::*;

    fn connected() -> Fixture {
        let mut fixture = Fixture::new(System::ZooKeeper);
        let response = ConnectResponse {
            timeout_ms: 10_000,
            session: 7,
            password: [3; 16],
            read_only: Some(false),
        };
        let mut bytes = Vec::new();
        jute::message(&mut bytes, |writer| response.encode(writer));
        fixture.receive(&bytes, 3).unwrap();
        assert!(fixture.session.is_ready());
        fixture
    }

    fn reply(xid: i32, error: i32, body: impl FnOnce(&mut jute::Writer<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        jute::message(&mut bytes, |writer| {
            ReplyHeader { xid, zxid: 90, error }.encode(writer);
            body(writer);
        });
        bytes
    }

    fn value_reply(xid: i32, value: &[u8]) -> Vec<u8> {
        reply(xid, 0, |writer| {
            writer.buffer(Some(value));
            Stat::default().encode(writer);
        })
    }

    #[test]
    fn greeting_and_ping_are_those_of_other_clients() {
        let fixture = Fixture::new(System::ZooKeeper);
        let mut out = Vec::new();
        fixture.session.greet(&mut out);
        let expected = "0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010 \
                        00000000000000000000000000000000 00";
        assert_eq!(out, hex(expected));
        out.clear();
        fixture.session.ping(&mut out);
        assert_eq!(out, hex("00000008 fffffffe 0000000b"));
    }

    #[test]
    fn right_values_and_refusals_are_told_apart() {
        let mut fixture = connected();
        let get = operation(Action::Get, 5);
        let set = operation(Action::Set, 6);
        fixture.request(get);
        fixture.request(set);
        let value = fixture.values.of(get.key).to_vec();
        let mut bytes = value_reply(1, &value);
        bytes.extend(reply(-2, 0, |_| {}));
        bytes.extend(reply(2, -101, |_| {}));
        fixture.receive(&bytes, 7).unwrap();
        assert_eq!(fixture.answered, [(get, Ok(())), (set, Err(Refusal::NO_NODE))]);
        assert_eq!(fixture.pending.count(), 0);
    }

    #[test]
    fn a_value_of_another_key_ends_the_run() {
        let mut fixture = connected();
        fixture.request(operation(Action::Get, 5));
        let value = fixture.values.of(Key::Kept(6)).to_vec();
        let error = fixture.receive(&value_reply(1, &value), 1000).unwrap_err();
        assert!(format!("{error:#}").contains("the value is another one"), "{error:#}");
    }

    #[test]
    fn a_reply_out_of_order_ends_the_run() {
        let mut fixture = connected();
        fixture.request(operation(Action::Get, 5));
        fixture.request(operation(Action::Get, 5));
        let value = fixture.values.of(Key::Kept(5)).to_vec();
        let error = fixture.receive(&value_reply(2, &value), 1000).unwrap_err();
        assert!(error.to_string().contains("a reply to request 1 before"), "{error}");
    }

    #[test]
    fn a_session_goes_on_with_what_it_has_seen() {
        let mut fixture = connected();
        fixture.request(operation(Action::Delete, 1));
        fixture.receive(&reply(1, 0, |_| {}), 1000).unwrap();
        let identity = fixture.session.identity();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let next = Session::new(System::Millrace, address, 10_000, identity);
        let mut out = Vec::new();
        next.greet(&mut out);
        let zxid_and_session = hex("000000000000005a 00002710 0000000000000007");
        assert_eq!(out[8..28], zxid_and_session);
    }

    #[test]
    fn a_session_that_is_gone_is_told() {
        let mut fixture = Fixture::new(System::ZooKeeper);
        let response =
            ConnectResponse { timeout_ms: 0, session: 0, password: [0; 16], read_only: None };
        let mut bytes = Vec::new();
        jute::message(&mut bytes, |writer| response.encode(writer));
        assert!(fixture.receive(&bytes, 1000).unwrap_err().is::<SessionExpired>());
    }
}

mod etcd {
    use super::*;

    /// Returns HEADERS with END_HEADERS.
    fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
        frame(1, flags | 4, stream, block)
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Returns the answer of a server to a call: `:status: 200`, the message, `grpc-status` in Huffman
    /// code.
    fn reply(stream: u32, status: u8, message: &[u8]) -> Vec<u8> {
        let mut bytes = headers(stream, 0, &hex("20 88 5f 8b 1d75d0620d263d4c4d6564"));
        let mut data = vec![0];
        data.extend((message.len() as u32).to_be_bytes());
        data.extend_from_slice(message);
        let (first, second) = data.split_at(data.len() / 2);
        bytes.extend(frame(0, 0, stream, first));
        bytes.extend(frame(0, 0, stream, second));
        let mut trailers = hex("40 88 9acac8b21234da8f 01");
        trailers.push(status);
        trailers.extend(hex("40 89 9acac8b5254207317f 00"));
        bytes.extend(headers(stream, 1, &trailers));
        bytes
    }

    #[test]
    fn connection_opens_with_preface_and_acknowledges_settings() {
        let mut fixture = Fixture::new(System::Etcd);
        let mut out = Vec::new();
        fixture.session.settle(&mut out).unwrap();
        assert!(out.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        fixture.receive(&frame(4, 0, 0, &hex("0005 00004000")), 2).unwrap();
        assert_eq!(fixture.out, frame(4, 1, 0, &[]));
    }

    #[test]
    fn requests_are_the_protocol_buffers_of_etcd() {
        let mut fixture = Fixture::new(System::Etcd);
        let root = |action| Operation { action, key: Key::Root };
        let value = fixture.values.of(Key::Root).to_vec();
        let put = [&hex("0a 06")[..], b"/bench", &hex("12 10"), &value].concat();
        let compare = [&hex("08 00 10 01 1a 06")[..], b"/bench", &hex("28 00")].concat();
        let txn = [&hex("0a 0e")[..], &compare, &hex("12 1c 12 1a"), &put].concat();
        let range = [&hex("0a 06")[..], b"/bench", &hex("38 01")].concat();
        let expected = [(Action::Set, put), (Action::Create, txn), (Action::Get, range)];
        for (action, message) in expected {
            let sent = fixture.request(root(action));
            assert!(sent.ends_with(&message), "{action:?}: {sent:x?}");
            let prefix = &sent[sent.len() - message.len() - 5..sent.len() - message.len()];
            assert_eq!(prefix, [0, 0, 0, 0, message.len() as u8]);
        }
    }

    #[test]
    fn replies_are_judged_whatever_their_order() {
        let mut fixture = Fixture::new(System::Etcd);
        let [get, create, absent, broken] = [
            operation(Action::Get, 5),
            operation(Action::Create, 6),
            operation(Action::Get, 7),
            operation(Action::Set, 8),
        ];
        for operation in [get, create, absent, broken] {
            fixture.request(operation);
        }
        let value = fixture.values.of(get.key).to_vec();
        let found = [&hex("0a 00 12 12 2a 10")[..], &value].concat();
        let mut bytes = frame(4, 0, 0, &[]);
        bytes.extend(reply(5, b'0', &hex("0a 00")));
        bytes.extend(reply(1, b'0', &found));
        // An error has no message: its status is in the first and only headers.
        bytes.extend(headers(7, 1, &hex("88 40 88 9acac8b21234da8f 02 3134")));
        bytes.extend(reply(3, b'0', &hex("0a 00")));
        fixture.receive(&bytes, 11).unwrap();
        let expected = [
            (absent, Err(Refusal::NO_NODE)),
            (get, Ok(())),
            (broken, Err(Refusal(14))),
            (create, Err(Refusal::NODE_EXISTS)),
        ];
        assert_eq!(fixture.answered, expected);
        assert_eq!(Refusal(14).to_string(), "gRPC status 14");
    }

    #[test]
    fn a_value_of_another_key_ends_the_run() {
        let mut fixture = Fixture::new(System::Etcd);
        fixture.request(operation(Action::Get, 5));
        let value = fixture.values.of(Key::Kept(6)).to_vec();
        let message = [&hex("12 12 2a 10")[..], &value].concat();
        let bytes = [frame(4, 0, 0, &[]), reply(1, b'0', &message)].concat();
        let error = fixture.receive(&bytes, 1000).unwrap_err();
        assert!(format!("{error:#}").contains("the value is another one"), "{error:#}");
    }

    #[test]
    fn pings_are_answered_and_what_is_not_http_2_ends_the_run() {
        let mut fixture = Fixture::new(System::Etcd);
        fixture.session.settle(&mut Vec::new()).unwrap();
        let mut bytes = frame(4, 0, 0, &[]);
        bytes.extend(frame(6, 0, 0, &[9; 8]));
        fixture.receive(&bytes, 5).unwrap();
        assert!(fixture.out.ends_with(&frame(6, 1, 0, &[9; 8])), "{:x?}", fixture.out);
        fixture.request(operation(Action::Set, 1));
        assert!(fixture.receive(&headers(1, 1, &hex("be")), 1000).is_err(), "no such header");
    }
}
