//! The members of the ensemble as text: `server.N` lines, the data of `/zookeeper/config`, and the text of
//! a reconfig request.
//!
//! ```text
//!  server.3 = host : 2888 : 3888 [: participant | : observer] [; [clienthost :] 2181]
//!              │       │      └ election port: written back, never used (Raft elects)
//!              └───────┴ where its peers reach it
//! ```
//!
//! A set of members is always checked before it is handed out: each id and address is there once, and at
//! least one member votes. If an address has alternatives with `|`, the first counts.

use std::fmt;
use std::hash::Hasher;

use millrace_ops::host::{join_host_port, parse_port, split_host_port};
use millrace_proto::zookeeper::Error;
use twox_hash::XxHash3_64;

use super::properties;

/// Highest id of a member. ZooKeeper stops at 254 if TTL nodes are on, because its session ids contain the
/// id; ours do not. Guessed: far above any count of servers, and short in a name.
pub const REPLICA_ID_MAX: u64 = 65_535;
/// Most members of an ensemble. Guessed: far more than an ensemble needs.
pub const MEMBERS_MAX: usize = 64;

/// Whether a member votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Votes and may lead.
    Participant,
    /// Follows without a vote: a Raft learner.
    Observer,
}

impl Role {
    /// Returns the word in a `server.N` line.
    pub fn name(self) -> &'static str {
        match self {
            Role::Participant => "participant",
            Role::Observer => "observer",
        }
    }
}

/// One member of the ensemble.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// From 1 to [`REPLICA_ID_MAX`].
    pub id: u64,
    /// Address that its peers dial, `host:port`; an IPv6 host is in brackets.
    pub peer_address: String,
    /// ZooKeeper's third port, kept so that the text can be written back.
    pub election_port: u16,
    pub role: Role,
    /// Address that clients use, `host:port`; `None` if the text has none.
    pub client_address: Option<String>,
}

impl Member {
    /// Reads the text after `server.N=`.
    ///
    /// # Errors
    /// [`MemberError::Server`].
    pub fn parse(id: u64, text: &str) -> Result<Member, MemberError> {
        let bad = |allowed| MemberError::Server { text: text.to_owned(), allowed };
        if !(1..=REPLICA_ID_MAX).contains(&id) {
            return Err(bad("an id from 1 to 65535"));
        }
        let (peer, client) = match text.split_once(';') {
            Some((peer, client)) => (peer, Some(client.trim())),
            None => (text, None),
        };
        // Alternative addresses of the same member may follow.
        let peer = peer.split('|').next().unwrap_or_default().trim();
        let (peer, role) = match peer.rsplit_once(':') {
            Some((rest, word)) if word.eq_ignore_ascii_case("observer") => (rest, Role::Observer),
            Some((rest, word)) if word.eq_ignore_ascii_case("participant") => {
                (rest, Role::Participant)
            }
            _ => (peer, Role::Participant),
        };
        let shape = "host:port:port[:participant|observer][;[host:]port]";
        let (peer, election_port) = peer.rsplit_once(':').ok_or_else(|| bad(shape))?;
        let election_port = parse_port(election_port).ok_or_else(|| bad(shape))?;
        let (host, port) = split_host_port(peer).ok_or_else(|| bad(shape))?;
        let client_address = match client {
            None => None,
            Some(client) => {
                let only_port = parse_port(client).map(|port| ("0.0.0.0", port));
                let (host, port) =
                    only_port.or_else(|| split_host_port(client)).ok_or_else(|| bad(shape))?;
                Some(join_host_port(host, port))
            }
        };
        let peer_address = join_host_port(host, port);
        Ok(Member { id, peer_address, election_port, role, client_address })
    }

    /// Reads `server.N=..`, as in reconfig requests, or `N=..`.
    ///
    /// # Errors
    /// [`MemberError::Server`].
    pub fn parse_line(line: &str) -> Result<Member, MemberError> {
        let bad = || MemberError::Server {
            text: line.to_owned(),
            allowed: "server.N=host:port:port[:participant|observer][;[host:]port]",
        };
        let (name, value) = line.trim().split_once('=').ok_or_else(bad)?;
        let name = name.trim();
        let id = name.strip_prefix("server.").unwrap_or(name).parse().map_err(|_| bad())?;
        Member::parse(id, value.trim())
    }

