//! What a comparison found, and how people read it.

use std::fmt::Write as _;

use serde::Serialize;

use super::{LatencyReport, LimitReport, NODE_NAME, NearReport, ServerReport};
use crate::load::LoadResult;
use crate::machine::{Calibration, Machine};
use crate::report::{self, Table, median_ratio};
use crate::rival::Transport;

/// Shares of CPU below this on both sides mean that neither was the limit.
const BUSY_SHARE_MIN: f64 = 0.85;

/// Everything that a comparison found, with what is needed to read it.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// The machine.
    pub machine: Machine,
    /// Its speeds.
    pub calibration: Calibration,
    /// Command line of this run.
    pub command: String,
    /// Commit of the directory it ran in, if that is known.
    pub commit: Option<String>,
    /// Each server and the version that it reports.
    pub versions: Vec<(String, String)>,
    /// Rivals that were not measured.
    pub skipped: Vec<Skipped>,
    /// Number of connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Keys in each request.
    pub batch: usize,
    /// True if the load generator spun instead of sleeping.
    pub spin: bool,
    /// Measured seconds of each server in each round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// The way by which all servers were reached.
    pub transport: Transport,
    /// CPU of the servers.
    pub server_cpu: usize,
    /// CPU of the load generator.
    pub client_cpu: usize,
    /// Results of each size, where speed was measured.
    pub sizes: Vec<SizeReport>,
    /// Results of each size, where latency was measured.
    pub latencies: Vec<LatencyReport>,
}

/// A rival that was not measured.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Results of one size of objects.
#[derive(Clone, Debug, Serialize)]
pub struct SizeReport {
    /// Size of an object in bytes.
    pub size: usize,
    /// Number of objects.
    pub object_count: u64,
    /// Each server.
    pub servers: Vec<ServerReport>,
    /// The node over each rival.
    pub ratios: Vec<RatioReport>,
    /// The node's client on the same machine, beside `memcpy`.
    pub near: Vec<NearReport>,
    /// What the loopback interface carries without a server behind it.
    pub limits: Vec<LimitReport>,
}

/// Medians of the ratios of each round, the node over a rival.
#[derive(Clone, Debug, Serialize)]
pub struct RatioReport {
    /// The rival.
    pub rival: String,
    /// Ratio of reads per second; above 1 the node is faster.
    pub reads_per_s: f64,
    /// Ratio of the 99th percentiles; below 1 the node is faster.
    pub p99: f64,
    /// Ratio of CPU seconds of the server for each GB; below 1 the node needs less.
    pub server_cpu_s_per_gb: f64,
}
/// Returns the ratios of the node, if it is there, to each rival.
pub(super) fn ratios(servers: &[ServerReport]) -> Vec<RatioReport> {
    let (ours, rivals): (Vec<_>, Vec<_>) =
        servers.iter().partition(|server| server.name == NODE_NAME);
    let Some(ours) = ours.first() else {
        return Vec::new();
    };
    let ratio = |rival: &ServerReport, value: fn(&LoadResult) -> f64| {
        median_ratio(ours.rounds.iter().map(value), rival.rounds.iter().map(value))
    };
    let over = |rival: &&ServerReport| RatioReport {
        rival: rival.name.clone(),
        reads_per_s: ratio(rival, |round| round.reads_per_s),
        p99: ratio(rival, |round| round.latency.p99_us),
        server_cpu_s_per_gb: ratio(rival, |round| round.server_cpu_s_per_gb.unwrap_or(0.0)),
    };
    rivals.iter().map(over).collect()
}
impl CompareReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; servers on CPU {}, load generator on CPU {}",
            machine.cpu, machine.cpu_count, machine.kernel, self.server_cpu, self.client_cpu
        );
        let speeds = &self.calibration;
        let _ = writeln!(
            text,
            "memcpy {:.1} GB/s (cached {:.1}), CRC-32 {:.1} GB/s; TCP congestion control {}",
            speeds.memcpy_gb_per_s,
            speeds.memcpy_cached_gb_per_s,
            speeds.crc_gb_per_s,
            machine.congestion_control
        );
        if self.transport == Transport::Tcp && machine.congestion_control == "bbr" {
            // Measured: nginx with 64 KiB falls from 68 k to 28 k reads/s by it.
            text.push_str(
                "note: bbr paces by timers, on loopback too, and so hides what servers can do; \
                 set net.ipv4.tcp_congestion_control to cubic or reno, here or in a network \
                 namespace\n",
            );
        }
        let _ = writeln!(
            text,
            "{} {}, {} requests in flight on each, {} keys a request; {} rounds of {} s{}",
            self.connections,
            match self.transport {
                Transport::Tcp => "connections",
                Transport::Unix => "connections over Unix sockets",
            },
            self.depth,
            self.batch,
            self.rounds,
            self.seconds,
            if self.spin { "; the client spins" } else { "" }
        );
        let _ = writeln!(
            text,
            "command: {}; commit: {}",
            self.command,
            self.commit.as_deref().unwrap_or("none")
        );
        for (name, version) in &self.versions {
            let _ = writeln!(text, "{name}: {version}");
        }
        for skipped in &self.skipped {
            let _ = writeln!(text, "{}: not measured, {}", skipped.name, skipped.reason);
        }
        for size in &self.sizes {
            text.push('\n');
            text.push_str(&size.render());
        }
        for latency in &self.latencies {
            text.push('\n');
            text.push_str(&latency.render());
        }
        text
    }
}

