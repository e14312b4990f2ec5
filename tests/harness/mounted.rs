//! File systems that are made and mounted for a test, where the machine lets one do that.
//!
//! Owns images, loop devices and mounts; all are gone with their handle. What cannot be had here is an
//! error that says why, so that the test can skip its claim.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Why a file system cannot be had here.
pub type Missing = String;

/// Runs a program of the system to its end.
///
/// # Errors
/// It is not there, or failed; with what it wrote.
pub fn tool(program: &str, arguments: &[&str]) -> Result<String, Missing> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{program} {}: {}", arguments.join(" "), text(&output.stderr)))
}

/// Checks for the rights of root.
///
/// # Errors
/// This is another user.
pub fn needs_root() -> Result<(), Missing> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err("only root may mount".to_owned()),
    }
}

/// A file as a block device.
#[derive(Debug)]
pub struct Loop {
    device: String,
}

impl Loop {
    /// Makes a device of a file.
    ///
    /// # Errors
    /// There is no loop device to be had.
    pub fn of(file: &Path) -> Result<Loop, Missing> {
        needs_root()?;
        let device = tool("losetup", &["--find", "--show", text(file)])?;
        Ok(Loop { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(tool("losetup", &["--detach", &self.device]));
    }
}

/// A mount; also a place where another one can follow.
#[derive(Debug)]
pub struct MountPoint {
    point: PathBuf,
    is_mounted: bool,
}

impl MountPoint {
    /// Makes a directory at which nothing is mounted yet.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn at(point: PathBuf) -> MountPoint {
        std::fs::create_dir_all(&point).expect("make a mount point");
        MountPoint { point, is_mounted: false }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Mounts something.
    ///
    /// # Errors
    /// The kernel does not know the type, or refuses.
    pub fn mount(&mut self, what: &str, kind: &str, options: &str) -> Result<(), Missing> {
        needs_root()?;
        tool("mount", &["-t", kind, "-o", options, what, text(&self.point)])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Notes that something else has mounted here.
    pub fn was_mounted(&mut self) {
        self.is_mounted = true;
    }

    /// Unmounts it; it must not be in use.
    ///
    /// # Panics
    /// If it is in use.
    pub fn unmount(&mut self) {
        tool("umount", &[text(&self.point)]).expect("unmount what is in no use");
        self.is_mounted = false;
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.is_mounted {
            drop(tool("umount", &["--lazy", text(&self.point)]));
        }
    }
}

/// A file system on a loop device, in a directory of its own.
#[derive(Debug)]
pub struct Disk {
    // The fields are dropped in this order.
    /// Where it is mounted.
    pub point: MountPoint,
    device: Loop,
    kind: &'static str,
    _directory: TempDir,
}

impl Disk {
    /// Makes a file system of `size` and mounts it. `make` is its program with arguments, to which
    /// the device is added.
    ///
    /// # Errors
    /// A tool is missing, or the kernel does not know the type.
    pub fn make(kind: &'static str, size: u64, make: &[&str]) -> Result<Disk, Missing> {
        needs_root()?;
        let directory = scratch();
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(size).map_err(|error| error.to_string())?;
        let mut arguments = make[1..].to_vec();
        arguments.push(text(&image));
        tool(make[0], &arguments)?;
        let device = Loop::of(&image)?;
        let point = MountPoint::at(directory.path().join("mounted"));
        let mut disk = Disk { point, device, kind, _directory: directory };
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts it again after it was unmounted.
    ///
    /// # Errors
    /// The kernel does not know the type, or refuses.
    pub fn mount(&mut self) -> Result<(), Missing> {
        self.point.mount(&self.device.device, self.kind, "rw")
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        self.point.path()
    }
}

/// Makes a directory for images and mount points, on the disk.
///
/// # Panics
/// If there is no room for one.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("millrace-fs-").tempdir_in("/var/tmp").expect("a directory")
}

/// Returns a path of these tests as text.
///
/// # Panics
/// If it is not UTF-8, which no path here is.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
