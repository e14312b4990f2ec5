//! How ZooKeeper writes numbers, addresses, operations and dates.

use std::net::SocketAddr;

use millrace_proto::zookeeper::opcode;

use crate::auth::host_text;

/// Milliseconds with at most four digits after the point and at least one, such as `0.0`.
pub(super) fn milliseconds(value: f64) -> String {
    format!("{:?}", (value * 10_000.0).round() / 10_000.0)
}

/// A socket address as Java writes it, without the slash that some places put before it.
pub(super) fn address(address: SocketAddr) -> String {
    format!("{}:{}", host_text(address.ip()), address.port())
}

/// A session id.
pub(super) fn session(id: i64) -> String {
    format!("{id:#x}")
}

/// The short name of an operation (`FinalRequestProcessor`); `NA` for none.
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

/// Milliseconds since 1970 as Java's `Date` writes them in UTC: `Sun Nov 22 19:39:21 UTC 2026`.
pub(super) fn date(time_ms: i64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!(
        "{} {} {day:02} {:02}:{:02}:{:02} UTC {year}",
        WEEKDAYS[days.rem_euclid(7) as usize],
        MONTHS[month - 1],
        second / 3600,
        second / 60 % 60,
        second % 60,
    )
}

/// Year, month and day of the Gregorian calendar, so many days after 1 January 1970.
fn civil(days: i64) -> (i64, usize, i64) {
    // Years that begin in March end with the leap day, so every month starts at a fixed day.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as usize, day)
}
