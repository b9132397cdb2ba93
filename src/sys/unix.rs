//! Unix stream sockets: pairs, paths, and descriptors that travel with bytes (unix(7), cmsg(3)).
//!
//! O_NONBLOCK belongs to the open file description, which a lease shares with whoever else holds it; so no socket here is
//! ever made non-blocking, and every call that must not block says so for itself (`MSG_DONTWAIT`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
    sendmsg, setsockopt, socket, socketpair, sockopt,
};

use super::process::PeerCred;
use crate::error::{Error, Result};
use crate::proto::wire::{FDS_MAX, LINE_MAX};

/// The longest path that fits a socket address, without its terminating zero (`sun_path`, unix(7)).
pub const PATH_MAX: usize = 107;

/// Returns two connected stream sockets.
///
/// # Errors
///
/// EMFILE and the like.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Returns two connected stream sockets, the first of which may send as much as the system allows before the second is read.
///
/// # Errors
///
/// EMFILE and the like.
pub fn roomy_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (from, to) = pair()?;
    // More than `net.core.wmem_max` is cut to it, see socket(7).
    setsockopt(&from, sockopt::SndBuf, &LINE_MAX)?;
    Ok((from, to))
}

/// Connects to a listening socket, without waiting for room in its queue.
///
/// # Errors
///
/// The path is too long, nothing listens there (`NotFound`, `ConnectionRefused`), or its queue is full (`WouldBlock`).
pub fn connect_to(path: &Path) -> Result<OwnedFd> {
    connect_asking(path, "is the daemon running, and is this its control path?")
}

/// As [`connect_to`], with what to look at where nobody listens.
///
/// # Errors
///
/// As there.
pub fn connect_asking(path: &Path, question: &str) -> Result<OwnedFd> {
    let attempt = || format!("connect to {}", path.display());
    let address = address(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|e| Error::io(attempt(), e))?;
    connect(fd.as_raw_fd(), &address).map_err(|e| Error::io(attempt(), unanswered(e.into(), question)))?;
    Ok(fd)
}

/// Says what to look at where nobody is.
fn unanswered(e: io::Error, question: &str) -> io::Error {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            io::Error::new(e.kind(), format!("{e}; {question}"))
        }
        _ => e,
    }
}

/// A listening socket at a path, and the inode by which it is known there.
#[derive(Debug)]
pub struct Bound {
    fd: OwnedFd,
    /// Where it was bound, beside the path, until it was put in place.
    beside: PathBuf,
    inode: (u64, u64),
    in_place: bool,
}

