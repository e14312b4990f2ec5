//! Admission between replicas: one judgement for both ends of a stream.
//!
//! Always holds: a replica without data belongs only to the first ensemble that it meets, and only until
//! this process ends or it has its data; a voting replica that returns without data is refused by all
//! replicas, even by those that never met it.

use std::collections::BTreeMap;

use super::hello::{Hello, IS_EMPTY};
use super::known::{Known, Listed};
use crate::replica::Company;

/// The identity of this replica, and what it remembers of others.
#[derive(Debug)]
pub struct Admission {
    /// 0 until a replica without data has met an ensemble.
    cluster_id: u64,
    replica_id: u64,
    store_id: u64,
    known: Known,
    /// True if it waits to join an ensemble, and would not begin one.
    joins: bool,
    is_empty: bool,
    /// True if it begins an ensemble, and joins no other meanwhile.
    is_founding: bool,
    /// Ids of the others that are in the ensemble, or are being added, as far as this replica knows.
    members: Vec<u64>,
    /// Ids of the members that vote.
    voters: Vec<u64>,
    /// The stores of admitted guests, for when they become members.
    met: BTreeMap<u64, u64>,
}

impl Admission {
    /// Builds the admission of a replica. `cluster_id` is 0 if it has no data and has not met an ensemble.
    pub fn new(cluster_id: u64, replica_id: u64, store_id: u64, known: Known) -> Admission {
        Admission {
            cluster_id,
            replica_id,
            store_id,
            joins: known.joined() == Some(0),
            known,
            is_empty: cluster_id == 0,
            is_founding: false,
            members: Vec::new(),
            voters: Vec::new(),
            met: BTreeMap::new(),
        }
    }

    /// Returns the id of the ensemble that this replica belongs to; 0 for none.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Returns what is remembered of others.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Returns what is remembered, for the next start.
    pub fn into_known(self) -> Known {
        self.known
    }

    /// Builds the hello to `receiver`.
    pub fn hello(&self, receiver: u64) -> Hello {
        Hello {
            features: if self.is_empty { IS_EMPTY } else { 0 },
            cluster_id: self.cluster_id,
            sender: self.replica_id,
            store_id: self.store_id,
            receiver,
        }
    }

    /// Takes the current other replicas. Forgets the store of one that left, because it may return with
    /// another one.
    pub fn set_company(&mut self, company: &Company) {
        let ids = company.members.iter().map(|member| member.id);
        self.members = ids.filter(|id| !company.guests.contains(id)).collect();
        self.voters.clone_from(&company.voters);
        self.is_empty = company.is_empty;
        self.known.forget(|replica| self.members.contains(&replica));
        self.met.retain(|id, _| company.members.iter().any(|member| member.id == *id));
        for &id in &self.members {
            let Some(&store_id) = self.met.get(&id) else { continue };
            if self.known.store_id(id).is_some() {
                continue;
            }
            if let Err(error) = self.known.remember(id, store_id) {
                tracing::warn!(peer = id, %error, "a new member cannot be noted in `peers`");
            }
        }
    }

    /// Begins an ensemble: see [`crate::replica::Action::Found`].
    ///
    /// # Errors
    /// Fails if this could not be stored; then the ensemble must not begin.
    pub fn found(&mut self, cluster_id: Option<u64>) -> Result<(), String> {
        self.is_founding = cluster_id.is_none();
        self.cluster_id = 0;
        match cluster_id {
            Some(cluster_id) => self.join(cluster_id),
            None => self.known.join(None).map_err(|error| self.unwritten(&error)),
        }
    }

    /// Remembers which part of the configured list the ensemble has taken over.
    pub fn set_listed(&mut self, listed: Listed) {
        if let Err(error) = self.known.set_listed(listed) {
            // The next start finds the changes made already, and makes none.
            tracing::warn!(%error, "the list of members cannot be noted in `peers`");
        }
    }

