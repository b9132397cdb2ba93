//! The data directory's lock, and the record of its owner.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::proto::record::{self, Defect, OwnerRecord, Reading};
use crate::sys::file::{self, Identity};
use crate::sys::lock::{self, Fate, Holder, Holding};
use crate::sys::poll;

/// The name of the lock file, unless [`LockOptions::file_name`] says otherwise.
pub const FILE_NAME: &str = ".handoff.lock";

/// The exclusive right to write to a data directory: flock(2) on a file in it.
///
/// The lock belongs to the open file description, and so to every process that has a copy of the descriptor. It is
/// released when this is dropped, except by a forked child, and except after [`try_clone_fd`](Self::try_clone_fd) or
/// [`adopt`](Self::adopt): then it lives as long as its last copy.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
    place: Place,
    /// The process that may release it: a forked child has this too.
    owner_pid: u32,
    /// Whether somebody else was given a copy, or gave us ours.
    shared: AtomicBool,
    /// Whether it is locked, as far as this process did it.
    held: AtomicBool,
    /// The highest sequence that this process knows to be on disk.
    durable: AtomicU64,
}

/// How to take a data directory's lock.
#[derive(Clone, Debug)]
pub struct LockOptions {
    file_name: OsString,
    allow_network_fs: bool,
    wait: Duration,
}

/// Where a lock file is.
#[derive(Clone, Debug)]
struct Place {
    dir: PathBuf,
    path: PathBuf,
}

/// What became of a lock file that was opened.
enum Attempt {
    Locked(File),
    /// Another description has the lock.
    Held,
    /// It is no longer the file at the path.
    Replaced,
}

impl DataDirLock {
    /// Takes the lock of a data directory, without waiting.
    ///
    /// A lock that this process inherited through the fd table is adopted. A lock file that a crash left unfinished is
    /// completed.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] names every process that has it. [`Error::NetworkFileSystem`], [`Error::LockReplaced`],
    /// [`Error::Damaged`] and [`Error::NewerFormat`] leave everything as it was. [`Error::Aborted`] means that this
    /// process is a successor that came too late and must exit.
    ///
    /// A successor locks the data directory that was handed over to it before any other.
    pub fn acquire(dir: impl AsRef<Path>) -> Result<Self> {
        Self::options().acquire(dir)
    }

