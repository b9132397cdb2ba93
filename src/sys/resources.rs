//! What a process or a file system has left.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, eaccess};

/// What is left on a file system for who is not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In bytes.
    pub free: u64,
    /// The whole, in bytes.
    pub size: u64,
    /// How many more files fit; none where the file system does not count them.
    pub files: Option<u64>,
    /// Whether nothing may be written at all.
    pub read_only: bool,
}

/// Returns what is left on the file system that a path is on.
///
/// # Errors
///
/// What statvfs(3) returns.
pub fn space(path: &Path) -> io::Result<Space> {
    let found = statvfs(path)?;
    let unit = found.fragment_size();
    Ok(Space {
        free: found.blocks_available().saturating_mul(unit),
        size: found.blocks().saturating_mul(unit),
        files: (found.files() > 0).then(|| found.files_available()),
        read_only: found.flags().contains(FsFlags::ST_RDONLY),
    })
}

/// The descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// How many are open; none where this process may not look.
    pub open: Option<u64>,
    /// RLIMIT_NOFILE, the soft limit.
    pub limit: u64,
}

/// Returns the descriptors of the process with this pid.
///
/// # Errors
///
/// There is no such process, or its limits cannot be read.
pub fn descriptors_of(pid: u32) -> io::Result<Descriptors> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let limit = soft_limit(&limits).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/limits has no open files"))
    })?;
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|entries| entries.count() as u64);
    Ok(Descriptors { open, limit })
}

/// Returns how many descriptors this process, and what it starts, may have.
///
/// # Errors
///
/// What getrlimit(2) returns.
pub fn own_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Returns whether this process may write to a file, or make and rename files in a directory.
pub fn may_write(path: &Path) -> bool {
    let wanted = if path.is_dir() { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK };
    eaccess(path, wanted).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_limit_is_read_as_the_kernel_prints_it() {
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024     524288     files\n";
        assert_eq!(soft_limit(limits), Some(1024));
        assert_eq!(soft_limit("Max open files   unlimited unlimited files"), Some(u64::MAX));
        assert_eq!(soft_limit("Max processes 1 2"), None);
    }

    #[test]
    fn this_process_has_descriptors_and_its_disk_has_a_size() {
        let found = descriptors_of(std::process::id()).unwrap();
        assert_eq!(found.limit, own_limit().unwrap());
        assert!(found.open.unwrap() >= 3);
        let space = space(&std::env::temp_dir()).unwrap();
        assert!(space.size >= space.free && !space.read_only);
        assert!(may_write(&std::env::temp_dir()));
        assert!(!may_write(Path::new("/proc/version")) && !may_write(Path::new("/no/such")));
    }
}
