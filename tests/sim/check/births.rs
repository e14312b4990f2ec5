//! An ensemble is born once: all leaders that ever serve are of one cluster, and nothing begins
//! beside data. A majority without data that elected one of its own would break both.

use crate::observe::{Check, Seen};

/// The cluster that serves, and the replicas that began one.
#[derive(Default)]
pub(super) struct Births {
    serving: Option<(u64, usize)>,
    founder: Option<usize>,
}

impl Check for Births {
    fn property(&self) -> &'static str {
        "an ensemble is born once, and never beside data"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match *seen {
            Seen::Leads { node, cluster_id } => {
                let (first, leader) = *self.serving.get_or_insert((cluster_id, node));
                if first != cluster_id {
                    return Err(format!(
                        "replica {} serves cluster {first:x}, replica {} cluster {cluster_id:x}",
                        leader + 1,
                        node + 1
                    ));
                }
            }
            Seen::Founds { node, is_durable, data_at } => {
                if let Some(id) = data_at {
                    return Err(format!("replica {} begins, and replica {id} has data", node + 1));
                }
                if !is_durable {
                    return Ok(());
                }
                if let Some(first) = self.founder.replace(node) {
                    return Err(format!("replicas {} and {} both begin", first + 1, node + 1));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
