//! The Millrace storage node: serves blocks of slow stores from memory, as fast as the machine allows.
//!
//! ```text
//!              ┌────────────── core 0 ──────────────┐ ┌──── core 1 ────┐
//!   clients ──►│ ring ─► runtime ─► worker ─► cache │ │      …         │
//!              │  ▲          │        │  ▲          │ │                │
//!              │  └─ send ◄──┘        │  └─ mailbox ◄┼─┼─► mailbox     │
//!              └──────────────────────┼─────────────┘ └────────────────┘
//!                         fills,      │      ▲  blocks, answers
//!                         look-ups    ▼      │
//!                              side thread (tokio) ──► under-store
//! ```
//!
//! One thread for each core, sharing nothing on a hit. A shard owns the blocks that hash to it and its
//! part of the memory arena. Modules in reading order:

mod access;
pub mod admin;
mod cache;
mod chunks;
mod cluster;
pub mod config;
mod connection;
mod cpus;
pub mod disk;
pub mod doctor;
mod eventfd;
mod files;
mod flash;
mod guests;
mod local;
mod mailbox;
mod memory;
mod metrics;
pub mod node;
mod owner;
mod pages;
mod ring;
mod room;
mod runtime;
pub mod secret;
mod side;
mod store;
mod timings;
mod token;
mod upload;
mod worker;

pub use cluster::identity::IdentityError;
pub use config::{Config, ConfigError};
pub use flash::{DiskError, DiskSize};
pub use node::{Node, StartError, Stopped};
pub use secret::SecretError;

/// What a crate that brings stores needs: the trait, its words, and the memory that is filled.
pub mod under_store {
    pub use crate::memory::Blank;
    pub use crate::store::roots::{FILE_SCHEME, is_remote, normal};
    pub use crate::store::{
        Condition, Errand, FillError, Found, LeftOut, NoRemoteStores, Page, Part, RemoteStores,
        StoreError, StoreFuture, StoreLimits, UnderStore, Upload, Written, check_path, file_id,
    };
}
