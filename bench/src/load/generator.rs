//! The event loop of the generator.
//!
//! Owns phases and clocks. A run goes through warm-up, measurement and drain: no request is sent in
//! the drain (but those an open loop still owes), and when it ends no reply is in flight, so that a
//! server is idle as soon as the run is over.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::epoll;

use super::connection::{Connection, Incoming};
use super::schedule::Schedule;
use super::{Check, LoadOptions, Measured, Phase};
use crate::address::{Address, Stream};
use crate::keys::Keys;
use crate::machine;
use crate::sockets::{Poll, WAIT_NS, latencies};
use crate::wire::{HEAD_LENGTH_MAX, Step, Wire};

/// Most bytes taken from a socket at once. Derived: half of the smallest usual L2 cache.
const RECEIVE_SIZE: usize = 256 << 10;
/// A run without any reply for this long has failed.
const SILENCE_NS_MAX: u64 = 10_000_000_000;
/// Longest time an empty poll is taken to last. Guessed: one takes less than 1 µs, so that a longer
/// one was interrupted by other work, whose time is not that of this thread.
const IDLE_POLL_NS_MAX: u64 = 5_000;
/// Longest wait for a connection to open and answer its greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest drain of an open loop that has fallen behind.
const OPEN_DRAIN_NS_MAX: u64 = 3_000_000_000;
/// Draws until a connection takes a key of another lane, for each lane.
const DRAWS_PER_LANE_MAX: usize = 64;

/// CPU times and clock at one moment.
#[derive(Clone, Copy, Default)]
struct Reading {
    at_ns: u64,
    client_cpu_s: f64,
    server_cpu_s: Option<f64>,
}

pub(super) struct Generator<'a, W: Wire> {
    wire: &'a mut W,
    keys: &'a mut Keys,
    options: &'a LoadOptions<'a>,
    poll: Poll,
    connections: Vec<Connection<W::Stage>>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    request: Vec<u64>,
    origin: Instant,
    phase: Phase,
    exhausted: bool,
    schedule: Option<Schedule>,
    /// Connection whose turn is next.
    cursor: usize,
    /// Connections with requests to write, perhaps more than once.
    touched: Vec<usize>,
    in_flight: usize,
    last_reply_ns: u64,
    /// Time of the measurement spent asking for events that were not there.
    idle_ns: u64,
    begin: Reading,
    end: Reading,
    requests: u64,
    reads: u64,
    bytes: u64,
    latency: Histogram<u64>,
}

impl<'a, W: Wire> Generator<'a, W> {
    pub(super) fn new(
        wire: &'a mut W,
        addresses: &[Address],
        keys: &'a mut Keys,
        options: &'a LoadOptions<'a>,
    ) -> Result<Self> {
        let poll = Poll::new()?;
        let lanes = wire.lanes();
        let mut connections = Vec::with_capacity(options.connections);
        for index in 0..options.connections {
            let lane = index % lanes;
            let stream = connect(wire, &addresses[lane])
                .with_context(|| format!("open connection {index} to {}", addresses[lane]))?;
            poll.add(&stream, index)?;
            connections.push(Connection::new(stream, lane, options.depth, options.batch));
        }
        Ok(Generator {
            wire,
            keys,
            options,
            poll,
            connections,
            buffer: vec![0; RECEIVE_SIZE + HEAD_LENGTH_MAX],
            scratch: Vec::new(),
            request: Vec::with_capacity(options.batch),
            origin: Instant::now(),
            phase: Phase::WarmUp,
            exhausted: false,
            schedule: options
                .rate
                .map(|reads_per_s| Schedule::new(reads_per_s / options.batch as f64)),
            cursor: 0,
            touched: Vec::new(),
            in_flight: 0,
            last_reply_ns: 0,
            idle_ns: 0,
            begin: Reading::default(),
            end: Reading::default(),
            requests: 0,
            reads: 0,
            bytes: 0,
            latency: latencies(),
        })
    }