    /// Takes the lock of a data directory after a crash, as soon as the processes that died have let go of it.
    ///
    /// There is no stale lock to break: the kernel releases it with its last copy. But a process that was killed is not
    /// gone at once, nor is what it had open, and a supervisor may start the next one before that. So this waits, for
    /// two seconds at most, while the recorded owner or every holder that can be seen is dead or dying. It takes a lock from
    /// nobody: if a living process has it, also one that merely inherited a copy from the dead owner, that is an error
    /// that names it, and ending that process is the caller's decision.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn acquire_or_break_stale(dir: impl AsRef<Path>) -> Result<Self> {
        let deadline = Instant::now() + DYING_WAIT;
        let mut pause = FIRST_PAUSE;
        loop {
            match Self::acquire(&dir) {
                Err(Error::Locked { path, holders })
                    if Instant::now() < deadline && is_closing(&path, &holders) =>
                {
                    sleep_longer(&mut pause, Some(deadline));
                }
                result => return result,
            }
        }
    }

    /// Returns the ways in which a lock can be taken, set as [`acquire`](Self::acquire) has them.
    pub fn options() -> LockOptions {
        LockOptions { file_name: FILE_NAME.into(), allow_network_fs: false, wait: Duration::ZERO }
    }

    /// Takes over a lock that another process took and passed on, by its descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] if it is not the directory's lock file, open for reading and writing; [`Error::Locked`] if
    /// another description has the lock; and those of [`acquire`](Self::acquire).
    pub fn adopt(fd: OwnedFd, dir: &Path) -> Result<Self> {
        Self::options().adopt(fd, dir)
    }

    /// Returns the data directory, with symbolic links resolved when the lock was taken.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Returns the path of the lock file.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Reads the owner record; `None` before the first one.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if no slot is intact; a single torn one is what a crash leaves and is passed over.
    pub fn record(&self) -> Result<Option<OwnerRecord>> {
        Ok(self.read()?.record)
    }

    /// Reads the owner record of a data directory, or from a lock file, as an observer who does not hold the lock.
    ///
    /// What it says may have changed by the time it is looked at. A lock file that is not there reads as one without a
    /// record.
    ///
    /// # Errors
    ///
    /// As [`record`](Self::record).
    pub fn read_record(dir_or_file: impl AsRef<Path>) -> Result<Reading> {
        let path = lock_file_of(dir_or_file.as_ref());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Reading::default()),
            Err(e) => return Err(Error::io(format!("open {}", path.display()), e)),
        };
        match read(&file, &path) {
            // The slot may have been in the middle of being written: the owner is done with it by now.
            Ok(reading) if reading.torn.is_empty() => Ok(reading),
            Ok(_) | Err(_) => read(&file, &path),
        }
    }

    /// Writes the record: one pwrite(2), and one fdatasync(2) if it must be durable when this returns.
    ///
    /// After records of other processes that may not be on disk, one fdatasync comes first; [`settle`](Self::settle)
    /// takes that out of the gap. Before the first record the file and its directory are synced; no gap has that, since whoever hands
    /// over has a record.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it does not fit, even without its arguments, or if this process does not hold the lock. After
    /// [`Error::Io`] the record may have been
    /// written or not, and may not be durable.
    pub(crate) fn write_record(&self, record: &OwnerRecord, durable: bool) -> Result<()> {
        self.check_held()?;
        let reading = self.read()?;
        let known_durable = self.durable.load(Ordering::Relaxed);
        let write = reading
            .next_write(record, known_durable)
            .map_err(|oversized| Error::Invalid { detail: oversized.to_string() })?;
        if write.args_dropped {
            tracing::warn!(path = %self.path().display(), "the arguments do not fit into the owner record and are left out");
        }
        if reading.record.is_none() {
            // Until there is one, nobody can tell whether the one who created the file lived to sync it.
            file::sync_new(&self.file, self.dir()).map_err(|e| self.io("sync", e))?;
        }
        if write.sync_first {
            self.sync(reading.sequence)?;
        }
        file::write_at(&self.file, &write.bytes, write.offset)
            .map_err(|e| self.io("write the owner record to", e))?;
        if durable { self.sync(write.sequence) } else { Ok(()) }
    }

    /// Makes the newest record durable and says so in the file, so that the next write, by whichever process, needs no
    /// sync before it. To be called outside the gap; does nothing if nothing is to be done.
    ///
    /// # Errors
    ///
    /// As [`write_record`](Self::write_record).
    pub(crate) fn settle(&self) -> Result<()> {
        let reading = self.read()?;
        let Some(record) = reading.record.as_ref().filter(|_| !reading.is_settled()) else { return Ok(()) };
        self.sync(reading.sequence)?;
        self.write_record(record, false)
    }

    /// Releases the lock, also for every other process that has a copy of it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] in a forked child of the process that took it: it is not the child's to release.
    pub(crate) fn unlock(&self) -> Result<()> {
        self.check_owner("release")?;
        // Before the call: nothing may be written once another process can have it.
        let held = self.held.swap(false, Ordering::Relaxed);
        lock::unlock(&self.file).map_err(|e| {
            // It is as it was, and its owner goes on.
            self.held.store(held, Ordering::Relaxed);
            self.io("unlock", e)
        })
    }

    /// Takes the lock again, without waiting; returns whether nobody else had it.
    ///
    /// # Errors
    ///
    /// [`Error::LockReplaced`] if the file is not at its path any more.
    pub(crate) fn relock(&self) -> Result<bool> {
        self.check_owner("take")?;
        if !lock::try_lock(&self.file).map_err(|e| self.io("lock", e))? {
            return Ok(false);
        }
        if self.place.is_at_path(&self.file)? {
            self.held.store(true, Ordering::Relaxed);
            return Ok(true);
        }
        self.unlock()?;
        Err(Error::LockReplaced { path: self.path().into() })
    }

    /// Returns every process that has the lock, this one among them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be looked at.
    pub fn holders(&self) -> Result<Vec<Holder>> {
        let identity = file::identity(&self.file).map_err(|e| self.io("look at", e))?;
        Ok(lock::holders(identity))
    }

    /// Returns every process that has the lock of a data directory, or of a lock file; empty if it is free.
    ///
    /// Processes of other users are seen only by root, unless they took the lock themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be looked at.
    pub fn who(dir_or_file: impl AsRef<Path>) -> Result<Vec<Holder>> {
        Self::holding(dir_or_file).map(|holding| holding.holders)
    }

    /// As [`who`](Self::who), and whether it is locked at all, as it also is by a process that cannot be seen.
    ///
    /// # Errors
    ///
    /// As [`who`](Self::who).
    pub fn holding(dir_or_file: impl AsRef<Path>) -> Result<Holding> {
        let path = lock_file_of(dir_or_file.as_ref());
        let identity =
            file::identity_at(&path).map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
        Ok(identity.map(lock::holding).unwrap_or_default())
    }

    /// Returns a copy of the descriptor to pass on; from now on the lock lives as long as its last copy.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there are no more descriptors.
    pub fn try_clone_fd(&self) -> Result<OwnedFd> {
        let copy = self.file.try_clone().map_err(|e| self.io("copy the descriptor of", e))?;
        self.shared.store(true, Ordering::Relaxed);
        Ok(copy.into())
    }

    fn read(&self) -> Result<Reading> {
        read(&self.file, self.path())
    }

    fn sync(&self, sequence: u64) -> Result<()> {
        file::sync_data(&self.file).map_err(|e| self.io("sync the owner record in", e))?;
        self.durable.fetch_max(sequence, Ordering::Relaxed);
        Ok(())
    }

    fn check_owner(&self, verb: &str) -> Result<()> {
        let pid = std::process::id();
        if pid == self.owner_pid {
            return Ok(());
        }
        let detail =
            format!("pid {pid} may not {verb} {}: pid {} has it", self.path().display(), self.owner_pid);
        Err(Error::Invalid { detail })
    }

    /// Returns whether this value has the lock, and has not let it go.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    fn check_held(&self) -> Result<()> {
        self.check_owner("write to")?;
        if self.held.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Invalid {
            detail: format!("{} is not locked: it may not be written", self.path().display()),
        })
    }

    fn io(&self, verb: &str, e: std::io::Error) -> Error {
        self.place.io(verb, e)
    }
}

