//! Requests that come in faster than they are taken, or never become whole.

use super::*;
use crate::connection::ReceiveEnd;

/// Makes a frame of the longest body, less its last byte.
fn part() -> Vec<u8> {
    let mut bytes = vec![0; frame::HEADER_SIZE + frame::BODY_LENGTH_MAX as usize];
    let mut header = Header::request(Op::ReadMany, 5, 0);
    header.body_length = frame::BODY_LENGTH_MAX;
    let mut head = Vec::new();
    frame::encode_empty(&mut head, Header { body_length: 0, ..header });
    // The head is as an encoder would write it, with a body that is never looked at.
    head[12..16].copy_from_slice(&header.body_length.to_le_bytes());
    let checksum = checksum::of(&head[..36]);
    head[36..40].copy_from_slice(&checksum.to_le_bytes());
    bytes[..frame::HEADER_SIZE].copy_from_slice(&head);
    bytes.pop();
    bytes
}

fn closed(node: &Node) -> Vec<Token> {
    let closes = node.actions.iter().filter_map(|(_, action)| match action {
        Action::Close(token) => Some(*token),
        _ => None,
    });
    closes.collect()
}

fn node_for(connections: usize) -> Node {
    let mut node = Node::new(1, 512, 8);
    node.workers[0].limits.connections_max = connections;
    node
}

#[test]
fn silent_parts_of_frames_are_given_up_oldest_first_and_others_are_served() {
    let mut node = node_for(400);
    let part = part();
    let mut holders = Vec::new();
    for at in 0..300 {
        let token = node.workers[0].accept_far(at).unwrap();
        node.receive(at, 0, token, &part);
        holders.push(token);
    }
    assert!(node.workers[0].is_crowded());
    // A polite client whose request comes in two pieces.
    let polite = node.workers[0].accept_far(300).unwrap();
    let request = read(1, 1, 0);
    node.receive(300, 0, polite, &request[..20]);
    assert_eq!(closed(&node), []);
    node.event(1_150, 0, Event::Tick);
    node.receive(1_151, 0, polite, &request[20..]);
    node.end_fills(1_151, |_| Ok(()));
    assert_eq!(node.replies().len(), 1);
    let gone = closed(&node);
    assert!(!gone.is_empty() && gone.len() < 100, "as many as it takes: {}", gone.len());
    assert_eq!(gone, holders[..gone.len()], "the oldest first");
    assert!(!node.workers[0].is_crowded());
    // The rest of them has the ordinary time.
    node.event(10_400, 0, Event::Tick);
    assert_eq!(closed(&node), holders);
    assert_eq!(node.workers[0].stashed, 0);
}

#[test]
fn a_client_that_pipelines_is_never_closed_for_it() {
    let mut node = node_for(200);
    node.reads = false;
    let requests: Vec<u8> = (0..8_000).flat_map(|sequence| read(1, sequence, 0)).collect();
    let tokens: Vec<Token> = (0..100).map(|_| node.workers[0].accept_far(0).unwrap()).collect();
    for token in &tokens {
        for bytes in requests.chunks(RECEIVE_BUFFER_SIZE) {
            node.receive(0, 0, *token, bytes);
        }
    }
    assert!(node.workers[0].is_crowded());
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::ReceiveGently)));
    for now in [500, 5_000, 20_000] {
        node.workers[0].limits.send_timeout_ms = 0;
        node.event(now, 0, Event::Tick);
    }
    assert_eq!(closed(&node), []);
}

#[test]
fn a_client_that_reset_its_connection_holds_no_place() {
    let mut node = node_for(4);
    for _ in 0..100 {
        let token = node.workers[0].accept_far(0).expect("there is a place");
        node.receive(0, 0, token, &read(1, 1, 0));
        // The fill is still out.
        node.event(0, 0, Event::ReceiveEnded { token, end: ReceiveEnd::Reset });
        assert_eq!(closed(&node), [token]);
        node.actions.clear();
        node.event(0, 0, Event::Closed { token });
    }
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    node.end_fills(0, |_| Ok(()));
    assert_eq!(node.replies().len(), 1, "no other answer goes to the one that is here now");
}

#[test]
fn a_client_that_sends_no_more_still_gets_what_it_waits_for_but_not_for_ever() {
    let mut node = node_for(4);
    let tokens = [0, 1].map(|_| node.workers[0].accept_far(0).unwrap());
    for (block, token) in tokens.into_iter().enumerate() {
        node.receive(0, 0, token, &read(block as u32, 1, 0));
        node.event(0, 0, Event::ReceiveEnded { token, end: ReceiveEnd::Finished });
    }
    node.event(60_000, 0, Event::Tick);
    assert_eq!(closed(&node), []);
    node.event(60_001, 0, Event::Tick);
    assert_eq!(closed(&node), tokens);
}
