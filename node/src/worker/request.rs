//! Frames to work: which operation a request asks for, and those that are answered at once.

use std::sync::Arc;

use millrace_proto::cluster::{
    ArchivedDrainRequest, ArchivedInventoryRequest, ArchivedMountRequest, ArchivedPinRequest,
    ArchivedRingRequest, InventoryRequest,
};
use millrace_proto::frame::{self, Header};
use millrace_proto::job::{
    ArchivedCancelJobRequest, ArchivedJobsRequest, ArchivedLoadPartCopiesRequest,
    ArchivedLoadPartRequest, ArchivedStartCopiesJobRequest, ArchivedStartJobRequest,
};
use millrace_proto::message::{
    ArchivedCachedRequest, ArchivedFreeRequest, ArchivedHelloRequest, ArchivedListRequest,
    ArchivedLoadCopiesRequest, ArchivedLoadRequest, ArchivedRange, ArchivedReadManyRequest,
    ArchivedRefreshRequest, ArchivedStatRequest, CachedRequest, Counter, HelloReply, RANGES_MAX,
    READ_MANY_BYTES_MAX, Range, StatusReply,
};
use millrace_proto::proof::Role;
use millrace_proto::{FrameError, Op, Status, VERSION, feature};

use super::upload::WriteOp;
use super::{Action, Worker};
use crate::cluster::Command;
use crate::cluster::job::{JobCommand, JobSpec};
use crate::connection::Rest;
use crate::mailbox::{Requester, reply_header};
use crate::metrics;
use crate::owner::Owner;
use crate::side::loads::FilePart;
use crate::side::{ClusterLookup, Lookup, LookupJob, PathLookup};
use crate::token::Token;

/// Requests in flight on one connection that are neither reads nor pings, as far as their replies are
/// concerned. Derived: 64 replies of at most 64 KiB are 4 MiB.
const COLD_IN_FLIGHT_MAX: u64 = 64;

/// `Ring` requests of one connection that may wait for news. Derived: a client has one in flight, and may
/// have given another one up.
const RING_WAITS_MAX: u32 = 4;

/// Operations that read no blocks: what the hot path does not answer.
#[derive(Clone, Copy)]
pub(super) enum ColdOp {
    Hello,
    Ping,
    Status,
    Attach,
    OfPath(PathOp),
    Ring,
    Inventory,
    Cached,
    Drain,
    Mount,
    Pin,
    Pins,
    StartJob,
    StartCopiesJob,
    CancelJob,
    Jobs,
    Challenge,
    Vouch,
    Prove,
}

/// Operations that look up paths at the source.
#[derive(Clone, Copy)]
pub(super) enum PathOp {
    Stat,
    Refresh,
    List,
    Load,
    LoadPart,
    LoadCopies,
    LoadPartCopies,
    Free,
}

/// Name and version of the node, as clients see it.
pub(crate) const SERVER: &str = concat!("millrace/", env!("CARGO_PKG_VERSION"));

