//! What the loopback interface itself carries: `iperf3`, with copies and by `sendfile`.
//!
//! Owns the receiver that runs all the while and one sender for each round. The sender is on the CPU of
//! the servers and the receiver on that of the load generator, because payload goes that way, and
//! because the work of loopback falls to the sender's CPU. A limit is not a rival: nothing is asked for,
//! nothing is looked up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::CompareOptions;
use crate::machine;
use crate::report::{median, median_ratio};
use crate::rival::{self, Home, Server, Transport};

/// Program that measures the limits.
pub(super) const PROGRAM: &str = "iperf3";
/// Smallest objects beside which limits are shown: below it requests count for more than bytes.
pub(super) const SIZE_MIN: usize = 1 << 20;
/// Line by which the receiver says that it listens.
const READY_PREFIX: &str = "Server listening on ";
/// Limits and the flag of each.
const KINDS: [(&str, Option<&str>); 2] = [("iperf3", None), ("iperf3 -Z", Some("-Z"))];

/// Medians over the rounds of one limit.
#[derive(Clone, Debug, Serialize)]
pub struct LimitReport {
    /// Its name, which is its command.
    pub name: String,
    /// Payload in GB/s.
    pub gb_per_s: f64,
    /// CPU seconds of the sender for each GB, as it reports itself.
    pub sender_cpu_s_per_gb: f64,
    /// Ratio of the node's GB/s to the limit's, the median of each round's; 0 without a node.
    pub ratio: f64,
    /// Each round.
    pub rounds: Vec<LimitRound>,
}

/// One round of a limit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LimitRound {
    /// Payload in GB/s, as it was received.
    pub gb_per_s: f64,
    /// CPU seconds of the sender for each GB.
    pub sender_cpu_s_per_gb: f64,
}

/// One limit that is measured in turn with the servers.
pub(super) struct Limit {
    pub(super) name: &'static str,
    flag: Option<&'static str>,
    rounds: Vec<LimitRound>,
}

/// The limits with the receiver of all.
pub(super) struct Limits {
    program: PathBuf,
    receiver: Server,
    port: u16,
    pub(super) all: Vec<Limit>,
}

/// Returns why limits cannot be measured here, if they cannot.
pub(super) fn obstacle(transport: Transport) -> Option<&'static str> {
    if transport == Transport::Unix {
        return Some("it speaks TCP only");
    }
    machine::find_program(PROGRAM).is_none().then_some("it is not installed")
}

