//! How full a listener's accept queue is, and how often one has overflowed: what clients wait in while nobody accepts.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvmsg, sendmsg, socket,
};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::socket::{Family, Transport, kind, option};

/// The connections that are complete and not accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptQueue {
    /// How many wait now.
    pub len: u32,
    /// The backlog: one more than this fits.
    pub limit: u32,
}

/// Where struct tcp_info of linux/tcp.h has its state, and what is the queue's length and limit in a listener's.
const TCP_STATE: usize = 0;
const TCP_UNACKED: usize = 24;
const TCP_SACKED: usize = 28;
const TCP_INFO_BYTES: usize = 32;
const TCP_LISTEN: u8 = 10;

/// Returns the accept queue of a listening TCP or Unix socket; nothing for what has none or does not tell.
pub fn accept_queue(fd: BorrowedFd<'_>) -> io::Result<Option<AcceptQueue>> {
    let kind = kind(fd)?;
    match (kind.listening, kind.family, kind.transport) {
        (true, Family::Inet | Family::Inet6, Transport::Stream) => of_tcp(fd),
        (true, Family::Unix, Transport::Stream | Transport::SeqPacket) => Ok(None),
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
    Ok(Some(AcceptQueue { len: word_at(&info, TCP_UNACKED), limit: word_at(&info, TCP_SACKED) }))
}

/// Returns zero behind the end: every caller has checked the length.
fn word_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
}
