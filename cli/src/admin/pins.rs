//! Pins: which paths are kept in memory, and changes of that.

use std::time::Instant;

use millrace_client::Client;

use super::change::{LOOK, SEEN_WAIT};
use super::cluster;
use crate::failure::Failure;
use crate::output;

/// Keep the blocks of a file, or of all files below a directory, from being evicted
///
/// Holds on every node, up to the share of its memory that pin_percent says; beyond it blocks are cached
/// like any others. Pinning reads nothing: `millrace fs load -r` brings files in, before or afterwards.
/// `millrace fs free` still drops what is pinned.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin pin datasets/hot && millrace fs load -r datasets/hot
  millrace admin pin models/current.bin && millrace fs load models/current.bin")]
pub(super) struct PinArgs {
    /// The file or directory, which need not be there yet; / for everything
    #[arg(value_name = "PATH")]
    path: String,
}

/// Let the blocks below a pinned path be evicted again
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin unpin datasets/hot")]
pub(super) struct UnpinArgs {
    /// The path, as `admin pins` lists it
    #[arg(value_name = "PATH")]
    path: String,
}

/// List what is pinned
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin pins
  millrace admin pins --json | jq -r '.[]'")]
pub(super) struct PinsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn pins(client: &Client, args: &PinsArgs) -> Result<(), Failure> {
    cluster(client)?;
    let pins = client.pins().await?;
    if args.json {
        return output::print_json(&pins);
    }
    let lines: String = pins.iter().map(|pin| format!("/{}\n", output::visible(pin))).collect();
    output::print(&lines)
}

pub(super) async fn pin(client: &Client, args: &PinArgs) -> Result<(), Failure> {
    cluster(client)?;
    let path = args.path.trim_matches('/');
    client.pin(path).await?;
    wait_for(client, path, true).await?;
    output::print(&format!("/{} is pinned\n", output::visible(path)))
}

pub(super) async fn unpin(client: &Client, args: &UnpinArgs) -> Result<(), Failure> {
    cluster(client)?;
    let path = args.path.trim_matches('/');
    client.unpin(path).await?;
    wait_for(client, path, false).await?;
    output::print(&format!("/{} is not pinned any more\n", output::visible(path)))
}

/// Waits until the node that is asked knows whether a path is pinned.
async fn wait_for(client: &Client, path: &str, is_pinned: bool) -> Result<(), Failure> {
    let start = Instant::now();
    while client.pins().await?.iter().any(|pin| pin == path) != is_pinned {
        if start.elapsed() > SEEN_WAIT {
            let message = "it was changed, but the node that was asked has not seen it in time";
            return Err(Failure::new(message).with_hint("look at `millrace admin status`"));
        }
        tokio::time::sleep(LOOK / 4).await;
    }
    Ok(())
}
