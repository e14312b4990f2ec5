//! The disks of the flash tier in one text: `DIR:SIZE`, joined by `:`, as a variable has them.

use std::path::PathBuf;

use millrace_ops::settings::LIST_SEPARATOR;
use millrace_ops::size::{format_size, parse_size};

use crate::flash::{DISKS_MAX, DiskSize};

/// Reads disks; None if a directory is not absolute, a size cannot be read, or a directory is named twice.
pub(super) fn disks_in(text: &str) -> Option<Vec<DiskSize>> {
    let parts: Vec<&str> = text.split(LIST_SEPARATOR).filter(|part| !part.is_empty()).collect();
    let disks: Option<Vec<DiskSize>> = parts
        .chunks(2)
        .map(|pair| {
            let [directory, size] = pair else { return None };
            let bytes = parse_size(size).ok().filter(|bytes| *bytes > 0)?;
            let directory = PathBuf::from(directory);
            directory.is_absolute().then_some(DiskSize { directory, bytes })
        })
        .collect();
    disks.filter(|disks| {
        let is_known = |place: usize| {
            disks[..place].iter().any(|disk| disk.directory == disks[place].directory)
        };
        disks.len() <= DISKS_MAX && !(0..disks.len()).any(is_known)
    })
}

/// Returns disks as they are read.
pub(super) fn format_disks(disks: &[DiskSize]) -> String {
    let one = |disk: &DiskSize| {
        format!("{}{LIST_SEPARATOR}{}", disk.directory.display(), format_size(disk.bytes))
    };
    disks.iter().map(one).collect::<Vec<_>>().join(&LIST_SEPARATOR.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_directories_with_sizes() {
        let disks = disks_in("/mnt/a:400GiB:/mnt/b:1TiB").unwrap();
        assert_eq!(disks[1], DiskSize { directory: "/mnt/b".into(), bytes: 1 << 40 });
        assert_eq!(format_disks(&disks), "/mnt/a:400GiB:/mnt/b:1TiB");
        assert_eq!(disks_in(""), Some(Vec::new()));
        for wrong in ["/mnt/a", "mnt:1GiB", "/mnt/a:x", "/mnt/a:0", "/a:1GiB:/a:1GiB", "/a:1GiB:/b"]
        {
            assert_eq!(disks_in(wrong), None, "{wrong}");
        }
        let many: String = (0..17).map(|disk| format!("/d{disk}:1GiB:")).collect();
        assert_eq!(disks_in(&many), None);
    }
}
