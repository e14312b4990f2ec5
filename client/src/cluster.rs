//! What the members of a cluster tell of it, and the task that follows its changes.
//!
//! The task waits at one member for another epoch (the member answers when there is one); when that
//! member fails, it goes to another one. Always holds: an epoch once seen is followed by a later one
//! only; a cluster once seen is never taken for another; what a member tells that has lost
//! coordination counts only while nothing else is known.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::cluster::{
    ArchivedRingReply, MEMBERS_MAX, MOUNTS_MAX, Member as Told, Mount, RingRequest, mount_of,
};
use millrace_proto::ring::{self, Ring};
use millrace_proto::status::Next;
use millrace_proto::{Status, feature, frame};
use tokio::time::{self, Instant};

use crate::connection::{Body, Reply};
use crate::coordination::Search;
use crate::error::Error;
use crate::member::Member;
use crate::network::{Board, Taken};
use crate::reply;
use crate::retry::Backoff;
use crate::topology::Topology;

/// How long a member may wait for another epoch. Guessed.
const POLL: Duration = Duration::from_secs(30);
/// How long a member may take for a page. Guessed.
const PAGE_TIME: Duration = Duration::from_secs(5);
/// An answer without news that comes sooner is followed by a pause.
const POLL_MIN: Duration = Duration::from_secs(1);
/// How often the pages are begun again because the epoch changed between them.
const PAGING_TRIES: usize = 8;
/// Most members that are asked before a pause. Guessed: should all have lost coordination, each client asks
/// so many every two seconds.
const ROUND_MAX: usize = 4;
/// Most shards of a member.
const SHARDS_MAX: usize = 1024;

/// A cluster at one epoch.
#[derive(Debug)]
pub(crate) struct View {
    /// Id of the cluster.
    pub(crate) cluster: String,
    pub(crate) epoch: u64,
    /// Id of the member that told.
    pub(crate) node: String,
    /// Id of the master; empty if there is none.
    pub(crate) master: String,
    /// Whether the member that told has lost coordination.
    pub(crate) is_fenced: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) members: Vec<Told>,
    pub(crate) ring: Ring,
    /// Replicas of every mount, if all have as many.
    replicas: Option<usize>,
}

impl View {
    fn new(page: Page, members: Vec<Told>) -> View {
        let places: Vec<_> = members
            .iter()
            .map(|told| ring::Member {
                key: told.key,
                weight: if told.is_active() { told.weight } else { 0 },
                zone: &told.zone,
            })
            .collect();
        let ring = Ring::new(&places);
        let mut counts = page.mounts.iter().map(|mount| usize::from(mount.replicas.max(1)));
        let first = counts.next().unwrap_or(1);
        let replicas = counts.all(|count| count == first).then_some(first);
        View {
            cluster: page.cluster,
            epoch: page.epoch,
            node: page.node,
            master: page.master,
            is_fenced: page.is_fenced,
            mounts: page.mounts,
            members,
            ring,
            replicas,
        }
    }

    /// Owners of each block of the file at this path, at least 1.
    pub(crate) fn replicas(&self, path: &str) -> usize {
        self.replicas.unwrap_or_else(|| {
            let mount = mount_of(&self.mounts, path).map(|(index, _)| &self.mounts[index]);
            mount.map_or(1, |mount| usize::from(mount.replicas.max(1)))
        })
    }
}

/// A page of members, without them.
struct Page {
    cluster: String,
    epoch: u64,
    node: String,
    master: String,
    is_fenced: bool,
    mounts: Vec<Mount>,
    member_count: usize,
}

/// What a member told.
pub(crate) enum News {
    /// The members of an epoch, maybe the one that is known.
    View(Box<View>),
    /// Nothing yet.
    Nothing,
    /// It is in no cluster.
    Alone,
}

/// Asks a member for the members; if `wait` is set, it answers when it has more to tell than is known.
///
/// # Errors
/// What the connection or the member said, and [`Error::Protocol`].
pub(crate) async fn fetch(
    member: &Member,
    known: Option<&View>,
    wait: bool,
) -> Result<News, Error> {
    let epoch = known.map_or(0, |view| view.epoch);
    let first = RingRequest { epoch, first: 0, wait: u8::from(wait) };
    let end = Instant::now() + if wait { POLL } else { PAGE_TIME };
    // A node answers before the wait is over, unless it has more to do than it can.
    let mut reply = member.ask_watched(Body::Ring(first), end).await?;
    for _ in 0..PAGING_TRIES {
        if reply.header.status() == Status::UnknownOp {
            return Ok(News::Alone);
        }
        let (page, mut members) = decode(&reply)?;
        if page.epoch == 0 {
            return Ok(News::Nothing);
        }
        if let Some(known) = known
            && (known.epoch, &known.cluster) == (page.epoch, &page.cluster)
        {
            return Ok(News::View(Box::new(View::new(page, known.members.clone()))));
        }
        let is_whole = loop {
            if members.len() >= page.member_count {
                break true;
            }
            let next = RingRequest { epoch: page.epoch, first: members.len() as u32, wait: 0 };
            reply = member.ask_watched(Body::Ring(next), Instant::now() + PAGE_TIME).await?;
            let (next, told) = decode(&reply)?;
            if next.epoch != page.epoch {
                break false;
            }
            if told.is_empty() {
                return Err(Error::protocol("a page of members has none"));
            }
            members.extend(told);
        };
        if is_whole {
            members.truncate(page.member_count);
            members.retain(is_reachable);
            if members.is_empty() {
                return Err(Error::protocol("no member of the cluster has an address"));
            }
            return Ok(News::View(Box::new(View::new(page, members))));
        }
        let again = RingRequest { epoch: 0, first: 0, wait: 0 };
        reply = member.ask_watched(Body::Ring(again), Instant::now() + PAGE_TIME).await?;
    }
    Err(Error::protocol("the members change faster than they can be asked for"))
}

