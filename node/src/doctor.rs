//! What on this machine makes a node fast, what does not, and what to change.
//!
//! Looks without changing anything, and needs no privileges. Kernel abilities are tried and not inferred
//! from a version; settings are read from `/proc` and `/sys` (`proc(5)`, and the kernel's
//! `admin-guide`), under a root that tests replace. The printing is left to the caller.

use std::fs;
use std::path::PathBuf;

use rustix::event::EventfdFlags;
use rustix::process::Resource;

use crate::ring;

/// Kernel release from which everything that is used here exists: deferred task work.
const KERNEL_WANTED: (u32, u32) = (6, 1);
/// Memory that glommio's rings lock for each shard, in bytes.
const LOCKED_BYTES_NEEDED: u64 = 512 << 10;
/// Open files for the default number of connections, with some to spare.
const FILES_WANTED: u64 = 5_000;

/// The state of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use, or as it should be.
    On,
    /// Not in use: a node works without it, more slowly.
    Off,
    /// A node does not start like this.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a few words.
    pub name: &'static str,
    /// Its state.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to change, if something can be.
    pub advice: Option<String>,
}

impl Finding {
    fn on(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, state: State::On, found: found.into(), advice: None }
    }

    fn off(name: &'static str, found: impl Into<String>, advice: &str) -> Finding {
        let advice = Some(advice.to_owned());
        Finding { name, state: State::Off, found: found.into(), advice }
    }

    fn missing(name: &'static str, found: impl Into<String>, advice: &str) -> Finding {
        Finding { state: State::Missing, ..Finding::off(name, found, advice) }
    }
}

/// Looks at this machine.
pub fn examine() -> Vec<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let limit = |resource| rustix::process::getrlimit(resource).current;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = vec![kernel(&release)];
    findings.extend(io_uring());
    findings.push(locked_memory(limit(Resource::Memlock)));
    // A node raises its own limit as far as it may.
    findings.push(open_files(rustix::process::getrlimit(Resource::Nofile).maximum));
    findings.extend(SystemFiles { root: PathBuf::from("/") }.examine(cores));
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let found = format!("Linux {release}");
    if version >= KERNEL_WANTED {
        return Finding::on("kernel", found);
    }
    Finding::off("kernel", found, "Linux 6.1 or later does the ring's work without interrupts")
}

/// Checks the ring and its operations, by making one.
fn io_uring() -> Vec<Finding> {
    let abilities = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(std::io::Error::from)
        .and_then(|eventfd| ring::abilities(&eventfd));
    match abilities {
        Err(error) => vec![Finding::missing(
            "io_uring",
            error.to_string(),
            "a node needs io_uring of Linux 6.0: provided buffers and multishot receive",
        )],
        Ok(abilities) => vec![
            Finding::on("io_uring", "multishot accept and receive into provided buffers"),
            match abilities.is_deferred {
                true => {
                    Finding::on("deferred task work", "completions run when the ring is entered")
                }
                false => Finding::off(
                    "deferred task work",
                    "this kernel interrupts the shard for each completion",
                    "Linux 6.1 or later has it",
                ),
            },
            match abilities.can_refer {
                true => Finding::on(
                    "sends without a copy",
                    "for large replies to other machines, where the network card can",
                ),
                false => Finding::off(
                    "sends without a copy",
                    "this kernel copies every reply",
                    "Linux 6.2 or later can send by reference",
                ),
            },
        ],
    }
}

