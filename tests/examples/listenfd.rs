//! Serves what it is given by `LISTEN_FDS`, read with the `listenfd` crate: each client is told which socket it came to.

use std::io::{self, Write};

use listenfd::ListenFd;

fn main() -> io::Result<()> {
    let mut fds = ListenFd::from_env();
    let first = fds.take_tcp_listener(0)?.ok_or(io::ErrorKind::NotFound)?;
    let second = fds.take_unix_listener(1)?.ok_or(io::ErrorKind::NotFound)?;
    first.accept()?.0.write_all(b"first\n")?;
    second.accept()?.0.write_all(b"second\n")
}
