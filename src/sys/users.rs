//! Who has a socket open, as far as /proc shows it.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::process;
use super::socket::Transport;

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its process id.
    pub pid: u32,
    /// Its command line, or the name of its program where that is all there is to see.
    pub command: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)
    }
}

/// Returns a process by its pid.
pub fn process(pid: u32) -> Option<User> {
    Some(User { pid, command: process::command_line(pid).ok()? })
}

/// Returns who has a socket on this port that gets in the way of the address. Sockets of others are seen by root alone, and those of
/// other network namespaces by nobody.
pub fn of_address(transport: Transport, address: SocketAddr) -> Vec<User> {
    let tables = match transport {
        Transport::Stream => ["/proc/net/tcp", "/proc/net/tcp6"],
        _ => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let listens = if transport == Transport::Stream { Some(LISTEN) } else { None };
    let lines = tables.iter().flat_map(|path| {
        let table = fs::read_to_string(path).unwrap_or_default();
        table.lines().skip(1).filter_map(|line| inode(line, address.port(), listens)).collect::<Vec<u64>>()
    });
    of_inodes(&lines.collect::<Vec<u64>>())
}

/// TCP_LISTEN, in hexadecimal as the table has it.
const LISTEN: &str = "0A";

/// Returns the inode of a line of proc_net_tcp(5) that is about this local port.
fn inode(line: &str, port: u16, state: Option<&str>) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let is_it = u16::from_str_radix(local_port, 16) == Ok(port)
        && state.is_none_or(|state| fields.get(3) == Some(&state));
    is_it.then(|| fields.get(9)?.parse().ok())?
}

/// Returns who has a Unix socket that was bound with this path, or with this name behind an `@`.
pub fn of_unix(name: &str) -> Vec<User> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let inodes = table.lines().skip(1).filter_map(|line| {
        // Number, references, protocol, flags, type, state; then the inode, and a path that may have spaces in it.
        let rest = (0..6).try_fold(line, |rest, _| Some(rest.trim_start().split_once(' ')?.1))?;
        let (inode, path) = rest.trim_start().split_once(' ')?;
        (path == name).then(|| inode.parse().ok())?
    });
    of_inodes(&inodes.collect::<Vec<u64>>())
}

fn of_inodes(inodes: &[u64]) -> Vec<User> {
    if inodes.is_empty() {
        return vec![];
    }
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return vec![] };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| has_one_of(*pid, &wanted)).filter_map(process).collect()
}

fn has_one_of(pid: u32, wanted: &[String]) -> bool {
    let Ok(fds) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else { return false };
    fds.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| wanted.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn is_this(users: &[User]) -> bool {
        users.iter().any(|user| user.pid == std::process::id() && !user.command.is_empty())
    }

    #[test]
    fn whoever_has_a_port_is_found_by_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert!(is_this(&of_address(Transport::Stream, address)));
        let udp = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        assert!(is_this(&of_address(Transport::Datagram, udp.local_addr().unwrap())));
        drop(tcp);
        assert!(!is_this(&of_address(Transport::Stream, address)));
    }

    #[test]
    fn whoever_has_a_path_is_found_by_it_also_with_spaces_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a socket");
        let socket = UnixListener::bind(&path).unwrap();
        assert!(is_this(&of_unix(path.to_str().unwrap())));
        drop(socket);
        assert!(of_unix(path.to_str().unwrap()).is_empty());
    }
}
