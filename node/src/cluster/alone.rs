//! A cluster of one node, without a coordination service: the node itself is its master.
//!
//! Owns what is mounted and pinned, and the load jobs, and keeps them in the data directory, if there is
//! one. Nothing listens anywhere: changes come by the node's own requests. Always holds: a change is kept
//! before it is published; the epoch grows with each change and each start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_proto::Status;
use millrace_proto::cluster::Mount;
use millrace_proto::layout::Layout;
use serde::{Deserialize, Serialize};

use super::identity::{self, Identity};
use super::job::{JobChange, JobCommand, JobRecord, changed_jobs, unix_ms};
use super::master::{Command, changed, changed_pins};
use super::record::{MemberRecord, MountRecord, PinsRecord, read, write};
use super::refusal::Refusal;
use super::session::{Handle, Request};
use super::{View, Views};
use crate::store::mounts::Mounts;

/// Name of the file in the data directory.
const FILE: &str = "cluster.json";
/// Name of the file there with the load jobs. They change often, and are no part of an epoch.
const JOBS_FILE: &str = "jobs.json";
/// What becomes of it where it cannot be read.
const BROKEN_JOBS_FILE: &str = "jobs.json.broken";
/// Where earlier versions kept the same.
const FILE_BEFORE: &str = "coord";

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct AloneRecord {
    epoch: u64,
    /// The source that the configuration named when the root was mounted.
    source: String,
    mounts: Vec<MountRecord>,
    pins: Vec<String>,
}

/// What it needs.
pub(crate) struct AloneSettings {
    pub identity: Identity,
    /// What clients learn of this node.
    pub record: MemberRecord,
    /// What is mounted at first.
    pub source: Option<String>,
    /// Directory for what survives a restart; empty for none.
    pub data: PathBuf,
    pub views: Arc<Views>,
    pub mounts: Arc<Mounts>,
}

/// The task that answers for the cluster.
pub(crate) struct Alone {
    settings: AloneSettings,
    kept: AloneRecord,
    jobs: Vec<JobRecord>,
    begin: flume::Receiver<()>,
    requests: flume::Receiver<Request>,
    joined: flume::Sender<Result<(), String>>,
    leave: flume::Receiver<flume::Sender<()>>,
}

impl Alone {
    /// Makes the task and its handle. [`Alone::run`] has to be awaited.
    pub(crate) fn new(settings: AloneSettings) -> (Alone, Handle) {
        let (request_sender, requests) = flume::bounded(64);
        let (joined_sender, joined) = flume::bounded(1);
        let (leave_sender, leave) = flume::bounded(1);
        let (begin_sender, begin) = flume::bounded(1);
        let (kept, jobs) = (AloneRecord::default(), Vec::new());
        let alone = Alone { settings, kept, jobs, begin, requests, joined: joined_sender, leave };
        let handle =
            Handle { begin: begin_sender, requests: request_sender, joined, leave: leave_sender };
        (alone, handle)
    }

    /// Answers until the node leaves.
    pub(crate) async fn run(mut self) {
        if self.begin.recv_async().await.is_err() {
            return;
        }
        let begun = self.begin();
        let is_begun = begun.is_ok();
        // The caller may have given up on the node.
        let _ = self.joined.send(begun);
        if !is_begun {
            return;
        }
        loop {
            tokio::select! {
                Ok(done) = self.leave.recv_async() => {
                    self.settings.views.send_modify(|view| {
                        *view = Arc::new(View { is_over: true, ..view.with("", true) });
                    });
                    let _ = done.send(());
                    return;
                }
                Ok(request) = self.requests.recv_async() => match request {
                    // The caller may have gone.
                    Request::Command { command, reply } => drop(reply.send(self.carry_out(&command).await)),
                    Request::Jobs { reply } => drop(reply.send(Ok(self.jobs.clone()))),
                },
                else => return,
            }
        }
    }

