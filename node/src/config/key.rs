//! One thing that can be set: its names, its help, what is allowed, and the field behind it.
//!
//! Always holds: a value reaches its field only through [`Key::set`], which checks the range.

use super::text::{format_size, parse_count, parse_size};
use super::{Config, KEYS, VARIABLE_PREFIX};

/// One thing that can be set.
pub struct Key {
    /// Name in the file, such as `fill_concurrency`.
    pub name: &'static str,
    /// Placeholder for the value in a usage line, such as `SIZE`.
    pub value: &'static str,
    /// Default as text, for people.
    pub default: &'static str,
    /// One line that says what it does.
    pub help: &'static str,
    /// A value that is allowed.
    pub example: &'static str,
    pub(super) access: Access,
}

/// How the text of a key becomes a field and back.
pub(super) enum Access {
    /// A plain number, such as `10_000`.
    Count(Number),
    /// A number of bytes, such as `512MiB`.
    Size(Number),
    /// Anything else; `set` tells whether the text was understood.
    Text { allowed: &'static str, set: fn(&mut Config, &str) -> bool, get: fn(&Config) -> String },
}

/// A number with its range.
pub(super) struct Number {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) set: fn(&mut Config, u64),
    pub(super) get: fn(&Config) -> u64,
}

impl Key {
    /// The key of this name.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The flag that sets it, such as `--fill-concurrency`.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The environment variable that sets it, such as `MILLRACE_FILL_CONCURRENCY`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// What values are allowed, such as `a size from 64KiB to 16MiB`.
    pub fn allowed(&self) -> String {
        match &self.access {
            Access::Count(number) => {
                format!("a whole number from {} to {}", number.min, number.max)
            }
            Access::Size(number) => {
                format!("a size from {} to {}", format_size(number.min), format_size(number.max))
            }
            Access::Text { allowed, .. } => (*allowed).to_owned(),
        }
    }

    /// The value in `config` as text that [`Config::load`] understands.
    pub fn get(&self, config: &Config) -> String {
        match &self.access {
            Access::Count(number) => (number.get)(config).to_string(),
            Access::Size(number) => format_size((number.get)(config)),
            Access::Text { get, .. } => get(config),
        }
    }

    /// Sets the field; `false` if the text is not an allowed value.
    pub(super) fn set(&self, config: &mut Config, text: &str) -> bool {
        let (number, value) = match &self.access {
            Access::Count(number) => (number, parse_count(text.trim())),
            Access::Size(number) => (number, parse_size(text.trim()).ok()),
            // A path may begin or end with a space.
            Access::Text { set, .. } => return set(config, text),
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
