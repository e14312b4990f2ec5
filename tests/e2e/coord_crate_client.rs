//! One replica is enough here; what takes three is in `ensemble`.

mod ensemble;

use std::future::Future;
use std::time::Duration;

use millrace_tests::HANG_GUARD;
use millrace_tests::coord::{Ensemble, Options};
use tokio::time::{sleep, timeout};
use zookeeper_client::{
    Acls, AddWatchMode, AuthUser, CheckWriteError, Client, CreateMode, CreateOptions, Error,
    EventType, MultiReadResult, MultiWriteError, MultiWriteResult, SessionId, SessionState, Stat,
    WatchedEvent,
};

/// The longest that servers with ticks of 500 ms grant.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN: Acls<'static> = Acls::anyone_all();
const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(OPEN);
const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(OPEN);
const CONTAINER: CreateOptions<'static> = CreateMode::Container.with_acls(OPEN);

/// Runs a story, which must come to its end, because what a client waits for may never happen.
fn story(story: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async { timeout(HANG_GUARD, story).await.expect("the story hangs") });
}

/// Waits until `holds` returns true; the story's end is the deadline.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Connects a client to the replica that it chooses.
async fn connect(ensemble: &Ensemble) -> Client {
    connect_to(&all(ensemble)).await
}

/// Connects a client with a session of ten seconds.
async fn connect_to(cluster: &str) -> Client {
    let connector = Client::connector().with_session_timeout(SESSION_TIMEOUT);
    connector.connect(cluster).await.expect("a session")
}

fn all(ensemble: &Ensemble) -> String {
    let addresses: Vec<String> = ensemble.addresses().iter().map(ToString::to_string).collect();
    addresses.join(",")
}

/// Makes a node without data.
async fn make(client: &Client, path: &str, options: &CreateOptions<'_>) -> Result<Stat, Error> {
    client.create(path, b"", options).await.map(|(stat, _)| stat)
}

async fn exists(client: &Client, path: &str) -> bool {
    client.check_stat(path).await.expect("an answer").is_some()
}

/// Returns the event by which a watch reports a change.
fn event(kind: EventType, path: &str, zxid: i64) -> WatchedEvent {
    WatchedEvent::new(kind, path).with_zxid(zxid)
}

#[test]
fn a_session_is_negotiated_left_taken_up_closed_and_expired() {
    let ensemble = Ensemble::single(Options::new());
    let address = all(&ensemble);
    story(async {
        let other = connect(&ensemble).await;
        let asked = Client::connector().with_session_timeout(Duration::from_secs(60));
        let client = asked.with_detached().connect(&address).await.expect("a session");
        assert_eq!(client.session_timeout(), SESSION_TIMEOUT, "as long as the server grants");
        let stat = make(&client, "/mine", &EPHEMERAL).await.expect("create");
        assert_eq!(SessionId(stat.ephemeral_owner), client.session_id());

        let (id, mut states) = (client.session_id(), client.state_watcher());
        let session = client.into_session();
        assert_eq!(states.changed().await, SessionState::Closed);
        assert!(exists(&other, "/mine").await, "it was left, not closed");
        let again = Client::connector().with_session(session.clone());
        let client = again.clone().connect(&address).await.expect("it lives");
        assert_eq!(client.session_id(), id);
        assert_eq!(client.list_ephemerals("/").await.expect("list"), ["/mine"]);

        let mut states = client.state_watcher();
        drop(client);
        assert_eq!(states.changed().await, SessionState::Closed);
        assert!(!exists(&other, "/mine").await, "it was closed");
        let refused = again.connect(&address).await.map(|client| client.session_id());
        assert_eq!(refused, Err(Error::SessionExpired));

        let short = Client::connector().with_session_timeout(Duration::from_secs(1));
        let silent = short.with_detached().connect(&address).await.expect("a session");
        make(&silent, "/silent", &EPHEMERAL).await.expect("create");
        let session = silent.into_session();
        until(async || !exists(&other, "/silent").await).await;
        let late = Client::connector().with_session(session).connect(&address).await;
        assert_eq!(late.map(|client| client.session_id()), Err(Error::SessionExpired));
    });
}