    /// Returns the host of the peer address, without brackets.
    pub fn peer_host(&self) -> &str {
        split_host_port(&self.peer_address).map_or("", |(host, _)| host)
    }

    /// Returns the port of the peer address.
    pub fn peer_port(&self) -> u16 {
        split_host_port(&self.peer_address).map_or(0, |(_, port)| port)
    }

    /// Returns host and election port, as ZooKeeper shows them.
    pub fn election_address(&self) -> String {
        join_host_port(self.peer_host(), self.election_port)
    }
}

impl Member {
    /// True if `self`, as one list spells it, is the same member as `other`: same id, role and addresses. A
    /// member that calls its own host "any address" is known by its port. The election port is never used,
    /// and a list may leave out the client address.
    pub fn is_same(&self, other: &Member) -> bool {
        let is_client_same = match (&self.client_address, &other.client_address) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        (self.id, self.role) == (other.id, other.role)
            && self.is_place_same(other)
            && is_client_same
    }

    /// True if both have the same address for the other members; see [`Member::is_same`].
    pub fn is_place_same(&self, other: &Member) -> bool {
        let is_any = |member: &Member| matches!(member.peer_host(), "0.0.0.0" | "::");
        let has_any = is_any(self) || is_any(other);
        self.peer_address == other.peer_address
            || (has_any && self.peer_port() == other.peer_port())
    }
}

/// Computes a hash that is equal for equal lists of members, whatever names they have for hosts, because a
/// replica may call its own host `0.0.0.0`.
pub fn list_hash(members: &[Member]) -> u64 {
    let mut lines: Vec<(u64, u16, &str)> =
        members.iter().map(|member| (member.id, member.peer_port(), member.role.name())).collect();
    lines.sort_unstable();
    let mut hash = XxHash3_64::with_seed(0);
    for (id, port, role) in lines {
        hash.write(&id.to_le_bytes());
        hash.write(&port.to_le_bytes());
        hash.write(role.as_bytes());
    }
    hash.finish()
}

impl fmt::Display for Member {
    /// Writes the line without its end (`QuorumServer.toString`).
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Member { id, peer_address, election_port, role, client_address } = self;
        write!(out, "server.{id}={peer_address}:{election_port}:{}", role.name())?;
        match client_address {
            Some(address) => write!(out, ";{address}"),
            None => Ok(()),
        }
    }
}

/// The reason that members are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// A member's text cannot be read.
    #[error("`{text}` is not a member; expected {allowed}")]
    Server {
        /// The text.
        text: String,
        /// The form that is expected.
        allowed: &'static str,
    },
    /// Two members have one id or one address.
    #[error("server.{first} and server.{second} have the same {what}")]
    Twice {
        /// One of them.
        first: u64,
        /// The other one.
        second: u64,
        /// What they share.
        what: &'static str,
    },
    /// No member would vote.
    #[error("no member is a participant, so none can lead")]
    NoParticipant,
    /// More than [`MEMBERS_MAX`].
    #[error("{count} members; {MEMBERS_MAX} are allowed")]
    TooMany {
        /// Their count.
        count: usize,
    },
    /// A joining member has no client address.
    #[error("server.{id} joins without a client address: end it with ;port or ;host:port")]
    NoClientAddress {
        /// Its id.
        id: u64,
    },
    /// A member to remove is not an id.
    #[error("`{text}` cannot leave: it is not the id of a server")]
    Leaving {
        /// The text.
        text: String,
    },
    /// The text of a configuration has no version, or a bad one.
    #[error("`{text}` is not a version: expected version= and hexadecimal digits")]
    Version {
        /// The text.
        text: String,
    },
}

impl MemberError {
    /// Returns the code for the client (ZooKeeper 3.8 fails to read a bad id of a member to remove).
    pub fn reply(&self) -> Error {
        match self {
            MemberError::Leaving { .. } => Error::MarshallingError,
            _ => Error::BadArguments,
        }
    }
}

