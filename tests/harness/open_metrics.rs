//! A strict reader of OpenMetrics 1.0: what the specification forbids, it refuses.
//!
//! Reads the types that we write: counters, gauges, histograms and info, without exemplars and times.

use std::collections::{BTreeMap, BTreeSet};

/// Labels with their values.
pub type Labels = BTreeMap<String, String>;

/// A family of samples.
#[derive(Debug, Default)]
pub struct Family {
    /// Its type, such as `counter`.
    pub kind: String,
    /// Its unit, such as `bytes`; empty for none.
    pub unit: String,
    pub help: String,
    /// Names, labels and values, in order.
    pub samples: Vec<(String, Labels, f64)>,
}

/// Families by name.
pub type Families = BTreeMap<String, Family>;

/// Reads a text.
///
/// # Errors
/// The first line that is not allowed, and why.
pub fn read(text: &str) -> Result<Families, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with `# EOF`")?;
    let mut families = Families::new();
    let mut current: Option<String> = None;
    for (index, line) in body.split_terminator('\n').enumerate() {
        let said = match line.strip_prefix("# ") {
            Some(rest) => metadata(rest, &mut families, &mut current),
            None => sample(line, &mut families, current.as_deref()),
        };
        said.map_err(|why| format!("line {}: {why}: `{line}`", index + 1))?;
    }
    for (name, family) in &families {
        check(name, family).map_err(|why| format!("family {name}: {why}"))?;
    }
    Ok(families)
}

fn metadata(
    rest: &str,
    families: &mut Families,
    current: &mut Option<String>,
) -> Result<(), String> {
    let mut words = rest.splitn(3, ' ');
    let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
        return Err("metadata is `# WHAT name text`".to_owned());
    };
    if !is_name(name) {
        return Err(format!("`{name}` is not a name of a family"));
    }
    if current.as_deref() != Some(name) {
        if families.contains_key(name) {
            return Err("a family that ended begins again".to_owned());
        }
        families.insert(name.to_owned(), Family::default());
        *current = Some(name.to_owned());
    }
    let family = families.get_mut(name).ok_or("it was just put there")?;
    if !family.samples.is_empty() {
        return Err("metadata comes before samples".to_owned());
    }
    let field = match what {
        "TYPE" => &mut family.kind,
        "UNIT" => &mut family.unit,
        "HELP" => &mut family.help,
        _ => return Err("only TYPE, UNIT and HELP are allowed".to_owned()),
    };
    if !field.is_empty() {
        return Err("it is there twice".to_owned());
    }
    *field = text.to_owned();
    Ok(())
}

fn sample(line: &str, families: &mut Families, current: Option<&str>) -> Result<(), String> {
    let current = current.ok_or("a sample before any family")?;
    let end = line.find(['{', ' ']).ok_or("a sample is `name{labels} value`")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return Err(format!("`{name}` is not a name of a sample"));
    }
    let (labels, rest) = labels(rest)?;
    let value = rest.strip_prefix(' ').ok_or("one blank stands before the value")?;
    let number = value.strip_prefix(['+', '-']).unwrap_or(value);
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(format!("`{value}` is not a number"));
    }
    let value: f64 = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
    let family = families.get_mut(current).ok_or("the family is not there")?;
    let suffix = name.strip_prefix(current).ok_or("a sample of another family")?;
    let suffixes: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        other => return Err(format!("the type `{other}` is not known")),
    };
    if !suffixes.contains(&suffix) {
        return Err(format!("a {} has no `{suffix}`", family.kind));
    }
    family.samples.push((name.to_owned(), labels, value));
    Ok(())
}

/// Reads `{name="value",..}` if it is there; returns what comes after it.
fn labels(text: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Ok((labels, text)) };
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label is name=\"value\"")?;
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
        let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !starts_well || !is_word {
            return Err(format!("`{name}` is not a name of a label"));
        }
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next() {
                Some((at, '"')) => break at + 1,
                Some((_, '\\')) => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, letter @ ('\\' | '"'))) => value.push(letter),
                    _ => return Err("only \\\\, \\\" and \\n are escapes".to_owned()),
                },
                Some((_, letter)) => value.push(letter),
                None => return Err("a value of a label does not end".to_owned()),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label `{name}` is there twice"));
        }
        rest = &after[end..];
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        rest = rest.strip_prefix(',').ok_or("labels are apart by commas")?;
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '_' | ':'))
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