#[test]
fn data_versions_children_and_stats_are_as_the_crate_reads_them() {
    let ensemble = Ensemble::single(Options::new());
    story(async {
        let client = connect(&ensemble).await;
        let (made, _) = client.create("/a", b"first", &PERSISTENT).await.expect("create");
        assert_eq!((made.czxid, made.czxid), (made.mzxid, made.pzxid));
        assert_eq!((made.version, made.cversion, made.aversion), (0, 0, 0));
        assert_eq!((made.data_length, made.num_children, made.ephemeral_owner), (5, 0, 0));
        assert!(made.ctime > 0 && made.ctime == made.mtime);
        assert_eq!(client.get_data("/a").await, Ok((b"first".to_vec(), made)));
        assert_eq!(client.check_stat("/a").await, Ok(Some(made)));

        let set = client.set_data("/a", b"", Some(0)).await.expect("set");
        assert_eq!((set.version, set.data_length, set.ctime), (1, 0, made.ctime));
        assert!(set.mzxid > set.czxid && set.czxid == made.czxid);
        assert_eq!(client.set_data("/a", b"x", Some(0)).await, Err(Error::BadVersion));
        assert_eq!(client.get_data("/a").await, Ok((Vec::new(), set)));

        client.mkdir("/a/b/c", &PERSISTENT).await.expect("folders");
        let child = make(&client, "/a/d", &PERSISTENT).await.expect("create");
        let (mut names, stat) = client.get_children("/a").await.expect("list");
        names.sort();
        assert_eq!(names, ["b", "d"]);
        assert_eq!((stat.num_children, stat.cversion, stat.pzxid), (2, 2, child.czxid));
        assert_eq!(client.list_children("/a/b").await.expect("list"), ["c"]);
        assert_eq!(client.count_descendants_number("/a").await, Ok(3));

        assert_eq!(make(&client, "/a", &PERSISTENT).await, Err(Error::NodeExists));
        assert_eq!(make(&client, "/no/child", &PERSISTENT).await, Err(Error::NoNode));
        assert_eq!(client.set_data("/no", b"", None).await, Err(Error::NoNode));
        assert_eq!(client.get_data("/no").await, Err(Error::NoNode));
        assert_eq!(client.list_children("/no").await, Err(Error::NoNode));
        assert_eq!(client.delete("/no", None).await, Err(Error::NoNode));
        assert_eq!(client.delete("/a/b", None).await, Err(Error::NotEmpty));
        assert_eq!(client.delete("/a/d", Some(1)).await, Err(Error::BadVersion));
        assert_eq!(client.delete("/a/d", Some(0)).await, Ok(()));
        assert_eq!(client.check_stat("/a/d").await, Ok(None));
    });
}

#[test]
fn nodes_of_every_kind_live_as_long_as_their_kind_says() {
    let ensemble = Ensemble::single(Options::new().flag("container_check_ms", 50));
    story(async {
        let client = connect(&ensemble).await;
        make(&client, "/mine", &EPHEMERAL).await.expect("create");
        let below = make(&client, "/mine/x", &PERSISTENT).await;
        assert_eq!(below, Err(Error::NoChildrenForEphemerals));

        let sequential = CreateMode::PersistentSequential.with_acls(OPEN);
        let passing = CreateMode::EphemeralSequential.with_acls(OPEN);
        client.mkdir("/queue", &PERSISTENT).await.expect("create");
        for (number, options) in [(0, &sequential), (1, &passing), (2, &sequential)] {
            let (stat, sequence) = client.create("/queue/n-", b"", options).await.expect("create");
            assert_eq!(sequence.into_i64(), number);
            let path = format!("/queue/n-{sequence}");
            assert_eq!(client.check_stat(&path).await, Ok(Some(stat)), "{path}");
        }

        make(&client, "/box", &CONTAINER).await.expect("create");
        make(&client, "/box/item", &PERSISTENT).await.expect("create");
        let brief = PERSISTENT.with_ttl(Duration::from_millis(100));
        let lasting = PERSISTENT.with_ttl(Duration::from_secs(600));
        make(&client, "/lasting", &lasting).await.expect("create");
        make(&client, "/brief", &brief).await.expect("create");
        until(async || !exists(&client, "/brief").await).await;
        assert!(exists(&client, "/lasting").await, "its time has not come");
        assert!(exists(&client, "/box").await, "it has a child");
        client.delete("/box/item", None).await.expect("delete");
        until(async || !exists(&client, "/box").await).await;

        let other = connect(&ensemble).await;
        let mut states = client.state_watcher();
        drop(client);
        assert_eq!(states.changed().await, SessionState::Closed);
        assert!(!exists(&other, "/mine").await);
        let mut names = other.list_children("/queue").await.expect("list");
        names.sort();
        assert_eq!(names, ["n-0000000000", "n-0000000002"]);
    });
}

