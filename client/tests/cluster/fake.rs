//! Members of a cluster in this process, made of `proto` alone, which misbehave as a test wants.
//!
//! Requests of a connection are answered side by side, as those of a real node. Each member has a ring of
//! its own, so that a test can have them disagree. Content is the same everywhere.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use millrace_proto::cluster::*;
use millrace_proto::message::*;
use millrace_proto::{FileId, HEADER_SIZE, Header, Op, Status, checksum, feature, frame, source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Block size in bytes.
pub(crate) const BLOCK_SIZE: u32 = 64 << 10;
/// Blocks of each file.
pub(crate) const BLOCK_COUNT: usize = 24;
/// Length of each file in bytes.
pub(crate) const LENGTH: usize = BLOCK_COUNT * BLOCK_SIZE as usize - 100;
/// Members of one page.
const PAGE: usize = 2;

/// What a member does with reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Honest,
    /// Answers nothing at all, until it is in another mood.
    Paused,
    /// Answers this many requests, then is paused.
    Answers(u32),
    /// Sends half of a payload, then is paused.
    Half,
    /// Answers reads with this status.
    Refuses(Status),
    /// Knows no file, as a node does that has not seen a new mount.
    Blind,
    /// Sends wrong bytes.
    Damaged,
    /// Takes this many milliseconds for a read.
    Slow(u64),
}

/// What a member reports.
#[derive(Clone, Debug)]
pub(crate) struct RingTold {
    pub(crate) cluster: String,
    pub(crate) epoch: u64,
    pub(crate) master: String,
    pub(crate) is_fenced: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) members: Vec<Member>,
}

/// One member, as its tasks see it.
pub(crate) struct State {
    pub(crate) id: String,
    pub(crate) features: u64,
    pub(crate) ring: watch::Sender<RingTold>,
    pub(crate) mood: watch::Sender<Mood>,
    pub(crate) version: AtomicU64,
    /// The size of blocks in `Hello`.
    pub(crate) block_size: AtomicU32,
    pub(crate) connection_count: AtomicUsize,
    /// Each request, with the number of the block of a read.
    pub(crate) asked: Mutex<Vec<(Op, u64)>>,
    /// The answers to the next changes that this member is asked for as the master.
    pub(crate) decisions: Mutex<VecDeque<Status>>,
    /// Files that were looked up here; None if all are known.
    known: Mutex<Option<HashSet<u128>>>,
}

/// Returns the bytes of a file.
pub(crate) fn content(path: &str) -> &'static [u8] {
    static CONTENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let content = |seed| {
            let mut content = vec![0; LENGTH];
            fastrand::Rng::with_seed(seed).fill(&mut content);
            content
        };
        (0..PATHS.len() as u64).map(content).collect()
    });
    let index = PATHS.iter().position(|other| *other == path).unwrap();
    &CONTENTS[index]
}

pub(crate) fn id_of(path: &str) -> FileId {
    source::file_id("file:///fake", path)
}

/// All files.
const PATHS: [&str; 4] = ["a", "b", "dir/c", "d"];

