//! Unix datagrams: to a service manager, with descriptors, and from a service, with who sent them (unix(7)).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, sendmsg,
    setsockopt, socket, sockopt,
};

use super::unix::{self, Received};
use crate::proto::wire::FDS_MAX;

/// Where datagrams go: a path, or a name that is in no file system.
#[derive(Clone, Copy, Debug)]
pub struct Address(UnixAddr);

impl Address {
    /// Takes an address as a service manager writes it: a path from the root, or `@` and a name.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for anything else, and for what is too long.
    pub fn parse(text: &OsStr) -> io::Result<Self> {
        let parsed = match text.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name),
            [b'/', _, ..] => UnixAddr::new(text.as_bytes()),
            _ => Err(Errno::EINVAL),
        };
        parsed.map(Self).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Returns a socket to send with.
///
/// # Errors
///
/// EMFILE and the like.
pub fn sender() -> io::Result<OwnedFd> {
    datagram_socket()
}

/// Sends one datagram and descriptors with it; never blocks. The receiver learns this process's pid, if it asked for that.
///
/// # Errors
///
/// `WouldBlock` where the receiver's queue is full; `NotFound` and `ConnectionRefused` where nobody receives; EMSGSIZE for more than [`FDS_MAX`] descriptors.
pub fn send_to(socket: BorrowedFd<'_>, to: &Address, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > FDS_MAX {
        return Err(Errno::EMSGSIZE.into());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, Some(&to.0)) {
            Err(Errno::EINTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Returns whether a datagram that could not be sent may be sent later: the receiver's queue is full, or so many descriptors are in flight
/// that there may be no more (unix(7)).
pub fn is_for_now(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::WouldBlock
        || matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ETOOMANYREFS))
}

/// Returns a socket with an abstract name that the kernel chose (unix(7), autobind), which says with every datagram who sent it.
///
/// The name is free when its last copy closes, nothing is left in a file system, and nobody can have it before. It belongs to this network
/// namespace, where everybody may send to it.
///
/// # Errors
///
/// EMFILE and the like.
pub fn receiver() -> io::Result<OwnedFd> {
    let fd = datagram_socket()?;
    // Before there is a name: a datagram that came earlier would not say who sent it.
    setsockopt(&fd, sockopt::PassCred, &true)?;
    bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
    Ok(fd)
}

/// Returns the abstract name of a socket.
///
/// # Errors
///
/// `InvalidInput` where it has none.
pub fn abstract_name(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let address: UnixAddr = getsockname(socket.as_raw_fd())?;
    let name = address.as_abstract().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(name.to_vec())
}

/// Receives one datagram and what came with it, and says who sent it; never blocks.
///
/// # Errors
///
/// `WouldBlock` where none is there.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    unix::receive_with_sender(socket, buffer, FDS_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_datagram_says_who_sent_it_and_whether_it_was_cut() {
        let receiving = receiver().unwrap();
        let name = abstract_name(receiving.as_fd()).unwrap();
        let to = Address::parse(OsStr::from_bytes(&[b"@", name.as_slice()].concat())).unwrap();
        let sending = sender().unwrap();
        let mut buffer = [0; 4];
        assert_eq!(receive(receiving.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send_to(sending.as_fd(), &to, b"abcd", &[]).unwrap();
        send_to(sending.as_fd(), &to, b"abcde", &[sending.as_fd(), receiving.as_fd()]).unwrap();
        for (cut, fds) in [(false, 0), (true, 2)] {
            let got = receive(receiving.as_fd(), &mut buffer).unwrap();
            assert_eq!((&buffer[..got.bytes], got.cut, got.fds.len()), (b"abcd".as_slice(), cut, fds));
            assert_eq!(got.sender.unwrap().pid, std::process::id());
        }
    }

    #[test]
    fn an_address_is_a_path_from_the_root_or_an_abstract_name() {
        for good in ["/run/systemd/notify", "@name", "@/org/name"] {
            Address::parse(OsStr::new(good)).unwrap();
        }
        let long = format!("/{}", "x".repeat(108));
        for bad in ["", "@", "/", "notify", "vsock:2:1234", &long] {
            assert!(Address::parse(OsStr::new(bad)).is_err(), "{bad:?}");
        }
    }
}
