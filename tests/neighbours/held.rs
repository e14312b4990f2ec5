//! Neighbours that hold what others need: blocks, room for requests, connections, the log.

use std::any::Any;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::{Entry, ReadManyRequest};
use millrace_proto::{Header, Op, frame};
use millrace_tests::peer::{range, request};
use millrace_tests::process::unread_log;
use millrace_tests::{BLOCK, Node, Peer};
use rustix::process::Signal;

use crate::street::{Busy, Street, neighbour, sparse};

/// Asks for some whole blocks, which fill the socket, and then for a byte of each block in memory, so that
/// all of them wait for the socket.
fn ask_for_a_byte_of_each(peer: &mut Peer, entry: &Entry, blocks: u64) -> std::io::Result<()> {
    let block = u64::from(BLOCK);
    let whole = (0..128).map(|index| request(Op::Read, index, &range(entry, index * block, BLOCK)));
    peer.stream.write_all(&whole.flatten().collect::<Vec<u8>>())?;
    for id in 1000..1003 {
        // The second time, what was not cached the first time is.
        std::thread::sleep(Duration::from_millis(100));
        let ranges = (0..blocks).map(|index| range(entry, index * block, 1)).collect();
        peer.stream.write_all(&request(Op::ReadMany, id, &ReadManyRequest { ranges }))?;
    }
    Ok(())
}

/// Loads as many blocks of a file into memory as fit.
fn fill_memory(peer: &mut Peer) -> (Entry, u64) {
    let entry = peer.stat("pinned").expect("stat");
    let blocks = peer.counter("capacity_bytes") / u64::from(BLOCK);
    for index in 0..2 * blocks {
        // Whether or not it was busy, most of the block is there then.
        let _ = peer.read(&entry, index % blocks * u64::from(BLOCK), 1);
    }
    (entry, blocks)
}

fn pinning_street() -> Street {
    let street = Street::new();
    sparse(&street.scratch, "pinned", 64 << 20);
    street
}

#[test]
fn one_that_reads_nothing() {
    pinning_street().judge(|node| {
        let mut peer = node.peer();
        let (entry, blocks) = fill_memory(&mut peer);
        rustix::net::sockopt::set_socket_recv_buffer_size(&peer.stream, 4096).expect("SO_RCVBUF");
        // The node may close it at once: then it holds nothing.
        let _ = ask_for_a_byte_of_each(&mut peer, &entry, blocks);
        Box::new(peer)
    });
}

#[test]
fn one_that_reads_a_byte_now_and_then() {
    pinning_street().judge(|node| {
        let address = node.address();
        Box::new(Busy::start(1, move |_| {
            let mut peer = neighbour(address);
            let (entry, blocks) = fill_memory(&mut peer);
            // The node closes it at some time; then there is nothing more to read.
            let _ = ask_for_a_byte_of_each(&mut peer, &entry, blocks);
            Box::new(move || {
                std::thread::sleep(Duration::from_millis(50));
                peer.stream.read_exact(&mut [0])
            })
        }))
    });
}

#[test]
fn those_that_send_a_part_of_a_frame_and_are_silent() {
    Street::new().judge(|node| {
        let body = vec![0; 64 << 10];
        let mut head = [0; frame::HEADER_SIZE];
        let mut header = Header::request(Op::ReadMany, 5, 0);
        header.body_length = body.len() as u32;
        header.encode(&mut head);
        let part = [&head[..], &body[..body.len() - 1]].concat();
        // The node keeps at most 16 MiB of such parts: this fills them.
        let whole = std::iter::repeat_n(part.len(), 256);
        let rest = (5..16).rev().map(|power| 1 << power);
        let peers = whole.chain(rest.clone()).chain(rest).map(|length| {
            let mut peer = neighbour(node.address());
            // The node may close it: then it holds nothing.
            let _ = peer.stream.write_all(&part[..length]);
            std::thread::sleep(Duration::from_millis(5));
            peer
        });
        Box::new(peers.collect::<Vec<_>>())
    });
}

