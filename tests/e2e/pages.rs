//! The pages of a node for operators: figures, whether it lives, whether it serves.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_tests::http::{OPEN_METRICS, get, pages_in, send};
use millrace_tests::open_metrics::{self, Families};
use millrace_tests::process::{Process, program};
use millrace_tests::{BLOCK, Node, NodeOptions, Scratch, wait_until};

fn node_with_pages(scratch: &Scratch) -> NodeOptions {
    NodeOptions::new(scratch.root()).set("http", "127.0.0.1:0")
}

fn figures(node: &Node) -> Families {
    let page = get(node.pages(), "/metrics", OPEN_METRICS);
    assert_eq!(page.status, 200);
    assert!(page.head.contains("application/openmetrics-text; version=1.0.0"), "{}", page.head);
    open_metrics::read(&page.body).unwrap_or_else(|why| panic!("{why}\n{}", page.body))
}

/// Returns the sum of a family's samples of this name.
fn sum(families: &Families, family: &str, name: &str) -> f64 {
    let samples = families[family].samples.iter().filter(|(it, ..)| it == name);
    samples.map(|(_, _, value)| value).sum()
}

#[test]
fn figures_are_strict_open_metrics_and_count_what_happens() {
    let scratch = Scratch::new();
    scratch.file("a", 4 * BLOCK as usize);
    // A file that changed a moment ago may be read twice.
    std::thread::sleep(Duration::from_millis(500));
    let node = node_with_pages(&scratch).set("shards", 2).start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    for _ in 0..2 {
        for block in 0..4 {
            peer.read(&entry, block * u64::from(BLOCK), 100).expect("read");
        }
    }
    // A shard reports its gauges when it next has nothing to do.
    wait_until("the blocks are reported", || {
        sum(&figures(&node), "millrace_blocks", "millrace_blocks") == 4.0
    });
    let families = figures(&node);
    assert_eq!(sum(&families, "millrace_miss", "millrace_miss_total"), 4.0);
    assert_eq!(sum(&families, "millrace_hit_bytes", "millrace_hit_bytes_total"), 400.0);
    assert_eq!(families["millrace_hit_bytes"].unit, "bytes");
    assert_eq!(families["millrace_cpu_seconds"].unit, "seconds");
    // Four reads found their blocks, and four had to wait for them.
    for stem in ["hit", "fill", "source"] {
        let family = &format!("millrace_{stem}_duration_seconds");
        assert_eq!(sum(&families, family, &format!("{family}_count")), 4.0, "{family}");
    }
    assert_eq!(sum(&families, "millrace_fills_under_way", "millrace_fills_under_way"), 0.0);
    assert_eq!(sum(&families, "millrace_ready", "millrace_ready"), 1.0);
    assert!(families["millrace_build"].samples[0].1.contains_key("version"));
    // Every counter that a client sees is here, once for each shard.
    let shards = families["millrace_request"].samples.iter().map(|(_, labels, _)| &labels["shard"]);
    assert_eq!(shards.collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(families.values().filter(|family| family.samples.len() == 2).count(), 56);
}

#[test]
fn promtool_has_nothing_against_the_figures() {
    let scratch = Scratch::new();
    let node = node_with_pages(&scratch).start();
    let page = get(node.pages(), "/metrics", "*/*");
    assert!(page.head.contains("text/plain; version=0.0.4"), "{}", page.head);
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        return println!("skipped: there is no promtool here");
    };
    let mut input = promtool.stdin.take().expect("a pipe");
    input.write_all(page.body.as_bytes()).expect("promtool reads");
    drop(input);
    let told = promtool.wait_with_output().expect("promtool ends");
    let text =
        String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success() && text.trim().is_empty(), "{text}");
}

#[test]
fn a_node_is_ready_while_it_serves_and_not_while_it_drains() {
    let scratch = Scratch::new();
    scratch.file("a", 16 << 20);
    let options = node_with_pages(&scratch).set("memory", "64MiB").set("drain_timeout_ms", 60_000);
    let mut node = options.start();
    let pages = node.pages();
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(pages, path, "").status, 200, "{path}");
    }
    let status = get(pages, "/status", "");
    assert_eq!(status.status, 200);
    for part in ["\"stage\": \"serving\"", "\"is_ready\": true", "\"hit_count\": 0", "\"queues\""] {
        assert!(status.body.contains(part), "{part} in {}", status.body);
    }
    // Replies that the client does not take keep the node from ending.
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    let ranges: Vec<u8> = (0..256)
        .flat_map(|block| {
            let range = millrace_tests::peer::range(&entry, block * u64::from(BLOCK), BLOCK);
            millrace_tests::peer::request(millrace_proto::Op::Read, 1000 + block, &range)
        })
        .collect();
    peer.send_raw(&ranges);
    wait_until("replies are in flight", || node.counter("miss_count") > 0);
    node.terminate();
    wait_until("the node drains", || get(pages, "/readyz", "").status == 503);
    assert_eq!(get(pages, "/livez", "").status, 200);
    assert!(get(pages, "/status", "").body.contains("\"stage\": \"draining\""));
    drop(peer);
    node.wait();
}

#[test]
fn a_node_that_waits_for_coordination_lives_and_is_not_ready() {
    let scratch = Scratch::new();
    let mut command = Command::new(program().expect("a binary"));
    let cluster = ["--coord=zk://127.0.0.1:1/millrace", "--insecure", "--admin=", "--memory=16MiB"];
    let pages = ["--listen=127.0.0.1:0", "--http=127.0.0.1:0", "--block-size=64KiB", "--shards=1"];
    command.arg("node").arg(scratch.root()).args(cluster).args(pages);
    let mut process = Process::spawn("the node", &mut command).expect("spawn a node");
    wait_until("pages are served", || pages_in(&process.log()).is_some());
    let pages = pages_in(&process.log()).expect("they are");
    let ready = get(pages, "/readyz", "");
    assert_eq!((ready.status, ready.body.as_str()), (503, "starting\n"));
    assert_eq!(get(pages, "/livez", "").status, 200);
    let text = get(pages, "/metrics", OPEN_METRICS).body;
    let families = open_metrics::read(&text).expect("figures of a node that starts");
    assert_eq!(sum(&families, "millrace_ready", "millrace_ready"), 0.0);
    process.kill();
}

#[test]
fn requests_to_the_pages_are_bounded_and_change_nothing() {
    let scratch = Scratch::new();
    let node = node_with_pages(&scratch).start();
    let pages = node.pages();
    assert_eq!(get(pages, "/", "").status, 404);
    assert_eq!(send(pages, b"POST /status HTTP/1.1\r\nContent-Length: 0\r\n\r\n").status, 405);
    assert_eq!(send(pages, b"DELETE /status HTTP/1.1\r\n\r\n").status, 405);
    assert_eq!(send(pages, b"no request\r\n\r\n").status, 400);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 << 10));
    assert_eq!(send(pages, long.as_bytes()).status, 431);
    // Idle connections take all places; clients are still served.
    let idle: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(pages).expect("connect")).collect();
    wait_until("further ones are closed", || get(pages, "/livez", "").status == 0);
    assert_eq!(node.counter("error_count"), 0);
    drop(idle);
    wait_until("places are free again", || get(pages, "/livez", "").status == 200);
}

#[test]
fn pages_are_off_unless_they_are_asked_for() {
    let scratch = Scratch::new();
    let node = Node::serve(scratch.root());
    assert_eq!(pages_in(&node.log()), None);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let told = NodeOptions::new(scratch.root()).set("http", address).start_in_vain();
    assert!(told.contains(&format!("listen on {address}")), "{told}");
}
