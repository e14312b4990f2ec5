//! The meaning of the figures.

use super::*;

#[test]
fn a_latency_knows_its_sum_extremes_and_quantiles() {
    let mut latency = Latency::default();
    assert_eq!((latency.min_ms(), latency.average_ms(), latency.quantile_ms(0.99)), (0, 0.0, 0.0));
    for took_us in [2_500; 98] {
        latency.record(took_us);
    }
    latency.record(90_000);
    latency.record(70_000_000);
    assert_eq!((latency.count, latency.min_ms(), latency.max_ms()), (100, 2, 70_000));
    assert_eq!(latency.quantile_ms(0.5), 5.0);
    assert_eq!(latency.quantile_ms(0.99), 100.0);
    assert_eq!(latency.quantile_ms(1.0), 70_000.0, "beyond the last bound the longest");
    let mut short = Latency::default();
    short.record(60);
    assert_eq!(short.quantile_ms(0.5), 0.06, "never more than the longest");
    let both = short.merged(&latency);
    assert_eq!((both.count, both.min_ms(), both.max_ms()), (101, 0, 70_000));
    assert_eq!(both.sum_us, latency.sum_us + 60);
    assert_eq!(Latency::default().merged(&short), short.merged(&Latency::default()));
    assert_eq!(Latency::default().merged(&short), short);
}

#[test]
fn sizes_begin_with_none() {
    let mut sizes = SizeFigures::default();
    assert_eq!((sizes.last, sizes.min, sizes.max), (-1, -1, -1));
    for size in [5, 9, 0, 7] {
        sizes.record(size);
    }
    assert_eq!((sizes.last, sizes.min, sizes.max), (7, 0, 9));
}

#[test]
fn every_figure_has_a_name_of_its_own_and_help() {
    let metrics = Metrics::default();
    let counters = metrics.counters().into_iter().map(|(name, help, _)| (name, help));
    let latencies = metrics.latencies().into_iter().map(|(name, help, _)| (name, help));
    let all: Vec<_> = counters.chain(latencies).collect();
    let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), all.len());
    assert!(all.iter().all(|(_, help)| help.ends_with('.') && !help.starts_with(' ')));
}

#[test]
fn reset_forgets_everything() {
    let mut metrics = Metrics { packets_received: 7, ..Metrics::default() };
    metrics.read_took(3);
    metrics.write_took(5);
    assert_eq!((metrics.request_latency().count, metrics.request_latency().max_ms()), (2, 5));
    metrics.reset();
    assert_eq!(metrics, Metrics::default());
}
