//! One question to coordination, in a session of its own that ends with the answer.
//!
//! Always holds: the answer is not older than the question; what cannot be read is passed over.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::coordination::{ADDRESS_FIELD, MEMBERS, Place};
use tokio::time::{self, Instant};

use crate::address::{SEEDS_MAX, is_host_and_port};
use crate::error::{Error, duration_text};
use crate::race::{self, race};
use crate::retry::Backoff;

use super::wire::{Cause, Session};

/// How long coordination keeps a session whose client died in the middle of the question.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may keep silent before it is given up. Others are asked long before. Guessed.
const SERVER_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// Waits between tries, the shortest and the longest: an election takes some of the latter.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Asks until there is an answer; see [`super::members`].
pub(super) async fn members(
    place: &Place,
    wait: Duration,
    step: Duration,
) -> Result<Vec<Arc<str>>, Error> {
    let end = Instant::now() + wait;
    let mut servers: Vec<&str> = place.servers.split(',').collect();
    // Each server has its share of the clients.
    fastrand::shuffle(&mut servers);
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut reason: Arc<str> = format!("no answer within {}", duration_text(wait)).into();
    loop {
        // An answer that another server would give as well ends the race.
        let ways = servers.iter().map(|server| -> race::Course<'_, Result<Vec<Arc<str>>, Error>> {
            Box::pin(async move {
                match ask(place, server, wait.min(SERVER_TIMEOUT_MAX)).await {
                    Ok(records) => Ok(addresses(place, &records)),
                    Err(Cause::NoNode) => {
                        Ok(Err(Error::NoCluster { place: place.to_string().into() }))
                    }
                    Err(error @ Cause::Denied) => Ok(Err(failure(place, error.to_string().into()))),
                    // It says nothing that the deadline does not.
                    Err(Cause::Silent) => Err(Error::DeadlineExceeded),
                    Err(error) => Err(failure(place, error.to_string().into())),
                }
            })
        });
        match time::timeout_at(end, race(ways.collect(), step)).await {
            Ok(Ok(won)) => return won.value,
            Ok(Err(errors)) => {
                let told = errors.into_iter().find_map(|error| match error {
                    Error::Coordination { reason, .. } => Some(reason),
                    _ => None,
                });
                reason = told.unwrap_or(reason);
            }
            Err(_) => return Err(failure(place, reason)),
        }
        time::sleep(backoff.step().min(end.saturating_duration_since(Instant::now()))).await;
    }
}

fn failure(place: &Place, reason: Arc<str>) -> Error {
    Error::Coordination { servers: place.servers.as_str().into(), reason }
}

/// Asks one server for the records of up to [`SEEDS_MAX`] members, in random order.
async fn ask(place: &Place, server: &str, patience: Duration) -> Result<Vec<Vec<u8>>, Cause> {
    let mut session = Session::open(server, SESSION_TIMEOUT, patience).await?;
    // What another server has acknowledged is seen here, too.
    session.sync(&place.path).await?;
    let directory = format!("{}{MEMBERS}", place.path);
    let mut ids = session.children(&directory).await?;
    fastrand::shuffle(&mut ids);
    ids.truncate(SEEDS_MAX);
    let paths: Vec<String> = ids.iter().map(|id| format!("{directory}/{id}")).collect();
    let answers = session.data(&paths).await?;
    session.close().await;
    let mut records = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer {
            Ok(record) => records.push(record),
            // The member left meanwhile.
            Err(Cause::NoNode) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

fn addresses(place: &Place, records: &[Vec<u8>]) -> Result<Vec<Arc<str>>, Error> {
    if records.is_empty() {
        return Err(Error::NoMembers { place: place.to_string().into() });
    }
    let found: Vec<_> = records.iter().filter_map(|record| address(record)).collect();
    if found.is_empty() {
        let count = records.len();
        return Err(Error::protocol(format!(
            "nothing that is registered at {place} ({count} in all) is a node with an address"
        )));
    }
    Ok(found)
}

/// Returns where the node of a record is; None if the record cannot be read.
fn address(record: &[u8]) -> Option<Arc<str>> {
    let record: serde_json::Value = serde_json::from_slice(record).ok()?;
    let address = record.get(ADDRESS_FIELD)?.as_str()?;
    is_host_and_port(address).then(|| address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_for_their_address_and_nothing_else() {
        let check = |record: &str, expect: Option<&str>| {
            assert_eq!(address(record.as_bytes()).as_deref(), expect, "{record}");
        };
        check(r#"{"id":"a","address":"cache-1:7070","shards":[1],"new":{}}"#, Some("cache-1:7070"));
        check(r#"{"address":"[::1]:7070"}"#, Some("[::1]:7070"));
        for bad in ["", "{", "[]", "7", "{}", r#"{"address":7}"#, r#"{"address":":7070"}"#] {
            check(bad, None);
        }
        assert_eq!(address(b"\xff\xfe"), None);
    }

    #[test]
    fn no_records_and_no_readable_ones_are_told_apart() {
        let place = Place::parse("zk://a:1/m").expect("a place");
        let none = addresses(&place, &[]).expect_err("nobody");
        assert!(matches!(none, Error::NoMembers { .. }), "{none}");
        let bad = addresses(&place, &[b"x".to_vec()]).expect_err("nobody");
        assert!(matches!(bad, Error::Protocol(_)), "{bad}");
        let good = br#"{"address":"a:1"}"#.to_vec();
        let found = addresses(&place, &[b"x".to_vec(), good]).expect("one of two");
        assert_eq!(found, ["a:1".into()]);
    }
}