/// Checks a set of members. An empty one is allowed and means a replica by itself.
///
/// # Errors
/// [`MemberError::Twice`], [`MemberError::NoParticipant`], [`MemberError::TooMany`].
pub fn check_members(members: &[Member]) -> Result<(), MemberError> {
    if members.len() > MEMBERS_MAX {
        return Err(MemberError::TooMany { count: members.len() });
    }
    for (index, member) in members.iter().enumerate() {
        for other in &members[..index] {
            let what = if other.id == member.id {
                "id"
            } else if other.peer_address == member.peer_address {
                "peer address"
            } else {
                continue;
            };
            return Err(MemberError::Twice { first: other.id, second: member.id, what });
        }
    }
    if !members.is_empty() && members.iter().all(|member| member.role == Role::Observer) {
        return Err(MemberError::NoParticipant);
    }
    Ok(())
}

/// Writes the data of `/zookeeper/config` (`QuorumMaj.toString`): a line for each member, then the version,
/// which is the zxid of the change that made it.
pub fn config_text(members: &[Member], version: i64) -> String {
    format!("{}version={version:x}", config_lines(members))
}

/// Writes [`config_text`] without the version, which is known only when it is applied.
pub fn config_lines(members: &[Member]) -> String {
    members.iter().map(|member| format!("{member}\n")).collect()
}

/// Reads the text of [`config_text`]. Ignores lines of weights and groups.
///
/// # Errors
/// [`MemberError`].
pub fn parse_config_text(text: &str) -> Result<(Vec<Member>, i64), MemberError> {
    let mut version = None;
    let mut members = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match line.trim().strip_prefix("version=") {
            Some(digits) => version = Some(parse_version(digits)?),
            None if line.trim_start().starts_with("server.") => {
                members.push(Member::parse_line(line)?);
            }
            None => {}
        }
    }
    check_members(&members)?;
    let version = version.ok_or_else(|| MemberError::Version { text: text.to_owned() })?;
    Ok((members, version))
}

/// Reads the hexadecimal digits after `version=`.
///
/// # Errors
/// [`MemberError::Version`].
pub fn parse_version(digits: &str) -> Result<i64, MemberError> {
    i64::from_str_radix(digits.trim(), 16)
        .ok()
        .filter(|version| *version >= 0)
        .ok_or_else(|| MemberError::Version { text: digits.to_owned() })
}

/// Returns the members after a reconfig request, sorted by id (`PrepRequestProcessor`). `new_members`
/// replaces all if given. Otherwise `joining` members are added to `current` or replace those with their
/// ids, and `leaving` ones are removed; unknown ids among these are ignored. A joining member must have a
/// client address, unless an operator asks, because a `zoo.cfg` need not have one either.
///
/// # Errors
/// [`MemberError`]; [`MemberError::reply`] is the code to answer.
pub fn reconfigure(
    current: &[Member],
    joining: Option<&str>,
    leaving: Option<&str>,
    new_members: Option<&str>,
    is_operator: bool,
) -> Result<Vec<Member>, MemberError> {
    let mut members = Vec::new();
    if let Some(text) = new_members.filter(|text| !text.trim().is_empty()) {
        // ZooKeeper reads the list as a properties file, with commas for line ends.
        let lines = text.replace(',', "\n");
        let properties = properties::parse(&lines)
            .map_err(|_| MemberError::Server { text: text.to_owned(), allowed: "plain text" })?;
        for property in properties {
            if property.key != "version" {
                let line = format!("{}={}", property.key, property.value);
                members.push(joined(&line, is_operator)?);
            }
        }
    } else {
        members.extend_from_slice(current);
        for text in list(leaving) {
            let id: u64 =
                text.parse().map_err(|_| MemberError::Leaving { text: text.to_owned() })?;
            members.retain(|member| member.id != id);
        }
        for text in list(joining) {
            let member = joined(text, is_operator)?;
            members.retain(|other| other.id != member.id);
            members.push(member);
        }
    }
    if members.is_empty() {
        return Err(MemberError::NoParticipant);
    }
    members.sort_by_key(|member| member.id);
    check_members(&members)?;
    Ok(members)
}

fn list(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn joined(line: &str, is_operator: bool) -> Result<Member, MemberError> {
    let member = Member::parse_line(line)?;
    match member.client_address {
        Some(_) => Ok(member),
        None if is_operator => Ok(member),
        None => Err(MemberError::NoClientAddress { id: member.id }),
    }
}

#[cfg(test)]
mod tests;
