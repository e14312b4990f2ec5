//! A cluster at one epoch, as a member has reported it.

use std::sync::Arc;

use millrace_proto::cluster::RingReply;
use millrace_proto::layout::Layout;

use crate::file::HelloInfo;

/// A cluster at one epoch, as one of its members sees it.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) layout: Arc<Layout>,
    /// Id of the member that reported it.
    pub(crate) node: String,
    /// Id of the master; empty without one.
    pub(crate) master: String,
    /// True if the member that told has lost coordination.
    pub(crate) is_fenced: bool,
    /// What that member said of itself when it was connected to; it has the block size of the cluster.
    pub(crate) hello: Option<Arc<HelloInfo>>,
}

impl View {
    /// Makes the view of a member from its reply, whose members are in `layout` with those of later pages.
    pub(crate) fn new(
        reply: RingReply,
        layout: Arc<Layout>,
        hello: Option<Arc<HelloInfo>>,
    ) -> View {
        let RingReply { node, master, is_fenced, .. } = reply;
        View { layout, node, master, is_fenced: is_fenced != 0, hello }
    }
}

/// What a member reported.
pub(crate) enum News {
    /// The members of an epoch, maybe the one that is known.
    View(Box<View>),
    /// Nothing yet.
    Nothing,
    /// It is not in a cluster.
    Alone,
}
