//! Neighbours whose small requests are dear.

use std::io::Write;

use millrace_proto::Op;
use millrace_proto::message::{ListRequest, LoadRequest};
use millrace_tests::Node;
use millrace_tests::peer::request;

use crate::street::{Busy, Street, neighbour, sparse};

/// Files of the directory: enough that to go through all takes long.
const FILES: usize = 20_000;

fn crowded_street() -> Street {
    let street = Street::new();
    let folder = street.scratch.at("many");
    std::fs::create_dir(&folder).expect("make a directory");
    for index in 0..FILES {
        std::fs::write(folder.join(format!("{index:06}")), b"y").expect("write a file");
    }
    street.once()
}

/// Fills the cache with a block of each file.
fn fill(node: &Node) {
    let mut peer = node.peer();
    for index in 0..FILES {
        peer.send(Op::Load, &LoadRequest { path: format!("many/{index:06}") });
        // A few under way at once.
        if index >= 16 {
            peer.receive();
        }
    }
    (0..16.min(FILES)).for_each(|_| drop(peer.receive()));
}

#[test]
fn one_that_frees_a_file_of_many_blocks_again_and_again() {
    let street = crowded_street().set("memory", "160MiB").set("files_max", 100_000);
    sparse(&street.scratch, "huge", 1 << 40);
    street.judge(|node| {
        fill(node);
        let address = node.address();
        Box::new(Busy::start(1, move |_| {
            let mut peer = neighbour(address);
            // The node has to know the file, or there would be nothing to look for.
            let _ = peer.stat("huge");
            let free = request(Op::Free, 5, &LoadRequest { path: "huge".to_owned() });
            let mut begun = false;
            Box::new(move || {
                if !std::mem::replace(&mut begun, true) {
                    peer.stream.write_all(&free.repeat(32))?;
                }
                peer.try_receive()?;
                peer.stream.write_all(&free)
            })
        }))
    });
}

#[test]
fn those_that_list_a_large_directory_entry_by_entry() {
    crowded_street().judge(|node| {
        let address = node.address();
        Box::new(Busy::start(16, move |index| {
            let mut peer = neighbour(address);
            let mut at = index * 1000;
            Box::new(move || {
                at = (at + 7) % FILES;
                let token = format!("{at:06}");
                let list = ListRequest { path: "many".to_owned(), token, limit: 1 };
                peer.stream.write_all(&request(Op::List, 1, &list))?;
                // Slow answers are answers.
                match peer.try_receive() {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        peer = neighbour(address);
                        Ok(())
                    }
                    other => other.map(drop),
                }
            })
        }))
    });
}
