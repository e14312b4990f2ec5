//! What a connection may ask for, and how it proves that.

use millrace_proto::cluster::{InventoryRequest, PinRequest};
use millrace_proto::proof::{
    ArchivedChallengeReply, ArchivedProof, ChallengeRequest, Exchange, Nonce, Proof, Role, Secret,
    Side,
};

use super::*;

/// Returns what the nodes of these tests know as members.
fn secret() -> Secret {
    Secret::parse(b"0123456789abcdef").unwrap()
}

fn node() -> Node {
    let proofs = Proofs { member: Some(secret()), administrator: None, is_insecure: false };
    Node::with_proofs(1, 256, 4, proofs)
}

/// Asks something; returns status and body of the only reply, if there is one already.
fn ask(node: &mut Node, token: Token, request: &[u8]) -> Option<(Status, Vec<u8>)> {
    node.receive(0, 0, token, request);
    let (_, _, bytes) = node.sent.pop()?;
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    Some((header.status(), bytes[HEADER_SIZE..][..header.body_length as usize].to_vec()))
}

fn challenge(node: &mut Node, token: Token, role: u8, run: u64) -> Result<Nonce, Status> {
    let request = ChallengeRequest { role, node: run, nonce: [1; 32] };
    let (status, body) = ask(node, token, &encoded(Op::Challenge, 1, 0, &request)).unwrap();
    match status {
        Status::Ok => Ok(frame::body::<ArchivedChallengeReply>(&body).unwrap().nonce),
        status => Err(status),
    }
}

fn prove(node: &mut Node, token: Token, mac: [u8; 32]) -> Result<[u8; 32], Status> {
    let (status, body) = ask(node, token, &encoded(Op::Prove, 2, 0, &Proof { mac })).unwrap();
    match status {
        Status::Ok => Ok(frame::body::<ArchivedProof>(&body).unwrap().mac),
        status => Err(status),
    }
}

fn inventory() -> Vec<u8> {
    encoded(Op::Inventory, 3, 0, &InventoryRequest { key: 1, epoch: 0, cursor: 0 })
}

#[test]
fn a_right_proof_makes_a_member_of_its_connection_and_is_answered_by_ours() {
    let mut node = node();
    let [token, other] = [(); 2].map(|()| node.workers[0].accept_far(0).unwrap());
    assert_eq!(ask(&mut node, token, &inventory()).unwrap().0, Status::PermissionDenied);
    let answer = challenge(&mut node, token, Role::Member as u8, 1).unwrap();
    let exchange = Exchange { role: Role::Member as u8, node: 1, client: [1; 32], answer };
    let mac = prove(&mut node, token, exchange.proof(&secret(), Side::Client)).unwrap();
    assert!(exchange.verify(&secret(), Side::Node, &mac));
    assert!(ask(&mut node, token, &inventory()).is_none(), "it is looked up");
    assert_eq!(ask(&mut node, other, &inventory()).unwrap().0, Status::PermissionDenied);
}

#[test]
fn what_was_heard_before_or_sent_by_the_node_itself_proves_nothing() {
    let mut node = node();
    let token = node.workers[0].accept_far(0).unwrap();
    let role = Role::Member as u8;
    let answer = challenge(&mut node, token, role, 0).unwrap();
    let exchange = Exchange { role, node: 0, client: [1; 32], answer };
    let ours = exchange.proof(&secret(), Side::Node);
    assert_eq!(prove(&mut node, token, ours), Err(Status::PermissionDenied));
    // A challenge serves for one try.
    let right = exchange.proof(&secret(), Side::Client);
    assert_eq!(prove(&mut node, token, right), Err(Status::PermissionDenied));
    // The same challenge never comes again: not from this shard, nor from another one.
    let again = challenge(&mut node, token, role, 0).unwrap();
    assert_ne!(again, answer);
    assert_eq!(prove(&mut node, token, right), Err(Status::PermissionDenied));
    let mut shards = [0, 1].map(|shard| super::super::prove::Nonces::new(&[7; 32], shard));
    let [first, second] = &mut shards;
    assert_ne!(first.next(), second.next());
}

#[test]
fn roles_runs_and_secrets_that_are_not_known_are_refused() {
    let mut node = node();
    let token = node.workers[0].accept_far(0).unwrap();
    let member = Role::Member as u8;
    assert_eq!(challenge(&mut node, token, 0, 0), Err(Status::InvalidArgument));
    assert_eq!(challenge(&mut node, token, 3, 0), Err(Status::InvalidArgument));
    assert_eq!(challenge(&mut node, token, member, 2), Err(Status::PermissionDenied));
    let administrator = Role::Administrator as u8;
    assert_eq!(challenge(&mut node, token, administrator, 0), Err(Status::PermissionDenied));
    assert!(challenge(&mut node, token, member, 0).is_ok());
}

#[test]
fn administrators_have_room_when_clients_have_taken_all() {
    let mut node = node();
    let clients = (0..).map_while(|_| node.workers[0].accept_far(0)).count();
    assert_eq!(clients, limits().connections_max);
    let token = node.workers[0].accept(0, Way::Admin, Loads::default()).unwrap();
    let pin = encoded(Op::Pin, 4, 0, &PinRequest { path: "f".into(), undo: 0 });
    assert!(ask(&mut node, token, &pin).is_none(), "it is looked up");
}
