//! Sockets to hold: made by options, bound, and listening where their kind listens.
//!
//! Never SO_REUSEPORT: a second process must fail to bind, or two serve at once.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, UnixAddr,
    bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid};

use super::process::{self, PeerCred};
use super::socket::{Inode, Transport};

/// How long others who bind in the same directory are waited for, and how often they are asked.
const TURN: Duration = Duration::from_secs(2);
const TURN_PAUSE: Duration = Duration::from_millis(1);

/// What is set on a socket before it is bound. What is not given is left as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How long the accept queue may get; the longest that the kernel allows where it is not given.
    pub backlog: Option<u32>,
    /// SO_REUSEADDR; on for TCP where it is not given.
    pub reuse_address: Option<bool>,
    /// IPV6_V6ONLY.
    pub v6_only: Option<bool>,
    /// SO_KEEPALIVE, which accepted connections inherit.
    pub keep_alive: Option<bool>,
    /// TCP_NODELAY, which accepted connections inherit.
    pub no_delay: Option<bool>,
    /// SO_RCVBUF in bytes, which accepted connections inherit.
    pub receive_buffer: Option<usize>,
    /// SO_SNDBUF in bytes, which accepted connections inherit.
    pub send_buffer: Option<usize>,
    /// IP_FREEBIND: an address that this machine does not have, or not yet.
    pub free_bind: Option<bool>,
    /// IP_TRANSPARENT: as that, and for addresses that are routed here. Needs CAP_NET_ADMIN.
    pub transparent: Option<bool>,
}

/// Who may use the path of a Unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The permission bits, whatever the umask says; where they are not given, the umask decides.
    pub mode: Option<u32>,
    /// The user that owns it.
    pub uid: Option<u32>,
    /// The group that owns it.
    pub gid: Option<u32>,
}

/// Returns a socket that is bound to an address of the internet families, listening if it is a stream.
///
/// # Errors
///
/// What socket(2), setsockopt(2), bind(2) and listen(2) say.
pub fn inet(transport: Transport, address: SocketAddr, options: &Options) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = create(family, transport)?;
    if options.reuse_address.unwrap_or(transport == Transport::Stream) {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    set(&fd, sockopt::Ipv6V6Only, options.v6_only)?;
    set(&fd, sockopt::IpFreebind, options.free_bind)?;
    set(&fd, sockopt::IpTransparent, options.transparent)?;
    set(&fd, sockopt::KeepAlive, options.keep_alive)?;
    set(&fd, sockopt::TcpNoDelay, options.no_delay)?;
    set_common(&fd, options)?;
    bind_and_listen(fd, &SockaddrStorage::from(address), transport, options)
}

/// Returns a socket that is bound to a name without a path (unix(7), "abstract").
///
/// # Errors
///
/// As [`inet`].
pub fn unix_abstract(transport: Transport, name: &[u8], options: &Options) -> io::Result<OwnedFd> {
    let address = UnixAddr::new_abstract(name)?;
    let fd = create(AddressFamily::Unix, transport)?;
    set_common(&fd, options)?;
    bind_and_listen(fd, &address, transport, options)
}

/// What was at the path of a Unix socket that was to be bound.
#[derive(Debug)]
pub enum Occupied {
    /// A socket that somebody has open, and if it listens, who said so.
    ByLive(Option<PeerCred>),
    /// A file that is no socket.
    ByFile,
}

/// Returns a socket that is bound to a path where nothing is, or only a socket that nobody has open: that one is moved out of the way
/// and removed once it is known to be the one that was looked at.
///
/// It is bound at the path itself, not beside it and renamed: the kernel tells the name that it was bound with to everybody who asks, and programs
/// find their inherited sockets by it. In the directory one of us does this at a time (flock(2)), since a socket that does not listen yet looks dead.
///
/// # Errors
///
/// As [`inet`], and what rename(2), chmod(2) and chown(2) say. The inner error is what is there instead.
pub fn unix_path(
    transport: Transport,
    path: &Path,
    options: &Options,
    access: Access,
) -> io::Result<Result<OwnedFd, Occupied>> {
    let _turn = take_turn(path)?;
    match look(transport, path)? {
        Found::Occupied(by) => return Ok(Err(by)),
        Found::Nothing => {}
        Found::Dead(inode) => remove_dead(path, inode)?,
    }
    let fd = create(AddressFamily::Unix, transport)?;
    set_common(&fd, options)?;
    if let Some(mode) = access.mode {
        // The file gets these bits less the umask, and is never open to more than it is to be.
        fchmod(&fd, Mode::from_bits_truncate(mode))?;
    }
    match bind(fd.as_raw_fd(), &UnixAddr::new(path)?) {
        // Somebody was faster, who did not wait for his turn.
        Err(Errno::EADDRINUSE) => return Ok(Err(Occupied::ByLive(None))),
        bound => bound?,
    }
    let ready = grant(path, access).and_then(|()| listen_if_it_can(&fd, transport, options));
    if let Err(e) = ready {
        // It has been there for an instant, and nobody could connect.
        let _ = fs::remove_file(path);
        return Err(e);
    }
    Ok(Ok(fd))
}