impl Worker {
    /// Takes one request.
    #[inline]
    pub(super) fn on_request(
        &mut self,
        now: u64,
        token: Token,
        header: &Header,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) {
        if header.is_reply() {
            let message = "a reply where a request belongs";
            self.take_and_fail(token, header, Status::BadFrame, message, actions);
            return;
        }
        if header.version != VERSION {
            let message = format!(
                "protocol version {} is not spoken here, version {VERSION} is",
                header.version
            );
            self.take_and_fail(token, header, Status::UnsupportedVersion, &message, actions);
            return;
        }
        let Some(op) = Op::from_code(header.op) else {
            let message = format!("operation {} is not known here", header.op);
            self.take_and_fail(token, header, Status::UnknownOp, &message, actions);
            return;
        };
        let deadline = (header.budget_ms > 0).then(|| now + u64::from(header.budget_ms));
        let mut requester = self.requester(token, header, deadline);
        let result = match op {
            Op::Read | Op::Peek | Op::Fetch => frame::body::<ArchivedRange>(body).map(|range| {
                let range = Range::from(range);
                requester.asked = range.length.min(self.shared.block_size);
                self.take(&requester);
                self.find(now, &requester, &range, actions);
            }),
            Op::ReadMany => frame::body::<ArchivedReadManyRequest>(body)
                .map(|request| self.read_many(now, requester, request, actions)),
            Op::Lease => frame::body::<ArchivedReadManyRequest>(body)
                .map(|request| self.lease(now, requester, request, actions)),
            Op::Release => frame::body::<ArchivedReadManyRequest>(body)
                .map(|request| self.release(requester, request)),
            Op::Hello => self.on_cold_request(now, ColdOp::Hello, requester, body, actions),
            Op::Ping => self.on_cold_request(now, ColdOp::Ping, requester, body, actions),
            Op::Status => self.on_cold_request(now, ColdOp::Status, requester, body, actions),
            Op::Attach => self.on_cold_request(now, ColdOp::Attach, requester, body, actions),
            Op::Stat
            | Op::Refresh
            | Op::List
            | Op::Load
            | Op::LoadPart
            | Op::LoadCopies
            | Op::LoadPartCopies
            | Op::Free => {
                let op = match op {
                    Op::Stat => PathOp::Stat,
                    Op::Refresh => PathOp::Refresh,
                    Op::List => PathOp::List,
                    Op::Load => PathOp::Load,
                    Op::LoadPart => PathOp::LoadPart,
                    Op::LoadCopies => PathOp::LoadCopies,
                    Op::LoadPartCopies => PathOp::LoadPartCopies,
                    _ => PathOp::Free,
                };
                self.on_cold_request(now, ColdOp::OfPath(op), requester, body, actions)
            }
            Op::Ring => self.on_cold_request(now, ColdOp::Ring, requester, body, actions),
            Op::Inventory => self.on_cold_request(now, ColdOp::Inventory, requester, body, actions),
            Op::Cached => self.on_cold_request(now, ColdOp::Cached, requester, body, actions),
            Op::Drain => self.on_cold_request(now, ColdOp::Drain, requester, body, actions),
            Op::Mount => self.on_cold_request(now, ColdOp::Mount, requester, body, actions),
            Op::Pin => self.on_cold_request(now, ColdOp::Pin, requester, body, actions),
            Op::Pins => self.on_cold_request(now, ColdOp::Pins, requester, body, actions),
            Op::StartJob => self.on_cold_request(now, ColdOp::StartJob, requester, body, actions),
            Op::StartCopiesJob => {
                self.on_cold_request(now, ColdOp::StartCopiesJob, requester, body, actions)
            }
            Op::CancelJob => self.on_cold_request(now, ColdOp::CancelJob, requester, body, actions),
            Op::Jobs => self.on_cold_request(now, ColdOp::Jobs, requester, body, actions),
            Op::Challenge => self.on_cold_request(now, ColdOp::Challenge, requester, body, actions),
            Op::Vouch => self.on_cold_request(now, ColdOp::Vouch, requester, body, actions),
            Op::Prove => self.on_cold_request(now, ColdOp::Prove, requester, body, actions),
            // Their replies are small, and few of them wait: writes are bounded by themselves.
            Op::Put => self.on_write(WriteOp::Begin, requester, body, actions),
            Op::PutPart => self.on_write(WriteOp::Part, requester, body, actions),
            Op::PutEnd => self.on_write(WriteOp::End, requester, body, actions),
            Op::PutAbort => self.on_write(WriteOp::Abort, requester, body, actions),
            Op::Delete => self.on_write(WriteOp::Delete, requester, body, actions),
            Op::Rename => self.on_write(WriteOp::Rename, requester, body, actions),
        };
        if let Err(error) = result {
            self.counters().bad_frame_count.add(1);
            self.take_and_fail(token, header, error.status(), &error.to_string(), actions);
        }
    }

    /// Counts a request against its connection's limits.
    #[inline]
    pub(super) fn take(&mut self, requester: &Requester) {
        self.counters().request_count.add(1);
        if let Some(connection) = self.connection(requester.token) {
            connection.take(requester.asked);
        }
    }

    fn read_many(
        &mut self,
        now: u64,
        requester: Requester,
        request: &ArchivedReadManyRequest,
        actions: &mut Vec<Action>,
    ) {
        let count = request.ranges.len();
        let asked: u64 =
            request.ranges.iter().map(|range| u64::from(range.length.to_native())).sum();
        let ranges_max = self.ranges_max();
        if count == 0 || count > ranges_max || asked > READ_MANY_BYTES_MAX {
            let message = format!(
                "a ReadMany takes 1 to {ranges_max} ranges of at most {READ_MANY_BYTES_MAX} bytes together, \
                 not {count} of {asked}"
            );
            self.take_and_fail(
                requester.token,
                &requester.header,
                Status::InvalidArgument,
                &message,
                actions,
            );
            return;
        }
        self.take_ranges(now, requester, request.ranges.iter().map(Range::from), actions);
    }

