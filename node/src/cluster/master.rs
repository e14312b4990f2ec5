//! What the master does: it changes what all nodes share.
//!
//! Always holds: nothing is written that a later master would not have written. Each write is one
//! transaction with two checks: that the latch of this term is still there, and that no later term has
//! begun. A master that was asleep while another was elected is refused by both.

use millrace_proto::Status;
use millrace_proto::cluster::{MOUNTS_MAX, Mount, PINS_BYTES_MAX, PINS_MAX, REPLICAS_MAX};
use millrace_proto::job::{JOBS_ENDED_MAX, JOBS_MAX};
use millrace_proto::terms::Terms;
use zookeeper_client::{CheckWriteError, CheckWriter, Client, CreateMode, CreateOptions, Error};

use super::job::{JobCommand, JobRecord, changed_jobs, unix_ms};
use super::known::{Known, path};
use super::record::{
    MountRecord, MountsRecord, PinsRecord, ReportRecord, TermRecord, pins_size, read, write,
};
use super::refusal::Refusal;
use super::rights::{Readers, Rights};
use crate::store::check_path;
use crate::store::roots::{SOURCE_LENGTH_MAX, normal};

/// What the master is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Drain a member, or let it take part again.
    Drain { node: String, undo: bool },
    /// Add, change or remove a mount.
    Mount { mount: Mount, remove: bool },
    /// Pin a path, or take its pin away.
    Pin { path: String, undo: bool },
    /// Begin, end or record a load job.
    Job(JobCommand),
    /// Write down what the members have reported; this node itself asks for it.
    Report(ReportRecord),
}

/// A node's place in the line of those that may be elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Latch {
    /// Where it is in coordination.
    pub(crate) path: String,
    /// The fencing token that it gives: its `czxid`.
    pub(crate) token: i64,
}

/// The time in which this node is the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    latch: Latch,
    /// Version of [`path::TERM`] in this term.
    version: i32,
    /// Decides which clients may read and write what it creates.
    rights: Rights,
}

impl Term {
    /// Begins a term: from now on every earlier master is refused.
    ///
    /// # Errors
    /// `NotMaster` if a later term has begun already.
    pub(crate) async fn begin(
        client: &Client,
        rights: Rights,
        me: &str,
        latch: &Latch,
    ) -> Result<Term, Refusal> {
        let record = TermRecord { node: me.to_owned(), token: latch.token.to_string() };
        let data = write(&record);
        let mut writer = client.new_check_writer(&latch.path, Some(0))?;
        let version = match client.get_data(path::TERM).await {
            Err(Error::NoNode) => {
                writer.add_create(path::TERM, &data, &persistent(rights))?;
                0
            }
            Err(error) => return Err(error.into()),
            Ok((old, stat)) => {
                let old: TermRecord = read(path::TERM, &old).unwrap_or_default();
                if old.token() > latch.token {
                    let message = format!("{} was elected meanwhile", old.node);
                    return Err(Refusal::new(Status::NotMaster, message));
                }
                writer.add_set_data(path::TERM, &data, Some(stat.version))?;
                stat.version.wrapping_add(1)
            }
        };
        writer.commit().await?;
        Ok(Term { latch: latch.clone(), version, rights })
    }

    /// Returns the path of the latch.
    pub(crate) fn latch(&self) -> &str {
        &self.latch.path
    }

