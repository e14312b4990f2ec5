//! The four-letter words: text as ZooKeeper's `FourLetterCommands` write it.

use std::fmt::{self, Write as _};

use millrace_ops::time::java_date;

use super::figures::{Value, figures, peer_state};
use super::text::{address, milliseconds, operation, session};
use super::{
    BUILT, ConnectionReport, Effect, LIST_MAX, Mode, NOT_SERVING, Snapshot, VERSION, limited,
};
use crate::config::members::config_text;
use crate::config::{Config, Role, Word};

/// Judges whether four bytes are a word that is answered here. The error is what to send before closing:
/// nothing where it is not a word at all.
///
/// # Errors
/// Text for a word that is not in the whitelist.
pub fn permit(bytes: [u8; 4], config: &Config) -> Result<Word, String> {
    let Some(word) = Word::parse(&bytes) else { return Err(String::new()) };
    if config.four_letter_whitelist.contains(&word) {
        return Ok(word);
    }
    Err(format!("{} is not executed because it is not in the whitelist.\n", word.name()))
}

/// Returns the answer to a word, to be sent before the connection is closed, and what it asks for.
pub fn answer(word: Word, snapshot: &Snapshot) -> (String, Effect) {
    let mut out = String::new();
    let effect = effect_of(word, snapshot);
    // Writing into a string cannot fail.
    let _ = write_answer(&mut out, word, snapshot);
    (out, effect)
}

fn effect_of(word: Word, snapshot: &Snapshot) -> Effect {
    match word {
        _ if !snapshot.mode.is_serving() => Effect::None,
        Word::Srst => Effect::ResetServer,
        Word::Crst => Effect::ResetConnections,
        _ => Effect::None,
    }
}

fn write_answer(out: &mut String, word: Word, snapshot: &Snapshot) -> fmt::Result {
    match word {
        Word::Ruok => return out.write_str("imok"),
        Word::Gtmk => return out.write_str("0"),
        Word::Isro => return out.write_str(writable(snapshot.mode)),
        Word::Envi => return write_environment(out, snapshot),
        _ if !snapshot.mode.is_serving() => return writeln!(out, "{NOT_SERVING}"),
        _ => {}
    }
    match word {
        Word::Ruok | Word::Gtmk | Word::Isro | Word::Envi => Ok(()),
        Word::Conf => write_settings(out, snapshot),
        Word::Cons => write_connections(out, snapshot, true),
        Word::Crst => writeln!(out, "Connection stats reset."),
        Word::Srst => writeln!(out, "Server stats reset."),
        Word::Dirs => {
            writeln!(out, "datadir_size: {}", snapshot.state_disk_bytes)?;
            writeln!(out, "logdir_size: {}", snapshot.log_disk_bytes)
        }
        Word::Dump => write_dump(out, snapshot),
        Word::Hash => match snapshot.digest {
            Some(digest) => writeln!(out, "{:x}: {}", snapshot.zxid, digest.cast_signed()),
            None => Ok(()),
        },
        Word::Mntr => write_monitor(out, snapshot),
        Word::Srvr => write_server(out, snapshot, false),
        Word::Stat => write_server(out, snapshot, true),
        Word::Wchc => write_watches_by_session(out, snapshot),
        Word::Wchp => write_watches_by_path(out, snapshot),
        Word::Wchs => {
            let counts = snapshot.watch_counts;
            let (clients, paths) = (counts.clients, counts.paths);
            writeln!(out, "{clients} connections watching {paths} paths")?;
            writeln!(out, "Total watches:{}", counts.watches)
        }
    }
}

/// Answers `isro`: clients that look for a server they may write to read it.
fn writable(mode: Mode) -> &'static str {
    match mode {
        Mode::NotServing => "null",
        Mode::ReadOnly => "ro",
        _ => "rw",
    }
}

fn write_environment(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    writeln!(out, "Environment:")?;
    for (name, value) in environment(snapshot) {
        writeln!(out, "{name}={value}")?;
    }
    Ok(())
}

/// Names and values of `envi`; there is no Java to tell of.
pub(super) fn environment(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    const MIB: u64 = 1 << 20;
    let process = &snapshot.process;
    vec![
        ("zookeeper.version", format!("{VERSION}, {BUILT}")),
        ("host.name", process.host_name.clone()),
        ("os.name", process.system_name.clone()),
        ("os.arch", process.architecture.clone()),
        ("os.version", process.system_version.clone()),
        ("user.name", process.user_name.clone()),
        ("user.home", process.home.clone()),
        ("user.dir", process.directory.clone()),
        ("os.memory.max", format!("{}MB", process.machine_bytes / MIB)),
        ("os.memory.total", format!("{}MB", process.resident_bytes / MIB)),
    ]
}

