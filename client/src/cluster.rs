//! What the members of a cluster report of it, and the task that follows its changes.
//!
//! The task waits at one member for another epoch (the member answers when there is one); when that
//! member fails, or does not answer a ping, the task goes to another one, and when none can be reached,
//! it goes the way in again. Always holds: an epoch once seen is followed only by a later one; a cluster
//! once seen is never taken for another; the report of a member that has lost coordination counts only
//! while nothing else is known.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::cluster::{
    ArchivedRingReply, MEMBERS_MAX, MOUNTS_MAX, Member as Told, RingReply, RingRequest,
};
use millrace_proto::layout::Layout;
use millrace_proto::status::Next;
use millrace_proto::{Status, feature, frame};
use tokio::time::{self, Instant};

use crate::board::{Board, Taken};
use crate::connection::{Body, Reply};
use crate::error::Error;
use crate::file::HelloInfo;
use crate::member::Member;
use crate::reply;
use crate::retry::Backoff;
use crate::topology::Topology;
use crate::view::{News, View};

mod search;

use search::Search;

/// How long a member may wait for another epoch. Guessed.
const POLL: Duration = Duration::from_secs(30);
/// How long a member may take for a page, at most. Guessed.
const PAGE_TIME: Duration = Duration::from_secs(5);
/// An answer without news that comes sooner is followed by a pause.
const POLL_MIN: Duration = Duration::from_secs(1);
/// Pings without an answer after which a member is not waited at any more, because another one reports
/// the same.
const POLL_MISSED_MAX: u32 = 1;
/// How often the pages are begun again because the epoch changed between them.
const PAGING_TRIES: usize = 8;
/// Most members that are asked before a pause. Guessed: if all have lost coordination, each client asks
/// this many every two seconds.
const ROUND_MAX: usize = 4;
/// Most shards of a member.
const SHARDS_MAX: usize = 1024;

/// Asks a member for the members, and gives it `patience` for each answer. If `wait` is set, it answers
/// when it has news, and is pinged meanwhile.
///
/// # Errors
/// What the connection or the member said, and [`Error::Protocol`].
pub(crate) async fn fetch(
    member: &Member,
    known: Option<&View>,
    wait: bool,
    patience: Duration,
) -> Result<News, Error> {
    let epoch = known.map_or(0, |view| view.layout.epoch);
    let first = RingRequest { epoch, first: 0, wait: u8::from(wait) };
    let mut reply = if wait {
        // A node answers before the wait is over, unless it has more to do than it can.
        member.ask_watched(Body::Ring(first), Instant::now() + POLL, POLL_MISSED_MAX).await?
    } else {
        ask(member, first, patience).await?
    };
    for _ in 0..PAGING_TRIES {
        if reply.header.status() == Status::UnknownOp {
            return Ok(News::Alone);
        }
        let mut page = decode(&reply)?;
        if page.epoch == 0 {
            return Ok(News::Nothing);
        }
        if let Some(known) = known
            && (known.layout.epoch, &known.layout.cluster) == (page.epoch, &page.cluster)
        {
            let view = View::new(page, known.layout.clone(), hello_of(member));
            return Ok(News::View(Box::new(view)));
        }
        let mut members = std::mem::take(&mut page.members);
        let member_count = page.member_count as usize;
        let is_whole = loop {
            if members.len() >= member_count {
                break true;
            }
            let next = RingRequest { epoch: page.epoch, first: members.len() as u32, wait: 0 };
            reply = ask(member, next, patience).await?;
            let next = decode(&reply)?;
            if next.epoch != page.epoch {
                break false;
            }
            if next.members.is_empty() {
                return Err(Error::protocol("a page of members has none"));
            }
            members.extend(next.members);
        };
        if is_whole {
            members.truncate(member_count);
            members.retain(is_reachable);
            if members.is_empty() {
                return Err(Error::protocol("no member of the cluster has an address"));
            }
            let (cluster, mounts) =
                (std::mem::take(&mut page.cluster), std::mem::take(&mut page.mounts));
            let layout = Layout::new(cluster, page.epoch, mounts, members);
            let view = View::new(page, Arc::new(layout), hello_of(member));
            return Ok(News::View(Box::new(view)));
        }
        let again = RingRequest { epoch: 0, first: 0, wait: 0 };
        reply = ask(member, again, patience).await?;
    }
    Err(Error::protocol("the members change faster than they can be asked for"))
}

