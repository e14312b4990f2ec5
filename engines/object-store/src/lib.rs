//! Millrace behind the trait `ObjectStore` of the crate `object_store`, which DataFusion, Lance, delta-rs and
//! others read and write through.
//!
//! Two ways in. `MillraceStore` is a store of its own: what nodes have mounted is read, listed and written
//! through them. `CachedStore` goes around a store that a program has already: reads come from the cache
//! where it holds the same version of the same object, and all else goes to the store itself, as do reads
//! when no node answers in time.
//!
//! The trait is not the same type in each version of `object_store`. Each of the features `v0_13` and `v0_14`
//! brings a module of that name, both from one source. Take the one that your engine has.
//!
//! ```no_run
//! use millrace_object_store::v0_14::MillraceStore;
//! # use object_store_0_14::{ObjectStore, ObjectStoreExt, path::Path};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MillraceStore::connect("millrace://node1:7070").await?;
//! let ranges = [4..1028, 1_000_000..1_065_536];
//! let columns = store.get_ranges(&Path::from("datasets/lineitem.parquet"), &ranges).await?;
//! assert_eq!(columns[0].len(), 1024);
//! # Ok(()) }
//! ```

mod known;
mod mounted;

pub use mounted::CacheCounts;

#[cfg(feature = "v0_13")]
pub mod v0_13;
#[cfg(feature = "v0_14")]
#[cfg_attr(
    feature = "v0_13",
    expect(clippy::duplicate_mod, reason = "one source for both versions")
)]
pub mod v0_14;
