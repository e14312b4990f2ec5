//! Ages on the command line, such as `30d`.

use std::time::Duration;

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads an age: a number and a unit.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let help = "expected a number and d, h, m or s, for example 30d";
    let unit = text.chars().last().ok_or(help)?;
    let seconds = match unit {
        'd' => DAY.as_secs(),
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return Err(help.to_owned()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| help)?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_number_and_a_unit() {
        assert_eq!(parse("30d"), Ok(30 * DAY));
        assert_eq!(parse("90m"), Ok(Duration::from_secs(5400)));
        for text in ["", "d", "30", "3.5d", "-1d", "1w", "99999999999999999999s", "1ü"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
