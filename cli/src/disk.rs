//! `millrace disk`: what a disk of the flash tier holds, and whether it is sound, without a node.
//!
//! Owns the form of the reports; the reading is left to the node's crate.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use millrace_node::DiskError;
use millrace_node::disk::{DiskCheck, DiskContents, OfflineDisk, RegionState};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{self, Align, Sizes, Table, counted};

/// Look at a disk of the flash tier that no node uses.
///
/// DIR is a directory that `millrace node --disk DIR:SIZE` was given. It is locked meanwhile, so a node that uses it
/// has to be stopped first. Nothing is written.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace disk inspect /mnt/nvme0/millrace     what it holds
  millrace disk verify /mnt/nvme0/millrace      whether all of it is sound")]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    verb: DiskVerb,
}

#[derive(Subcommand)]
enum DiskVerb {
    Inspect(InspectArgs),
    Verify(VerifyArgs),
}

/// Show what a disk was made for, and what the file of each shard holds.
///
/// Reads what a node reads at its start: the superblock, the footers of regions, and the heads of groups where there
/// is no footer. A region is sealed when it is full and has its footer, open when it is written on, else unsealed. Its
/// sequence grows with each use. Live is what a node would find: runs of chunks that no later drop voids.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace disk inspect /mnt/nvme0/millrace
  millrace disk inspect /mnt/nvme0/millrace --json | jq '[.shards[].live_bytes] | add'")]
struct InspectArgs {
    /// Directory of the disk
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print exact sizes in bytes
    #[arg(long)]
    bytes: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Read every head, footer and block of a disk, and compare them with their checksums.
///
/// Prints a line for each fault: the file, the page of 4096 bytes in it, what is wrong, and what is lost. Ends with
/// 1 if there is one. A node that is given the disk serves no wrong byte: what is lost is read from the source. If
/// a node was killed, the last group that it wrote may not be whole, which is told as a fault, too.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace disk verify /mnt/nvme0/millrace && echo sound
  millrace disk verify /mnt/nvme0/millrace --json | jq '.faults | length'")]
struct VerifyArgs {
    /// Directory of the disk
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DiskArgs) -> Result<(), Failure> {
    match &args.verb {
        DiskVerb::Inspect(args) => inspect(args),
        DiskVerb::Verify(args) => verify(args),
    }
}

fn open(directory: &std::path::Path) -> Result<OfflineDisk, Failure> {
    OfflineDisk::open(directory).map_err(|error| failure(&error))
}

fn failure(error: &DiskError) -> Failure {
    let failure = Failure::new(error.to_string());
    match error {
        DiskError::InUse(_) => failure.with_hint("stop the node that has it as --disk first"),
        DiskError::Io { .. } => failure.with_hint("give the directory that --disk of a node names"),
        _ => failure,
    }
}

fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let contents = open(&args.directory)?.inspect().map_err(|error| failure(&error))?;
    if args.json {
        return output::print_json(&contents_json(&contents));
    }
    output::print(&contents_text(&contents, Sizes::exact_if(args.bytes)))
}

fn state(state: RegionState) -> &'static str {
    match state {
        RegionState::Sealed => "sealed",
        RegionState::Open => "open",
        RegionState::Unsealed => "unsealed",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn contents_text(contents: &DiskContents, sizes: Sizes) -> String {
    let DiskContents { format, identity, block_size, region_bytes, shards } = contents;
    let mut text = format!(
        "disk {}, format {format}: {} with blocks of {} and regions of {}\n",
        hex(identity),
        counted(shards.len() as u64, "shard"),
        sizes.show(u64::from(*block_size)),
        sizes.show(*region_bytes),
    );
    for shard in shards {
        let used = shard.regions.len() as u64;
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "\n{}, {}: {} of {} used; {} live, {}",
            shard.file,
            sizes.show(shard.file_bytes),
            output::count(used),
            counted(u64::from(shard.region_count), "region"),
            counted(shard.live_run_count, "run"),
            sizes.show(shard.live_bytes),
        );
        if shard.regions.is_empty() {
            continue;
        }
        let right = Align::Right;
        let mut table = Table::new(&[right, Align::Left, right, right, right, right]);
        table.row(["region", "state", "sequence", "runs", "bytes", "drops"]);
        for region in &shard.regions {
            table.row([
                region.number.to_string(),
                state(region.state).to_owned(),
                region.sequence.to_string(),
                output::count(region.run_count),
                sizes.show(region.run_bytes),
                output::count(region.drop_count),
            ]);
        }
        text.push_str(&table.render());
    }
    text
}

