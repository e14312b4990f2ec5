//! Measures the rivals alone: whether the load generator keeps ahead of them on this machine.
//!
//! `cargo run --release --example rivals -- [spin] [batch KEYS] [sizes BYTES,..] [rounds COUNT] [seconds SECONDS]`

use anyhow::{Context, Result, bail};
use millrace_bench::compare::{CompareOptions, compare};

fn main() -> Result<()> {
    let mut options = CompareOptions { node: None, ..CompareOptions::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} of what?"));
        match word.as_str() {
            "spin" => options.spin = true,
            "batch" => options.batch = Some(value()?.parse()?),
            "sizes" => {
                let sizes = value()?;
                let sizes: Result<Vec<usize>, _> = sizes.split(',').map(str::parse).collect();
                options.sizes = sizes?;
            }
            "rounds" => options.rounds = value()?.parse()?,
            "seconds" => options.seconds = value()?.parse()?,
            _ => bail!("{word:?} is not known"),
        }
    }
    let report = compare(&options, |line| eprintln!("{line}"))?;
    print!("{}", report.render());
    Ok(())
}
