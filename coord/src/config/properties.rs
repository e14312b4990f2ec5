//! Java's properties syntax, as ZooKeeper reads its configuration (`java.util.Properties.load`).
//!
//! Keys and values have the order of the file, each with the line it starts on. Comments start with `#` or
//! `!`. A key ends at the first `=`, `:` or blank without a backslash before it. A backslash at the end of
//! a line continues with the next one.

/// One `key = value` of a file, both without blanks around them, because ZooKeeper trims them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Property {
    /// Line where it starts, from 1.
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// Reads all properties of a file. If a key comes twice, the later one counts.
///
/// # Errors
/// The line of a `\u` without four hexadecimal digits after it. No other text is an error.
pub(super) fn parse(text: &str) -> Result<Vec<Property>, usize> {
    let mut properties = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let mut logical = first.trim_start().to_owned();
        if logical.is_empty() || logical.starts_with(['#', '!']) {
            continue;
        }
        while ends_with_open_backslash(&logical) {
            logical.pop();
            let Some((_, next)) = lines.next() else { break };
            logical.push_str(next.trim_start());
        }
        let line = index + 1;
        let (key, value) = split(&logical);
        let (key, value) = (unescape(key).ok_or(line)?, unescape(value).ok_or(line)?);
        properties.push(Property {
            line,
            key: key.trim().to_owned(),
            value: value.trim().to_owned(),
        });
    }
    Ok(properties)
}

fn ends_with_open_backslash(text: &str) -> bool {
    text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Cuts at the separator: blanks, with at most one `=` or `:` among them.
fn split(logical: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = logical.find(|letter: char| {
        let ends = !escaped && (matches!(letter, '=' | ':') || letter.is_ascii_whitespace());
        escaped = letter == '\\' && !escaped;
        ends
    });
    let (key, rest) = logical.split_at(end.unwrap_or(logical.len()));
    let rest = rest.trim_start();
    (key, rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start())
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            plain.push(letter);
            continue;
        }
        match letters.next() {
            Some('t') => plain.push('\t'),
            Some('n') => plain.push('\n'),
            Some('r') => plain.push('\r'),
            Some('f') => plain.push('\u{c}'),
            Some('u') => {
                let digits: String = letters.by_ref().take(4).collect();
                let is_hex = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| is_hex)?;
                plain.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => plain.push(other),
            None => {}
        }
    }
    Some(plain)
}
