//! SQL over what nodes serve: DataFusion, reading through the cache.
//!
//! Owns what DataFusion leaves open: which store a path leads to ([`Session`], and `stores.rs` and `place.rs`
//! below it), what was read of it ([`Reads`]), and what a person sees ([`output`], [`shell`], [`Failure`]).
//! Always holds: a statement sees each file in the one version that it looked at first, or it ends with an
//! error; and it begins without anything that an earlier statement has kept of files.
//!
//! For a program that has a `SessionContext` of its own, [`CachedRegistry`] puts the cache around all of its
//! buckets at once.

mod failure;
mod files;
mod nodes;
pub mod output;
mod place;
mod reads;
mod registry;
mod session;
pub mod shell;
mod stores;

pub use failure::Failure;
pub use reads::{ReadCounts, Reads};
pub use registry::CachedRegistry;
pub use session::{Options, Running, Session};
