//! Hand-over: after a membership change a node copies the blocks it now owns from their previous
//! holders.
//!
//! Always holds: a change of the cluster that gives this node blocks is followed by a pull from every
//! member that may have some, at a bounded rate. Reads go on meanwhile: a block that is asked for before
//! it was pulled is taken from its holder at once. Nothing is pushed, so no node gets more than it asked
//! for. If no node has a block any more it is read from the source when a client asks for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_client::peer::Peer;
use millrace_proto::cluster::{InventoryFile, InventoryRequest, Member};
use tokio::time::{Instant, sleep, sleep_until};

use super::View;
use crate::cache::BlockKey;
use crate::metrics::{Figure, Kind};

/// How long peers are asked for a block before the source is, after the last pull has ended: readers
/// follow a change a little later than nodes.
const WINDOW_AFTER: Duration = Duration::from_secs(10);
/// Longest wait for a page of an inventory.
const INVENTORY_PATIENCE: Duration = Duration::from_secs(5);
/// Wait before a member that was busy or did not answer is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// Tries for one page; then it is the next member's turn.
const TRIES_MAX: usize = 20;
/// Turns of a member that does not list or give what it has, before it is given up. With the waits
/// between them, which double, this is about two minutes.
const TURNS_MAX: u32 = 8;
/// Longest wait between two turns of a member.
const TURN_WAIT_MAX: Duration = Duration::from_secs(32);
/// Wait before blocks are pulled again from a member that did not answer.
const PULL_AGAIN: Duration = Duration::from_secs(1);
/// Tries for a block; after that it comes when a client asks for it.
const PULL_TRIES: usize = 3;
/// Blocks on their way at once. Guessed: enough to hide the way there and back.
const PULL_WINDOW: usize = 8;

/// What others can see of hand-overs, and whether holders are asked before the source.
#[derive(Default)]
pub(crate) struct Progress {
    /// Epoch that this node has acted on.
    epoch: AtomicU64,
    /// Whether the node has lost coordination.
    is_fenced: AtomicU64,
    /// Members that blocks are still pulled from.
    sources: AtomicU64,
    /// Blocks that were listed by them and are not here yet.
    pending: AtomicU64,
    /// Blocks that were pulled.
    moved_count: AtomicU64,
    /// Members that were given up before all they had was here.
    given_up_count: AtomicU64,
    /// Milliseconds of the node's time until which holders are asked.
    ask_until: AtomicU64,
}

impl Progress {
    /// Returns names and values for `Status`.
    pub(crate) fn values(&self) -> [(&'static str, u64); 6] {
        self.figures().map(|(figure, value)| (figure.name, value))
    }

    /// Returns what the figures are, and their values.
    pub(crate) fn figures(&self) -> [(Figure, u64); 6] {
        // First: what the epoch means is seen with it.
        let epoch = self.epoch.load(Ordering::Acquire);
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        [
            (
                Figure {
                    name: "cluster_epoch",
                    kind: Kind::Gauge,
                    help: "Epoch of the cluster that the node acts on.",
                },
                epoch,
            ),
            (
                Figure {
                    name: "cluster_fenced",
                    kind: Kind::Gauge,
                    help: "1 while coordination is lost.",
                },
                get(&self.is_fenced),
            ),
            (
                Figure {
                    name: "handover_source_count",
                    kind: Kind::Gauge,
                    help: "Members that blocks are still taken over from.",
                },
                get(&self.sources),
            ),
            (
                Figure {
                    name: "handover_pending_count",
                    kind: Kind::Gauge,
                    help: "Blocks that are still to be taken over.",
                },
                get(&self.pending),
            ),
            (
                Figure {
                    name: "handover_block_count",
                    kind: Kind::Counter,
                    help: "Blocks that were taken over.",
                },
                get(&self.moved_count),
            ),
            (
                Figure {
                    name: "handover_given_up_count",
                    kind: Kind::Counter,
                    help: "Members that were given up before all was here.",
                },
                get(&self.given_up_count),
            ),
        ]
    }

    /// Notes whether the node has lost coordination.
    pub(crate) fn set_fenced(&self, is_fenced: bool) {
        self.is_fenced.store(is_fenced.into(), Ordering::Relaxed);
    }

    /// True if the node has lost coordination.
    pub(crate) fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed) != 0
    }

    /// True if holders are asked for a block before the source is.
    pub(crate) fn asks_holders(&self, now_ms: u64) -> bool {
        self.sources.load(Ordering::Relaxed) > 0 || now_ms < self.ask_until.load(Ordering::Relaxed)
    }

    fn ask_until(&self, now_ms: u64) {
        let until = now_ms + WINDOW_AFTER.as_millis() as u64;
        self.ask_until.store(until, Ordering::Relaxed);
    }
}

