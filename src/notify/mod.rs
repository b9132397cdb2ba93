//! What a service manager is told, and what a service says to one: `NOTIFY_SOCKET` (sd_notify(3)), and the notification descriptor of s6.
//!
//! [`Manager`] is who watches this process. [`Private`] is the socket on which this process listens to a daemon of its own, as a service manager would.

mod manager;
mod private;

use std::io::Write;
use std::os::fd::AsFd;

pub use manager::Manager;
pub use private::{Notice, Private};

use crate::sys::{clock, datagram, inherit};

/// The variables of sd_notify(3) and sd_watchdog_enabled(3): they are for the process that they were given to, and for none that it starts.
pub const VARS: [&str; 3] = [SOCKET_VAR, "WATCHDOG_USEC", "WATCHDOG_PID"];

const SOCKET_VAR: &str = "NOTIFY_SOCKET";

/// Sends variables to the service manager, such as `READY=1`, a line each; does nothing where there is none.
///
/// A manager that does not listen any more is no reason to end: so errors are not told.
pub fn tell(lines: &str) {
    let Some(socket) = std::env::var_os(SOCKET_VAR) else { return };
    // Never blocks: a manager whose queue is full gets the next one.
    let _ = datagram::Address::parse(&socket).and_then(|address| {
        let own = datagram::sender()?;
        datagram::send_to(own.as_fd(), &address, lines.as_bytes(), &[])
    });
}

/// Says that this process serves, under its own pid.
pub fn tell_ready(status: &str) {
    tell(&ready_text(status));
}

/// Says that this process changes itself, and will say that it is ready again.
pub fn tell_reloading() {
    tell(&reloading_text());
}

fn ready_text(status: &str) -> String {
    match std::process::id() {
        // The first process of a pid namespace has another pid for a manager outside of it.
        1 => format!("READY=1\n{}", status_text(status)),
        pid => format!("READY=1\nMAINPID={pid}\n{}", status_text(status)),
    }
}

fn reloading_text() -> String {
    format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_us())
}

/// A line break would begin another variable.
fn status_text(status: &str) -> String {
    format!("STATUS={}", status.replace(['\n', '\r'], " "))
}

/// Writes one newline to an inherited descriptor, and closes it: whatever gets its number later must not be written to.
///
/// # Errors
///
/// It is closed, or nobody reads.
pub fn say_ready(number: i32) -> std::io::Result<()> {
    std::fs::File::from(inherit::adopt(number)?).write_all(b"\n")
}