/// Reads all that was asked for, and keeps within what a client may do. Together the peers want the
/// whole node, so times are not judged: each waits its turn.
#[test]
fn those_that_pipeline_after_a_pause() {
    const CLIENTS: usize = 200;
    const READS: u64 = 3500;
    Street::new().without_times().judge(|node| {
        let address = node.address();
        let (sender, ended) = std::sync::mpsc::channel();
        // The node takes them for peers of many machines.
        let from = |index: usize| IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + (index % 50) as u8));
        let peers = (0..CLIENTS).map(|index| Peer::connect_from(from(index), address));
        let mut peers: Vec<Peer> = peers.collect::<Result<_, _>>().expect("connect");
        // They were connected before, and sent something.
        assert!(peers.iter_mut().all(Peer::ping));
        let hot = peers[0].stat("hot").expect("stat");
        let requests = (0..READS).map(|index| request(Op::Read, index, &range(&hot, 0, 8192)));
        let requests: Vec<u8> = requests.flatten().collect();
        let peers = Arc::new(peers);
        // The machine is short of processors.
        node.signal(Signal::STOP);
        let busy = Busy::start(CLIENTS, move |index| {
            let mut peer = peers[index].stream.try_clone().map(Peer::over).expect("a handle");
            let (sender, requests) = (sender.clone(), requests.clone());
            Box::new(move || {
                let mut sending = peer.stream.try_clone()?;
                let requests = requests.clone();
                let sending = std::thread::spawn(move || sending.write_all(&requests));
                // It reads from half a second after the node went on.
                std::thread::sleep(Duration::from_millis(2000));
                for _ in 0..READS {
                    if let Err(error) = peer.try_receive() {
                        let _ = sender.send(error.to_string());
                        return Err(error);
                    }
                }
                sending.join().expect("a sender")?;
                // Once is enough.
                Err(std::io::ErrorKind::Other.into())
            })
        });
        std::thread::sleep(Duration::from_millis(1500));
        node.signal(Signal::CONT);
        Box::new(Unbroken { busy: Some(busy), ended })
    });
}

/// Neighbours that are to be served to the end.
struct Unbroken {
    busy: Option<Busy>,
    ended: std::sync::mpsc::Receiver<String>,
}

impl Drop for Unbroken {
    fn drop(&mut self) {
        drop(self.busy.take());
        let ended: Vec<String> = self.ended.try_iter().collect();
        if !std::thread::panicking() {
            assert_eq!(ended, [""; 0], "clients within the rules were let go");
        }
    }
}

#[test]
fn one_that_takes_every_connection() {
    let street = Street::new().set("connections_max", 128).set("connections_per_peer_max", 96);
    street.by_socket().judge(|node| {
        let peers: Vec<Peer> = (0..160).map(|_| neighbour(node.address())).collect();
        Box::new(peers)
    });
}

/// Closes connections in a way that is logged, while the log has no reader.
#[test]
fn a_log_reader_that_does_not_read() {
    let street = Street::new().set("send_timeout_ms", 100);
    sparse(&street.scratch, "pinned", 64 << 20);
    let kept = std::cell::RefCell::new(Vec::new());
    let start = || -> Node {
        let (reader, log) = unread_log();
        kept.borrow_mut().push(reader);
        street.options.start_logging_to(log)
    };
    street.judge_nodes(start, |node| -> Box<dyn Any> {
        let address = node.address();
        Box::new(Busy::start(2, move |_| {
            Box::new(move || {
                let mut peers: Vec<Peer> = (0..4).map(|_| neighbour(address)).collect();
                for peer in &mut peers {
                    rustix::net::sockopt::set_socket_recv_buffer_size(&peer.stream, 4096)?;
                    let Ok(entry) = peer.stat("pinned") else { continue };
                    let reads = (0..200).map(|it| request(Op::Read, it, &range(&entry, 0, BLOCK)));
                    peer.stream.write_all(&reads.flatten().collect::<Vec<u8>>())?;
                }
                std::thread::sleep(Duration::from_millis(300));
                Ok(())
            })
        }))
    });
}
