//! `millrace node`: one node, in the foreground, until it is told to stop.
//!
//! Owns the start, the one line on stdout that says it is ready, logging, and the end by signals.
//! The flags are made from the node's own table of keys, so a key added there is a flag here. What
//! the keys mean, and what is wrong with a value, is left to the node's configuration.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use millrace_node::config::KEYS;
use millrace_node::{Config, ConfigError, Node, StartError};
use tracing_subscriber::EnvFilter;

use crate::embedded::Embedded;
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;

/// Variables with the node's prefix that belong to other parts of this program and its tests.
const OTHER_VARIABLES: [&str; 4] =
    ["MILLRACE_LOG", "MILLRACE_NODE", "MILLRACE_BLESS", "MILLRACE_PARENT"];
/// Name of the argument without a flag.
const DIRECTORY: &str = "directory";
/// The variable that says what is logged.
const LOG_VARIABLE: &str = "MILLRACE_LOG";

const LONG_ABOUT: &str = "\
Serve a directory through a cache in memory.

Runs in the foreground. Prints `listening on HOST:PORT` on stdout once clients can connect, and \
logs to stderr; the environment variable MILLRACE_LOG sets what is logged (error, warn, info, debug, \
or a filter such as `warn,millrace_node=debug`). SIGTERM and SIGINT let replies in flight finish \
first; a second signal ends the node at once.

