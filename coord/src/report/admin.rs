//! The commands of the admin endpoint: JSON with the keys of ZooKeeper's `Commands`.
//!
//! Those of 3.8 but for what has no meaning here: trace masks cannot be set, and there is no Java
//! whose properties could be shown. `raft` is ours.

use serde_json::{Map, Value as Json, json};

use super::figures::{Value, figures, peer_state};
use super::text::{address, operation};
use super::words::environment;
use super::{
    BUILT, ConnectionReport, Effect, LIST_MAX, Mode, NOT_SERVING, Page, Snapshot, VERSION, limited,
};
use crate::config::members::config_text;
use crate::config::{Member, Role};

/// Full name, then the short ones.
const COMMANDS: [&[&str]; 24] = [
    &["configuration", "conf", "config"],
    &["connection_stat_reset", "crst"],
    &["connections", "cons"],
    &["dirs"],
    &["dump"],
    &["environment", "env", "envi"],
    &["get_trace_mask", "gtmk"],
    &["hash"],
    &["initial_configuration", "icfg"],
    &["is_read_only", "isro"],
    &["last_snapshot", "lsnp"],
    &["leader", "lead"],
    &["monitor", "mntr"],
    &["observers", "obsr"],
    &["raft"],
    &["ruok"],
    &["server_stats", "srvr"],
    &["stat_reset", "srst"],
    &["stats", "stat"],
    &["voting_view"],
    &["watch_summary", "wchs"],
    &["watches", "wchc"],
    &["watches_by_path", "wchp"],
    &["zabstate"],
];

/// Returns the full name of a command.
pub(super) fn full_name(name: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|names| names.contains(&name)).map(|names| names[0])
}

/// Writes the page that lists all commands.
pub(super) fn links(path: &str) -> String {
    COMMANDS
        .iter()
        .map(|names| format!("<a href=\"{path}/{0}\">{0}</a>\n<br/>\n", names[0]))
        .collect()
}

/// Runs the command of this full name.
pub(super) fn run(name: &str, snapshot: &Snapshot) -> Page {
    let is_known = full_name(name).is_some();
    // These are about the process and its settings, so they answer also while no client is served.
    let always = ["configuration", "environment", "initial_configuration", "raft", "voting_view"];
    let (mut fields, error) = if !is_known {
        (Map::new(), Json::from(format!("Unknown command: {name}")))
    } else if !snapshot.mode.is_serving() && !always.contains(&name) {
        (Map::new(), Json::from(NOT_SERVING))
    } else {
        (fields(name, snapshot), Json::Null)
    };
    fields.insert("command".to_owned(), Json::from(name));
    fields.entry("error").or_insert(error);
    let mut page = Page::json(200, &Json::Object(fields));
    page.effect = match name {
        _ if !snapshot.mode.is_serving() => Effect::None,
        "stat_reset" => Effect::ResetServer,
        "connection_stat_reset" => Effect::ResetConnections,
        _ => Effect::None,
    };
    page
}

