//! SQL over what nodes serve: DataFusion, reading through the cache.
//!
//! Owns what DataFusion leaves open: which store a path leads to ([`Session`], and `stores.rs` and `place.rs`
//! below it), what was read of it ([`Reads`]), and what a person sees ([`output`], [`shell`], [`Failure`]).
//! Always holds: a statement sees each file in one version, or it ends with an error; what an earlier statement
//! has kept of a file is used only if the nodes have said that the file is the same.
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
