//! Which processors threads run on.

use std::io;

use rustix::thread::CpuSet;

/// Confines the calling thread, and those it starts, to these processors.
///
/// # Errors
/// As `sched_setaffinity`: a processor this process may not use.
pub(crate) fn confine(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(())
}