    /// Checks the hello of a replica, and remembers the replica if it is accepted.
    ///
    /// # Errors
    /// The reason for a refusal, as a sentence for both logs.
    pub fn judge(&mut self, hello: &Hello) -> Result<(), String> {
        let Admission { replica_id, store_id, cluster_id, .. } = *self;
        let Hello { sender, receiver, .. } = *hello;
        if receiver != replica_id {
            return Err(format!(
                "this is replica {replica_id}, not {receiver}: correct the address of \
                 server.{receiver}"
            ));
        }
        if sender == replica_id {
            return Err(format!("two replicas have the id {replica_id}: each needs its own"));
        }
        if hello.store_id == store_id {
            return Err(format!(
                "replicas {sender} and {replica_id} run on copies of one data directory: stop \
                 the one with the newer copy, give it a directory of its own, and add it to the \
                 ensemble"
            ));
        }
        match (cluster_id, hello.cluster_id) {
            (0, 0) if self.joins => {
                return Err(format!(
                    "replica {replica_id} waits to join an ensemble that runs (--join), and \
                     replica {sender} has no data either"
                ));
            }
            (0, theirs) if theirs != 0 && self.is_founding => {
                return Err(format!(
                    "replica {replica_id} begins an ensemble with its own list of members, and \
                     replica {sender} has one: make the lists the same"
                ));
            }
            (ours, theirs) if ours != 0 && theirs != 0 && ours != theirs => {
                return Err(self.is_foreign(hello));
            }
            _ => {}
        }
        self.judge_store(hello)?;
        if cluster_id == 0 && hello.cluster_id != 0 {
            self.join(hello.cluster_id)?;
        }
        self.met.insert(sender, hello.store_id);
        Ok(())
    }

    /// Explains why a replica of another ensemble is refused.
    fn is_foreign(&self, hello: &Hello) -> String {
        let Admission { replica_id, cluster_id, is_empty, .. } = *self;
        let Hello { sender, cluster_id: theirs, .. } = *hello;
        let advice = match is_empty || hello.is_empty() {
            true => {
                "one of them has no data and has met its cluster by chance: start that one again \
                 when the addresses are right"
            }
            false => {
                "both have data, and an ensemble has the data of one. If one of them should take \
                 the other's, back it up first (millrace coord backup), and start it with a new \
                 data directory"
            }
        };
        format!(
            "replica {sender} belongs to cluster {theirs:016x}, replica {replica_id} to \
             {cluster_id:016x}: correct the addresses; {advice}"
        )
    }

    /// Checks that the sender has the data directory that it had before.
    fn judge_store(&mut self, hello: &Hello) -> Result<(), String> {
        let Hello { sender, store_id, .. } = *hello;
        let has_lost = || {
            format!(
                "replica {sender} has lost its data or uses another directory than before, so \
                 what it acknowledged cannot be counted on: remove it and add it again (millrace \
                 coord remove, then add)"
            )
        };
        let is_member = self.members.contains(&sender);
        // A replica without data cannot vote, so this one had data and lost it. A known store id does not
        // help, because it may have been noted before the replica was a member.
        if is_member && hello.is_empty() && self.voters.contains(&sender) {
            return Err(has_lost());
        }
        match self.known.store_id(sender) {
            Some(store) if store == store_id => Ok(()),
            Some(_) => Err(has_lost()),
            None if !is_member => Ok(()),
            None => self.known.remember(sender, store_id).map_err(|error| self.unwritten(&error)),
        }
    }

    fn join(&mut self, cluster_id: u64) -> Result<(), String> {
        self.known.join(Some(cluster_id)).map_err(|error| self.unwritten(&error))?;
        tracing::info!(cluster = format!("{cluster_id:016x}"), "belongs to a cluster");
        self.cluster_id = cluster_id;
        Ok(())
    }

    fn unwritten(&self, error: &std::io::Error) -> String {
        format!("replica {} cannot write its file `peers`: {error}", self.replica_id)
    }
}
