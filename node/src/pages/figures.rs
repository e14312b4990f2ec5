//! The figures of a node as the text of `/metrics`.
//!
//! Names begin with `millrace_`; a counter's ends with its unit and `_total`. Each shard has its own
//! samples, so their sum is left to the reader.

use millrace_ops::metrics::{Format, Text};

use super::Sources;
use crate::metrics::{Counters, Figure, Kind};
use crate::timings::{self, BOUNDS_S, HIT_BOUNDS_S};

/// Returns the text; while the node starts it has little content.
pub(super) fn text(format: Format, sources: Option<&Sources>, is_ready: bool) -> String {
    let mut text = Text::new(format);
    text.info("millrace_build", "The build of the node.");
    text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("millrace_ready", "gauge", "", "1 while the node serves and is not fenced.");
    text.sample(&[], u8::from(is_ready));
    if let Some(sources) = sources {
        of_shards(&mut text, sources);
        of_node(&mut text, sources);
    }
    text.finish()
}

fn of_shards(text: &mut Text, sources: &Sources) {
    let shards: Vec<(String, Vec<(&str, u64)>)> = sources
        .counters
        .iter()
        .enumerate()
        .map(|(shard, counters)| (shard.to_string(), counters.values()))
        .collect();
    for (index, figure) in Counters::FIGURES.iter().enumerate() {
        let unit = family(text, figure);
        for (shard, values) in &shards {
            let (_, value) = values[index];
            let labels = [("shard", shard.as_str())];
            match unit {
                // They are counted in milliseconds.
                "seconds" => text.sample(&labels, value as f64 / 1000.0),
                _ => text.sample(&labels, value),
            }
        }
    }
    let help = "Messages that wait in the shard's mailbox.";
    text.family("millrace_mailbox_messages", "gauge", "", help);
    for ((shard, _), mailbox) in shards.iter().zip(sources.mailboxes.iter()) {
        text.sample(&[("shard", shard)], mailbox.waiting());
    }
}

fn of_node(text: &mut Text, sources: &Sources) {
    let (count, oldest) = sources.timings.fills_under_way();
    text.family("millrace_fills_under_way", "gauge", "", "Blocks on their way in.");
    text.sample(&[], count);
    let help = "Age of the oldest fill under way; 0 without one.";
    text.family("millrace_oldest_fill", "gauge", "seconds", help);
    text.sample(&[], oldest.as_secs_f64());
    text.family("millrace_queue_jobs", "gauge", "", "Jobs in a queue of the side thread.");
    for (queue, length) in sources.queue.lengths() {
        text.sample(&[("queue", queue)], length);
    }
    let histograms = [
        (
            "millrace_fill_duration",
            "Time of a fill, until the block or an error.",
            &sources.timings.fill,
        ),
        ("millrace_source_duration", "Time of a read of the source.", &sources.timings.source),
    ];
    for (name, help, histogram) in histograms {
        text.family(name, "histogram", "seconds", help);
        let (counts, sum) = histogram.read();
        text.histogram(&BOUNDS_S, &counts, sum);
    }
    let help = "Time of a hit in the node: from when its shard took the request up to the end of that turn \
                of its loop, when the reply is ready for the kernel. Waits in the sockets, and behind \
                replies that the client does not take, are not in it.";
    text.family("millrace_hit_duration", "histogram", "seconds", help);
    let (counts, sum) = timings::sum(&sources.hit_times);
    text.histogram(&HIT_BOUNDS_S, &counts, sum);
    for (figure, value) in sources.progress.figures() {
        family(text, &figure);
        text.sample(&[], value);
    }
}

/// Begins the family of a figure; returns its unit.
fn family(text: &mut Text, figure: &Figure) -> &'static str {
    let (name, unit) = name_and_unit(figure);
    let help = figure.help.trim_ascii();
    match figure.kind {
        Kind::Counter => text.counter(&name, unit, help),
        Kind::Gauge => text.family(&name, "gauge", unit, help),
    }
    unit
}

/// Returns the name without its unit, and the unit.
fn name_and_unit(figure: &Figure) -> (String, &'static str) {
    let stem = match figure.name {
        // A gauge is named in the plural, and may not end in `_count`.
        "block_count" => "blocks",
        "pinned_count" => "pinned_blocks",
        "connection_count" => "connections",
        "flash_run_count" => "flash_runs",
        "flash_out_count" => "flash_disks_out",
        "handover_source_count" => "handover_sources",
        "handover_pending_count" => "handover_pending_blocks",
        "handover_block_count" => "handover_blocks",
        name => name.trim_end_matches("_count"),
    };
    let (stem, unit) = match stem.rsplit_once('_') {
        Some((stem, "bytes")) => (stem, "bytes"),
        Some((stem, "ms")) => (stem, "seconds"),
        _ => (stem, ""),
    };
    (format!("millrace_{stem}"), unit)
}