    /// Takes ranges of a batch until the connection has no room; the rest waits. `requester` names the
    /// first of them.
    fn take_ranges(
        &mut self,
        now: u64,
        mut requester: Requester,
        mut ranges: impl Iterator<Item = Range>,
        actions: &mut Vec<Action>,
    ) {
        let token = requester.token;
        while let Some(range) = ranges.next() {
            if self.is_full(token) {
                let Requester { header, deadline, part, .. } = requester;
                let ranges = std::iter::once(range).chain(ranges).collect::<Vec<_>>().into_iter();
                if let Some(connection) = self.connection(token) {
                    connection.rest = Some(Box::new(Rest { header, deadline, part, ranges }));
                }
                self.pause(token, actions);
                return;
            }
            requester.asked = range.length.min(self.shared.block_size);
            self.take(&requester);
            self.find(now, &requester, &range, actions);
            requester.part += 1;
        }
    }

    /// Goes on with a batch that waited for room.
    pub(super) fn take_rest(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        let Some(rest) = connection.rest.take() else { return };
        let Rest { header, deadline, part, ranges } = *rest;
        let requester = Requester { part, ..self.requester(token, &header, deadline) };
        self.take_ranges(now, requester, ranges, actions);
    }

    /// Names the requester of a reply to a request of this shard's connection.
    #[inline]
    pub(super) fn requester(
        &mut self,
        token: Token,
        header: &Header,
        deadline: Option<u64>,
    ) -> Requester {
        let covers_identity = self.connection(token).is_some_and(|it| it.covers_identity);
        let (shard, header) = (self.shard, *header);
        Requester {
            shard,
            token,
            header,
            part: 0,
            asked: 0,
            is_forwarded: false,
            covers_identity,
            deadline,
        }
    }

    /// Counts a `Ring` request of a connection. True if it may wait: further ones are answered at once,
    /// because those that wait have places that others need.
    fn counts_ring(&mut self, token: Token) -> bool {
        let count = self.connection(token).map_or(0, |connection| {
            connection.ring_count += 1;
            connection.ring_count
        });
        count <= RING_WAITS_MAX
    }

    /// Returns the bytes that a cold request counts as: its reply is made in the heap, so few may wait unsent.
    fn cold_share(&self) -> u32 {
        let share = self.limits.bytes_in_flight_max / COLD_IN_FLIGHT_MAX;
        share.min(u64::from(u32::MAX)) as u32
    }

