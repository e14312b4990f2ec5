//! Requests that a client may send, with arguments that are right most of the time.

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{Acl, CreateKind, Request, create_mode, opcode, watcher_type};

use super::world::{NODES_MANY, Node};
use super::{Generator, watches};
use crate::compare::Comparer;
use crate::op::Op;

/// `u1:p1` and `u2:p2`, the users whose credentials clients present.
const DIGESTS: [&str; 2] = ["u1:fpT/y03U+EjItKZOSLGvjnJlyng=", "u2:o9NxcCGDPOlcV7JVhmKHOf5ctVE="];
/// Most operations of a multi.
const MULTI_MAX: usize = 6;
/// How often each operation is chosen.
const WEIGHTS: [(i32, u32); 22] = [
    (opcode::CREATE, 150),
    (opcode::CREATE2, 100),
    (opcode::CREATE_CONTAINER, 15),
    (opcode::CREATE_TTL, 25),
    (opcode::DELETE, 110),
    (opcode::EXISTS, 80),
    (opcode::GET_DATA, 100),
    (opcode::SET_DATA, 110),
    (opcode::GET_ACL, 30),
    (opcode::SET_ACL, 20),
    (opcode::GET_CHILDREN, 45),
    (opcode::GET_CHILDREN2, 45),
    (opcode::GET_ALL_CHILDREN_NUMBER, 15),
    (opcode::GET_EPHEMERALS, 15),
    (opcode::SYNC, 15),
    (opcode::MULTI, 80),
    (opcode::MULTI_READ, 25),
    (opcode::SET_WATCHES, 8),
    (opcode::SET_WATCHES2, 8),
    (opcode::ADD_WATCH, 20),
    (opcode::CHECK_WATCHES, 12),
    (opcode::REMOVE_WATCHES, 12),
];
/// Chosen beside those above, each once in a thousand.
const RARE: [i32; 4] = [opcode::WHO_AM_I, opcode::PING, opcode::RECONFIG, opcode::DELETE_CONTAINER];
/// Chosen in this many of a thousand cases: an operation on a quota's nodes.
const QUOTA_PERMILLE: u32 = 20;

impl Generator {
    pub(super) fn sensible(&mut self, slot: usize, comparer: &Comparer) -> Op {
        let roll = self.rng.u32(..1000);
        if roll < QUOTA_PERMILLE {
            return self.quota();
        }
        if let Some(code) = RARE.get((roll - QUOTA_PERMILLE) as usize) {
            return self.request(slot, *code, comparer);
        }
        let total: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut roll = self.rng.u32(..total);
        for (code, weight) in WEIGHTS {
            if roll < weight {
                return self.request(slot, code, comparer);
            }
            roll -= weight;
        }
        self.request(slot, opcode::EXISTS, comparer)
    }

    /// Returns a request of operation `code`.
    pub(super) fn request(&mut self, slot: usize, code: i32, comparer: &Comparer) -> Op {
        match code {
            opcode::MULTI => return self.multi(),
            opcode::SET_WATCHES | opcode::SET_WATCHES2 => {
                return self.set_watches(slot, code, comparer);
            }
            opcode::CHECK_WATCHES | opcode::REMOVE_WATCHES => return self.unwatch(slot, code),
            opcode::MULTI_READ => return self.multi_read(slot),
            opcode::DELETE_CONTAINER => {
                // The operation is the server's own, refused from a client: its record is a path without
                // a length.
                return Op::of_record(code, self.world.known(&mut self.rng).into_bytes());
            }
            _ => {}
        }
        if is_write_code(code) {
            return self.write(code);
        }
        let path = self.world.any(&mut self.rng);
        let path = path.as_str();
        let chance = self.rng.u32(..100) < 40;
        let watches =
            [opcode::EXISTS, opcode::GET_DATA, opcode::GET_CHILDREN, opcode::GET_CHILDREN2];
        let watch = chance
            && watches.contains(&code)
            && self.watches.ask(slot, path, watches::Kind::Standard);
        let request = match code {
            opcode::EXISTS => Request::Exists { path, watch },
            opcode::GET_DATA => Request::GetData { path, watch },
            opcode::GET_ACL => Request::GetAcl { path },
            opcode::GET_CHILDREN => Request::GetChildren { path, watch },
            opcode::GET_CHILDREN2 => Request::GetChildren2 { path, watch },
            opcode::GET_ALL_CHILDREN_NUMBER => Request::GetAllChildrenNumber { path },
            opcode::SYNC => Request::Sync { path },
            opcode::ADD_WATCH => {
                let is_odd = self.rng.u32(..20) == 0;
                let mode = if is_odd { self.rng.i32(-2..4) } else { self.rng.i32(0..2) };
                let kind = watches::Kind::of_mode(mode);
                if kind.is_some_and(|kind| !self.watches.ask(slot, path, kind)) {
                    return Op::new(&Request::Exists { path, watch: false });
                }
                Request::AddWatch { path, mode }
            }
            opcode::GET_EPHEMERALS => {
                let prefixes = [None, Some(""), Some("/"), Some(" "), Some(path), Some("r")];
                Request::GetEphemerals { prefix: prefixes[self.rng.usize(..prefixes.len())] }
            }
            opcode::RECONFIG => {
                let joining = Some("server.9=127.0.0.1:1:2:participant;3");
                let leaving = if chance { Some("9") } else { None };
                let config_id = self.rng.i64(-1..2);
                Request::Reconfig { joining, leaving, new_members: None, config_id }
            }
            opcode::WHO_AM_I => Request::WhoAmI,
            _ => Request::Ping,
        };
        Op::new(&request)
    }