    /// Takes up what was kept, and mounts the source where nothing is mounted yet.
    fn begin(&mut self) -> Result<(), String> {
        let kept = self.load()?;
        self.jobs = self.load_jobs();
        let source = self.settings.source.clone().unwrap_or_default();
        let mut mounts: Vec<Mount> = kept.mounts.iter().map(MountRecord::mount).collect();
        let root = mounts.iter_mut().find(|mount| mount.prefix.is_empty());
        match root {
            // The configuration named this source, and names another one now.
            Some(root) if root.source == kept.source => root.source.clone_from(&source),
            None if kept.epoch == 0 && !source.is_empty() => {
                mounts.push(Mount { prefix: String::new(), source: source.clone(), replicas: 1 })
            }
            _ => (),
        }
        let mounts = mounts.iter().map(MountRecord::from).collect();
        let pins = PinsRecord { pins: kept.pins }.pins();
        let id = match self.settings.identity.cluster() {
            "" => identity::random(),
            id => id.to_owned(),
        };
        let noted = self.settings.identity.join(&id);
        noted.map_err(|error| format!("note the cluster in the data directory: {error}"))?;
        self.change(AloneRecord { epoch: kept.epoch, source, mounts, pins })
            .map_err(|error| format!("keep what is mounted in the data directory: {error}"))
    }

    fn load(&self) -> Result<AloneRecord, String> {
        let data = &self.settings.data;
        if data.as_os_str().is_empty() {
            return Ok(AloneRecord::default());
        }
        let path = data.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => read(&path.display().to_string(), &bytes).map_err(|error| {
                format!("{error}. Restore it, or remove it to begin without mounts and pins")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if data.join(FILE_BEFORE).exists() {
                    tracing::warn!(
                        "{} is of an earlier version and is not read: mount and pin again what was",
                        data.join(FILE_BEFORE).display()
                    );
                }
                Ok(AloneRecord::default())
            }
            Err(error) => Err(format!("read {}: {error}", path.display())),
        }
    }

