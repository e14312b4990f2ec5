//! Figures as text: Prometheus' format 0.0.4 and OpenMetrics 1.0.
//!
//! Writes what it is given in the order it comes, one family after another. It has no registry, because the
//! threads keep their figures already. Why it is ours is in `docs/PERFORMANCE.md`.

use std::borrow::Cow;
use std::fmt::{Display, Write};

/// In which form figures are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, which every tool reads.
    #[default]
    Prometheus,
    /// OpenMetrics: with units, and with an end, by which a whole text differs from a cut one.
    OpenMetrics,
}

impl Format {
    /// Returns the best form for a client that takes these content types.
    pub fn for_client(accept: &str) -> Format {
        match accept.to_ascii_lowercase().contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// Returns the content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A text of figures.
#[derive(Default)]
pub struct Text {
    format: Format,
    out: String,
    /// Name of the family being written, without the suffix of its samples.
    family: String,
    /// What the names of its samples end with.
    suffix: &'static str,
}

impl Text {
    /// Returns an empty text.
    pub fn new(format: Format) -> Text {
        Text { format, ..Text::default() }
    }

    /// Begins a family: its name without its unit, its type, its unit if it has one, its help.
    pub fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        self.begin(name, (kind, kind), "", unit, help);
    }

    /// Begins a family of counters; the names of its samples end with `_total`.
    pub fn counter(&mut self, name: &str, unit: &str, help: &str) {
        self.begin(name, ("counter", "counter"), "_total", unit, help);
    }

    /// Begins a family whose samples are 1 and differ by labels; their names end with `_info`.
    pub fn info(&mut self, name: &str, help: &str) {
        self.begin(name, ("info", "gauge"), "_info", "", help);
    }

    /// Begins a family. Prometheus knows it by the name of its samples, OpenMetrics without the suffix.
    fn begin(
        &mut self,
        name: &str,
        (kind, kind_in_prometheus): (&str, &str),
        suffix: &'static str,
        unit: &str,
        help: &str,
    ) {
        self.family = if unit.is_empty() { name.to_owned() } else { format!("{name}_{unit}") };
        self.suffix = suffix;
        let (out, name, help) = (&mut self.out, &self.family, escape(help));
        // Writing into a string cannot fail.
        let _ = match self.format {
            Format::Prometheus => write!(
                out,
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind_in_prometheus}\n"
            ),
            Format::OpenMetrics if unit.is_empty() => {
                write!(out, "# TYPE {name} {kind}\n# HELP {name} {help}\n")
            }
            Format::OpenMetrics => {
                write!(out, "# TYPE {name} {kind}\n# UNIT {name} {unit}\n# HELP {name} {help}\n")
            }
        };
    }

    /// Writes a sample of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.part(self.suffix, labels, value);
    }

    /// Writes a part of a summary or a histogram, such as `_sum`.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.out, "{}{suffix}", self.family);
        for (index, (name, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{before}{name}=\"{}\"", escape(value));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{after} {value}");
    }

    /// Writes a histogram: counts of the values up to each bound and of the rest, and the sum.
    pub fn histogram(&mut self, bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        for (index, count) in counts.iter().enumerate() {
            total += count;
            let bound = bounds.get(index).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
            self.part("_bucket", &[("le", &bound)], total);
        }
        self.part("_sum", &[], format_args!("{sum:?}"));
        self.part("_count", &[], total);
    }

    /// Returns the text, with its end.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// Escapes what a label or a help may not hold as it is. Nearly no text has any of it, so nearly none is
/// copied.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: Format) -> String {
        let mut text = Text::new(format);
        text.counter("hit", "bytes", "Bytes served.");
        text.sample(&[("shard", "0"), ("path", "a\\b\n\"")], 7);
        text.info("build", "The build.");
        text.sample(&[("version", "1")], 1);
        text.family("fill", "histogram", "seconds", "Fills.");
        text.histogram(&[0.001, 1.0], &[2, 1, 1], 3.5);
        text.finish()
    }

    const SAMPLES: [&str; 2] = [
        "hit_bytes_total{shard=\"0\",path=\"a\\\\b\\n\\\"\"} 7\n",
        "fill_seconds_bucket{le=\"0.001\"} 2
fill_seconds_bucket{le=\"1.0\"} 3
fill_seconds_bucket{le=\"+Inf\"} 4
fill_seconds_sum 3.5
fill_seconds_count 4
",
    ];

    #[test]
    fn open_metrics_names_families_without_their_suffix_and_marks_the_end() {
        let expect = [
            "# TYPE hit_bytes counter\n# UNIT hit_bytes bytes\n# HELP hit_bytes Bytes served.\n",
            SAMPLES[0],
            "# TYPE build info\n# HELP build The build.\nbuild_info{version=\"1\"} 1\n",
            "# TYPE fill_seconds histogram\n# UNIT fill_seconds seconds\n",
            "# HELP fill_seconds Fills.\n",
            SAMPLES[1],
            "# EOF\n",
        ];
        assert_eq!(text(Format::OpenMetrics), expect.concat());
    }

    #[test]
    fn prometheus_names_families_as_their_samples() {
        let expect = [
            "# HELP hit_bytes_total Bytes served.\n# TYPE hit_bytes_total counter\n",
            SAMPLES[0],
            "# HELP build_info The build.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n",
            "# HELP fill_seconds Fills.\n# TYPE fill_seconds histogram\n",
            SAMPLES[1],
        ];
        assert_eq!(text(Format::Prometheus), expect.concat());
    }

    #[test]
    fn a_client_gets_open_metrics_if_it_takes_it() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";
        assert_eq!(Format::for_client(accept), Format::OpenMetrics);
        assert_eq!(Format::for_client("*/*"), Format::Prometheus);
        assert_eq!(Format::for_client(""), Format::Prometheus);
    }
}
