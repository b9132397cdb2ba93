//! A file in memory, which the processes that inherit its descriptor share: memfd_create(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{inherit, lock, socket};

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

/// Adopts the file that `NUMBER@DEVICE:INODE` names; `None` where that descriptor is closed, or is another file: then it is somebody else's, and stays open.
pub fn adopt_named(text: &str) -> Option<OwnedFd> {
    let (number, identity) = text.split_once('@')?;
    let fd = inherit::adopt(number.parse().ok()?).ok()?;
    let inode = socket::inode(fd.as_fd()).ok()?;
    if format!("{}:{}", inode.dev, inode.ino) != identity {
        let _ = fd.into_raw_fd();
        return None;
    }
    Some(fd)
}

/// Whoever reads in between finds the old content with the end of the new one cut off or not yet there, and no JSON.
fn write(file: File, content: &[u8]) -> io::Result<File> {
    file.set_len(content.len() as u64)?;
    file.write_all_at(content, 0)?;
    Ok(file)
}

/// Keeps the others who have the file from doing the same, for as long as the returned one lives; nothing where another does already.
///
/// The file is opened anew, as a lock of flock(2) belongs to the open file description, which all inheritors share.
///
/// # Errors
///
/// EMFILE, and ENOENT where there is no `/proc`.
pub fn claim(fd: BorrowedFd<'_>) -> io::Result<Option<File>> {
    let own = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(lock::try_lock(&own)?.then_some(own))
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
    fn one_inheritor_at_a_time_has_a_claim() {
        let fd = create("test", b"").unwrap();
        let copy = fd.try_clone().unwrap();
        let claimed = claim(fd.as_fd()).unwrap();
        assert!(claimed.is_some() && claim(copy.as_fd()).unwrap().is_none());
        drop(claimed);
        assert!(claim(copy.as_fd()).unwrap().is_some());
    }

    #[test]
    fn what_one_copy_writes_another_reads() {
        let fd = create("test", b"a longer text").unwrap();
        let copy = fd.try_clone().unwrap();
        assert_eq!(read(copy.as_fd()).unwrap(), b"a longer text");
        replace(copy.as_fd(), b"short").unwrap();
        assert_eq!(read(fd.as_fd()).unwrap(), b"short");
    }
}

/// Gives back the pages of this program's code and constants that were needed so far; those that are needed again come back from the file.
///
/// The kernel maps sixteen pages around each one that is touched, and a start touches many that nothing needs later.
pub fn release_program_pages() {
    let (Ok(maps), Ok(exe)) =
        (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    for (start, length) in maps.lines().filter_map(|line| program_pages(line, &exe.to_string_lossy())) {
        // SAFETY: nothing was ever written to these pages: what is dropped here is read from the file again when it is needed.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED) };
    }
}

/// Returns the address and the length of a mapping in proc_pid_maps(5) that is as it is in this file: its code, and the constants that it begins with.
/// What else is read-only was written when the program was relocated (RELRO), and would be lost.
fn program_pages(line: &str, exe: &str) -> Option<(usize, usize)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (start, end) = fields.first()?.split_once('-')?;
    let is_as_in_the_file = match *fields.get(1)? {
        "r-xp" => true,
        "r--p" => fields.get(2)?.bytes().all(|digit| digit == b'0'),
        _ => false,
    };
    let is_program = !exe.is_empty() && line.ends_with(exe);
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    (is_as_in_the_file && is_program).then(|| (start, end - start))
}

#[cfg(test)]
mod page_tests {
    use super::*;

    #[test]
    fn what_was_relocated_or_is_data_or_anothers_is_kept() {
        let exe = "/usr/bin/handoff";
        for (line, expected) in [
            ("00200000-002c2000 r--p 00000000 fe:00 7 /usr/bin/handoff", Some((0x20_0000, 0xc_2000))),
            ("002c2000-0061a000 r-xp 000c1000 fe:00 7 /usr/bin/handoff", Some((0x2c_2000, 0x35_8000))),
            ("0061a000-0061f000 r--p 00418000 fe:00 7 /usr/bin/handoff", None),
            ("0061f000-00623000 rw-p 0041c000 fe:00 7 /usr/bin/handoff", None),
            ("7f000000-7f001000 r-xp 00000000 00:00 0 [vdso]", None),
            ("7f000000-7f001000 r-xp 00000000 fe:00 8 /usr/lib/libc.so.6", None),
            ("nonsense", None),
        ] {
            assert_eq!(program_pages(line, exe), expected, "{line}");
        }
        assert_eq!(program_pages("00200000-002c2000 r--p 00000000 fe:00 7", ""), None);
    }

    #[test]
    fn the_program_goes_on_without_them() {
        release_program_pages();
        assert_eq!(program_pages("x", "x"), None);
    }
}
