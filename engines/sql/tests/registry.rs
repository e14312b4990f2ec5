//! A program's own context reads its buckets through nodes, and without them as before.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use millrace_client::ClientConfig;
use millrace_sql::CachedRegistry;
use millrace_tests::origin::Origin;
use millrace_tests::{NodeOptions, Scratch};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};
use url::Url;

use crate::bridge::Bridge;
use crate::write;

fn bucket(origin: &Origin, name: &str) -> Arc<dyn object_store_0_13::ObjectStore> {
    let store = AmazonS3Builder::new()
        .with_endpoint(origin.url())
        .with_bucket_name(name)
        .with_region("us-east-1")
        .with_skip_signature(true)
        .with_allow_http(true)
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .build();
    Arc::new(Bridge(Arc::new(store.expect("a client"))))
}

async fn sum(context: &SessionContext, path: &str) -> i64 {
    let context = context.clone().enable_url_table();
    let frame = context.sql(&format!("SELECT sum(a) FROM '{path}'")).await.expect("plan");
    let rows: Vec<RecordBatch> = frame.collect().await.expect("run");
    let column = rows[0].column(0).as_any().downcast_ref::<Int64Array>().expect("a number");
    column.value(0)
}

#[tokio::test]
async fn all_buckets_of_a_context_are_read_through_nodes() {
    // A second answer changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scratch = Scratch::new();
    write("SELECT value AS a FROM generate_series(1, 1000)", &scratch.at("x.parquet"), 1000).await;
    let bytes = std::fs::read(scratch.at("x.parquet")).expect("read");
    let origin = Origin::start();
    for (bucket, key) in
        [("lake", "t/x.parquet"), ("logs", "2026/x.parquet"), ("logs", "2025/x.parquet")]
    {
        origin.put(bucket, key, bytes.clone());
    }
    let node_of = |source: &str| {
        NodeOptions::new(Path::new(source))
            .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
            .start()
    };
    let (mut lake, logs) = (node_of("s3://lake"), node_of("s3://logs/2026"));
    let memory = InMemory::new();
    memory.put(&Key::from("x.parquet"), Bytes::from(bytes).into()).await.expect("put");

    let config =
        ClientConfig { deadline: std::time::Duration::from_secs(2), ..ClientConfig::new() };
    let inner = Arc::new(datafusion::execution::object_store::DefaultObjectStoreRegistry::new());
    let registry = CachedRegistry::around(inner, &lake.address().to_string(), config);
    let registry = Arc::new(registry.with_bucket("s3://lake", "").expect("a bucket"));
    let registry_of_logs = CachedRegistry::new(&logs.address().to_string());
    let registry_of_logs = registry_of_logs.with_bucket("s3://logs/2026", "").expect("a bucket");
    let registry_of_logs = Arc::new(registry_of_logs);
    let context = |registry: &Arc<CachedRegistry>| {
        let registry = Arc::clone(registry) as _;
        let runtime = RuntimeEnvBuilder::new().with_object_store_registry(registry).build_arc();
        SessionContext::new_with_config_rt(SessionConfig::new(), runtime.expect("a runtime"))
    };
    let of_lake = context(&registry);
    let memory: Arc<dyn ObjectStore> = Arc::new(memory);
    for (url, store) in
        [("s3://lake", bucket(&origin, "lake")), ("memory://it", Arc::new(Bridge(memory)) as _)]
    {
        of_lake.register_object_store(&Url::parse(url).expect("a URL"), store);
    }
    assert_eq!(sum(&of_lake, "s3://lake/t/x.parquet").await, 500_500);
    // A store that no node has mounted is what it was.
    assert_eq!(sum(&of_lake, "memory://it/x.parquet").await, 500_500);
    let counts = registry.counts();
    assert_eq!(counts.len(), 1, "{counts:?}");
    let (name, lake_counts) = &counts[0];
    assert_eq!(name, "s3://lake");
    assert!(lake_counts.cached_reads > 0 && lake_counts.failed_reads == 0, "{counts:?}");

    // Of this bucket a part is mounted.
    let of_logs = context(&registry_of_logs);
    of_logs
        .register_object_store(&Url::parse("s3://logs").expect("a URL"), bucket(&origin, "logs"));
    assert_eq!(sum(&of_logs, "s3://logs/2026/x.parquet").await, 500_500);
    let first = registry_of_logs.counts()[0].1;
    assert!(first.cached_reads > 0 && first.missed_reads == 0, "{first:?}");
    assert_eq!(sum(&of_logs, "s3://logs/2025/x.parquet").await, 500_500);
    let second = registry_of_logs.counts()[0].1;
    assert!(second.cached_reads == first.cached_reads && second.missed_reads > 0, "{second:?}");

    // Without its node a query has the same answer.
    lake.kill();
    let of_lake = context(&registry);
    assert_eq!(sum(&of_lake, "s3://lake/t/x.parquet").await, 500_500);
    assert!(registry.counts()[0].1.failed_reads > 0, "{:?}", registry.counts());
    logs.stop();
}
