//! The checks when all faults are over: of ephemeral nodes, and that all replicas hold one tree.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::{Error, Request, Stat};
use millrace_tests::coord::{Client, Ensemble, Failure};

use super::{SESSION_MS, Shared, Worker};

/// How long a session may outlive its time-out: buckets of expiry, and the last election.
const GRACE: Duration = Duration::from_secs(5);

/// Checks that the nodes of living sessions are there, at every replica, and that all others are gone
/// when the time of the last session is over.
///
/// # Errors
/// One that should not be there is, or the other way round.
pub(super) fn check_ephemerals(
    ensemble: &Ensemble,
    shared: &Shared,
    workers: &mut [Worker],
) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_millis(SESSION_MS as u64) + GRACE;
    let mut expected = Vec::new();
    for worker in &mut *workers {
        let (_, path) = worker.living().ok_or("a worker ended without a session")?;
        expected.push(path.trim_start_matches("/ephemerals/").to_owned());
    }
    expected.sort_unstable();
    loop {
        for worker in &mut *workers {
            let (client, path) = worker.living().ok_or("a worker ended without a session")?;
            let path = path.to_owned();
            client.ping().map_err(|failure| format!("the session of {path}: {failure:?}"))?;
        }
        let mut lists = Vec::new();
        for replica in &ensemble.replicas {
            let mut client = replica.client();
            let list = client.sync().and_then(|()| client.children("/ephemerals", false));
            lists.push(list.map_err(|failure| format!("replica {}: {failure:?}", replica.id()))?);
            let closed = client.close();
            closed.map_err(|failure| format!("replica {}: {failure:?}", replica.id()))?;
        }
        if lists.iter().all(|list| *list == expected) {
            break;
        }
        let is_missing = |name: &String| lists.iter().any(|list| !list.contains(name));
        if let Some(missing) = expected.iter().find(|name| is_missing(name)) {
            return Err(format!("{missing} of a living session is gone: {lists:?}"));
        }
        if Instant::now() > deadline {
            return Err(format!("expected {expected:?}, the replicas have {lists:?}"));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let abandoned = shared.abandoned.lock().unwrap_or_else(PoisonError::into_inner).len();
    println!(
        "{} sessions live and have their nodes, {abandoned} are gone with theirs",
        expected.len()
    );
    Ok(())
}

/// A node as clients can see it: data, Stat, and ACL with its version.
type Node = (Option<Vec<u8>>, Stat, Vec<u8>);

fn read_tree(client: &mut Client, path: &str) -> Result<BTreeMap<String, Node>, Failure> {
    let mut tree = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let (data, stat) = match client.get(&path, false) {
            // Containers and TTL nodes are not used here, so no node goes by itself.
            Err(failure) if failure.is(Error::NoNode) => continue,
            read => read?,
        };
        let acl = client.call(&Request::GetAcl { path: &path })?.ok()?;
        for child in client.children(&path, false)? {
            left.push(format!("{}/{child}", path.trim_end_matches('/')));
        }
        tree.insert(path, (data, stat, acl.body));
    }
    Ok(tree)
}

/// Checks that every replica holds the same nodes, to the last field.
///
/// # Errors
/// The first difference.
pub(super) fn check_trees(ensemble: &Ensemble) -> Result<(), String> {
    let mut first: Option<BTreeMap<String, Node>> = None;
    for replica in &ensemble.replicas {
        let mut client = replica.client();
        let tree = client.sync().and_then(|()| read_tree(&mut client, "/"));
        let tree = tree.map_err(|failure| format!("replica {}: {failure:?}", replica.id()))?;
        let Some(first) = &first else {
            first = Some(tree);
            continue;
        };
        for path in first.keys().chain(tree.keys()) {
            if first.get(path) != tree.get(path) {
                return Err(format!(
                    "replicas 1 and {} differ at {path}: {:?} and {:?}",
                    replica.id(),
                    first.get(path),
                    tree.get(path)
                ));
            }
        }
    }
    println!("all replicas hold the same {} nodes", first.map_or(0, |tree| tree.len()));
    Ok(())
}