/// Whether each shard of a member has an address. One without is passed over, as if it were not
/// there: any other one answers for its blocks.
fn is_reachable(told: &Told) -> bool {
    let has_shards = !told.shards.is_empty() && !told.shards.iter().any(String::is_empty);
    has_shards || !told.address.is_empty()
}

fn decode(reply: &Reply) -> Result<(Page, Vec<Told>), Error> {
    if reply.header.status().next() != Next::Use {
        return Err(reply::status_error(reply));
    }
    let body = frame::body::<ArchivedRingReply>(&reply.body)?;
    let member_count = body.member_count.to_native() as usize;
    let is_bounded = member_count <= MEMBERS_MAX
        && body.mounts.len() <= MOUNTS_MAX
        && body.members.iter().all(|told| told.shards.len() <= SHARDS_MAX);
    if !is_bounded || (member_count == 0 && body.epoch.to_native() != 0) {
        return Err(Error::protocol(format!(
            "a cluster of {member_count} members and {} mounts cannot be followed",
            body.mounts.len()
        )));
    }
    let page = Page {
        cluster: body.cluster.as_str().to_owned(),
        epoch: body.epoch.to_native(),
        node: body.node.as_str().to_owned(),
        master: body.master.as_str().to_owned(),
        is_fenced: body.is_fenced != 0,
        mounts: body.mounts.iter().map(Mount::from).collect(),
        member_count,
    };
    Ok((page, body.members.iter().map(Told::from).collect()))
}

/// Follows the cluster until the task is ended.
pub(crate) async fn follow(board: Arc<Board>) {
    let config = board.config();
    let mut backoff = Backoff::new(config.reconnect_backoff_min, config.reconnect_backoff_max);
    // The member that told something last, and those that did not since then.
    let mut last: Option<Arc<Member>> = None;
    let mut failed: Vec<Arc<Member>> = Vec::new();
    let mut search = Search::new();
    // Whether a member of this round lives, whatever it told.
    let mut is_reached = false;
    loop {
        let topology = board.topology();
        let mut link = topology.main.as_ref().map(|main| main.link.clone());
        if let Some(link) = &mut link {
            let offers = |link: &crate::connection::Link| {
                link.hello.as_ref().is_some_and(|hello| hello.offers(feature::CLUSTER))
            };
            if link.wait_for(offers).await.is_err() {
                return;
            }
        }
        let next = candidate(&topology, last.as_ref(), &failed);
        let Some(member) = next.filter(|_| failed.len() < ROUND_MAX) else {
            failed.clear();
            drop(topology);
            let is_lost = !std::mem::take(&mut is_reached);
            let is_found = match board.place() {
                Some(place) if is_lost => search.run(place, &board).await,
                _ => false,
            };
            if !is_found {
                time::sleep(backoff.step()).await;
            }
            continue;
        };
        let known = topology.cluster.clone();
        drop(topology);
        // Who has not told anything yet is not waited for: it might have lost coordination.
        let is_trusted = last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &member));
        let wait = is_trusted || known.is_none();
        let asked_at = Instant::now();
        let mut is_fenced = false;
        let taken = match fetch(&member, known.as_deref(), wait).await {
            Ok(News::View(view)) => {
                is_fenced = view.is_fenced;
                let taken = board.take_over(*view);
                is_reached |= taken != Taken::Stranger;
                taken
            }
            // It is starting: others know more, and it is no reason to look for them elsewhere.
            Ok(News::Nothing) if known.is_some() => {
                is_reached = true;
                Taken::Refused
            }
            Ok(News::Nothing) => Taken::Known,
            Ok(News::Alone) if link.is_some() => {
                // Until it is started anew.
                if let Some(link) = &mut link
                    && link.changed().await.is_err()
                {
                    return;
                }
                Taken::Known
            }
            // Others may know more.
            Ok(News::Alone) | Err(_) => Taken::Refused,
        };
        match taken {
            Taken::New | Taken::Known if !is_fenced => {
                let is_over = taken == Taken::New || !wait || asked_at.elapsed() >= POLL_MIN;
                last = Some(member);
                failed.clear();
                search.reset();
                if is_over {
                    backoff.reset();
                } else {
                    time::sleep(backoff.step()).await;
                }
            }
            _ => {
                if taken == Taken::Stranger {
                    member.health.banish();
                }
                last = None;
                failed.push(member);
            }
        }
    }
}

/// The next member to ask: the one that told something last, else one that is well, by chance.
fn candidate(
    topology: &Topology,
    last: Option<&Arc<Member>>,
    failed: &[Arc<Member>],
) -> Option<Arc<Member>> {
    let is_left = |member: &Arc<Member>| {
        !member.health.is_banished() && !failed.iter().any(|other| Arc::ptr_eq(other, member))
    };
    if let Some(last) = last
        && is_left(last)
        && topology.members().any(|member| Arc::ptr_eq(member, last))
    {
        return Some(last.clone());
    }
    let left: Vec<_> = topology.members().filter(|member| is_left(member)).collect();
    let well: Vec<_> = left.iter().filter(|member| member.health.is_well()).collect();
    if well.is_empty() {
        return fastrand::choice(&left).map(|member| (*member).clone());
    }
    fastrand::choice(&well).map(|member| (**member).clone())
}