fn write_settings(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    let config = &snapshot.config;
    writeln!(out, "clientPort={}", config.client_address.port())?;
    writeln!(out, "secureClientPort=-1")?;
    writeln!(out, "dataDir={}", config.data_dir.display())?;
    writeln!(out, "dataDirSize={}", snapshot.state_disk_bytes)?;
    writeln!(out, "dataLogDir={}", config.log_dir.display())?;
    writeln!(out, "dataLogSize={}", snapshot.log_disk_bytes)?;
    writeln!(out, "tickTime={}", config.tick_ms)?;
    writeln!(out, "maxClientCnxns={}", config.max_client_connections_per_ip)?;
    writeln!(out, "minSessionTimeout={}", config.min_session_timeout_ms)?;
    writeln!(out, "maxSessionTimeout={}", config.max_session_timeout_ms)?;
    writeln!(out, "clientPortListenBacklog={}", config.listen_backlog)?;
    let Some(own) = snapshot.own_member() else { return writeln!(out, "serverId=0") };
    writeln!(out, "serverId={}", own.id)?;
    writeln!(out, "initLimit={}", config.init_limit_ticks)?;
    writeln!(out, "syncLimit={}", config.sync_limit_ticks)?;
    writeln!(out, "electionAlg=3")?;
    writeln!(out, "electionPort={}", own.election_port)?;
    writeln!(out, "quorumPort={}", own.peer_port())?;
    writeln!(out, "peerType={}", u8::from(own.role == Role::Observer))?;
    writeln!(out, "membership: ")?;
    out.write_str(&config_text(&snapshot.members, snapshot.members_version))
}

fn write_server(out: &mut String, snapshot: &Snapshot, with_clients: bool) -> fmt::Result {
    writeln!(out, "Zookeeper version: {VERSION}, {BUILT}")?;
    if with_clients {
        writeln!(out, "Clients:")?;
        write_connections(out, snapshot, false)?;
    }
    let latency = snapshot.latency();
    let average = milliseconds(latency.average_ms());
    writeln!(out, "Latency min/avg/max: {}/{average}/{}", latency.min_ms(), latency.max_ms())?;
    writeln!(out, "Received: {}", snapshot.metrics.packets_received)?;
    writeln!(out, "Sent: {}", snapshot.metrics.packets_sent)?;
    writeln!(out, "Connections: {}", snapshot.connection_count)?;
    writeln!(out, "Outstanding: {}", snapshot.outstanding)?;
    writeln!(out, "Zxid: {:#x}", snapshot.zxid)?;
    writeln!(out, "Mode: {}", snapshot.mode.name())?;
    writeln!(out, "Node count: {}", snapshot.node_count)?;
    if snapshot.mode == Mode::Leader {
        let sizes = snapshot.metrics.proposal_bytes;
        writeln!(out, "Proposal sizes last/min/max: {}/{}/{}", sizes.last, sizes.min, sizes.max)?;
    }
    Ok(())
}

fn write_connections(out: &mut String, snapshot: &Snapshot, is_full: bool) -> fmt::Result {
    for connection in snapshot.connections.iter().take(LIST_MAX) {
        write_connection(out, connection, is_full)?;
    }
    write_rest(out, snapshot.connections.len(), "connections")?;
    // One empty line ends the list; `cons` has no other text after it.
    writeln!(out)
}

/// Writes what `ServerCnxn.dumpConnectionInfo` has.
fn write_connection(out: &mut String, one: &ConnectionReport, is_full: bool) -> fmt::Result {
    let is_open = u8::from(one.session != 0);
    write!(out, " /{}[{is_open}](queued={}", address(one.address), one.queued)?;
    write!(out, ",recved={},sent={}", one.received, one.sent)?;
    if is_full && one.session != 0 {
        write!(out, ",sid={},lop={}", session(one.session), operation(one.last_operation))?;
        write!(out, ",est={},to={}", one.established_ms, one.timeout_ms)?;
        if one.last_xid >= 0 {
            write!(out, ",lcxid={:#x}", one.last_xid)?;
        }
        write!(out, ",lzxid={:#x},lresp={}", one.last_zxid, one.last_response_ms)?;
        write!(out, ",llat={},minlat={}", one.last_latency_ms, one.min_latency_ms)?;
        write!(out, ",avglat={},maxlat={}", one.average_latency_ms, one.max_latency_ms)?;
    }
    writeln!(out, ")")
}

