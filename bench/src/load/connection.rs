//! One connection of the generator: its socket, its slots, and where in a reply it is.
//!
//! Owns the list of requests in flight. A slot is a request in flight; its number is the request id
//! where replies may overtake each other. Each key of a slot is answered exactly once, else the run ends
//! with an error.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};

use crate::address::Stream;
use crate::sockets::Outbox;
use crate::wire::Step;

/// Stands for a key that has been answered.
const ANSWERED: u64 = u64::MAX;

/// A request in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Keys asked for; 0 while the slot is free.
    key_count: u32,
    /// Keys not answered yet.
    remaining: u32,
    /// When it was sent, or due.
    start_ns: u64,
}

/// The payload that is being received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) slot: u32,
    pub(super) key: u64,
    pub(super) length: usize,
    pub(super) done: bool,
}

/// A connection; `S` is the stage of the wire.
pub(super) struct Connection<S> {
    pub(super) stream: Stream,
    pub(super) lane: usize,
    pub(super) stage: S,
    /// Bytes of a head that is not complete yet.
    pub(super) carry: Vec<u8>,
    pub(super) incoming: Option<Incoming>,
    /// Payload bytes of `incoming` that have not arrived.
    pub(super) left: usize,
    /// Head and payload of `incoming`, kept only where they are checked.
    pub(super) head: Vec<u8>,
    pub(super) payload: Vec<u8>,
    /// Requests not written yet.
    pub(super) out: Outbox,
    slots: Vec<Slot>,
    keys: Vec<u64>,
    batch: usize,
    free: Vec<u32>,
    /// Slots in flight, oldest first; kept only where replies come in order.
    order: VecDeque<u32>,
}

impl<S: Default> Connection<S> {
    pub(super) fn new(stream: Stream, lane: usize, depth: usize, batch: usize) -> Self {
        Connection {
            stream,
            lane,
            stage: S::default(),
            carry: Vec::new(),
            incoming: None,
            left: 0,
            head: Vec::new(),
            payload: Vec::new(),
            out: Outbox::new(),
            slots: vec![Slot::default(); depth],
            keys: vec![ANSWERED; depth * batch],
            batch,
            free: (0..depth as u32).rev().collect(),
            order: VecDeque::with_capacity(depth),
        }
    }

    /// True if another request may be sent.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a free slot for a request that asks for `keys`.
    #[inline]
    pub(super) fn take_slot(&mut self, keys: &[u64], start_ns: u64, in_order: bool) -> u32 {
        let number = self.free.pop().expect("the caller asked for room");
        let key_count = keys.len() as u32;
        self.slots[number as usize] = Slot { key_count, remaining: key_count, start_ns };
        let first = number as usize * self.batch;
        self.keys[first..first + keys.len()].copy_from_slice(keys);
        if in_order {
            self.order.push_back(number);
        }
        number
    }

    /// Returns the slot that a step belongs to, and the key of its part.
    #[inline]
    pub(super) fn locate(&self, step: &Step) -> Result<(u32, u64)> {
        let number = match step.slot {
            Some(number) => number,
            None => *self.order.front().context("a reply to no request")?,
        };
        let slot = self.slots.get(number as usize);
        let in_flight = slot.filter(|slot| slot.key_count > 0);
        let slot = in_flight.with_context(|| format!("a reply to unknown request {number}"))?;
        if step.part >= slot.key_count as usize {
            bail!("a reply to part {} of a request of {}", step.part, slot.key_count);
        }
        Ok((number, self.keys[number as usize * self.batch + step.part]))
    }

    /// Notes that a payload begins.
    #[inline]
    pub(super) fn begin(
        &mut self,
        step: &Step,
        number: u32,
        key: u64,
        length: usize,
    ) -> Result<()> {
        ensure!(key != ANSWERED, "part {} was answered twice", step.part);
        self.keys[number as usize * self.batch + step.part] = ANSWERED;
        self.incoming = Some(Incoming { slot: number, key, length, done: step.done });
        self.left = length;
        Ok(())
    }

    /// Notes that one key of a slot has been answered.
    #[inline]
    pub(super) fn answered(&mut self, number: u32) {
        self.slots[number as usize].remaining -= 1;
    }

    /// Frees the slot if all its keys are answered; returns its start.
    #[inline]
    pub(super) fn finish(&mut self, number: u32, in_order: bool) -> Result<Option<u64>> {
        let slot = self.slots[number as usize];
        if slot.remaining > 0 {
            ensure!(!in_order, "{} of {} keys were not answered", slot.remaining, slot.key_count);
            return Ok(None);
        }
        if in_order {
            self.order.pop_front();
        }
        self.slots[number as usize].key_count = 0;
        self.free.push(number);
        Ok(Some(slot.start_ns))
    }

    /// Returns the start of each request in flight.
    pub(super) fn starts_ns(&self) -> impl Iterator<Item = u64> {
        let busy = self.slots.iter().filter(|slot| slot.key_count > 0);
        busy.map(|slot| slot.start_ns)
    }
}