    fn on_cold_request(
        &mut self,
        now: u64,
        op: ColdOp,
        mut requester: Requester,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        if !matches!(op, ColdOp::Ping) {
            requester.asked = self.cold_share();
        }
        // A client that speaks for the whole cluster need not find the others.
        let is_administrator = self.role(requester.token) == Some(Role::Administrator);
        let lookup: Lookup = match op {
            ColdOp::Hello => {
                let request = frame::body::<ArchivedHelloRequest>(body)?;
                let spoken = request.version_min <= VERSION && VERSION <= request.version_max;
                let features = request.features.to_native() & self.shared.features;
                self.take(&requester);
                self.hello(&requester, spoken, features, actions);
                return Ok(());
            }
            ColdOp::Ping => {
                self.take(&requester);
                let header = reply_header(&requester.header, 0, Status::Ok);
                self.push_head(&requester, |head| frame::encode_empty(head, header));
                return Ok(());
            }
            ColdOp::Status => {
                self.take(&requester);
                let reply = self.status(now);
                let header = reply_header(&requester.header, 0, Status::Ok);
                self.push_head(&requester, |head| frame::encode(head, header, &reply));
                return Ok(());
            }
            ColdOp::Attach => {
                self.take(&requester);
                self.attach(&requester);
                return Ok(());
            }
            ColdOp::OfPath(op) => path_lookup(op, body, is_administrator)?.into(),
            ColdOp::Ring => {
                let request = frame::body::<ArchivedRingRequest>(body)?;
                let (epoch, first) = (request.epoch.to_native(), request.first.to_native());
                let may_wait = self.counts_ring(requester.token);
                ClusterLookup::Ring { epoch, first, wait: request.wait != 0 && may_wait }.into()
            }
            ColdOp::Inventory => {
                let request = frame::body::<ArchivedInventoryRequest>(body)?;
                let request = InventoryRequest {
                    key: request.key.to_native(),
                    epoch: request.epoch.to_native(),
                    cursor: request.cursor.to_native(),
                };
                ClusterLookup::Inventory(request).into()
            }
            ColdOp::Cached => {
                let request = frame::body::<ArchivedCachedRequest>(body)?;
                ClusterLookup::Cached(CachedRequest {
                    file: (&request.file).into(),
                    version: request.version.to_native(),
                    first: request.first.to_native(),
                    count: request.count.to_native(),
                })
                .into()
            }
            ColdOp::Drain => {
                let request = frame::body::<ArchivedDrainRequest>(body)?;
                let node = request.node.as_str().to_owned();
                let command = Command::Drain { node, undo: request.undo != 0 };
                ClusterLookup::Command { command, passes_on: is_administrator }.into()
            }
            ColdOp::Mount => {
                let request = frame::body::<ArchivedMountRequest>(body)?;
                let mount = (&request.mount).into();
                let command = Command::Mount { mount, remove: request.remove != 0 };
                ClusterLookup::Command { command, passes_on: is_administrator }.into()
            }
            ColdOp::Pin => {
                let request = frame::body::<ArchivedPinRequest>(body)?;
                let path = request.path.as_str().to_owned();
                let command = Command::Pin { path, undo: request.undo != 0 };
                ClusterLookup::Command { command, passes_on: is_administrator }.into()
            }
            ColdOp::Pins => ClusterLookup::Pins.into(),
            ColdOp::StartJob | ColdOp::StartCopiesJob | ColdOp::CancelJob => {
                let command = Command::Job(job_command(op, body)?);
                ClusterLookup::Command { command, passes_on: is_administrator }.into()
            }
            ColdOp::Jobs => {
                let id = frame::body::<ArchivedJobsRequest>(body)?.id.to_native();
                ClusterLookup::Jobs((id != 0).then_some(id)).into()
            }
            ColdOp::Challenge => return self.challenge(&requester, body, actions),
            ColdOp::Vouch => return self.vouch(&requester, body, actions),
            ColdOp::Prove => return self.prove(&requester, body, actions),
        };
        self.offer(op, requester, lookup, actions);
        Ok(())
    }

    /// Hands a request to the side thread, if its connection may ask for that and there is room.
    fn offer(
        &mut self,
        op: ColdOp,
        requester: Requester,
        lookup: Lookup,
        actions: &mut Vec<Action>,
    ) {
        self.take(&requester);
        if let Some(message) = self.refusal(op, requester.token) {
            self.fail(&requester, Status::PermissionDenied, message, actions);
            return;
        }
        let Some(connection) = self.connection(requester.token) else { return };
        let loads = &connection.loads_of_machine;
        let ticket = connection.owner.get_or_insert_with(|| Owner::new(loads.clone())).ticket();
        if self.side.offer_lookup(LookupJob { requester, ticket, lookup }).is_err() {
            self.count_ring(&requester);
            let message = "too many requests wait for the source (metadata_queue_max)";
            self.fail(&requester, Status::Busy, message, actions);
        }
    }

    /// Returns the most ranges that fit a body.
    pub(super) fn ranges_max(&self) -> usize {
        let fit = (self.limits.body_length_max as usize - size_of::<ArchivedReadManyRequest>())
            / size_of::<ArchivedRange>();
        fit.min(RANGES_MAX)
    }

    fn hello(
        &mut self,
        requester: &Requester,
        spoken: bool,
        features: u64,
        actions: &mut Vec<Action>,
    ) {
        if !spoken {
            let message = format!("this node speaks protocol version {VERSION} only");
            self.fail(requester, Status::UnsupportedVersion, &message, actions);
            return;
        }
        let mut is_local = false;
        if let Some(connection) = self.connection(requester.token) {
            is_local = connection.is_local;
            connection.covers_identity = features & feature::IDENTITY != 0;
        }
        let shards = match is_local {
            true => self.shared.local_addresses.clone(),
            false => self.shared.shard_addresses.clone(),
        };
        let reply = HelloReply {
            server: SERVER.to_owned(),
            version: VERSION,
            features,
            block_size: self.shared.block_size,
            body_length_max: self.limits.body_length_max,
            requests_in_flight_max: self.limits.requests_in_flight_max,
            ranges_max: self.ranges_max() as u32,
            shards,
        };
        let header = reply_header(&requester.header, 0, Status::Ok);
        self.push_head(requester, |head| frame::encode(head, header, &reply));
    }

