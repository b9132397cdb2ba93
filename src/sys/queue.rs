//! How full a listener's accept queue is, and how often one has overflowed: what clients wait in while nobody accepts.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use serde::{Deserialize, Serialize};

use super::socket::{Family, Transport, inode, kind, option};

/// Where struct tcp_info of linux/tcp.h has its state, and what is the queue's length and limit in a listener's.
const TCP_STATE: usize = 0;
const TCP_UNACKED: usize = 24;
const TCP_SACKED: usize = 28;
const TCP_INFO_BYTES: usize = 32;
const TCP_LISTEN: u8 = 10;

/// From linux/netlink.h, linux/sock_diag.h and linux/unix_diag.h.
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UDIAG_SHOW_PEER: u32 = 0x04;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
/// The sizes of struct nlmsghdr, unix_diag_req and unix_diag_msg.
const NETLINK_HEADER: usize = 16;
const REQUEST: usize = NETLINK_HEADER + 24;
const ANSWER: usize = NETLINK_HEADER + 16;

/// The connections that are complete and not accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptQueue {
    /// How many wait now.
    pub len: u32,
    /// The backlog: one more than this fits.
    pub limit: u32,
}

/// Returns the accept queue of a listening TCP or Unix socket; nothing for what has none or does not tell.
pub fn accept_queue(fd: BorrowedFd<'_>) -> io::Result<Option<AcceptQueue>> {
    let kind = kind(fd)?;
    match (kind.listening, kind.family, kind.transport) {
        (true, Family::Inet | Family::Inet6, Transport::Stream) => of_tcp(fd),
        (true, Family::Unix, Transport::Stream | Transport::SeqPacket) => of_unix(fd),
        _ => Ok(None),
    }
}

fn of_tcp(fd: BorrowedFd<'_>) -> io::Result<Option<AcceptQueue>> {
    let (info, length) = match option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, [0u8; TCP_INFO_BYTES]) {
        Ok(info) => info,
        // Another protocol that listens, such as SCTP.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => return Ok(None),
        Err(e) => return Err(e),
    };
    if length < TCP_INFO_BYTES || info[TCP_STATE] != TCP_LISTEN {
        return Ok(None);
    }
    let (len, limit) = (word_at(&info, TCP_UNACKED), word_at(&info, TCP_SACKED));
    Ok(len.zip(limit).map(|(len, limit)| AcceptQueue { len, limit }))
}

/// Kernels without CONFIG_UNIX_DIAG, and sandboxes, do not answer.
fn of_unix(fd: BorrowedFd<'_>) -> io::Result<Option<AcceptQueue>> {
    let Ok(ino) = u32::try_from(inode(fd)?.ino) else { return Ok(None) };
    Ok(ask_diag(ino, UDIAG_SHOW_RQLEN).ok().and_then(|answer| queue_in(&answer)))
}

/// Returns the inode of a Unix connection's other end: 0 while nobody has accepted it, nothing where there is none.
pub(super) fn unix_peer(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let Ok(ino) = u32::try_from(inode(fd)?.ino) else { return Ok(None) };
    let answer = ask_diag(ino, UDIAG_SHOW_PEER)?;
    if half_at(&answer, 4) != Some(SOCK_DIAG_BY_FAMILY) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel does not tell"));
    }
    Ok(attribute(&answer, UNIX_DIAG_PEER).and_then(|value| word_at(value, 0)).map(u64::from))
}

fn ask_diag(ino: u32, show: u32) -> nix::Result<Vec<u8>> {
    let diag =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    sendto(diag.as_raw_fd(), &request(ino, show), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; 4096];
    // The kernel has answered before it returned from the request.
    let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    answer.truncate(length);
    Ok(answer)
}

/// Asks for something of the one socket with this inode, in any state and with any cookie, see sock_diag(7).
fn request(ino: u32, show: u32) -> Vec<u8> {
    let kind_and_flags = [SOCK_DIAG_BY_FAMILY.to_ne_bytes(), NLM_F_REQUEST.to_ne_bytes()].concat();
    let sequence_and_port = [0; 8];
    let family_and_protocol = [libc::AF_UNIX as u8, 0, 0, 0];
    let words = [u32::MAX, ino, show, u32::MAX, u32::MAX].map(u32::to_ne_bytes);
    [
        &(REQUEST as u32).to_ne_bytes()[..],
        &kind_and_flags,
        &sequence_and_port,
        &family_and_protocol,
        words.as_flattened(),
    ]
    .concat()
}

