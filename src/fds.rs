//! The fd table: which inherited descriptor is what.
//!
//! `HANDOFF_FDS` holds entries separated by spaces, `NAME=NUMBER@IDENTITY`. A listening socket's name is `listener.` and
//! the name it is known by; [`Role`] has the others. The identity is `cookie:N` for sockets of the
//! internet families (SO_COOKIE, socket(7)) and `inode:DEVICE:INODE` for everything else: a number that a wrapper closed
//! or used again is found out and named instead of served.
//!
//! A daemon that knows only `LISTEN_FDS` (sd_listen_fds(3)) finds the same sockets at the same numbers.

use std::fmt;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};

use crate::dialect::LAYOUT_VAR;
use crate::error::{Error, Result};
use crate::sys::inherit;
use crate::sys::socket::{self, Family, SocketKind, Transport};
use crate::sys::spawn::Image;

/// The environment variable that holds the table.
pub const HANDOFF_FDS: &str = "HANDOFF_FDS";

/// The first descriptor that `LISTEN_FDS` counts from (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
pub const LISTEN_START: RawFd = 3;

/// The variables of sd_listen_fds(3).
pub(crate) const LISTEN_VARS: [&str; 4] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"];

/// What to look for where a descriptor is closed.
pub(crate) const WHO_CLOSES: &str = "something between here and the process that passed it closed it (sudo without -C, a closefrom, a language \
                                     runtime that closes descriptors at exec)";

/// What a descriptor of the table is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The connection between a driver and the successor that it spawned.
    Channel,
    /// The data directory's lock.
    Lock,
    /// The journal, which is locked by this descriptor.
    Journal,
    /// The lease: whoever holds it holds the handoff.
    Lease,
    /// The incumbent's pidfd.
    Incumbent,
    /// The driver's end of the channel to a successor that waits.
    Successor,
    /// What the links of a chain know of the handoff, in memory that they share (memfd_create(2)).
    State,
    /// A listening socket, by name.
    Listener(String),
}

/// The names of the roles that have no name of their own.
const NAMES: [(&str, Role); 7] = [
    ("channel", Role::Channel),
    ("lock", Role::Lock),
    ("journal", Role::Journal),
    ("lease", Role::Lease),
    ("incumbent", Role::Incumbent),
    ("successor", Role::Successor),
    ("state", Role::State),
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NAMES.iter().find(|(_, role)| role == self)) {
            (Self::Listener(name), _) => write!(f, "listener.{name}"),
            (_, Some((name, _))) => f.write_str(name),
            (role, None) => unreachable!("{role:?} has a name"),
        }
    }
}

impl Role {
    fn parse(text: &str) -> Option<Self> {
        let known = NAMES.into_iter().find(|(name, _)| *name == text).map(|(_, role)| role);
        known.or_else(|| text.strip_prefix("listener.").map(|name| Self::Listener(name.to_owned())))
    }
}

/// One line of the table, before it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub role: Role,
    /// Its number.
    pub number: RawFd,
    /// What it must turn out to be.
    pub identity: String,
}

/// Checks a name for a listening socket.
///
/// # Errors
///
/// It is empty or longer than 255 bytes, or contains what separates entries of the table or names of `LISTEN_FDNAMES`.
pub fn check_name(name: &str) -> Result<()> {
    if !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(fits_name) {
        return Ok(());
    }
    let detail = format!(
        "{name:?} cannot name a listener: use 1 to {NAME_MAX} printable ASCII characters other than space, ':' and '='"
    );
    Err(Error::Invalid { detail })
}

/// How long a name may be; service managers have the same limit.
const NAME_MAX: usize = 255;

fn fits_name(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, ':' | '=')
}

/// Returns a name that somebody else gave, with dots for what cannot be in a name here.
pub(crate) fn fit_name(name: &str) -> String {
    name.chars().map(|c| if fits_name(c) { c } else { '.' }).take(NAME_MAX).collect()
}

