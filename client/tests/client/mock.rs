//! A node in this process, made of `proto` alone, that misbehaves as a test wants.
//!
//! A test gives a handler that sees every request and answers it with [`Act`]s; [`World::reply`] is
//! what an honest node would say. It leaves caching, limits and timing to the real node.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_proto::message::*;
use millrace_proto::{FileId, HEADER_SIZE, Header, Op, Status, checksum, feature, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Block size of the mock in bytes.
pub(crate) const BLOCK_SIZE: u32 = 128 << 10;
/// Most ranges it takes in a batch.
const RANGES_COUNT_MAX: u32 = 180;
/// Path of its one file.
pub(crate) const PATH: &str = "data/file.bin";
const ID: FileId = FileId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

/// What the mock does next on a connection.
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Expects that nothing arrives for this long.
    Quiet(Duration),
}

/// One request as it came.
pub(crate) struct Asked {
    /// Index of the connection it came on.
    pub(crate) connection_index: usize,
    pub(crate) op: Op,
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn range(&self) -> Range {
        frame::body::<ArchivedRange>(&self.body).unwrap().into()
    }

    pub(crate) fn ranges(&self) -> Vec<Range> {
        let body = frame::body::<ArchivedReadManyRequest>(&self.body).unwrap();
        body.ranges.iter().map(Range::from).collect()
    }

    /// Returns a reply without body.
    pub(crate) fn status(&self, status: Status) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode_empty(&mut out, self.header.reply(status));
        out
    }
}

/// What the mock serves.
pub(crate) struct World {
    pub(crate) content: Vec<u8>,
    pub(crate) version: AtomicUsize,
    pub(crate) shards: Vec<String>,
    pub(crate) requests_in_flight_max: u32,
    /// True if something arrived during an [`Act::Quiet`].
    pub(crate) was_disturbed: AtomicBool,
    pub(crate) connection_count: AtomicUsize,
    pub(crate) request_count: AtomicUsize,
    /// Room for a test's own replies.
    pub(crate) held: Mutex<VecDeque<Vec<u8>>>,
    /// Host and port of each shard, if they are not those of the mock.
    pub(crate) shards_told: Mutex<Option<Vec<String>>>,
    /// Listener of each read, with its range.
    pub(crate) reads: Mutex<Vec<(usize, Range)>>,
}