impl Bound {
    /// Binds a socket beside the path, readable and writable by its owner alone, and listens.
    ///
    /// # Errors
    ///
    /// The path is too long, its directory is missing or may be written by others, or a system call failed.
    pub fn beside(path: &Path) -> Result<Self> {
        let beside = sibling(path)?;
        check_directory(path)?;
        let attempt = format!("bind a control socket at {}", beside.display());
        let address = address(&beside)?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| Error::io(attempt.clone(), e))?;
        bind(fd.as_raw_fd(), &address).map_err(|e| Error::io(attempt.clone(), e))?;
        let mut bound = Self { fd, beside, inode: (0, 0), in_place: false };
        bound.restrict_and_listen().map_err(|e| Error::io(attempt.clone(), e))?;
        Ok(bound)
    }

    fn restrict_and_listen(&mut self) -> io::Result<()> {
        // Nobody can connect before `listen`, so nobody slips in between the two.
        std::fs::set_permissions(&self.beside, std::fs::Permissions::from_mode(0o600))?;
        self.inode = inode(&self.beside)?;
        Ok(listen(&self.fd, Backlog::MAXCONN)?)
    }

    /// Renames the socket over the path: from now on connections come here.
    ///
    /// # Errors
    ///
    /// What rename(2) says.
    pub fn put_in_place(&mut self, path: &Path) -> Result<()> {
        std::fs::rename(&self.beside, path)
            .map_err(|e| Error::io(format!("rename {} to {}", self.beside.display(), path.display()), e))?;
        self.in_place = true;
        Ok(())
    }

    /// Returns whether the path leads to this socket.
    pub fn is_at(&self, path: &Path) -> bool {
        inode(path).is_ok_and(|found| found == self.inode)
    }

    /// Takes one connection, if one waits; never blocks once the socket was polled readable.
    ///
    /// # Errors
    ///
    /// EMFILE and the like; `WouldBlock` where none waits.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        accept_from(self.fd.as_fd())
    }

    /// Removes the path if it leads to this socket; another process may have taken it over.
    pub fn remove(&self, path: &Path) {
        if self.is_at(path) {
            // What cannot be removed is replaced by the next one that binds here.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if !self.in_place && self.is_at(&self.beside) {
            // Left behind, it would only be litter.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes one connection, if one waits.
///
/// # Errors
///
/// As [`Bound::accept`].
pub fn accept_from(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // The description is this process's alone and blocking: look before, as there is no MSG_DONTWAIT for accept4.
    if !super::poll::wait_one(listener, super::poll::Want::Read, Some(std::time::Instant::now()))? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let fd = nix::sys::socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just returned this number, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> Result<UnixAddr> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_MAX {
        let detail = format!(
            "{} is {length} bytes long and a socket path has room for {PATH_MAX}; use a shorter directory such as /run/NAME",
            path.display()
        );
        return Err(Error::Invalid { detail });
    }
    UnixAddr::new(path).map_err(|e| Error::io(format!("use {} as a socket path", path.display()), e))
}

/// Names of this kind are what a crash between bind and rename can leave; the pid tells whose it was.
fn sibling(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::Invalid {
            detail: format!("{} has no file name to bind a socket at", path.display()),
        });
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    // A process of the same pid died here; sockets at such names are nobody else's.
    let _ = std::fs::remove_file(&beside);
    Ok(beside)
}

/// Checks that nobody else may write to the directory of a control socket.
///
/// # Errors
///
/// [`Error::Invalid`] where others may, [`Error::Io`] where there is none.
pub fn check_directory(path: &Path) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let meta =
        std::fs::metadata(dir).map_err(|e| Error::io(format!("use the directory {}", dir.display()), e))?;
    let own_group = meta.gid() == nix::unistd::getegid().as_raw();
    let others = if own_group { 0o002 } else { 0o022 };
    if meta.mode() & others == 0 {
        return Ok(());
    }
    let detail = format!(
        "others may write to {}, the directory of the socket {}; use one of its own: mkdir -m 700 /run/NAME",
        dir.display(),
        path.display()
    );
    Err(Error::Invalid { detail })
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstatat(nix::fcntl::AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Sends bytes and, with the first of them, descriptors. Returns how many bytes went; never blocks.
///
/// # Errors
///
/// `WouldBlock`, EPIPE and ECONNRESET where the peer is gone, EMSGSIZE for more than [`FDS_MAX`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(Errno::EMSGSIZE.into());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Err(Errno::EINTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// What came in one receive.
#[derive(Debug, Default)]
pub struct Received {
    /// How many bytes; none at the end.
    pub bytes: usize,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Whether descriptors were sent that did not fit, and are lost (`MSG_CTRUNC`).
    pub truncated: bool,
    /// Whether a datagram was longer than the buffer, and its rest is lost (`MSG_TRUNC`).
    pub cut: bool,
    /// Who sent it, on a socket that was made to ask for that.
    pub sender: Option<PeerCred>,
}

/// Receives bytes and so many descriptors; never blocks.
///
/// # Errors
///
/// `WouldBlock`; ECONNRESET where the peer closed with something unread.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds_max: usize) -> io::Result<Received> {
    receive_into(socket, buffer, space_of_rights(fds_max)?)
}

/// As [`receive`], on a socket that asks who sends.
///
/// # Errors
///
/// As [`receive`].
pub(super) fn receive_with_sender(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds_max: usize,
) -> io::Result<Received> {
    let length = u32::try_from(size_of::<libc::ucred>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: computes a length.
    let space = unsafe { libc::CMSG_SPACE(length) } as usize;
    receive_into(socket, buffer, space + space_of_rights(fds_max)?)
}

/// More room than that would let more descriptors in.
fn space_of_rights(fds_max: usize) -> io::Result<usize> {
    let length = u32::try_from(size_of::<RawFd>() * fds_max.min(FDS_MAX)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: computes a length.
    Ok(unsafe { libc::CMSG_SPACE(length) } as usize)
}

fn receive_into(socket: BorrowedFd<'_>, buffer: &mut [u8], control: usize) -> io::Result<Received> {
    let mut control: Vec<u8> = Vec::with_capacity(control);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut part,
        msg_iovlen: 1,
        msg_control: control.as_mut_ptr().cast(),
        msg_controllen: control.capacity(),
        msg_flags: 0,
    };
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let bytes = loop {
        // SAFETY: the header points to one part and one control buffer, each as long as it says and borrowed here alone.
        match Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) }) {
            Err(Errno::EINTR) => {}
            got => break usize::try_from(got?).expect("what is not an error is a length"),
        }
    };
    let mut received = Received {
        bytes,
        truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
        ..Received::default()
    };
    // Those that fitted were installed also where others were lost (EMFILE): not taken out, they would stay open.
    take_control(&header, &mut received);
    Ok(received)
}

/// Takes the descriptors and the sender out of a message that was received.
fn take_control(header: &libc::msghdr, received: &mut Received) {
    // SAFETY: the kernel has set the control buffer's length to what it wrote there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so a whole header of the control buffer; it may lie at any address.
        let item = unsafe { std::ptr::read_unaligned(next) };
        if (item.cmsg_level, item.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes an address within the same item.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            // SAFETY: computes a length.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..(item.cmsg_len - head) / size_of::<RawFd>() {
                // SAFETY: the item is so long that this number lies within it.
                let number = unsafe { first.add(i) };
                // SAFETY: as above; the kernel has written it there.
                let number = unsafe { std::ptr::read_unaligned(number) };
                // SAFETY: the kernel has just installed this number for this call, and nothing else knows it.
                received.fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        if (item.cmsg_level, item.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            // SAFETY: computes an address within the same item.
            let cred = unsafe { libc::CMSG_DATA(next) }.cast::<libc::ucred>();
            // SAFETY: an item of this type is one `ucred`, which may lie at any address.
            let cred = unsafe { std::ptr::read_unaligned(cred) };
            received.sender = Some(PeerCred { pid: cred.pid.cast_unsigned(), uid: cred.uid, gid: cred.gid });
        }
        // SAFETY: `next` is an item of this header's control buffer.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
}

/// Returns how many bytes of what was sent the peer has not taken yet.
///
/// # Errors
///
/// EBADF.
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which lives as long as the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Returns the effective user of this process.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}
