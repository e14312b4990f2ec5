//! From a request to its answer: pages for all clients, commands for operators.
//!
//! A command is a POST with a JSON object, and is answered with `{"result": ".."}` or
//! `{"error": ".."}`:
//!
//! ```text
//!  /transfer     {"to": 2}                       without `to` the leader chooses
//!  /reconfigure  {"joining": "server.4=..", "leaving": "2"}   either or both
//!  /checkpoint
//!  /backup       {"path": "/absolute/new/file"}  written by the replica
//!  /digest
//! ```

use std::path::PathBuf;
use std::time::Duration;

use flume::{Receiver, RecvTimeoutError};
use millrace_ops::http::{JSON, Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::status::status;
use super::{Door, SOCKET};
use crate::config::Config;
use crate::coord::Operator;
use crate::replica::AdminRequest;
use crate::report::{Effect, Wanted, page};
use crate::runtime::Report;

/// Longest time that the loop may take for a report.
const REPORT_TIME: Duration = Duration::from_secs(5);
/// Longest time of a command; the replica itself gives up before.
const COMMAND_TIME: Duration = Duration::from_secs(100);
/// Longest time of a backup. Guessed: enough for terabytes.
const BACKUP_TIME: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    #[serde(default)]
    to: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReconfigureBody {
    joining: Option<String>,
    leaving: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Answers a request that came through `door`.
pub(super) fn answer(
    door: Door,
    request: &Request,
    config: &Config,
    operator: &Operator,
) -> Response {
    let mut response = match request.method {
        Method::Get | Method::Head => show(door, &request.path, config, operator),
        Method::Post if door == Door::Socket => command(request, operator),
        Method::Post => {
            Response::refusal(403, &format!("Send commands to {SOCKET} in the data directory"))
        }
    };
    response.is_head = request.method == Method::Head;
    response
}

fn show(door: Door, path: &str, config: &Config, operator: &Operator) -> Response {
    let is_status = door != Door::Metrics && path.split('?').next() == Some("/status");
    let wanted = if is_status { Wanted::default() } else { Wanted::for_page(path, config) };
    let report: Report = match operator.report(wanted).recv_timeout(REPORT_TIME) {
        Ok(report) => report,
        Err(error) => return silent(error),
    };
    if is_status {
        let body = serde_json::to_string_pretty(&status(&report, config));
        return Response::new(200, JSON, body.expect("it has no maps"));
    }
    let page = page(path, &report.snapshot, door != Door::Metrics);
    if page.effect != Effect::None {
        if door != Door::Socket {
            let reason = format!("Send this to {SOCKET} in the data directory");
            return Response::refusal(403, &reason);
        }
        operator.reset(page.effect);
    }
    Response::new(page.status, page.content_type, page.body)
}

fn command(request: &Request, operator: &Operator) -> Response {
    let answered = match request.path.as_str() {
        "/transfer" => body(request).map(|Transfer { to }| {
            wait(&operator.ask(AdminRequest::Transfer { to }), COMMAND_TIME)
        }),
        "/reconfigure" => body(request).map(|ReconfigureBody { joining, leaving }| {
            let change = AdminRequest::Reconfigure { joining, leaving };
            wait(&operator.ask(change), COMMAND_TIME)
        }),
        "/checkpoint" => body(request)
            .map(|Nothing {}| wait(&operator.ask(AdminRequest::Checkpoint), COMMAND_TIME)),
        "/digest" => {
            body(request).map(|Nothing {}| wait(&operator.ask(AdminRequest::Digest), COMMAND_TIME))
        }
        "/backup" => body(request).map(|Backup { path }| match path.is_absolute() {
            true => wait(&operator.backup(path), BACKUP_TIME),
            false => refusal(400, "the path of a backup must be absolute"),
        }),
        _ => return refusal(404, "there is no such command"),
    };
    answered.unwrap_or_else(|refusal| refusal)
}

/// Reads the object in the body of a command; an empty body is an empty object.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    let bytes: &[u8] = if request.body.is_empty() { b"{}" } else { &request.body };
    serde_json::from_slice(bytes)
        .map_err(|error| refusal(400, &format!("the body is wrong: {error}")))
}

fn wait(answer: &Receiver<Result<String, String>>, time: Duration) -> Response {
    match answer.recv_timeout(time) {
        Ok(Ok(result)) => {
            let body = json!({ "result": result }).to_string();
            Response::new(200, JSON, body)
        }
        Ok(Err(error)) => refusal(409, &error),
        Err(error) => silent(error),
    }
}

fn silent(error: RecvTimeoutError) -> Response {
    let reason = match error {
        RecvTimeoutError::Timeout => "the replica does not answer: it may wait for its disk",
        RecvTimeoutError::Disconnected => "the replica is ending, or too many questions wait",
    };
    refusal(503, reason)
}

fn refusal(status: u16, reason: &str) -> Response {
    Response::new(status, JSON, json!({ "error": reason }).to_string())
}