impl AsFd for DataDirLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for DataDirLock {
    /// Unlocks and does not merely close: a child between its fork and its exec has a copy for a moment.
    fn drop(&mut self) {
        if std::process::id() == self.owner_pid && !self.shared.load(Ordering::Relaxed) {
            // The close that follows releases it too.
            let _ = lock::unlock(&self.file);
        }
    }
}

impl LockOptions {
    /// Sets the name of the lock file in the data directory.
    #[must_use]
    pub fn file_name(mut self, name: impl Into<OsString>) -> Self {
        self.file_name = name.into();
        self
    }

    /// Allows a network file system: only one machine may ever mount it.
    #[must_use]
    pub fn allow_network_fs(mut self, allow: bool) -> Self {
        self.allow_network_fs = allow;
        self
    }

    /// Sets how long to wait for the lock while another process has it; [`Duration::MAX`] is for as long as it takes.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Takes the lock of a data directory.
    ///
    /// # Errors
    ///
    /// As [`DataDirLock::acquire`], and [`Error::Invalid`] for a file name that is a path.
    pub fn acquire(&self, dir: impl AsRef<Path>) -> Result<DataDirLock> {
        let place = self.place(dir.as_ref())?;
        if let Some(fd) = take_offered(&place)? {
            return DataDirLock::from_fd(fd, place);
        }
        let deadline = poll::after(self.wait);
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = match place.lock_file_at_path()? {
                Some(file) => DataDirLock::under_lock(file, place.clone(), false),
                None => Err(Error::Locked { path: place.path.clone(), holders: Vec::new() }),
            };
            let Err(Error::Locked { holders, .. }) = &attempt else { return attempt };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return if holders.is_empty() { Err(place.locked()) } else { attempt };
            }
            sleep_longer(&mut pause, deadline);
        }
    }

    /// Takes over a lock by its descriptor.
    ///
    /// # Errors
    ///
    /// As [`DataDirLock::adopt`].
    pub fn adopt(&self, fd: OwnedFd, dir: &Path) -> Result<DataDirLock> {
        DataDirLock::from_fd(fd, self.place(dir)?)
    }

    /// Returns which file is the lock file, where there is one.
    pub(crate) fn identity_at(&self, dir: &Path) -> Result<Option<Identity>> {
        self.place(dir)?.identity_at_path()
    }

    fn place(&self, dir: &Path) -> Result<Place> {
        let name = Path::new(&self.file_name);
        let mut components = name.components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let detail = format!("the lock file's name must be a name in the data directory, not {name:?}");
            return Err(Error::Invalid { detail });
        }
        let dir = dir.canonicalize().map_err(|e| {
            Error::io(format!("find the data directory {}, which must be there", dir.display()), e)
        })?;
        let place = Place { path: dir.join(name), dir };
        self.check_file_system(&place)?;
        Ok(place)
    }

    fn check_file_system(&self, place: &Place) -> Result<()> {
        let kind = file::network_kind_of(&place.dir).map_err(|e| place.io("find the file system of", e))?;
        match kind.filter(|_| !self.allow_network_fs) {
            Some(kind) => Err(Error::NetworkFileSystem { path: place.path.clone(), kind }),
            None => Ok(()),
        }
    }
}

