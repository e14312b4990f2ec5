//! The process and its machine, as `envi` and `mntr` show them.
//!
//! The one part of `report` that looks for itself: [`Process::look`] asks the system; what it does
//! not tell is empty or 0.

/// What is known of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    pub host_name: String,
    pub system_name: String,
    pub system_version: String,
    pub architecture: String,
    pub user_name: String,
    pub home: String,
    pub directory: String,
    /// Open descriptors.
    pub file_count: u64,
    /// Most descriptors there may be.
    pub file_count_max: u64,
    /// Memory in use.
    pub resident_bytes: u64,
    /// Memory of the machine.
    pub machine_bytes: u64,
}

impl Process {
    /// Asks the system. Takes time with the number of open files: not for each request.
    pub fn look() -> Process {
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let variable = |name| std::env::var(name).unwrap_or_default();
        let directory = std::env::current_dir().unwrap_or_default();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let page_size = rustix::param::page_size() as u64;
        let memory = rustix::system::sysinfo();
        Process {
            host_name: text(system.nodename()),
            system_name: text(system.sysname()),
            system_version: text(system.release()),
            architecture: text(system.machine()),
            user_name: variable("USER"),
            home: variable("HOME"),
            directory: directory.display().to_string(),
            file_count: std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            file_count_max: files.current.unwrap_or(0),
            resident_bytes: resident_pages().unwrap_or(0) * page_size,
            machine_bytes: (memory.totalram as u64).saturating_mul(u64::from(memory.mem_unit)),
        }
    }
}

/// Reads the pages of memory in use: the second number of `statm`.
fn resident_pages() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}
