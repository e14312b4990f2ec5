//! The coordination service: ZooKeeper's protocol over Raft and LMDB.
//!
//! Users' ZooKeeper tools work as with ZooKeeper. Membership, configuration and election are our own. A
//! replica is one pure state machine, [`replica`], between a runtime that calls the kernel and two stores
//! that use the disk:
//!
//! ```text
//!  clients ─► runtime ─► replica.handle(now, event) ─► actions ─► runtime ─► sockets
//!  peers ───►            │ state  watches  sessions │             log thread ─► log/ (files)
//!  admin ───►            └────────── raft ──────────┘             state thread ─► state/ (LMDB)
//! ```
//!
//! Modules in reading order:

pub mod command;
pub mod state;

pub mod auth;
mod raft;
pub mod replica;
pub mod watch;

pub mod store;

pub mod coord;
pub mod peers;
pub mod runtime;
pub mod socket;

pub mod admin;
pub mod config;
pub mod import;
pub mod metrics;
pub mod report;

pub use config::Config;
pub use coord::Coord;
