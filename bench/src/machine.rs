//! The machine under test: its description, CPU affinity, CPU time and calibration.
//!
//! Owns what is asked of the kernel beside sockets. The function that changes affinity always puts it
//! back. CPU time is in seconds, of a thread by its clock and of a process by `/proc`, whose tick is 10
//! ms: measure for seconds.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// The machine, as it is needed to read a result.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model name of the CPU.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpu_count: usize,
    /// Kernel release.
    pub kernel: String,
    /// TCP congestion control of new connections. One that paces makes a server arm timers.
    pub congestion_control: String,
}

impl Machine {
    /// Asks the kernel; what it does not report is `unknown`.
    pub fn describe() -> Machine {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = text
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'));
        Machine {
            cpu: model.map_or_else(|| "unknown".into(), |(_, name)| name.trim().into()),
            cpu_count: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            congestion_control: std::fs::read_to_string(
                "/proc/sys/net/ipv4/tcp_congestion_control",
            )
            .map_or_else(|_| "unknown".into(), |name| name.trim().into()),
        }
    }
}

/// Speeds of this machine that bound every result; measured for about a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calibration {
    /// Copy of 64 MiB, larger than most caches, in GB/s (10^9 bytes copied).
    pub memcpy_gb_per_s: f64,
    /// Copy of 128 KiB within a core's cache, in GB/s.
    pub memcpy_cached_gb_per_s: f64,
    /// CRC-32 of 1 MiB again and again, in GB/s.
    pub crc_gb_per_s: f64,
}

impl Calibration {
    /// Measures on the current thread.
    pub fn measure() -> Calibration {
        let source = vec![0x5A_u8; 64 << 20];
        let mut target = vec![0_u8; 64 << 20];
        let copy = |target: &mut [u8], source: &[u8]| {
            target.copy_from_slice(source);
            std::hint::black_box(&target[0]);
        };
        Calibration {
            memcpy_gb_per_s: rate(source.len(), 8, || copy(&mut target, &source)),
            memcpy_cached_gb_per_s: rate(128 << 10, 20_000, || {
                copy(&mut target[..128 << 10], &source[..128 << 10]);
            }),
            crc_gb_per_s: rate(1 << 20, 1000, || {
                let bytes = std::hint::black_box(&source[..1 << 20]);
                std::hint::black_box(millrace_proto::checksum::of(bytes));
            }),
        }
    }
}

/// Returns the GB/s of the fastest of three runs of `repeat` times `bytes`.
fn rate(bytes: usize, repeat: u32, mut work: impl FnMut()) -> f64 {
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let start = Instant::now();
        (0..repeat).for_each(|_| work());
        let seconds = start.elapsed().as_secs_f64();
        best = best.max(bytes as f64 * f64::from(repeat) / seconds / 1e9);
    }
    best
}

/// Returns the command line of this process, with the program's name alone, without the flag `hidden`.
pub(crate) fn command_line(hidden: &str) -> String {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default().to_owned();
    let shown = arguments.filter(|argument| argument != hidden);
    std::iter::once(name).chain(shown).collect::<Vec<_>>().join(" ")
}

/// Returns the commit of the current directory, if it is under git.
pub fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
/// Returns the CPUs that this process may use, in order.
///
/// # Errors If the kernel does not say.
pub fn usable_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("read the CPU affinity")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Formats CPUs in ascending order as `0-3,8`.
pub fn cpu_list(cpus: &[usize]) -> String {
    let mut parts = Vec::new();
    for run in cpus.chunk_by(|left, right| left + 1 == *right) {
        match run {
            [only] => parts.push(only.to_string()),
            [first, .., last] => parts.push(format!("{first}-{last}")),
            [] => {}
        }
    }
    parts.join(",")
}

/// Runs `work` with the current thread, and all that it spawns, on one CPU only, and puts the affinity
/// back.
///
/// # Errors
/// If the CPU does not exist or may not be used, or `work` fails.
pub fn on_cpu<T>(cpu: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    on_cpus(&[cpu], work)
}

/// As [`on_cpu`], with several.
///
/// # Errors
/// As [`on_cpu`].
pub fn on_cpus<T>(cpus: &[usize], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None).context("read the CPU affinity")?;
    let mut only = CpuSet::new();
    for &cpu in cpus {
        anyhow::ensure!(cpu < CpuSet::MAX_CPU, "there is no CPU {cpu} on this machine");
        only.set(cpu);
    }
    sched_setaffinity(None, &only).with_context(|| {
        let (list, count) = (cpu_list(cpus), before.count());
        format!("pin to CPU {list}; this process may use {count} CPUs")
    })?;
    let result = work();
    sched_setaffinity(None, &before).context("put the CPU affinity back")?;
    result
}

/// Returns the memory that can be had without swapping, in bytes.
///
/// # Errors If the kernel does not say.
pub fn memory_available() -> Result<u64> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse::<u64>().ok())
        .with_context(|| format!("{path} has an unknown layout"))?;
    Ok(kib << 10)
}

/// Lets this process, and those it starts from now on, have this many descriptors.
///
/// # Errors
/// If the hard limit is lower.
pub fn allow_descriptors(needed: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let most = maximum.unwrap_or(u64::MAX);
    anyhow::ensure!(
        most >= needed,
        "needs {needed} open files, and the hard limit is {most} (ulimit -Hn)"
    );
    let raised = Rlimit { current: Some(needed), maximum };
    setrlimit(Resource::Nofile, raised).context("raise the limit of open files")
}

/// Returns the CPU time of the calling thread in seconds, user and system.
pub fn thread_cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns the CPU time of a process in seconds, user and system, all its threads.
///
/// # Errors
/// If there is no such process.
pub fn process_cpu_s(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = stat_ticks(&text).with_context(|| format!("{path} has an unknown layout"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Returns `utime + stime`, fields 14 and 15; the name before them is in parentheses and may hold
/// spaces.
fn stat_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Looks a program up on `PATH` and in the usual places of servers.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_with_spaces() {
        let text = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(stat_ticks(text), Some(42));
        assert_eq!(stat_ticks("12 (a"), None);
        assert!(process_cpu_s(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn limits_are_raised_as_far_as_they_may_be() {
        allow_descriptors(16).unwrap();
        if let Some(most) = getrlimit(Resource::Nofile).maximum {
            let error = allow_descriptors(most + 1).unwrap_err();
            assert!(error.to_string().contains("ulimit"), "{error}");
        }
        assert!(memory_available().unwrap() > 0);
    }

    #[test]
    fn lists_of_cpus_are_short() {
        assert_eq!(cpu_list(&[0, 1]), "0-1");
        assert_eq!(cpu_list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(cpu_list(&[]), "");
        assert!(!usable_cpus().unwrap().is_empty());
    }

    #[test]
    fn affinity_is_put_back() {
        let count = || sched_getaffinity(None).unwrap().count();
        let before = count();
        let first =
            (0..CpuSet::MAX_CPU).find(|&cpu| sched_getaffinity(None).unwrap().is_set(cpu)).unwrap();
        assert_eq!(on_cpu(first, || Ok(count())).unwrap(), 1);
        assert_eq!(count(), before);
        assert!(on_cpu(CpuSet::MAX_CPU, || Ok(())).is_err());
    }
}
