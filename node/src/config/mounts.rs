//! The options of single mounts: `PREFIX=OPTION`, joined by commas.

use std::fmt;

use millrace_client::source::DeviceRule;

use crate::store::check_path;

/// The name of the root, whose prefix is empty.
const ROOT: &str = "/";

/// What goes for a mount beyond what the type of its file system says; see `docs/SOURCES.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountOption {
    /// Blocks that are read again are compared with what they were.
    Content,
    /// The device, or the mount, is part of each version.
    Device,
    /// It never is: all nodes see the same, and another content has another path.
    Shared,
    /// Clients may write there.
    Writable,
    /// What clients write there is kept in memory.
    CacheOnWrite,
}

impl MountOption {
    const ALL: [MountOption; 5] = [
        MountOption::Content,
        MountOption::Device,
        MountOption::Shared,
        MountOption::Writable,
        MountOption::CacheOnWrite,
    ];

    fn name(self) -> &'static str {
        match self {
            MountOption::Content => "content",
            MountOption::Device => "device",
            MountOption::Shared => "shared",
            MountOption::Writable => "writable",
            MountOption::CacheOnWrite => "cache-on-write",
        }
    }
}

/// The options of mounts, by their prefixes. Options of mounts that are not there wait for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions(Vec<(String, MountOption)>);

impl MountOptions {
    /// Reads options such as `/=content,models=shared`; `/` is the root. An empty text has no options.
    pub fn parse(text: &str) -> Option<MountOptions> {
        let mut options = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (prefix, name) = part.trim().rsplit_once('=')?;
            let prefix = if prefix == ROOT { "" } else { prefix };
            if prefix.is_empty() != part.trim().starts_with('/') || check_path(prefix).is_err() {
                return None;
            }
            let option = MountOption::ALL.into_iter().find(|it| it.name() == name)?;
            options.push((prefix.to_owned(), option));
        }
        let options = MountOptions(options);
        let is_both = |(prefix, _): &(String, MountOption)| {
            options.has(prefix, MountOption::Device) && options.has(prefix, MountOption::Shared)
        };
        if options.0.iter().any(is_both) { None } else { Some(options) }
    }

    fn has(&self, prefix: &str, option: MountOption) -> bool {
        self.0.iter().any(|(other, it)| other == prefix && *it == option)
    }

    /// Returns whether the file system of the mount with this prefix is part of versions.
    pub(crate) fn device_rule(&self, prefix: &str) -> DeviceRule {
        match prefix {
            _ if self.has(prefix, MountOption::Device) => DeviceRule::Always,
            _ if self.has(prefix, MountOption::Shared) => DeviceRule::Never,
            _ => DeviceRule::ByType,
        }
    }

    /// Adds that clients may write to the root.
    pub(crate) fn with_writable_root(mut self) -> MountOptions {
        self.0.push((String::new(), MountOption::Writable));
        self
    }

    /// True if clients may write to the mount with this prefix.
    pub(crate) fn is_writable(&self, prefix: &str) -> bool {
        self.has(prefix, MountOption::Writable)
    }

    /// True if what clients write to the mount with this prefix is kept in memory.
    pub(crate) fn caches_writes(&self, prefix: &str) -> bool {
        self.has(prefix, MountOption::CacheOnWrite)
    }

    /// True if blocks of any mount are compared with what they were.
    pub(crate) fn compares_any(&self) -> bool {
        self.0.iter().any(|(_, option)| *option == MountOption::Content)
    }

    /// True if blocks of the mount with this prefix are compared with what they were.
    pub(crate) fn compares_content(&self, prefix: &str) -> bool {
        self.has(prefix, MountOption::Content)
    }
}

impl fmt::Display for MountOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (prefix, option)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let prefix = if prefix.is_empty() { ROOT } else { prefix };
            write!(out, "{comma}{prefix}={}", option.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_for_the_mount_with_their_prefix() {
        let options = MountOptions::parse("/=content,a/b=shared,a/b=content,c=device").unwrap();
        assert_eq!(options.to_string(), "/=content,a/b=shared,a/b=content,c=device");
        let all = ["", "a/b", "c", "a"];
        assert_eq!(all.map(|it| options.compares_content(it)), [true, true, false, false]);
        let rules = all.map(|it| options.device_rule(it));
        use DeviceRule::{Always, ByType, Never};
        assert_eq!(rules, [ByType, Never, Always, ByType]);
    }

    #[test]
    fn a_mount_is_writable_if_its_own_option_says_so() {
        let options = MountOptions::parse("a=writable").unwrap();
        let is_writable = ["", "a", "a/b"].map(|it| options.is_writable(it));
        assert_eq!(is_writable, [false, true, false]);
        assert!(options.with_writable_root().is_writable(""));
        let options = MountOptions::parse("a=writable,a=cache-on-write").unwrap();
        assert_eq!(["", "a"].map(|it| options.caches_writes(it)), [false, true]);
        assert_eq!(options.to_string(), "a=writable,a=cache-on-write");
    }

    #[test]
    fn what_is_no_option_is_refused() {
        assert_eq!(MountOptions::parse(""), Some(MountOptions::default()));
        let refused = [
            "content",
            "=content",
            "a=",
            "a=contents",
            "/a=content",
            "a/=content",
            "a=shared,",
            "../a=shared",
        ];
        for text in refused {
            assert_eq!(MountOptions::parse(text), None, "{text}");
        }
        assert_eq!(MountOptions::parse("a=device,a=shared"), None, "one of them");
    }
}
