//! The program that is to run, opened once: what is checked, named and executed is the same file, whatever happens to the path.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::build_id;
use crate::error::{Error, Result};

/// Where a name is looked up when PATH is not set; execvp(3) has the same.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// An opened program.
#[derive(Debug)]
pub struct Program {
    name: OsString,
    path: PathBuf,
    file: File,
}

impl Program {
    /// Opens a program; a name without a slash is looked up in PATH, as execvp(3) does.
    ///
    /// # Errors
    /// [`Error::Io`] whose source is `NotFound` if there is no such file, and `PermissionDenied` if it is not a regular
    /// file or may not be executed.
    pub fn open(name: &Path) -> Result<Self> {
        if name.as_os_str().as_bytes().contains(&b'/') {
            let file = open_executable(name)
                .map_err(|e| Error::io(format!("open program {}", name.display()), e))?;
            return Ok(Self { name: name.into(), path: name.into(), file });
        }
        let path = env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
        let (path, file) = search(name, &path)
            .map_err(|e| Error::io(format!("find program {} in PATH", name.display()), e))?;
        Ok(Self { name: name.into(), path, file })
    }

    /// Opens the program that a process runs, also where its file was replaced or removed since.
    ///
    /// # Errors
    /// There is no such process, or this user may not look at it.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let path = super::process::executable(pid)?;
        let file = open(Path::new(&format!("/proc/{pid}/exe")))?;
        Ok(Self { name: path.clone().into(), path, file })
    }

    /// Goes on with a program that was opened, at its path then.
    pub fn adopt(file: impl Into<File>, path: PathBuf) -> Self {
        Self { name: path.clone().into(), path, file: file.into() }
    }

    /// Returns another descriptor for the same opened file.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { name: self.name.clone(), path: self.path.clone(), file: self.file.try_clone()? })
    }

    /// Returns what is known of the opened file.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    /// Returns the path that leads to the opened file now, without symbolic links.
    pub fn resolved(&self) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns the name as it was asked for: what the program should see as its own.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Returns where the program was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the GNU build id in hexadecimal, or for a program without one an id of its content.
    pub fn build_id(&self) -> io::Result<String> {
        build_id::of(&self.file)
    }

    /// Returns whether the path now names the file that was opened.
    pub fn same_file(&self, path: &Path) -> bool {
        let (Ok(ours), Ok(other)) = (self.file.metadata(), fs::metadata(path)) else { return false };
        (ours.dev(), ours.ino()) == (other.dev(), other.ino())
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A file that may not be executed does not end the search, but is the better explanation if nothing else is found.
fn search(name: &Path, path: &OsStr) -> io::Result<(PathBuf, File)> {
    if name.as_os_str().is_empty() {
        return Err(Errno::ENOENT.into());
    }
    let mut failure = io::Error::from(Errno::ENOENT);
    for dir in env::split_paths(path) {
        // An empty element is the working directory.
        let candidate = if dir.as_os_str().is_empty() { Path::new(".").join(name) } else { dir.join(name) };
        match open_executable(&candidate) {
            Ok(file) => return Ok((candidate, file)),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => failure = e,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG)) => {
            }
            Err(e) => return Err(e),
        }
    }
    Err(failure)
}

fn open_executable(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not a regular file"));
    }
    check_executable(&file)?;
    Ok(file)
}

/// Without O_NONBLOCK a FIFO in the place of the program would make us wait for a writer.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    match opened {
        // It may be executable without being readable.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
        }
        opened => opened,
    }
}

/// The kernel also knows of mount options and access lists. Where it cannot tell (before Linux 5.8), the mode must do.
fn check_executable(file: &File) -> io::Result<()> {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    // SAFETY: the descriptor is open and the empty path is a static string; nothing is written.
    let answer =
        unsafe { libc::syscall(libc::SYS_faccessat2, file.as_raw_fd(), c"".as_ptr(), libc::X_OK, flags) };
    match Errno::result(answer) {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) if file.metadata()?.mode() & 0o111 != 0 => Ok(()),
        Err(_) => Err(Errno::EACCES.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn kind(e: Error) -> io::ErrorKind {
        let Error::Io { source, .. } = e else { panic!("{e}") };
        source.kind()
    }

    fn write(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_missing_program_and_one_that_may_not_run_are_told_apart_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Program::open(&dir.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("/missing"), "{missing}");
        assert_eq!(kind(missing), io::ErrorKind::NotFound);

        let plain = dir.path().join("plain");
        write(&plain, 0o644);
        assert_eq!(kind(Program::open(&plain).unwrap_err()), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(Program::open(dir.path()).unwrap_err()), io::ErrorKind::PermissionDenied);
        let below_a_file = Program::open(&plain.join("x")).unwrap_err();
        assert!(below_a_file.to_string().contains("plain/x"));
    }

    #[test]
    fn a_fifo_in_the_programs_place_is_refused_without_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
        assert_eq!(kind(Program::open(&fifo).unwrap_err()), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn the_search_goes_on_after_a_file_that_may_not_run_and_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for path in [&first, &second] {
            fs::create_dir(path).unwrap();
        }
        let path = env::join_paths([&first, &dir.path().join("none"), &second]).unwrap();
        let name = Path::new("tool");
        assert_eq!(search(name, &path).unwrap_err().kind(), io::ErrorKind::NotFound);
        write(&first.join("tool"), 0o644);
        assert_eq!(search(name, &path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        write(&second.join("tool"), 0o755);
        assert_eq!(search(name, &path).unwrap().0, second.join("tool"));
        assert_eq!(search(Path::new(""), &path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_is_found_in_path_and_kept_as_it_was_asked_for() {
        let sh = Program::open(Path::new("sh")).unwrap();
        assert_eq!(sh.name(), "sh");
        assert!(sh.path().is_absolute() && sh.same_file(sh.path()));
        assert!(!sh.build_id().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_took_the_programs_path_is_not_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        write(&path, 0o755);
        let program = Program::open(&path).unwrap();
        let id = program.build_id().unwrap();
        assert!(program.same_file(&path));
        fs::write(dir.path().join("next"), "#!/bin/true\n").unwrap();
        fs::rename(dir.path().join("next"), &path).unwrap();
        assert!(!program.same_file(&path));
        assert_eq!(program.build_id().unwrap(), id);
        fs::remove_file(&path).unwrap();
        assert!(!program.same_file(&path));
    }
}