    /// Begins a transaction of this term.
    fn writer<'a>(&self, client: &'a Client) -> Result<CheckWriter<'a>, Error> {
        let mut writer = client.new_check_writer(&self.latch.path, Some(0))?;
        writer.add_check_version(path::TERM, self.version)?;
        Ok(writer)
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// What is wrong with it, or why it could not be done.
    pub(crate) async fn carry_out(
        &self,
        client: &Client,
        known: &Known,
        command: &Command,
    ) -> Result<(), Refusal> {
        match command {
            Command::Drain { node, undo } => self.drain(client, known, node, *undo).await,
            Command::Mount { mount, remove } => {
                let mounts = changed(known.mounts().0, mount, *remove)?;
                self.write_mounts(client, known, &mounts).await
            }
            Command::Pin { path, undo } => {
                let (pins, version) = known.pins();
                let Some(pins) = changed_pins(pins, path, *undo)? else { return Ok(()) };
                self.write_at(client, path::PINS, version, &write(&PinsRecord { pins })).await
            }
            Command::Job(command) => self.change_job(client, command).await,
            Command::Report(report) => {
                let (number, version) = match client.get_data(path::REPORT).await {
                    Ok((data, stat)) => {
                        let last = read::<ReportRecord>(path::REPORT, &data);
                        (last.map_or(0, |last| last.number), Some(stat.version))
                    }
                    Err(Error::NoNode) => (0, None),
                    Err(error) => return Err(error.into()),
                };
                let report = ReportRecord { number: number.saturating_add(1), ..report.clone() };
                self.write_at(client, path::REPORT, version, &write(&report)).await
            }
        }
    }

    async fn drain(
        &self,
        client: &Client,
        known: &Known,
        node: &str,
        undo: bool,
    ) -> Result<(), Refusal> {
        if undo != known.is_drained(node) {
            // It is as it should be; for an unknown node that is not worth much.
            return match known.is_member(node) || undo {
                true => Ok(()),
                false => Err(unknown(node)),
            };
        }
        let path = format!("{}/{node}", path::DRAINS);
        let mut writer = self.writer(client)?;
        if undo {
            writer.add_delete(&path, None)?;
        } else {
            if !known.is_member(node) {
                return Err(unknown(node));
            }
            if known.others_active(node) == 0 {
                let message = format!("{node} is the last active node: add another one first");
                return Err(Refusal::new(Status::InvalidArgument, message));
            }
            writer.add_create(
                &path,
                self.latch.token.to_string().as_bytes(),
                &persistent(self.rights),
            )?;
        }
        match writer.commit().await {
            Ok(_) => Ok(()),
            // The request came twice at once.
            Err(CheckWriteError::OperationFailed {
                source: Error::NodeExists | Error::NoNode,
                ..
            }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn change_job(&self, client: &Client, command: &JobCommand) -> Result<(), Refusal> {
        if let JobCommand::Record(record) = command {
            // The version alone decides: it is another one after any change.
            let record = JobRecord { recorded_ms: unix_ms(), ..(**record).clone() };
            let path = job_path(record.spec.id);
            return self.write_at(client, &path, Some(record.version), &write(&record)).await;
        }
        let jobs = read_jobs(client).await?;
        let change = changed_jobs(&jobs, command, unix_ms())?;
        let Some((record, is_new)) = change.write else { return Ok(()) };
        let mut writer = self.writer(client)?;
        for id in change.forget {
            writer.add_delete(&job_path(id), None)?;
        }
        let (path, data) = (job_path(record.spec.id), write(&record));
        match is_new {
            true => writer.add_create(&path, &data, &persistent(self.rights))?,
            false => writer.add_set_data(&path, &data, Some(record.version))?,
        }
        writer.commit().await?;
        Ok(())
    }

    /// Writes the mounts, unless they were changed since they were read.
    ///
    /// # Errors
    /// As [`Term::carry_out`].
    pub(crate) async fn write_mounts(
        &self,
        client: &Client,
        known: &Known,
        mounts: &[Mount],
    ) -> Result<(), Refusal> {
        let record = MountsRecord { mounts: mounts.iter().map(MountRecord::from).collect() };
        self.write_at(client, path::MOUNTS, known.mounts().1, &write(&record)).await
    }

    /// Writes data that has this version so far, or is not there yet.
    async fn write_at(
        &self,
        client: &Client,
        path: &str,
        version: Option<i32>,
        data: &[u8],
    ) -> Result<(), Refusal> {
        let mut writer = self.writer(client)?;
        match version {
            None => writer.add_create(path, data, &persistent(self.rights))?,
            Some(version) => writer.add_set_data(path, data, Some(version))?,
        }
        writer.commit().await?;
        Ok(())
    }
}

fn job_path(id: u64) -> String {
    format!("{}/{id:016x}", path::JOBS)
}

/// Reads the jobs of the cluster, in their order. A record that cannot be read is left out.
///
/// # Errors
/// As coordination.
pub(super) async fn read_jobs(client: &Client) -> Result<Vec<JobRecord>, Refusal> {
    let names = client.list_children(path::JOBS).await?;
    let names = names.into_iter().take(JOBS_MAX + JOBS_ENDED_MAX);
    // All are asked for before the first answer is awaited.
    let paths: Vec<String> = names.map(|name| format!("{}/{name}", path::JOBS)).collect();
    let answers: Vec<_> = paths.iter().map(|path| (path, client.get_data(path))).collect();
    let mut jobs = Vec::with_capacity(answers.len());
    for (path, answer) in answers {
        let (data, stat) = match answer.await {
            Ok(found) => found,
            // It was forgotten meanwhile.
            Err(Error::NoNode) => continue,
            Err(error) => return Err(error.into()),
        };
        match read::<JobRecord>(path, &data) {
            Ok(record) => jobs.push(JobRecord { version: stat.version, ..record }),
            Err(error) => tracing::warn!("{error}: the job is left out"),
        }
    }
    jobs.sort_by_key(|job| job.number);
    Ok(jobs)
}

/// Returns how the master creates something.
fn persistent(rights: Rights) -> CreateOptions<'static> {
    rights.create(CreateMode::Persistent, Readers::Nodes)
}

pub(super) fn unknown(node: &str) -> Refusal {
    let message = format!("no node {node} in this cluster: `millrace admin nodes` lists them");
    Refusal::new(Status::NotFound, message)
}

/// Returns the mounts after a change.
pub(super) fn changed(
    mounts: &[Mount],
    mount: &Mount,
    remove: bool,
) -> Result<Vec<Mount>, Refusal> {
    let refuse = |message: String| Err(Refusal::new(Status::InvalidArgument, message));
    let mut mounts = mounts.to_vec();
    let place = mounts.iter().position(|other| other.prefix == mount.prefix);
    if remove {
        let Some(place) = place else {
            let message = format!("nothing is mounted at '/{}'", mount.prefix);
            return Err(Refusal::new(Status::NotFound, message));
        };
        mounts.remove(place);
        return Ok(mounts);
    }
    if let Err(error) = check_path(&mount.prefix) {
        return refuse(format!("'{}' cannot be mounted at: {error}", mount.prefix));
    }
    if !(1..=REPLICAS_MAX).contains(&mount.replicas) {
        return refuse(format!("{} replicas: 1 to {REPLICAS_MAX} are possible", mount.replicas));
    }
    let mut mount = mount.clone();
    let (source, terms) = match Terms::split(&mount.source) {
        Ok(parts) => parts,
        Err(error) => return refuse(format!("'{}' cannot be mounted: {error}", mount.source)),
    };
    if !source.starts_with("file:///") {
        match normal(source) {
            Ok(source) => mount.source = terms.join(&source),
            Err(error) => return refuse(format!("'{}' cannot be mounted: {error}", mount.source)),
        }
    }
    if mount.source.len() > SOURCE_LENGTH_MAX {
        return refuse(format!("the name of a source has at most {SOURCE_LENGTH_MAX} bytes"));
    }
    match place {
        Some(place) => mounts[place] = mount,
        None if mounts.len() >= MOUNTS_MAX => {
            return refuse(format!("{MOUNTS_MAX} mounts are as many as there can be"));
        }
        None => mounts.push(mount),
    }
    let size: usize = mounts.iter().map(|it| it.prefix.len() + it.source.len() + 32).sum();
    if size > millrace_proto::cluster::MOUNTS_BYTES_MAX {
        return refuse("the prefixes and sources of all mounts together are too long".to_owned());
    }
    mounts.sort_by(|first, second| first.prefix.cmp(&second.prefix));
    Ok(mounts)
}

/// Returns the pins after a change; None if they stay as they are.
pub(super) fn changed_pins(
    pins: &[String],
    path: &str,
    undo: bool,
) -> Result<Option<Vec<String>>, Refusal> {
    if let Err(error) = check_path(path) {
        let message = format!("'{path}' cannot be pinned: {error}");
        return Err(Refusal::new(error.status(), message));
    }
    let mut pins = pins.to_vec();
    match (pins.binary_search_by(|pin| pin.as_str().cmp(path)), undo) {
        (Ok(place), true) => drop(pins.remove(place)),
        (Err(_), true) => {
            let message = format!("'/{path}' is not pinned: `millrace admin pins` lists what is");
            return Err(Refusal::new(Status::NotFound, message));
        }
        (Ok(_), false) => return Ok(None),
        (Err(_), false) if pins.len() >= PINS_MAX => {
            let message = format!("{PINS_MAX} pins are as many as there can be");
            return Err(Refusal::new(Status::InvalidArgument, message));
        }
        (Err(place), false) => pins.insert(place, path.to_owned()),
    }
    if pins_size(&pins) > PINS_BYTES_MAX {
        let message = "the paths of all pins together are too long: pin a directory above them";
        return Err(Refusal::new(Status::InvalidArgument, message));
    }
    Ok(Some(pins))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(prefix: &str, source: &str) -> Mount {
        Mount { prefix: prefix.into(), source: source.into(), replicas: 1 }
    }

    #[test]
    fn mounts_are_added_changed_and_removed() {
        let root = mount("", "file:///a");
        let mounts = changed(&[], &root, false).unwrap();
        let two = changed(&mounts, &mount("data/x", "file:///b"), false).unwrap();
        assert_eq!(two.len(), 2);
        let replaced = changed(&two, &mount("", "file:///c"), false).unwrap();
        assert_eq!(replaced[0].source, "file:///c");
        assert_eq!(changed(&two, &root, true).unwrap(), [mount("data/x", "file:///b")]);
        assert_eq!(changed(&mounts, &mount("b", ""), true).unwrap_err().status, Status::NotFound);
    }

    #[test]
    fn mounts_that_cannot_be_are_refused() {
        let bad = [
            mount("/a", "file:///a"),
            mount("a/../b", "file:///a"),
            mount("a", "s3:bucket"),
            mount("a", "https://me:secret@host"),
            mount("a", "s3://box?colour=red"),
            mount("a", "file://relative"),
            Mount { replicas: 0, ..mount("a", "file:///a") },
            Mount { replicas: 9, ..mount("a", "file:///a") },
        ];
        for mount in bad {
            let refused = changed(&[], &mount, false);
            assert_eq!(refused.unwrap_err().status, Status::InvalidArgument, "{mount:?}");
        }
        let full: Vec<_> =
            (0..MOUNTS_MAX).map(|it| mount(&format!("m{it}"), "file:///a")).collect();
        assert!(changed(&full, &mount("one-more", "file:///a"), false).is_err());
        assert!(changed(&full, &mount("m1", "file:///b"), false).is_ok());
    }

    #[test]
    fn pins_are_sorted_and_each_is_there_once() {
        let change = |pins: &[&str], path, undo| {
            let pins: Vec<String> = pins.iter().map(|pin| (*pin).to_owned()).collect();
            changed_pins(&pins, path, undo).map(Option::unwrap_or_default)
        };
        assert_eq!(change(&["a", "c"], "b", false).unwrap(), ["a", "b", "c"]);
        assert_eq!(change(&["a"], "", false).unwrap(), ["", "a"]);
        assert!(change(&["a"], "a", false).unwrap().is_empty(), "nothing to write");
        assert_eq!(change(&["a", "c"], "a", true).unwrap(), ["c"]);
        let refused = |result: Result<Vec<String>, Refusal>| result.unwrap_err().status;
        assert_eq!(refused(change(&["a"], "a/b", true)), Status::NotFound);
        assert_eq!(refused(change(&[], "/a", false)), Status::PermissionDenied);
        assert_eq!(refused(change(&[], "a/../b", false)), Status::PermissionDenied);
        assert_eq!(refused(change(&[], "a//b", false)), Status::InvalidArgument);
        let long: Vec<String> = (0..6).map(|it| format!("{it:04000}")).collect();
        let refusal = changed_pins(&long, &format!("{:04000}", 6), false).unwrap_err();
        assert!(refusal.message.contains("too long"), "{}", refusal.message);
        let full: Vec<String> = (0..PINS_MAX).map(|it| format!("p{it:02}")).collect();
        let refusal = changed_pins(&full, "x", false).unwrap_err();
        assert_eq!(refusal.status, Status::InvalidArgument);
        assert!(changed_pins(&full, "p01", false).unwrap().is_none());
    }
}
