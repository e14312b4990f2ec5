//! What pages say of a node's stages.

use std::time::Duration;

use super::*;
use crate::mailbox::Mailbox;

fn told() -> Told {
    let (stage, sources) = (AtomicU8::new(Stage::Serving as u8), OnceLock::new());
    Told { started: Instant::now(), stage, sources }
}

fn sources(progress: &Arc<Progress>) -> Sources {
    let address: SocketAddr = "127.0.0.1:7070".parse().unwrap();
    let (fills, lookups) = (flume::bounded(1).0, flume::bounded(1).0);
    let cluster = flume::bounded(1).0;
    Sources {
        address,
        shard_addresses: vec![address],
        counters: Arc::new([Counters::default()]),
        progress: Arc::clone(progress),
        timings: Arc::default(),
        hit_times: Arc::default(),
        mailboxes: Arc::new([Mailbox::new(1).unwrap().0]),
        queue: SideQueue::for_tests(fills, lookups, cluster),
    }
}

fn get(told: &Told, path: &str) -> (u16, String) {
    let (path, accept) = (path.to_owned(), String::new());
    let request = Request { method: Method::Get, path, accept, body: Vec::new() };
    let response = told.answer(&request);
    (response.status, response.body)
}

#[test]
fn a_node_that_is_fenced_or_drains_is_not_ready() {
    let (told, progress) = (told(), Arc::<Progress>::default());
    told.sources.set(sources(&progress)).ok().unwrap();
    assert_eq!(get(&told, "/readyz"), (200, "ok\n".to_owned()));
    progress.set_fenced(true);
    assert_eq!(get(&told, "/readyz").0, 503);
    assert_eq!(get(&told, "/livez").0, 200);
    assert!(get(&told, "/metrics").1.contains("\nmillrace_ready 0\n"));
    assert!(get(&told, "/status?x").1.contains("\"is_fenced\": true"));
    progress.set_fenced(false);
    assert_eq!(get(&told, "/readyz").0, 200);
    for stage in [Stage::Starting, Stage::Draining] {
        told.stage.store(stage as u8, Ordering::Relaxed);
        assert_eq!(get(&told, "/readyz"), (503, format!("{}\n", stage.name())));
    }
}

#[test]
fn the_age_of_the_oldest_fill_is_told() {
    let (told, progress) = (told(), Arc::default());
    let sources = sources(&progress);
    let timings = Arc::clone(&sources.timings);
    told.sources.set(sources).ok().unwrap();
    let fill = timings.begin_fill();
    std::thread::sleep(Duration::from_millis(2));
    let (_, text) = get(&told, "/metrics");
    assert!(text.contains("\nmillrace_fills_under_way 1\n"), "{text}");
    assert!(!text.contains("\nmillrace_oldest_fill_seconds 0\n"), "{text}");
    drop(fill);
    assert!(get(&told, "/metrics").1.contains("\nmillrace_oldest_fill_seconds 0\n"));
}
