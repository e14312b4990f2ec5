//! Sizes, counts and times as people read them.
//!
//! Sizes are binary (`64 KiB`), counts and rates decimal.

/// Returns bytes as `1.4 MiB`, without a fraction of zero: `64 KiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit_index = bytes.ilog2() as usize / 10 - 1;
    let scaled = |unit_index: usize| bytes as f64 / (1_u64 << (10 * (unit_index + 1))) as f64;
    // 1023.96 KiB would round to 1024.0 KiB, which is 1.0 MiB.
    if scaled(unit_index) >= 1023.95 && unit_index + 1 < UNITS.len() {
        unit_index += 1;
    }
    let unit = UNITS[unit_index];
    if bytes.trailing_zeros() as usize >= 10 * (unit_index + 1) {
        format!("{:.0} {unit}", scaled(unit_index))
    } else {
        format!("{:.1} {unit}", scaled(unit_index))
    }
}

/// Returns a count as `466.2 k` or `1.25 M`.
pub fn count(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.2} M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.1} k", value / 1e3)
    } else {
        format!("{value:.0}")
    }
}

/// Returns microseconds as `85.4 µs`, `854 µs` or `1.20 ms`.
pub fn latency(us: f64) -> String {
    if us >= 1e6 {
        format!("{:.2} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{:.2} ms", us / 1e3)
    } else if us >= 1e2 {
        format!("{us:.0} µs")
    } else {
        format!("{us:.1} µs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let check = |bytes, expect: &str| assert_eq!(size(bytes), expect);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1 KiB");
        check(1500, "1.5 KiB");
        check(100_000, "97.7 KiB");
        check(64 << 10, "64 KiB");
        check((1 << 20) - 1, "1.0 MiB");
        check(1_468_006, "1.4 MiB");
        check(10_288_947, "9.8 MiB");
        check(5 << 30, "5 GiB");
        check(u64::MAX, "16.0 EiB");
        assert_eq!(count(466_200.0), "466.2 k");
        assert_eq!(count(1_250_000.0), "1.25 M");
        assert_eq!(count(2200.0), "2200");
        assert_eq!(latency(85.4), "85.4 µs");
        assert_eq!(latency(854.4), "854 µs");
        assert_eq!(latency(1200.0), "1.20 ms");
    }
}
