//! For `object_store` 0.13: the files in `each/`, compiled with that version of the trait.

use object_store_0_13 as api;

#[path = "each/cached.rs"]
mod cached;
#[path = "each/failure.rs"]
mod failure;
#[path = "each/store.rs"]
mod store;
#[path = "each/upload.rs"]
mod upload;
#[path = "each/walk.rs"]
mod walk;

pub use cached::CachedStore;
pub use store::MillraceStore;

/// Makes the results that have more fields in later versions.
mod results {
    use super::api::{GetResult, GetResultPayload, ListResult, ObjectMeta, PutResult};

    pub(super) fn got(
        payload: GetResultPayload,
        meta: ObjectMeta,
        range: std::ops::Range<u64>,
    ) -> GetResult {
        GetResult { payload, meta, range, attributes: Default::default() }
    }

    pub(super) fn put(e_tag: String) -> PutResult {
        PutResult { e_tag: Some(e_tag), version: None }
    }

    pub(super) fn listed(
        common_prefixes: Vec<super::api::path::Path>,
        objects: Vec<ObjectMeta>,
    ) -> ListResult {
        ListResult { common_prefixes, objects }
    }
}
