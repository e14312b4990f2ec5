//! Keeps the node in its cluster: registers it, follows what changes, and stands for election.
//!
//! Always holds: a view is published only when every notified change has been read. When coordination
//! does not answer the node is fenced within the session timeout, before any other node can be sure that
//! it is gone. When the session ended the node begins again by itself.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::Status;
use millrace_proto::cluster::{MEMBER_BYTES_MAX, Mount, NAME_LENGTH_MAX};
use millrace_proto::proof::Secret;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zookeeper_client::{
    AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher, SessionState,
    WatchedEvent,
};

use super::handover::Progress;
use super::identity::Identity;
use super::job::JobRecord;
use super::known::{Changes, Known, path};
use super::master::{Command, Latch, Term, read_jobs};
use super::record::{Bond, ClusterRecord, FORMAT, MemberRecord, read, size_of_member, write};
use super::refusal::Refusal;
use super::rights::{self, Readers, Rights};
use super::{Views, identity, record};
use crate::store::mounts::Mounts;

/// Least time that is given to a connection, whatever the session timeout is.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(3);
/// Waits between tries to join, the shortest and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Wait before what changed is read again if that failed.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Wait before the first in line stands again if it could not begin its term.
const STAND_AGAIN: Duration = Duration::from_secs(1);
/// How often the old registration of this node is looked at until it is gone.
const REGISTER_WAIT: Duration = Duration::from_millis(200);

/// What is asked of the task that keeps the node in its cluster, and the way back for the answer.
pub(crate) enum Request {
    /// A command for the master.
    Command { command: Command, reply: oneshot::Sender<Result<(), Refusal>> },
    /// The jobs of the cluster, in their order.
    Jobs { reply: oneshot::Sender<Result<Vec<JobRecord>, Refusal>> },
}

impl Request {
    /// Answers with a refusal.
    fn refuse(self, refusal: Refusal) {
        // The caller may have gone.
        match self {
            Request::Command { reply, .. } => drop(reply.send(Err(refusal))),
            Request::Jobs { reply } => drop(reply.send(Err(refusal))),
        }
    }
}

/// The ends that the rest of the node holds.
pub(crate) struct Handle {
    /// Makes the session begin; until then no other process learns of the node.
    pub begin: flume::Sender<()>,
    /// Commands for the master.
    pub requests: flume::Sender<Request>,
    /// The node has joined, or why not so far; the last message counts.
    pub joined: flume::Receiver<Result<(), String>>,
    /// Takes the node out of the cluster; what is sent is answered when it is out.
    pub leave: flume::Sender<flume::Sender<()>>,
}

/// What a session needs.
pub(crate) struct SessionSettings {
    /// Servers of coordination, and the cluster's path there.
    pub servers: String,
    pub path: String,
    pub timeout: Duration,
    /// The secret of the cluster; None in an insecure one.
    pub secret: Option<Secret>,
    pub identity: Identity,
    /// What others learn of this node.
    pub record: MemberRecord,
    pub block_size: u32,
    /// Source of the root, if nothing is mounted yet.
    pub source: Option<String>,
    pub views: Arc<Views>,
    pub mounts: Arc<Mounts>,
    pub progress: Arc<Progress>,
}

/// Why a session ended.
enum Ending {
    /// The node leaves.
    Left,
    /// It may work the next time.
    Again(String),
    /// The session goes on, but is of no use.
    Anew(String),
    /// Coordination does not allow it.
    NotAllowed,
    /// It will not work before an operator changes something.
    Never(String),
}

impl From<Error> for Ending {
    fn from(error: Error) -> Ending {
        match error {
            Error::QuotaExceeded => Ending::Again(
                "coordination is full: nothing can be written until room is made".to_owned(),
            ),
            Error::NoAuth => Ending::NotAllowed,
            Error::AuthFailed => Ending::Never(format!("coordination: {error}")),
            error => Ending::Again(format!("coordination: {error}")),
        }
    }
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Ending {
        Ending::Again(refusal.message)
    }
}

