//! The mounts: sources by the prefixes of the paths they serve.
//!
//! Owns which source a path leads to. The table is replaced whole; a request that began with the old one
//! ends with it. The options of single mounts (`mount_options`) are found by their prefixes. Directories
//! that exist only because something is mounted below them are shown, too.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use millrace_proto::FileId;
use millrace_proto::cluster::{Mount, mount_of};
use millrace_proto::message::Kind;
use millrace_proto::terms::{StaleAfter, Terms, bare};

use super::compared::Compared;
use super::contents::Contents;
use super::filtered::Filtered;
use super::local::LocalStore;
use super::machine::Machine;
use super::roots::{Location, MountRoots, is_remote};
use super::{
    Condition, Errand, FillError, Found, LeftOut, NoRemoteStores, Page, Part, RemoteStores,
    StoreError, StoreFuture, StoreLimits, UnderStore, Upload, check_path, file_id,
};
use crate::config::MountOptions;
use crate::memory::Blank;

/// How long look-ups at stores on other machines are believed unless something else is said. Guessed: data sets
/// change seldom, and an engine opens a file many times within it.
const REMOTE_STALE_AFTER: Duration = Duration::from_secs(30);

/// A source, or why it cannot be used here.
type Store = Result<Arc<dyn UnderStore>, StoreError>;

/// What is mounted, with the sources.
#[derive(Default)]
struct Table {
    mounts: Vec<Mount>,
    /// For each mount its source.
    stores: Vec<Store>,
    /// For each mount how long a look-up is believed.
    bounds: Vec<Duration>,
    /// For each mount what it asks for.
    terms: Vec<Terms>,
    /// For each mount whether what is written there is kept.
    caches_writes: Vec<bool>,
}

/// All sources of a node. Until it knows what is mounted, it asks to be asked again.
pub(crate) struct Mounts {
    machine: Arc<Machine>,
    remote: Arc<dyn RemoteStores>,
    /// For each source on another machine.
    limits: StoreLimits,
    /// How long look-ups are believed at mounts that do not say.
    stale_after: Option<StaleAfter>,
    /// Sources have to lie below them, whatever mounts them.
    roots: MountRoots,
    options: MountOptions,
    contents: Arc<Contents>,
    table: RwLock<Option<Arc<Table>>>,
}

/// A path within the source it leads to.
struct MountedPath {
    store: Store,
    rest: Arc<str>,
}

impl Mounts {
    /// Prepares mounts of sources below these roots with these options, none of which is known yet. Contents are
    /// compared by what `contents` remembers; the directories share this machine's threads.
    pub(crate) fn new(
        machine: Arc<Machine>,
        roots: MountRoots,
        options: MountOptions,
        contents: Contents,
    ) -> Mounts {
        let patience = Duration::ZERO;
        let limits = StoreLimits { concurrency: 1, patience, bandwidth: None, is_hedged: false };
        Mounts {
            machine,
            remote: Arc::new(NoRemoteStores),
            limits,
            stale_after: None,
            roots,
            options,
            contents: Arc::new(contents),
            table: RwLock::default(),
        }
    }

    /// Adds the stores on other machines, each within these limits.
    pub(crate) fn with_remote(self, remote: Arc<dyn RemoteStores>, limits: StoreLimits) -> Mounts {
        Mounts { remote, limits, ..self }
    }

    /// Has look-ups believed for this long at mounts that do not say.
    pub(crate) fn believing(self, stale_after: Option<StaleAfter>) -> Mounts {
        Mounts { stale_after, ..self }
    }

    /// Checks that a source may be mounted. Every node serves every mount, so a source that this node
    /// may not serve is not given to others either.
    ///
    /// # Errors
    /// [`StoreError::Denied`] for one outside of the mount roots, [`StoreError::InvalidPath`] for one of a
    /// form that is not known, [`StoreError::Unusable`] for options that it cannot have, such as a credential that
    /// this node lacks.
    pub(crate) fn admit(&self, source: &str) -> Result<(), StoreError> {
        let (source, terms) = Terms::split(source).map_err(StoreError::Unusable)?;
        match self.roots.find(source)? {
            Location::Directory(_) => for_a_directory(&terms, false),
            Location::Remote(url) => {
                let limits = self.limits_of(&terms);
                self.remote.open(&url, terms.credential.as_deref(), limits).map(drop)
            }
        }
    }

