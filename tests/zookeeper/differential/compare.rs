//! Whether two servers said the same.
//!
//! Owns what was learnt about values that the servers choose themselves: zxids are equal by rank,
//! session ids by the client that got them, times by the transaction they belong to. What is learnt
//! binds: a zxid that was paired once must come in the same pair ever after. Knowledge lasts a round.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use crate::exceptions::{Exception, Exceptions};
use crate::item::{Field, Item, Kind, Value};

/// How far the clock of a server may be from ours, in milliseconds: they are on one machine.
const CLOCK_SKEW_MS_MAX: i64 = 60_000;

/// Two lists of items differ here.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Position in both lists.
    pub(crate) index: usize,
    pub(crate) reason: String,
}

/// How a pair of lists is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Item by item.
    Strict,
    /// The items are events of one closed session.
    CloseEvents,
}

#[derive(Default)]
pub(crate) struct Comparer {
    /// Left zxids to right ones: strictly monotone, so that pairs are unique on both sides.
    zxids: BTreeMap<i64, i64>,
    sessions: Vec<(i64, i64)>,
    /// Time of each transaction, left and right, in milliseconds.
    times: [HashMap<i64, i64>; 2],
    pub(crate) exceptions: Exceptions,
    /// True if [`Exception::LastZxid`] is allowed.
    pub(crate) sparse_zxids: bool,
}

impl Comparer {
    /// Forgets what was learnt in the round before.
    pub(crate) fn begin_round(&mut self) {
        self.zxids.clear();
        self.sessions.clear();
        for times in &mut self.times {
            times.clear();
        }
    }

    /// Pairs the ids that a new session was given.
    pub(crate) fn pair_sessions(&mut self, left: i64, right: i64) {
        self.sessions.push((left, right));
    }

    /// Returns a pair of zxids, `fraction` of the way (0 to 1) from the oldest known to the newest.
    pub(crate) fn zxid_pair(&self, fraction: f64) -> (i64, i64) {
        let index = (fraction * self.zxids.len() as f64) as usize;
        self.zxids.iter().nth(index).map_or((0, 0), |(left, right)| (*left, *right))
    }

    /// Compares what both servers said on one connection. `seen` are the zxids of the last reply before.
    /// With `learn` new pairs are believed; without it they are differences.
    pub(crate) fn lists(
        &mut self,
        [left, right]: [&[Item]; 2],
        seen: [i64; 2],
        order: Order,
        learn: bool,
    ) -> Result<(), Difference> {
        if order == Order::CloseEvents {
            return self.close_events([left, right], seen, learn);
        }
        let mut seen = seen;
        for index in 0..left.len().max(right.len()) {
            let differs = |reason: String| Difference { index, reason };
            let (Some(left_item), Some(right_item)) = (left.get(index), right.get(index)) else {
                let (more, fewer) =
                    if left.len() > right.len() { ("left", "right") } else { ("right", "left") };
                return Err(differs(format!("only the {more} server said it, not the {fewer}")));
            };
            if left_item.kind == Kind::Event {
                let next = [next_zxid(left, index), next_zxid(right, index)];
                self.event_zxid([left_item, right_item], seen, next, learn).map_err(differs)?;
            }
            self.items(left_item, right_item, learn).map_err(differs)?;
            for (side, item) in [left_item, right_item].into_iter().enumerate() {
                seen[side] = reply_zxid(item).unwrap_or(seen[side]);
            }
        }
        Ok(())
    }

    /// Compares a list in which the order of events says nothing.
    fn close_events(
        &mut self,
        lists: [&[Item]; 2],
        seen: [i64; 2],
        learn: bool,
    ) -> Result<(), Difference> {
        let sorted = lists.map(|list| {
            let mut list = list.to_vec();
            let key = |item: &Item| {
                let path = item.texts("path").next().unwrap_or_default().to_owned();
                (item.kind != Kind::Event, path, item.number("type"))
            };
            list.sort_by_cached_key(key);
            list
        });
        let [left, right] = &sorted;
        self.lists([left, right], seen, Order::Strict, learn)?;
        let path = |item: &Item| item.texts("path").next().map(str::to_owned);
        let is_same_order = lists[0].iter().map(path).eq(lists[1].iter().map(path));
        if learn && !is_same_order {
            self.exceptions.count(Exception::CloseOrder);
        }
        Ok(())
    }

    fn items(&mut self, left: &Item, right: &Item, learn: bool) -> Result<(), String> {
        if left.kind != right.kind {
            return Err(format!("{:?} on the left, {:?} on the right", left.kind, right.kind));
        }
        for (left_field, right_field) in left.fields.iter().zip(&right.fields) {
            if left_field.name != right_field.name || !self.fields(left_field, right_field, learn) {
                let shown = |field: &Field| format!("{}={}", field.name, field.value);
                return Err(format!(
                    "{} on the left, {} on the right",
                    shown(left_field),
                    shown(right_field)
                ));
            }
        }
        if left.fields.len() != right.fields.len() {
            let (more, fields) = if left.fields.len() > right.fields.len() {
                ("left", &left.fields)
            } else {
                ("right", &right.fields)
            };
            let extra = &fields[left.fields.len().min(right.fields.len())];
            return Err(format!("{}={} only on the {more}", extra.name, extra.value));
        }
        Ok(())
    }

