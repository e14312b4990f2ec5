//! Text and the values it stands for: core lists, host names, names in a cluster.
//!
//! What is written is read back as the same value.

use std::net::IpAddr;

use millrace_ops::host::is_host_name;
use millrace_ops::size::parse_count;
use millrace_proto::cluster::NAME_LENGTH_MAX;

/// Highest number of cores that an affinity mask can name.
pub(super) const CPUS_MAX: usize = rustix::thread::CpuSet::MAX_CPU;

/// Returns the cores that this process may run on, ascending.
pub fn usable_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CPUS_MAX).filter(|cpu| set.is_set(*cpu)).collect(),
        // The kernel refuses where it has more cores than the mask has bits: count upwards instead.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// Reads core numbers and ranges such as `0,2-5`, in the order given, each core once.
pub(super) fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first = parse_count(first.trim())? as usize;
        let last = parse_count(last.trim())? as usize;
        if first > last || last >= CPUS_MAX {
            return None;
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return None;
            }
            cpus.push(cpu);
        }
    }
    Some(cpus)
}

/// Formats the list as [`parse_cpus`] reads it, with runs of neighbours as ranges.
pub(super) fn format_cpus(cpus: &[usize]) -> String {
    cpus.chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [only] => only.to_string(),
            _ => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// True if `text` can stand before `:port`; the empty text may.
pub(super) fn is_host(text: &str) -> bool {
    text.is_empty() || is_host_name(text) || text.parse::<IpAddr>().is_ok()
}

/// True if a text is a name of a node or a zone: short, and safe in paths and tables.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_LENGTH_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && text != "."
        && text != ".."
}
