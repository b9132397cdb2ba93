//! What a service manager is told: `NOTIFY_SOCKET` (sd_notify(3)), and the notification descriptor of s6.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::sys::{clock, inherit};

/// Sends variables to the service manager, such as `READY=1`, a line each; does nothing where there is none.
///
/// A manager that does not listen any more is no reason to end: so errors are not told.
pub fn tell(lines: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    // Never blocks for long: a manager whose queue is full gets the next one.
    let _ = address.and_then(|address| {
        let own = UnixDatagram::unbound()?;
        own.set_nonblocking(true)?;
        own.send_to_addr(lines.as_bytes(), &address)
    });
}

/// Says that this process serves, under its own pid.
pub fn tell_ready(status: &str) {
    tell(&format!("READY=1\nMAINPID={}\nSTATUS={status}", std::process::id()));
}

/// Says that this process changes itself, and will say that it is ready again.
pub fn tell_reloading() {
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_us()));
}

/// Writes one newline to an inherited descriptor, and closes it: whatever gets its number later must not be written to.
///
/// # Errors
///
/// It is closed, or nobody reads.
pub fn say_ready(number: i32) -> std::io::Result<()> {
    std::fs::File::from(inherit::adopt(number)?).write_all(b"\n")
}
