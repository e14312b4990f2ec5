//! Who may speak to this replica, and to whom it speaks: one judgement for both ends of a stream.

use super::hello::Hello;
use super::known::Known;

/// Our own identity, and what is remembered of others.
#[derive(Debug)]
pub(crate) struct Admission {
    /// 0 until a replica that joins has met its cluster.
    cluster_id: u64,
    replica_id: u64,
    store_id: u64,
    known: Known,
    /// Ids of the other members, as far as this replica knows.
    members: Vec<u64>,
}

impl Admission {
    /// `cluster_id` 0: this replica joins, and has not met its cluster.
    pub(crate) fn new(cluster_id: u64, replica_id: u64, store_id: u64, known: Known) -> Admission {
        Admission { cluster_id, replica_id, store_id, known, members: Vec::new() }
    }

    /// What we say to `receiver`.
    pub(super) fn hello(&self, receiver: u64) -> Hello {
        Hello {
            features: 0,
            cluster_id: self.cluster_id,
            sender: self.replica_id,
            store_id: self.store_id,
            receiver,
        }
    }

    /// Takes the members as they are now. The store of one that left is forgotten: it may come
    /// back with another.
    pub(super) fn set_members(&mut self, members: Vec<u64>) {
        self.known.forget(|replica| members.contains(&replica));
        self.members = members;
    }

    /// Decides whether the replica that said `hello` is who it must be; remembers it if so.
    ///
    /// # Errors
    /// Why it is refused, as a sentence for both logs.
    pub(super) fn judge(&mut self, hello: &Hello) -> Result<(), String> {
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
                "replicas {sender} and {replica_id} run on copies of one data directory: empty \
                 that of the newer one"
            ));
        }
        match (cluster_id, hello.cluster_id) {
            (0, 0) => return Err("both replicas wait to join a cluster".into()),
            (0, theirs) => self.join(theirs)?,
            (_, 0) => {}
            (ours, theirs) if ours != theirs => {
                return Err(format!(
                    "replica {sender} belongs to cluster {theirs:016x}, replica {replica_id} to \
                     {ours:016x}: correct the addresses, or empty the data directory of the one \
                     that is to change"
                ));
            }
            _ => {}
        }
        match self.known.store_id(sender) {
            Some(store) if store == hello.store_id => Ok(()),
            Some(_) => Err(format!(
                "replica {sender} has lost its data or uses another directory than before, so \
                 what it acknowledged cannot be counted on: remove it and add it again"
            )),
            None if !self.members.contains(&sender) => Ok(()),
            None => self.known.remember(sender, hello.store_id).map_err(|error| {
                format!("replica {replica_id} cannot write its file `peers`: {error}")
            }),
        }
    }

    fn join(&mut self, cluster_id: u64) -> Result<(), String> {
        self.known.join(cluster_id).map_err(|error| {
            let replica_id = self.replica_id;
            format!("replica {replica_id} cannot write its file `peers`: {error}")
        })?;
        tracing::info!(cluster = format!("{cluster_id:016x}"), "joined a cluster");
        self.cluster_id = cluster_id;
        Ok(())
    }
}