#[test]
fn a_multi_does_all_or_nothing() {
    let ensemble = Ensemble::single(Options::new());
    story(async {
        let client = connect(&ensemble).await;
        let mut writer = client.new_multi_writer();
        writer.add_create("/m", b"0", &PERSISTENT).expect("add");
        writer.add_create("/m/a", b"", &PERSISTENT).expect("add");
        writer.add_check_version("/m", 0).expect("add");
        writer.add_delete("/m/a", None).expect("add");
        writer.add_set_data("/m", b"1", Some(0)).expect("add");
        let results = writer.commit().await.expect("all of it");
        let (_, stat) = client.get_data("/m").await.expect("get");
        assert_eq!((stat.version, stat.czxid), (1, stat.mzxid), "it was one change");
        let [
            MultiWriteResult::Create { path, .. },
            MultiWriteResult::Create { .. },
            MultiWriteResult::Check,
            MultiWriteResult::Delete,
            MultiWriteResult::SetData { stat: set },
        ] = &results[..]
        else {
            panic!("{results:?}")
        };
        assert_eq!((&path[..], *set), ("/m", stat));

        writer.add_create("/m/b", b"", &PERSISTENT).expect("add");
        writer.add_set_data("/m", b"2", None).expect("add");
        writer.add_check_version("/m", 1).expect("add");
        let failed = MultiWriteError::OperationFailed { index: 2, source: Error::BadVersion };
        assert_eq!(writer.commit().await, Err(failed), "the check sees what was set before it");
        writer.add_create("/m/b", b"", &PERSISTENT).expect("add");
        writer.add_delete("/m", None).expect("add");
        let failed = MultiWriteError::OperationFailed { index: 1, source: Error::NotEmpty };
        assert_eq!(writer.commit().await, Err(failed));
        assert_eq!(client.get_data("/m").await, Ok((b"1".to_vec(), stat)), "nothing of it");

        let mut guarded = client.new_check_writer("/m", Some(7)).expect("a check");
        guarded.add_delete("/m", None).expect("add");
        let failed = CheckWriteError::CheckFailed { source: Error::BadVersion };
        assert_eq!(guarded.commit().await, Err(failed));
        let mut guarded = client.new_check_writer("/m", Some(1)).expect("a check");
        guarded.add_create("/m/c", b"c", &PERSISTENT).expect("add");
        assert_eq!(guarded.commit().await.expect("it holds").len(), 1);

        let mut reader = client.new_multi_reader();
        reader.add_get_data("/m/c").expect("add");
        reader.add_get_data("/m/b").expect("add");
        reader.add_get_children("/m").expect("add");
        let results = reader.commit().await.expect("each has its own result");
        let expected = matches!(&results[..], [
            MultiReadResult::Data { data, .. },
            MultiReadResult::Error { err: Error::NoNode },
            MultiReadResult::Children { children },
        ] if data == b"c" && *children == ["c"]);
        assert!(expected, "{results:?}");
    });
}

#[test]
fn watches_of_all_kinds_tell_what_changed_and_go_when_dropped() {
    use EventType::{NodeChildrenChanged, NodeCreated, NodeDataChanged, NodeDeleted};
    let ensemble = Ensemble::single(Options::new());
    story(async {
        let (client, writer) = (connect(&ensemble).await, connect(&ensemble).await);
        let (none, created) = client.check_and_watch_stat("/w").await.expect("watch");
        assert_eq!(none, None);
        let mut persistent = client.watch("/w", AddWatchMode::Persistent).await.expect("watch");
        let mut recursive =
            client.watch("/w", AddWatchMode::PersistentRecursive).await.expect("watch");

        let made = make(&writer, "/w", &PERSISTENT).await.expect("create");
        assert_eq!(created.changed().await, event(NodeCreated, "/w", made.czxid));
        assert_eq!(persistent.changed().await, event(NodeCreated, "/w", made.czxid));
        assert_eq!(recursive.changed().await, event(NodeCreated, "/w", made.czxid));

        let (_, _, data) = client.get_and_watch_data("/w").await.expect("watch");
        let (_, children) = client.list_and_watch_children("/w").await.expect("watch");
        let set = writer.set_data("/w", b"1", None).await.expect("set");
        assert_eq!(data.changed().await, event(NodeDataChanged, "/w", set.mzxid));
        assert_eq!(persistent.changed().await, event(NodeDataChanged, "/w", set.mzxid));
        assert_eq!(recursive.changed().await, event(NodeDataChanged, "/w", set.mzxid));
        let child = make(&writer, "/w/x", &PERSISTENT).await.expect("create");
        assert_eq!(children.changed().await, event(NodeChildrenChanged, "/w", child.czxid));
        assert_eq!(persistent.changed().await, event(NodeChildrenChanged, "/w", child.czxid));
        assert_eq!(recursive.changed().await, event(NodeCreated, "/w/x", child.czxid));

        let (_, _, data) = client.get_and_watch_data("/w/x").await.expect("watch");
        writer.delete("/w/x", None).await.expect("delete");
        let zxid = writer.check_stat("/w").await.expect("stat").expect("it is there").pzxid;
        assert_eq!(data.changed().await, event(NodeDeleted, "/w/x", zxid));
        assert_eq!(persistent.changed().await, event(NodeChildrenChanged, "/w", zxid));
        assert_eq!(recursive.changed().await, event(NodeDeleted, "/w/x", zxid));

        let (_, _, data) = client.get_and_watch_data("/w").await.expect("watch");
        assert_ne!(ensemble.replicas[0].figure("zk_watch_count"), 0);
        drop((data, persistent, recursive));
        until(async || ensemble.replicas[0].figure("zk_watch_count") == 0).await;
    });
}

