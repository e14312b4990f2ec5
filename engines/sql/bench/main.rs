//! `tpch-bench`: TPC-H through a node, beside the same files and the same store without one.
//!
//! ```text
//!  compare ──► run ──► files of this machine        each run is a process of its own
//!          ──► run ──► node ──► files
//!          ──► run ──────────────► slow line ──► store
//!          ──► run ──► node ──► slow line ──► store
//! ```
//!
//! Owns flags. Modules in reading order:

mod bridge;
mod compare;
mod report;
mod run;
mod tpch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// TPC-H through a node, beside the same files and the same store without one.
#[derive(Parser)]
#[command(name = "tpch-bench", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the tables as files of Parquet, compressed with zstd
    Make {
        /// Where the files go
        directory: PathBuf,
        /// 1 is 6 million rows of lineitem
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// Measure all ways, in turns
    Compare(compare::Options),
    /// Measure one way, as `compare` asks for it
    #[command(hide = true)]
    Run(run::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Make { directory, scale } => runtime().and_then(|runtime| {
            runtime.block_on(tpch::make(&directory, scale))?;
            Ok(())
        }),
        Verb::Compare(options) => compare::compare(&options).map(|report| print!("{report}")),
        Verb::Run(options) => runtime().and_then(|runtime| {
            let measured = runtime.block_on(run::run(&options))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tpch-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
