//! `millrace-sql`: SQL over what nodes serve, on a command line or with a person at a terminal.
//!
//! Owns flags, where statements come from, and the exit code: 0 if all went well, 1 if a statement did not, 2 for
//! flags that are not understood. What is printed beside rows goes to stderr, so that stdout is rows alone.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use millrace_client::ClientConfig;
use millrace_ops::size::parse_size;
use millrace_sql::output::{self, Format};
use millrace_sql::{Failure, Options, Session, shell};
use tokio::runtime::{Builder, Runtime};

/// Most bytes of statements from one file or from stdin. Guessed: no person writes as much.
const TEXT_MAX: u64 = 16 << 20;

/// SQL over the files that nodes serve, read through their cache.
///
/// A path in quotes is a file or a directory of the nodes: Parquet, CSV, TSV, JSON with an object on each line, or
/// Arrow. A pattern such as 'logs/*.parquet' is one table, too. `millrace://HOST:PORT/PATH` names other nodes, and
/// `file:///PATH` a file of this machine. Without a statement it reads statements from the terminal, or from stdin.
#[derive(Parser)]
#[command(
    name = "millrace-sql",
    version,
    after_help = "\
Examples:
  millrace-sql \"SELECT count(*) FROM 'datasets/lineitem.parquet'\"
  millrace-sql --node cache-1:7070,cache-2:7070 -f queries.sql --format csv
  millrace-sql --node zk://coord-1:2181/millrace -c \"DESCRIBE 'datasets/lineitem/'\"
  millrace-sql \"EXPLAIN ANALYZE SELECT sum(x) FROM 'logs/*.parquet'\"
  millrace-sql \"COPY (SELECT * FROM 'a.csv') TO 'file:///tmp/a.parquet'\""
)]
struct Args {
    /// Address of a node, or of several joined by commas; unix:PATH for a Unix socket;
    /// zk://HOST:PORT/PATH for the nodes that registered there
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "MILLRACE_NODE",
        hide_env_values = true,
        default_value = "127.0.0.1:7070"
    )]
    node: String,
    /// Statements to run; may be repeated
    #[arg(short, long, value_name = "SQL")]
    command: Vec<String>,
    /// File with statements, run after those of --command; may be repeated
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// How rows are written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Most rows of a table; other formats have all of them
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    max_rows: usize,
    /// Most memory of queries; what is more goes to temporary files [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Parts of a query that run at once [default: one for each core]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Do not say how many rows there were, and how long they took
    #[arg(short, long)]
    quiet: bool,
    /// Statements to run
    #[arg(value_name = "SQL")]
    statements: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let failure = match run(&args) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::FAILURE,
        Err(failure) => failure,
    };
    if failure.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    eprintln!("millrace-sql: {failure}");
    ExitCode::FAILURE
}

/// Runs what the flags name. True if all went well; False if that was said already.
fn run(args: &Args) -> Result<bool, Failure> {
    let mut texts: Vec<String> = args.command.iter().chain(&args.statements).cloned().collect();
    for file in &args.file {
        let open = std::fs::File::open(file);
        let text = open.map_err(|error| unreadable(&file.display(), &error))?;
        texts.push(read(text, &file.display())?);
    }
    let is_shell = texts.is_empty() && std::io::stdin().is_terminal();
    if texts.is_empty() && !is_shell {
        texts.push(read(std::io::stdin(), &"stdin")?);
    }
    let runtime = Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    let options = Options {
        client: ClientConfig::new(),
        memory_bytes: args.memory.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        threads: args.threads.map(usize::from),
    };
    let session = runtime.block_on(Session::connect(&args.node, options))?;
    if !is_shell {
        for text in &texts {
            runtime.block_on(statements(&session, text, args))?;
        }
        return Ok(true);
    }
    if !args.quiet {
        eprintln!("millrace-sql {} at {}; \\? for help", env!("CARGO_PKG_VERSION"), args.node);
    }
    shell::run(&session, &runtime, |text| interactive(&session, &runtime, text, args))?;
    Ok(true)
}

fn unreadable(what: &dyn std::fmt::Display, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot read {what}: {error}"))
}

fn read(source: impl Read, what: &dyn std::fmt::Display) -> Result<String, Failure> {
    let mut text = String::new();
    let read = source.take(TEXT_MAX + 1).read_to_string(&mut text);
    let length = read.map_err(|error| unreadable(what, &error))?;
    match length as u64 > TEXT_MAX {
        true => Err(Failure::new(format!("{what} has more than {TEXT_MAX} bytes; split it"))),
        false => Ok(text),
    }
}

/// Runs the statements of a text, one after the other, up to the first that fails.
async fn statements(session: &Session, text: &str, args: &Args) -> Result<(), Failure> {
    for statement in session.parse(text)? {
        let start = Instant::now();
        let running = session.start(statement).await?;
        let mut out = std::io::BufWriter::new(std::io::stdout());
        let count = output::write(running.rows, args.format, args.max_rows, &mut out).await?;
        out.flush()?;
        if !args.quiet {
            eprintln!("{count} rows in {:.3} s", start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// Runs statements for a person, who may end them and goes on after an error.
fn interactive(session: &Session, runtime: &Runtime, text: &str, args: &Args) {
    let result = runtime.block_on(async {
        tokio::select! {
            result = statements(session, text, args) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::new("ended")),
        }
    });
    if let Err(failure) = result {
        eprintln!("{failure}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn flags_make_sense() {
        super::Args::command().debug_assert();
    }
}