fn fields(name: &str, snapshot: &Snapshot) -> Map<String, Json> {
    let value = match name {
        "configuration" => configuration(snapshot),
        "connections" => json!({
            "connections": connections(snapshot, true), "secure_connections": [],
        }),
        "dirs" => json!({
            "datadir_size": snapshot.state_disk_bytes, "logdir_size": snapshot.log_disk_bytes,
        }),
        "dump" => dump(snapshot),
        "environment" => environment(snapshot)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Json::from(value)))
            .collect(),
        "get_trace_mask" => json!({ "tracemask": 0 }),
        "hash" => json!({ "digests": snapshot.digest.map_or(vec![], |digest| vec![json!({
            "zxid": snapshot.zxid, "digest_version": 1, "digest": digest.cast_signed(),
        })]) }),
        "initial_configuration" => {
            let described = snapshot.config.describe();
            let lines = described.into_iter().map(|(name, value)| format!("{name}={value}\n"));
            json!({ "initial_configuration": lines.collect::<String>() })
        }
        "is_read_only" => json!({ "read_only": snapshot.mode == Mode::ReadOnly }),
        "last_snapshot" => {
            let in_seconds = |(zxid, time_ms)| (zxid, time_ms / 1000);
            let (zxid, timestamp) = snapshot.checkpoint.map_or((-1, -1), in_seconds);
            json!({ "zxid": format!("{zxid:x}"), "timestamp": timestamp })
        }
        "leader" => leader(snapshot),
        "monitor" => monitor(snapshot),
        "observers" => observers(snapshot),
        "raft" => raft(snapshot),
        "server_stats" => server_stats(snapshot),
        "stats" => {
            let mut value = server_stats(snapshot);
            value["connections"] = Json::from(connections(snapshot, false));
            value["secure_connections"] = json!([]);
            value
        }
        "voting_view" => {
            let voters = snapshot.members.iter().filter(|one| one.role == Role::Participant);
            let view = voters.map(|one| (one.id.to_string(), member(one)));
            json!({ "current_config": view.collect::<Map<_, _>>() })
        }
        "watch_summary" => json!({
            "num_connections": snapshot.watch_counts.clients,
            "num_paths": snapshot.watch_counts.paths,
            "num_total_watches": snapshot.watch_counts.watches,
        }),
        "watches" => {
            let by_session = snapshot.watches_by_session();
            let lists = limited(by_session.iter().map(|(id, paths)| (id.to_string(), &**paths)));
            let lists = lists.map(|(id, paths)| (id, Json::from(paths)));
            json!({ "session_id_to_watched_paths": lists.collect::<Map<_, _>>() })
        }
        "watches_by_path" => {
            let lists = snapshot.watches.iter().map(|one| (one.path.clone(), &*one.sessions));
            let lists = limited(lists).map(|(path, ids)| (path, Json::from(ids)));
            json!({ "path_to_session_ids": lists.collect::<Map<_, _>>() })
        }
        "zabstate" => zabstate(snapshot),
        // `ruok` and the resets say nothing more.
        _ => json!({}),
    };
    match value {
        Json::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn configuration(snapshot: &Snapshot) -> Json {
    let config = &snapshot.config;
    let mut value = json!({
        "client_port": config.client_address.port(),
        "data_dir": config.data_dir.display().to_string(),
        "data_log_dir": config.log_dir.display().to_string(),
        "tick_time": config.tick_ms,
        "max_client_cnxns": config.max_client_connections_per_ip,
        "min_session_timeout": config.min_session_timeout_ms,
        "max_session_timeout": config.max_session_timeout_ms,
        "server_id": snapshot.own_member().map_or(0, |own| own.id),
        "client_port_listen_backlog": config.listen_backlog,
    });
    if let Some(own) = snapshot.own_member() {
        value["init_limit"] = Json::from(config.init_limit_ticks);
        value["sync_limit"] = Json::from(config.sync_limit_ticks);
        value["quorum_port"] = Json::from(own.peer_port());
        value["election_port"] = Json::from(own.election_port);
        value["peer_type"] = Json::from(u8::from(own.role == Role::Observer));
        let text = config_text(&snapshot.members, snapshot.members_version);
        value["membership"] = Json::from(text);
    }
    value
}

/// Writes what `ServerCnxn.getConnectionInfo` has.
fn connections(snapshot: &Snapshot, is_full: bool) -> Vec<Json> {
    let one = |one: &ConnectionReport| {
        let mut value = json!({
            "remote_socket_address": address(one.address),
            "interest_ops": 1,
            "outstanding_requests": one.queued,
            "packets_received": one.received,
            "packets_sent": one.sent,
        });
        if is_full {
            value["session_id"] = Json::from(one.session);
            value["last_operation"] = Json::from(operation(one.last_operation));
            value["established"] = Json::from(one.established_ms);
            value["session_timeout"] = Json::from(one.timeout_ms);
            value["last_cxid"] = Json::from(one.last_xid);
            value["last_zxid"] = Json::from(one.last_zxid);
            value["last_response_time"] = Json::from(one.last_response_ms);
            value["last_latency"] = Json::from(one.last_latency_ms);
            value["min_latency"] = Json::from(one.min_latency_ms);
            value["avg_latency"] = Json::from(one.average_latency_ms);
            value["max_latency"] = Json::from(one.max_latency_ms);
        }
        value
    };
    snapshot.connections.iter().take(LIST_MAX).map(one).collect()
}

fn dump(snapshot: &Snapshot) -> Json {
    let mut expiries = Map::new();
    for one in snapshot.sessions.iter().take(LIST_MAX) {
        if let Some(expires_ms) = one.expires_ms {
            let list = expiries.entry(expires_ms.to_string()).or_insert_with(|| json!([]));
            if let Json::Array(ids) = list {
                ids.push(Json::from(one.id));
            }
        }
    }
    let holders = snapshot.sessions.iter().filter(|one| !one.ephemerals.is_empty());
    let ephemerals = limited(holders.map(|one| (one.id.to_string(), &*one.ephemerals)));
    let ephemerals: Map<_, _> = ephemerals.map(|(id, paths)| (id, Json::from(paths))).collect();
    json!({
        "expiry_time_to_session_ids": expiries, "session_id_to_ephemeral_paths": ephemerals,
    })
}

fn leader(snapshot: &Snapshot) -> Json {
    let leader = snapshot.raft.leader;
    let member = snapshot.members.iter().find(|member| member.id == leader);
    match member {
        Some(member) => json!({
            "is_leader": leader == snapshot.config.replica_id,
            "leader_id": leader,
            "leader_ip": member.peer_host(),
        }),
        None => json!({ "error": "server is not initialized" }),
    }
}

fn monitor(snapshot: &Snapshot) -> Json {
    let mut value = json!({
        "version": format!("{VERSION}, {BUILT}"),
        "server_state": snapshot.mode.name(),
    });
    if let Some(state) = peer_state(snapshot.mode) {
        value["peer_state"] = Json::from(state);
    }
    for figure in figures(snapshot) {
        value[figure.name] = match figure.value {
            Value::Whole(number) => Json::from(number),
            Value::Milliseconds(number) => Json::from(number),
        };
    }
    for (name, _, latency) in snapshot.metrics.latencies() {
        value[format!("avg_{name}")] = Json::from(latency.average_ms());
        value[format!("min_{name}")] = Json::from(latency.min_ms());
        value[format!("max_{name}")] = Json::from(latency.max_ms());
        value[format!("cnt_{name}")] = Json::from(latency.count);
        value[format!("sum_{name}")] = Json::from(latency.sum_us / 1000);
        for (share, label) in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99"), (0.999, "p999")] {
            value[format!("{label}_{name}")] = Json::from(latency.quantile_ms(share));
        }
    }
    value
}

