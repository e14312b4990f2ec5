//! Renames at a store that has none: a copy within the store, and then a delete.
//!
//! Always holds: the object of the old path is deleted only if the copy is there, and if it is still the one that
//! was copied. Where one of the two steps may or may not have been made the answer says so, because both paths may
//! have the object then.

use std::time::Duration;

use millrace_node::under_store::{Condition, Found, StoreError};
use millrace_proto::message::Kind;
use object_store::{CopyMode, CopyOptions, ObjectStore as _, ObjectStoreExt as _};

use super::Inner;
use super::write::IS_DIRECTORY;
use crate::tag::Tag;

/// Longest object that a store copies in one request. Derived: S3's own bound.
const COPY_MAX: u64 = 5 << 30;
/// Bytes a second that a store copies at least. Guessed: S3 copies 5 GiB in a minute or two.
const COPY_RATE: u64 = 20 << 20;

impl Inner {
    /// Gives an object another path.
    pub(super) async fn rename(
        &self,
        path: &str,
        to: &str,
        condition: Condition,
    ) -> Result<Found, StoreError> {
        // A store that is down admits one try at a time, and this is one.
        let (target, from) = (self.place_of(to)?, self.target(path)?);
        let found = self.timed(self.stat(path)).await?;
        if found.kind == Kind::Directory {
            return Err(StoreError::WrongKind(
                "the store has no step that renames a directory: rename its files one by one",
            ));
        }
        if found.length > COPY_MAX {
            return Err(StoreError::Unusable(format!(
                "the store copies at most {COPY_MAX} bytes in one request: get the object, put it, delete it"
            )));
        }
        match self.timed(self.stat(to)).await {
            Ok(there) if there.kind == Kind::Directory => return Err(IS_DIRECTORY),
            Ok(_) | Err(StoreError::NotFound) => (),
            Err(error) => return Err(error),
        }
        let (mode, store) = match condition {
            Condition::None => (CopyMode::Overwrite, &self.store),
            // Sent again it could meet what its first try has written.
            _ => (CopyMode::Create, &self.once),
        };
        let options = CopyOptions { mode, ..Default::default() };
        let patience = self.patience + Duration::from_secs(found.length / COPY_RATE);
        let copied = self.commit_within(patience, store.copy_opts(&from, &target, options)).await;
        self.tags.remove(&self.file(to));
        match copied {
            Err(StoreError::Unusable(_)) if condition != Condition::None => {
                return Err(StoreError::Denied(
                    "the store was not said to copy on a condition: rename without it, or set the source option \
                     copy_if_not_exists (docs/STORES.md)",
                ));
            }
            copied => copied?,
        }
        // From here on the object has the new path.
        let both = |why: String| {
            StoreError::Unknown(format!("'{to}' is written, and '{path}' is still there: {why}"))
        };
        let looked = async { Ok(self.store.head(&from).await?) };
        match self.timed(looked).await {
            Ok(meta) if Tag::of(&meta).version() == found.version => {
                let deleted = self.commit(self.store.delete(&from)).await;
                self.tags.remove(&self.file(path));
                deleted.map_err(|error| both(error.to_string()))?;
            }
            Ok(_) => {
                return Err(both("it was replaced while it was copied".to_owned()));
            }
            Err(StoreError::NotFound) => (),
            Err(error) => return Err(both(error.to_string())),
        }
        let looked = self.timed(self.stat(to)).await;
        looked.map_err(|error| StoreError::Unknown(format!("it was renamed, but then: {error}")))
    }
}