    /// Replaces the table. Whether a source is there is found when something is asked of it.
    pub(crate) fn set(&self, mounts: Vec<Mount>) {
        // The same files at another path are the same blocks: if one mount of a source compares, all do.
        let compared: BTreeSet<&str> = mounts
            .iter()
            .filter(|mount| self.options.compares_content(&mount.prefix))
            .map(|mount| bare(&mount.source))
            .collect();
        let store_of = |mount: &Mount| self.store_of(mount, compared.contains(bare(&mount.source)));
        let stores: Vec<_> = mounts.iter().map(store_of).collect();
        let bounds = mounts.iter().map(|mount| self.bound_of(mount)).collect();
        let terms_of = |mount: &Mount| Terms::split(&mount.source).map(|(_, terms)| terms);
        let terms: Vec<Terms> =
            mounts.iter().map(|mount| terms_of(mount).unwrap_or_default()).collect();
        // A content that is compared has versions that the store does not know.
        let caches_writes = mounts.iter().zip(&terms).map(|(mount, terms)| {
            let is_asked = terms.is_cached_on_write || self.options.caches_writes(&mount.prefix);
            is_asked && !terms.is_passed_through && !compared.contains(bare(&mount.source))
        });
        let caches_writes = caches_writes.collect();
        for (mount, store) in mounts.iter().zip(&stores) {
            if let Err(error) = store {
                tracing::warn!("mount {} at '/{}': {error}", mount.source, mount.prefix);
            }
        }
        let table = Arc::new(Table { mounts, stores, bounds, terms, caches_writes });
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
    }

    /// Makes the store that a mount means, whose contents are compared or not.
    fn store_of(&self, Mount { prefix, source, .. }: &Mount, is_compared: bool) -> Store {
        let (source, terms) = Terms::split(source).map_err(StoreError::Unusable)?;
        let store: Arc<dyn UnderStore> = match self.roots.find(source)? {
            Location::Remote(url) => {
                let limits = self.limits_of(&terms);
                self.remote.open(&url, terms.credential.as_deref(), limits)?
            }
            Location::Directory(root) => {
                for_a_directory(&terms, self.options.caches_writes(prefix))?;
                let rule = self.options.device_rule(prefix);
                Arc::new(LocalStore::new(&self.machine, root, source, rule))
            }
        };
        let store: Arc<dyn UnderStore> = match is_compared {
            true => Arc::new(Compared::new(store, &self.contents, source)),
            false => store,
        };
        Ok(Filtered::over(store, &terms))
    }

    /// Returns what the store of a mount may take: no more than any store.
    fn limits_of(&self, terms: &Terms) -> StoreLimits {
        let most = self.limits.concurrency;
        let concurrency = terms.concurrency.map_or(most, |it| most.min(it as usize));
        let Terms { bandwidth, is_hedged, .. } = *terms;
        StoreLimits { concurrency, bandwidth, is_hedged, ..self.limits }
    }

    /// Returns how long look-ups are believed at a mount.
    fn bound_of(&self, mount: &Mount) -> Duration {
        let own = Terms::split(&mount.source).ok().and_then(|(_, terms)| terms.stale_after);
        match own.or(self.stale_after) {
            Some(StaleAfter::Never) => Duration::MAX,
            Some(StaleAfter::Ms(ms)) => Duration::from_millis(ms),
            None if is_remote(&mount.source) => REMOTE_STALE_AFTER,
            None => Duration::ZERO,
        }
    }

    /// Returns what is mounted.
    ///
    /// # Errors
    /// [`StoreError::NotYet`] before that is known.
    fn table(&self) -> Result<Arc<Table>, StoreError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.clone().ok_or(StoreError::NotYet)
    }
}

impl Table {
    fn place(&self, path: &str) -> Option<MountedPath> {
        let (index, rest) = mount_of(&self.mounts, path)?;
        Some(MountedPath { store: self.stores[index].clone(), rest: rest.into() })
    }

