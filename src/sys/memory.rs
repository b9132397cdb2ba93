//! A file in memory, which the processes that inherit its descriptor share: memfd_create(2).

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// The most that [`read`] takes in.
const MAX: usize = 64 << 20;

/// Makes a file in memory, close-on-exec, with this content. The name shows in `/proc/PID/fd`.
///
/// # Errors
///
/// EMFILE, ENOMEM.
pub fn create(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    write(File::from(fd), content).map(OwnedFd::from)
}

/// Replaces the content, for everybody who has the file.
///
/// # Errors
///
/// EBADF for what is not open for writing, ENOMEM.
pub fn replace(fd: BorrowedFd<'_>, content: &[u8]) -> io::Result<()> {
    write(File::from(fd.try_clone_to_owned()?), content).map(drop)
}

/// Whoever reads in between finds the old content with the end of the new one cut off or not yet there, and no JSON.
fn write(file: File, content: &[u8]) -> io::Result<File> {
    file.set_len(content.len() as u64)?;
    file.write_all_at(content, 0)?;
    Ok(file)
}

/// Reads the content; where others stand in the file does not matter, and does not change.
///
/// # Errors
///
/// `FileTooLarge`, and those of pread(2).
pub fn read(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let file = File::from(fd.try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).ok().filter(|length| *length <= MAX);
    let mut content = vec![0; length.ok_or(io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_one_copy_writes_another_reads() {
        let fd = create("test", b"a longer text").unwrap();
        let copy = fd.try_clone().unwrap();
        assert_eq!(read(copy.as_fd()).unwrap(), b"a longer text");
        replace(copy.as_fd(), b"short").unwrap();
        assert_eq!(read(fd.as_fd()).unwrap(), b"short");
    }
}
