//! A session: one connection to nodes, and statements one after the other.
//!
//! Owns DataFusion's context, how it is made, and how a statement begins and runs. Always holds: a statement sees
//! each file in one version. What DataFusion keeps of files goes to the next statement only if the nodes have said
//! that all of them are what they were, because DataFusion itself compares only lengths and times.

use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::catalog::{CatalogProviderList, DynamicFileCatalog, UrlTableFactory};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use futures_util::{StreamExt, TryStreamExt, stream};
use millrace_client::ClientConfig;
use millrace_object_store::v0_13::MillraceStore;

use crate::failure::Failure;
use crate::files::Files;
use crate::nodes::{self, Moment};
use crate::place;
use crate::reads::Reads;
use crate::stores::Stores;

/// Prefix of an address of coordination, as the command line `millrace` takes it.
const COORDINATION: &str = "zk://";

/// How a session is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Settings of the client.
    pub client: ClientConfig,
    /// Most bytes that queries may have in memory; what is more goes to temporary files. None for no limit.
    pub memory_bytes: Option<usize>,
    /// Parts of a query that run at once. None for one on each core.
    pub threads: Option<usize>,
}

/// A connection to nodes, and the tables that were made over it.
pub struct Session {
    context: SessionContext,
    stores: Arc<Stores>,
}

/// A statement that runs.
pub struct Running {
    /// Its rows.
    pub rows: SendableRecordBatchStream,
    /// What it has read of the nodes so far.
    pub reads: Arc<Reads>,
}

impl Session {
    /// Connects to nodes: `HOST:PORT`, several joined by commas, `unix:PATH`, or `zk://HOST:PORT/PATH` for the
    /// cluster that is registered there.
    ///
    /// # Errors
    /// If no node answers, with what to do about it.
    pub async fn connect(address: &str, options: Options) -> std::result::Result<Session, Failure> {
        let url = match address.strip_prefix(COORDINATION) {
            Some(rest) => format!("millrace+zk://{rest}"),
            None if address.starts_with("unix:") => {
                return Session::at_socket(address, options).await;
            }
            None => format!("millrace://{address}"),
        };
        let store = MillraceStore::connect_with(&url, options.client.clone()).await;
        let store = store.map_err(|error| no_node(Failure::from(error)))?;
        Ok(Session::new(store, options)?)
    }

    async fn at_socket(address: &str, options: Options) -> std::result::Result<Session, Failure> {
        let client = millrace_client::Client::connect(address, options.client.clone()).await;
        let client = client.map_err(|error| no_node(Failure::new(error.to_string())))?;
        Ok(Session::new(MillraceStore::new(client), options)?)
    }

    /// Makes a session over a store.
    ///
    /// # Errors
    /// If DataFusion refuses the options.
    pub fn new(store: MillraceStore, options: Options) -> Result<Session> {
        let stores = Arc::new(Stores::new(store, options.client));
        let mut runtime =
            RuntimeEnvBuilder::new().with_object_store_registry(Arc::clone(&stores) as _);
        if let Some(bytes) = options.memory_bytes {
            runtime = runtime.with_memory_pool(Arc::new(FairSpillPool::new(bytes)));
        }
        let mut config = SessionConfig::new().with_information_schema(true);
        if let Some(threads) = options.threads {
            config = config.with_target_partitions(threads);
        }
        let context = SessionContext::new_with_config_rt(config, runtime.build_arc()?);
        let files = Arc::new(Files::new(Arc::clone(&stores)));
        let tables = Arc::clone(context.state_ref().read().catalog_list());
        let tables =
            DynamicFileCatalog::new(tables, Arc::clone(&files) as Arc<dyn UrlTableFactory>);
        let tables: Arc<dyn CatalogProviderList> = Arc::new(tables);
        let context: SessionContext =
            context.into_state_builder().with_catalog_list(tables).build().into();
        let state = context.state_weak_ref();
        files.attach(move || state.upgrade().map(|state| state.read().clone()));
        Ok(Session { context, stores })
    }

    /// Returns DataFusion's context, for what a statement cannot say.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Returns the store of the nodes that the session has connected to.
    pub(crate) fn store(&self) -> Option<MillraceStore> {
        self.stores.home()
    }