    /// Returns the store of the file that a part belongs to, and its path there.
    ///
    /// # Errors
    /// [`StoreError::Remounted`] if the path leads elsewhere by now, and why the source cannot be used.
    fn place_of(&self, part: &Part) -> Result<(Arc<dyn UnderStore>, Arc<str>), StoreError> {
        let MountedPath { store, rest } = self.place(&part.path).ok_or(StoreError::Remounted)?;
        let store = store?;
        match store.identify(&rest) == part.file {
            true => Ok((store, rest)),
            false => Err(StoreError::Remounted),
        }
    }

    /// Returns names directly below a path that lead to a mount further down.
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

    /// True if a path is a directory because of what is mounted at it or below it.
    fn leads_to_a_mount(&self, path: &str) -> bool {
        path.is_empty() || !self.names_below(path).is_empty()
    }
}

/// Checks that nothing is asked for that a directory of this machine cannot have, by its terms or by the options of
/// this node.
fn for_a_directory(terms: &Terms, caches_writes: bool) -> Result<(), StoreError> {
    let refused = |text: &str| Err(StoreError::Unusable(text.to_owned()));
    if terms.credential.is_some() {
        return refused("a directory takes no credential: the node opens it as its own user");
    }
    if terms.concurrency.is_some() || terms.bandwidth.is_some() || terms.is_hedged {
        return refused(
            "concurrency, bandwidth and hedge are for stores on other machines: leave them out, or set \
             fill_concurrency, which holds for each file system",
        );
    }
    if terms.is_cached_on_write || caches_writes {
        return refused(
            "cache_on_write is for stores on other machines, because a directory does not say which bytes it has \
             taken as which version: leave it out; the kernel keeps what was written",
        );
    }
    Ok(())
}

fn directory() -> Found {
    Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 }
}

impl UnderStore for Mounts {
    fn identify(&self, path: &str) -> FileId {
        let table = self.table().unwrap_or_default();
        match table.place(path) {
            Some(MountedPath { store: Ok(store), rest }) => store.identify(&rest),
            _ => file_id("", path),
        }
    }

    fn is_read_in_parts(&self, path: &str) -> bool {
        let table = self.table().unwrap_or_default();
        match table.place(path) {
            Some(MountedPath { store: Ok(store), rest }) => store.is_read_in_parts(&rest),
            _ => false,
        }
    }

    fn is_stored(&self, path: &str) -> bool {
        let table = self.table().unwrap_or_default();
        let is_stored = match table.place(path) {
            Some(MountedPath { store: Ok(store), rest }) => store.is_stored(&rest),
            _ => false,
        };
        is_stored && self.kept_for(path) == Duration::MAX
    }

    fn stale_after(&self, path: &str) -> Duration {
        let Ok(table) = self.table() else { return Duration::ZERO };
        match mount_of(&table.mounts, path) {
            // What is mounted below shows at once.
            Some((index, _)) if table.names_below(path).is_empty() => table.bounds[index],
            _ => Duration::ZERO,
        }
    }

    fn kept_for(&self, path: &str) -> Duration {
        let table = self.table().unwrap_or_default();
        let terms = mount_of(&table.mounts, path).map(|(index, _)| &table.terms[index]);
        match terms {
            Some(terms) if terms.is_passed_through => Duration::ZERO,
            Some(Terms { ttl_ms: Some(ms), .. }) => Duration::from_millis(*ms),
            _ => Duration::MAX,
        }
    }