    fn fields(&mut self, left: &Field, right: &Field, learn: bool) -> bool {
        match (&left.value, &right.value) {
            (Value::Zxid(left), Value::Zxid(right)) => self.zxid(*left, *right, learn),
            (Value::LastZxid(left), Value::LastZxid(right)) => {
                self.zxid(*left, *right, learn) || self.last_zxid(*left, *right, learn)
            }
            // Compared with its neighbours, in `event_zxid`.
            (Value::EventZxid(_), Value::EventZxid(_)) => true,
            (Value::Session(left), Value::Session(right)) => self.session(*left, *right),
            (
                Value::Time { zxid: left_zxid, ms: left_ms },
                Value::Time { zxid: right_zxid, ms: right_ms },
            ) => {
                (*left_ms == 0) == (*right_ms == 0)
                    && self.time(0, *left_zxid, *left_ms, learn)
                    && self.time(1, *right_zxid, *right_ms, learn)
            }
            (Value::Acl(left), Value::Acl(right)) => {
                left == right || self.acl_in_other_order(left, right, learn)
            }
            (left, right) => left == right,
        }
    }

    fn zxid(&mut self, left: i64, right: i64, learn: bool) -> bool {
        if let Some(paired) = self.zxids.get(&left) {
            return *paired == right;
        }
        // 0 and below are not the zxid of a transaction.
        if left <= 0 || right <= 0 {
            return left == right;
        }
        let before = self.zxids.range(..left).next_back();
        let after = self.zxids.range(left..).next();
        let fits = before.is_none_or(|(_, before)| *before < right)
            && after.is_none_or(|(_, after)| right < *after);
        if fits && learn {
            self.zxids.insert(left, right);
        }
        fits && learn
    }

    /// True if both servers had applied the same of the transactions that are known.
    fn last_zxid(&mut self, left: i64, right: i64, learn: bool) -> bool {
        let applied = self.zxids.range(..=left).next_back();
        let not_applied = self.zxids.range(left + 1..).next();
        let fits = self.sparse_zxids
            && left > 0
            && applied.is_none_or(|(_, applied)| *applied <= right)
            && not_applied.is_none_or(|(_, not_applied)| right < *not_applied);
        if fits && learn {
            self.exceptions.count(Exception::LastZxid);
        }
        fits
    }

    fn session(&self, left: i64, right: i64) -> bool {
        (left == 0 && right == 0) || self.sessions.contains(&(left, right))
    }

    /// True if a transaction has one time, and it is about now; what was there from the start has none.
    fn time(&mut self, side: usize, zxid: i64, ms: i64, learn: bool) -> bool {
        if let Some(known_ms) = self.times[side].get(&zxid) {
            return *known_ms == ms;
        }
        if ms == 0 {
            return zxid == 0;
        }
        if learn {
            self.times[side].insert(zxid, ms);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Nodes of earlier rounds are older.
        learn && ms <= now.as_millis() as i64 + CLOCK_SKEW_MS_MAX && ms > 1_500_000_000_000
    }

    fn acl_in_other_order(
        &mut self,
        left: &[(i32, String, String)],
        right: &[(i32, String, String)],
        learn: bool,
    ) -> bool {
        // Only the places of digests may be exchanged.
        let others_match = left.len() == right.len()
            && left
                .iter()
                .zip(right)
                .all(|(left, right)| left == right || (left.1 == "digest" && right.1 == "digest"));
        let (mut left, mut right) = (left.to_vec(), right.to_vec());
        left.sort_unstable();
        right.sort_unstable();
        let is_known = others_match && left == right;
        if is_known && learn {
            self.exceptions.count(Exception::AclOrder);
        }
        is_known
    }

    fn event_zxid(
        &mut self,
        items: [&Item; 2],
        seen: [i64; 2],
        next: [Option<i64>; 2],
        learn: bool,
    ) -> Result<(), String> {
        let zxids = items.map(|item| {
            item.fields.iter().find_map(|field| match field.value {
                Value::EventZxid(zxid) => Some(zxid),
                _ => None,
            })
        });
        let [Some(left), Some(right)] = zxids else { return Ok(()) };
        if left == right && left == -1 {
            return Ok(());
        }
        for (side, zxid) in [left, right].into_iter().enumerate() {
            let is_after = zxid > seen[side] && next[side].is_none_or(|next| zxid <= next);
            if zxid != -1 && !is_after {
                let side = if side == 0 { "left" } else { "right" };
                return Err(format!(
                    "the event's zxid {zxid} on the {side} is not that of a write"
                ));
            }
        }
        if learn {
            self.exceptions.count(Exception::EventZxid);
        }
        Ok(())
    }
}

/// Returns the zxid of the first reply after `index`.
fn next_zxid(items: &[Item], index: usize) -> Option<i64> {
    items[index..].iter().find_map(reply_zxid)
}

/// Returns the zxid in a reply's header. Some have none: answers to credentials.
pub(crate) fn reply_zxid(item: &Item) -> Option<i64> {
    item.number("zxid").filter(|zxid| *zxid > 0)
}

#[cfg(test)]
mod tests;