#[test]
fn a_client_with_a_root_of_its_own_sees_nothing_else() {
    let ensemble = Ensemble::single(Options::new());
    story(async {
        let client = connect(&ensemble).await;
        let early = connect_to(&format!("{}/app", all(&ensemble))).await;
        assert_eq!(make(&early, "/x", &PERSISTENT).await, Err(Error::NoNode), "it has no root");
        client.create("/app", b"root", &PERSISTENT).await.expect("create");
        let rooted = client.clone().chroot("/app").expect("a root");
        let (_, watcher) = rooted.check_and_watch_stat("/x").await.expect("watch");
        let (made, _) = early.create("/x", b"1", &EPHEMERAL).await.expect("create");
        assert_eq!(watcher.changed().await, event(EventType::NodeCreated, "/x", made.czxid));
        assert_eq!(client.get_data("/app/x").await, Ok((b"1".to_vec(), made)));
        assert_eq!(rooted.get_data("/").await.expect("get").0, b"root");
        assert_eq!(early.list_ephemerals("/").await.expect("list"), ["/x"]);
        assert_eq!(early.list_children("/").await.expect("list"), ["x"]);
        assert_eq!(early.delete("/app/x", None).await, Err(Error::NoNode));
        early.sync("/").await.expect("sync");
    });
}

#[test]
fn only_who_is_named_may() {
    let ensemble = Ensemble::single(Options::new());
    story(async {
        let (owner, stranger) = (connect(&ensemble).await, connect(&ensemble).await);
        let private = CreateMode::Persistent.with_acls(Acls::creator_all());
        assert_eq!(make(&owner, "/private", &private).await, Err(Error::InvalidAcl), "no name");
        owner.auth("digest", b"bob:secret").await.expect("a name");
        let users = owner.list_auth_users().await.expect("names");
        assert!(users.contains(&AuthUser::new("digest", "bob")), "{users:?}");
        owner.create("/private", b"1", &private).await.expect("create");
        let (acl, _) = owner.get_acl("/private").await.expect("an ACL");
        assert_eq!((acl.len(), acl[0].scheme()), (1, "digest"));
        assert!(acl[0].id().starts_with("bob:") && !acl[0].id().contains("secret"));

        assert_eq!(stranger.get_data("/private").await, Err(Error::NoAuth));
        assert_eq!(stranger.set_data("/private", b"", None).await, Err(Error::NoAuth));
        assert_eq!(make(&stranger, "/private/x", &PERSISTENT).await, Err(Error::NoAuth));
        stranger.auth("digest", b"bob:guess").await.expect("another name");
        assert_eq!(stranger.get_data("/private").await, Err(Error::NoAuth));
        stranger.auth("digest", b"bob:secret").await.expect("that name too");
        assert_eq!(stranger.get_data("/private").await.expect("get").0, b"1");

        let read_only = Acls::anyone_read();
        let stat = owner.set_acl("/private", &read_only, Some(0)).await.expect("set an ACL");
        assert_eq!(stat.aversion, 1);
        assert_eq!(owner.set_data("/private", b"", None).await, Err(Error::NoAuth));
    });
}
