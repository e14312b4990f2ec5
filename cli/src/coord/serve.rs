//! A replica in the foreground, until it is told to stop.
//!
//! Owns the start, the one line on stdout that says clients are served, and the end by signals. The
//! flags are made from the replica's own table of keys, so a key added there is a flag here. What
//! the keys mean, and what is wrong with a value, is left to the replica's configuration.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use millrace_coord::admin::Admin;
use millrace_coord::config::{ConfigError, KEYS, Source};
use millrace_coord::coord::{Operator, StartError};
use millrace_coord::report::{Mode, Snapshot, Wanted};
use millrace_coord::{Config, Coord};
use millrace_ops::notify::{self, Notice};
use millrace_ops::settings::as_toml;

use crate::failure::Failure;
use crate::log::LogFormat;
use crate::signals::Signals;
use crate::{log, output};

/// Name of the argument without a flag.
const ZOO_CFG: &str = "zoo_cfg";
/// What a template has in place of the data directory.
const DATA_DIR_EXAMPLE: &str = "/var/lib/millrace-coord";
/// Longest wait for an answer of the replica's own loop.
const REPORT_WAIT: Duration = Duration::from_secs(5);
/// How often the replica is asked whether it serves: at first, and when it takes long.
const SERVING_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// The flags of a replica.
pub(super) struct ServeArgs {
    zoo_cfg: Option<PathBuf>,
    config: Option<PathBuf>,
    /// Java's `-Dname=value`.
    properties: Vec<(String, String)>,
    join: bool,
    print_config: bool,
    log_format: Option<LogFormat>,
    /// Names as in the table of keys, with the values given.
    values: Vec<(String, String)>,
}

