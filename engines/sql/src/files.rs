//! A path in FROM as a table: its format by the names of files, its columns by what they hold.
//!
//! DataFusion's own factory says only that there is no such table; here an error says what is wrong with the path.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::catalog::{TableProvider, UrlTableFactory};
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SessionState;
use futures_util::TryStreamExt;

use crate::place;
use crate::stores::Stores;

/// Files of a directory that are looked at for one whose format is known. Guessed.
const LOOKS_MAX: usize = 10_000;

/// The end of a name, the format that it stands for, and an option of the format.
type Known = (&'static str, &'static str, Option<(&'static str, &'static str)>);

/// What the ends of names say.
const FORMATS: [Known; 9] = [
    (".parquet", "parquet", None),
    (".parq", "parquet", None),
    (".csv", "csv", None),
    (".tsv", "csv", Some(("format.delimiter", "\t"))),
    (".json", "json", None),
    (".jsonl", "json", None),
    (".ndjson", "json", None),
    (".arrow", "arrow", None),
    (".feather", "arrow", None),
];

/// Returns the state of the session as it is now; None when the session has ended.
type StateNow = Box<dyn Fn() -> Option<SessionState> + Send + Sync>;

/// Makes tables of paths.
pub(crate) struct Files {
    stores: Arc<Stores>,
    state: OnceLock<StateNow>,
}

impl Files {
    pub(crate) fn new(stores: Arc<Stores>) -> Files {
        Files { stores, state: OnceLock::new() }
    }

    /// Says where the state of the session is, once it is there.
    pub(crate) fn attach(&self, state: impl Fn() -> Option<SessionState> + Send + Sync + 'static) {
        // A session has one state, so this is called once.
        let _ = self.state.set(Box::new(state));
    }

    async fn table(&self, name: &str, state: &SessionState) -> Result<Option<ListingTable>> {
        let path = place::table(name)?;
        self.stores.connect(path.get_url()).await?;
        let Some(found) = find(&path, state).await? else {
            // A word alone is more likely the name of a table.
            if !name.contains(['/', '.', ':', '*', '?', '[']) {
                return Ok(None);
            }
            return Err(DataFusionError::Plan(format!(
                "there are no files at '{name}'; see what there is with `millrace fs ls`, a path begins at \
                 the root of the nodes"
            )));
        };
        let Some((ending, kind, option)) = found else {
            return Err(DataFusionError::Plan(format!(
                "the names at '{name}' do not say which format they have; end them with .parquet, .csv, \
                 .tsv, .json or .arrow, or write CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{name}'"
            )));
        };
        let factory = state.get_file_format_factory(kind).ok_or_else(|| {
            DataFusionError::Plan(format!("'{name}': {kind} is not a format that is read here"))
        })?;
        let options = option.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let format = factory.create(state, &HashMap::from_iter(options))?;
        let options = ListingOptions::new(format).with_file_extension(ending);
        let config = ListingTableConfig::new(path).with_listing_options(options);
        let config = config.infer_partitions_from_path(state).await?.infer_schema(state).await;
        let config = config.map_err(|error| error.context(format!("'{name}'")))?;
        Ok(Some(ListingTable::try_new(config)?))
    }
}

/// Returns the format of the first file at a path that has one by its name, if any has; None if there is no file.
async fn find(path: &ListingTableUrl, state: &SessionState) -> Result<Option<Option<Known>>> {
    let store = state.runtime_env().object_store(path)?;
    let mut files = path.list_all_files(state, &store, "").await?;
    let mut looks = 0;
    while let Some(file) = files.try_next().await? {
        let name = file.location.filename().unwrap_or_default();
        if let Some(known) = FORMATS.iter().find(|(ending, ..)| name.ends_with(ending)) {
            return Ok(Some(Some(*known)));
        }
        looks += 1;
        if looks == LOOKS_MAX {
            break;
        }
    }
    Ok((looks > 0).then_some(None))
}

impl fmt::Debug for Files {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Files").finish_non_exhaustive()
    }
}

#[async_trait]
impl UrlTableFactory for Files {
    async fn try_new(&self, url: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let state = self.state.get().and_then(|state| state());
        let state =
            state.ok_or_else(|| DataFusionError::Plan("the session has ended".to_owned()))?;
        let table = self.table(url, &state).await?;
        Ok(table.map(|table| Arc::new(table) as Arc<dyn TableProvider>))
    }
}
