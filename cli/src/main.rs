//! The one binary for people, `millrace`: parses the command line and ends with the right exit
//! code.
//!
//! Owns the list of verbs and what each `--help` says first; every verb has a file of its own. Always
//! holds: results go to stdout, everything else to stderr, and a failure is one line that names the
//! thing at fault. What a verb does is left to the crates behind it: `node`, `client` and `bench`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

mod quickstart;

mod node;

mod coord;

mod fs;

mod admin;
mod cluster;

mod bench;

mod disk;
mod doctor;

#[cfg(test)]
mod configuration;

mod age;
mod failure;
mod jobs;
mod log;
mod output;
mod signals;
mod source;
mod walk;

use failure::Failure;

const TOP_HELP: &str = "\
Examples:
  millrace quickstart                          see it work, in a few seconds, in one process
  millrace node --source /data --memory 8GiB   serve /data at 127.0.0.1:7070
  millrace fs ls -l                            what that node serves
  millrace coord --data DIR                    serve ZooKeeper's clients at 127.0.0.1:2181
  millrace cluster up --dir DIR                a whole cluster on this machine, to try it out
  millrace admin status                        how a cluster does
  millrace bench read --seconds 10             how fast it does so
  millrace doctor                              what of this machine makes it slower

Exit codes:
  0  done
  1  failed: bytes that differ, a node that cannot be reached, a file that is not there
  2  not understood: an unknown flag, or a value or a configuration that is not allowed
With --json a failure is one line of JSON on stderr: {\"error\": {\"code\", \"message\", \"hint\", \"exit_code\"}}.";

/// A distributed block cache: files of a slow source, read at the speed of memory.
#[derive(Parser)]
#[command(name = "millrace", version, after_help = TOP_HELP, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Quickstart(quickstart::QuickstartArgs),
    Node(node::NodeArgs),
    Coord(Box<coord::CoordArgs>),
    Fs(fs::FsArgs),
    Admin(admin::AdminArgs),
    Cluster(cluster::ClusterArgs),
    Bench(bench::BenchArgs),
    Disk(disk::DiskArgs),
    Doctor(doctor::DoctorArgs),
    Completions(CompletionsArgs),
}

/// Print a completion script for a shell.
///
/// The script completes verbs, flags and their values. It is made from the same definition as this help,
/// so make it again after an update.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace completions bash > /etc/bash_completion.d/millrace
  millrace completions zsh > ~/.zfunc/_millrace
  millrace completions fish > ~/.config/fish/completions/millrace.fish")]
struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// True if a command line asks for JSON, also where it is not understood.
fn asks_json(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Parses the command line. Help, and what is wrong with it, is told by the parser, but for JSON.
fn parse(is_json: bool) -> Result<Cli, Failure> {
    Cli::try_parse().map_err(|error| match is_json && error.use_stderr() {
        true => Failure::usage(error.render().to_string().trim_start_matches("error: ").to_owned()),
        false => error.exit(),
    })
}

fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Node(args) => node::run(&args),
        Verb::Coord(args) => coord::run(*args),
        Verb::Fs(args) => fs::run(args),
        Verb::Admin(args) => admin::run(args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Bench(args) => bench::run(args),
        Verb::Disk(args) => disk::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Completions(args) => completions(args.shell),
    }
}

fn main() -> ExitCode {
    cluster::end_with_parent();
    let is_json = asks_json(std::env::args_os());
    let code = match parse(is_json).and_then(|cli| run(cli.verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let told = if is_json { failure.document() } else { failure.lines() };
            if let Some(lines) = told {
                output::note(&lines);
            }
            failure.code()
        }
    };
    log::end();
    code
}

fn completions(shell: Shell) -> Result<(), Failure> {
    // The script is written at once, because the generator itself would panic when the reader goes away.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "millrace", &mut script);
    output::print_bytes(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_by_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string);
            assert!(help.is_some_and(|help| help.contains("Examples:")), "{name} has examples");
            assert!(command.get_about().is_some(), "{name} says what it does");
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