fn queue_in(answer: &[u8]) -> Option<AcceptQueue> {
    if half_at(answer, 4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let value = attribute(answer, UNIX_DIAG_RQLEN)?;
    Some(AcceptQueue { len: word_at(value, 0)?, limit: word_at(value, 4)? })
}

/// Returns what is in an answer's attribute of a kind.
fn attribute(answer: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = answer.get(ANSWER..)?;
    loop {
        let (length, kind) = (usize::from(half_at(attributes, 0)?), half_at(attributes, 2)?);
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Returns how often a connection found an accept queue full, and how often one was dropped for that or another reason:
/// ListenOverflows and ListenDrops, of all listeners in this network namespace since it was made.
pub fn listen_overflows() -> io::Result<(u64, u64)> {
    let netstat = fs::read_to_string("/proc/net/netstat")?;
    let counter = |name| counter(&netstat, "TcpExt:", name).ok_or_else(|| missing("netstat", name));
    Ok((counter("ListenOverflows")?, counter("ListenDrops")?))
}

/// Returns how many TCP connections have been made to this network namespace since it was made: PassiveOpens.
pub fn arrivals() -> io::Result<u64> {
    let snmp = fs::read_to_string("/proc/net/snmp")?;
    counter(&snmp, "Tcp:", "PassiveOpens").ok_or_else(|| missing("snmp", "PassiveOpens"))
}

/// Returns how long an accept queue may be at most: what a program asks for beyond it is cut, see listen(2).
pub fn longest() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/sys/net/core/somaxconn")?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "somaxconn is no number"))
}

fn missing(file: &str, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/net/{file} has no {name}"))
}

/// The names are on one line and the values on the next with the same word in front.
fn counter(table: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|word| word == name)?;
    values.split_ascii_whitespace().nth(at)?.parse().ok()
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn half_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_ne_bytes(*half))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// As many connections as are made and not accepted are in the queue, and each accept takes one out.
    fn assert_counts(
        queue: impl Fn() -> AcceptQueue,
        connect: impl Fn() -> Box<dyn Send>,
        accept: impl Fn(),
    ) {
        assert_eq!(queue().len, 0);
        let clients: Vec<_> = (0..3).map(|_| connect()).collect();
        assert_eq!(queue().len, 3);
        accept();
        assert_eq!(queue().len, 2);
        drop(clients);
    }

    #[test]
    fn three_clients_that_nobody_accepts_are_three_in_the_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_counts(
            || accept_queue(listener.as_fd()).unwrap().unwrap(),
            || Box::new(TcpStream::connect(address).unwrap()),
            || drop(listener.accept().unwrap()),
        );
        assert!(accept_queue(listener.as_fd()).unwrap().unwrap().limit > 3);
    }

    #[test]
    fn a_unix_listener_is_counted_too_where_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        if accept_queue(listener.as_fd()).unwrap().is_none() {
            return eprintln!("skipped: this kernel does not tell");
        }
        assert_counts(
            || accept_queue(listener.as_fd()).unwrap().unwrap(),
            || Box::new(UnixStream::connect(&path).unwrap()),
            || drop(listener.accept().unwrap()),
        );
        assert!(accept_queue(listener.as_fd()).unwrap().unwrap().limit > 3);
    }

    #[test]
    fn what_does_not_listen_has_no_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (pair, _other) = UnixStream::pair().unwrap();
        for fd in [stream.as_fd(), udp.as_fd(), pair.as_fd()] {
            assert_eq!(accept_queue(fd).unwrap(), None);
        }
    }

    #[test]
    fn an_answer_that_is_cut_or_an_error_is_no_queue() {
        let mut answer = vec![0; ANSWER];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        let attribute = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        // An attribute of another kind and an odd length, with its padding, comes before.
        answer.extend([attribute(5, 1), vec![0; 4], attribute(12, UNIX_DIAG_RQLEN)].concat());
        answer.extend([3u32, 128].map(u32::to_ne_bytes).as_flattened());
        assert_eq!(queue_in(&answer), Some(AcceptQueue { len: 3, limit: 128 }));
        for cut in 0..answer.len() {
            assert_eq!(queue_in(&answer[..cut]), None, "cut at {cut}");
        }
        answer[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(queue_in(&answer), None);
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[ANSWER..ANSWER + 2].copy_from_slice(&0u16.to_ne_bytes());
        assert_eq!(
            queue_in(&answer[..ANSWER + 4]),
            None,
            "an attribute without a length does not hold us up"
        );
    }

    #[test]
    fn a_counter_is_found_by_its_name() {
        let netstat =
            "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: A ListenDrops\nIpExt: 4 5\n";
        assert_eq!(counter(netstat, "TcpExt:", "ListenOverflows"), Some(22));
        assert_eq!(counter(netstat, "TcpExt:", "ListenDrops"), Some(333));
        assert_eq!(counter(netstat, "TcpExt:", "Listen"), None);
        let (overflows, drops) = listen_overflows().unwrap();
        assert!(drops >= overflows);
    }

    #[test]
    fn a_connection_that_is_made_has_arrived() {
        let before = arrivals().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(arrivals().unwrap() > before);
        assert!(longest().unwrap() > 0);
    }
}
