//! The memory of a node is there when it listens, or the node says at once what is missing.

use millrace_tests::{NodeOptions, Scratch};

const MIB: u64 = 1 << 20;

#[test]
fn a_node_has_its_memory_when_it_listens_unless_told_to_take_it_later() {
    let scratch = Scratch::new();
    let options = NodeOptions::new(scratch.root()).set("memory", "64MiB").set("shards", 2);
    let node = options.start();
    let (shared, resident) = (node.memory().shared, node.memory().resident);
    assert!(shared >= 56 * MIB, "{} MiB of blocks are there", shared / MIB);
    assert!(resident - shared < 64 * MIB, "{} MiB besides", (resident - shared) / MIB);
    node.stop();
    let node = options.set("populate", "false").start();
    let shared = node.memory().shared;
    assert!(shared < 8 * MIB, "{} MiB of blocks are there", shared / MIB);
    node.stop();
}

#[test]
fn a_node_larger_than_its_machine_does_not_start() {
    let text = std::fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    let kib = line.split_whitespace().next().and_then(|it| it.parse::<u64>().ok());
    let total = kib.expect("a number") >> 10;
    let scratch = Scratch::new();
    let options = NodeOptions::new(scratch.root()).set("block_size", "1MiB");
    for populate in [true, false] {
        let memory = format!("{}MiB", total + 1);
        let refused = options.clone().set("memory", memory).set("populate", populate);
        let refused = refused.start_in_vain();
        let expected = format!("memory is {} MiB", total + 1);
        assert!(refused.contains(&expected), "both numbers: {refused}");
        assert!(refused.contains(" MiB for it"), "both numbers: {refused}");
        assert!(refused.contains("hint: lower memory"), "{refused}");
    }
}