/// The task that keeps the node in the cluster.
pub(crate) struct Session {
    settings: SessionSettings,
    begin: flume::Receiver<()>,
    requests: flume::Receiver<Request>,
    joined: Option<flume::Sender<Result<(), String>>>,
    leave: flume::Receiver<flume::Sender<()>>,
    known: Known,
    /// Id of the cluster, once it is known.
    cluster: String,
    /// True if the view is fenced.
    is_fenced: bool,
}

/// What belongs to one connection to coordination.
struct Live {
    client: Client,
    watcher: PersistentWatcher,
    latch: Latch,
    term: Option<Term>,
}

impl Live {
    /// Notes all notifications so far.
    ///
    /// # Errors
    /// If the session ended.
    async fn note_events(&mut self, changes: &mut Changes) -> Result<(), Ending> {
        while let Ok(event) = timeout(Duration::ZERO, self.watcher.changed()).await {
            note_event(&event, changes)?;
        }
        Ok(())
    }

    /// Asks for notifications of changes again. After a connection was lost the crate asks only for the
    /// watches of single nodes (0.11.2 sends `setWatches` where `setWatches2` is needed).
    async fn watch_anew(&mut self) -> Result<(), Error> {
        // The old one goes after the new one is there, so that the server keeps it.
        self.watcher = self.client.watch("/", AddWatchMode::PersistentRecursive).await?;
        Ok(())
    }
}

impl Session {
    /// Makes a session and its handle. [`Session::run`] has to be awaited.
    pub(crate) fn new(settings: SessionSettings) -> (Session, Handle) {
        let (request_sender, requests) = flume::bounded(64);
        let (joined_sender, joined) = flume::bounded(1);
        let (leave_sender, leave) = flume::bounded(1);
        let (begin_sender, begin) = flume::bounded(1);
        let session = Session {
            cluster: settings.identity.cluster().to_owned(),
            settings,
            begin,
            requests,
            joined: Some(joined_sender),
            leave,
            known: Known::default(),
            is_fenced: true,
        };
        let handle =
            Handle { begin: begin_sender, requests: request_sender, joined, leave: leave_sender };
        (session, handle)
    }

