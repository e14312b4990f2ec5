//! Machines of all kinds, as files in a directory.

use tempfile::TempDir;

use super::*;

/// Makes a machine with these settings.
fn machine(files: &[(&str, &str)]) -> (TempDir, SystemFiles) {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    let settings = SystemFiles { root: directory.path().to_owned() };
    (directory, settings)
}

#[track_caller]
fn state(findings: &[Finding], name: &str) -> State {
    let found = findings.iter().find(|finding| finding.name == name);
    let found = found.unwrap_or_else(|| panic!("nothing is said of {name}"));
    assert_eq!(found.advice.is_some(), found.state != State::On, "{found:?}");
    found.state
}

#[test]
fn a_machine_that_is_set_up_well_is_told_nothing() {
    let (_directory, settings) = machine(&[
        ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never"),
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/devices/system/node/online", "0"),
        ("sys/fs/cgroup/cpu.max", "max 100000"),
        ("proc/sys/net/ipv4/tcp_congestion_control", "cubic"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
        ("sys/class/net/eth0/device/msi_irqs/40", "msix"),
        ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
        ("proc/irq/40/effective_affinity_list", "0"),
        ("proc/irq/41/effective_affinity_list", "1"),
    ]);
    let findings = settings.examine(4);
    let bad: Vec<_> = findings.iter().filter(|finding| finding.state != State::On).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(findings.len(), 7);
}

#[test]
fn what_slows_a_node_is_named_with_what_to_change() {
    let (_directory, settings) = machine(&[
        ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never] deny"),
        ("sys/devices/system/cpu/online", "0-7,16-23"),
        ("sys/devices/system/node/online", "0-1"),
        ("proc/sys/net/ipv4/tcp_congestion_control", "bbr"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
        ("sys/class/net/eth0/device/uevent", "DRIVER=virtio_net"),
        ("sys/class/net/eth0/msi_irqs/40", "msix"),
        ("sys/class/net/eth0/msi_irqs/41", "msix"),
        ("proc/irq/40/effective_affinity_list", "3"),
        ("proc/irq/41/effective_affinity_list", "3"),
    ]);
    let findings = settings.examine(8);
    for finding in &findings {
        assert_eq!(state(&findings, finding.name), State::Off, "{finding:?}");
    }
    assert_eq!(findings.len(), 7);
}

#[test]
fn a_quota_below_the_cores_is_found() {
    let (_directory, settings) = machine(&[("sys/fs/cgroup/cpu.max", "150000 100000")]);
    assert_eq!(state(&settings.examine(2), "cores"), State::Off);
    assert_eq!(state(&settings.examine(1), "cores"), State::On);
}

#[test]
fn limits_that_keep_a_node_from_starting_are_missing() {
    let states = [None, Some(64 << 10), Some(8 << 20)].map(|limit| locked_memory(limit).state);
    assert_eq!(states, [State::On, State::Missing, State::On]);
    let states = [None, Some(1024), Some(1 << 20)].map(|limit| open_files(limit).state);
    assert_eq!(states, [State::On, State::Off, State::On]);
}

#[test]
fn kernels_are_compared_by_number() {
    let states = ["6.18.44-generic", "6.1", "6.0.3", "5.15.0-91", "garbage"];
    let states = states.map(|release| kernel(release).state);
    assert_eq!(states, [State::On, State::On, State::Off, State::Off, State::Off]);
}

#[test]
fn lists_of_the_kernel_are_counted() {
    assert_eq!(["0", "0-3", "0-3,8", "0-1,4-5", "", "x"].map(count), [1, 4, 5, 4, 0, 0]);
}

#[test]
fn this_machine_can_run_a_node() {
    let findings = examine();
    let missing: Vec<_> =
        findings.iter().filter(|finding| finding.state == State::Missing).collect();
    assert!(missing.is_empty(), "the other tests start nodes, and {missing:?}");
}
