//! `millrace fs refresh`: changes of the source are seen now.

use millrace_client::{Client, Error, File, Kind, Status};
use serde::Serialize;

use crate::failure::{Failure, shown};
use crate::output;
use crate::walk;

/// Have every node look a file up in its source now, whatever it believes.
///
/// With -r a node believes nothing of what is below a directory, and looks each file up when it is asked for.
/// Nodes believe what they found in a store for a while (--stale-after-ms of `millrace node` and of `millrace
/// admin mount`). After this, a file that has changed is seen as changed, and the blocks of the version before
/// are gone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs refresh datasets/train.csv
  millrace fs refresh -r datasets
  millrace fs refresh -r /")]
pub(super) struct FsRefreshArgs {
    /// File or directory
    path: String,
    /// Include everything below a directory
    #[arg(short, long)]
    recursive: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What a node found; for scripts. The version is text, because it may not fit a number of JSON.
#[derive(Serialize)]
struct Row {
    node: String,
    version: Option<String>,
    length: Option<u64>,
    error: Option<String>,
}

impl Row {
    fn new((node, found): &(String, Result<File, Error>)) -> Row {
        let file = found.as_ref().ok();
        Row {
            node: node.clone(),
            version: file.map(|file| format!("{:016x}", file.version)),
            length: file.map(|file| file.length),
            error: found.as_ref().err().map(Error::to_string),
        }
    }
}

pub(super) async fn run(client: &Client, args: &FsRefreshArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    let found = client.refresh(&path, args.recursive).await;
    let found = found.map_err(|error| Failure::at_path(&path, &error))?;
    let files = || found.iter().filter_map(|(_, found)| found.as_ref().ok());
    let is_directory = files().any(|file| file.kind == Kind::Directory);
    if is_directory && !args.recursive {
        let message = format!("{} is a directory; add -r for all files below it", shown(&path));
        return Err(Failure::new(message));
    }
    // That it is gone is news, too, if all nodes say so.
    let is_gone = |error: &Error| error.status() == Some(Status::NotFound);
    let errors = || found.iter().filter_map(|(node, found)| Some((node, found.as_ref().err()?)));
    if args.json {
        output::print_json(&found.iter().map(Row::new).collect::<Vec<_>>())?;
    } else if let Some(file) = files().next() {
        let what = match file.kind {
            Kind::Directory => "all files below it are looked up again".to_owned(),
            Kind::File => {
                format!("{} bytes, version {:016x}", output::count(file.length), file.version)
            }
        };
        let nodes = output::counted(files().count() as u64, "node");
        output::print(&format!("{}: {what}, at {nodes}\n", shown(&path)))?;
    }
    if let (Some((_, error)), true) = (errors().next(), errors().all(|(_, error)| is_gone(error)))
        && files().next().is_none()
    {
        return Err(Failure::at_path(&path, error));
    }
    for (node, error) in errors() {
        output::note(&format!("millrace: {node}: {error}"));
    }
    match errors().count() {
        0 => Ok(()),
        count => {
            let nodes = output::counted(count as u64, "node");
            Err(Failure::new(format!("{nodes} could not look {} up", shown(&path))))
        }
    }
}
