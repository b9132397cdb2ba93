//! What an append-only file that one process at a time may write needs from the kernel.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use fs2::FileExt;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::sys::file;
use crate::sys::lock::{self, Holder};

/// Opens `path` for reading and appending; `create` makes an empty file, for its owner only, where there is none.
///
/// Close-on-exec. A FIFO does not block the call, see open(2).
///
/// # Errors
///
/// The kernel's answer.
pub fn open_append(path: &Path, create: bool) -> io::Result<File> {
    options().append(true).create(create).open(path)
}

/// Creates `path` for reading and appending, for its owner only, and fails if there is something already.
///
/// # Errors
///
/// The kernel's answer.
pub fn create_new(path: &Path) -> io::Result<File> {
    options().append(true).create_new(true).open(path)
}

/// Opens `path` for reading. A FIFO does not block the call.
///
/// # Errors
///
/// The kernel's answer.
pub fn open_read(path: &Path) -> io::Result<File> {
    options().open(path)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// Takes the exclusive flock(2) of the file's open file description, without waiting; a description that has it keeps it.
///
/// Returns whether it is held now.
///
/// # Errors
///
/// Anything but a conflict, such as a file system without locks.
pub fn try_lock(file: &File) -> io::Result<bool> {
    loop {
        match file.try_lock_exclusive() {
            Ok(()) => return Ok(true),
            Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Returns whether every write to this descriptor goes to the end of the file, see `O_APPEND` in open(2).
///
/// # Errors
///
/// The kernel's answer.
pub fn appends(file: &File) -> io::Result<bool> {
    Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?).contains(OFlag::O_APPEND))
}

/// Returns whether `path` names the very file that is open.
///
/// # Errors
///
/// The kernel's answer, except that a path that names nothing is `false`.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives `to` the owner, group and mode of `from`, as far as this process may.
///
/// # Errors
///
/// Only a failed fchmod(2) is one: a stranger's group cannot always be given on.
pub fn copy_owner_mode(from: &File, to: &File) -> io::Result<()> {
    let (source, target) = (from.metadata()?, to.metadata()?);
    if (source.uid(), source.gid()) != (target.uid(), target.gid()) {
        // An unprivileged process may be unable to; what it creates then belongs to itself.
        let _ = fchown(to, Some(source.uid()), Some(source.gid()));
    }
    to.set_permissions(source.permissions())
}

/// Makes the names in a directory durable, see fsync(2).
///
/// # Errors
///
/// The kernel's answer.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Finds the processes that hold a lock on the file, as far as /proc shows them to this process.
#[must_use]
pub fn holders(file: &File) -> Vec<Holder> {
    // What cannot be looked at has no holders that can be seen.
    file::identity(file).map(lock::holders).unwrap_or_default()
}

/// Disks for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    /// Runs `test` in a directory on a tmpfs of so many bytes, which only the thread that runs it can see.
    ///
    /// Returns why not, where this process may not mount.
    pub(crate) fn on_a_disk_of(bytes: u64, test: impl FnOnce(&Path) + Send) -> Result<(), String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        thread::scope(|scope| {
            let tester = scope.spawn(|| {
                mount_for_this_thread(dir.path(), bytes)
                    .map_err(|e| format!("mount a tmpfs in a namespace: {e}"))?;
                test(dir.path());
                Ok(())
            });
            tester.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn mount_for_this_thread(dir: &Path, bytes: u64) -> nix::Result<()> {
        // The namespace goes with the thread, and the mount with the namespace.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(format!("size={bytes}").as_str()))
    }
}
