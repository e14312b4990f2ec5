//! The results of one server.

use serde::Serialize;

use crate::load::LoadResult;

/// Medians over the rounds of one server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    /// Its name.
    pub name: String,
    /// Reads per second.
    pub reads_per_s: f64,
    /// Payload in GB/s.
    pub gb_per_s: f64,
    /// Median latency of a request in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// CPU seconds of the server for each GB.
    pub server_cpu_s_per_gb: f64,
    /// CPU seconds of the load generator for each GB.
    pub client_cpu_s_per_gb: f64,
    /// Share of its CPU that the server used, 0 to 1 for one thread.
    pub server_cpu_share: f64,
    /// Share of its CPU that the load generator used: near 1 it was the limit.
    pub client_cpu_share: f64,
    /// Each round.
    pub rounds: Vec<LoadResult>,
}
