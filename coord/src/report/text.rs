//! How ZooKeeper writes numbers, addresses and operations.

use std::net::SocketAddr;

use millrace_proto::zookeeper::opcode;

use crate::auth::host_text;

/// Writes milliseconds with at most four digits after the point and at least one, such as `0.0`.
pub(super) fn milliseconds(value: f64) -> String {
    format!("{:?}", (value * 10_000.0).round() / 10_000.0)
}

/// Writes a socket address as Java does, without the slash that some places put before it.
pub(super) fn address(address: SocketAddr) -> String {
    format!("{}:{}", host_text(address.ip()), address.port())
}

/// Writes a session id.
pub(super) fn session(id: i64) -> String {
    format!("{id:#x}")
}

/// Returns the short name of an operation (`FinalRequestProcessor`); `NA` for none.
pub(super) fn operation(code: i32) -> &'static str {
    match code {
        opcode::PING => "PING",
        opcode::CREATE_SESSION => "SESS",
        opcode::CLOSE_SESSION => "CLOS",
        opcode::CREATE | opcode::CREATE2 | opcode::CREATE_CONTAINER | opcode::CREATE_TTL => "CREA",
        opcode::DELETE | opcode::DELETE_CONTAINER => "DELE",
        opcode::SET_DATA => "SETD",
        opcode::SET_ACL => "SETA",
        opcode::RECONFIG => "RECO",
        opcode::CHECK => "CHEC",
        opcode::SYNC => "SYNC",
        opcode::EXISTS => "EXIS",
        opcode::GET_DATA => "GETD",
        opcode::GET_ACL => "GETA",
        opcode::GET_CHILDREN | opcode::GET_CHILDREN2 => "GETC",
        opcode::GET_ALL_CHILDREN_NUMBER => "GETACN",
        opcode::GET_EPHEMERALS => "GETE",
        opcode::SET_WATCHES => "SETW",
        opcode::SET_WATCHES2 => "STW2",
        opcode::ADD_WATCH => "ADDW",
        opcode::CHECK_WATCHES => "CHKW",
        opcode::REMOVE_WATCHES => "REMW",
        opcode::MULTI => "MULT",
        opcode::MULTI_READ => "MLTR",
        opcode::WHO_AM_I => "HOMI",
        _ => "NA",
    }
}