    /// Returns the jobs that were kept. What cannot be read is moved aside, because a node without its load jobs is
    /// worth more than none.
    fn load_jobs(&self) -> Vec<JobRecord> {
        let path = self.settings.data.join(JOBS_FILE);
        if self.settings.data.as_os_str().is_empty() {
            return Vec::new();
        }
        let name = path.display().to_string();
        let error = match fs::read(&path) {
            Ok(bytes) => match read(&name, &bytes) {
                Ok(jobs) => return jobs,
                Err(error) => error,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => format!("read {name}: {error}"),
        };
        let aside = self.settings.data.join(BROKEN_JOBS_FILE);
        let moved = match fs::rename(&path, &aside) {
            Ok(()) => format!("it is now {}", aside.display()),
            Err(error) => format!("it stays until a job is started ({error})"),
        };
        tracing::warn!(
            "{error}. The node begins without load jobs; {moved}. Start again those that were under way"
        );
        Vec::new()
    }

    async fn change_job(&mut self, command: &JobCommand) -> Result<(), Refusal> {
        let JobChange { write: new, forget } = changed_jobs(&self.jobs, command, unix_ms())?;
        let Some((record, _)) = new else { return Ok(()) };
        let version = record.version + 1;
        let others = self.jobs.iter().filter(|job| job.spec.id != record.spec.id);
        let mut jobs: Vec<_> =
            others.filter(|job| !forget.contains(&job.spec.id)).cloned().collect();
        jobs.push(JobRecord { version, ..record });
        jobs.sort_by_key(|job| job.number);
        if !self.settings.data.as_os_str().is_empty() {
            let (data, bytes) = (self.settings.data.clone(), write(&jobs));
            // A job is recorded every second, and this thread has more to do than to wait for a disk.
            let saved = tokio::task::spawn_blocking(move || save(&data, JOBS_FILE, &bytes)).await;
            saved.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(not_kept)?;
        }
        self.jobs = jobs;
        Ok(())
    }

    /// Keeps a new state, as the next epoch, and publishes it.
    fn change(&mut self, kept: AloneRecord) -> io::Result<()> {
        let kept = AloneRecord { epoch: kept.epoch + 1, ..kept };
        if !self.settings.data.as_os_str().is_empty() {
            save(&self.settings.data, FILE, &write(&kept))?;
        }
        self.kept = kept;
        let AloneSettings { identity, record, views, mounts, .. } = &self.settings;
        let all = self.kept.mounts.iter().map(MountRecord::mount).collect();
        let members = vec![record.member(false)];
        let layout = Layout::new(identity.cluster().to_owned(), self.kept.epoch, all, members);
        let mut view = View::new(layout, identity.id());
        view.pins.clone_from(&self.kept.pins);
        view.master = identity.id().to_owned();
        view.joined_at = 1;
        if view.layout.mounts != views.borrow().layout.mounts || views.borrow().layout.epoch == 0 {
            mounts.set(view.layout.mounts.clone());
        }
        views.send_replace(Arc::new(view));
        Ok(())
    }

    async fn carry_out(&mut self, command: &Command) -> Result<(), Refusal> {
        let me = self.settings.identity.id();
        let mut kept = self.kept.clone();
        match command {
            // There is no other member to ask.
            Command::Report(_) | Command::Drain { undo: true, .. } => return Ok(()),
            Command::Drain { node, .. } if node == me => {
                let message = format!("{node} is the last active node: add another one first");
                return Err(Refusal::new(Status::InvalidArgument, message));
            }
            Command::Drain { node, .. } => return Err(super::master::unknown(node)),
            Command::Job(command) => return self.change_job(command).await,
            Command::Mount { mount, remove } => {
                if !remove {
                    self.settings.mounts.admit(&mount.source)?;
                }
                let mounts: Vec<Mount> = kept.mounts.iter().map(MountRecord::mount).collect();
                let mounts = changed(&mounts, mount, *remove)?;
                kept.mounts = mounts.iter().map(MountRecord::from).collect();
            }
            Command::Pin { path, undo } => match changed_pins(&kept.pins, path, *undo)? {
                Some(pins) => kept.pins = pins,
                None => return Ok(()),
            },
        }
        self.change(kept).map_err(not_kept)
    }
}

fn not_kept(error: io::Error) -> Refusal {
    Refusal::new(Status::Internal, format!("keep it in the data directory: {error}"))
}

/// Writes a file of the data directory: whole, or not at all.
fn save(data: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (path, new) = (data.join(name), data.join(format!("{name}.new")));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::job::{Cursor, JobSpec, Outcome};
    use crate::config::{Config, MountOptions};
    use crate::store::contents::Contents;
    use crate::store::machine::Machine;
    use crate::store::roots::MountRoots;

    fn alone(data: &Path, source: &str) -> Alone {
        let identity = Identity::open(data, "me").unwrap();
        let record = MemberRecord {
            id: "me".into(),
            secret: String::new(),
            run: "1".into(),
            weight: 64,
            zone: String::new(),
            address: "127.0.0.1:7070".into(),
            shards: vec!["127.0.0.1:7070".into()],
            local: Vec::new(),
            machine: String::new(),
            capacity: 1 << 20,
            server: String::new(),
            proof: String::new(),
        };
        let settings = AloneSettings {
            identity,
            record,
            source: Some(source.to_owned()),
            data: data.to_owned(),
            views: Arc::new(Views::new(Arc::default())),
            mounts: Arc::new(Mounts::new(
                Arc::new(Machine::start(&Config::tiny(PathBuf::new())).unwrap()),
                MountRoots::new(["/a", "/b"].map(Path::new)),
                MountOptions::default(),
                Contents::new(0, 1 << 20),
            )),
        };
        Alone::new(settings).0
    }

    fn begun(data: &Path, source: &str) -> Alone {
        let mut alone = alone(data, source);
        alone.begin().unwrap();
        alone
    }

    fn done(alone: &mut Alone, command: &Command) -> Result<(), Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(alone.carry_out(command))
    }

    fn view(alone: &Alone) -> Arc<View> {
        Arc::clone(&alone.settings.views.borrow())
    }

    fn mount(prefix: &str, source: &str) -> Command {
        let mount = Mount { prefix: prefix.into(), source: source.into(), replicas: 1 };
        Command::Mount { mount, remove: false }
    }