    /// Returns a write of one node, or a check, which a multi may hold.
    fn write(&mut self, code: i32) -> Op {
        let is_full = self.world.nodes.len() > NODES_MANY;
        let code =
            if is_full && is_create(code) && self.rng.bool() { opcode::DELETE } else { code };
        if is_create(code) {
            return self.create(code);
        }
        let path = match code {
            opcode::DELETE | opcode::SET_ACL => self.world.leaf(&mut self.rng),
            _ => self.world.any(&mut self.rng),
        };
        // This is not done to nodes that all share: with the wrong list nothing else would succeed.
        let path = if code == opcode::SET_ACL && !self.world.is_of_round(&path) {
            self.world.bad(&mut self.rng)
        } else {
            path
        };
        let path = path.as_str();
        let known: fn(&Node) -> i32 = match code {
            opcode::SET_ACL => |node| node.aversion,
            _ => |node| node.version,
        };
        let version = self.world.version(&mut self.rng, known, path);
        let data = self.data();
        let acl = self.acl();
        Op::new(&match code {
            opcode::DELETE => Request::Delete { path, version },
            opcode::SET_DATA => Request::SetData { path, data: data.as_deref(), version },
            opcode::SET_ACL => Request::SetAcl { path, acl, version },
            _ => Request::Check { path, version },
        })
    }

    fn create(&mut self, code: i32) -> Op {
        let (kind, usual) = match code {
            opcode::CREATE => (CreateKind::Create, create_mode::PERSISTENT),
            opcode::CREATE2 => (CreateKind::Create2, create_mode::PERSISTENT),
            opcode::CREATE_CONTAINER => (CreateKind::Container, create_mode::CONTAINER),
            _ => (CreateKind::Ttl, create_mode::PERSISTENT_TTL),
        };
        let flags = match (kind, self.rng.u32(..100)) {
            (_, 0..2) => [7, -1, 100, i32::MIN][self.rng.usize(..4)],
            // The flags of another kind of create.
            (_, 2..4) => self.rng.i32(0..7),
            (CreateKind::Create | CreateKind::Create2, roll) => match roll {
                4..50 => create_mode::PERSISTENT,
                50..70 => create_mode::EPHEMERAL,
                70..86 => create_mode::PERSISTENT_SEQUENTIAL,
                86..98 => create_mode::EPHEMERAL_SEQUENTIAL,
                _ => create_mode::CONTAINER,
            },
            (CreateKind::Ttl, 60..) => create_mode::PERSISTENT_SEQUENTIAL_TTL,
            _ => usual,
        };
        let is_sequential = [
            create_mode::PERSISTENT_SEQUENTIAL,
            create_mode::EPHEMERAL_SEQUENTIAL,
            create_mode::PERSISTENT_SEQUENTIAL_TTL,
        ]
        .contains(&flags);
        let path = if is_sequential && self.rng.u32(..10) > 0 {
            let parent = self.world.known(&mut self.rng);
            let suffix = ["/", "/s-", "/a", "/../", "//", "/lock-"];
            format!("{parent}{}", suffix[self.weighted(&[10, 20, 5, 1, 1, 5])])
        } else {
            self.world.creatable(&mut self.rng)
        };
        // ZooKeeper may die of a negative one with the flags of a node that has no time to live.
        let odd = [0, i64::MAX, 1 << 40, (1 << 40) - 1, i64::MIN, -1];
        let odd_count = if flags == usual { odd.len() } else { odd.len() - 2 };
        let ttl_ms = match self.rng.u32(..40) {
            0 => odd[self.rng.usize(..odd_count)],
            // This is long enough that none ends within a run.
            _ => 86_400_000,
        };
        let data = self.data();
        let acl = self.acl();
        let path = path.as_str();
        Op::new(&Request::Create { kind, path, data: data.as_deref(), acl, flags, ttl_ms })
    }

    fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut roll = self.rng.u32(..weights.iter().sum::<u32>());
        weights
            .iter()
            .position(|weight| {
                let is_chosen = roll < *weight;
                roll = roll.saturating_sub(*weight);
                is_chosen
            })
            .unwrap_or(0)
    }

    /// Returns null, empty, short, and seldom long data.
    fn data(&mut self) -> Option<Vec<u8>> {
        let size = match self.rng.u32(..10_000) {
            0..600 => return None,
            600..1600 => 0,
            1600..9800 => self.rng.usize(1..40),
            9800..9985 => self.rng.usize(100..2000),
            9985..9998 => self.rng.usize(10_000..60_000),
            // Near the largest packet.
            _ => self.rng.usize(900_000..1_048_000),
        };
        Some((0..size).map(|_| self.rng.u8(b'a'..=b'z')).collect())
    }

    pub(super) fn acl(&mut self) -> Option<Vec<Acl<'static>>> {
        if self.rng.u32(..100) < 88 {
            return Some(vec![OPEN_ACL]);
        }
        if self.rng.u32(..30) == 0 {
            return None;
        }
        let count = self.weighted(&[2, 20, 8, 3]);
        let mut acl: Vec<Acl<'static>> = (0..count).map(|_| self.acl_entry()).collect();
        if self.rng.u32(..6) == 0 {
            acl.extend_from_within(..);
        }
        Some(acl)
    }

    fn acl_entry(&mut self) -> Acl<'static> {
        let perms = match self.rng.u32(..20) {
            0 => [0, 32, -1, 255][self.rng.usize(..4)],
            1..10 => 31,
            _ => self.rng.i32(1..32),
        };
        let entries = [
            ("world", "anyone", 40),
            ("digest", DIGESTS[0], 40),
            ("digest", DIGESTS[1], 20),
            ("auth", "", 30),
            ("auth", "ignored", 5),
            ("ip", "127.0.0.1", 20),
            ("ip", "127.0.0.0/8", 5),
            ("ip", "10.0.0.0/8", 5),
            ("ip", "127.0.0.1/33", 2),
            ("ip", "127.0.0.1/x", 1),
            ("ip", "300.0.0.1", 2),
            ("ip", "::1", 2),
            ("ip", "", 1),
            ("world", "nobody", 2),
            ("world", "", 1),
            ("digest", "u1", 2),
            ("digest", "u1:", 1),
            ("digest", "u1:p:q", 1),
            ("digest", "", 1),
            ("super", "super", 1),
            ("sasl", "user", 1),
            ("x509", "CN=a", 1),
            ("none", "x", 2),
            ("", "", 1),
        ];
        let weights = entries.map(|(_, _, weight)| weight);
        let (scheme, id, _) = entries[self.weighted(&weights)];
        Acl { perms, scheme, id }
    }

    fn multi(&mut self) -> Op {
        let count = self.rng.usize(0..=MULTI_MAX);
        let ops: Vec<Op> = (0..count)
            .map(|_| {
                let codes = [
                    opcode::CREATE,
                    opcode::CREATE2,
                    opcode::CREATE_CONTAINER,
                    opcode::CREATE_TTL,
                    opcode::DELETE,
                    opcode::SET_DATA,
                    opcode::CHECK,
                ];
                let code = codes[self.weighted(&[20, 20, 2, 3, 15, 25, 20])];
                self.write(code)
            })
            .collect();
        Op::new(&Request::Multi(ops.iter().filter_map(Op::request).collect()))
    }

    fn multi_read(&mut self, slot: usize) -> Op {
        let count = self.rng.usize(0..=MULTI_MAX);
        let reads: Vec<(String, bool, bool)> = (0..count)
            .map(|_| {
                let path = self.world.any(&mut self.rng);
                let watch = self.rng.u32(..5) == 0
                    && self.watches.ask(slot, &path, watches::Kind::Standard);
                (path, self.rng.bool(), watch)
            })
            .collect();
        let request = |(path, is_data, watch): &(String, bool, bool)| -> Vec<u8> {
            let path = path.as_str();
            let watch = *watch;
            Op::new(&if *is_data {
                Request::GetData { path, watch }
            } else {
                Request::GetChildren { path, watch }
            })
            .records[0]
                .clone()
        };
        let records: Vec<Vec<u8>> = reads.iter().map(request).collect();
        let requests = reads.iter().zip(&records).filter_map(|((_, is_data, _), record)| {
            let code = if *is_data { opcode::GET_DATA } else { opcode::GET_CHILDREN };
            Request::decode(code, record).ok()
        });
        Op::new(&Request::MultiRead(requests.collect()))
    }

    fn set_watches(&mut self, slot: usize, code: i32, comparer: &Comparer) -> Op {
        let is_second = code == opcode::SET_WATCHES2;
        let mut list = |kind| -> Vec<String> {
            if kind != watches::Kind::Standard && !is_second {
                return Vec::new();
            }
            let count = self.rng.usize(0..4);
            let paths = (0..count).map(|_| self.world.any(&mut self.rng));
            paths.filter(|path| self.watches.ask(slot, path, kind)).collect()
        };
        let standard = watches::Kind::Standard;
        let lists: [Vec<String>; 5] = [
            list(standard),
            list(standard),
            list(standard),
            list(watches::Kind::Persistent),
            list(watches::Kind::Recursive),
        ];
        let [data, exist, child, persistent, recursive] =
            lists.each_ref().map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
        let zxids = match self.rng.u32(..20) {
            0 => (-1, -1),
            1 => (i64::MAX, i64::MAX),
            2..5 => (0, 0),
            _ => comparer.zxid_pair(self.rng.f64()),
        };
        let mut op = Op::new(&Request::SetWatches {
            relative_zxid: 0,
            data,
            exist,
            child,
            persistent,
            recursive,
        });
        for (record, zxid) in op.records.iter_mut().zip([zxids.0, zxids.1]) {
            record[..8].copy_from_slice(&zxid.to_be_bytes());
            if is_second && op.code == opcode::SET_WATCHES {
                // Two empty lists more.
                record.extend_from_slice(&[0; 8]);
            }
        }
        op.code = code;
        op
    }

    fn unwatch(&mut self, slot: usize, code: i32) -> Op {
        let watched = self.watches.choose(slot, &mut self.rng).map(str::to_owned);
        let path = match watched {
            Some(path) if self.rng.u32(..4) > 0 => path,
            _ => self.world.any(&mut self.rng),
        };
        let path = path.as_str();
        let is_odd = self.rng.u32(..20) == 0;
        let kind = match self.watches.kind(slot, path) {
            _ if is_odd => [-1, 0, 6, 9][self.rng.usize(..4)],
            Some(watches::Kind::Standard) | None => self.rng.i32(1..4),
            // The names of these halves changed after 3.8.
            Some(_) => watcher_type::ANY,
        };
        // ZooKeeper says -5 of a path without a slash where any client has a recursive watch.
        let may_check = path.starts_with('/') && self.watches.is_alone(slot, path);
        Op::new(&if code == opcode::CHECK_WATCHES && may_check {
            Request::CheckWatches { path, kind }
        } else {
            Request::RemoveWatches { path, kind }
        })
    }

    /// Returns an operation on the nodes of a quota.
    fn quota(&mut self) -> Op {
        let path = self.world.quota(&mut self.rng);
        let path = path.as_str();
        let texts = ["count=5,bytes=100", "count=-1,bytes=-1", "count=1,bytes=5=;countHardLimit=2"];
        let text = texts[self.rng.usize(..texts.len())];
        let data = Some(if path.ends_with("stats") { "count=0,bytes=0" } else { text }.as_bytes());
        Op::new(&match self.rng.u32(..10) {
            0..5 => {
                let acl = Some(vec![OPEN_ACL]);
                Request::Create { kind: CreateKind::Create, path, data, acl, flags: 0, ttl_ms: 0 }
            }
            5..8 => Request::GetData { path, watch: self.rng.bool() },
            8 => Request::SetData { path, data, version: -1 },
            _ => Request::Delete { path, version: -1 },
        })
    }

    /// Returns credentials: right, wrong, and of schemes that do not exist.
    pub(super) fn credentials(&mut self) -> Op {
        if self.rng.u32(..50) == 0 {
            return Op::new(&Request::Sasl { token: b"token" });
        }
        let known: [(&str, &str, u32); 12] = [
            ("digest", "u1:p1", 40),
            ("digest", "u2:p2", 20),
            ("digest", "u1:wrong", 3),
            ("digest", "", 1),
            ("digest", "nopassword", 1),
            ("digest", ":", 1),
            ("digest", "a:b:c", 2),
            ("digest", "super:test", 2),
            ("digest", "super:wrong", 1),
            ("world", "anyone", 1),
            ("ip", "127.0.0.1", 2),
            ("ip", "1.2.3.4", 1),
        ];
        let weights = known.map(|(_, _, weight)| weight);
        let (scheme, text, _) = known[self.weighted(&weights)];
        Op::new(&Request::Auth { scheme, auth: text.as_bytes() })
    }
}

fn is_create(code: i32) -> bool {
    [opcode::CREATE, opcode::CREATE2, opcode::CREATE_CONTAINER, opcode::CREATE_TTL].contains(&code)
}

fn is_write_code(code: i32) -> bool {
    is_create(code)
        || [opcode::DELETE, opcode::SET_DATA, opcode::SET_ACL, opcode::CHECK].contains(&code)
}