    pub(super) fn run(&mut self) -> Result<Measured> {
        let warmup_ns = (self.options.warmup_seconds * 1e9) as u64;
        let end_ns = warmup_ns + (self.options.seconds * 1e9) as u64;
        let mut events = Vec::with_capacity(self.connections.len());
        self.origin = Instant::now();
        self.begin = self.read_clocks()?;
        let mut now = self.now_ns();
        self.last_reply_ns = now;
        if self.schedule.is_none() {
            match self.options.in_flight_max {
                Some(_) => self.fill_in_turn(now)?,
                None => (0..self.connections.len()).try_for_each(|index| self.fill(index, now))?,
            }
        }
        loop {
            if self.phase == Phase::WarmUp && now >= warmup_ns {
                self.phase = Phase::Measure;
                self.begin = self.read_clocks()?;
            }
            let over = now >= end_ns || (self.exhausted && self.in_flight == 0);
            if self.phase == Phase::Measure && over {
                self.phase = Phase::Drain;
                self.end = self.read_clocks()?;
            }
            self.send_due(now, end_ns)?;
            if self.phase == Phase::Drain && self.is_drained(now, end_ns) {
                break;
            }
            self.poll.wait(&mut events, if self.spins() { 0 } else { WAIT_NS })?;
            let idle = events.is_empty();
            for event in events.drain(..) {
                self.serve(event.data.u64() as usize, event.flags)?;
            }
            let before = std::mem::replace(&mut now, self.now_ns());
            if idle && self.phase == Phase::Measure && self.spins() {
                self.idle_ns += (now - before).min(IDLE_POLL_NS_MAX);
            }
            if now - self.last_reply_ns > SILENCE_NS_MAX && self.in_flight > 0 {
                bail!(
                    "no reply for {} s with {} requests in flight",
                    SILENCE_NS_MAX / 1_000_000_000,
                    self.in_flight
                );
            }
        }
        Ok(self.measured(end_ns))
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    fn read_clocks(&self) -> Result<Reading> {
        let pid = self.options.server_pid;
        if let Some(marks) = self.options.marks {
            // A receiver that stopped listening does not need it.
            let _ = marks.send(());
        }
        Ok(Reading {
            server_cpu_s: pid.map(machine::process_cpu_s).transpose()?,
            client_cpu_s: machine::thread_cpu_s(),
            at_ns: self.now_ns(),
        })
    }

    /// True if the loop never sleeps. An open loop does not, because a timer would delay its sends.
    fn spins(&self) -> bool {
        self.options.spin || self.schedule.is_some()
    }

    fn is_drained(&self, now: u64, end_ns: u64) -> bool {
        let Some(schedule) = &self.schedule else {
            return self.in_flight == 0;
        };
        let owed = schedule.peek(end_ns).is_some() && !self.exhausted;
        (self.in_flight == 0 && !owed) || now > end_ns + OPEN_DRAIN_NS_MAX
    }

    /// Receives and answers on one connection.
    fn serve(&mut self, index: usize, flags: epoll::EventFlags) -> Result<()> {
        if flags.intersects(!epoll::EventFlags::OUT) {
            let now = self.receive(index).with_context(|| format!("on connection {index}"))?;
            match (self.schedule, self.options.in_flight_max) {
                (None, None) => return self.fill(index, now),
                (None, Some(_)) => self.fill_in_turn(now)?,
                (Some(_), _) => {}
            }
        }
        self.flush(index)
    }

    /// Reads what the socket has and parses it; returns the time of the last read.
    fn receive(&mut self, index: usize) -> Result<u64> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            let connection = &mut self.connections[index];
            // The start of a head that the last read cut off goes before the bytes of this one.
            let start = connection.carry.len();
            let room = &mut buffer[start..start + RECEIVE_SIZE];
            let read = connection.stream.read(room);
            let now = self.now_ns();
            match read {
                Ok(0) => break Err(anyhow!("the server closed the connection")),
                Ok(length) => {
                    let connection = &mut self.connections[index];
                    buffer[..start].copy_from_slice(&connection.carry);
                    connection.carry.clear();
                    self.last_reply_ns = now;
                    let consumed = self.consume(index, &buffer[..start + length], now);
                    if consumed.is_err() || length < RECEIVE_SIZE {
                        break consumed.map(|()| now);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(now),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(anyhow!(error).context("receive a reply")),
            }
        };
        self.buffer = buffer;
        result
    }

    /// Parses received bytes: heads are judged, payload is passed over or kept to be checked.
    fn consume(&mut self, index: usize, bytes: &[u8], now: u64) -> Result<()> {
        let keep = !matches!(self.options.check, Check::Lengths);
        let mut position = 0;
        loop {
            let connection = &mut self.connections[index];
            if let Some(incoming) = connection.incoming {
                let length = connection.left.min(bytes.len() - position);
                if keep {
                    let chunk = &bytes[position..position + length];
                    connection.payload.extend_from_slice(chunk);
                }
                connection.left -= length;
                position += length;
                if connection.left > 0 {
                    return Ok(());
                }
                connection.incoming = None;
                self.payload_arrived(index, incoming, now)?;
                continue;
            }
            let rest = &bytes[position..];
            if rest.is_empty() {
                return Ok(());
            }
            let Some(step) = self.wire.step(&mut connection.stage, rest)? else {
                ensure!(rest.len() <= HEAD_LENGTH_MAX, "the head of a reply is too long");
                connection.carry.extend_from_slice(rest);
                return Ok(());
            };
            if keep && step.payload.is_some() {
                connection.head.clear();
                connection.head.extend_from_slice(&rest[..step.head]);
                connection.payload.clear();
            }
            position += step.head;
            self.take_step(index, &step, now)?;
        }
    }

    #[inline]
    fn take_step(&mut self, index: usize, step: &Step, now: u64) -> Result<()> {
        let connection = &mut self.connections[index];
        let (slot, key) = connection.locate(step)?;
        let Some(length) = step.payload else {
            return if step.done { self.finish(index, slot, now) } else { Ok(()) };
        };
        connection.begin(step, slot, key, length)?;
        let expected = self.wire.length(key);
        if length != expected {
            bail!("a reply of {length} bytes where {expected} were asked for");
        }
        Ok(())
    }

    #[inline]
    fn payload_arrived(&mut self, index: usize, incoming: Incoming, now: u64) -> Result<()> {
        let connection = &mut self.connections[index];
        match self.options.check {
            Check::Lengths => {}
            Check::Checksums => {
                self.wire.verify(incoming.key, &connection.head, &connection.payload)?;
            }
            Check::Content(set) => {
                self.wire.verify(incoming.key, &connection.head, &connection.payload)?;
                set.check(incoming.key, &connection.payload, &mut self.scratch)?;
            }
        }
        connection.answered(incoming.slot);
        if self.phase == Phase::Measure {
            self.reads += 1;
            self.bytes += incoming.length as u64;
        }
        if incoming.done {
            self.finish(index, incoming.slot, now)?;
        }
        Ok(())
    }

    #[inline]
    fn finish(&mut self, index: usize, slot: u32, now: u64) -> Result<()> {
        let Some(start_ns) = self.connections[index].finish(slot, W::IN_ORDER)? else {
            return Ok(());
        };
        self.in_flight -= 1;
        if self.phase == Phase::Measure {
            self.requests += 1;
        }
        // A closed loop counts what ends in the measured time; an open loop what was due in it.
        let counts = match self.schedule {
            None => self.phase == Phase::Measure,
            Some(_) => self.phase != Phase::WarmUp && start_ns >= self.begin.at_ns,
        };
        if counts {
            self.latency.saturating_record(now.saturating_sub(start_ns));
        }
        Ok(())
    }

    /// Fills a connection in the closed loop: uses every free slot, in one write.
    fn fill(&mut self, index: usize, now: u64) -> Result<()> {
        while self.phase != Phase::Drain && self.connections[index].has_room() {
            if !self.issue(index, now) {
                break;
            }
        }
        self.flush(index)
    }

    /// Sends what is due in the open loop, each request on the next connection that has room.
    fn send_due(&mut self, now: u64, end_ns: u64) -> Result<()> {
        let Some(mut schedule) = self.schedule else {
            return Ok(());
        };
        while let Some(due) = schedule.peek(end_ns.min(now + 1)) {
            if !self.issue_in_turn(due) {
                break;
            }
            schedule.advance();
        }
        self.schedule = Some(schedule);
        self.flush_touched()
    }

    /// Fills all connections in the closed loop with a common limit: keeps that many requests in flight,
    /// each on the next connection that has room.
    fn fill_in_turn(&mut self, now: u64) -> Result<()> {
        let in_flight_max = self.options.in_flight_max.unwrap_or(usize::MAX);
        while self.phase != Phase::Drain && self.in_flight < in_flight_max {
            if !self.issue_in_turn(now) {
                break;
            }
        }
        self.flush_touched()
    }

    /// Encodes one request on the next connection that has room. True if one had, and the keys have not
    /// ended.
    fn issue_in_turn(&mut self, start_ns: u64) -> bool {
        let count = self.connections.len();
        let mut order = (self.cursor..count).chain(0..self.cursor);
        let Some(index) = order.find(|&index| self.connections[index].has_room()) else {
            return false;
        };
        if !self.issue(index, start_ns) {
            return false;
        }
        self.cursor = (index + 1) % count;
        self.touched.push(index);
        true
    }

    /// Writes on the connections that have got requests in turn.
    fn flush_touched(&mut self) -> Result<()> {
        let touched = std::mem::take(&mut self.touched);
        touched.iter().try_for_each(|&index| self.flush(index))?;
        self.touched = touched;
        self.touched.clear();
        Ok(())
    }

    /// Encodes one request. True if there was a key left.
    #[inline]
    fn issue(&mut self, index: usize, start_ns: u64) -> bool {
        let lane = self.connections[index].lane;
        self.request.clear();
        while self.request.len() < self.options.batch {
            let Some(key) = self.draw(lane) else {
                self.exhausted = true;
                return false;
            };
            self.request.push(key);
        }
        let connection = &mut self.connections[index];
        let slot = connection.take_slot(&self.request, start_ns, W::IN_ORDER);
        self.wire.encode(slot, &self.request, &mut connection.out.bytes);
        self.in_flight += 1;
        true
    }

    /// Draws a key of a lane. A lane that seems to own none gets another's: the server passes it on.
    #[inline]
    fn draw(&mut self, lane: usize) -> Option<u64> {
        let lanes = self.wire.lanes();
        let mut key = self.keys.next()?;
        if lanes == 1 {
            return Some(key);
        }
        for _ in 0..lanes * DRAWS_PER_LANE_MAX {
            if self.wire.lane(key) == lane {
                break;
            }
            key = self.keys.next()?;
        }
        Some(key)
    }

    fn flush(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        self.poll.flush(index, &connection.stream, &mut connection.out)
    }

    fn measured(&mut self, end_ns: u64) -> Measured {
        let mut unanswered = 0;
        if let Some(schedule) = &mut self.schedule {
            let now = self.origin.elapsed().as_nanos() as u64;
            let late = self.connections.iter().flat_map(Connection::starts_ns);
            let mut starts: Vec<u64> = late.collect();
            while let Some(due) = schedule.peek(end_ns).filter(|_| !self.exhausted) {
                starts.push(due);
                schedule.advance();
            }
            for start_ns in starts {
                if start_ns >= self.begin.at_ns {
                    unanswered += 1;
                    self.latency.saturating_record(now.saturating_sub(start_ns));
                }
            }
        }
        let used = |end: Option<f64>, begin: Option<f64>| Some((end? - begin?).max(0.0));
        let client_cpu_s = self.end.client_cpu_s - self.begin.client_cpu_s;
        let seconds = (self.end.at_ns - self.begin.at_ns) as f64 / 1e9;
        let spun = self.spins() && seconds > 0.0;
        Measured {
            requests: self.requests,
            reads: self.reads,
            bytes: self.bytes,
            seconds,
            client_cpu_s: (client_cpu_s - self.idle_ns as f64 / 1e9).max(0.0),
            server_cpu_s: used(self.end.server_cpu_s, self.begin.server_cpu_s),
            kept_away_share: spun.then(|| (1.0 - client_cpu_s / seconds).max(0.0)),
            unanswered,
            latency: self.latency.clone(),
        }
    }
}

fn connect<W: Wire>(wire: &mut W, address: &Address) -> Result<Stream> {
    let mut stream = Stream::connect(address, CONNECT_TIMEOUT)?;
    wire.greet(&mut stream)?;
    stream.set_nonblocking()?;
    Ok(stream)
}
