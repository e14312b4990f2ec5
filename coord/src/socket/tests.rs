//! Real loopback sockets: what comes out of an inbox is what went in, however it was cut up.

use std::io::Write;
use std::net::Ipv4Addr;

use super::*;

/// Returns a connected pair: the test writes the first, the code under test reads the second.
fn pair() -> (std::net::TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, TcpStream::from_std(theirs))
}

/// Cuts messages of a length and that many bytes.
fn cut(bytes: &[u8], messages: &mut Vec<Vec<u8>>) -> Cut {
    let mut consumed = 0;
    loop {
        let rest = &bytes[consumed..];
        let Some(head) = rest.first_chunk::<4>() else { return Cut { consumed, needed: 4 } };
        let needed = 4 + u32::from_be_bytes(*head) as usize;
        let Some(message) = rest.get(4..needed) else { return Cut { consumed, needed } };
        messages.push(message.to_vec());
        consumed += needed;
    }
}

#[test]
fn messages_come_out_as_they_went_in() {
    let (mut ours, theirs) = pair();
    let mut random = fastrand::Rng::with_seed(7);
    let sent: Vec<Vec<u8>> = (0..300)
        .map(|index| {
            // Mostly small, some longer than the shared buffer of this test.
            let size = if index % 50 == 0 { 70_000 } else { random.usize(0..900) };
            (0..size).map(|_| random.u8(..)).collect()
        })
        .collect();
    let mut bytes = Vec::new();
    for message in &sent {
        bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        bytes.extend_from_slice(message);
    }
    let writer = std::thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let size = random.usize(1..=rest.len().min(5000));
            ours.write_all(&rest[..size]).unwrap();
            rest = &rest[size..];
        }
    });
    let (mut inbox, mut shared, mut messages) = (Inbox::default(), vec![0; 4096], Vec::new());
    loop {
        match inbox.receive(&theirs, &mut shared, |bytes| cut(bytes, &mut messages)).unwrap() {
            Received::End => break,
            Received::Nothing => std::thread::yield_now(),
            Received::Bytes { .. } => {}
        }
    }
    writer.join().unwrap();
    assert!(messages == sent);
    assert!(inbox.kept.is_empty());
}

#[test]
fn an_announced_length_reserves_no_memory() {
    let (mut ours, theirs) = pair();
    ours.write_all(&(60_000_000_u32).to_be_bytes()).unwrap();
    let (mut inbox, mut shared) = (Inbox::default(), vec![0; 4096]);
    for round in 0..50 {
        ours.write_all(&[round; 10]).unwrap();
        while inbox.receive(&theirs, &mut shared, |bytes| cut(bytes, &mut Vec::new())).unwrap()
            == Received::Nothing
        {}
    }
    assert!(inbox.kept.capacity() < 64 * 1024, "{} bytes", inbox.kept.capacity());
}

#[test]
fn what_is_held_back_is_cut_later() {
    let (mut ours, theirs) = pair();
    ours.write_all(b"\0\0\0\x01a\0\0\0\x01b\0\0").unwrap();
    let (mut inbox, mut shared, mut messages) = (Inbox::default(), vec![0; 4096], Vec::new());
    let held = |_: &[u8]| Cut { consumed: 0, needed: 0 };
    while inbox.receive(&theirs, &mut shared, held).unwrap() == Received::Nothing {}
    assert!(!inbox.may_receive());
    inbox.again(|bytes| cut(bytes, &mut messages));
    assert_eq!(messages, [b"a", b"b"]);
    assert!(inbox.may_receive());
    assert_eq!(inbox.kept, b"\0\0");
}

#[test]
fn an_outbox_sends_everything_in_order() {
    let (ours, theirs) = pair();
    let sent: Vec<u8> = (0..8_000_000_u32).map(|index| (index / 7) as u8).collect();
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        { ours }.read_to_end(&mut received).unwrap();
        received
    });
    let mut outbox = Outbox::default();
    for part in sent.chunks(300_000) {
        outbox.tail().extend_from_slice(part);
        outbox.flush(&theirs).unwrap();
    }
    while outbox.len() > 0 {
        outbox.flush(&theirs).unwrap();
        std::thread::yield_now();
    }
    drop(theirs);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn the_wildcard_address_takes_both_families() {
    let listener = listen((Ipv4Addr::UNSPECIFIED, 0).into(), 8).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    }
}

#[test]
fn a_rate_limit_counts_what_it_leaves_out() {
    let mut limit = RateLimit::default();
    assert_eq!(limit.allow(5, "refused"), Some(0));
    assert_eq!(limit.allow(6, "refused"), None);
    assert_eq!(limit.allow(7, "refused"), None);
    assert_eq!(limit.allow(5 + RateLimit::PERIOD_MS, "refused"), Some(2));
}

#[test]
fn another_reason_passes_a_rate_limit_but_not_any_number_of_them() {
    let mut limit = RateLimit::default();
    assert_eq!(limit.allow(5, "refused"), Some(0));
    assert_eq!(limit.allow(6, "refused"), None);
    assert_eq!(limit.allow(7, "lost its data"), Some(1));
    assert_eq!(limit.allow(8, "refused"), None, "the two take turns");
    assert_eq!(limit.allow(9, "lost its data"), None);
    let others = (0..1000).filter(|number| limit.allow(10, &number.to_string()).is_some());
    assert_eq!(others.count(), RateLimit::LINES_MAX - 2);
    let later = 5 + RateLimit::PERIOD_MS;
    assert_eq!(limit.allow(later, "new"), Some(1000 - (RateLimit::LINES_MAX as u64 - 2)));
    assert_eq!(limit.allow(later, "refused"), Some(0), "a period begins with room for all");
}