impl State {
    pub(crate) fn count(&self, op: Op) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _)| *asked == op).count()
    }

    pub(crate) fn forget_asked(&self) {
        self.asked.lock().unwrap().clear();
    }

    /// Makes the member know no file.
    pub(crate) fn forget_files(&self) {
        *self.known.lock().unwrap() = Some(HashSet::new());
    }

    fn entry(&self, path: &str) -> Entry {
        Entry {
            name: path.to_owned(),
            kind: Kind::File,
            id: id_of(path),
            version: self.version.load(Ordering::Relaxed),
            length: LENGTH as u64,
            modified_ms: 7,
        }
    }

    /// Counts a request of a member that answers only a number of them.
    fn tire(&self) {
        self.mood.send_if_modified(|mood| {
            let Mood::Answers(left) = *mood else { return false };
            *mood = left.checked_sub(1).map_or(Mood::Paused, Mood::Answers);
            true
        });
    }

    async fn until_awake(&self) {
        let mut mood = self.mood.subscribe();
        let _ = mood.wait_for(|mood| *mood != Mood::Paused).await;
    }

    async fn ring(&self, header: &Header, request: RingRequest) -> Vec<u8> {
        let mut ring = self.ring.subscribe();
        if request.wait == 1 {
            let limit = Duration::from_millis(u64::from(header.budget_ms).saturating_sub(200));
            let was_fenced = ring.borrow().is_fenced;
            let changed =
                ring.wait_for(|ring| ring.epoch != request.epoch || ring.is_fenced != was_fenced);
            let _ = tokio::time::timeout(limit, changed).await;
        }
        let told = self.ring.borrow().clone();
        let first = request.first as usize;
        let members = told.members.iter().skip(first).take(PAGE).cloned().collect();
        let reply = RingReply {
            cluster: told.cluster,
            epoch: told.epoch,
            node: self.id.clone(),
            master: told.master,
            is_fenced: u8::from(told.is_fenced),
            mounts: if first == 0 { told.mounts } else { Vec::new() },
            member_count: told.members.len() as u32,
            members,
        };
        body(header.reply(Status::Ok), &reply)
    }

    /// Returns a reply to one range.
    fn range(&self, header: &Header, part: u16, range: Range, mood: Mood) -> Vec<u8> {
        let mut header = header.reply(Status::Ok);
        header.part = part;
        let path = PATHS.iter().find(|path| id_of(path) == range.file);
        let known = self.known.lock().unwrap();
        let is_known = known.as_ref().is_none_or(|known| known.contains(&range.file.0));
        let status = match (mood, path) {
            (Mood::Refuses(status), _) => status,
            (Mood::Blind, _) => Status::UnknownFile,
            _ if !is_known => Status::UnknownFile,
            (_, None) => Status::UnknownFile,
            _ if range.version != self.version.load(Ordering::Relaxed) => Status::StaleVersion,
            _ => Status::Ok,
        };
        let Some(path) = path.filter(|_| status == Status::Ok) else {
            header.status = status as u16;
            return empty(header);
        };
        let content = content(path);
        let (offset, block_size) = (range.offset as usize, BLOCK_SIZE as usize);
        let end = (offset + range.length as usize).min(content.len());
        let start = offset - offset % block_size;
        let block = &content[start..content.len().min(start + block_size)];
        let payload = &content[offset..end];
        let pieces =
            checksum::pieces((offset - start) as u32, payload.len() as u32, block.len() as u32);
        let tag = checksum::tag(range.file, range.version, (start / block_size) as u32);
        let checksums = pieces
            .map(|piece| checksum::of(&block[piece.offset as usize..][..piece.length as usize]))
            .map(|value| value ^ tag);
        header.flags |= frame::FLAG_IDENTITY;
        header.payload_length = payload.len() as u32;
        let mut out = body(header, &ReadReply { checksums: checksums.collect() });
        out.extend_from_slice(payload);
        if mood == Mood::Damaged {
            *out.last_mut().unwrap() ^= 1;
        }
        out
    }

    async fn reply(&self, header: &Header, op: Op, request: &[u8]) -> Vec<u8> {
        let ok = header.reply(Status::Ok);
        let mood = *self.mood.borrow();
        match op {
            Op::Hello => body(ok, &self.hello()),
            Op::Ping => empty(ok),
            Op::Stat => {
                let path = frame::body::<ArchivedStatRequest>(request).unwrap().path.as_str();
                if !PATHS.contains(&path) || mood == Mood::Blind {
                    return empty(header.reply(Status::NotFound));
                }
                if let Some(known) = &mut *self.known.lock().unwrap() {
                    known.insert(id_of(path).0);
                }
                body(ok, &StatReply { entry: self.entry(path), block_size: BLOCK_SIZE })
            }
            Op::List => {
                let entries = PATHS.iter().map(|path| self.entry(path)).collect();
                body(ok, &ListReply { entries, next: String::new() })
            }
            Op::Read => {
                let range = frame::body::<ArchivedRange>(request).unwrap().into();
                if let Mood::Slow(ms) = mood {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                self.range(header, 0, range, mood)
            }
            Op::ReadMany => {
                let ranges = frame::body::<ArchivedReadManyRequest>(request).unwrap();
                let ranges = ranges.ranges.iter().map(Range::from).enumerate();
                ranges
                    .flat_map(|(part, range)| self.range(header, part as u16, range, mood))
                    .collect()
            }
            Op::Load => {
                let path = frame::body::<ArchivedLoadRequest>(request).unwrap().path.as_str();
                let reply = LoadReply { entry: self.entry(path), block_count: 5, filled_count: 2 };
                body(ok, &reply)
            }
            Op::Free => body(ok, &FreeReply { block_count: 3, byte_count: 30 }),
            Op::Status => {
                let reply = StatusReply {
                    server: self.id.clone(),
                    uptime_ms: 1,
                    shard_count: 1,
                    counters: Vec::new(),
                };
                body(ok, &reply)
            }
            Op::Ring if self.features & feature::CLUSTER != 0 => {
                let request = frame::body::<ArchivedRingRequest>(request).unwrap();
                let request = RingRequest {
                    epoch: request.epoch.to_native(),
                    first: request.first.to_native(),
                    wait: request.wait,
                };
                self.ring(header, request).await
            }
            Op::Drain | Op::Mount | Op::Pin => {
                let is_master = self.ring.borrow().master == self.id;
                let status = if is_master {
                    self.decisions.lock().unwrap().pop_front().unwrap_or(Status::Ok)
                } else {
                    Status::NotMaster
                };
                empty(header.reply(status))
            }
            Op::Pins => body(ok, &PinsReply { pins: vec!["x".to_owned()] }),
            _ => empty(header.reply(Status::UnknownOp)),
        }
    }

    fn hello(&self) -> HelloReply {
        HelloReply {
            server: self.id.clone(),
            version: millrace_proto::VERSION,
            features: self.features,
            block_size: self.block_size.load(Ordering::Relaxed),
            body_length_max: frame::BODY_LENGTH_MAX,
            requests_in_flight_max: 256,
            ranges_max: 256,
            shards: Vec::new(),
        }
    }
}

