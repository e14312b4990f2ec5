//! Administration of nodes over their administration sockets: free, drain, mounts, pins.
//!
//! Owns the connections to administration sockets. The node that is asked speaks for its cluster: it
//! asks the master, or all members, by itself. Always holds: a change of unknown fate is asked for again
//! until the deadline.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::Status;
use millrace_proto::cluster::{
    DrainRequest, Mount, MountRequest, NAME_LENGTH_MAX, PinRequest, REPLICAS_MAX,
};
use millrace_proto::frame;
use millrace_proto::message::{ArchivedFreeReply, FreeRequest};
use millrace_proto::proof::Role;
use smallvec::smallvec;

use crate::address::check_address;
use crate::client::{Client, check_path};
use crate::config::ClientConfig;
use crate::connection::{Body, Claim, Reply};
use crate::control::{ask, passing};
use crate::error::Error;
use crate::file::{FreeReport, MountInfo};
use crate::member::{Maker, Member, Way};

impl Client {
    /// Drops every block of a file from the caches of all members; sources are never touched. A retry
    /// after a lost connection counts only what was left to drop. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` or `WrongKind`, and those of [`Client::drain`].
    pub async fn free(&self, path: &str) -> Result<FreeReport, Error> {
        check_path(path)?;
        let request = || Body::Free(FreeRequest { path: path.to_owned() });
        let reply = self.ask_administration(&request).await?;
        Ok(frame::body::<ArchivedFreeReply>(&reply.body)?.into())
    }

    /// Has a member give its blocks to the others and own nothing any more. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` for an unknown member, with `NotMaster` if there is no master until
    /// the deadline; [`Error::InvalidArgument`] without [`ClientConfig::admin`].
    pub async fn drain(&self, node: &str) -> Result<(), Error> {
        self.change_drain(node, false).await
    }

    /// Has a member that was drained take part again. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// As [`Client::drain`].
    pub async fn undrain(&self, node: &str) -> Result<(), Error> {
        self.change_drain(node, true).await
    }

    async fn change_drain(&self, node: &str, undo: bool) -> Result<(), Error> {
        if node.is_empty() || node.len() > NAME_LENGTH_MAX {
            return Err(Error::InvalidArgument(format!(
                "'{node}' is not an id of a member; it has 1 to {NAME_LENGTH_MAX} bytes"
            )));
        }
        let request = DrainRequest { node: node.to_owned(), undo: u8::from(undo) };
        self.order(&|| Body::Drain(request.clone()), false).await
    }

    /// Adds a mount, or changes the one with its prefix. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// Those of [`Client::drain`]; [`Error::InvalidArgument`] for values that no cluster takes.
    pub async fn mount(&self, mount: &MountInfo) -> Result<(), Error> {
        check_path(&mount.source)?;
        if !(1..=REPLICAS_MAX).contains(&mount.replicas) {
            return Err(Error::InvalidArgument(format!(
                "{} replicas; choose 1 to {REPLICAS_MAX}",
                mount.replicas
            )));
        }
        let MountInfo { prefix, source, replicas } = mount.clone();
        self.change_mount(Mount { prefix, source, replicas }, false).await
    }

    /// Removes the mount with this prefix, the empty one for the root. Its source is not touched. See
    /// [`ClientConfig::admin`].
    ///
    /// # Errors
    /// Those of [`Client::drain`]; [`Error::Status`] with `NotFound` if nothing is mounted there.
    pub async fn unmount(&self, prefix: &str) -> Result<(), Error> {
        // To remove a mount its prefix counts alone.
        let mount = Mount { prefix: prefix.to_owned(), source: String::new(), replicas: 1 };
        self.change_mount(mount, true).await
    }

    async fn change_mount(&self, mount: Mount, remove: bool) -> Result<(), Error> {
        check_path(&mount.prefix)?;
        let request = MountRequest { mount, remove: u8::from(remove) };
        self.order(&|| Body::Mount(request.clone()), remove).await
    }

