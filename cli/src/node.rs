//! `millrace node`: one node, in the foreground, until it is told to stop.
//!
//! Owns the start, the one line on stdout that says it is ready, and the end by signals.
//! The flags are made from the node's own table of keys, so a key added there is a flag here. What
//! the keys mean, and what is wrong with a value, is left to the node's configuration.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use millrace_node::config::{KEYS, Key};
use millrace_node::{Config, ConfigError, Node, StartError};
use millrace_ops::notify::{self, Notice};
use millrace_ops::settings::{LIST_SEPARATOR, as_toml};
use millrace_stores::Stores;

use crate::failure::Failure;
use crate::log::LogFormat;
use crate::signals::Signals;
use crate::{log, output};

/// Variables with the node's prefix that belong to other parts of this program and its tests.
const OTHER_VARIABLES: [&str; 5] =
    [log::VARIABLE, log::FORMAT_VARIABLE, "MILLRACE_NODE", "MILLRACE_BLESS", "MILLRACE_PARENT"];
/// Name of the argument without a flag.
const DIRECTORY: &str = "directory";

const LONG_ABOUT: &str = "\
Serve a directory or a store through a cache in memory.

Runs in the foreground. Prints `listening on HOST:PORT` on stdout once clients can connect, and \
logs to stderr; the environment variable MILLRACE_LOG sets what is logged (error, warn, info, debug, \
or a filter such as `warn,millrace_node=debug`). A line that comes again and again is told once a \
second, with a count; lines that cannot be written are lost, and how many is told later. SIGTERM and \
SIGINT let replies in flight finish first; a second signal ends the node at once.

