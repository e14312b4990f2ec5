//! A neighbour whose part of the source hangs, as a dead NFS server does.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use millrace_proto::Op;
use millrace_proto::message::StatRequest;
use millrace_tests::peer::request;

use crate::street::{Busy, Street, neighbour};

/// Answer to `FUSE_INIT` of version 7.31, without its header: fuse.h, `fuse_init_out`.
const INIT_REPLY_LENGTH: usize = 64;

/// A file system that is mounted and answers nothing.
struct HungMount {
    path: PathBuf,
    /// When it is closed, every request that waits for the file system fails.
    server: Option<File>,
}

impl HungMount {
    /// Mounts the file system; None if that is not allowed.
    fn new(path: &Path) -> Option<HungMount> {
        std::fs::create_dir(path).expect("make a directory");
        let server = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        // The program that mounts gets it, because the kernel wants the number of one of its
        // descriptors.
        let inherited = rustix::io::dup(&server).ok()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&inherited);
        let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other");
        let mut command = Command::new("mount");
        command.args(["-i", "-n", "-t", "fuse", "-o", &options, "hung"]).arg(path);
        let output = command.output().ok()?;
        drop(inherited);
        if !output.status.success() {
            println!("not mounted: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let mut mount = HungMount { path: path.to_owned(), server: Some(server) };
        mount.greet().ok()?;
        Some(mount)
    }

    /// Answers the kernel's first request, so that the others are sent, and hang.
    fn greet(&mut self) -> std::io::Result<()> {
        let server = self.server.as_mut().expect("it is open");
        let mut request = vec![0; 1 << 20];
        let length = server.read(&mut request)?;
        assert!(length >= 40, "a request has a header");
        let unique = &request[8..16];
        let mut reply = Vec::new();
        reply.extend_from_slice(&(16 + INIT_REPLY_LENGTH as u32).to_le_bytes());
        reply.extend_from_slice(&0_u32.to_le_bytes());
        reply.extend_from_slice(unique);
        reply.extend_from_slice(&7_u32.to_le_bytes());
        reply.extend_from_slice(&31_u32.to_le_bytes());
        // How far to read ahead, flags, how much may wait, how much is written at once, and so on.
        reply.extend_from_slice(&(128_u32 << 10).to_le_bytes());
        reply.extend_from_slice(&0_u32.to_le_bytes());
        reply.extend_from_slice(&12_u16.to_le_bytes());
        reply.extend_from_slice(&9_u16.to_le_bytes());
        reply.extend_from_slice(&(128_u32 << 10).to_le_bytes());
        reply.extend_from_slice(&1_u32.to_le_bytes());
        reply.resize(16 + INIT_REPLY_LENGTH, 0);
        server.write_all(&reply)
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        drop(self.server.take());
        // The unmount is lazy, because the node may be in it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

#[test]
fn one_that_asks_for_files_of_a_mount_that_hangs() {
    let street = Street::new();
    let Some(_mount) = HungMount::new(&street.scratch.at("hung")) else {
        println!("skipped: no file system may be mounted here");
        return;
    };
    street.judge(|node| {
        let address = node.address();
        Box::new(Busy::start(1, move |_| {
            let mut peers: Vec<_> = (0..4).map(|_| neighbour(address)).collect();
            let mut count = 0_u32;
            Box::new(move || {
                for peer in &mut peers {
                    for _ in 0..16 {
                        count += 1;
                        let path = format!("hung/file{count}");
                        let stat = request(Op::Stat, 1, &StatRequest { path });
                        peer.stream.write_all(&stat)?;
                    }
                }
                // It does not matter here whether they are answered.
                std::thread::sleep(Duration::from_millis(200));
                peers = (0..4).map(|_| neighbour(address)).collect();
                Ok(())
            })
        }))
    });
}
