//! Files: identity, whole-slot writes, syncs, and the kind of file system.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat;
use nix::sys::statfs::{FsType, statfs};

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    /// Whether it is the inode of this device, as the kernel's tables name it.
    pub(crate) fn is(self, (major, minor): (u64, u64), ino: u64) -> bool {
        (stat::major(self.dev), stat::minor(self.dev), self.ino) == (major, minor, ino)
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }
}

/// Returns which file is open.
pub(crate) fn identity(fd: impl AsFd) -> io::Result<Identity> {
    let found = stat::fstat(fd)?;
    Ok(Identity { dev: found.st_dev, ino: found.st_ino })
}

/// Returns which file is at the path, not following a symbolic link; `None` if there is none.
pub(crate) fn identity_at(path: &Path) -> io::Result<Option<Identity>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(Identity::from(&metadata))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a file of ours for reading and writing, and creates it if it is not there. A symbolic link is refused.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    // std opens with O_CLOEXEC.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).write(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path)
}

/// Reads the file's first `limit` bytes, or all if it is shorter, wherever its position is.
pub(crate) fn read_head(file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let mut filled = 0;
    while filled < limit {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Writes at an offset: one pwrite(2), except on a file system that writes less than it was given.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// Makes the file's bytes durable (fdatasync(2)).
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Makes everything on the directory's file system durable, whoever wrote it, see syncfs(2).
pub(crate) fn sync_file_system(dir: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(dir)?)?)
}

/// Makes a new file durable: its bytes, its size, and its name in the directory.
pub(crate) fn sync_new(file: &File, dir: &Path) -> io::Result<()> {
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Marks the descriptor as closed by exec.
pub(crate) fn set_cloexec(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Lets the descriptor pass through exec.
pub(crate) fn clear_cloexec(fd: BorrowedFd<'_>) {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("the descriptor is open");
}

/// Whether the descriptor was opened for reading and writing.
pub(crate) fn is_read_write(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

/// Returns the name of the network file system that the path is on; `None` for every other kind.
pub fn network_kind_of(path: &Path) -> io::Result<Option<&'static str>> {
    let FsType(magic) = statfs(path)?.filesystem_type();
    Ok(network_kind(magic))
}

/// Returns the name of a network or cluster file system by its number in statfs(2).
///
/// Only those that are known to be shared between machines: FUSE may be anything.
fn network_kind(magic: i64) -> Option<&'static str> {
    // Some kernels give the number sign-extended.
    Some(match magic & 0xffff_ffff {
        0x6969 => "nfs",
        0x517b => "smb",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x00c3_6400 => "ceph",
        0x0102_1997 => "9p",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x564c => "ncp",
        0x0bd0_0bd0 => "lustre",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "beegfs",
        0x2003_0528 => "orangefs",
        0xaad7_aaea => "panfs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn network_and_cluster_file_systems_are_told_by_their_numbers() {
        let shared = [
            (0x6969, "nfs"),
            (0x517b, "smb"),
            (0xff53_4d42, "cifs"),
            (0xfe53_4d42, "smb2"),
            (0x00c3_6400, "ceph"),
            (0x0102_1997, "9p"),
            (0x5346_414f, "afs"),
            (0x6b41_4653, "afs"),
            (0x0bd0_0bd0, "lustre"),
            (0x0116_1970, "gfs2"),
            (0x7461_636f, "ocfs2"),
        ];
        for (magic, kind) in shared {
            assert_eq!(network_kind(magic), Some(kind), "{magic:#x}");
        }
        assert_eq!(network_kind(i64::from(0xff53_4d42_u32.cast_signed())), Some("cifs"), "sign-extended");
    }

    #[test]
    fn local_and_ambiguous_file_systems_are_allowed() {
        let (ext4, xfs, btrfs, tmpfs) = (0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994);
        let (overlay, zfs, f2fs, bcachefs, fuse) =
            (0x794c_7630, 0x2fc1_2fc1, 0xf2f5_2010, 0xca45_1a4e, 0x6573_5546);
        for magic in [ext4, xfs, btrfs, tmpfs, overlay, zfs, f2fs, bcachefs, fuse] {
            assert_eq!(network_kind(magic), None, "{magic:#x}");
        }
    }

    #[test]
    fn the_head_of_a_short_file_is_all_of_it() {
        let file = tempfile::tempfile().unwrap();
        write_at(&file, b"abc", 0).unwrap();
        assert_eq!(read_head(&file, 10).unwrap(), b"abc");
        assert_eq!(read_head(&file, 2).unwrap(), b"ab");
    }
}
