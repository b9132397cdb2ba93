//! Whether a connection was accepted, and by whom: that it was made proves nothing, as the kernel makes it for a listener that nobody looks at.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::queue;

/// Returns the inode of the other end of a TCP connection of this machine: `None` while it is in the accept queue, and where it is closed already.
///
/// Only accept(2) gives the socket one, and then it is found in the descriptors of whoever accepted it.
///
/// # Errors
///
/// `/proc/net/tcp` cannot be read.
pub fn of_tcp(server: SocketAddr, client: SocketAddr) -> io::Result<Option<u64>> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let rows = match fs::read_to_string(table) {
            Ok(rows) => rows,
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let row = rows.lines().skip(1).find_map(|row| inode_in(row, server, client));
        if let Some(inode) = row {
            return Ok((inode != 0).then_some(inode));
        }
    }
    Ok(None)
}

/// Returns the same for a Unix connection, given its own end.
///
/// # Errors
///
/// This kernel does not tell (no CONFIG_UNIX_DIAG).
pub fn of_unix(client: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    Ok(queue::unix_peer(client)?.filter(|inode| *inode != 0))
}

/// Returns whether a process has the socket with this inode.
pub fn has_socket(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
}

/// The fields are `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode`, see proc_net_tcp(5).
fn inode_in(row: &str, server: SocketAddr, client: SocketAddr) -> Option<u64> {
    let fields: Vec<&str> = row.split_ascii_whitespace().collect();
    let is = |field: usize, address: SocketAddr| {
        fields.get(field).and_then(|text| address_of(text)).is_some_and(|found| found == plain(address))
    };
    (is(1, server) && is(2, client)).then(|| fields.get(9)?.parse().ok())?
}

/// An address as four or sixteen bytes in words of this machine's order.
fn address_of(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?))
        }
        _ => return None,
    };
    Some(plain(SocketAddr::new(ip, port)))
}

/// A connection over IPv4 to a listener for both is in the table of IPv6; scopes are not shown there.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn assert_tells(address: &str) {
        let Ok(listener) = TcpListener::bind(address) else { return eprintln!("skipped: no {address}") };
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ask = || of_tcp(client.peer_addr().unwrap(), client.local_addr().unwrap()).unwrap();
        assert_eq!(ask(), None, "it waits in the queue");
        let (accepted, _) = listener.accept().unwrap();
        assert!(has_socket(std::process::id(), ask().unwrap()));
        assert_eq!(ask().unwrap(), super::super::socket::inode(accepted.as_fd()).unwrap().ino);
    }

    #[test]
    fn a_tcp_connection_has_an_owner_only_when_it_was_accepted() {
        assert_tells("127.0.0.1:0");
        assert_tells("[::1]:0");
    }

    #[test]
    fn a_connection_over_ipv4_to_a_listener_for_both_is_found() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return eprintln!("skipped: no IPv6") };
        let port = listener.local_addr().unwrap().port();
        let Ok(client) = TcpStream::connect(("127.0.0.1", port)) else { return };
        let _accepted = listener.accept().unwrap();
        assert!(of_tcp(client.peer_addr().unwrap(), client.local_addr().unwrap()).unwrap().is_some());
    }

    #[test]
    fn a_unix_connection_has_an_owner_only_when_it_was_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = UnixStream::connect(dir.path().join("s")).unwrap();
        match of_unix(client.as_fd()) {
            Err(e) => return eprintln!("skipped: this kernel does not tell: {e}"),
            Ok(peer) => assert_eq!(peer, None, "it waits in the queue"),
        }
        let (accepted, _) = listener.accept().unwrap();
        let inode = super::super::socket::inode(accepted.as_fd()).unwrap().ino;
        assert_eq!(of_unix(client.as_fd()).unwrap(), Some(inode));
    }
}
