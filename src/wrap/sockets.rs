//! The daemon's listening sockets: at which numbers it finds them, and what has to be put right after it used them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::template::Values;
use crate::error::{Error, Result};
use crate::fds::{self, LISTEN_START};
use crate::sys::queue;
use crate::sys::socket::{self, Family, SocketKind, Transport};

/// How long an accept queue may be where the kernel does not tell.
const LIMIT: u32 = 4096;

/// How the daemon is told of its sockets.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Whether by `LISTEN_FDS` and its company, from descriptor 3 on.
    pub listen_fds: bool,
    /// Which sockets are at which numbers.
    pub at: Vec<(String, RawFd)>,
    /// Which one is its standard input.
    pub stdin: Option<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { listen_fds: true, at: vec![], stdin: None }
    }
}

/// The listening sockets, in the order in which the daemon is told of them.
#[derive(Debug, Default)]
pub struct Sockets(Vec<Socket>);

/// A listening socket.
#[derive(Debug)]
pub struct Socket {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: SocketKind,
    fd: OwnedFd,
    /// How it was when it came: the daemon's own flags are not for those who come after it.
    flags: i32,
    /// How long its accept queue may be.
    limit: u32,
    path: Option<KeptPath>,
}

impl Sockets {
    /// Takes the sockets over.
    ///
    /// # Errors
    ///
    /// [`Error::Descriptor`] names one that cannot take connections or packets.
    pub fn new(sockets: Vec<(String, OwnedFd)>) -> Result<Self> {
        let own = |(name, fd): (String, OwnedFd)| {
            fds::check_listener(&name, fd.as_fd())?;
            let about = |e| Error::io(format!("look at listener {name}"), e);
            let kind = socket::kind(fd.as_fd()).map_err(about)?;
            let flags = socket::status_flags(fd.as_fd()).map_err(about)?;
            let path = KeptPath::of(&kind);
            let queue = queue::accept_queue(fd.as_fd()).ok().flatten();
            Ok(Socket { name, kind, flags, limit: queue.map_or(LIMIT, |queue| queue.limit), path, fd })
        };
        Ok(Self(sockets.into_iter().map(own).collect::<Result<_>>()?))
    }

    /// Returns them.
    pub fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.0.iter()
    }

    /// Returns the one of this name.
    pub fn get(&self, name: &str) -> Option<&Socket> {
        self.0.iter().find(|socket| socket.name == name)
    }

    /// Makes them as a program expects them that was started with them: blocking. What shares them must have ended.
    pub(super) fn make_blocking(&self) {
        self.set_flags(|socket| socket.flags & !socket::NONBLOCK);
    }

    /// Puts the flags back that they came with.
    pub(super) fn restore_flags(&self) {
        self.set_flags(|socket| socket.flags);
    }

    fn set_flags(&self, wanted: impl Fn(&Socket) -> i32) {
        for socket in &self.0 {
            let wanted = wanted(socket);
            let set = socket::status_flags(socket.fd.as_fd()).and_then(|flags| {
                if flags == wanted {
                    return Ok(());
                }
                tracing::debug!(
                    listener = socket.name,
                    flags,
                    wanted,
                    "the listener's flags were changed; putting them back"
                );
                socket::set_status_flags(socket.fd.as_fd(), wanted)
            });
            if let Err(error) = set {
                tracing::warn!(listener = socket.name, %error, "unable to set the listener's flags");
            }
        }
    }

    /// Puts right what a daemon did to them when it ended, and says so.
    pub(super) fn repair(&self) {
        for socket in &self.0 {
            socket.listen_again();
            socket.path.iter().for_each(|path| path.put_back(&socket.name));
        }
    }

    /// Whether somebody may remove one of their paths.
    pub(super) fn have_paths(&self) -> bool {
        self.0.iter().any(|socket| socket.path.is_some())
    }

    /// Nobody comes who needs the second names.
    pub(super) fn forget_paths(&self) {
        self.0.iter().filter_map(|socket| socket.path.as_ref()).for_each(KeptPath::forget);
    }
}

impl Socket {
    /// Whether connections are accepted on it.
    pub fn is_stream(&self) -> bool {
        self.kind.transport == Transport::Stream
    }

    /// Whether it is reached by an address and a port.
    pub fn is_inet(&self) -> bool {
        matches!(self.kind.family, Family::Inet | Family::Inet6)
    }

