//! What a descriptor is: the identities by which every link checks that it inherited what it was told.

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockType, SockaddrLike, SockaddrStorage, bind, getsockname, getsockopt, listen,
    sockopt,
};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

/// A file's identity for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inode {
    /// The device that the file is on.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

/// A protocol family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Inet,
    /// IPv6, perhaps with IPv4 beside it.
    Inet6,
    /// Local to the machine, see unix(7).
    Unix,
    /// Any other.
    Other,
}

/// How a socket carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Bytes in order, such as TCP.
    Stream,
    /// Packets, such as UDP.
    Datagram,
    /// Packets in order, see SOCK_SEQPACKET.
    SeqPacket,
    /// Any other.
    Other,
}

/// What a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketKind {
    /// Its family.
    pub family: Family,
    /// How it carries data.
    pub transport: Transport,
    /// Whether connections are accepted on it.
    pub listening: bool,
    /// What it is bound to, as [`local_address`] writes it.
    pub local_address: String,
}

/// Returns the number that the kernel has given this socket and gives no other until the next boot, see SO_COOKIE.
///
/// # Errors
/// ENOTSOCK for a descriptor that is not a socket.
pub fn cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let (cookie, length) = option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, 0u64)?;
    if length != size_of::<u64>() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the socket's cookie is cut short"));
    }
    Ok(cookie)
}

/// Returns the identity of any descriptor's file.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<Inode> {
    let stat = fstat(fd)?;
    Ok(Inode { dev: stat.st_dev, ino: stat.st_ino })
}

/// Returns what the socket is.
///
/// # Errors
/// ENOTSOCK for a descriptor that is not a socket.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<SocketKind> {
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    Ok(SocketKind {
        family: family(&address),
        transport: transport(fd)?,
        listening: is_listening(fd)?,
        local_address: address_text(&address),
    })
}

/// Returns what the socket is bound to: `127.0.0.1:80`, `[::1]:80`, a path, `@name` for an abstract one, or nothing.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<String> {
    Ok(address_text(&getsockname::<SockaddrStorage>(fd.as_raw_fd())?))
}

/// Returns whether connections are accepted on the socket.
pub fn is_listening(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(getsockopt(&fd, sockopt::AcceptConn)?)
}

fn family(address: &SockaddrStorage) -> Family {
    match address.family() {
        Some(AddressFamily::Inet) => Family::Inet,
        Some(AddressFamily::Inet6) => Family::Inet6,
        Some(AddressFamily::Unix) => Family::Unix,
        _ => Family::Other,
    }
}

/// Returns the flags that belong to the open file description, which everybody who has a copy shares, see F_GETFL.
///
/// # Errors
/// EBADF.
pub fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    Ok(fcntl(fd, FcntlArg::F_GETFL)?)
}

/// Sets them, for everybody.
///
/// # Errors
/// EBADF.
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags)))?;
    Ok(())
}

/// One of these flags: accept(2) and the like do not wait.
pub const NONBLOCK: i32 = libc::O_NONBLOCK;

/// Makes a socket listen that was shut down, where it was bound and with a queue of this length.
///
/// # Errors
/// What bind(2) and listen(2) return: EADDRINUSE where somebody else has the address by now.
pub fn listen_again(fd: BorrowedFd<'_>, address: Option<SocketAddr>, limit: u32) -> io::Result<()> {
    // A port that the kernel had chosen goes with the shutdown, and listen(2) alone would have it choose another one.
    if let Some(address) = address {
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            // One that was asked for stays, and is not bound twice.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let backlog = i32::try_from(limit).ok().and_then(|limit| Backlog::new(limit).ok());
    Ok(listen(&fd, backlog.unwrap_or(Backlog::MAXCONN))?)
}

fn transport(fd: BorrowedFd<'_>) -> io::Result<Transport> {
    Ok(match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::Stream) => Transport::Stream,
        Ok(SockType::Datagram) => Transport::Datagram,
        Ok(SockType::SeqPacket) => Transport::SeqPacket,
        // A type that nix does not know is EINVAL.
        Ok(_) | Err(Errno::EINVAL) => Transport::Other,
        Err(e) => return Err(e.into()),
    })
}