    /// Takes a text apart into statements.
    ///
    /// # Errors
    /// If it is not SQL.
    pub fn parse(&self, text: &str) -> std::result::Result<Vec<Statement>, Failure> {
        let statements =
            DFParserBuilder::new(text).build().and_then(|mut it| it.parse_statements());
        Ok(statements.map(Vec::from)?)
    }

    /// Begins a statement. The one before has to have ended, or was dropped.
    ///
    /// # Errors
    /// If it cannot be planned: a table is not there, or a name is wrong.
    pub async fn start(&self, statement: Statement) -> std::result::Result<Running, Failure> {
        let (reads, holds) = self.stores.begin().await;
        self.forget(!holds);
        // A plan needs footers, so they are read before the plan is there.
        let before = match &statement {
            Statement::Explain(explain) if explain.options.analyze => {
                Some(Moment::now(&self.stores).await)
            }
            _ => None,
        };
        let plan = self.context.state().statement_to_plan(statement).await?;
        let plan = self.with_places(plan).await?;
        let frame = self.context.execute_logical_plan(plan).await?;
        let rows = frame.execute_stream().await?;
        let rows = match before {
            Some(before) => self.with_report(rows, before, Arc::clone(&reads)),
            None => rows,
        };
        Ok(Running { rows, reads })
    }

    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// Those of [`Session::start`], and what goes wrong while it runs.
    pub async fn collect(&self, text: &str) -> std::result::Result<Vec<RecordBatch>, Failure> {
        let mut rows = Vec::new();
        for statement in self.parse(text)? {
            rows = self.start(statement).await?.rows.try_collect().await?;
        }
        Ok(rows)
    }

    /// Drops the listings that DataFusion has kept, and what it has kept of files if that is out of date.
    fn forget(&self, has_changed: bool) {
        let caches = Arc::clone(&self.context.runtime_env().cache_manager);
        if let Some(cache) = caches.get_list_files_cache() {
            cache.clear();
        }
        if !has_changed {
            return;
        }
        caches.get_file_metadata_cache().clear();
        if let Some(cache) = caches.get_file_statistic_cache() {
            cache.clear();
        }
    }

    /// Puts URLs in the place of paths that a statement writes to, or makes a table of.
    async fn with_places(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let mut urls = Vec::new();
        plan.apply(|plan| {
            for location in locations(plan) {
                urls.push(url_of(location)?);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        for url in &urls {
            self.stores.connect(url).await?;
        }
        let plan = plan.transform_down(|plan| match plan {
            LogicalPlan::Copy(mut copy) => {
                copy.output_url = url_of(&copy.output_url)?.into();
                Ok(Transformed::yes(LogicalPlan::Copy(copy)))
            }
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(mut table)) => {
                for location in &mut table.locations {
                    *location = url_of(location)?.into();
                }
                Ok(Transformed::yes(LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table))))
            }
            plan => Ok(Transformed::no(plan)),
        })?;
        Ok(plan.data)
    }

    /// Adds a row to the plan of `EXPLAIN ANALYZE`: what the statement has read.
    fn with_report(
        &self,
        rows: SendableRecordBatchStream,
        before: Moment,
        reads: Arc<Reads>,
    ) -> SendableRecordBatchStream {
        let (schema, stores) = (rows.schema(), Arc::clone(&self.stores));
        let report_schema = Arc::clone(&schema);
        let report = stream::once(async move {
            let after = Moment::now(&stores).await;
            let text = nodes::describe(reads.counts(), &before, &after);
            let columns: [&str; 2] = ["Reads", &text];
            let columns = columns.map(|text| Arc::new(StringArray::from(vec![text])) as _);
            RecordBatch::try_new(report_schema, columns.to_vec()).map_err(DataFusionError::from)
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(report)))
    }
}

/// Returns the paths that a node of a plan writes to, or makes a table of.
fn locations(plan: &LogicalPlan) -> &[String] {
    match plan {
        LogicalPlan::Copy(copy) => std::slice::from_ref(&copy.output_url),
        LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => &table.locations,
        _ => &[],
    }
}

/// Returns the URL of a place that has no pattern.
fn url_of(location: &str) -> Result<url::Url> {
    match place::parse(location)? {
        (url, None) => Ok(url),
        (_, Some(_)) => Err(DataFusionError::Plan(format!(
            "'{location}' is a pattern, which stands in FROM alone; name a directory, with a / at its end"
        ))),
    }
}

fn no_node(failure: Failure) -> Failure {
    failure.with_hint("check --node, or start one: millrace node --source DIR")
}