impl DataDirLock {
    fn from_fd(fd: OwnedFd, place: Place) -> Result<Self> {
        let number = fd.as_raw_fd();
        file::set_cloexec(fd.as_fd()).map_err(|e| place.io("close on exec", e))?;
        let read_write =
            file::is_read_write(fd.as_fd()).map_err(|e| place.io("look at the descriptor of", e))?;
        let file = File::from(fd);
        let wrong = |detail: String| Error::Descriptor { name: "lock".into(), fd: number, detail };
        if !place.is_at_path(&file)? {
            return Err(wrong(format!("expected {}, found another file", place.path.display())));
        }
        if !read_write {
            return Err(wrong(format!("expected {} open for reading and writing", place.path.display())));
        }
        // A description that has the lock keeps it; one that never had it takes it now.
        if !lock::try_lock(&file).map_err(|e| place.io("lock", e))? {
            return Err(place.locked());
        }
        Self::under_lock(file, place, true)
    }

    /// Completes the file if need be, and makes sure that this process may go on. An error releases the lock.
    fn under_lock(file: File, place: Place, shared: bool) -> Result<Self> {
        let lock = Self {
            file,
            place,
            owner_pid: std::process::id(),
            shared: AtomicBool::new(shared),
            held: AtomicBool::new(true),
            durable: AtomicU64::new(0),
        };
        lock.check_record_locks()?;
        let reading = lock.read()?;
        if reading.unfinished {
            file::write_at(&lock.file, &record::blank(), 0).map_err(|e| lock.io("write", e))?;
        }
        check_generation(lock.path(), reading.record.as_ref())?;
        Ok(lock)
    }

    /// A stranger who locked our file with the other family of locks believes that the data is his.
    fn check_record_locks(&self) -> Result<()> {
        if !lock::has_record_lock(&self.file).map_err(|e| self.io("query the record locks of", e))? {
            return Ok(());
        }
        let strangers = self.holders()?.into_iter().filter(|holder| holder.pid != self.owner_pid).collect();
        Err(Error::Locked { path: self.path().into(), holders: strangers })
    }
}

impl Place {
    /// Opens and locks the file at the path; `None` if another description has the lock.
    fn lock_file_at_path(&self) -> Result<Option<File>> {
        for _ in 0..REPLACED_TRIES {
            let file = file::open_or_create(&self.path).map_err(|e| self.io("open", e))?;
            match self.lock_opened(file)? {
                Attempt::Locked(file) => return Ok(Some(file)),
                Attempt::Held => return Ok(None),
                Attempt::Replaced => {}
            }
        }
        Err(Error::LockReplaced { path: self.path.clone() })
    }

    fn lock_opened(&self, file: File) -> Result<Attempt> {
        if !lock::try_lock(&file).map_err(|e| self.io("lock", e))? {
            return Ok(Attempt::Held);
        }
        Ok(if self.is_at_path(&file)? { Attempt::Locked(file) } else { Attempt::Replaced })
    }

    fn is_at_path(&self, file: &File) -> Result<bool> {
        let open = file::identity(file).map_err(|e| self.io("look at the open", e))?;
        Ok(self.identity_at_path()? == Some(open))
    }

    fn identity_at_path(&self) -> Result<Option<Identity>> {
        file::identity_at(&self.path).map_err(|e| self.io("look at", e))
    }

