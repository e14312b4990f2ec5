//! A bar chart of a comparison, as SVG.
//!
//! Owns the drawing: a group for each size, a bar for each server, whose length is its speed beside the
//! best rival's, and its absolute speed in words. Always holds: the same report gives the same bytes,
//! and the text is legible on a light and on a dark page, because it takes the colours that the page
//! asks for.
//!
//! ```text
//!  title, machine, commit
//!  4 KiB  millrace ███████████████ 749 k/s (1.75)
//!         redis    █████████ 409 k/s (1.00)
//! ```

use std::fmt::Write as _;

use crate::compare::{CompareReport, NODE_NAME, ServerReport, SizeReport};
use crate::report::{self, median_ratio};

/// Width of the picture, and where bars begin and may end, in pixels.
const WIDTH: usize = 860;
const BARS_LEFT: usize = 190;
const BARS_RIGHT: usize = 640;
/// Height of a bar with its gap, and of what separates groups, in pixels.
const ROW_HEIGHT: usize = 22;
const BAR_HEIGHT: usize = 16;
const GROUP_GAP: usize = 18;
/// Height of the lines above the bars, and of those below.
const HEAD_HEIGHT: usize = 72;
const FOOT_HEIGHT: usize = 34;
/// Longest line of the head, in characters; what is longer is cut.
const LINE_LENGTH_MAX: usize = 120;
/// Objects up to this size are counted in reads, larger ones in bytes.
const READS_SIZE_MAX: usize = 16 << 10;

/// Colours by the class of an element, for a light page and for a dark one.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 17px; font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.node { fill: #0969da; }
.rival { fill: #8c959f; }
.limit { fill: none; stroke: #8c959f; stroke-dasharray: 4 3; }
.best { stroke: #59636e; stroke-dasharray: 2 3; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.small { fill: #9198a1; }
.node { fill: #4493f8; }
.rival { fill: #6e7681; }
.limit, .best { stroke: #9198a1; }
}
";

/// One bar.
struct Bar {
    name: String,
    class: &'static str,
    /// Speed beside the best rival: the median of each round's ratio.
    ratio: f64,
    words: String,
}

/// The bars of one size.
struct Group {
    title: String,
    bars: Vec<Bar>,
}

impl Group {
    fn of(size: &SizeReport) -> Group {
        let is_node = |server: &&ServerReport| server.name == NODE_NAME;
        let rivals = size.servers.iter().filter(|server| !is_node(server));
        let best = rivals.max_by(|left, right| left.gb_per_s.total_cmp(&right.gb_per_s));
        // A node that was measured alone is compared with itself.
        let best = best.or(size.servers.first());
        let best: Vec<f64> =
            best.iter().flat_map(|best| &best.rounds).map(|round| round.gb_per_s).collect();
        let ratio = |rounds: Vec<f64>| median_ratio(rounds, best.iter().copied());
        let servers = size.servers.iter().map(|server| Bar {
            name: server.name.clone(),
            class: if is_node(&server) { "node" } else { "rival" },
            ratio: ratio(server.rounds.iter().map(|round| round.gb_per_s).collect()),
            words: if size.size <= READS_SIZE_MAX {
                format!("{}/s", report::count(server.reads_per_s))
            } else {
                format!("{:.2} GB/s", server.gb_per_s)
            },
        });
        let limits = size.limits.iter().map(|limit| Bar {
            name: limit.name.clone(),
            class: "limit",
            ratio: ratio(limit.rounds.iter().map(|round| round.gb_per_s).collect()),
            words: format!("{:.2} GB/s", limit.gb_per_s),
        });
        let bars = servers.chain(limits).collect();
        Group { title: report::size(size.size as u64), bars }
    }
}

/// Draws the chart of the speeds in a report.
pub fn draw(report: &CompareReport) -> String {
    let groups: Vec<Group> = report.sizes.iter().map(Group::of).collect();
    let ratios = groups.iter().flat_map(|group| group.bars.iter().map(|bar| bar.ratio));
    let longest = ratios.fold(1.0, f64::max);
    let scale = (BARS_RIGHT - BARS_LEFT) as f64 / longest;
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = HEAD_HEIGHT + rows * ROW_HEIGHT + groups.len() * GROUP_GAP + FOOT_HEIGHT;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<style>\n{STYLE}</style>"
    );
    head(&mut text, report);
    let mut top = HEAD_HEIGHT;
    for group in &groups {
        line(&mut text, "title", 16, top + 13, &group.title);
        for bar in &group.bars {
            draw_bar(&mut text, bar, top, scale);
            top += ROW_HEIGHT;
        }
        top += GROUP_GAP;
    }
    let best = BARS_LEFT as f64 + scale;
    let bottom = top - GROUP_GAP;
    let _ = writeln!(
        text,
        "<line class=\"best\" x1=\"{best:.1}\" y1=\"{HEAD_HEIGHT}\" \
         x2=\"{best:.1}\" y2=\"{bottom}\"/>"
    );
    let words = "a bar and the number behind it: speed beside the best rival (dotted line), \
                 median of the rounds' ratios";
    line(&mut text, "small", 16, bottom + 22, words);
    text.push_str("</svg>\n");
    text
}

fn head(text: &mut String, report: &CompareReport) {
    let version = report.versions.iter().find(|(name, _)| name == NODE_NAME);
    let version = version.map_or(NODE_NAME, |(_, version)| version);
    let commit = report.commit.as_deref().unwrap_or("none");
    line(text, "title", 16, 24, &format!("{version} beside others, commit {commit}"));
    let machine = &report.machine;
    let load = format!(
        "{}, {} CPUs, Linux {}, {} connections, {} in flight on each, {} a request",
        machine.cpu,
        machine.cpu_count,
        machine.kernel,
        report.connections,
        report.depth,
        report::counted(report.batch, "key"),
    );
    line(text, "small", 16, 42, &load);
    let rounds = format!("median of {} rounds of {} s", report.rounds, report.seconds);
    line(text, "small", 16, 58, &format!("{rounds}; {}", report.command));
}

fn draw_bar(text: &mut String, bar: &Bar, top: usize, scale: f64) {
    let width = bar.ratio * scale;
    line(text, "name", 88, top + 13, &bar.name);
    let _ = writeln!(
        text,
        "<rect class=\"{}\" x=\"{BARS_LEFT}\" y=\"{top}\" width=\"{width:.1}\" \
         height=\"{BAR_HEIGHT}\" rx=\"2\"/>",
        bar.class
    );
    let words = format!("{} ({:.2})", bar.words, bar.ratio);
    line(text, "value", BARS_RIGHT + 12, top + 13, &words);
}

/// Adds a line of text; what may not stand in SVG as it is gets another form.
fn line(text: &mut String, class: &str, left: usize, baseline: usize, words: &str) {
    let mut escaped = String::with_capacity(words.len());
    for character in words.chars().take(LINE_LENGTH_MAX) {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    let _ =
        writeln!(text, "<text class=\"{class}\" x=\"{left}\" y=\"{baseline}\">{escaped}</text>");
}

#[cfg(test)]
mod tests;
