//! The settings of a service: one table of keys, and the TOML file, flags and help that follow from it.
//!
//! A service has a table of [`Key`]s over its own configuration. Every source of values is turned into
//! text first, so one parser for each key is enough. Always holds: a value reaches its field only
//! through [`Key::set`], which checks the range.

use std::fmt;
use std::io;
use std::path::Path;

use crate::size::{format_size, parse_count, parse_size};

/// What joins the values of a list; `PATH` joins directories in the same way.
pub const LIST_SEPARATOR: char = ':';
/// Prefix of the names of environment variables.
pub const VARIABLE_PREFIX: &str = "MILLRACE_";

/// A configuration with a table of keys.
pub trait Settings: Sized + 'static {
    /// Every key, in the order of help.
    const KEYS: &'static [Key<Self>];

    /// Reads a plain number.
    fn parse_count(text: &str) -> Option<u64> {
        parse_count(text)
    }

    /// Reads a number of bytes.
    fn parse_size(text: &str) -> Option<u64> {
        parse_size(text).ok()
    }

    /// Reads a switch, such as `true`.
    fn parse_flag(text: &str) -> Option<bool> {
        text.parse().ok()
    }
}

/// One thing that can be set in the configuration `C`.
pub struct Key<C: 'static> {
    /// Name in the file, such as `fill_concurrency`.
    pub name: &'static str,
    /// Placeholder for the value in a usage line, such as `SIZE`.
    pub value: &'static str,
    /// Default as text, for people.
    pub default: &'static str,
    /// One line that says what the key does.
    pub help: &'static str,
    /// A value that is allowed.
    pub example: &'static str,
    /// How its text becomes a field, and a field text.
    pub access: Access<C>,
}

/// How the text of a key becomes a field, and a field text.
pub enum Access<C> {
    /// A plain number, such as `10_000`.
    Count(Number<C>),
    /// A number of bytes, such as `512MiB`.
    Size(Number<C>),
    /// A mode of a file as chmod(1) takes it, such as `660`.
    Mode { set: fn(&mut C, u32), get: fn(&C) -> u32 },
    /// `true` or `false`.
    Flag { set: fn(&mut C, bool), get: fn(&C) -> bool },
    /// Several values, joined by [`LIST_SEPARATOR`]; `set` returns whether the text was understood.
    List { allowed: &'static str, set: fn(&mut C, &str) -> bool, get: fn(&C) -> String },
    /// Anything else; `set` returns whether the text was understood.
    Text { allowed: &'static str, set: fn(&mut C, &str) -> bool, get: fn(&C) -> String },
}

/// A number with its range.
pub struct Number<C> {
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// Writes the field.
    pub set: fn(&mut C, u64),
    /// Reads the field.
    pub get: fn(&C) -> u64,
}

impl<C: Settings> Key<C> {
    /// Returns the key of this name.
    pub fn find(name: &str) -> Option<&'static Key<C>> {
        C::KEYS.iter().find(|key| key.name == name)
    }

    /// Returns the key whose name looks most like this one.
    pub fn nearest(name: &str) -> &'static Key<C> {
        let nearest = nearest(name, C::KEYS.iter().map(|key| key.name));
        Key::find(nearest).expect("a name of the table")
    }

    /// Returns the flag that sets the key, such as `--fill-concurrency`.
    pub fn flag(&self) -> String {
        as_flag(self.name)
    }

    /// Returns the environment variable that sets the key, such as `MILLRACE_FILL_CONCURRENCY`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// True if the key is switched on or off.
    pub fn is_flag(&self) -> bool {
        matches!(self.access, Access::Flag { .. })
    }

    /// True if the key is a mode in octal digits. In a file it has to stand in quotes, because there
    /// `660` and `0o660` are two numbers and only one of them is the mode that is meant.
    pub fn is_mode(&self) -> bool {
        matches!(self.access, Access::Mode { .. })
    }

    /// True if the key may be given several times.
    pub fn is_list(&self) -> bool {
        matches!(self.access, Access::List { .. })
    }

    /// Returns which values are allowed, such as `a size from 64KiB to 16MiB`.
    pub fn allowed(&self) -> String {
        match &self.access {
            Access::Count(number) => {
                format!("a whole number from {} to {}", number.min, number.max)
            }
            Access::Size(number) => {
                format!("a size from {} to {}", format_size(number.min), format_size(number.max))
            }
            Access::Mode { .. } => "three octal digits, as chmod takes them".to_owned(),
            Access::Flag { .. } => "true or false".to_owned(),
            Access::List { allowed, .. } | Access::Text { allowed, .. } => (*allowed).to_owned(),
        }
    }