    /// Joins the cluster, again and again, until the node leaves.
    pub(crate) async fn run(mut self) {
        if self.begin.recv_async().await.is_err() {
            return;
        }
        let mut wait = RETRY_MIN;
        loop {
            let began = Instant::now();
            let ending = self.live().await;
            let ending = self.explain(ending);
            self.fence(true);
            let is_final = matches!(ending, Ending::Never(_));
            let (Ending::Again(reason) | Ending::Anew(reason) | Ending::Never(reason)) = ending
            else {
                self.take_leave();
                return;
            };
            if began.elapsed() > 2 * self.settings.timeout {
                wait = RETRY_MIN;
            }
            if is_final && let Some(joined) = self.joined.take() {
                // The caller may have given up on the node.
                let _ = joined.send(Err(reason));
                return;
            }
            tracing::warn!("not in the cluster: {reason}");
            if let Some(joined) = &self.joined {
                // The thread that starts the node waits on, and reports this if nothing better comes.
                let _ = joined.try_send(Err(reason));
            }
            if self.joined.is_none() || is_final {
                tracing::info!("reads go on; the node tries to join again");
            }
            if let Some(done) = self.pause(wait).await {
                self.take_leave();
                let _ = done.send(());
                return;
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Waits while there is no session: commands are refused, and the node may leave.
    async fn pause(&self, wait: Duration) -> Option<flume::Sender<()>> {
        let end = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(end) => return None,
                Ok(done) = self.leave.recv_async() => return Some(done),
                Ok(request) = self.requests.recv_async() => request.refuse(fenced()),
            }
        }
    }

    /// Lives through one connection, from joining to its end.
    async fn live(&mut self) -> Ending {
        match self.join().await {
            Ok(mut live) => match self.follow(&mut live).await {
                Err(ending) => ending,
                Ok(done) => {
                    self.withdraw(&live).await;
                    // The caller may have given up waiting.
                    let _ = done.send(());
                    Ending::Left
                }
            },
            Err(ending) => ending,
        }
    }

    async fn join(&mut self) -> Result<Live, Ending> {
        let settings = &self.settings;
        let size = size_of_member(&settings.record.member(false));
        if size > MEMBER_BYTES_MAX {
            return Err(Ending::Never(format!(
                "the addresses of all shards take {size} bytes, and {MEMBER_BYTES_MAX} are allowed: \
                 use fewer shards or a shorter name (advertise)"
            )));
        }
        let connector = Client::connector().with_session_timeout(settings.timeout);
        let connector = rights::identify(connector, settings.secret.as_ref());
        let rights = self.rights();
        let patience = settings.timeout.max(CONNECT_TIMEOUT_MIN);
        let connected = timeout(patience, connector.connect(&settings.servers)).await;
        let client = connected.unwrap_or(Err(Error::Timeout)).map_err(|error| {
            Ending::Again(format!("no session with coordination at {}: {error}", settings.servers))
        })?;
        rights.make_path(&client, &settings.path).await?;
        let client = client
            .chroot(settings.path.clone())
            .map_err(|_| Ending::Never(format!("{} is not a path", settings.path)))?;
        // What another server has acknowledged is seen here, too.
        client.sync("/").await?;
        let prepared = self.prepare(&client).await;
        prepared.map_err(|ending| self.explain(ending))?;
        let watcher = client.watch("/", AddWatchMode::PersistentRecursive).await?;
        self.register(&client).await?;
        let id = self.settings.identity.id().to_owned();
        let latch = rights.create(CreateMode::EphemeralSequential, Readers::Nodes);
        let (stat, sequence) = client.create(path::LATCH, id.as_bytes(), &latch).await?;
        let latch = Latch { path: format!("{}{sequence}", path::LATCH), token: stat.czxid };
        Ok(Live { client, watcher, latch, term: None })
    }

    fn rights(&self) -> Rights {
        Rights::of(self.settings.secret.as_ref())
    }

    /// Makes the directories of the cluster, and checks that they are its own.
    async fn prepare(&mut self, client: &Client) -> Result<(), Ending> {
        let rights = self.rights();
        // Before anything there is believed, or noted in the data directory.
        rights.check(client, &[("/", Readers::World)]).await?;
        self.agree(client).await?;
        let directories = [
            (path::MEMBERS, Readers::World),
            (path::DRAINS, Readers::Nodes),
            (path::MASTER, Readers::Nodes),
            (path::JOBS, Readers::Nodes),
        ];
        for (directory, readers) in directories {
            let options = rights.create(CreateMode::Persistent, readers);
            match client.create(directory, b"", &options).await {
                Ok(_) | Err(Error::NodeExists) => (),
                Err(error) => return Err(error.into()),
            }
        }
        rights.check(client, &directories).await?;
        rights.check(client, &[(path::CLUSTER, Readers::Nodes)]).await?;
        Ok(())
    }

    /// Adds advice to what coordination did not allow.
    fn explain(&self, ending: Ending) -> Ending {
        let SessionSettings { servers, path, secret, .. } = &self.settings;
        match ending {
            Ending::NotAllowed => Ending::Never(format!(
                "zk://{servers}{path} was made {}: give every node the same --coord-secret, or take \
                 another path, or stop all nodes and delete what is there",
                match secret {
                    Some(_) => "without the secret that this node has",
                    None => "with a secret, and this node has none",
                }
            )),
            other => other,
        }
    }

    /// Reads what all nodes agree on, or, as the first one, writes it.
    async fn agree(&mut self, client: &Client) -> Result<(), Ending> {
        let rights = self.rights();
        let settings = &mut self.settings;
        let place = format!("zk://{}{}", settings.servers, settings.path);
        let own = ClusterRecord {
            format: FORMAT,
            id: identity::random(),
            block_size: settings.block_size,
        };
        let options = rights.create(CreateMode::Persistent, Readers::Nodes);
        let record = match client.create(path::CLUSTER, &write(&own), &options).await {
            Ok(_) => own,
            Err(Error::NodeExists) => {
                let (data, _) = client.get_data(path::CLUSTER).await?;
                read::<ClusterRecord>(path::CLUSTER, &data).map_err(|error| {
                    Ending::Never(format!("{place} is not a cluster of Millrace: {error}"))
                })?
            }
            Err(error) => return Err(error.into()),
        };
        if record.id.is_empty() || record.id.len() > NAME_LENGTH_MAX {
            return Err(Ending::Never(format!(
                "{place} is not a cluster of Millrace: its id is odd"
            )));
        }
        if record.format != FORMAT {
            return Err(Ending::Never(format!(
                "{place} has layout {}, this version knows {FORMAT}",
                record.format
            )));
        }
        if record.block_size != settings.block_size {
            return Err(Ending::Never(format!(
                "blocks of the cluster at {place} have {} bytes, this node's {}: \
                 start it with --block-size {}",
                record.block_size, settings.block_size, record.block_size
            )));
        }
        if !self.cluster.is_empty() && self.cluster != record.id {
            return Err(Ending::Never(format!(
                "this node belongs to cluster {}, and {place} is cluster {}: correct --coord, or \
                 start it with an empty data directory to have it join as a new node",
                self.cluster, record.id
            )));
        }
        settings.identity.join(&record.id).map_err(|error| {
            Ending::Never(format!("note the cluster in the data directory: {error}"))
        })?;
        self.known.expect(settings.secret.as_ref(), &record.id);
        self.cluster = record.id;
        Ok(())
    }

    /// Makes this node a member. An older registration of the same node is taken out, one of another
    /// node with the same id is an error.
    async fn register(&self, client: &Client) -> Result<(), Ending> {
        let mine = &self.settings.record;
        let path = format!("{}/{}", path::MEMBERS, mine.id);
        let secret = self.settings.secret.as_ref();
        let bond = Bond { cluster: &self.cluster, session: client.session_id().0 };
        let proof = secret.map(|secret| mine.proof(secret, bond)).unwrap_or_default();
        let data = write(&MemberRecord { proof, ..mine.clone() });
        let options = self.rights().create(CreateMode::Ephemeral, Readers::World);
        loop {
            match client.create(&path, &data, &options).await {
                Ok(_) => return Ok(()),
                Err(Error::NodeExists) => (),
                Err(error) => return Err(error.into()),
            }
            let (data, stat) = match client.get_data(&path).await {
                Ok(found) => found,
                Err(Error::NoNode) => continue,
                Err(error) => return Err(error.into()),
            };
            let other: Result<MemberRecord, _> = record::read(&path, &data);
            if let Ok(other) = &other
                && other.secret != mine.secret
            {
                return Err(Ending::Never(format!(
                    "another node with the id {} is in the cluster, at {}: give each node an id \
                     of its own (--node-id, or an empty --data)",
                    mine.id, other.address
                )));
            }
            if let Ok(other) = &other
                && other.run != mine.run
                && other.address != mine.address
                && is_alive(other).await
            {
                return Err(Ending::Never(format!(
                    "this node runs already, at {}: its data directory was copied",
                    other.address
                )));
            }
            match client.delete(&path, Some(stat.version)).await {
                Ok(()) | Err(Error::NoNode | Error::BadVersion) => (),
                Err(error) => return Err(error.into()),
            }
            sleep(REGISTER_WAIT).await;
        }
    }

    /// Follows what happens, until the session ends (an error) or the node leaves.
    async fn follow(&mut self, live: &mut Live) -> Result<flume::Sender<()>, Ending> {
        let timeout_granted = live.client.session_timeout();
        let mut changes = Changes::all();
        let mut states = live.client.state_watcher();
        // When the node is fenced, unless the connection is there again.
        let mut fence_at: Option<Instant> = None;
        let mut look_at = Instant::now();
        loop {
            if fence_at.is_none() && !changes.is_empty() && Instant::now() >= look_at {
                let caught_up = tokio::select! {
                    // What was asked before a connection was lost may be answered very late.
                    state = states.changed() => {
                        changes = Changes::all();
                        on_state(state, timeout_granted, &mut fence_at)?;
                        continue;
                    }
                    caught_up = timeout(2 * timeout_granted, self.catch_up(live, &mut changes)) => {
                        caught_up.unwrap_or(Err(Ending::Again("it does not answer".to_owned())))
                    }
                };
                match caught_up {
                    Ok(true) => (),
                    // The first in line could not begin its term: not now, maybe a little later.
                    Ok(false) => {
                        changes.note(path::MASTER);
                        look_at = Instant::now() + STAND_AGAIN;
                    }
                    Err(Ending::Again(reason)) if !live.client.state().is_terminated() => {
                        // The connection may be another one by now; the session goes on.
                        tracing::debug!("read what changed: {reason}");
                        changes = Changes::all();
                        look_at = Instant::now() + LOOK_AGAIN;
                    }
                    Err(ending) => return Err(ending),
                }
            }
            let later = Instant::now() + self.settings.timeout;
            let fence = fence_at.unwrap_or(later);
            let look = if changes.is_empty() { later } else { look_at.max(Instant::now()) };
            tokio::select! {
                biased;
                event = live.watcher.changed() => {
                    note_event(&event, &mut changes)?;
                    live.note_events(&mut changes).await?;
                }
                state = states.changed() => {
                    // What happened meanwhile was not notified: ZOOKEEPER-4698.
                    changes = Changes::all();
                    on_state(state, timeout_granted, &mut fence_at)?;
                }
                () = sleep_until(fence), if fence_at.is_some() && !self.is_fenced => {
                    tracing::warn!("coordination does not answer: fenced, reads go on");
                    self.fence(true);
                }
                () = sleep_until(look), if fence_at.is_none() && !changes.is_empty() => (),
                Ok(done) = self.leave.recv_async() => return Ok(done),
                Ok(request) = self.requests.recv_async() => {
                    self.answer(live, fence_at.is_some(), request).await;
                    if live.term.is_none() {
                        // It may be the node's turn.
                        changes.note(path::MASTER);
                    }
                }
            }
        }
    }

    /// Reads what changed until no more notifications come, and publishes it: then all of it is of one
    /// moment. False if this node should have begun a term and could not.
    async fn catch_up(&mut self, live: &mut Live, changes: &mut Changes) -> Result<bool, Ending> {
        let mut is_well = true;
        while !changes.is_empty() {
            if changes.is_all() {
                live.watch_anew().await?;
            }
            self.known.refresh(&live.client, changes).await?;
            *changes = Changes::default();
            is_well = self.stand(live).await?;
            // A notification comes before the answer to any later read, so a change that is not here now
            // was not read.
            live.note_events(changes).await?;
        }
        self.publish()?;
        Ok(is_well)
    }

    /// Publishes what is known.
    fn publish(&mut self) -> Result<(), Ending> {
        let id = self.settings.identity.id();
        let view = self.known.view(&self.cluster, id);
        if view.layout.member(id).is_none() {
            // Another client deleted the registration; a new session makes a new one.
            return Err(Ending::Anew("the registration of this node was deleted".to_owned()));
        }
        let old = Arc::clone(&self.settings.views.borrow());
        if view.layout.epoch < old.layout.epoch {
            // A server that lags behind will report what it does not know yet. `millrace coord restore` goes on above
            // all that was given out; a server whose files were put back by hand does not.
            tracing::warn!(
                "coordination is at {}, and was at {} before: not followed until it is there again; \
                 if files of ZooKeeper were put back, restart the nodes and clients",
                view.layout.epoch,
                old.layout.epoch
            );
            return Ok(());
        }
        // With a source of its own it waits for the master to mount something.
        let is_ready = self.known.mounts().1.is_some() || self.settings.source.is_none();
        if is_ready && (view.layout.mounts != old.layout.mounts || self.joined.is_some()) {
            self.settings.mounts.set(view.layout.mounts.clone());
        }
        if view.layout.epoch != old.layout.epoch {
            tracing::info!(
                "epoch {}: {} members, master {}",
                view.layout.epoch,
                view.layout.members.len(),
                if view.master.is_empty() { "none" } else { &view.master }
            );
        }
        self.is_fenced = false;
        self.settings.progress.set_fenced(false);
        self.settings.views.send_replace(Arc::new(view));
        if let Some(joined) = self.joined.take_if(|_| is_ready) {
            // The caller may have given up on the node.
            let _ = joined.send(Ok(()));
        } else if let Some(joined) = &self.joined {
            let reason = "nothing is mounted, and the master has no source of its own: say what \
                          is to be served with `millrace admin mount`";
            // The thread that starts the node waits on, and reports this if nothing better comes.
            let _ = joined.try_send(Err(reason.to_owned()));
        }
        Ok(())
    }

    /// Begins a term when this node is the first in line, and ends it when it is not. False if it
    /// could not.
    async fn stand(&mut self, live: &mut Live) -> Result<bool, Error> {
        let is_first = self.known.master().is_some_and(|(latch, _)| latch == live.latch.path);
        if !is_first {
            live.term = None;
            return Ok(true);
        }
        if live.term.as_ref().is_none_or(|term| term.latch() != live.latch.path) {
            let id = self.settings.identity.id();
            match Term::begin(&live.client, self.rights(), id, &live.latch).await {
                Ok(term) => {
                    tracing::info!("elected as master, fencing token {}", live.latch.token);
                    live.term = Some(term);
                }
                Err(refusal) => {
                    tracing::warn!("begin a term as master: {}", refusal.message);
                    return Ok(false);
                }
            }
        }
        match live.term.clone() {
            Some(term) => self.mount_root(live, &term).await,
            None => Ok(true),
        }
    }

    /// Mounts the own source of the first master of a cluster. False if that failed.
    async fn mount_root(&mut self, live: &Live, term: &Term) -> Result<bool, Error> {
        let (None, Some(source)) = (self.known.mounts().1, &self.settings.source) else {
            return Ok(true);
        };
        let root = Mount { prefix: String::new(), source: source.clone(), replicas: 1 };
        if let Err(refusal) = term.write_mounts(&live.client, &self.known, &[root]).await {
            tracing::warn!("mount {source}: {}", refusal.message);
            return Ok(false);
        }
        // The node is of no use before it is mounted.
        let mut changes = Changes::default();
        changes.note(path::MOUNTS);
        self.known.refresh(&live.client, &changes).await?;
        Ok(true)
    }

    async fn answer(&self, live: &mut Live, is_lost: bool, request: Request) {
        // A connection that was lost a moment ago may not be reported yet, and nothing can be written.
        let agreed =
            if is_lost { Err(fenced()) } else { self.settings.views.borrow().check_agreement() };
        if let Err(refusal) = agreed {
            return request.refuse(refusal);
        }
        let (command, reply) = match request {
            Request::Command { command, reply } => (command, reply),
            Request::Jobs { reply } => {
                let found = timeout(live.client.session_timeout() / 3, read_jobs(&live.client));
                let found = found.await.unwrap_or_else(|_| Err(fenced()));
                // The caller may have gone.
                return drop(reply.send(found));
            }
        };
        if let Command::Mount { mount, remove: false } = &command
            && let Err(error) = self.settings.mounts.admit(&mount.source)
        {
            // The caller may have gone.
            let _ = reply.send(Err(error.into()));
            return;
        }
        let patience = live.client.session_timeout() / 3;
        let result = match &live.term {
            Some(term) => {
                let done = term.carry_out(&live.client, &self.known, &command);
                timeout(patience, done).await.unwrap_or_else(|_| {
                    let message = "coordination does not answer: it may be done or not, look again";
                    Err(Refusal::new(Status::Fenced, message))
                })
            }
            None => {
                let message = match self.known.master() {
                    Some((_, id)) => format!("the master is {id}"),
                    None => "no node is the master at the moment".to_owned(),
                };
                Err(Refusal::new(Status::NotMaster, message))
            }
        };
        if matches!(&result, Err(refusal) if refusal.status == Status::NotMaster) {
            // It is over, or begins again with the next look.
            live.term = None;
        }
        // The caller may have gone.
        let _ = reply.send(result);
    }

    /// Takes the node out of the cluster.
    async fn withdraw(&self, live: &Live) {
        let path = format!("{}/{}", path::MEMBERS, self.settings.identity.id());
        let leaving = async {
            live.client.delete(&path, None).await?;
            live.client.delete(&live.latch.path, None).await
        };
        match timeout(self.settings.timeout, leaving).await {
            Ok(Ok(())) => tracing::info!("left the cluster"),
            Ok(Err(error)) => tracing::warn!("leave the cluster: {error}"),
            Err(_) => tracing::warn!("leave the cluster: coordination does not answer"),
        }
    }

    /// Publishes whether this node is cut off.
    fn fence(&mut self, is_fenced: bool) {
        if std::mem::replace(&mut self.is_fenced, is_fenced) == is_fenced {
            return;
        }
        self.settings.progress.set_fenced(is_fenced);
        self.settings.views.send_modify(|view| {
            *view = Arc::new(view.with(&view.master, is_fenced));
        });
    }

    /// Notifies the receivers that wait for news that there will be none from here.
    fn take_leave(&self) {
        self.settings.views.send_modify(|view| {
            let mut last = view.with("", true);
            last.is_over = true;
            *view = Arc::new(last);
        });
    }
}

/// Decides what the state of the connection means for the fence.
///
/// # Errors
/// If the session ended.
fn on_state(
    state: SessionState,
    timeout_granted: Duration,
    fence_at: &mut Option<Instant>,
) -> Result<(), Ending> {
    match state {
        SessionState::SyncConnected => *fence_at = None,
        state if state.is_terminated() => return Err(ended(state)),
        _ => {
            // It was noticed after two fifths of the time-out: this is well within it.
            fence_at.get_or_insert(Instant::now() + timeout_granted / 4);
        }
    }
    Ok(())
}

/// Notes what a watch reported.
///
/// # Errors
/// If the session ended: after such an event the watcher must not be asked again, it would panic.
fn note_event(event: &WatchedEvent, changes: &mut Changes) -> Result<(), Ending> {
    if event.session_state.is_terminated() {
        return Err(ended(event.session_state));
    }
    if event.event_type != EventType::Session {
        changes.note(&event.path);
    }
    Ok(())
}

fn ended(state: SessionState) -> Ending {
    Ending::Again(format!("the session with coordination ended: {state}"))
}

fn fenced() -> Refusal {
    Refusal::new(Status::Fenced, "this node has no connection to coordination: try again later")
}

/// True if the node of a registration runs: a process listens at its address. An earlier run of the same
/// node is gone, unless its data directory was copied.
async fn is_alive(record: &MemberRecord) -> bool {
    let connect = tokio::net::TcpStream::connect(&record.address);
    matches!(timeout(Duration::from_secs(1), connect).await, Ok(Ok(_)))
}
