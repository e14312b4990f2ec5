//! What a client knows of its cluster at the moment, and what may replace it.
//!
//! Always holds: an epoch once seen is followed by a later one only; a cluster once seen is never taken
//! for another.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::address::Seeds;
use crate::config::ClientConfig;
use crate::error::Error;
use crate::file::HelloInfo;
use crate::member::Maker;
use crate::topology::Topology;
use crate::view::{News, View};

/// The result of taking a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is what is known from now on.
    New,
    /// It was known.
    Known,
    /// It is older than what is known, or of a member that lost coordination.
    Refused,
    /// It is of another cluster.
    Stranger,
}

/// The member that was connected to.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    /// Its id; empty before it said so.
    pub(crate) id: String,
    /// The address that led to it.
    pub(crate) address: Arc<str>,
}

/// The current topology, and what is needed to make the next one.
#[derive(Debug)]
pub(crate) struct Board {
    maker: Maker,
    topology: watch::Sender<Arc<Topology>>,
    home: Mutex<Home>,
    /// Why a view was last refused.
    refusal: Mutex<Option<String>>,
    /// How the client began.
    seeds: Seeds,
}

impl Board {
    /// Begins with a node that is alone, at the address that led to it.
    pub(crate) fn new(
        maker: Maker,
        alone: Arc<Topology>,
        address: Arc<str>,
        seeds: Seeds,
    ) -> Board {
        let home = Home { id: String::new(), address };
        Board {
            maker,
            topology: watch::Sender::new(alone),
            home: Mutex::new(home),
            refusal: Mutex::new(None),
            seeds,
        }
    }

    pub(crate) fn maker(&self) -> &Maker {
        &self.maker
    }

    pub(crate) fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.maker.config
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    pub(crate) fn home(&self) -> Home {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True while no cluster is known, but only the node that was connected to.
    pub(crate) fn is_alone(&self) -> bool {
        self.topology.borrow().main.is_some()
    }

    /// Returns why a view was last refused.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the node said of itself when it was connected to again, while it is alone.
    pub(crate) fn take_hello(&self, hello: Arc<HelloInfo>) {
        self.topology.send_if_modified(|topology| {
            let next = topology.after(&self.maker, hello);
            let is_changed = next.is_some();
            if let Some(next) = next {
                *topology = Arc::new(next);
            }
            is_changed
        });
    }

    /// Replaces what is known by a view, if that is newer and of the same cluster. `address` is where
    /// the view came from; None if a known member sent it.
    pub(crate) fn take_over(&self, view: View, address: Option<&Arc<str>>) -> Taken {
        let view = Arc::new(view);
        loop {
            let before = self.topology();
            let known = before.cluster.as_deref();
            let taken = known.map_or(Taken::New, |known| judge(known, &view));
            if taken == Taken::New {
                if self.replace(&before, &view, address) {
                    return taken;
                }
                // Another task was faster: what is known now counts.
                continue;
            }
            if taken != Taken::Known {
                let refusal = known.map(|known| refusal_text(known, &view));
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
            }
            return taken;
        }
    }

    /// As [`Board::take_over`], for any news of a node.
    ///
    /// # Errors
    /// If that counts for nothing.
    pub(crate) fn take_news(&self, news: News, address: Option<&Arc<str>>) -> Result<(), Error> {
        match news {
            News::View(view) => match self.take_over(*view, address) {
                Taken::New | Taken::Known => Ok(()),
                Taken::Refused => Err(Error::protocol("what the node tells is older")),
                Taken::Stranger => Err(Error::protocol("the node is of another cluster")),
            },
            News::Nothing => Err(Error::protocol("the node knows no cluster yet")),
            News::Alone => Err(Error::protocol("the node is in no cluster")),
        }
    }

    /// Puts a view in the place of `before`. True if `before` was still what is known. The many members
    /// of a large cluster are gone through before readers have to wait.
    fn replace(
        &self,
        before: &Arc<Topology>,
        view: &Arc<View>,
        address: Option<&Arc<str>>,
    ) -> bool {
        let is_first =
            before.cluster.as_ref().is_none_or(|it| it.layout.cluster != view.layout.cluster);
        let mut home = self.home();
        if is_first {
            home.id.clone_from(&view.node);
            home.address = address.unwrap_or(&home.address).clone();
        }
        let told_by_main =
            before.main.as_ref().is_some_and(|main| address.is_none_or(|it| *it == main.address));
        let place = (&*home.id, &home.address);
        let next = Topology::of_cluster(&self.maker, before, view.clone(), place, told_by_main);
        let next = Arc::new(next);
        self.topology.send_if_modified(|topology| {
            let is_current = Arc::ptr_eq(topology, before);
            if is_current {
                *self.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
                *topology = next;
            }
            is_current
        })
    }
}

fn judge(known: &View, view: &View) -> Taken {
    let is_other_master = view.master != known.master;
    if view.layout.cluster != known.layout.cluster {
        // A node that was alone and is started again, maybe to join others, may begin a cluster: there
        // is no other node to go on with.
        if known.layout.members.len() == 1 { Taken::New } else { Taken::Stranger }
    } else if view.is_fenced || view.layout.epoch < known.layout.epoch {
        Taken::Refused
    } else if view.layout.epoch > known.layout.epoch || is_other_master || known.is_fenced {
        Taken::New
    } else {
        Taken::Known
    }
}

fn refusal_text(known: &View, view: &View) -> String {
    if view.layout.cluster != known.layout.cluster {
        return format!(
            "node '{}' is of cluster '{}' by now, not of '{}', and is not asked any more",
            view.node, view.layout.cluster, known.layout.cluster
        );
    }
    if view.is_fenced {
        return format!("node '{}' has lost coordination", view.node);
    }
    format!("node '{}' is at epoch {}, before {}", view.node, view.layout.epoch, known.layout.epoch)
}