impl clap::Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let command = command
            .arg(
                Arg::new(ZOO_CFG)
                    .value_name("ZOO_CFG")
                    .value_parser(value_parser!(PathBuf))
                    .conflicts_with("config")
                    .help("Read settings from a zoo.cfg, as ZooKeeper does"),
            )
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Read settings from a TOML file"),
            )
            .arg(
                Arg::new("property")
                    .short('D')
                    .value_name("NAME=VALUE")
                    .action(ArgAction::Append)
                    .conflicts_with("config")
                    .help("Set a system property of ZooKeeper, as for java; the zoo.cfg wins"),
            )
            .arg(
                Arg::new("join")
                    .long("join")
                    .action(ArgAction::SetTrue)
                    .help("With an empty data directory, wait to be added to a running ensemble"),
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
            let details =
                format!("{help}\n\nAllowed: {}; for example {}", key.allowed(), key.example);
            let argument = Arg::new(key.name)
                .long(key.name.replace('_', "-"))
                .value_name(key.value)
                .overrides_with(key.name)
                .allow_negative_numbers(true)
                .help(help)
                .long_help(details);
            command.arg(match key.name {
                "data_dir" => argument.visible_alias("data"),
                _ => argument,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        ServeArgs::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ServeArgs, clap::Error> {
        let value = |name: &'static str| {
            let text = matches.get_one::<String>(name)?;
            Some((name.to_owned(), text.clone()))
        };
        let properties = matches.get_many::<String>("property").unwrap_or_default();
        Ok(ServeArgs {
            zoo_cfg: matches.get_one(ZOO_CFG).cloned(),
            config: matches.get_one("config").cloned(),
            properties: properties
                // As for java, a name alone has the empty value.
                .map(|property| property.split_once('=').unwrap_or((property, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            join: matches.get_flag("join"),
            print_config: matches.get_flag("print_config"),
            log_format: matches.get_one("log_format").copied(),
            values: KEYS.iter().filter_map(|key| value(key.name)).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = ServeArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl ServeArgs {
    fn load(&self) -> Result<Config, Failure> {
        let source = match (&self.zoo_cfg, &self.config) {
            (Some(file), _) => Source::ZooKeeper { file, properties: &self.properties },
            (None, Some(file)) => Source::Toml(file),
            (None, None) if self.properties.is_empty() => Source::None,
            (None, None) => {
                return Err(Failure::usage("flag -D: there is no zoo.cfg that it could go with")
                    .with_hint("give one, or use the flags of millrace coord --help instead"));
            }
        };
        Config::load(source, &self.values).map_err(|error| self.refused(&error))
    }

    /// Returns a mistake in the configuration as a mistake in how the program was called.
    fn refused(&self, error: &ConfigError) -> Failure {
        let failure = Failure::usage(error.to_string());
        match (error, &self.zoo_cfg) {
            (ConfigError::Read { file, error }, Some(given))
                if file == given && error.kind() == ErrorKind::NotFound =>
            {
                failure.with_hint("millrace coord --help lists the verbs and what else may be here")
            }
            _ => failure,
        }
    }
}

/// Serves until a signal, or until the replica cannot go on.
pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    if args.print_config {
        return print_config(args);
    }
    let config = args.load()?;
    log::start("info", args.log_format)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let signals = Signals::install()?;
    let coord = if args.join { Coord::join(config.clone()) } else { Coord::start(config.clone()) };
    let coord = coord.map_err(|error| refused_to_start(&error))?;
    let operator = coord.operator();
    let config = Config { client_address: coord.client_address(), ..config };
    // Dropping the replica on an error stops it in order.
    let admin = Admin::start(&config, operator.clone())
        .map_err(|error| Failure::new(format!("cannot start the replica: {error}")))?;
    let is_told = Arc::new(AtomicBool::new(false));
    let stopper = std::thread::Builder::new().name("coord-stop".to_owned());
    let spawned = stopper.spawn({
        let (operator, is_told) = (operator.clone(), Arc::clone(&is_told));
        move || {
            signals.wait();
            notify::tell(Notice::Stopping);
            tracing::info!("stopping; a second signal ends the replica at once");
            is_told.store(true, Ordering::Relaxed);
            operator.stop();
        }
    });
    spawned.map_err(|error| Failure::new(format!("cannot start the replica: {error}")))?;
    announce(&coord, &operator, &is_told);
    let ended = coord.wait();
    drop(admin);
    ended.map_err(|reason| Failure::new(format!("the replica stopped: {reason}")))?;
    tracing::info!("stopped");
    Ok(())
}

/// Prints on stdout that clients are served, as soon as there is a leader. A replica whose starter went
/// away still serves.
fn announce(coord: &Coord, operator: &Operator, is_told: &AtomicBool) {
    let (mut pause, pause_max) = SERVING_POLL;
    while !is_told.load(Ordering::Relaxed) {
        let answer = operator.report(Wanted::default());
        let Ok(report) = answer.recv_timeout(REPORT_WAIT) else {
            if answer.is_disconnected() {
                // It ended: `wait` says why.
                return;
            }
            // The pass was slow: the disk or the machine is busy.
            continue;
        };
        if report.snapshot.mode != Mode::NotServing {
            output::announce(&ready_line(coord, &report.snapshot));
            notify::tell(Notice::Ready);
            return;
        }
        std::thread::sleep(pause);
        pause = pause_max.min(pause * 2);
    }
}

fn ready_line(coord: &Coord, snapshot: &Snapshot) -> String {
    let address = coord.client_address();
    let id = snapshot.config.replica_id;
    let who = match snapshot.members.len() {
        0 => "a replica by itself".to_owned(),
        count => format!("replica {id} of {count}"),
    };
    format!("millrace coord is serving ZooKeeper clients at {address} ({who})\n")
}

fn refused_to_start(error: &StartError) -> Failure {
    let failure = Failure::new(format!("cannot start the replica: {error}"));
    match error {
        StartError::Listen { error, .. } if error.kind() == ErrorKind::AddrInUse => failure
            .with_hint("stop what listens there, or choose another with --client-address IP:PORT"),
        _ => failure,
    }
}

fn print_config(args: &ServeArgs) -> Result<(), Failure> {
    let is_given = args.values.iter().any(|(name, _)| name == "data_dir");
    let has_file = args.zoo_cfg.is_some() || args.config.is_some();
    if is_given || has_file {
        let config = args.load()?;
        for warning in &config.warnings {
            output::note(&format!("millrace: warning: {warning}"));
        }
        return output::print(&as_file(&config, false));
    }
    // A template is asked for: every key but the data directory has a default.
    let mut flags = args.values.clone();
    flags.push(("data_dir".to_owned(), DATA_DIR_EXAMPLE.to_owned()));
    let config = Config::load(Source::None, &flags).map_err(|error| args.refused(&error))?;
    output::print(&as_file(&config, true))
}

/// Returns the settings as a file that [`Config::load`] reads, without the secret, and, if it is only an example,
/// without a data directory.
fn as_file(config: &Config, directory_is_example: bool) -> String {
    let lines = KEYS.iter().map(|key| {
        let is_hidden = key.name == "super_digest" && config.super_digest.is_some();
        let is_example = directory_is_example && matches!(key.name, "data_dir" | "log_dir");
        let mark = if is_hidden || is_example { "# " } else { "" };
        format!("# {}\n{mark}{} = {}\n", key.help, key.name, as_toml(&key.get(config)))
    });
    lines.collect()
}
