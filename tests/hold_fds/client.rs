//! A client of any kind of socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, connect, recv, send, setsockopt, sockopt,
};

use crate::common::PATIENCE;

/// Where a socket can be reached.
#[derive(Clone, Debug)]
pub enum Address {
    Inet(SocketAddr),
    Udp(SocketAddr),
    Unix(String),
    SeqPacket(String),
    Datagram(String),
}

impl Address {
    /// Reads what `tests/hold_fds/listen_fds.py` says of a socket.
    pub fn parse(family: &str, kind: &str, address: &str) -> Self {
        match (family, kind) {
            ("inet", "stream") => Self::Inet(address.parse().unwrap()),
            ("inet", _) => Self::Udp(address.parse().unwrap()),
            (_, "stream") => Self::Unix(address.to_owned()),
            (_, "seqpacket") => Self::SeqPacket(address.to_owned()),
            _ => Self::Datagram(address.to_owned()),
        }
    }
}

/// Sends something and returns what comes back.
pub fn ask(address: &Address, what: &str) -> io::Result<String> {
    let what = what.as_bytes();
    let mut answer = vec![0; 1024];
    let length = match address {
        Address::Inet(address) => {
            let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(what)?;
            return read_to_end(stream);
        }
        Address::Unix(path) => {
            let mut stream = UnixStream::connect_addr(&unix_address(path)?)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(what)?;
            return read_to_end(stream);
        }
        Address::Udp(address) => {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(what, address)?;
            socket.recv(&mut answer)?
        }
        Address::Datagram(path) => {
            let own = format!("handoff-client-{}-{:p}", std::process::id(), &raw const answer);
            let socket = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(own)?)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to_addr(what, &unix_address(path)?)?;
            socket.recv(&mut answer)?
        }
        Address::SeqPacket(path) => {
            let kind = SockType::SeqPacket;
            let socket = nix::sys::socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(60, 0))?;
            connect(socket.as_raw_fd(), &nix::sys::socket::UnixAddr::new(path.as_str())?)?;
            send(socket.as_raw_fd(), what, MsgFlags::MSG_NOSIGNAL)?;
            recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?
        }
    };
    answer.truncate(length);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn unix_address(path: &str) -> io::Result<UnixAddr> {
    match path.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None => UnixAddr::from_pathname(path),
    }
}

fn read_to_end(mut stream: impl Read) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