fn write_monitor(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    writeln!(out, "zk_version\t{VERSION}, {BUILT}")?;
    writeln!(out, "zk_server_state\t{}", snapshot.mode.name())?;
    if let Some(state) = peer_state(snapshot.mode) {
        writeln!(out, "zk_peer_state\t{state}")?;
    }
    for figure in figures(snapshot) {
        match figure.value {
            Value::Whole(value) => writeln!(out, "zk_{}\t{value}", figure.name)?,
            Value::Milliseconds(value) => {
                writeln!(out, "zk_{}\t{}", figure.name, milliseconds(value))?;
            }
        }
    }
    for (name, _, latency) in snapshot.metrics.latencies() {
        writeln!(out, "zk_avg_{name}\t{}", milliseconds(latency.average_ms()))?;
        writeln!(out, "zk_min_{name}\t{}", latency.min_ms())?;
        writeln!(out, "zk_max_{name}\t{}", latency.max_ms())?;
        writeln!(out, "zk_cnt_{name}\t{}", latency.count)?;
        writeln!(out, "zk_sum_{name}\t{}", latency.sum_us / 1000)?;
        for (share, label) in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99"), (0.999, "p999")] {
            writeln!(out, "zk_{label}_{name}\t{}", milliseconds(latency.quantile_ms(share)))?;
        }
    }
    Ok(())
}

/// Writes sessions by the time they expire, ephemeral nodes by session, connections. A follower does not
/// know when sessions expire and lists their time-outs (`LearnerSessionTracker.dumpSessions`).
fn write_dump(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    writeln!(out, "SessionTracker dump:")?;
    let sessions = &snapshot.sessions;
    let mut timed = std::collections::BTreeMap::<i64, Vec<i64>>::new();
    for one in sessions.iter().take(LIST_MAX) {
        if let Some(expires_ms) = one.expires_ms {
            timed.entry(expires_ms).or_default().push(one.id);
        }
    }
    if timed.is_empty() && !sessions.is_empty() {
        writeln!(out, "Global Sessions({}):", sessions.len())?;
        for one in sessions.iter().take(LIST_MAX) {
            writeln!(out, "{}\t{}ms", session(one.id), one.timeout_ms)?;
        }
    } else {
        writeln!(out, "Session Sets ({})/({}):", timed.len(), sessions.len())?;
        for (expires_ms, ids) in timed {
            writeln!(out, "{} expire at {}:", ids.len(), java_date(expires_ms))?;
            for id in ids {
                writeln!(out, "\t{}", session(id))?;
            }
        }
    }
    write_rest(out, sessions.len(), "sessions")?;
    writeln!(out, "ephemeral nodes dump:")?;
    let holders = sessions.iter().filter(|one| !one.ephemerals.is_empty());
    writeln!(out, "Sessions with Ephemerals ({}):", holders.clone().count())?;
    let ephemeral_count: usize = holders.clone().map(|one| one.ephemerals.len()).sum();
    for (id, paths) in limited(holders.map(|one| (one.id, &*one.ephemerals))) {
        writeln!(out, "{}:", session(id))?;
        for path in paths {
            writeln!(out, "\t{path}")?;
        }
    }
    write_rest(out, ephemeral_count, "ephemeral nodes")?;
    writeln!(out, "Connections dump:")?;
    let count = snapshot.connections.len();
    writeln!(out, "Connections Sets ({})/({count}):", usize::from(count > 0))?;
    for one in snapshot.connections.iter().take(LIST_MAX) {
        writeln!(out, "\tip: /{} sessionId: {}", address(one.address), session(one.session))?;
    }
    write_rest(out, count, "connections")
}

fn write_watches_by_session(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    let by_session = snapshot.watches_by_session();
    for (id, paths) in limited(by_session.iter().map(|(id, paths)| (*id, &**paths))) {
        writeln!(out, "{}", session(id))?;
        for path in paths {
            writeln!(out, "\t{path}")?;
        }
    }
    write_rest(out, by_session.values().map(Vec::len).sum(), "watches")?;
    writeln!(out)
}

fn write_watches_by_path(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    for (path, ids) in limited(snapshot.watches.iter().map(|one| (&one.path, &*one.sessions))) {
        writeln!(out, "{path}")?;
        for id in ids {
            writeln!(out, "\t{}", session(*id))?;
        }
    }
    write_rest(out, snapshot.watches.iter().map(|one| one.sessions.len()).sum(), "watches")?;
    writeln!(out)
}

/// Says how much of a list was left out.
fn write_rest(out: &mut String, count: usize, what: &str) -> fmt::Result {
    match count.saturating_sub(LIST_MAX) {
        0 => Ok(()),
        more => writeln!(out, "... and {more} more {what}"),
    }
}