    /// A shutdown(2) of a listener is one for all who have it; another listen(2) takes it back.
    fn listen_again(&self) {
        if !self.kind.listening || socket::is_listening(self.fd.as_fd()).unwrap_or(true) {
            return;
        }
        // One with a path has no port to lose.
        let address = self.kind.local_address.parse().ok().filter(|_| self.is_inet());
        match socket::listen_again(self.fd.as_fd(), address, self.limit) {
            Ok(()) => tracing::warn!(
                listener = self.name,
                "the daemon shut the listener down, for everybody who has it; it listens again"
            ),
            Err(error) => tracing::error!(
                listener = self.name,
                %error,
                "the daemon shut the listener down, for everybody who has it, and it cannot listen again"
            ),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// ---- At which numbers.

/// What a daemon is given besides its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Socket(usize),
    Ready,
    Lock,
}

/// Which descriptor has which number in the daemon.
#[derive(Debug)]
pub(super) struct Numbers {
    slots: Vec<(RawFd, Slot)>,
}

impl Numbers {
    /// # Errors
    ///
    /// [`Error::Invalid`]: a name that no socket has, or two things at one number.
    pub fn plan(sockets: &Sockets, layout: &Layout, ready: Option<Option<RawFd>>) -> Result<Self> {
        let mut numbers = Self { slots: vec![] };
        if layout.listen_fds {
            for (index, number) in (0..sockets.0.len()).zip(LISTEN_START..) {
                numbers.put(number, Slot::Socket(index))?;
            }
        }
        for (name, number) in &layout.at {
            numbers.put(*number, Slot::Socket(sockets.index(name)?))?;
        }
        if let Some(Some(number)) = ready {
            numbers.put(number, Slot::Ready)?;
        }
        if let Some(name) = &layout.stdin {
            sockets.index(name)?;
        }
        for (index, socket) in sockets.0.iter().enumerate() {
            let is_told = numbers.slots.iter().any(|(_, slot)| *slot == Slot::Socket(index));
            if !is_told && layout.stdin.as_ref() != Some(&socket.name) {
                numbers.put(numbers.free(), Slot::Socket(index))?;
            }
        }
        if ready == Some(None) {
            numbers.put(numbers.free(), Slot::Ready)?;
        }
        numbers.put(numbers.free(), Slot::Lock)?;
        Ok(numbers)
    }

    fn put(&mut self, number: RawFd, slot: Slot) -> Result<()> {
        if self.slots.iter().any(|(other, taken)| *other == number && *taken != slot) {
            let detail = format!(
                "two descriptors are to be at number {number}: LISTEN_FDS has those from {LISTEN_START} on, unless \
                 --no-listen-fds is given"
            );
            return Err(Error::Invalid { detail });
        }
        self.slots.push((number, slot));
        Ok(())
    }

    fn free(&self) -> RawFd {
        let is_taken = |number: &RawFd| self.slots.iter().any(|(other, _)| other == number);
        (LISTEN_START..).find(|number| !is_taken(number)).unwrap_or(RawFd::MAX)
    }

    fn of(&self, wanted: Slot) -> Option<RawFd> {
        // The last one is what was asked for by number.
        self.slots.iter().rev().find(|(_, slot)| *slot == wanted).map(|(number, _)| *number)
    }

    /// Returns the descriptors with their numbers, without those that are not there.
    pub fn fds<'a>(
        &self,
        sockets: &'a Sockets,
        ready: Option<BorrowedFd<'a>>,
        lock: Option<BorrowedFd<'a>>,
    ) -> Vec<(RawFd, BorrowedFd<'a>)> {
        let fd_of = |slot: Slot| match slot {
            Slot::Socket(index) => sockets.0.get(index).map(|socket| socket.fd.as_fd()),
            Slot::Ready => ready,
            Slot::Lock => lock,
        };
        let mut fds: Vec<(RawFd, BorrowedFd<'a>)> =
            self.slots.iter().filter_map(|(number, slot)| Some((*number, fd_of(*slot)?))).collect();
        fds.sort_by_key(|(number, _)| *number);
        fds.dedup_by_key(|(number, _)| *number);
        fds
    }

    /// Returns what templates may say: `NAME`, `NAME.addr`, `NAME.host`, `NAME.port`, and `ready` for the descriptor of readiness.
    pub fn values(&self, sockets: &Sockets) -> Values {
        let mut values = Values::default();
        for (index, socket) in sockets.0.iter().enumerate() {
            let number = self.of(Slot::Socket(index)).unwrap_or(0);
            let address = &socket.kind.local_address;
            values.set(socket.name.clone(), number.to_string());
            values.set(format!("{}.addr", socket.name), address.clone());
            if let Some((host, port)) = address.rsplit_once(':').filter(|_| socket.is_inet()) {
                values.set(format!("{}.host", socket.name), host);
                values.set(format!("{}.port", socket.name), port);
            }
        }
        if let Some(number) = self.of(Slot::Ready) {
            values.set("ready", number.to_string());
        }
        values
    }
}

impl Sockets {
    fn index(&self, name: &str) -> Result<usize> {
        let known = || self.0.iter().map(|socket| socket.name.as_str()).collect::<Vec<_>>().join(", ");
        self.0.iter().position(|socket| socket.name == name).ok_or_else(|| Error::Invalid {
            detail: format!(
                "there is no listener {name}: there are {}",
                if self.0.is_empty() { "none".to_owned() } else { known() }
            ),
        })
    }
}

// ---- Paths.

/// A second name of a Unix socket's path: a daemon that removes the path when it ends takes the last way to the socket with it, and
/// no call gives a bound socket another one. But its inode lives as long as any name, and the name can be linked again.
#[derive(Debug)]
struct KeptPath {
    path: PathBuf,
    kept: PathBuf,
}

impl KeptPath {
    fn of(kind: &SocketKind) -> Option<Self> {
        let path = PathBuf::from(&kind.local_address);
        if kind.family != Family::Unix || !path.is_absolute() {
            return None;
        }
        let kept = path.with_file_name(format!(".{}.kept", path.file_name()?.to_str()?));
        let own = Self { path, kept };
        match own.keep() {
            Ok(()) => Some(own),
            Err(error) => {
                tracing::warn!(
                    path = %own.path.display(),
                    %error,
                    "unable to keep a second name for the socket: if the daemon removes its path, nobody reaches it any more"
                );
                None
            }
        }
    }

    fn keep(&self) -> io::Result<()> {
        if self.is_kept() {
            return Ok(());
        }
        match fs::remove_file(&self.kept) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::hard_link(&self.path, &self.kept)
    }

    fn is_kept(&self) -> bool {
        inode(&self.path).zip(inode(&self.kept)).is_some_and(|(path, kept)| path == kept)
    }

    /// A path that somebody else has taken is left alone.
    fn put_back(&self, name: &str) {
        if self.path.symlink_metadata().is_ok() {
            return;
        }
        match fs::hard_link(&self.kept, &self.path) {
            Ok(()) => tracing::warn!(
                listener = name,
                path = %self.path.display(),
                "the daemon removed the socket's path; it is there again"
            ),
            Err(error) => tracing::error!(
                listener = name,
                path = %self.path.display(),
                %error,
                "the daemon removed the socket's path, and it cannot be made again"
            ),
        }
    }

    fn forget(&self) {
        // It is only a name; the next one who keeps one replaces it.
        let _ = fs::remove_file(&self.kept);
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ffi::OsStr;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn tcp(names: &[&str]) -> Sockets {
        let listen = |name: &&str| ((*name).to_owned(), TcpListener::bind("127.0.0.1:0").unwrap().into());
        Sockets::new(names.iter().map(listen).collect()).unwrap()
    }

    fn told(sockets: &Sockets, layout: &Layout, ready: Option<Option<RawFd>>, text: &str) -> String {
        let numbers = Numbers::plan(sockets, layout, ready).unwrap();
        numbers.values(sockets).fill(OsStr::new(text)).to_string_lossy().into_owned()
    }

    #[test]
    fn sockets_are_where_listen_fds_has_them_and_where_they_were_asked_for() {
        let sockets = tcp(&["a", "b"]);
        assert_eq!(told(&sockets, &Layout::default(), None, "{a} {b} {ready}"), "3 4 {ready}");
        assert_eq!(told(&sockets, &Layout::default(), Some(None), "{ready}"), "5");
        let layout = Layout { at: vec![("b".to_owned(), 9)], ..Layout::default() };
        assert_eq!(told(&sockets, &layout, None, "{a} {b}"), "3 9");
        let layout = Layout { listen_fds: false, at: vec![("b".to_owned(), 3)], stdin: None };
        assert_eq!(told(&sockets, &layout, None, "{a} {b}"), "4 3");
        let layout = Layout { listen_fds: false, at: vec![], stdin: Some("a".to_owned()) };
        assert_eq!(told(&sockets, &layout, None, "{a} {b}"), "0 3");
        let port = sockets.get("a").unwrap().kind.local_address.rsplit_once(':').unwrap().1.to_owned();
        assert_eq!(told(&sockets, &layout, None, "{a.host}:{a.port}"), format!("127.0.0.1:{port}"));
    }

    #[test]
    fn two_at_one_number_and_a_name_that_nobody_has_are_refused() {
        let sockets = tcp(&["a", "b"]);
        let layout = Layout { at: vec![("b".to_owned(), 3)], ..Layout::default() };
        assert!(Numbers::plan(&sockets, &layout, None).is_err());
        let layout = Layout { at: vec![("c".to_owned(), 9)], ..Layout::default() };
        assert!(Numbers::plan(&sockets, &layout, None).unwrap_err().to_string().contains("there are a, b"));
        assert!(Numbers::plan(&sockets, &Layout::default(), Some(Some(4))).is_err());
    }

    #[test]
    fn a_listener_that_was_shut_down_listens_again_where_it_was() {
        let sockets = tcp(&["a"]);
        let socket = sockets.get("a").unwrap();
        let address = socket.kind.local_address.clone();
        let stream = TcpStream::from(socket.fd.try_clone().unwrap());
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(TcpStream::connect(&address).is_err());
        sockets.repair();
        assert!(TcpStream::connect(&address).is_ok());
    }

    #[test]
    fn a_path_that_was_removed_leads_to_the_same_socket_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let sockets = Sockets::new(vec![("s".to_owned(), listener.try_clone().unwrap().into())]).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(UnixStream::connect(&path).is_err());
        sockets.repair();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        sockets.forget_paths();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn flags_that_the_daemon_set_are_put_back() {
        let sockets = tcp(&["a"]);
        let socket = sockets.get("a").unwrap();
        let before = socket::status_flags(socket.as_fd()).unwrap();
        socket::set_status_flags(socket.as_fd(), before | socket::NONBLOCK).unwrap();
        sockets.restore_flags();
        assert_eq!(socket::status_flags(socket.as_fd()).unwrap(), before);
    }
}