fn address_text(address: &SockaddrStorage) -> String {
    if let Some(v4) = address.as_sockaddr_in() {
        return SocketAddrV4::from(*v4).to_string();
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return SocketAddrV6::from(*v6).to_string();
    }
    let Some(unix) = address.as_unix_addr() else {
        return address
            .family()
            .map_or_else(|| "unknown".to_owned(), |family| format!("{family:?}").to_lowercase());
    };
    match (unix.path(), unix.as_abstract()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", name.escape_ascii()),
        (None, None) => String::new(),
    }
}

/// A type that any bytes are a valid value of, and that has none between its fields that the kernel would not see.
pub(super) trait Plain: Copy {}
impl Plain for u64 {}
impl<const N: usize> Plain for [u8; N] {}

/// Returns a socket option that nix does not know, with as many bytes of it as the kernel wrote.
pub(super) fn option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    empty: T,
) -> io::Result<(T, usize)> {
    let mut value = MaybeUninit::new(empty);
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::EINVAL)?;
    let (to, length_to) = (value.as_mut_ptr().cast(), &raw mut length);
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the value.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, to, length_to) })?;
    // SAFETY: it was initialised, and any bytes that the kernel wrote over it are a valid value.
    Ok((unsafe { value.assume_init() }, length as usize))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn a_copy_has_the_same_identities_and_another_socket_has_others() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let (copy, other) = (one.try_clone().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        assert_eq!(cookie(one.as_fd()).unwrap(), cookie(copy.as_fd()).unwrap());
        assert_ne!(cookie(one.as_fd()).unwrap(), cookie(other.as_fd()).unwrap());
        assert_eq!(inode(one.as_fd()).unwrap(), inode(copy.as_fd()).unwrap());
        assert_ne!(inode(one.as_fd()).unwrap(), inode(other.as_fd()).unwrap());
    }

    #[test]
    fn a_file_has_an_inode_and_is_not_a_socket() {
        let file = File::open("/dev/null").unwrap();
        inode(file.as_fd()).unwrap();
        assert_eq!(cookie(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(kind(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn every_kind_of_socket_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let (pair, _other) = UnixStream::pair().unwrap();
        let (datagrams, _other_too) = UnixDatagram::pair().unwrap();
        let of = |family, transport, listening, local_address: String| SocketKind {
            family,
            transport,
            listening,
            local_address,
        };
        use {Family::*, Transport::*};
        let address = |socket: &TcpListener| socket.local_addr().unwrap().to_string();
        assert_eq!(kind(listener.as_fd()).unwrap(), of(Inet, Stream, true, address(&listener)));
        assert_eq!(
            kind(stream.as_fd()).unwrap(),
            of(Inet, Stream, false, stream.local_addr().unwrap().to_string())
        );
        assert_eq!(
            kind(udp.as_fd()).unwrap(),
            of(Inet, Datagram, false, udp.local_addr().unwrap().to_string())
        );
        assert_eq!(kind(unix.as_fd()).unwrap(), of(Unix, Stream, true, path.display().to_string()));
        assert_eq!(kind(pair.as_fd()).unwrap(), of(Unix, Stream, false, String::new()));
        assert_eq!(kind(datagrams.as_fd()).unwrap(), of(Unix, Datagram, false, String::new()));
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert_eq!(kind(six.as_fd()).unwrap(), of(Inet6, Stream, true, address(&six)));
        }
    }

    #[test]
    fn an_abstract_address_is_written_with_an_at_sign() {
        let name = format!("handoff-test-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert_eq!(local_address(listener.as_fd()).unwrap(), format!("@{name}"));
    }
}