/// Returns the version that the program reports.
pub(super) fn version() -> Option<String> {
    let output = Command::new(machine::find_program(PROGRAM)?).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

impl Limits {
    /// Starts the receiver.
    pub(super) fn start(options: &CompareOptions) -> Result<Limits> {
        let program = machine::find_program(PROGRAM).context("it is not installed")?;
        let home = Home::new(Transport::Tcp)?;
        let address = home.tcp().context("a TCP address was asked for")?;
        let receiver =
            machine::on_cpu(options.client_cpu, || start_receiver(&program, home, address))
                .with_context(|| format!("start {PROGRAM}"))?;
        let all = KINDS.map(|(name, flag)| Limit { name, flag, rounds: Vec::new() }).into();
        Ok(Limits { program, receiver, port: address.port(), all })
    }

    /// Measures one limit for about as long as a server.
    pub(super) fn measure(&mut self, index: usize, options: &CompareOptions) -> Result<()> {
        let limit = &mut self.all[index];
        // It takes whole seconds, and takes 0 for ever.
        let seconds = options.seconds.round().max(1.0);
        let mut command = rival::command(&self.program);
        command.args(["--client", "127.0.0.1", "--port"]).arg(self.port.to_string());
        command.arg("--time").arg(seconds.to_string()).arg("--json").args(limit.flag);
        command.stdin(Stdio::null());
        let output = machine::on_cpu(options.server_cpu, || {
            command.output().with_context(|| format!("run {}", limit.name))
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let round = parse(&text).with_context(|| {
            format!("{} to {} ended with {}", limit.name, self.receiver.address(), output.status)
        })?;
        limit.rounds.push(round);
        Ok(())
    }

    /// Returns the reports, beside the GB/s of the node in each round.
    pub(super) fn report(self, node_gb_per_s: &[f64]) -> Vec<LimitReport> {
        self.all.into_iter().map(|limit| limit.report(node_gb_per_s)).collect()
    }
}

impl Limit {
    fn report(self, node_gb_per_s: &[f64]) -> LimitReport {
        let of = |value: fn(&LimitRound) -> f64| self.rounds.iter().map(value).collect::<Vec<_>>();
        let gb_per_s = of(|round| round.gb_per_s);
        LimitReport {
            name: self.name.into(),
            gb_per_s: median(&gb_per_s),
            sender_cpu_s_per_gb: median(&of(|round| round.sender_cpu_s_per_gb)),
            ratio: median_ratio(node_gb_per_s.iter().copied(), gb_per_s),
            rounds: self.rounds,
        }
    }
}

fn start_receiver(program: &Path, home: Home, address: SocketAddr) -> Result<Server> {
    let mut command = rival::command(program);
    command.args(["--server", "--forceflush", "--bind", "127.0.0.1", "--port"]);
    command.arg(address.port().to_string());
    // A connection to see whether it listens would be a test to it.
    let (server, _) = home.spawn_until_line(command, READY_PREFIX)?;
    Ok(server)
}

/// The report of a sender, only with the parts that are used here.
#[derive(Deserialize)]
struct Output {
    error: Option<String>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct End {
    sum_received: Option<Sum>,
    cpu_utilization_percent: Option<Utilization>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    seconds: f64,
}

#[derive(Deserialize)]
struct Utilization {
    host_total: f64,
}

fn parse(text: &str) -> Result<LimitRound> {
    let output: Output = serde_json::from_str(text).context("read its report")?;
    if let Some(error) = output.error {
        anyhow::bail!("it says: {error}");
    }
    let end = output.end.context("its report has no end")?;
    let sum = end.sum_received.context("its report has no sum")?;
    ensure!(sum.bytes > 0.0 && sum.seconds > 0.0, "nothing was received");
    let gb = sum.bytes / 1e9;
    let busy_percent = end.cpu_utilization_percent.map_or(0.0, |it| it.host_total);
    Ok(LimitRound {
        gb_per_s: gb / sum.seconds,
        sender_cpu_s_per_gb: busy_percent / 100.0 * sum.seconds / gb,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_and_errors_are_told() {
        let text = r#"{"start": {}, "end": {
            "sum_received": {"start": 0, "bytes": 12e9, "seconds": 2.0, "sender": true},
            "cpu_utilization_percent": {"host_total": 90.0, "remote_total": 40.0}}}"#;
        let round = parse(text).unwrap();
        assert!((round.gb_per_s - 6.0).abs() < 1e-9);
        assert!((round.sender_cpu_s_per_gb - 0.15).abs() < 1e-9);
        let error = parse(r#"{"start": {}, "end": {}, "error": "connection refused"}"#);
        assert!(error.unwrap_err().to_string().contains("refused"));
        assert!(parse("").is_err());
    }

    #[test]
    fn a_limit_is_measured_where_it_can_be() {
        assert!(obstacle(Transport::Unix).is_some());
        if let Some(reason) = obstacle(Transport::Tcp) {
            println!("skipped: {PROGRAM}: {reason}");
            return;
        }
        let cpus = machine::usable_cpus().unwrap();
        let options = CompareOptions {
            server_cpu: cpus[0],
            client_cpu: *cpus.last().unwrap(),
            seconds: 0.1,
            ..CompareOptions::default()
        };
        let mut limits = Limits::start(&options).unwrap();
        (0..limits.all.len()).for_each(|index| limits.measure(index, &options).unwrap());
        for report in limits.report(&[1.0]) {
            assert!(report.gb_per_s > 0.0 && report.ratio > 0.0, "{report:?}");
        }
    }
}
