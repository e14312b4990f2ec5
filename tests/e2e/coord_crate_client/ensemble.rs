//! Three replicas: locks, syncs, sessions that outlive their server, and the ensemble itself.

use millrace_tests::coord::{Ensemble, Options};
use zookeeper_client::{
    Acls, Client, CreateMode, EnsembleUpdate, Error, EventType, LockOptions, LockPrefix, SessionId,
    SessionState, StateWatcher,
};

use super::{
    CONTAINER, EPHEMERAL, OPEN, PERSISTENT, connect, connect_to, event, exists, make, story, until,
};

/// Connects a client to one replica.
async fn connect_one(ensemble: &Ensemble, index: usize) -> Client {
    connect_to(&ensemble.replicas[index].address().to_string()).await
}

/// Adds to a number under a lock, and looks at no version: without the lock, additions are lost.
async fn add_locked(client: Client, rounds: u32) {
    let options = LockOptions::new(OPEN).with_ancestor_options(CONTAINER).expect("options");
    for _ in 0..rounds {
        let prefix = LockPrefix::new_curator("/locks/sum", "lock-").expect("a prefix");
        let lock = client.lock(prefix, b"", options.clone()).await.expect("the lock");
        let (text, _) = client.get_data("/sum").await.expect("get");
        let sum: u32 = String::from_utf8(text).expect("text").parse().expect("a number");
        lock.set_data("/sum", (sum + 1).to_string().as_bytes(), None).await.expect("set");
    }
}

#[test]
fn contenders_at_two_replicas_never_hold_a_lock_together() {
    let ensemble = Ensemble::start(3, Options::new());
    story(async {
        let (one, two) = (connect_one(&ensemble, 0).await, connect_one(&ensemble, 1).await);
        one.create("/sum", b"0", &PERSISTENT).await.expect("create");
        two.sync("/").await.expect("sync");
        let (first, second) = tokio::join!(
            tokio::spawn(add_locked(one.clone(), 20)),
            tokio::spawn(add_locked(two.clone(), 20))
        );
        first.and(second).expect("both came to their end");
        two.sync("/sum").await.expect("sync");
        assert_eq!(two.get_data("/sum").await.expect("get").0, b"40");

        let prefix = || LockPrefix::new_shared("/locks/n-").expect("a prefix");
        let lock = one.lock(prefix(), b"", OPEN).await.expect("the lock");
        let waiting = tokio::spawn(async move { two.lock(prefix(), b"", OPEN).await.map(|_| ()) });
        until(async || one.list_children("/locks").await.expect("list").len() == 3).await;
        assert!(!waiting.is_finished(), "the lock is held");
        one.delete(lock.lock_path(), None).await.expect("break the lock");
        assert_eq!(waiting.await.expect("it ends"), Ok(()));
        let late = lock.create("/late", b"", &PERSISTENT).await.map(|_| ());
        assert_eq!(
            late,
            Err(Error::RuntimeInconsistent),
            "a client that lost the lock writes nothing"
        );
        assert!(!exists(&one, "/late").await);
    });
}

/// Returns the index of the replica that serves a session, if one does.
fn serving(ensemble: &Ensemble, session: SessionId) -> Option<usize> {
    let mark = format!("sid={session},");
    let serves = |text: String| text.contains(&mark);
    ensemble.replicas.iter().position(|replica| replica.word("cons").is_ok_and(serves))
}

/// Waits until a session that lost its server has another.
async fn reconnected(states: &mut StateWatcher) {
    let mut state = states.changed().await;
    while state != SessionState::SyncConnected {
        assert_eq!(state, SessionState::Disconnected, "the session lives");
        state = states.changed().await;
    }
}