/// Returns the members from which this node has to pull because of a change from one view to the next.
pub(crate) fn sources(old: &View, new: &View) -> Vec<String> {
    let Some(me) = new.layout.member(&new.me).filter(|member| member.is_active()) else {
        return Vec::new();
    };
    let was_active = |id: &str| old.layout.member(id).is_some_and(Member::is_active);
    // This also holds after it was taken for dead: others have filled meanwhile what it owns now.
    let has_come = !was_active(&me.id) || old.joined_at != new.joined_at;
    let has_grown = old.layout.member(&me.id).is_some_and(|it| it.weight < me.weight);
    let highest =
        |view: &View| view.layout.mounts.iter().map(|mount| mount.replicas).max().unwrap_or(1);
    let replicas_before = |prefix: &str| {
        old.layout
            .mounts
            .iter()
            .find(|mount| mount.prefix == prefix)
            .map_or(0, |mount| mount.replicas)
    };
    let more_replicas = new.layout.mounts.iter().any(|mount| {
        let before = replicas_before(&mount.prefix);
        before > 0 && mount.replicas > before
    });
    // If blocks have several owners, the others have what a member had that left.
    let shares = highest(new) > 1
        && old.layout.members.iter().any(|member| {
            member.is_active() && !new.layout.member(&member.id).is_some_and(Member::is_active)
        });
    // Each node begins with the members that come after it, so that not all ask the same one first.
    let place = new.layout.members.partition_point(|member| member.id < new.me);
    let (before, after) = new.layout.members.split_at(place);
    let others = after.iter().chain(before).filter(|member| member.id != new.me);
    let others = others.filter(|member| {
        let drains = !member.is_active() && was_active(&member.id);
        has_come || has_grown || more_replicas || shares || drains
    });
    others.map(|member| member.id.clone()).collect()
}

/// The result for a block that was to be pulled.
pub(crate) enum Brought {
    /// It came, of this many bytes.
    Moved(u64),
    /// It was here already, or is not needed any more.
    Here,
    /// The member did not answer.
    Failed((BlockKey, u64)),
}

/// What pulling needs from the rest of the node.
pub(crate) trait Puller {
    /// Returns the view as it is now.
    fn view(&self) -> Arc<View>;
    /// Returns the connection to a member, if it is asked at the moment.
    fn peer(&self, member: &Member) -> Option<Arc<Peer>>;
    /// Notes a file of an inventory. True if the file is still in that version.
    fn note(&self, file: &InventoryFile) -> bool;
    /// Takes blocks from the member that has them.
    fn bring(
        &self,
        source: &str,
        blocks: Vec<(BlockKey, u64)>,
    ) -> impl Future<Output = Vec<Brought>> + Send;
    /// Lets go of nodes that are not members any more.
    fn keep(&self, view: &View);
    /// Returns the node's milliseconds.
    fn now_ms(&self) -> u64;
}

/// A member that blocks are still to be pulled from.
struct Turn {
    id: String,
    /// Turns it has had.
    count: u32,
    /// When the next one begins at the earliest.
    at: Instant,
}