/// Makes sure that a descriptor is a socket that takes connections, or packets at an address.
///
/// # Errors
///
/// [`Error::Descriptor`] says what it is instead.
pub fn check_listener(name: &str, fd: BorrowedFd<'_>) -> Result<()> {
    let what = match socket::kind(fd) {
        Ok(kind) if kind.listening => return Ok(()),
        Ok(kind) if is_datagram(&kind) && is_bound(&kind) => return Ok(()),
        Ok(kind) if is_datagram(&kind) => "a socket without an address, to which nobody can send",
        Ok(_) => "a socket that does not listen, such as a single connection (Accept=yes, or inetd's nowait)",
        Err(_) => "no socket",
    };
    Err(Error::Descriptor {
        name: name.to_owned(),
        fd: fd.as_raw_fd(),
        detail: format!("it should be a listening socket and is {what}"),
    })
}

fn is_bound(kind: &SocketKind) -> bool {
    !kind.local_address.is_empty() && !kind.local_address.ends_with(":0")
}

/// Returns the table's text for descriptors that will be at these numbers.
///
/// # Errors
///
/// A descriptor's identity cannot be read.
pub fn render(entries: &[(Role, RawFd, BorrowedFd<'_>)]) -> Result<String> {
    let lines = entries
        .iter()
        .map(|(role, number, fd)| Ok(format!("{role}={number}@{}", identity(*fd, role, *number)?)));
    Ok(lines.collect::<Result<Vec<_>>>()?.join(" "))
}

/// Parses the table's text.
///
/// # Errors
///
/// An entry is not of the form `NAME=NUMBER@IDENTITY`, or a number occurs twice.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = vec![];
    for word in text.split_ascii_whitespace() {
        let entry = parse_entry(word).ok_or_else(|| Error::Invalid {
            detail: format!("{HANDOFF_FDS} is malformed at {word:?}: expected NAME=NUMBER@IDENTITY"),
        })?;
        if entries.iter().any(|other| other.number == entry.number) {
            return Err(Error::Invalid {
                detail: format!("{HANDOFF_FDS} names descriptor {} twice", entry.number),
            });
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_entry(word: &str) -> Option<Entry> {
    let (name, rest) = word.split_once('=')?;
    let (number, identity) = rest.split_once('@')?;
    let number: RawFd = number.parse().ok().filter(|number| *number >= 0)?;
    Some(Entry { role: Role::parse(name)?, number, identity: identity.to_owned() })
}

/// Takes the descriptors that this process inherited, each verified, and the variables out of the environment.
///
/// # Errors
///
/// A descriptor is closed, or is another one than was passed.
pub fn take() -> Result<Vec<(Role, OwnedFd)>> {
    let listen = take_listen_vars();
    // It says how to pass on what is taken here.
    inherit::take_var(LAYOUT_VAR);
    match inherit::take_var(HANDOFF_FDS) {
        Some(text) => {
            let text = text
                .into_string()
                .map_err(|_| Error::Invalid { detail: format!("{HANDOFF_FDS} is not UTF-8") })?;
            parse(&text)?.into_iter().map(adopt).collect()
        }
        None => listen.map_or_else(|| Ok(vec![]), adopt_listen),
    }
}

/// Takes the listening sockets of a table, each verified.
pub(crate) fn adopt_listeners(table: &str) -> Result<Vec<(String, OwnedFd)>> {
    let entries = parse(table)?.into_iter().map(adopt);
    entries
        .filter_map(|adopted| match adopted {
            Ok((Role::Listener(name), fd)) => Some(Ok((name, fd))),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        })
        .collect()
}

fn adopt(entry: Entry) -> Result<(Role, OwnedFd)> {
    let name = entry.role.to_string();
    let number = entry.number;
    let fd = inherit::adopt(number).map_err(|_| Error::Descriptor {
        name: name.clone(),
        fd: number,
        detail: format!("it is closed; {WHO_CLOSES}"),
    })?;
    let found = identity(fd.as_fd(), &entry.role, number)?;
    if found == entry.identity {
        return Ok((entry.role, fd));
    }
    let detail = format!(
        "it should be {} and is {found}: the number was closed and used again; {WHO_CLOSES}",
        entry.identity
    );
    // It belongs to somebody else in this process: leave it open.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(fd);
    Err(Error::Descriptor { name, fd: number, detail })
}

fn identity(fd: BorrowedFd<'_>, role: &Role, number: RawFd) -> Result<String> {
    let attempt = || format!("identify descriptor {number} ({role})");
    if let Ok(kind) = socket::kind(fd)
        && kind.family != Family::Unix
    {
        return Ok(format!("cookie:{}", socket::cookie(fd).map_err(|e| Error::io(attempt(), e))?));
    }
    let inode = socket::inode(fd).map_err(|e| Error::io(attempt(), e))?;
    Ok(format!("inode:{}:{}", inode.dev, inode.ino))
}

/// Returns the process that the `LISTEN_*` variables are meant for, where it is not this one: whoever was to consume them did not, or
/// started this one beside itself instead of becoming it.
pub fn listen_pid_of_another() -> Option<u32> {
    let pid: u32 = std::env::var("LISTEN_PID").ok()?.parse().ok()?;
    (pid != std::process::id()).then_some(pid)
}

/// The `LISTEN_*` variables where they are meant for this process: how many, and their names.
fn take_listen_vars() -> Option<(RawFd, Vec<String>)> {
    let pid = inherit::take_var("LISTEN_PID");
    let count = inherit::take_var("LISTEN_FDS");
    let names = inherit::take_var("LISTEN_FDNAMES");
    let pidfd_id = inherit::take_var("LISTEN_PIDFDID");
    let meant =
        pid?.to_str()?.parse() == Ok(std::process::id()) && pidfd_id.is_none_or(|id| is_own_pidfd_id(&id));
    let count: RawFd = count?.to_str()?.parse().ok().filter(|count| *count > 0)?;
    let names: Vec<String> = names
        .and_then(|n| n.into_string().ok())
        .map_or(vec![], |n| n.split(':').map(str::to_owned).collect());
    meant.then_some((count, names))
}

/// Newer service managers also name the process by the inode of its pidfd, which is never used again in a boot.
fn is_own_pidfd_id(id: &std::ffi::OsStr) -> bool {
    let own = crate::sys::process::PidFd::current().ok().and_then(|pidfd| socket::inode(pidfd.as_fd()).ok());
    match (id.to_str().and_then(|id| id.parse::<u64>().ok()), own) {
        (Some(id), Some(own)) => id == own.ino,
        // An old kernel gives every pidfd the same inode; the pid alone decides there.
        _ => true,
    }
}

fn adopt_listen((count, names): (RawFd, Vec<String>)) -> Result<Vec<(Role, OwnedFd)>> {
    let mut taken = vec![];
    for i in 0..count {
        let number = LISTEN_START + i;
        let name = names
            .get(i as usize)
            .filter(|name| !name.is_empty())
            .map_or_else(|| number.to_string(), |name| fit_name(name));
        let fd = inherit::adopt(number).map_err(|_| Error::Descriptor {
            name: name.clone(),
            fd: number,
            detail: format!(
                "LISTEN_FDS says {count} descriptors from {LISTEN_START}, but this one is closed; {WHO_CLOSES}"
            ),
        })?;
        taken.push((Role::Listener(name), fd));
    }
    Ok(taken)
}

/// The descriptors that a program is to be started with.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    listeners: Vec<(&'a str, BorrowedFd<'a>)>,
    others: Vec<(Role, OwnedFd)>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(listeners: &'a [(String, OwnedFd)]) -> Self {
        let listeners = listeners.iter().map(|(name, fd)| (name.as_str(), fd.as_fd())).collect();
        Self { listeners, others: vec![] }
    }

    pub(crate) fn with(mut self, role: Role, fd: OwnedFd) -> Self {
        self.others.push((role, fd));
        self
    }

    /// Puts the listeners at 3 and up, where `LISTEN_FDS` wants them, the others after them, and both tables into the
    /// environment.
    pub(crate) fn install(&'a self, image: &mut Image<'a>) -> Result<()> {
        let listeners = self.listeners.iter().map(|(name, fd)| (Role::Listener((*name).to_owned()), *fd));
        let others = self.others.iter().map(|(role, fd)| (role.clone(), fd.as_fd()));
        let entries: Vec<(Role, RawFd, BorrowedFd<'a>)> = listeners
            .chain(others)
            .zip(LISTEN_START..)
            .map(|((role, fd), number)| (role, number, fd))
            .collect();
        image.env.retain(|(name, _)| name != HANDOFF_FDS && !LISTEN_VARS.iter().any(|var| name == var));
        image.env.push((HANDOFF_FDS.into(), render(&entries)?.into()));
        if !self.listeners.is_empty() {
            let names: Vec<&str> = self.listeners.iter().map(|(name, _)| *name).collect();
            image.env.push(("LISTEN_FDS".into(), self.listeners.len().to_string().into()));
            image.env.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
            image.listen_pid = true;
        }
        image.fds = entries.into_iter().map(|(_, number, fd)| (number, fd)).collect();
        Ok(())
    }
}

/// Listening sockets by name, to be taken one by one.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(String, OwnedFd)>,
}

impl Inherited {
    pub(crate) fn new(sockets: Vec<(String, OwnedFd)>) -> Self {
        Self { sockets }
    }

    /// Takes the TCP listener of this name, if there is one.
    pub fn take(&mut self, name: &str) -> Option<TcpListener> {
        self.take_if(name, |kind| kind.family != Family::Unix && is_stream(kind)).map(TcpListener::from)
    }

    /// Takes the listening Unix stream socket of this name, if there is one.
    pub fn take_unix(&mut self, name: &str) -> Option<UnixListener> {
        self.take_if(name, |kind| kind.family == Family::Unix && is_stream(kind)).map(UnixListener::from)
    }

    /// Takes the Unix datagram socket of this name, if there is one.
    pub fn take_unix_datagram(&mut self, name: &str) -> Option<UnixDatagram> {
        self.take_if(name, |kind| kind.family == Family::Unix && is_datagram(kind)).map(UnixDatagram::from)
    }

    /// Takes the UDP socket of this name, if there is one.
    pub fn take_udp(&mut self, name: &str) -> Option<UdpSocket> {
        self.take_if(name, |kind| kind.family != Family::Unix && is_datagram(kind)).map(UdpSocket::from)
    }

    /// Takes the descriptor of this name, whatever it is.
    pub fn take_fd(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(other, _)| other == name)?;
        Some(self.sockets.remove(at).1)
    }

    /// Returns the names that are left.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns whether none is left.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Returns copies of all that are left.
    pub(crate) fn copies(&self) -> Result<Vec<(String, OwnedFd)>> {
        let copy = |(name, fd): &(String, OwnedFd)| Ok((name.clone(), fd.try_clone()?));
        self.sockets
            .iter()
            .map(copy)
            .collect::<std::io::Result<_>>()
            .map_err(|e| Error::io("copy the inherited listeners", e))
    }

    fn take_if(&mut self, name: &str, wanted: impl Fn(&SocketKind) -> bool) -> Option<OwnedFd> {
        let (_, fd) = self.sockets.iter().find(|(other, _)| other == name)?;
        let kind = socket::kind(fd.as_fd()).ok()?;
        if !wanted(&kind) {
            tracing::warn!(name, kind = ?kind, fd = fd.as_raw_fd(), "the inherited socket is of another kind than was asked for");
            return None;
        }
        self.take_fd(name)
    }
}

fn is_stream(kind: &SocketKind) -> bool {
    kind.transport == Transport::Stream
}

fn is_datagram(kind: &SocketKind) -> bool {
    kind.transport == Transport::Datagram
}

/// A listening socket that a caller owns and this library copies.
pub trait AsListener {
    /// Returns a copy, close-on-exec.
    ///
    /// # Errors
    ///
    /// EBADF, EMFILE.
    fn copy(&self) -> std::io::Result<OwnedFd>;
}

impl AsListener for RawFd {
    fn copy(&self) -> std::io::Result<OwnedFd> {
        inherit::duplicate(*self)
    }
}

macro_rules! as_listener {
    ($($socket:ty),*) => {$(
        impl AsListener for $socket {
            fn copy(&self) -> std::io::Result<OwnedFd> { self.as_fd().try_clone_to_owned() }
        }
        impl AsListener for &$socket {
            fn copy(&self) -> std::io::Result<OwnedFd> { self.as_fd().try_clone_to_owned() }
        }
    )*};
}

as_listener!(OwnedFd, BorrowedFd<'_>, TcpListener, UnixListener, UnixDatagram, UdpSocket);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_table_parses_to_itself() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (channel, _other) = crate::sys::unix::pair().unwrap();
        let text = render(&[
            (Role::Listener("http".to_owned()), 3, tcp.as_fd()),
            (Role::Channel, 4, channel.as_fd()),
        ])
        .unwrap();
        let entries = parse(&text).unwrap();
        assert_eq!(entries[0].role, Role::Listener("http".to_owned()));
        assert!(entries[0].identity.starts_with("cookie:"));
        assert_eq!((entries[1].role.clone(), entries[1].number), (Role::Channel, 4));
        assert!(entries[1].identity.starts_with("inode:"));
    }

    #[test]
    fn a_malformed_table_names_the_word() {
        for text in
            ["channel", "channel=4", "channel=x@inode:1:2", "channel=-1@inode:1:2", "unheard-of=4@inode:1:2"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(
            parse("channel=4@inode:1:2 lock=4@inode:1:3")
                .unwrap_err()
                .to_string()
                .contains("descriptor 4 twice")
        );
    }

    #[test]
    fn a_descriptor_that_was_used_again_is_named_and_left_open() {
        let (a, _b) = crate::sys::unix::pair().unwrap();
        // As it is in a process that inherited it.
        crate::sys::file::clear_cloexec(a.as_fd());
        let entry = Entry { role: Role::Channel, number: a.as_raw_fd(), identity: "inode:1:2".to_owned() };
        let error = adopt(entry).unwrap_err().to_string();
        assert!(error.contains("channel") && error.contains("used again"), "{error}");
        assert!(socket::inode(a.as_fd()).is_ok());
    }

    #[test]
    fn a_closed_descriptor_is_named() {
        let entry = Entry {
            role: Role::Listener("http".to_owned()),
            number: 987_654,
            identity: "cookie:1".to_owned(),
        };
        assert!(adopt(entry).unwrap_err().to_string().contains("listener.http"));
    }

    #[test]
    fn names_that_would_break_the_table_are_refused() {
        for name in ["http-v2.tls", "greeter@1.socket"] {
            check_name(name).unwrap();
        }
        for name in ["", "a b", "a:b", "a=b", "ü", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for (name, fitted) in [("tcp:[::1]:80", "tcp.[..1].80"), ("a b=ü", "a.b..")] {
            assert_eq!(fit_name(name), fitted);
        }
        let [entry] = parse("listener.a@b=4@inode:1:2").unwrap().try_into().unwrap();
        assert_eq!((entry.role, entry.number), (Role::Listener("a@b".to_owned()), 4));
    }
}