#[test]
fn a_session_survives_the_death_of_each_replica_that_serves_it() {
    let mut ensemble = Ensemble::start(3, Options::new());
    story(async {
        let client = connect(&ensemble).await;
        let id = client.session_id();
        make(&client, "/mine", &EPHEMERAL).await.expect("create");
        make(&client, "/kept", &PERSISTENT).await.expect("create");
        client.auth("digest", b"bob:secret").await.expect("a name");
        let private = CreateMode::Persistent.with_acls(Acls::creator_all());
        make(&client, "/private", &private).await.expect("create");
        for round in 1..=3 {
            let server = serving(&ensemble, id).expect("a replica serves it");
            let data = format!("round {round}");
            let kept = client.set_data("/kept", data.as_bytes(), None).await.expect("set");
            let (_, _, watcher) = client.get_and_watch_data("/kept").await.expect("watch");
            let mut states = client.state_watcher();
            ensemble.replicas[server].kill();
            reconnected(&mut states).await;

            assert_ne!(serving(&ensemble, id), Some(server));
            assert!(serving(&ensemble, id).is_some(), "the same session, elsewhere");
            assert_eq!(client.get_data("/kept").await, Ok((data.into_bytes(), kept)));
            let mine = client.check_stat("/mine").await.expect("stat").expect("its ephemeral");
            assert_eq!(SessionId(mine.ephemeral_owner), id);
            assert!(client.get_data("/private").await.is_ok(), "its name came along");
            let other = connect(&ensemble).await;
            let set = other.set_data("/kept", b"", None).await.expect("set");
            let expect = event(EventType::NodeDataChanged, "/kept", set.mzxid);
            assert_eq!(watcher.changed().await, expect, "its watch came along");
            ensemble.replicas[server].start();
        }
        drop(client);
        let other = connect(&ensemble).await;
        until(async || !exists(&other, "/mine").await).await;
    });
}

#[test]
fn a_sync_at_any_replica_shows_what_was_written_at_another() {
    let ensemble = Ensemble::start(3, Options::new());
    story(async {
        let writer = connect_one(&ensemble, 0).await;
        let readers = [connect_one(&ensemble, 1).await, connect_one(&ensemble, 2).await];
        let mut stat = make(&writer, "/n", &PERSISTENT).await.expect("create");
        for round in 0..50_u8 {
            for reader in &readers {
                reader.sync("/n").await.expect("sync");
                assert_eq!(reader.check_stat("/n").await, Ok(Some(stat)), "round {round}");
            }
            stat = writer.set_data("/n", &[round], None).await.expect("set");
        }
    });
}

fn members(config: &[u8]) -> usize {
    String::from_utf8_lossy(config).matches("server.").count()
}

#[test]
fn the_ensemble_is_read_watched_and_changed() {
    let digest = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";
    let options = Options::new()
        .line("reconfigEnabled", true)
        .line("DigestAuthenticationProvider.superDigest", digest);
    let mut ensemble = Ensemble::start(3, options.clone());
    let joiner = ensemble.prepare_joiner(&options);
    ensemble.replicas[3].spawn();
    story(async {
        let (client, other) = (connect_one(&ensemble, 0).await, connect_one(&ensemble, 1).await);
        let (config, stat, watcher) = other.get_and_watch_config().await.expect("watch");
        assert_eq!(members(&config), 3);
        let join = || EnsembleUpdate::Incremental {
            joinings: [joiner.as_str()].into_iter(),
            leavings: [""].into_iter(),
        };
        assert_eq!(client.update_ensemble(join(), None).await, Err(Error::NoAuth));
        client.auth("digest", b"super:test").await.expect("the administrator");
        let version = stat.mzxid;
        assert!(config.ends_with(format!("version={version:x}").as_bytes()));
        let late = client.update_ensemble(join(), Some(version + 1)).await;
        assert_eq!(late, Err(Error::BadVersion));
        let joined = client.update_ensemble(join(), Some(version)).await;
        let (config, stat) = joined.expect("it joins");
        assert_eq!(members(&config), 4);
        assert!(stat.mzxid > version);
        let expect = event(EventType::NodeDataChanged, "/zookeeper/config", stat.mzxid);
        assert_eq!(watcher.changed().await, expect);
        ensemble.replicas[3].wait_ready().expect("it serves");
        let joined = connect_one(&ensemble, 3).await;
        joined.sync("/").await.expect("sync");
        assert_eq!(joined.get_config().await, Ok((config.clone(), stat)));

        // This is neither the leader nor the replica of this client, so that the reply comes for
        // certain.
        let leaving = if ensemble.wait_leader() == 2 { "server.2=" } else { "server.3=" };
        let text = String::from_utf8(config).expect("text");
        let servers = text.lines().filter(|line| line.starts_with("server."));
        let stay = servers.filter(|line| !line.starts_with(leaving));
        let replaced = client.update_ensemble(EnsembleUpdate::New { ensemble: stay }, None).await;
        let (config, _) = replaced.expect("one leaves");
        assert_eq!(members(&config), 3);
        assert!(!String::from_utf8_lossy(&config).contains(leaving));
    });
}