fn body<T: frame::Body>(header: Header, body: &T) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(&mut out, header, body);
    out
}

fn empty(header: Header) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_empty(&mut out, header);
    out
}

/// A running member.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) state: Arc<State>,
    tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(id: &str, features: u64) -> Fake {
        Fake::start_at("127.0.0.1:0", id, features).await
    }

    pub(crate) async fn start_at(address: &str, id: &str, features: u64) -> Fake {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let told = RingTold {
            cluster: "fake".to_owned(),
            epoch: 0,
            master: String::new(),
            is_fenced: false,
            mounts: Vec::new(),
            members: Vec::new(),
        };
        let state = Arc::new(State {
            id: id.to_owned(),
            features,
            ring: watch::Sender::new(told),
            mood: watch::Sender::new(Mood::Honest),
            version: AtomicU64::new(1),
            block_size: AtomicU32::new(BLOCK_SIZE),
            connection_count: AtomicUsize::new(0),
            asked: Mutex::default(),
            decisions: Mutex::default(),
            known: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.connection_count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Fake { address, state, tasks }
    }

    /// Stops as a killed process does: nothing listens any more.
    pub(crate) async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.state.mood.send_replace(mood);
    }

    /// Returns its entry in the ring.
    pub(crate) fn told(&self) -> Member {
        let id = &self.state.id;
        Member {
            id: id.clone(),
            key: millrace_proto::placement::mix(id.bytes().map(u64::from).sum()),
            weight: 16,
            zone: String::new(),
            state: MemberState::Active as u8,
            address: self.address.clone(),
            shards: vec![self.address.clone()],
            local: Vec::new(),
            machine: String::new(),
            run: 1,
            capacity: 1 << 24,
            server: "fake".to_owned(),
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let mut requests = JoinSet::new();
    // An error is a client that has gone.
    while let Ok((header, op, request)) = receive(&mut reader).await {
        state.tire();
        state.until_awake().await;
        let number = match op {
            Op::Read => {
                let range: Range = frame::body::<ArchivedRange>(&request).unwrap().into();
                range.offset / u64::from(BLOCK_SIZE)
            }
            _ => 0,
        };
        state.asked.lock().unwrap().push((op, number));
        let (state, writer) = (state.clone(), writer.clone());
        requests.spawn(answer(state, writer, header, op, request));
    }
}

async fn answer(
    state: Arc<State>,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    header: Header,
    op: Op,
    request: Vec<u8>,
) {
    let reply = state.reply(&header, op, &request).await;
    let mut writer = writer.lock().await;
    state.until_awake().await;
    let is_half = *state.mood.borrow() == Mood::Half && op == Op::Read;
    let (front, back) = reply.split_at(if is_half { reply.len() / 2 } else { reply.len() });
    if writer.write_all(front).await.is_ok() && is_half {
        state.mood.send_replace(Mood::Paused);
        state.until_awake().await;
        let _ = writer.write_all(back).await;
    }
}

async fn receive(reader: &mut OwnedReadHalf) -> std::io::Result<(Header, Op, Vec<u8>)> {
    let mut head = [0; HEADER_SIZE];
    reader.read_exact(&mut head).await?;
    let header = Header::decode(&head).unwrap();
    let mut request = vec![0; header.body_length as usize];
    reader.read_exact(&mut request).await?;
    header.check_body(&request).unwrap();
    Ok((header, Op::from_code(header.op).unwrap(), request))
}

/// Members that know of each other.
pub(crate) struct Cluster {
    pub(crate) fakes: Vec<Fake>,
    pub(crate) mounts: Vec<Mount>,
}

impl Cluster {
    /// Starts `count` members, `n0` and on, at epoch 1; each block has `replicas` owners.
    pub(crate) async fn start(count: usize, replicas: u8) -> Cluster {
        Cluster::start_at(count, replicas, Path::new("/nowhere/fake")).await
    }

    pub(crate) async fn start_at(count: usize, replicas: u8, directory: &Path) -> Cluster {
        let mut fakes = Vec::new();
        for index in 0..count {
            fakes.push(Fake::start(&format!("n{index}"), feature::ALL & !feature::LEASES).await);
        }
        let source = format!("file://{}", directory.display());
        let mounts = vec![Mount { prefix: String::new(), source, replicas }];
        let cluster = Cluster { fakes, mounts };
        cluster.tell(1, |_| true);
        cluster
    }

    /// Returns the ring of these members.
    pub(crate) fn ring(&self, epoch: u64, is_member: impl Fn(usize) -> bool) -> RingTold {
        let fakes = self.fakes.iter().enumerate().filter(|(index, _)| is_member(*index));
        RingTold {
            cluster: "fake".to_owned(),
            epoch,
            master: "n0".to_owned(),
            is_fenced: false,
            mounts: self.mounts.clone(),
            members: fakes.map(|(_, fake)| fake.told()).collect(),
        }
    }

    /// Makes all members report these.
    pub(crate) fn tell(&self, epoch: u64, is_member: impl Fn(usize) -> bool + Copy) {
        for fake in &self.fakes {
            fake.state.ring.send_replace(self.ring(epoch, is_member));
        }
    }

    /// Returns the index of the owner of each block of a file, among these members.
    pub(crate) fn owners(&self, path: &str, is_member: impl Fn(usize) -> bool) -> Vec<usize> {
        let told: Vec<_> = self.fakes.iter().map(Fake::told).collect();
        let members: Vec<_> = told
            .iter()
            .enumerate()
            .map(|(index, told)| millrace_proto::ring::RingMember {
                key: told.key,
                weight: if is_member(index) { told.weight } else { 0 },
                zone: "",
            })
            .collect();
        let ring = millrace_proto::ring::Ring::new(&members);
        let hash = |block| millrace_proto::placement::block_hash(id_of(path), block);
        (0..BLOCK_COUNT as u64).map(|block| ring.owner(hash(block)).unwrap()).collect()
    }

    pub(crate) fn forget_asked(&self) {
        for fake in &self.fakes {
            fake.state.forget_asked();
        }
    }

    /// Returns how many requests each member got.
    pub(crate) fn counts(&self, op: Op) -> Vec<usize> {
        self.fakes.iter().map(|fake| fake.state.count(op)).collect()
    }
}