fn locked_memory(limit: Option<u64>) -> Finding {
    const NAME: &str = "locked memory";
    match limit {
        None => Finding::on(NAME, "no limit"),
        Some(bytes) if bytes >= LOCKED_BYTES_NEEDED => {
            Finding::on(NAME, format!("{} KiB a process", bytes >> 10))
        }
        Some(bytes) => Finding::missing(
            NAME,
            format!("{} KiB a process", bytes >> 10),
            "512 KiB are needed: `ulimit -l 1024`, or LimitMEMLOCK= in the systemd unit",
        ),
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    const NAME: &str = "open files";
    match limit {
        None => Finding::on(NAME, "no limit"),
        Some(count) if count >= FILES_WANTED => Finding::on(NAME, format!("{count} a process")),
        Some(count) => Finding::off(
            NAME,
            format!("{count} a process, which connections_max may pass"),
            "`ulimit -Hn 65536`, or LimitNOFILE= in the systemd unit",
        ),
    }
}

/// Settings of the system, read as files.
struct SystemFiles {
    root: PathBuf,
}

impl SystemFiles {
    fn examine(&self, cores: usize) -> Vec<Finding> {
        let mut findings = vec![self.huge_pages(), self.cores(cores), self.congestion_control()];
        findings.extend(self.clock());
        findings.extend(self.governor());
        findings.extend(self.memory_nodes());
        findings.extend(self.interrupts(cores));
        findings
    }

    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn huge_pages(&self) -> Finding {
        const NAME: &str = "huge pages";
        let setting = self.read("sys/kernel/mm/transparent_hugepage/shmem_enabled");
        let chosen = setting.as_deref().and_then(|setting| {
            setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        });
        match chosen {
            Some(mode @ ("always" | "within_size" | "advise" | "force")) => {
                Finding::on(NAME, format!("shared memory may have them ({mode})"))
            }
            Some(mode) => Finding::off(
                NAME,
                format!("shared memory has none ({mode})"),
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            ),
            None => Finding::off(NAME, "this kernel has none", "a kernel with them"),
        }
    }

    fn cores(&self, cores: usize) -> Finding {
        const NAME: &str = "cores";
        let online = self.read("sys/devices/system/cpu/online").map(|list| count(&list));
        match (online, self.quota()) {
            (_, Some(quota)) if quota < cores as f64 => Finding::off(
                NAME,
                format!("{cores} to run on, but a quota of {quota:.1}"),
                "a shard that is throttled stalls its clients: raise CPUQuota=, or lower --shards",
            ),
            (Some(online), _) if online > cores => Finding::off(
                NAME,
                format!("{cores} of {online} may be used"),
                "see taskset, CPUAffinity= or the cpuset of the container",
            ),
            _ => Finding::on(NAME, format!("{cores}")),
        }
    }

    /// Returns the mean number of processors that the control group allows, if that is limited.
    fn quota(&self) -> Option<f64> {
        let text = self.read("sys/fs/cgroup/cpu.max")?;
        let (quota, period) = text.split_once(' ')?;
        let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
        (period > 0.0).then_some(quota / period)
    }

    fn congestion_control(&self) -> Finding {
        const NAME: &str = "TCP";
        match self.read("proc/sys/net/ipv4/tcp_congestion_control").as_deref() {
            // Measured: docs/PERFORMANCE.md.
            Some("bbr") => Finding::off(
                NAME,
                "bbr paces what is sent",
                "inside a data center: sysctl net.ipv4.tcp_congestion_control=cubic",
            ),
            Some(name) => Finding::on(NAME, name),
            None => Finding::on(NAME, "the congestion control is not told"),
        }
    }

    fn clock(&self) -> Option<Finding> {
        const NAME: &str = "clock";
        let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        let source = self.read(path)?;
        Some(match source.as_str() {
            "hpet" | "acpi_pm" | "jiffies" | "pit" => Finding::off(
                NAME,
                format!("{source}: each look at the time is a system call"),
                "see why the kernel gave tsc up: dmesg | grep -i clocksource",
            ),
            _ => Finding::on(NAME, source),
        })
    }

    fn governor(&self) -> Option<Finding> {
        const NAME: &str = "processor speed";
        let governor = self.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
        Some(match governor.as_str() {
            "performance" => Finding::on(NAME, governor),
            _ => Finding::off(
                NAME,
                format!("governor {governor}: a core that slept begins slowly"),
                "cpupower frequency-set -g performance",
            ),
        })
    }

    fn memory_nodes(&self) -> Option<Finding> {
        const NAME: &str = "memory nodes";
        let nodes = count(&self.read("sys/devices/system/node/online")?);
        Some(match nodes {
            0 | 1 => Finding::on(NAME, "one"),
            _ => Finding::off(
                NAME,
                format!("{nodes}: memory of another node is further away"),
                "one millrace node for each: numactl --cpunodebind=N --membind=N millrace node ...",
            ),
        })
    }

    /// Finds network devices whose interrupts all go to one processor.
    fn interrupts(&self, cores: usize) -> Option<Finding> {
        const NAME: &str = "network interrupts";
        let mut queues = 0;
        let mut processors = Vec::new();
        for device in fs::read_dir(self.root.join("sys/class/net")).ok()?.flatten() {
            // A virtio device is one below that which has the interrupts.
            let places = ["device/msi_irqs", "device/../msi_irqs"];
            let mut found = places.iter().map(|place| fs::read_dir(device.path().join(place)));
            let Some(interrupts) = found.find_map(Result::ok) else { continue };
            for interrupt in interrupts.flatten() {
                let number = interrupt.file_name().to_string_lossy().into_owned();
                let path = format!("proc/irq/{number}/effective_affinity_list");
                if let Some(list) = self.read(&path) {
                    queues += 1;
                    processors.push(list);
                }
            }
        }
        processors.sort_unstable();
        processors.dedup();
        if queues == 0 {
            return None;
        }
        let found = format!("{queues} on {} processors", processors.len());
        Some(match processors.len() {
            1 if cores > 1 && queues > 1 => Finding::off(
                NAME,
                found,
                "spread them: irqbalance, or echo N > /proc/irq/*/smp_affinity_list",
            ),
            _ => Finding::on(NAME, found),
        })
    }
}

/// Numbers in a list of the kernel, such as `0-3,8`.
fn count(list: &str) -> usize {
    let parts = list.split(',').filter(|part| !part.trim().is_empty());
    parts
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if last >= first => last - first + 1,
                _ => 0,
            }
        })
        .sum()
}

#[cfg(test)]
mod tests;