impl SizeReport {
    fn render(&self) -> String {
        let title = report::size(self.size as u64);
        let mut table = Table::new(&[
            &title,
            "reads/s",
            "GB/s",
            "p50",
            "p99",
            "server s/GB",
            "client s/GB",
            "server CPU",
            "client CPU",
            "reads ratio",
            "p99 ratio",
            "s/GB ratio",
        ]);
        for server in &self.servers {
            let ratio = self.ratios.iter().find(|ratio| ratio.rival == server.name);
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            table.row([
                server.name.clone(),
                report::count(server.reads_per_s),
                format!("{:.2}", server.gb_per_s),
                report::latency(server.p50_us),
                report::latency(server.p99_us),
                format!("{:.3}", server.server_cpu_s_per_gb),
                format!("{:.3}", server.client_cpu_s_per_gb),
                percent(server.server_cpu_share),
                percent(server.client_cpu_share),
                report::optional(ratio.map(|ratio| ratio.reads_per_s)),
                report::optional(ratio.map(|ratio| ratio.p99)),
                report::optional(ratio.map(|ratio| ratio.server_cpu_s_per_gb)),
            ]);
        }
        for limit in &self.limits {
            let none = || "-".to_owned();
            table.row([
                format!("limit: {}", limit.name),
                none(),
                format!("{:.2}", limit.gb_per_s),
                none(),
                none(),
                format!("{:.3}", limit.sender_cpu_s_per_gb),
                none(),
                none(),
                none(),
                report::optional((limit.ratio > 0.0).then_some(limit.ratio)),
                none(),
                none(),
            ]);
        }
        let mut text = table.render();
        for near in &self.near {
            text.push_str(&near.render());
        }
        for server in &self.servers {
            let share = server.server_cpu_share.max(server.client_cpu_share);
            if share < BUSY_SHARE_MIN {
                let _ = writeln!(
                    text,
                    "note: neither {} nor its client used its CPU: was the machine busy?",
                    server.name
                );
            }
        }
        text
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_ratio_beside_its_rival() {
        let server = |name: &str, reads: f64| ServerReport {
            name: name.into(),
            reads_per_s: reads,
            gb_per_s: 1.0,
            p50_us: 10.0,
            p99_us: 20.0,
            server_cpu_s_per_gb: 0.2,
            client_cpu_s_per_gb: 0.1,
            server_cpu_share: 1.0,
            client_cpu_share: 0.5,
            rounds: vec![LoadResult { reads_per_s: reads, ..LoadResult::default() }],
        };
        let servers = vec![server(NODE_NAME, 300.0), server("redis", 200.0)];
        let size = SizeReport {
            size: 4096,
            object_count: 1,
            ratios: ratios(&servers),
            servers,
            near: Vec::new(),
            limits: Vec::new(),
        };
        let text = size.render();
        let row = text.lines().find(|line| line.starts_with("redis")).unwrap();
        assert!(row.contains("1.50"), "{text}");
        let row = text.lines().find(|line| line.starts_with(NODE_NAME)).unwrap();
        assert!(row.trim_end().ends_with('-'), "{text}");
    }
}
