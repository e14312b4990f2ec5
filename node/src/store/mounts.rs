//! The mounts: sources by the prefixes of the paths they serve.
//!
//! Owns which source a path leads to. The table is replaced whole; whoever began with the old one ends
//! with it. Directories that exist only because something is mounted below them are shown, too.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use millrace_proto::FileId;
use millrace_proto::cluster::{Mount, mount_of};
use millrace_proto::message::Kind;

use super::local::LocalStore;
use super::{Found, Page, StoreError, StoreFuture, UnderStore, check_path, file_id};
use crate::memory::Blank;

/// How sources on this machine begin.
const FILE_SCHEME: &str = "file://";

/// What is mounted, with the sources.
#[derive(Default)]
struct Table {
    mounts: Vec<Mount>,
    /// For each mount its source, or why it cannot be used here.
    stores: Vec<Result<Arc<LocalStore>, String>>,
}

/// All sources of a node. Until it is told what is mounted, it asks to be asked again.
#[derive(Default)]
pub(crate) struct Mounts {
    table: RwLock<Option<Arc<Table>>>,
}

/// A path within the source it leads to.
struct Place {
    store: Result<Arc<LocalStore>, String>,
    rest: Arc<str>,
}

impl Mounts {
    /// Replaces the table. Whether a source is there is found when it is asked for something.
    pub(crate) fn set(&self, mounts: Vec<Mount>) {
        let stores: Vec<_> = mounts.iter().map(|mount| store_of(&mount.source)).collect();
        for (mount, store) in mounts.iter().zip(&stores) {
            if let Err(error) = store {
                tracing::warn!("mount {} at '/{}': {error}", mount.source, mount.prefix);
            }
        }
        let table = Arc::new(Table { mounts, stores });
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
    }

    /// What is mounted.
    ///
    /// # Errors
    /// [`StoreError::NotYet`] before that is known.
    fn table(&self) -> Result<Arc<Table>, StoreError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.clone().ok_or(StoreError::NotYet)
    }
}

/// The store that a source means.
fn store_of(source: &str) -> Result<Arc<LocalStore>, String> {
    match source.strip_prefix(FILE_SCHEME).filter(|it| it.starts_with('/')) {
        Some(directory) => Ok(Arc::new(LocalStore::new(Path::new(directory), source))),
        None => Err("not a source that this version knows: file:///DIR is".to_owned()),
    }
}

impl Table {
    fn place(&self, path: &str) -> Option<Place> {
        let (index, rest) = mount_of(&self.mounts, path)?;
        Some(Place { store: self.stores[index].clone(), rest: rest.into() })
    }

    /// Names directly below a path that lead to a mount further down.
    fn names_below(&self, path: &str) -> BTreeSet<String> {
        let below = |prefix: &str| {
            let rest = match path {
                "" => prefix,
                _ => prefix.strip_prefix(path)?.strip_prefix('/')?,
            };
            let name = rest.split('/').next().unwrap_or_default();
            (!name.is_empty()).then(|| name.to_owned())
        };
        self.mounts.iter().filter_map(|mount| below(&mount.prefix)).collect()
    }

    /// Whether a path is a directory because of what is mounted at it or below it.
    fn leads_to_a_mount(&self, path: &str) -> bool {
        path.is_empty() || !self.names_below(path).is_empty()
    }
}

fn directory() -> Found {
    Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 }
}

impl UnderStore for Mounts {
    fn identify(&self, path: &str) -> FileId {
        let table = self.table().unwrap_or_default();
        match table.place(path) {
            Some(Place { store: Ok(store), rest }) => store.identify(&rest),
            _ => file_id("", path),
        }
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            check_path(&path)?;
            let table = self.table()?;
            let found = match table.place(&path) {
                None => Err(StoreError::NotFound),
                Some(Place { store: Err(error), .. }) => Err(StoreError::Failed(error)),
                Some(Place { store: Ok(store), rest }) => store.stat(rest).await,
            };
            match found {
                Err(StoreError::NotFound) if table.leads_to_a_mount(&path) => Ok(directory()),
                other => other,
            }
        })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        Box::pin(async move {
            check_path(&path)?;
            let table = self.table()?;
            let page = match table.place(&path) {
                None => Err(StoreError::NotFound),
                Some(Place { store: Err(error), .. }) => Err(StoreError::Failed(error)),
                Some(Place { store: Ok(store), rest }) => {
                    store.list(rest, Arc::clone(&after), limit).await
                }
            };
            let mut page = match page {
                Err(StoreError::NotFound) if table.leads_to_a_mount(&path) => {
                    Page { entries: Vec::new(), next: None }
                }
                other => other?,
            };
            add(&mut page, table.names_below(&path), &after, limit);
            Ok(page)
        })
    }

    fn fill(
        &self,
        path: Arc<str>,
        version: u64,
        offset: u64,
        blank: Blank,
    ) -> StoreFuture<'_, (Blank, Result<(), StoreError>)> {
        Box::pin(async move {
            let table = match self.table() {
                Ok(table) => table,
                Err(error) => return (blank, Err(error)),
            };
            match table.place(&path) {
                // It was mounted when the block was asked for.
                None => (blank, Err(StoreError::Changed)),
                Some(Place { store: Err(error), .. }) => (blank, Err(StoreError::Failed(error))),
                Some(Place { store: Ok(store), rest }) => {
                    store.fill(rest, version, offset, blank).await
                }
            }
        })
    }
}

/// Puts directories among the entries of a page; those behind its end wait for the next page.
fn add(page: &mut Page, names: BTreeSet<String>, after: &str, limit: usize) {
    let is_here =
        |name: &String| name.as_str() > after && page.next.as_ref().is_none_or(|next| name <= next);
    let names: Vec<String> = names.into_iter().filter(is_here).collect();
    if names.is_empty() {
        return;
    }
    // What is mounted hides what was there.
    page.entries.retain(|(name, _)| !names.contains(name));
    page.entries.extend(names.into_iter().map(|name| (name, directory())));
    page.entries.sort_by(|(first, _), (second, _)| first.cmp(second));
    if page.entries.len() > limit {
        page.entries.truncate(limit);
        page.next = page.entries.last().map(|(name, _)| name.clone());
    }
}

#[cfg(test)]
mod tests;
