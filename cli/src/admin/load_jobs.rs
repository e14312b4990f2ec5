//! Load jobs: how far they are, to wait for one, and to end one. `millrace fs load --detach` begins them.
//!
//! The numbers are those that the cluster has recorded, which is done every second.

use std::time::Duration;

use clap::Subcommand;
use millrace_client::{Client, JobId, JobReport, JobState};
use serde::Serialize;

use crate::failure::{Failure, shown};
use crate::output::{self, Activity, Align, Sizes, Table};

/// How often a job that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// List load jobs, wait for one, end one
///
/// `millrace fs load --detach` begins a job. Jobs that have ended are listed for a day. What is counted
/// was there when it was counted: all blocks of a file, at all nodes that own them.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  millrace admin jobs
  millrace admin jobs --json | jq -r '.[] | select(.state == \"running\") | .id'
  millrace admin jobs wait 0123456789abcdef && echo all of it is loaded
  millrace admin jobs cancel 0123456789abcdef")]
pub(super) struct JobsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<JobsVerb>,
}

#[derive(Subcommand)]
enum JobsVerb {
    /// Wait until a job has ended; the exit code is 0 if all of it was loaded, else 1
    #[command(after_help = "\
Examples:
  millrace admin jobs wait 0123456789abcdef")]
    Wait(WaitArgs),
    /// End a job; what it has loaded stays
    #[command(after_help = "\
Examples:
  millrace admin jobs cancel 0123456789abcdef")]
    Cancel(CancelArgs),
}

#[derive(clap::Args)]
struct WaitArgs {
    /// Id of the job, as `fs load --detach` and `admin jobs` print it
    #[arg(value_name = "ID")]
    id: JobId,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct CancelArgs {
    /// Id of the job, as `admin jobs` lists it
    #[arg(value_name = "ID")]
    id: JobId,
}

/// A job as scripts see it.
#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    state: &'static str,
    node: &'a str,
    first_path: &'a str,
    path_count: u32,
    recursive: bool,
    pin: bool,
    bytes_per_second: u64,
    begun_ms: i64,
    recorded_ms: i64,
    file_count: u64,
    total_bytes: u64,
    block_count: u64,
    /// Blocks that had to be read from the source.
    filled_count: u64,
    failed_count: u64,
    /// The first failures.
    failures: Vec<ShownFailure<'a>>,
}

#[derive(Serialize)]
struct ShownFailure<'a> {
    path: &'a str,
    reason: &'a str,
}

impl<'a> Shown<'a> {
    fn of(job: &'a JobReport) -> Shown<'a> {
        let failures = job.failures.iter();
        Shown {
            id: job.id.to_string(),
            state: name_of(job.state),
            node: &job.node,
            first_path: &job.first_path,
            path_count: job.path_count,
            recursive: job.options.recursive,
            pin: job.options.pin,
            bytes_per_second: job.options.bytes_per_second,
            begun_ms: job.begun_ms,
            recorded_ms: job.recorded_ms,
            file_count: job.file_count,
            total_bytes: job.total_bytes,
            block_count: job.block_count,
            filled_count: job.filled_count,
            failed_count: job.failed_count,
            failures: failures.map(|(path, reason)| ShownFailure { path, reason }).collect(),
        }
    }
}

fn name_of(state: JobState) -> &'static str {
    match state {
        JobState::Waiting => "waiting",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Cancelled => "cancelled",
        _ => "unknown",
    }
}

pub(super) async fn run(client: &Client, args: &JobsArgs) -> Result<(), Failure> {
    match &args.verb {
        None => list(client, args.json).await,
        Some(JobsVerb::Wait(args)) => wait(client, args).await,
        Some(JobsVerb::Cancel(args)) => {
            client.cancel_job(args.id).await.map_err(Failure::of_job)?;
            output::print(&format!("job {} has ended\n", args.id))
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let mut jobs = client.jobs().await.map_err(Failure::of_job)?;
    for job in jobs.iter_mut().filter(|job| job.failed_count > 0) {
        // The list has no failures. One that was forgotten meanwhile has none any more.
        if let Ok(whole) = client.job(job.id).await {
            *job = whole;
        }
    }
    if json {
        return output::print_json(&jobs.iter().map(Shown::of).collect::<Vec<_>>());
    }
    let columns = [Align::Left, Align::Left, Align::Left, Align::Right, Align::Right];
    let columns = [&columns[..], &[Align::Right, Align::Right, Align::Left]].concat();
    let mut table = Table::new(&columns);
    table.row(["JOB", "STATE", "NODE", "FILES", "SIZE", "BLOCKS", "FAILED", "PATHS"]);
    for job in &jobs {
        table.row([
            job.id.to_string(),
            name_of(job.state).to_owned(),
            output::visible(&job.node),
            output::count(job.file_count),
            Sizes::exact_if(false).show(job.total_bytes),
            output::count(job.block_count),
            output::count(job.failed_count),
            paths_of(job),
        ]);
    }
    output::print(&table.render())?;
    for job in &jobs {
        name_failures(job);
    }
    Ok(())
}

/// Returns the first path of a job, and how many others there are.
fn paths_of(job: &JobReport) -> String {
    let first = output::visible(shown(&job.first_path));
    match job.path_count {
        0 | 1 => first,
        count => format!("{first} and {}", output::counted(u64::from(count - 1), "other")),
    }
}

/// Names on stderr what a job could not load.
fn name_failures(job: &JobReport) {
    for (path, reason) in &job.failures {
        output::note(&format!("millrace: job {}: {}: {reason}", job.id, shown(path)));
    }
    let more = job.failed_count.saturating_sub(job.failures.len() as u64);
    if more > 0 && !job.failures.is_empty() {
        let more = output::count(more);
        output::note(&format!("millrace: job {}: {more} more failed, and are not named", job.id));
    }
}

async fn wait(client: &Client, args: &WaitArgs) -> Result<(), Failure> {
    let activity = Activity::start();
    let job = loop {
        let job = client.job(args.id).await.map_err(Failure::of_job)?;
        if job.state.is_ended() {
            break job;
        }
        activity.tell(&format!(
            "{}: {}, {}, {} failed",
            name_of(job.state),
            output::counted(job.file_count, "file"),
            Sizes::exact_if(false).show(job.total_bytes),
            output::count(job.failed_count)
        ));
        tokio::time::sleep(LOOK).await;
    };
    drop(activity);
    if args.json {
        output::print_json(&Shown::of(&job))?;
    } else {
        output::print(&format!(
            "{}: {}, {}: {}, {} of them read from the source\n",
            name_of(job.state),
            output::counted(job.file_count, "file"),
            Sizes::exact_if(false).show(job.total_bytes),
            output::counted(job.block_count, "block"),
            output::count(job.filled_count)
        ))?;
        name_failures(&job);
    }
    match (job.state, job.failed_count) {
        (JobState::Done, 0) => Ok(()),
        (JobState::Done, count) => {
            Err(Failure::new(format!("{} could not be loaded", output::counted(count, "path"))))
        }
        _ => Err(Failure::new("the job was cancelled before its end")),
    }
}
