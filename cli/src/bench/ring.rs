//! `millrace bench ring`: how the ring spreads blocks, and what it moves, on the command line.
//!
//! Owns flags and printing. What is simulated, and how, is left to `ring` of the crate `bench`.

use clap::builder::RangedU64ValueParser;
use millrace_bench::ring::{self, MEMBERS, RingOptions};

use super::{ROUNDS_MAX, counts};
use crate::failure::Failure;
use crate::output::{self, Activity};

/// Most blocks. Guessed: with a member each, hours.
const BLOCKS_MAX: usize = 1_000_000_000_000;

/// Simulate how blocks are spread over the members of a cluster.
///
/// Starts nothing: clusters are made up, and rings are asked which member owns each block, before and
/// after one member joins or leaves. Prints how far shares are from the fair ones, how many blocks move
/// beside those that have to, and what a decision costs. The defaults take about a minute of two CPUs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench ring
  millrace bench ring --members 5,50,500
  millrace bench ring --members 10000 --blocks 10000000
  millrace bench ring --members 100,1000 --blocks 1000000,10000000 --json")]
pub(super) struct BenchRingArgs {
    /// Members of a cluster; simulated one after the other
    #[arg(long, value_name = "COUNT", value_delimiter = ',', value_parser = members(),
        allow_negative_numbers = true, default_value = "10,100,1000,10000")]
    members: Vec<usize>,
    /// Blocks: one count for all, or one for each of --members [default: 10000000, above 1000
    /// members 1000000]
    #[arg(long, value_name = "COUNT", value_delimiter = ',', value_parser = counts(BLOCKS_MAX),
        allow_negative_numbers = true)]
    blocks: Vec<usize>,
    /// Rounds of measuring times; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = RingOptions::default().rounds)]
    rounds: usize,
    /// Seed of the members' keys and of the files
    #[arg(long, default_value_t = RingOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: BenchRingArgs) -> Result<(), Failure> {
    let (members, blocks) = (args.members.len(), args.blocks.len());
    if blocks > 1 && blocks != members {
        return Err(Failure::usage(format!(
            "flag --blocks: {blocks} counts for {members} of --members; give one for all, \
             or one for each"
        )));
    }
    let options = RingOptions {
        members: args.members,
        blocks: args.blocks.into_iter().map(|count| count as u64).collect(),
        rounds: args.rounds,
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = ring::simulate(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench ring: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

/// Parses a number of members that can be simulated.
fn members() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(*MEMBERS.start() as u64..=*MEMBERS.end() as u64)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<BenchRingArgs, clap::Error> {
        let command = BenchRingArgs::augment_args(clap::Command::new("ring"));
        let matches = command.try_get_matches_from([&["ring"], arguments].concat())?;
        BenchRingArgs::from_arg_matches(&matches)
    }

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        let args = parse(&[]).unwrap_or_else(|error| panic!("{error}"));
        let defaults = RingOptions::default();
        assert_eq!(args.members, defaults.members);
        assert!(args.blocks.is_empty() && defaults.blocks.is_empty());
        assert_eq!((ring::BLOCKS_USUAL, ring::MEMBERS_USUAL_MAX), (10_000_000, 1000));
        assert_eq!(ring::BLOCKS_OF_MANY, 1_000_000);
    }

    #[test]
    fn counts_that_cannot_be_simulated_are_refused() {
        assert!(parse(&["--members", "1"]).is_err());
        assert!(parse(&["--members", "16385"]).is_err());
        assert!(parse(&["--blocks", "0"]).is_err());
        let uneven = parse(&["--members", "2,3,4", "--blocks", "10,20"]);
        let failure = uneven.map(run).unwrap_or_else(|error| panic!("{error}")).unwrap_err();
        assert!(format!("{failure:?}").contains("2 counts for 3"), "{failure:?}");
    }
}
