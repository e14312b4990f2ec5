//! A whole node in this process, as a program that embeds one has it.

use millrace_client::{ClientConfig, Error, Status, blocking::Client};
use millrace_node::{Config, Node};

#[test]
fn serves_a_file_and_stops_cleanly() {
    let root = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(200_000).collect();
    std::fs::write(root.path().join("a"), &bytes).unwrap();
    let node = Node::start(Config::tiny(root.path().to_owned())).unwrap();
    let client = Client::connect(node.address().to_string(), ClientConfig::new()).unwrap();
    let file = client.stat("a").unwrap();
    assert_eq!(file.length, 200_000);
    for _ in 0..2 {
        for (offset, length) in
            [(0, 65536), (4096, 8192), (65536 + 10, 100), (131_072, 65536), (196_608, 65536)]
        {
            let end = (offset as usize + length as usize).min(bytes.len());
            assert_eq!(client.read(&file, offset, length).unwrap(), &bytes[offset as usize..end]);
        }
    }
    let absent = client.stat("b").unwrap_err();
    assert!(matches!(absent, Error::Status { status: Status::NotFound, .. }), "{absent}");
    drop(client);
    assert!(node.stop().clean);
}