/// Pulls from members, one after the other, for as long as the node runs. `changes` brings new views.
pub(crate) async fn run(
    puller: &impl Puller,
    progress: &Progress,
    mut changes: tokio::sync::watch::Receiver<Arc<View>>,
    rate: u64,
) {
    let mut seen = Arc::new(View::default());
    let mut queue: VecDeque<Turn> = VecDeque::new();
    let mut pace = Pace::new(rate);
    loop {
        let view = Arc::clone(&changes.borrow_and_update());
        if view.layout.epoch > 0 {
            let new = sources(&seen, &view);
            if rate == 0 {
                progress.given_up_count.fetch_add(new.len() as u64, Ordering::Relaxed);
            } else if !new.is_empty() {
                // A new change may have given blocks of members that were asked already.
                queue.retain(|turn| !new.contains(&turn.id));
                let at = Instant::now();
                queue.extend(new.into_iter().map(|id| Turn { id, count: 0, at }));
                progress.ask_until(puller.now_ms());
            }
            queue.retain(|turn| view.layout.member(&turn.id).is_some());
            puller.keep(&view);
            progress.sources.store(queue.len() as u64, Ordering::Relaxed);
            // The epoch comes last: a reader that sees it sees what it means.
            progress.epoch.store(view.layout.epoch, Ordering::Release);
            seen = view;
        }
        let now = Instant::now();
        let Some(place) = queue.iter().position(|turn| turn.at <= now) else {
            let next = queue.iter().map(|turn| turn.at).min();
            tokio::select! {
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => (),
                changed = changes.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let is_done = pull(puller, progress, &queue[place].id, &mut pace).await;
        progress.pending.store(0, Ordering::Relaxed);
        progress.ask_until(puller.now_ms());
        let turn = queue.remove(place);
        if let Some(mut turn) = turn.filter(|_| !is_done) {
            turn.count += 1;
            turn.at = Instant::now() + (PULL_AGAIN * (1 << turn.count)).min(TURN_WAIT_MAX);
            if turn.count < TURNS_MAX {
                queue.push_back(turn);
            } else {
                progress.given_up_count.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "{} does not give what it has: that comes when a client asks for it",
                    turn.id
                );
            }
        }
        progress.sources.store(queue.len() as u64, Ordering::Relaxed);
    }
}

/// Pulls what a member has that this node owns. True if that was all; false if there may be more.
async fn pull(puller: &impl Puller, progress: &Progress, source: &str, pace: &mut Pace) -> bool {
    let mut cursor = 0;
    let mut tries = 0;
    let (mut count, mut bytes, mut missing) = (0, 0, 0);
    loop {
        let view = puller.view();
        let (Some(me), Some(member)) = (view.layout.member(&view.me), view.layout.member(source))
        else {
            // A node that is not a member has nothing to give.
            return true;
        };
        let request = InventoryRequest { key: me.key, epoch: view.layout.epoch, cursor };
        let page = match puller.peer(member) {
            Some(peer) => peer.inventory(request, INVENTORY_PATIENCE).await.ok(),
            None => None,
        };
        let Some(page) = page else {
            tries += 1;
            if tries > TRIES_MAX {
                tracing::info!("{source} does not tell what it has: it is asked again later");
                return false;
            }
            sleep(RETRY).await;
            continue;
        };
        tries = 0;
        let files = page.files.iter().filter(|file| puller.note(file));
        let blocks: Vec<_> = files
            .flat_map(|file| {
                let key = |&block: &u32| (BlockKey { file: file.id, block }, file.version);
                file.blocks.iter().map(key)
            })
            .collect();
        progress.pending.store(blocks.len() as u64, Ordering::Relaxed);
        for mut some in blocks.chunks(PULL_WINDOW).map(<[_]>::to_vec) {
            let listed = some.len();
            for _ in 0..PULL_TRIES {
                pace.wait().await;
                let mut failed = Vec::new();
                for brought in puller.bring(source, std::mem::take(&mut some)).await {
                    match brought {
                        Brought::Moved(length) => {
                            (count, bytes) = (count + 1, bytes + length);
                            progress.moved_count.fetch_add(1, Ordering::Relaxed);
                            pace.spend(length);
                        }
                        Brought::Here => (),
                        Brought::Failed(block) => failed.push(block),
                    }
                }
                if failed.is_empty() {
                    break;
                }
                some = failed;
                sleep(PULL_AGAIN).await;
            }
            missing += some.len();
            progress.pending.fetch_sub(listed as u64, Ordering::Relaxed);
            if some.len() == listed {
                // It does not answer: the rest of the page would take as long for nothing.
                tracing::info!("{source} gives nothing: it is asked again later");
                return false;
            }
        }
        if page.next == 0 {
            tracing::info!(
                "took over {count} blocks, {bytes} bytes, from {source}; {missing} it did not give"
            );
            return missing == 0;
        }
        cursor = page.next;
    }
}

/// Keeps a mean rate of bytes.
struct Pace {
    rate: u64,
    next: Instant,
}

impl Pace {
    fn new(rate: u64) -> Pace {
        Pace { rate: rate.max(1), next: Instant::now() }
    }

    async fn wait(&self) {
        sleep_until(self.next).await;
    }

    fn spend(&mut self, bytes: u64) {
        let time = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.next = self.next.max(Instant::now()) + time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::record::key_of;
    use millrace_proto::cluster::{MemberState, Mount};
    use millrace_proto::layout::Layout;

    fn member(id: &str, state: MemberState) -> Member {
        Member {
            id: id.into(),
            key: key_of(id),
            weight: 64,
            zone: String::new(),
            state: state as u8,
            address: String::new(),
            shards: Vec::new(),
            local: Vec::new(),
            machine: String::new(),
            run: 1,
            capacity: 0,
            server: String::new(),
        }
    }

    fn view(replicas: u8, active: &[&str], draining: &[&str]) -> View {
        let mount = Mount { prefix: String::new(), source: String::new(), replicas };
        let active = active.iter().map(|id| member(id, MemberState::Active));
        let draining = draining.iter().map(|id| member(id, MemberState::Draining));
        let members = active.chain(draining).collect();
        View::new(Layout::new("c".to_owned(), 1, vec![mount], members), "me")
    }

    #[test]
    fn who_comes_pulls_from_all_and_who_drains_is_pulled_from() {
        let three = view(1, &["a", "b", "me"], &[]);
        assert_eq!(sources(&View::default(), &three), ["a", "b"]);
        assert_eq!(sources(&view(1, &["a", "b"], &[]), &three), ["a", "b"]);
        assert!(sources(&three, &three).is_empty());
        let more = view(1, &["a", "b", "c", "me"], &[]);
        assert!(sources(&three, &more).is_empty(), "a member that joins takes and does not give");
        assert!(sources(&more, &three).is_empty(), "what c had is gone with it");
        let drained = view(1, &["b", "me"], &["a"]);
        assert_eq!(sources(&three, &drained), ["a"]);
        assert!(sources(&drained, &drained).is_empty());
        assert!(sources(&three, &view(1, &["a", "b"], &["me"])).is_empty());
        let back = sources(&view(1, &["a", "b"], &["me"]), &three);
        assert_eq!(back, ["a", "b"], "back from a drain");
    }

    #[test]
    fn where_blocks_have_several_owners_the_others_are_asked() {
        let three = view(2, &["a", "b", "me"], &[]);
        assert_eq!(sources(&three, &view(2, &["b", "me"], &[])), ["b"]);
        assert_eq!(sources(&view(1, &["a", "me"], &[]), &view(2, &["a", "me"], &[])), ["a"]);
    }
}