    /// Keeps the blocks of a file, or of all files below a directory, from being evicted. The empty path
    /// is above all files; there need be nothing at a path. What is not cached is not brought in: see
    /// [`Client::load`]. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// Those of [`Client::drain`].
    pub async fn pin(&self, path: &str) -> Result<(), Error> {
        self.change_pin(path, false).await
    }

    /// Lets the blocks below a pinned path be evicted again. See [`ClientConfig::admin`].
    ///
    /// # Errors
    /// Those of [`Client::drain`]; [`Error::Status`] with `NotFound` if this very path is not pinned.
    pub async fn unpin(&self, path: &str) -> Result<(), Error> {
        self.change_pin(path, true).await
    }

    async fn change_pin(&self, path: &str, undo: bool) -> Result<(), Error> {
        check_path(path)?;
        let request = PinRequest { path: path.to_owned(), undo: u8::from(undo) };
        self.order(&|| Body::Pin(request.clone()), undo).await
    }

    /// Asks for a change. If a removal finds nothing, an earlier try whose answer never came may have
    /// removed it.
    async fn order(
        &self,
        request: &(dyn Fn() -> Body + Send + Sync),
        is_removal: bool,
    ) -> Result<(), Error> {
        let mut may_be_done = false;
        let done = self.administer(request, &mut may_be_done).await;
        match done {
            Err(error) if is_removal && may_be_done && error.status() == Some(Status::NotFound) => {
                Ok(())
            }
            done => done.map(drop),
        }
    }

    pub(crate) async fn ask_administration(
        &self,
        request: &(dyn Fn() -> Body + Send + Sync),
    ) -> Result<Reply, Error> {
        self.administer(request, &mut false).await
    }

    /// Asks one administration socket after the other until one has carried it out; returns whether one
    /// that did not answer may have done so, too.
    async fn administer(
        &self,
        request: &(dyn Fn() -> Body + Send + Sync),
        may_be_done: &mut bool,
    ) -> Result<Reply, Error> {
        let places = self.administration()?;
        let deadline = self.deadline();
        let mut retry = self.retry(deadline);
        for place in places.iter().cycle() {
            let cause = match ask(place, request(), deadline).await {
                Ok(reply) => return Ok(reply),
                Err(error @ Error::DeadlineExceeded) => {
                    *may_be_done = true;
                    return Err(retry.end(error));
                }
                Err(error) => match error.status() {
                    Some(Status::NotMaster | Status::Fenced) => error,
                    _ => passing(error)?,
                },
            };
            *may_be_done |= is_fate_unknown(&cause);
            retry.pause(Duration::ZERO, cause).await?;
        }
        Err(none())
    }

    fn administration(&self) -> Result<&[Arc<Member>], Error> {
        let config = self.config();
        let addresses = config.admin.as_deref().ok_or_else(none)?;
        for address in addresses.split(',') {
            check_address(address.trim())?;
        }
        let secret = config.admin_token.clone();
        let claim = secret.map(|secret| Claim { role: Role::Administrator, secret, node: 0 });
        let runtime = self.network().runtime();
        let config = Arc::new(ClientConfig { local: false, ..config.clone() });
        let maker = Maker { config, claim, runtime };
        let members = self.places().0.get_or_init(|| {
            let members = addresses.split(',').map(|address| {
                let way = Way { addresses: smallvec![address.trim().into()], node: None };
                let lane = maker.lane(&way);
                Arc::new(Member::alone(&maker, vec![way], false, &lane))
            });
            members.collect()
        });
        Ok(members)
    }
}

fn none() -> Error {
    Error::InvalidArgument(
        "this is asked at a node's administration socket: name it in the setting admin".to_owned(),
    )
}

/// True if a change that failed with this error may still have been made.
fn is_fate_unknown(error: &Error) -> bool {
    match error {
        Error::ConnectionLost { .. } | Error::DeadlineExceeded => true,
        // A master whose coordination does not answer does not know either.
        Error::Status { status, .. } => matches!(status, Status::Fenced | Status::ShuttingDown),
        _ => false,
    }
}
