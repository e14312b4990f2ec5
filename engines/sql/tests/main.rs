//! Claims about SQL through nodes, with real processes. Modules in reading order:

#[path = "../bench/bridge.rs"]
mod bridge;
#[path = "../bench/tpch.rs"]
mod tpch;

mod command;
mod faults;
mod queries;
mod registry;

use std::path::Path;

use datafusion::prelude::{SessionConfig, SessionContext};
use millrace_client::ClientConfig;
use millrace_sql::{Options, Session};
use millrace_tests::Node;

/// Opens a session over a node, as a client on another machine has it.
async fn session(node: &Node) -> Session {
    let client = ClientConfig { local: false, ..ClientConfig::new() };
    let options = Options { client, threads: Some(1), ..Options::default() };
    Session::connect(&node.address().to_string(), options).await.expect("connect")
}

/// Writes what a query gives to a file of Parquet, whose row groups have this many rows, each value as it is: so the
/// length follows from the number of rows.
async fn write(query: &str, file: &Path, group_rows: usize) {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let statement = format!(
        "COPY ({query}) TO '{}' STORED AS PARQUET OPTIONS ('format.compression' 'uncompressed', \
         'format.dictionary_enabled' 'false', 'format.max_row_group_size' '{group_rows}')",
        file.display()
    );
    let rows = context.sql(&statement).await.expect("plan").collect().await;
    rows.expect("write");
}
