//! What HTTP serves: admin commands, `/metrics` and `/health`.
//!
//! As in ZooKeeper every admin command is answered with status 200 and names its error in the body;
//! `/health` alone tells by its status whether requests are served.

use serde_json::json;

use super::admin;
use super::prometheus::metrics_text;
use super::{Page, Snapshot};
use crate::config::Config;

/// Returns the page at a path, whose query is not read. Where `with_commands` is false only `/metrics` and
/// `/health` are there, for the endpoint that every client may ask.
pub fn page(path: &str, snapshot: &Snapshot, with_commands: bool) -> Page {
    match bare(path) {
        "/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            return Page::new(200, kind, metrics_text(snapshot));
        }
        "/health" => return health(snapshot),
        _ => {}
    }
    let not_found = || Page::new(404, "text/plain; charset=utf-8", "Not found\n".to_owned());
    if !with_commands {
        return not_found();
    }
    match command(path, &snapshot.config) {
        None => not_found(),
        Some("") => {
            let links = admin::links(&snapshot.config.admin_commands_path);
            Page::new(200, "text/html; charset=utf-8", links)
        }
        Some(name) => admin::run(name, snapshot),
    }
}

/// Returns the admin command that a path names by its full name, the name itself where it is not one of ours,
/// and nothing for the list of commands.
pub(super) fn command<'a>(path: &'a str, config: &Config) -> Option<&'a str> {
    let rest = bare(path).strip_prefix(config.admin_commands_path.as_str())?;
    match rest.strip_prefix('/') {
        None if rest.is_empty() => Some(""),
        None => None,
        Some(name) => Some(admin::full_name(name).unwrap_or(name)),
    }
}

/// Cuts the query off a path.
fn bare(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

fn health(snapshot: &Snapshot) -> Page {
    let is_serving = snapshot.mode.is_serving();
    let value = json!({
        "serving": is_serving,
        "mode": snapshot.mode.name(),
        "replica": snapshot.config.replica_id,
        "leader": snapshot.raft.leader,
        "zxid": snapshot.zxid,
    });
    Page::json(if is_serving { 200 } else { 503 }, &value)
}