/// Returns what lets the next one go on when it is dropped.
fn take_turn(path: &Path) -> io::Result<fs::File> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir = fs::File::open(dir)?;
    let deadline = Instant::now() + TURN;
    // Without a turn it is only the race that is left, and a directory can be locked by anybody for as long as he likes.
    while !super::lock::try_lock(&dir)? && Instant::now() < deadline {
        std::thread::sleep(TURN_PAUSE);
    }
    Ok(dir)
}

/// Moves it aside first: a name cannot be removed on the condition of what it names, but what was moved can be looked at.
fn remove_dead(path: &Path, dead: Inode) -> io::Result<()> {
    let aside = sibling(path);
    fs::rename(path, &aside)?;
    let meta = fs::symlink_metadata(&aside)?;
    if (Inode { dev: meta.dev(), ino: meta.ino() }) == dead {
        return fs::remove_file(&aside);
    }
    // Not what was found dead: it gets its path back, and binding there fails.
    Ok(renameat2(AT_FDCWD, &aside, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE)?)
}

enum Found {
    Nothing,
    Dead(Inode),
    Occupied(Occupied),
}

fn look(transport: Transport, path: &Path) -> io::Result<Found> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        meta => meta?,
    };
    if !meta.file_type().is_socket() {
        return Ok(Found::Occupied(Occupied::ByFile));
    }
    let probe = create(AddressFamily::Unix, transport)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => Ok(Found::Dead(Inode { dev: meta.dev(), ino: meta.ino() })),
        Err(Errno::ENOENT) => Ok(Found::Nothing),
        Ok(()) => Ok(Found::Occupied(Occupied::ByLive(process::peer_cred(probe.as_fd()).ok()))),
        // EAGAIN says that its queue is full, EPROTOTYPE that it is of another kind, EACCES that it is not ours to ask.
        Err(_) => Ok(Found::Occupied(Occupied::ByLive(None))),
    }
}

fn grant(path: &Path, access: Access) -> io::Result<()> {
    if access.uid.is_some() || access.gid.is_some() {
        nix::unistd::chown(path, access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw))?;
    }
    if let Some(mode) = access.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Names of this kind are what a crash can leave; the pid tells whose it was.
fn sibling(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn create(family: AddressFamily, transport: Transport) -> io::Result<OwnedFd> {
    let kind = match transport {
        Transport::Stream => SockType::Stream,
        Transport::Datagram => SockType::Datagram,
        Transport::SeqPacket => SockType::SeqPacket,
        Transport::Other => return Err(Errno::ESOCKTNOSUPPORT.into()),
    };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?)
}

fn set<O: SetSockOpt<Val = bool>>(fd: &OwnedFd, option: O, value: Option<bool>) -> io::Result<()> {
    match value {
        Some(value) => Ok(setsockopt(fd, option, &value)?),
        None => Ok(()),
    }
}

/// The forced variants go past net.core.rmem_max and wmem_max, and need CAP_NET_ADMIN.
fn set_common(fd: &OwnedFd, options: &Options) -> io::Result<()> {
    if let Some(size) = options.receive_buffer
        && setsockopt(fd, sockopt::RcvBufForce, &size).is_err()
    {
        setsockopt(fd, sockopt::RcvBuf, &size)?;
    }
    if let Some(size) = options.send_buffer
        && setsockopt(fd, sockopt::SndBufForce, &size).is_err()
    {
        setsockopt(fd, sockopt::SndBuf, &size)?;
    }
    Ok(())
}

fn bind_and_listen(
    fd: OwnedFd,
    address: &dyn SockaddrLike,
    transport: Transport,
    options: &Options,
) -> io::Result<OwnedFd> {
    bind(fd.as_raw_fd(), address)?;
    listen_if_it_can(&fd, transport, options)?;
    Ok(fd)
}

fn listen_if_it_can(fd: &OwnedFd, transport: Transport, options: &Options) -> io::Result<()> {
    if transport == Transport::Datagram { Ok(()) } else { listen(fd.as_fd(), options.backlog) }
}

/// The kernel takes the length for unsigned and cuts it to net.core.somaxconn: so -1 is the longest.
fn listen(fd: BorrowedFd<'_>, backlog: Option<u32>) -> io::Result<()> {
    let length = backlog.map_or(-1, |length| libc::c_int::try_from(length).unwrap_or(libc::c_int::MAX));
    // SAFETY: two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), length) })?;
    Ok(())
}

/// Returns how many bytes the kernel has given the receiving and the sending buffer; it counts its own costs in, twice what was asked for.
///
/// # Errors
///
/// ENOTSOCK.
pub fn buffers(fd: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    use nix::sys::socket::getsockopt;
    Ok((getsockopt(&fd, sockopt::RcvBuf)?, getsockopt(&fd, sockopt::SndBuf)?))
}

/// Returns the number of a network interface.
///
/// # Errors
///
/// ENODEV where there is none of this name.
pub fn interface(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Returns whether a socket could not be made or bound because the machine lacks its family: EAFNOSUPPORT, or EADDRNOTAVAIL where it is switched off.
pub fn lacks_family(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Returns the error of a bind(2) to what is taken.
pub fn in_use() -> io::Error {
    Errno::EADDRINUSE.into()
}