Every setting can be given as a flag, as an environment variable (MILLRACE_MEMORY for --memory) \
and as a key of the configuration file (memory = \"8GiB\"). Flags win over variables, variables \
over the file.";

const EXAMPLES: &str = "\
Examples:
  millrace node /data --memory 8GiB
  millrace node s3://bucket/prefix --memory 8GiB
  millrace node --source /mnt/nfs --listen 0.0.0.0:7070 --fill-concurrency 64
  millrace node --source /data --print-config > millrace.toml
  millrace node --config millrace.toml";

/// The flags of `millrace node`.
pub(crate) struct NodeArgs {
    config: Option<PathBuf>,
    print_config: bool,
    log_format: Option<LogFormat>,
    /// Names as in the table of keys, with the values given.
    values: Vec<(String, String)>,
}

impl clap::Args for NodeArgs {
    fn augment_args(command: Command) -> Command {
        let command = command
            .about("Serve a directory or a store through a cache in memory")
            .long_about(LONG_ABOUT)
            .after_help(EXAMPLES)
            .arg(
                Arg::new(DIRECTORY)
                    .value_name("DIR|URL")
                    .conflicts_with("source")
                    .help("Directory or store to serve, as --source"),
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
            )
            .arg(log::format_flag());
        KEYS.iter().fold(command, |command, key| {
            let help = key.help_with_default();
            let details = format!(
                "{help}\n\nAllowed: {}; for example {}. Environment: {}",
                key.allowed(),
                key.example,
                key.variable()
            );
            let arg = Arg::new(key.name)
                .long(key.name.replace('_', "-"))
                .value_name(key.value)
                .allow_negative_numbers(true)
                .help(help)
                .long_help(details);
            command.arg(match key {
                key if key.is_list() => arg.action(ArgAction::Append),
                key if key.is_flag() => arg
                    .overrides_with(key.name)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                key => arg.overrides_with(key.name),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        NodeArgs::augment_args(command)
    }
}

impl FromArgMatches for NodeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<NodeArgs, clap::Error> {
        let value = |name: &'static str| {
            let texts: Vec<&str> = matches.get_many::<String>(name)?.map(String::as_str).collect();
            Some((name.to_owned(), texts.join(&LIST_SEPARATOR.to_string())))
        };
        Ok(NodeArgs {
            config: matches.get_one("config").cloned(),
            print_config: matches.get_flag("print_config"),
            log_format: matches.get_one("log_format").copied(),
            values: KEYS
                .iter()
                .filter_map(|key| value(key.name))
                .chain(value(DIRECTORY).map(|(_, text)| ("source".to_owned(), text)))
                .collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = NodeArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Serves until a signal.
pub(crate) fn run(args: &NodeArgs) -> Result<(), Failure> {
    let environment = environment(std::env::vars_os())?;
    let load = |extra: Option<(String, String)>| {
        let flags = args.values.iter().cloned().chain(extra).collect();
        Config::load(args.config.as_deref(), environment.iter().cloned(), flags)
    };
    if args.print_config {
        return output::print(&match load(None) {
            // A template is asked for: every key but the source has a default.
            Err(ConfigError::NoSource) => {
                let source = ("source".to_owned(), "/data".to_owned());
                as_file(&load(Some(source)).map_err(refused)?, true)
            }
            config => as_file(&config.map_err(refused)?, false),
        });
    }
    let config = load(None).map_err(refused)?;
    log::start("info", args.log_format)?;
    let signals = Signals::install()?;
    let node = start(config)?;
    tracing::info!("{} shards listen at {}", node.shard_addresses().len(), node.address());
    output::announce(&format!("listening on {}\n", node.address()));
    notify::tell(Notice::Ready);
    signals.wait();
    notify::tell(Notice::Stopping);
    tracing::info!("stopping; a second signal ends the node at once");
    if node.stop().clean {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped before every reply was sent: the time to drain ran out");
    }
    Ok(())
}

/// Starts a node.
///
/// # Errors
/// With a hint if there is something to do.
pub(crate) fn start(config: Config) -> Result<Node, Failure> {
    let stores = Stores::start(config.source_options.clone(), config.credentials.clone());
    let stores = stores.map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => Failure::usage(error.to_string()),
        _ => Failure::new(format!("start the threads that talk to stores: {error}")),
    })?;
    Node::start_with(config, Arc::new(stores)).map_err(|error| match error {
        StartError::Config(error) => refused(error),
        error => {
            let failure = Failure::new(format!("cannot start the node: {error}"));
            match &error {
                StartError::Listen { error, .. } if error.kind() == ErrorKind::AddrInUse => {
                    failure.with_hint("choose another with --listen; port 0 takes any free one")
                }
                StartError::Source { .. } => failure.with_hint("check --source"),
                StartError::Socket { error, .. } if error.kind() == ErrorKind::NotFound => failure
                    .with_hint(
                        "make the directory, or choose another path with --socket or --admin",
                    ),
                StartError::Cluster(_) => failure.with_hint("check --coord"),
                _ => failure,
            }
        }
    })
}

/// Returns a mistake in the configuration as a mistake in how the program was called.
pub(crate) fn refused(error: ConfigError) -> Failure {
    Failure::usage(error.to_string())
}

/// Returns the variables that the configuration may judge.
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

/// Returns the settings as a file that [`Config::load`] reads; without a source, that line is an
/// example.
fn as_file(config: &Config, source_is_example: bool) -> String {
    let helps: BTreeSet<(&str, &str)> = KEYS.iter().map(|key| (key.name, key.help)).collect();
    let mut text = String::new();
    for (name, value) in config.describe() {
        let help = helps.iter().find(|(other, _)| *other == name);
        if let Some((_, help)) = help {
            let _ = writeln!(text, "# {help}");
        }
        let mark = if name == "source" && source_is_example { "# " } else { "" };
        let is_mode = Key::find(name).is_some_and(Key::is_mode);
        let value = if is_mode { format!("\"{value}\"") } else { as_toml(&value) };
        let _ = writeln!(text, "{mark}{name} = {value}");
    }
    for (name, options) in config.credentials.shown() {
        let _ = writeln!(text, "\n[credential.{}]", as_toml(name));
        for (key, value) in options {
            let _ = match value {
                Some(value) => writeln!(text, "{key} = {}", as_toml(value)),
                None => writeln!(text, "# {key} = (a secret, not shown)"),
            };
        }
    }
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