    fn status(&self, now: u64) -> StatusReply {
        self.publish_gauges();
        let counters = metrics::sum(&self.shared.counters);
        StatusReply {
            server: SERVER.to_owned(),
            uptime_ms: now,
            shard_count: self.shared.counters.len() as u32,
            counters: counters
                .into_iter()
                .chain(self.shared.progress.values())
                .map(|(name, value)| Counter { name: name.to_owned(), value })
                .collect(),
        }
    }
}

/// Reads a request to begin or to end a load job.
fn job_command(op: ColdOp, body: &[u8]) -> Result<JobCommand, FrameError> {
    if matches!(op, ColdOp::CancelJob) {
        let request = frame::body::<ArchivedCancelJobRequest>(body)?;
        return Ok(JobCommand::Cancel(request.id.to_native()));
    }
    let (request, replicas) = match op {
        ColdOp::StartCopiesJob => {
            let request = frame::body::<ArchivedStartCopiesJobRequest>(body)?;
            (&request.job, request.replicas)
        }
        _ => (frame::body::<ArchivedStartJobRequest>(body)?, 0),
    };
    Ok(JobCommand::Start(JobSpec {
        id: request.id.to_native(),
        paths: request.paths.iter().map(|path| path.as_str().to_owned()).collect(),
        recursive: request.recursive != 0,
        pin: request.pin != 0,
        bytes_per_second: request.bytes_per_second.to_native(),
        replicas,
    }))
}

fn text(archived: &str) -> Arc<str> {
    Arc::from(archived)
}

/// Reads a request about a path; `everywhere` if the connection speaks for the whole cluster.
fn path_lookup(op: PathOp, body: &[u8], everywhere: bool) -> Result<PathLookup, FrameError> {
    Ok(match op {
        PathOp::Stat => {
            let path = text(&frame::body::<ArchivedStatRequest>(body)?.path);
            PathLookup::Stat { path }
        }
        PathOp::Refresh => {
            let request = frame::body::<ArchivedRefreshRequest>(body)?;
            let (path, recursive) = (text(&request.path), request.recursive != 0);
            PathLookup::Refresh { path, recursive }
        }
        PathOp::List => {
            let request = frame::body::<ArchivedListRequest>(body)?;
            let (path, token) = (text(&request.path), text(&request.token));
            PathLookup::List { path, token, limit: request.limit.to_native() }
        }
        PathOp::Load => {
            let path = text(&frame::body::<ArchivedLoadRequest>(body)?.path);
            PathLookup::Load { path, copies: 0 }
        }
        PathOp::LoadCopies => {
            let request = frame::body::<ArchivedLoadCopiesRequest>(body)?;
            PathLookup::Load { path: text(&request.path), copies: request.replicas }
        }
        PathOp::LoadPart => {
            let request = frame::body::<ArchivedLoadPartRequest>(body)?;
            PathLookup::LoadPart(file_part(request, 0, ""))
        }
        PathOp::LoadPartCopies => {
            let request = frame::body::<ArchivedLoadPartCopiesRequest>(body)?;
            PathLookup::LoadPart(file_part(&request.part, request.replicas, &request.holder))
        }
        PathOp::Free => {
            let path = text(&frame::body::<ArchivedFreeRequest>(body)?.path);
            PathLookup::Free { path, everywhere }
        }
    })
}

/// Reads which blocks a member is to bring in, and from which other one, if there is a name.
fn file_part(request: &ArchivedLoadPartRequest, copies: u8, holder: &str) -> FilePart {
    let first = request.first.to_native();
    FilePart {
        path: text(&request.path),
        file: (&request.file).into(),
        version: request.version.to_native(),
        blocks: first..first.saturating_add(request.count.to_native()),
        copies,
        holder: (!holder.is_empty()).then(|| text(holder)),
    }
}