    #[test]
    fn what_is_mounted_and_pinned_survives_a_restart_in_a_later_epoch() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = begun(directory.path(), "file:///a");
        done(&mut first, &mount("x", "file:///b/x")).unwrap();
        done(&mut first, &Command::Pin { path: "x/hot".into(), undo: false }).unwrap();
        let before = view(&first);
        assert_eq!(
            (before.layout.epoch, before.master.as_str(), before.is_fenced),
            (3, "me", false)
        );
        drop(first);
        let after = view(&begun(directory.path(), "file:///a"));
        assert_eq!((&after.layout.mounts, &after.pins), (&before.layout.mounts, &before.pins));
        assert_eq!(
            (after.layout.cluster.as_str(), after.layout.epoch),
            (before.layout.cluster.as_str(), 4)
        );
        // Another source in the configuration takes the place of the one before.
        let moved = view(&begun(directory.path(), "file:///b"));
        let sources: Vec<_> =
            moved.layout.mounts.iter().map(|mount| mount.source.as_str()).collect();
        assert_eq!(sources, ["file:///b", "file:///b/x"]);
    }

    #[test]
    fn jobs_survive_a_restart_with_what_was_recorded_last() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = begun(directory.path(), "file:///a");
        let epoch = view(&first).layout.epoch;
        let spec = JobSpec { id: 7, paths: vec!["x".into()], ..JobSpec::default() };
        done(&mut first, &Command::Job(JobCommand::Start(spec))).unwrap();
        let mut record = first.jobs[0].clone();
        let loaded = Outcome::Loaded { bytes: 9, blocks: 1, filled: 1 };
        record.count(loaded, Cursor { paths_done: 1, levels: Vec::new() });
        let command = Command::Job(JobCommand::Record(Box::new(record)));
        done(&mut first, &command).unwrap();
        assert_eq!(
            done(&mut first, &command).unwrap_err().status,
            Status::Busy,
            "it is an old one now"
        );
        assert_eq!(view(&first).layout.epoch, epoch, "clients hear nothing of it");
        drop(first);
        let mut second = begun(directory.path(), "file:///a");
        let job = &second.jobs[0];
        assert_eq!((job.file_count, job.total_bytes, job.cursor.paths_done), (1, 9, 1));
        done(&mut second, &Command::Job(JobCommand::Cancel(7))).unwrap();
        assert!(second.jobs[0].is_ended());
    }

    #[test]
    fn a_root_that_was_taken_away_or_chosen_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = begun(directory.path(), "file:///a");
        done(&mut first, &mount("", "file:///b")).unwrap();
        drop(first);
        let mut second = begun(directory.path(), "file:///a");
        assert_eq!(view(&second).layout.mounts[0].source, "file:///b");
        let mount = view(&second).layout.mounts[0].clone();
        done(&mut second, &Command::Mount { mount, remove: true }).unwrap();
        drop(second);
        assert!(view(&begun(directory.path(), "file:///a")).layout.mounts.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut alone = begun(Path::new(""), "file:///a");
        let epoch = view(&alone).layout.epoch;
        let drain = |node: &str| Command::Drain { node: node.into(), undo: false };
        let refused = [
            (mount("x", "file:///etc"), Status::PermissionDenied),
            (mount("x", "s3://bucket"), Status::PermissionDenied),
            (mount("x", "s3:bucket"), Status::InvalidArgument),
            (drain("me"), Status::InvalidArgument),
            (drain("other"), Status::NotFound),
            (Command::Pin { path: "x".into(), undo: true }, Status::NotFound),
        ];
        for (command, status) in refused {
            assert_eq!(done(&mut alone, &command).unwrap_err().status, status, "{command:?}");
        }
        assert_eq!(view(&alone).layout.epoch, epoch);
    }

    #[test]
    fn a_damaged_file_is_told_and_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        let told = alone(directory.path(), "file:///a").begin().unwrap_err();
        assert!(told.contains(FILE) && told.contains("Restore"), "{told}");
        assert_eq!(fs::read_to_string(directory.path().join(FILE)).unwrap(), "{");
    }

    #[test]
    fn damaged_load_jobs_are_moved_aside_and_the_node_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path(JOBS_FILE), "{").unwrap();
        let mut alone = begun(directory.path(), "file:///a");
        assert!(alone.jobs.is_empty());
        assert_eq!(fs::read_to_string(path(BROKEN_JOBS_FILE)).unwrap(), "{");
        let spec = JobSpec { id: 7, paths: vec!["x".into()], ..JobSpec::default() };
        done(&mut alone, &Command::Job(JobCommand::Start(spec))).unwrap();
        drop(alone);
        assert_eq!(begun(directory.path(), "file:///a").jobs.len(), 1, "others are kept as before");
        // Nothing of another kind in its place keeps the node from starting, either.
        fs::remove_file(path(JOBS_FILE)).unwrap();
        fs::remove_file(path(BROKEN_JOBS_FILE)).unwrap();
        fs::create_dir(path(JOBS_FILE)).unwrap();
        assert!(begun(directory.path(), "file:///a").jobs.is_empty());
    }
}