/// Returns what a member said of itself when it was last connected to.
fn hello_of(member: &Member) -> Option<Arc<HelloInfo>> {
    member.main().link().borrow().hello.clone()
}

/// Asks for a page, and waits this long for it.
async fn ask(member: &Member, request: RingRequest, patience: Duration) -> Result<Reply, Error> {
    member.main().ask_until(Body::Ring(request), Instant::now() + patience).await
}

/// True if each shard of a member has an address. A member without is passed over, as if it were not
/// there, because any other one answers for its blocks.
fn is_reachable(told: &Told) -> bool {
    let has_shards = !told.shards.is_empty() && !told.shards.iter().any(String::is_empty);
    has_shards || !told.address.is_empty()
}

fn decode(reply: &Reply) -> Result<RingReply, Error> {
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
    Ok(body.into())
}

/// Follows the cluster until the task is ended.
pub(crate) async fn follow(board: Arc<Board>) {
    let config = board.config();
    let mut backoff = Backoff::new(config.reconnect_backoff_min, config.reconnect_backoff_max);
    // The member that reported last, and those that did not since then.
    let mut last: Option<Arc<Member>> = None;
    let mut failed: Vec<Arc<Member>> = Vec::new();
    let mut search = Search::new();
    // True once a member of this round lives, whatever it reported.
    let mut is_reached = false;
    // Patience grows with each round without an answer, because then all may be slow.
    let mut patience = config.attempt_timeout;
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
            patience = (patience * 2).min(PAGE_TIME.max(config.attempt_timeout));
            let is_lost = !std::mem::take(&mut is_reached);
            if !is_lost || !search.run(&board).await {
                time::sleep(backoff.step()).await;
            }
            continue;
        };
        let known = topology.cluster.clone();
        drop(topology);
        // A member that has not reported yet is not waited for, because it might have lost coordination.
        let is_trusted = last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &member));
        let wait = is_trusted || known.is_none();
        let asked_at = Instant::now();
        let mut is_fenced = false;
        let taken = match fetch(&member, known.as_deref(), wait, patience).await {
            Ok(News::View(view)) => {
                is_fenced = view.is_fenced;
                let taken = board.take_over(*view, None);
                is_reached |= taken != Taken::Stranger;
                taken
            }
            // The node is starting. Others know more, so this is not a reason to search elsewhere.
            Ok(News::Nothing) if known.is_some() => {
                is_reached = true;
                Taken::Refused
            }
            Ok(News::Nothing) => Taken::Known,
            Ok(News::Alone) if link.is_some() => {
                // This holds until the node is started again.
                if let Some(link) = &mut link
                    && link.changed().await.is_err()
                {
                    return;
                }
                Taken::Known
            }
            // Others may know more.
            Ok(News::Alone) => Taken::Refused,
            Err(error) => {
                // A member that was waited at to the end has answered pings meanwhile.
                let lives = wait && matches!(error, Error::DeadlineExceeded);
                if error.status().is_none() && !lives {
                    member.suspect(0, true);
                }
                Taken::Refused
            }
        };
        match taken {
            Taken::New | Taken::Known if !is_fenced => {
                let is_over = taken == Taken::New || !wait || asked_at.elapsed() >= POLL_MIN;
                last = Some(member);
                failed.clear();
                search.reset();
                patience = config.attempt_timeout;
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

/// Returns the next member to ask: the one that reported last, else a healthy one, by chance.
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