impl World {
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            name: "file.bin".to_owned(),
            kind: Kind::File,
            id: ID,
            version: self.version.load(Ordering::Relaxed) as u64,
            length: self.content.len() as u64,
            modified_ms: 7,
        }
    }

    /// Returns the answer of an honest node.
    pub(crate) fn reply(&self, asked: &Asked) -> Vec<u8> {
        let mut out = Vec::new();
        let header = asked.header.reply(Status::Ok);
        match asked.op {
            Op::Hello => frame::encode(&mut out, header, &self.hello()),
            Op::Ping => frame::encode_empty(&mut out, header),
            Op::Stat => frame::encode(
                &mut out,
                header,
                &StatReply { entry: self.entry(), block_size: BLOCK_SIZE },
            ),
            Op::List => return self.list(asked),
            Op::Read => return self.read(asked, 0, asked.range()),
            Op::ReadMany => {
                let ranges = asked.ranges();
                let asked_for = ranges.iter().map(|range| u64::from(range.length));
                assert!(asked_for.sum::<u64>() <= READ_MANY_BYTES_MAX);
                assert!(ranges.len() <= RANGES_COUNT_MAX as usize);
                let ranges = ranges.into_iter().enumerate();
                let parts = ranges.map(|(part, range)| self.read(asked, part as u16, range));
                // The order is reversed, because any order is allowed.
                return parts.rev().flatten().collect();
            }
            // The mock is a node that has no memory to share.
            Op::Attach
            | Op::Lease
            | Op::Release
            | Op::Ring
            | Op::Peek
            | Op::Fetch
            | Op::Inventory
            | Op::Cached => {
                frame::encode_empty(&mut out, asked.header.reply(Status::UnknownOp));
            }
            Op::Put | Op::PutPart | Op::PutEnd | Op::PutAbort | Op::Delete | Op::Rename => {
                frame::encode_empty(&mut out, asked.header.reply(Status::UnknownOp));
            }
            Op::Drain
            | Op::Mount
            | Op::Pin
            | Op::Pins
            | Op::Challenge
            | Op::Prove
            | Op::Vouch
            | Op::Refresh
            | Op::StartJob
            | Op::CancelJob
            | Op::Jobs
            | Op::LoadPart
            | Op::LoadCopies
            | Op::LoadPartCopies
            | Op::StartCopiesJob => {
                frame::encode_empty(&mut out, asked.header.reply(Status::UnknownOp));
            }
            Op::Load => frame::encode(
                &mut out,
                header,
                &LoadReply { entry: self.entry(), block_count: 3, filled_count: 2 },
            ),
            Op::Free => frame::encode(
                &mut out,
                header,
                &FreeReply { block_count: 3, byte_count: self.content.len() as u64 },
            ),
            Op::Status => frame::encode(
                &mut out,
                header,
                &StatusReply {
                    server: "mock".to_owned(),
                    uptime_ms: 1500,
                    shard_count: 1,
                    counters: vec![Counter { name: "hit_bytes".to_owned(), value: 42 }],
                },
            ),
        }
        out
    }

    /// Returns the reply to one range, honest in every byte.
    pub(crate) fn read(&self, asked: &Asked, part: u16, range: Range) -> Vec<u8> {
        let mut header = asked.header.reply(Status::Ok);
        header.part = part;
        if range.version != self.version.load(Ordering::Relaxed) as u64 {
            header.status = Status::StaleVersion as u16;
            let mut out = Vec::new();
            frame::encode_empty(&mut out, header);
            return out;
        }
        let (offset, block_size) = (range.offset as usize, BLOCK_SIZE as usize);
        let end = (offset + range.length as usize).min(self.content.len());
        let start = offset - offset % block_size;
        let block = &self.content[start..self.content.len().min(start + block_size)];
        assert!(end <= start + block_size, "a range crosses a block border");
        let payload = &self.content[offset..end];
        let pieces =
            checksum::pieces((offset - start) as u32, payload.len() as u32, block.len() as u32);
        let tag = checksum::tag(range.file, range.version, (start / block_size) as u32);
        let checksums = pieces
            .map(|piece| checksum::of(&block[piece.offset as usize..][..piece.length as usize]))
            .map(|value| value ^ tag);
        header.flags |= frame::FLAG_IDENTITY;
        header.payload_length = payload.len() as u32;
        let mut out = Vec::new();
        let body = ReadReply { checksums: checksums.collect() };
        frame::encode(&mut out, header, &body);
        out.extend_from_slice(payload);
        out
    }

    fn hello(&self) -> HelloReply {
        HelloReply {
            server: "mock".to_owned(),
            version: millrace_proto::VERSION,
            features: feature::ALL & !feature::CLUSTER,
            block_size: BLOCK_SIZE,
            body_length_max: frame::BODY_LENGTH_MAX,
            requests_in_flight_max: self.requests_in_flight_max,
            ranges_max: RANGES_COUNT_MAX,
            shards: self.shards_told.lock().unwrap().clone().unwrap_or(self.shards.clone()),
        }
    }

    /// Returns two entries a page, five in all.
    fn list(&self, asked: &Asked) -> Vec<u8> {
        let request = frame::body::<ArchivedListRequest>(&asked.body).unwrap();
        let start: usize = request.token.as_str().parse().unwrap_or(0);
        let end = (start + 2).min(5);
        let entries =
            (start..end).map(|index| Entry { name: format!("file{index}"), ..self.entry() });
        let reply = ListReply {
            entries: entries.collect(),
            next: if end < 5 { end.to_string() } else { String::new() },
        };
        let mut out = Vec::new();
        frame::encode(&mut out, asked.header.reply(Status::Ok), &reply);
        out
    }
}

/// A running mock.
pub(crate) struct Mock {
    pub(crate) address: String,
    pub(crate) world: Arc<World>,
    tasks: JoinSet<()>,
}

