//! The shape of the drawing: what is there, how long it is, and that it is well-formed.

use super::*;
use crate::compare::{LimitReport, LimitRound};
use crate::load::LoadResult;
use crate::machine::{Calibration, Machine};
use crate::rival::Transport;

fn server(name: &str, rates_gb_per_s: &[f64]) -> ServerReport {
    let round = |&gb_per_s| LoadResult { gb_per_s, ..LoadResult::default() };
    ServerReport {
        name: name.into(),
        reads_per_s: rates_gb_per_s[0] * 1e9 / 4096.0,
        gb_per_s: rates_gb_per_s[0],
        p50_us: 1.0,
        p99_us: 2.0,
        server_cpu_s_per_gb: 0.1,
        client_cpu_s_per_gb: 0.1,
        server_cpu_share: 1.0,
        client_cpu_share: 0.5,
        rounds: rates_gb_per_s.iter().map(round).collect(),
    }
}

fn report() -> CompareReport {
    let limit = LimitReport {
        name: "iperf3 -Z".into(),
        gb_per_s: 5.0,
        sender_cpu_s_per_gb: 0.1,
        ratio: 0.8,
        rounds: vec![LimitRound { gb_per_s: 5.0, sender_cpu_s_per_gb: 0.1 }; 3],
    };
    let size = |size, limits| SizeReport {
        size,
        object_count: 1,
        servers: vec![
            server(NODE_NAME, &[4.0, 4.0, 8.0]),
            server("redis", &[2.0, 2.0, 2.0]),
            server("nginx", &[1.0, 1.0, 1.0]),
        ],
        ratios: Vec::new(),
        near: Vec::new(),
        limits,
    };
    CompareReport {
        machine: Machine {
            cpu: "A <CPU> & more".into(),
            cpu_count: 2,
            kernel: "6.18".into(),
            congestion_control: "reno".into(),
        },
        calibration: Calibration {
            memcpy_gb_per_s: 1.0,
            memcpy_cached_gb_per_s: 1.0,
            crc_gb_per_s: 1.0,
        },
        command: "millrace bench compare".into(),
        commit: Some("abc1234".into()),
        versions: vec![(NODE_NAME.into(), "millrace/0.1.0".into())],
        skipped: Vec::new(),
        connections: 8,
        depth: 16,
        batch: 1,
        spin: false,
        seconds: 1.0,
        rounds: 3,
        transport: Transport::Tcp,
        server_cpu: 0,
        client_cpu: 1,
        sizes: vec![size(4096, Vec::new()), size(1 << 20, vec![limit])],
        latencies: Vec::new(),
    }
}

/// Returns the value of an attribute in each line that has `start`.
fn attributes(svg: &str, start: &str, name: &str) -> Vec<String> {
    let lines = svg.lines().filter(|line| line.starts_with(start));
    let value = |line: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    lines.map(value).collect()
}

/// Checks that tags are closed in the order they are opened, and that no `&` or `<` stands alone.
fn check_well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let words = &rest[..start];
        let entities = ["&amp;", "&lt;", "&gt;"];
        let known: usize = entities.iter().map(|entity| words.matches(entity).count()).sum();
        assert_eq!(words.matches('&').count(), known, "{words}");
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn bars_are_as_long_as_their_ratio_to_the_best_rival() {
    let svg = draw(&report());
    let classes = attributes(&svg, "<rect", "class");
    let (small, large) = (["node", "rival", "rival"], ["node", "rival", "rival", "limit"]);
    assert_eq!(classes, [&small[..], &large[..]].concat());
    // The longest ratio is 2.5, of the limit: a ratio of 1 is 450 / 2.5 pixels.
    let widths = attributes(&svg, "<rect", "width");
    assert_eq!(widths, ["360.0", "180.0", "90.0", "360.0", "180.0", "90.0", "450.0"]);
    assert_eq!(attributes(&svg, "<line", "x1"), ["370.0"]);
    assert!(svg.contains(">976.6 k/s (2.00)<"), "{svg}");
    assert!(svg.contains(">4.00 GB/s (2.00)<") && svg.contains(">5.00 GB/s (2.50)<"), "{svg}");
}

#[test]
fn the_drawing_is_well_formed_and_always_the_same() {
    let svg = draw(&report());
    check_well_formed(&svg);
    assert_eq!(svg, draw(&report()));
    assert!(svg.contains("A &lt;CPU&gt; &amp; more") && svg.contains("commit abc1234"), "{svg}");
    assert!(svg.contains("prefers-color-scheme: dark"), "{svg}");
    let mut alone = report();
    alone.sizes.clear();
    check_well_formed(&draw(&alone));
}

#[test]
fn a_node_alone_is_compared_with_itself() {
    let mut alone = report();
    alone.sizes.truncate(1);
    alone.sizes[0].servers.truncate(1);
    let svg = draw(&alone);
    assert_eq!(attributes(&svg, "<rect", "width"), ["450.0"]);
}
