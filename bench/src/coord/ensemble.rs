//! The replicas of one service: started here, each with a directory of its own on disk, and killed
//! on drop.
//!
//! Owns processes. A replica that was killed can be started again over the same data, on the same
//! ports. What is run, and with which settings, is left to [`super::system`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::CoordOptions;
use super::process::Memory;
use super::system::{Ports, Role, System};
use crate::machine;
use crate::rival;

/// Longest wait until all replicas serve. Measured: three JVMs on two busy cores need some 10 s.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest wait for a replica to say what it is.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two looks at replicas that do not serve yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longest answer of a replica that is read, in bytes; etcd sends all its metrics.
const ANSWER_MAX: u64 = 4 << 20;
/// Ports of replicas. They are below those that the kernel gives to clients (from 32768 on): else a
/// client that tries to reach a killed replica again and again can be given its port, and keep it.
const PORTS: Range<u16> = 20_000..32_000;
/// Draws until the search for free ports is given up.
const PORT_DRAWS_MAX: usize = 1000;

/// A service with its replicas.
pub(crate) struct Ensemble {
    system: System,
    options: CoordOptions,
    ports: Vec<Ports>,
    replicas: Vec<Replica>,
}

struct Replica {
    child: Child,
    /// The directory is removed when the process has gone.
    home: TempDir,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Replica {
    /// Ends the process as a power cut would, as far as one process can see.
    fn kill(&mut self) {
        // It fails only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ensemble {
    /// Starts `count` replicas and waits until all of them serve and one leads.
    ///
    /// # Errors
    /// If one ends, or does not serve in time, with the end of what it wrote.
    pub(crate) fn start(system: System, count: usize, options: &CoordOptions) -> Result<Ensemble> {
        System::check_replicas(count)?;
        let mut ensemble = Ensemble {
            system,
            options: options.clone(),
            ports: free_ports(count)?,
            replicas: Vec::with_capacity(count),
        };
        for index in 0..count {
            let home = tempfile::Builder::new()
                .prefix(&format!("millrace-bench-{}-", system.name()))
                .tempdir_in(&options.directory)
                .with_context(|| format!("write to {}", options.directory.display()))?;
            system.configure(home.path(), index, &ensemble.ports)?;
            let child = ensemble.spawn(index, &home)?;
            ensemble.replicas.push(Replica { child, home });
        }
        ensemble.wait_until_serving().with_context(|| format!("start {}", system.name()))?;
        Ok(ensemble)
    }

    fn spawn(&self, index: usize, home: &TempDir) -> Result<Child> {
        let run = || {
            let command = self.system.command(&self.options, home.path(), index, &self.ports)?;
            rival::spawn(command, home, None)
        };
        match self.options.server_cpu {
            Some(cpu) => machine::on_cpu(cpu, run),
            None => run(),
        }
    }

    /// Returns the service that runs.
    pub(crate) fn system(&self) -> System {
        self.system
    }

    /// Returns where clients connect, in the order of replicas.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|ports| ports.client).collect()
    }

    /// Returns the same with the leader last: a single connection then goes to a follower, as most do.
    ///
    /// # Errors
    /// If no replica leads.
    pub(crate) fn addresses_leader_last(&self) -> Result<Vec<SocketAddr>> {
        let mut addresses = self.addresses();
        let leader = addresses.remove(self.leader()?);
        addresses.push(leader);
        Ok(addresses)
    }

    /// Returns the processes of the replicas.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.replicas.iter().map(|replica| replica.child.id()).collect()
    }

    /// Returns the memory of all replicas together.
    ///
    /// # Errors
    /// If one has ended.
    pub(crate) fn memory(&self) -> Result<Memory> {
        self.pids()
            .into_iter()
            .try_fold(Memory::default(), |sum, pid| Ok(sum.plus(Memory::of(pid)?)))
    }

    /// Returns the replica that leads.
    ///
    /// # Errors
    /// If none does.
    pub(crate) fn leader(&self) -> Result<usize> {
        let mut roles = (0..self.ports.len()).map(|index| self.role(index));
        roles
            .position(|role| role == Some(Role::Leader))
            .with_context(|| format!("no replica of {} leads", self.system.name()))
    }

    /// Kills a replica at once.
    pub(crate) fn kill(&mut self, index: usize) {
        self.replicas[index].kill();
    }

    /// Starts a killed replica again over its data, and waits until all serve.
    ///
    /// # Errors
    /// As [`Ensemble::start`].
    pub(crate) fn restart(&mut self, index: usize) -> Result<()> {
        self.replicas[index].child = self.spawn(index, &self.replicas[index].home)?;
        self.wait_until_serving()
            .with_context(|| format!("start replica {} of {} again", index + 1, self.system.name()))
    }

    fn wait_until_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            for (index, replica) in self.replicas.iter_mut().enumerate() {
                if let Some(status) = replica.child.try_wait()? {
                    let words = rival::stderr_tail(&replica.home);
                    bail!("replica {} ended with {status}; {words}", index + 1);
                }
            }
            let roles: Vec<_> = (0..self.ports.len()).map(|index| self.role(index)).collect();
            let leaders = roles.iter().filter(|&&role| role == Some(Role::Leader)).count();
            if leaders == 1 && roles.iter().all(Option::is_some) {
                return Ok(());
            }
            let silent = roles.iter().position(Option::is_none).unwrap_or(0);
            ensure!(
                Instant::now() < deadline,
                "replica {} does not serve after {} s; {}",
                silent + 1,
                START_TIMEOUT.as_secs(),
                rival::stderr_tail(&self.replicas[silent].home)
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Returns the role that a replica reports; `None` if it reports nothing, or that it does not serve.
    fn role(&self, index: usize) -> Option<Role> {
        let mut stream =
            TcpStream::connect_timeout(&self.ports[index].client, QUESTION_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(QUESTION_TIMEOUT)).ok()?;
        stream.write_all(self.system.question()).ok()?;
        let mut answer = Vec::new();
        // A connection reset after the answer is not a reason to drop the answer.
        let _ = stream.take(ANSWER_MAX).read_to_end(&mut answer);
        Role::parse(self.system, &String::from_utf8_lossy(&answer))
    }
}

/// Finds ports of the loopback interface that were free a moment ago, all different.
fn free_ports(count: usize) -> Result<Vec<Ports>> {
    let mut listeners = Vec::with_capacity(3 * count);
    for _ in 0..PORT_DRAWS_MAX {
        let port = fastrand::u16(PORTS);
        // A port in use is drawn again; a port drawn twice is in use.
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            listeners.push(listener);
        }
        if listeners.len() == 3 * count {
            break;
        }
    }
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let (ports, _) = addresses.as_chunks::<3>();
    ensure!(ports.len() == count, "there are no free ports in {PORTS:?}");
    let ports = ports.iter();
    Ok(ports.map(|&[client, peer, election]| Ports { client, peer, election }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let ports = free_ports(3).unwrap();
        let mut all: Vec<SocketAddr> =
            ports.iter().flat_map(|ports| [ports.client, ports.peer, ports.election]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn a_program_that_ends_is_told_with_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("server");
        std::fs::write(&program, "#!/bin/sh\necho no such verb: $1 >&2\nexit 2\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let options = CoordOptions {
            program: Some(program),
            directory: directory.path().to_owned(),
            ..CoordOptions::default()
        };
        let error = Ensemble::start(System::Millrace, 1, &options).err().unwrap();
        assert!(format!("{error:#}").contains("no such verb: coord"), "{error:#}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "homes are removed");
    }
}