fn contents_json(contents: &DiskContents) -> Value {
    let shards = contents.shards.iter().map(|shard| {
        let regions = shard.regions.iter().map(|region| {
            json!({
                "number": region.number, "state": state(region.state), "sequence": region.sequence,
                "run_count": region.run_count, "run_bytes": region.run_bytes,
                "drop_count": region.drop_count,
            })
        });
        json!({
            "file": shard.file, "file_bytes": shard.file_bytes,
            "region_count": shard.region_count, "live_run_count": shard.live_run_count,
            "live_bytes": shard.live_bytes, "regions": regions.collect::<Vec<_>>(),
        })
    });
    json!({
        "format": contents.format, "identity": hex(&contents.identity),
        "block_size": contents.block_size, "region_bytes": contents.region_bytes,
        "shards": shards.collect::<Vec<_>>(),
    })
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let disk = open(&args.directory)?;
    let bar = output::bytes_bar("verify", disk.file_bytes());
    let check = disk.verify(|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    if args.json {
        output::print_json(&check_json(&check))?;
    } else {
        output::print(&check_text(&check))?;
    }
    if check.faults.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}

fn check_text(check: &DiskCheck) -> String {
    let mut text = String::new();
    for fault in &check.faults {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{} page {}: {}; lost: {}",
            fault.file, fault.page, fault.what, fault.lost
        );
    }
    let _ = writeln!(
        text,
        "{} in {} and {}, {}, are sound; {}",
        counted(check.run_count, "run"),
        counted(check.group_count, "group"),
        counted(check.region_count, "region"),
        output::size(check.run_bytes),
        counted(check.faults.len() as u64, "fault"),
    );
    text
}

fn check_json(check: &DiskCheck) -> Value {
    let faults = check.faults.iter().map(|fault| {
        json!({ "file": fault.file, "page": fault.page, "what": fault.what, "lost": fault.lost })
    });
    json!({
        "region_count": check.region_count, "group_count": check.group_count,
        "run_count": check.run_count, "run_bytes": check.run_bytes,
        "faults": faults.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use millrace_node::disk::{DiskFault, RegionContents, ShardContents};

    use super::*;

    fn sample() -> DiskContents {
        let region = RegionContents {
            number: 3,
            state: RegionState::Sealed,
            sequence: 17,
            run_count: 1200,
            run_bytes: 60 << 20,
            drop_count: 2,
        };
        let shard = |file: &str, regions: Vec<RegionContents>| ShardContents {
            file: file.to_owned(),
            file_bytes: 1 << 30,
            region_count: 16,
            live_run_count: regions.len() as u64,
            live_bytes: 64 << 10,
            regions,
        };
        DiskContents {
            format: 1,
            identity: [0xAB; 16],
            block_size: 1 << 20,
            region_bytes: 64 << 20,
            shards: vec![shard("shard-000", vec![region]), shard("shard-001", vec![])],
        }
    }

    #[test]
    fn each_shard_has_its_regions() {
        let expect = "\
disk abababababababababababababababab, format 1: 2 shards with blocks of 1 MiB and regions of 64 MiB

shard-000, 1 GiB: 1 of 16 regions used; 1 run live, 64 KiB
region  state   sequence   runs   bytes  drops
     3  sealed        17  1,200  60 MiB      2

shard-001, 1 GiB: 0 of 16 regions used; 0 runs live, 64 KiB
";
        assert_eq!(contents_text(&sample(), Sizes::Human), expect);
        let told = contents_json(&sample());
        assert_eq!(told["shards"][0]["regions"][0]["state"], "sealed");
        assert_eq!(told["shards"][0]["live_bytes"], 64 << 10);
    }

    #[test]
    fn each_fault_has_a_line() {
        let fault = DiskFault {
            file: "shard-000".to_owned(),
            page: 12,
            what: "the head of a group is damaged".to_owned(),
            lost: "64 bytes".to_owned(),
        };
        let check = DiskCheck {
            region_count: 1,
            group_count: 2,
            run_count: 3,
            run_bytes: 4096,
            faults: vec![fault],
        };
        let expect = "\
shard-000 page 12: the head of a group is damaged; lost: 64 bytes
3 runs in 2 groups and 1 region, 4 KiB, are sound; 1 fault
";
        assert_eq!(check_text(&check), expect);
        assert_eq!(check_json(&check)["faults"][0]["page"], 12);
    }
}