fn check(name: &str, family: &Family) -> Result<(), String> {
    if family.kind.is_empty() || family.help.is_empty() || family.samples.is_empty() {
        return Err("it needs a type, help and a sample".to_owned());
    }
    if !family.unit.is_empty() && !name.ends_with(&format!("_{}", family.unit)) {
        return Err("the name does not end with the unit".to_owned());
    }
    if ["_total", "_info", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)) {
        return Err("the name ends like one of a sample".to_owned());
    }
    let mut seen = BTreeSet::new();
    for (name, labels, value) in &family.samples {
        if !seen.insert((name, labels)) {
            return Err("a sample is there twice".to_owned());
        }
        match family.kind.as_str() {
            "counter" | "histogram" if *value < 0.0 => return Err("it is negative".to_owned()),
            "info" if *value != 1.0 => return Err("an info is 1".to_owned()),
            _ => (),
        }
    }
    if family.kind == "histogram" { check_histogram(family) } else { Ok(()) }
}

/// Checks a histogram without labels of its own.
fn check_histogram(family: &Family) -> Result<(), String> {
    let (mut bound_before, mut count_before) = (f64::NEG_INFINITY, 0.0);
    for (name, labels, count) in &family.samples {
        if !name.ends_with("_bucket") {
            continue;
        }
        let le = labels.get("le").ok_or("a bucket has the label le")?;
        let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().map_err(|_| "le")? };
        if bound <= bound_before || *count < count_before {
            return Err("buckets grow, and so do their counts".to_owned());
        }
        (bound_before, count_before) = (bound, *count);
    }
    let single = |suffix: &str| family.samples.iter().filter(|it| it.0.ends_with(suffix)).count();
    if bound_before != f64::INFINITY || single("_count") != 1 || single("_sum") != 1 {
        return Err("it needs a bucket +Inf, a count and a sum".to_owned());
    }
    let count = family.samples.iter().find(|it| it.0.ends_with("_count")).map(|it| it.2);
    if count == Some(count_before) {
        Ok(())
    } else {
        Err("the last bucket is the count".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_forbids_is_refused() {
        let good = "# TYPE a counter\n# HELP a A.\na_total{x=\"1\"} 2\n# EOF\n";
        assert_eq!(read(good).expect("it is allowed")["a"].samples[0].2, 2.0);
        for (from, to) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n\n"),
            ("# EOF\n", "\n# EOF\n"),
            ("a_total", "a"),
            ("a_total", "b_total"),
            ("} 2", "} -2"),
            ("} 2", "}  2"),
            ("} 2", "} NaN"),
            ("x=\"1\"", "x=\"1\",x=\"2\""),
            ("x=\"1\"", "x=\"\\t\""),
            ("x=\"1\"", "1x=\"1\""),
            ("# HELP a A.\n", ""),
            ("# HELP a A.\n", "# HELP a A.\n# HELP a A.\n"),
            ("# HELP a A.\n", "# HELP a A.\n# UNIT a bytes\n"),
            ("a_total{x=\"1\"} 2\n", "a_total 2\na_total 2\n"),
            ("# EOF\n", "# TYPE b gauge\n# HELP b B.\nb 1\n# TYPE a gauge\n# EOF\n"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert!(read(&bad).is_err(), "{bad}");
        }
        let histogram = "# TYPE h histogram\n# HELP h H.\nh_bucket{le=\"1.0\"} 1\n\
                         h_bucket{le=\"+Inf\"} 2\nh_sum 3.0\nh_count 2\n# EOF\n";
        read(histogram).expect("it is allowed");
        for (from, to) in
            [("} 1", "} 3"), ("+Inf", "2.0"), ("_count 2", "_count 3"), ("h_sum 3.0\n", "")]
        {
            assert!(read(&histogram.replacen(from, to, 1)).is_err(), "{from} to {to}");
        }
    }
}