/// Settings of a mock.
pub(crate) struct Setup {
    pub(crate) length: usize,
    pub(crate) shard_count: usize,
    pub(crate) requests_in_flight_max: u32,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { length: 300_000, shard_count: 0, requests_in_flight_max: 256 }
    }
}

impl Mock {
    /// Listens on a main address and one for each shard. `Hello` is answered before the handler.
    pub(crate) async fn start<H>(setup: Setup, handler: H) -> Mock
    where
        H: Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static,
    {
        Mock::start_at("127.0.0.1:0", setup, handler).await
    }

    /// As [`Mock::start`], at this main address.
    pub(crate) async fn start_at<H>(address: &str, setup: Setup, handler: H) -> Mock
    where
        H: Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static,
    {
        let mut listeners = vec![TcpListener::bind(address).await.unwrap()];
        for _ in 0..setup.shard_count {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let mut random = fastrand::Rng::with_seed(1);
        let world = Arc::new(World {
            content: (0..setup.length).map(|_| random.u8(..)).collect(),
            version: AtomicUsize::new(1),
            shards: listeners[1..].iter().map(|listener| format!(":{}", port(listener))).collect(),
            requests_in_flight_max: setup.requests_in_flight_max,
            was_disturbed: AtomicBool::new(false),
            connection_count: AtomicUsize::new(0),
            request_count: AtomicUsize::new(0),
            held: Mutex::default(),
            shards_told: Mutex::default(),
            reads: Mutex::default(),
        });
        let address = format!("127.0.0.1:{}", port(&listeners[0]));
        let handler = Arc::new(handler);
        let mut tasks = JoinSet::new();
        for (listener_index, listener) in listeners.into_iter().enumerate() {
            let (world, handler) = (world.clone(), handler.clone());
            tasks.spawn(async move {
                // Dropped with this task, it takes the connections along.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let connection_index = world.connection_count.fetch_add(1, Ordering::Relaxed);
                    let indexes = (listener_index, connection_index);
                    let (world, handler) = (world.clone(), handler.clone());
                    connections.spawn(async move {
                        // An error is a client that has gone.
                        let _ = serve(stream, indexes, &world, &*handler).await;
                    });
                }
            });
        }
        Mock { address, world, tasks }
    }

    /// Closes everything. The address may be used again.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Starts a mock that is honest.
    pub(crate) async fn honest(setup: Setup) -> Mock {
        Mock::start(setup, |world, asked| vec![Act::Send(world.reply(asked))]).await
    }
}

async fn serve(
    mut stream: TcpStream,
    (listener_index, connection_index): (usize, usize),
    world: &World,
    handler: &(impl Fn(&World, &Asked) -> Vec<Act> + ?Sized),
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut head = [0; HEADER_SIZE];
        stream.read_exact(&mut head).await?;
        let header = Header::decode(&head).unwrap();
        let mut body = vec![0; header.body_length as usize];
        stream.read_exact(&mut body).await?;
        header.check_body(&body).unwrap();
        assert!(header.budget_ms > 0, "every request has a deadline");
        let op = Op::from_code(header.op).unwrap();
        // It is part of a greeting, so no test asks for it.
        world.request_count.fetch_add(usize::from(op != Op::Attach), Ordering::Relaxed);
        let asked = Asked { connection_index, op, header, body };
        if op == Op::Read {
            let read = (listener_index, asked.range());
            world.reads.lock().unwrap().push(read);
        }
        let acts = match op {
            Op::Hello | Op::Attach => vec![Act::Send(world.reply(&asked))],
            _ => handler(world, &asked),
        };
        for act in acts {
            match act {
                Act::Send(bytes) => stream.write_all(&bytes).await?,
                Act::Close => return Ok(()),
                Act::Quiet(time) => {
                    let ready = tokio::time::timeout(time, stream.readable()).await;
                    if ready.is_ok() && stream.try_read(&mut [0]).is_ok() {
                        world.was_disturbed.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                }
            }
        }
    }
}