    fn caches_writes(&self, path: &str) -> bool {
        let table = self.table().unwrap_or_default();
        mount_of(&table.mounts, path).is_some_and(|(index, _)| table.caches_writes[index])
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            check_path(&path)?;
            let table = self.table()?;
            let found = match table.place(&path) {
                None => Err(StoreError::NotFound),
                Some(MountedPath { store: Err(error), .. }) => Err(error),
                Some(MountedPath { store: Ok(store), rest }) => store.stat(rest).await,
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
                Some(MountedPath { store: Err(error), .. }) => Err(error),
                Some(MountedPath { store: Ok(store), rest }) => {
                    store.list(rest, Arc::clone(&after), limit).await
                }
            };
            let mut page = match page {
                Err(StoreError::NotFound) if table.leads_to_a_mount(&path) => Page {
                    entries: Vec::new(),
                    is_by_key: false,
                    next: None,
                    directory: None,
                    left_out: LeftOut::default(),
                },
                other => other?,
            };
            add(&mut page, table.names_below(&path), &after, limit);
            Ok(page)
        })
    }

    fn fill(
        &self,
        part: Part,
        blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        Box::pin(async move {
            let table = match self.table() {
                Ok(table) => table,
                Err(error) => return (blank, Err(error.into())),
            };
            match table.place_of(&part) {
                Err(error) => (blank, Err(error.into())),
                Ok((store, rest)) => store.fill(Part { path: rest, ..part }, blank, errand).await,
            }
        })
    }

    fn compare(&self, part: &Part, blank: &Blank) -> Result<(), StoreError> {
        let (store, rest) = self.table()?.place_of(part)?;
        store.compare(&Part { path: rest, ..part.clone() }, blank)
    }

    fn put(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        Box::pin(async move {
            let (store, rest) = self.writable(&path)?;
            store.put(rest, condition).await
        })
    }

    fn delete(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (store, rest) = self.writable(&path)?;
            store.delete(rest, condition).await
        })
    }

    fn rename(
        &self,
        path: Arc<str>,
        to: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            let (store, rest) = self.writable(&path)?;
            let (_, rest_of_new) = self.writable(&to)?;
            self.check_rename(&path, &to)?;
            store.rename(rest, rest_of_new, condition).await
        })
    }
}

impl Mounts {
    /// Checks that one path can become the other one.
    ///
    /// # Errors
    /// [`StoreError::InvalidPath`] if it cannot.
    fn check_rename(&self, path: &str, to: &str) -> Result<(), StoreError> {
        let table = self.table()?;
        let mount = |path| mount_of(&table.mounts, path).map(|(index, _)| index);
        if mount(path) != mount(to) {
            return Err(StoreError::InvalidPath(
                "the two paths are in different mounts, between which nothing is renamed: copy it with get and \
                 put, then delete it",
            ));
        }
        if to == path {
            return Err(StoreError::InvalidPath("both paths are the same"));
        }
        if to.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')) {
            return Err(StoreError::InvalidPath("the new path is below the old one"));
        }
        Ok(())
    }

    /// Returns the store that a path is written to, and the path there.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] for a mount that is read-only, [`StoreError::WrongKind`] for a path that is a
    /// directory because something is mounted at it or below it.
    fn writable(&self, path: &str) -> Result<(Arc<dyn UnderStore>, Arc<str>), StoreError> {
        check_path(path)?;
        let table = self.table()?;
        let (index, _) = mount_of(&table.mounts, path).ok_or(StoreError::NotFound)?;
        if table.leads_to_a_mount(path) {
            return Err(StoreError::WrongKind("a directory is there: something is mounted below"));
        }
        let prefix = &table.mounts[index].prefix;
        if !self.options.is_writable(prefix) && !table.terms[index].writable {
            let option = match prefix.as_str() {
                "" => "--writable".to_owned(),
                prefix => format!("--mount-options {prefix}=writable"),
            };
            return Err(StoreError::Unusable(format!(
                "what is mounted at '/{prefix}' is read-only: start the node with {option}, or mount it with \
                 `millrace admin mount --writable`, to write there"
            )));
        }
        let MountedPath { store, rest } = table.place(path).ok_or(StoreError::NotFound)?;
        Ok((store?, rest))
    }
}

/// Puts directories among the entries of a page; those behind its end wait for the next page.
fn add(page: &mut Page, names: BTreeSet<String>, after: &str, limit: usize) {
    let is_here = |name: &String| {
        let token = page.token(name, Kind::Directory);
        token.as_str() > after && page.next.as_ref().is_none_or(|next| token <= *next)
    };
    let names: Vec<String> = names.into_iter().filter(is_here).collect();
    if names.is_empty() {
        return;
    }
    // What is mounted hides what was there.
    page.entries.retain(|(name, _)| !names.contains(name));
    page.left_out.named.retain(|(name, _)| !names.contains(name));
    page.entries.extend(names.into_iter().map(|name| (name, directory())));
    let mut entries = std::mem::take(&mut page.entries);
    entries.sort_by_cached_key(|(name, found)| page.token(name, found.kind));
    if entries.len() > limit {
        entries.truncate(limit);
        page.next = entries.last().map(|(name, found)| page.token(name, found.kind));
    }
    page.entries = entries;
}

#[cfg(test)]
mod tests;