Every setting can be given as a flag, as an environment variable (MILLRACE_MEMORY for --memory) \
and as a key of the configuration file (memory = \"8GiB\"). Flags win over variables, variables \
over the file.";

const EXAMPLES: &str = "\
Examples:
  millrace node /data --memory 8GiB
  millrace node --source /mnt/nfs --listen 0.0.0.0:7070 --fill-concurrency 64
  millrace node --source /data --print-config > millrace.toml
  millrace node --config millrace.toml";

/// The flags of `millrace node`.
pub(crate) struct Args {
    config: Option<PathBuf>,
    print_config: bool,
    /// Names as in the table of keys, with the values given.
    values: Vec<(String, String)>,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let command = command
            .about("Serve a directory through a cache in memory")
            .long_about(LONG_ABOUT)
            .after_help(EXAMPLES)
            .arg(
                Arg::new(DIRECTORY)
                    .value_name("DIR")
                    .conflicts_with("source")
                    .help("Directory to serve, as --source"),
            )
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Read settings from a TOML file"),
            )
            .arg(
                Arg::new("print_config")
                    .long("print-config")
                    .action(ArgAction::SetTrue)
                    .help("Print the settings in effect as a configuration file, and end"),
            );
        KEYS.iter().fold(command, |command, key| {
            let default = match key.default.strip_prefix("none: ") {
                Some(what) => what.to_owned(),
                None => format!("default: {}", key.default),
            };
            let help = format!("{} [{default}]", key.help);
            let details = format!(
                "{help}\n\nAllowed: {}; for example {}. Environment: {}",
                key.allowed(),
                key.example,
                key.variable()
            );
            command.arg(
                Arg::new(key.name)
                    .long(key.name.replace('_', "-"))
                    .value_name(key.value)
                    .overrides_with(key.name)
                    .allow_negative_numbers(true)
                    .help(help)
                    .long_help(details),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Args::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Args, clap::Error> {
        let value = |name: &'static str| {
            let text = matches.get_one::<String>(name)?;
            Some((name.to_owned(), text.clone()))
        };
        Ok(Args {
            config: matches.get_one("config").cloned(),
            print_config: matches.get_flag("print_config"),
            values: KEYS
                .iter()
                .filter_map(|key| value(key.name))
                .chain(value(DIRECTORY).map(|(_, text)| ("source".to_owned(), text)))
                .collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Args::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Serves until a signal.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let environment = environment(std::env::vars_os())?;
    let load = |extra: Option<(String, String)>| {
        let flags = args.values.iter().cloned().chain(extra).collect();
        Config::load(args.config.as_deref(), environment.iter().cloned(), flags)
    };
    if args.print_config {
        return output::print(&match load(None) {
            // A template is wanted: all but the source has a default.
            Err(ConfigError::NoSource) => {
                let source = ("source".to_owned(), "/data".to_owned());
                as_file(&load(Some(source)).map_err(refused)?, true)
            }
            config => as_file(&config.map_err(refused)?, false),
        });
    }
    let mut config = load(None).map_err(refused)?;
    start_log("info")?;
    let signals = Signals::install()?;
    let embedded = Embedded::start(&mut config)?;
    let node = start(config)?;
    tracing::info!("{} shards listen at {}", node.shard_addresses().len(), node.address());
    announce(&node);
    signals.wait();
    tracing::info!("stopping; a second signal ends the node at once");
    if node.stop().clean {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped before every reply was sent: the time to drain ran out");
    }
    embedded.into_iter().for_each(Embedded::stop);
    Ok(())
}

/// Starts a node.
///
/// # Errors
/// With a hint where there is something to do.
pub(crate) fn start(config: Config) -> Result<Node, Failure> {
    Node::start(config).map_err(|error| match error {
        StartError::Config(error) => refused(error),
        error => {
            let failure = Failure::new(format!("cannot start the node: {error}"));
            match &error {
                StartError::Listen { error, .. } if error.kind() == ErrorKind::AddrInUse => {
                    failure.with_hint("choose another with --listen; port 0 takes any free one")
                }
                StartError::Source { .. } => failure.with_hint("check --source"),
                StartError::Cluster(_) => failure.with_hint("check --coord"),
                _ => failure,
            }
        }
    })
}

/// What is wrong with a configuration is a matter of how the program was called.
pub(crate) fn refused(error: ConfigError) -> Failure {
    Failure::usage(error.to_string())
}

/// Sends log lines to stderr, of `level` where MILLRACE_LOG does not say otherwise.
///
/// # Errors
/// If MILLRACE_LOG is not a filter.
pub(crate) fn start_log(level: &str) -> Result<(), Failure> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Failure::usage(format!("environment variable {LOG_VARIABLE}: `{text}`: {error}"))
                .with_hint("use error, warn, info, debug, trace or off")
        })?,
        _ => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Says on stdout that clients can connect. A node whose starter went away serves all the same.
fn announce(node: &Node) {
    if output::print(&format!("listening on {}\n", node.address())).is_err() {
        tracing::warn!("nobody reads stdout: the address could not be told there");
    }
}

/// The variables that the configuration may judge.
fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut environment = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !name.starts_with("MILLRACE_") || OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let value = value.into_string().map_err(|value| {
            Failure::usage(format!("environment variable {name}: {} is not UTF-8", value.display()))
        })?;
        environment.push((name, value));
    }
    Ok(environment)
}

/// The settings as a file that [`Config::load`] reads; without a source, that line is an example.
fn as_file(config: &Config, source_is_example: bool) -> String {
    let helps: BTreeSet<(&str, &str)> = KEYS.iter().map(|key| (key.name, key.help)).collect();
    let mut text = String::new();
    for (name, value) in config.describe() {
        let help = helps.iter().find(|(other, _)| *other == name);
        if let Some((_, help)) = help {
            let _ = writeln!(text, "# {help}");
        }
        let mark = if name == "source" && source_is_example { "# " } else { "" };
        let _ = writeln!(text, "{mark}{name} = {}", as_toml(&value));
    }
    text
}

/// A number as it is, anything else as a TOML string.
pub(crate) fn as_toml(value: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_others_are_left_out() {
        let given = [
            ("MILLRACE_LOG", "debug"),
            ("MILLRACE_NODE", "127.0.0.1:1"),
            ("MILLRACE_BLESS", "1"),
            ("MILLRACE_MEMORY", "1GiB"),
            ("MILLRACE_MEMROY", "1GiB"),
            ("HOME", "/"),
        ];
        let given = given.map(|(name, value)| (name.into(), value.into()));
        let names: Vec<String> =
            environment(given.into_iter()).unwrap().into_iter().map(|(name, _)| name).collect();
        // The misspelled one stays, so that it is refused by name.
        assert_eq!(names, ["MILLRACE_MEMORY", "MILLRACE_MEMROY"]);
    }

    #[test]
    fn printed_settings_can_be_read_back() {
        let source = tempfile::tempdir().unwrap();
        let mut config = Config::production(source.path().join("a \"quoted\" \\ name"));
        config.fill_concurrency = 3;
        let file = source.path().join("millrace.toml");
        std::fs::write(&file, as_file(&config, false)).unwrap();
        let read = Config::load(Some(&file), [], Vec::new()).unwrap();
        assert_eq!(read, config);
    }

    #[test]
    fn template_asks_for_a_source() {
        let text = as_file(&Config::production("/data".into()), true);
        assert!(text.contains("\n# source = \"/data\"\n"), "{text}");
    }
}