fn observers(snapshot: &Snapshot) -> Json {
    let observers = snapshot.raft.followers.iter().filter(|one| !one.is_voter);
    let synced = observers.clone().filter(|one| one.is_synced).count();
    let list = observers.map(|one| json!({ "sid": one.id, "match_index": one.match_index }));
    json!({ "synced_observers": synced, "observers": list.collect::<Vec<_>>() })
}

fn raft(snapshot: &Snapshot) -> Json {
    let raft = &snapshot.raft;
    let follower = |one: &super::FollowerReport| {
        json!({
            "id": one.id,
            "is_voter": one.is_voter,
            "match_index": one.match_index,
            "is_synced": one.is_synced,
        })
    };
    json!({
        "replica": snapshot.config.replica_id,
        "term": raft.term,
        "leader": raft.leader,
        "last_index": raft.last_index,
        "committed_index": raft.committed_index,
        "applied_index": raft.applied_index,
        "leading_ms": raft.leading_ms,
        "followers": raft.followers.iter().map(follower).collect::<Vec<_>>(),
    })
}

fn server_stats(snapshot: &Snapshot) -> Json {
    let latency = snapshot.latency();
    let metrics = &snapshot.metrics;
    let mut value = json!({
        "version": format!("{VERSION}, {BUILT}"),
        "read_only": snapshot.mode == Mode::ReadOnly,
        "server_stats": {
            "packets_sent": metrics.packets_sent,
            "packets_received": metrics.packets_received,
            "server_state": snapshot.mode.name(),
            "outstanding_requests": snapshot.outstanding,
            "min_latency": latency.min_ms(),
            "avg_latency": latency.average_ms(),
            "max_latency": latency.max_ms(),
            "data_dir_size": snapshot.state_disk_bytes,
            "log_dir_size": snapshot.log_disk_bytes,
            "last_processed_zxid": snapshot.zxid,
            "num_alive_client_connections": snapshot.connection_count,
            "uptime": snapshot.uptime_ms,
            "auth_failed_count": metrics.auth_failures,
        },
        "node_count": snapshot.node_count,
    });
    if snapshot.mode == Mode::Leader {
        let sizes = metrics.proposal_bytes;
        value["proposal_stats"] = json!({
            "last_buffer_size": sizes.last,
            "min_buffer_size": sizes.min,
            "max_buffer_size": sizes.max,
        });
    }
    value
}

fn member(member: &Member) -> Json {
    json!({
        "server_addresses": [member.peer_address],
        "election_addresses": [member.election_address()],
        "client_address": member.client_address.as_deref().unwrap_or_default(),
        "learner_type": member.role.name(),
    })
}

fn zabstate(snapshot: &Snapshot) -> Json {
    let Some(own) = snapshot.own_member() else {
        return json!({ "voting": false, "zabstate": "" });
    };
    json!({
        "myid": own.id,
        "is_leader": snapshot.mode == Mode::Leader,
        "quorum_address": own.peer_address,
        "election_address": own.election_address(),
        "client_address": own.client_address.as_deref().unwrap_or_default(),
        "voting": own.role == Role::Participant,
        "last_zxid": format!("{:#x}", snapshot.zxid),
        "zabstate": if peer_state(snapshot.mode).is_some() { "broadcast" } else { "" },
    })
}
