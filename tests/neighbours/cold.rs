//! Neighbours that keep the source busy, or leave work behind.

use std::io::Write;
use std::time::Duration;

use millrace_proto::Op;
use millrace_proto::message::{LoadRequest, ReadManyRequest};
use millrace_tests::BLOCK;
use millrace_tests::peer::{range, request};

use crate::street::{Busy, Street, neighbour, sparse};

/// A file that takes no room and hours to load.
const HUGE: u64 = 8 << 40;

#[test]
fn one_that_reads_a_byte_of_cold_blocks_without_end() {
    let street = Street::new();
    sparse(&street.scratch, "huge", HUGE);
    street.judge(|node| {
        let address = node.address();
        Box::new(Busy::start(1, move |_| {
            let mut peer = neighbour(address);
            let huge = peer.stat("huge").expect("stat");
            let (mut next, mut under_way) = (0_u64, 0);
            Box::new(move || {
                while under_way <= 192 {
                    let ranges = (next..next + 64)
                        .map(|block| range(&huge, block * u64::from(BLOCK), 1))
                        .collect();
                    peer.stream.write_all(&request(
                        Op::ReadMany,
                        next,
                        &ReadManyRequest { ranges },
                    ))?;
                    next += 64;
                    under_way += 64;
                }
                under_way -= 1;
                peer.try_receive().map(drop)
            })
        }))
    });
}

#[test]
fn loads_of_one_that_is_gone() {
    let street = Street::new();
    for index in 0..64 {
        sparse(&street.scratch, &format!("huge{index}"), HUGE);
    }
    street.judge(|node| {
        let mut peer = neighbour(node.address());
        for index in 0..64 {
            peer.send(Op::Load, &LoadRequest { path: format!("huge{index}") });
        }
        std::thread::sleep(Duration::from_millis(300));
        drop(peer);
        Box::new(())
    });
}

#[test]
fn connections_that_are_reset_while_a_request_is_under_way() {
    let street = Street::new().set("connections_max", 64).set("load_concurrency", 1000);
    for index in 0..100 {
        sparse(&street.scratch, &format!("huge{index}"), HUGE);
    }
    street.judge(|node| {
        for index in 0..100 {
            let mut peer = neighbour(node.address());
            let load = LoadRequest { path: format!("huge{index}") };
            // It may be refused because it has no slot, which is its own fault.
            let _ = peer.stream.write_all(&request(Op::Load, 1, &load));
            std::thread::sleep(Duration::from_millis(2));
            peer.reset();
        }
        Box::new(())
    });
}