    /// Returns the help with the default, as for a flag.
    pub fn help_with_default(&self) -> String {
        match self.default.strip_prefix("none: ") {
            Some(what) => format!("{} [{what}]", self.help),
            None => format!("{} [default: {}]", self.help, self.default),
        }
    }

    /// Returns the value in `config` as text that [`Key::set`] reads again; a secret is not shown.
    pub fn get(&self, config: &C) -> String {
        match &self.access {
            Access::Count(number) => (number.get)(config).to_string(),
            Access::Size(number) => format_size((number.get)(config)),
            Access::Mode { get, .. } => format!("{:03o}", get(config)),
            Access::Flag { get, .. } => get(config).to_string(),
            Access::List { get, .. } | Access::Text { get, .. } => get(config),
        }
    }

    /// Sets the field. True if the text is an allowed value.
    pub fn set(&self, config: &mut C, text: &str) -> bool {
        let (number, value) = match &self.access {
            Access::Count(number) => (number, C::parse_count(text.trim())),
            Access::Size(number) => (number, C::parse_size(text.trim())),
            Access::Mode { set, .. } => {
                return parse_mode(text.trim()).map(|mode| set(config, mode)).is_some();
            }
            Access::Flag { set, .. } => {
                return C::parse_flag(text.trim()).map(|value| set(config, value)).is_some();
            }
            // A path may begin or end with a space.
            Access::List { set, .. } | Access::Text { set, .. } => return set(config, text),
        };
        match value {
            Some(value) if (number.min..=number.max).contains(&value) => {
                (number.set)(config, value);
                true
            }
            _ => false,
        }
    }
}

impl<C> fmt::Debug for Key<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

/// Returns the mode in a text of three octal digits, which `0` or `0o` may precede.
fn parse_mode(text: &str) -> Option<u32> {
    let digits =
        text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|it| it.len() == 3));
    let digits = digits.unwrap_or(text);
    let is_mode = digits.len() == 3 && digits.bytes().all(|it| (b'0'..=b'7').contains(&it));
    is_mode.then(|| u32::from_str_radix(digits, 8).ok())?
}

/// Returns the effective values as text, in the order of the table; secrets are not shown.
pub fn describe<C: Settings>(config: &C) -> Vec<(&'static str, String)> {
    C::KEYS.iter().map(|key| (key.name, key.get(config))).collect()
}

/// Returns the flag of a name, such as `--fill-concurrency`.
pub fn as_flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// Returns the name in the table for a name that may be spelled as a flag.
pub fn of_flag(name: &str) -> String {
    name.trim_start_matches("--").replace('-', "_")
}

/// Returns the known name that looks most like `name`.
///
/// # Panics
/// If no name is known.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    let nearness = |other: &str| strsim::jaro_winkler(other, name);
    known.max_by(|a, b| nearness(a).total_cmp(&nearness(b))).expect("the table is not empty")
}

/// Why a file gave no values.
#[derive(Debug)]
pub enum FileError {
    /// It cannot be read.
    Read(io::Error),
    /// It is not TOML: the line, from 1, and what the parser said.
    Syntax { line: usize, message: String },
}

/// Reads a TOML file.
///
/// # Errors
/// [`FileError`].
pub fn read_toml(file: &Path) -> Result<toml::Table, FileError> {
    let text = std::fs::read_to_string(file).map_err(FileError::Read)?;
    text.parse().map_err(|error: toml::de::Error| {
        let position = error.span().map_or(0, |span| span.start).min(text.len());
        FileError::Syntax {
            line: 1 + text.as_bytes()[..position].iter().filter(|byte| **byte == b'\n').count(),
            message: error.message().to_owned(),
        }
    })
}

/// Returns a scalar as text, or a list of scalars joined by the separator; None for other values.
pub fn value_text(value: &toml::Value, separator: char) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(values) if !values.iter().any(toml::Value::is_array) => {
            let texts: Option<Vec<String>> =
                values.iter().map(|value| value_text(value, separator)).collect();
            Some(texts?.join(&separator.to_string()))
        }
        toml::Value::Array(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// Returns a value as TOML: a number as it is, anything else as a string.
pub fn as_toml(value: &str) -> String {
    use std::fmt::Write;
    if value.parse::<u64>().is_ok() {
        return value.to_owned();
    }
    let mut text = String::from('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(letter));
            }
            letter => text.push(letter),
        }
    }
    text.push('"');
    text
}