    /// Names the holders for an error, which matters more than why they could not be found.
    fn locked(&self) -> Error {
        let holders = self.identity_at_path().ok().flatten().map(lock::holders).unwrap_or_default();
        Error::Locked { path: self.path.clone(), holders }
    }

    fn io(&self, verb: &str, e: std::io::Error) -> Error {
        Error::io(format!("{verb} {}", self.path.display()), e)
    }
}

// How long the processes that died may take to close what they had open.
const DYING_WAIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
const REPLACED_TRIES: u32 = 8;

// What the process was started with: a lock's descriptor by inheritance, and what its incumbent told it to expect.
static OFFERED: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
static EXPECTED: Mutex<Option<Expected>> = Mutex::new(None);

/// The generation that a successor's data directory must have, and whose lock file that turned out to be.
struct Expected {
    generation: u64,
    path: Option<PathBuf>,
}

/// Keeps an inherited descriptor of a lock for the [`DataDirLock::acquire`] that asks for the lock's directory.
pub(crate) fn offer_inherited(fd: OwnedFd) {
    unpoisoned(&OFFERED).push(fd);
}

/// Sets the generation that the next [`DataDirLock::acquire`] of this process must find, or that any will do.
///
/// The directory in which it is found is the one that was handed over: from then on others may have any generation. So a
/// successor locks its handed-over data directory first.
pub(crate) fn expect_generation(generation: Option<u64>) {
    *unpoisoned(&EXPECTED) = generation.map(|generation| Expected { generation, path: None });
}

fn take_offered(place: &Place) -> Result<Option<OwnedFd>> {
    let mut offered = unpoisoned(&OFFERED);
    if offered.is_empty() {
        return Ok(None);
    }
    let Some(wanted) = place.identity_at_path()? else { return Ok(None) };
    let is_wanted = |fd: &OwnedFd| file::identity(fd).is_ok_and(|identity| identity == wanted);
    Ok(offered.iter().position(is_wanted).map(|i| offered.swap_remove(i)))
}

fn check_generation(path: &Path, record: Option<&OwnerRecord>) -> Result<()> {
    let mut expectation = unpoisoned(&EXPECTED);
    let Some(Expected { generation: expected, path: bound }) = expectation.as_mut() else { return Ok(()) };
    if bound.as_deref().is_some_and(|bound| bound != path) {
        return Ok(());
    }
    let found = record.map_or(0, |record| record.generation);
    if found == *expected {
        *bound = Some(path.to_owned());
        return Ok(());
    }
    if record.is_none() {
        let reason = "this data directory has no owner: the incumbent serves another one".to_owned();
        return Err(Error::Aborted { reason });
    }
    Err(Error::Aborted {
        reason: format!("came too late: the data went on to generation {found}, expected {expected}"),
    })
}

/// Whether those who have the lock are about to let go of it. Without anyone to be seen it may be a descriptor in flight
/// that is going down with its socket.
fn is_closing(path: &Path, holders: &[Holder]) -> bool {
    let going = holders.iter().all(|holder| holder.fate() != Fate::Alive);
    going || recorded_owner_is_going(path)
}

fn recorded_owner_is_going(path: &Path) -> bool {
    let owner =
        DataDirLock::read_record(path).ok().and_then(|reading| reading.record).map(|record| record.owner);
    owner.is_some_and(|owner| lock::fate(owner.pid, owner.start_ticks, &owner.boot_id) != Fate::Alive)
}

fn lock_file_of(dir_or_file: &Path) -> PathBuf {
    if dir_or_file.is_dir() { dir_or_file.join(FILE_NAME) } else { dir_or_file.to_path_buf() }
}

fn read(file: &File, path: &Path) -> Result<Reading> {
    let bytes = file::read_head(file, record::FILE_LEN)
        .map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    record::decode(&bytes).map_err(|defect| defect_of(path, defect))
}

fn defect_of(path: &Path, defect: Defect) -> Error {
    let path = path.to_path_buf();
    match defect {
        Defect::Damaged { offset, detail } => Error::Damaged { path, offset, detail },
        Defect::Newer { found } => Error::NewerFormat { path, ours: record::FORMAT, found },
    }
}

fn sleep_longer(pause: &mut Duration, deadline: Option<Instant>) {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    thread::sleep(left.map_or(*pause, |left| left.min(*pause)));
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
