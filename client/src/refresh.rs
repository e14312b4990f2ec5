//! Look-ups that ask the source, whatever nodes know.

use std::sync::Arc;

use millrace_proto::Status;
use millrace_proto::message::{RefreshRequest, StatRequest};
use tokio::time::Instant;

use crate::client::{Client, check_path, stat_reply};
use crate::connection::{Body, Reply};
use crate::error::Error;
use crate::file::File;
use crate::topology::Topology;

/// What one member found, with its id; outside of a cluster with the address that was connected to.
pub type Refreshed = (String, Result<File, Error>);

impl Client {
    /// Has each member look a path up in its source now, whatever it believes; with `recursive` a member
    /// believes nothing of what is below the path either. Returns what each found. A member of an earlier
    /// version asks its source at each look-up, and is asked for one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is too long.
    pub async fn refresh(&self, path: &str, recursive: bool) -> Result<Vec<Refreshed>, Error> {
        check_path(path)?;
        let path: Arc<str> = path.into();
        let topology = self.topology();
        if topology.cluster.is_none() {
            let found = self.look_up_now(&path, recursive, self.deadline()).await;
            return Ok(vec![(self.network().address().to_string(), found)]);
        }
        let members = topology.members().cloned().collect();
        let refresh = || refresh_of(&path, recursive);
        let mut parts = Vec::new();
        let mut earlier = Vec::new();
        for (member, reply) in self.ask_each(members, &refresh, self.deadline()).await {
            match reply {
                Err(error) if error.status() == Some(Status::UnknownOp) => earlier.push(member),
                reply => parts.push((member, reply)),
            }
        }
        let stat = || Body::Stat(StatRequest { path: path.to_string() });
        parts.extend(self.ask_each(earlier, &stat, self.deadline()).await);
        let mut found: Vec<_> = parts
            .into_iter()
            .map(|(member, reply)| {
                let file = reply.and_then(|reply| stat_reply(&path, &reply));
                (member.identity.id.clone(), file)
            })
            .collect();
        found.sort_by(|(first, _), (second, _)| first.cmp(second));
        Ok(found)
    }

    /// Looks a path up at one node, which asks its source.
    pub(crate) async fn look_up_now(
        &self,
        path: &Arc<str>,
        recursive: bool,
        deadline: Instant,
    ) -> Result<File, Error> {
        let order = |topology: &Topology| topology.order_of_path(path);
        let decode = |reply: &Reply| stat_reply(path, reply);
        let rescue = || self.stat_source(path.clone());
        let request = || refresh_of(path, recursive);
        let asked = self.call(&request, &order, &decode, &rescue, deadline).await;
        match asked {
            Err(error) if error.status() == Some(Status::UnknownOp) => {
                let request = || Body::Stat(StatRequest { path: path.to_string() });
                self.call(&request, &order, &decode, &rescue, deadline).await
            }
            asked => asked,
        }
    }
}

fn refresh_of(path: &str, recursive: bool) -> Body {
    Body::Refresh(RefreshRequest { path: path.to_owned(), recursive: recursive.into() })
}
