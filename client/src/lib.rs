//! The Millrace client: reads files through the cache of a node, on tokio or blocking.
//!
//! Owns connections, retries, deadlines and the proof that the bytes are those the node cached. `proto`
//! decides what the bytes on the wire mean, and the node what is in the cache.
//!
//! ```no_run
//! # async fn example() -> Result<(), millrace_client::Error> {
//! let client = millrace_client::Client::connect("node1:7070", Default::default()).await?;
//! let file = client.stat("datasets/train.bin").await?;
//! let head = client.read(&file, 0, 4096).await?;
//! # drop(head); Ok(())
//! # }
//! ```
//!
//! [`Client::read_many`] reads many ranges at once, [`Client::reader`] a file from a position on.
//! [`Client::put`] writes a file, where the operator of the node allows it, and [`blocking`] is for code
//! without async. Whole programs are in `examples/`.
//!
//! ```text
//!  Client ── read: cut at block borders ──► Topology: block → shard ──► Lane ──► driver task ──► node
//!    │                                                                   │
//!    └── judge: status, length, checksums ◄── answer, with its bytes ◄───┘
//! ```
//!
//! **Invariants.** A [`File`] is one version, and bytes of two versions never mix in one read. Every
//! queue is bounded. A payload moves once from the kernel to where it stays. A dropped future leaves
//! nothing behind that its caller could see. Modules in reading order:

mod admin;
mod cached;
mod client;
mod control;
mod job;
mod read;
mod read_many;
mod reader;
mod refresh;
mod write;

mod failover;
mod store;

mod file;
mod piece;

mod address;
mod doubts;
mod network;

mod board;
mod topology;
mod view;

mod cluster;
mod coordination;
mod race;

mod health;
mod member;

mod connection;

mod lease;
mod memory;

mod reply;
mod retry;

mod config;
mod error;

pub mod blocking;

// Public for the command line and the doors for engines, which walk trees.
#[doc(hidden)]
pub mod circle;

// Public for the node alone, which asks other nodes and reads local sources as the client does: what they
// have may change in any version.
#[doc(hidden)]
pub mod peer;
#[doc(hidden)]
pub mod source;

pub use cached::CachedShare;
pub use client::Client;
pub use config::ClientConfig;
pub use error::Error;
pub use file::{
    ClusterInfo, Counter, Entry, File, FileId, FreeReport, HelloInfo, Kind, ListedPage, LoadReport,
    MemberInfo, MountInfo, NodeStatus,
};
pub use job::{JobId, JobOptions, JobReport, JobState};
pub use lease::Lease;
pub use millrace_proto::Status;
pub use millrace_proto::proof::Secret;
pub use millrace_proto::write::Condition;
pub use read::ReadOptions;
pub use reader::{ByteStream, Reader};
pub use refresh::Refreshed;
pub use write::{PutOptions, Upload};

/// The program in README, which is compiled as a test of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
