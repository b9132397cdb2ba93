//! A socket on which a daemon talks as it would to a service manager.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::SOCKET_VAR;
use crate::error::{Error, Result};
use crate::sys::{datagram, process};

/// The longest message; service managers have the same limit.
const MESSAGE_MAX: usize = 4096;
/// How many messages are passed over at a time, so that a sender of nonsense does not keep this process.
const NONSENSE_MAX: usize = 64;
/// How much of a text is kept.
const TEXT_MAX: usize = 512;

/// A datagram socket of this process, for the `NOTIFY_SOCKET` of a daemon that it starts.
///
/// It has an abstract name: nothing in a file system can be in its way or be left behind, and it works under any user and any root directory. But it is
/// not there for a daemon in a network namespace of its own, and everybody in this one may send to it: so every
/// notice says whose it is, and [`Notice::is_from`] is to be asked.
#[derive(Debug)]
pub struct Private {
    socket: OwnedFd,
    address: OsString,
}

impl Private {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// EMFILE and the like.
    pub fn new() -> Result<Self> {
        let socket = datagram::receiver().map_err(|e| Error::io("make a notification socket", e))?;
        Self::from_fd(socket)
    }

    /// Goes on with the socket of the program that this process was before; its name is the same.
    ///
    /// # Errors
    ///
    /// It is another kind of descriptor.
    pub fn from_fd(socket: OwnedFd) -> Result<Self> {
        let name = datagram::abstract_name(socket.as_fd())
            .map_err(|e| Error::io("find the name of the notification socket", e))?;
        Ok(Self { socket, address: OsString::from_vec([b"@", name.as_slice()].concat()) })
    }

    /// Returns what the daemon's `NOTIFY_SOCKET` is to say.
    pub fn address(&self) -> &OsStr {
        &self.address
    }

    /// Returns the variable for the daemon's environment.
    pub fn var(&self) -> (OsString, OsString) {
        (SOCKET_VAR.into(), self.address.clone())
    }

    /// Takes the next message that can be understood, if one is there; never blocks.
    ///
    /// Descriptors that come with one are closed. Of a message that asks for a barrier that is the answer, since those before it have been taken.
    ///
    /// # Errors
    ///
    /// What recvmsg(2) returns.
    pub fn receive(&self) -> Result<Option<Notice>> {
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..NONSENSE_MAX {
            let got = match datagram::receive(self.socket.as_fd(), &mut buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(Error::io("read a notification", e)),
            };
            // Half a message may say something else than the whole.
            let notice = if got.cut { None } else { Notice::parse(&buffer[..got.bytes]) };
            match (notice, got.sender) {
                (Some(notice), Some(sender)) => {
                    return Ok(Some(Notice { pid: sender.pid, uid: sender.uid, ..notice }));
                }
                (_, sender) => {
                    let pid = sender.map_or(0, |sender| sender.pid);
                    tracing::debug!(pid, bytes = got.bytes, "a notification that says nothing");
                }
            }
        }
        Ok(None)
    }
}

impl AsFd for Private {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a message says, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// The process that sent it, as the kernel says; 0 for one that cannot be seen from this pid namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// It serves; after [`reloading`](Self::reloading) that this is over.
    pub ready: bool,
    /// It changes itself.
    pub reloading: bool,
    /// It begins to stop.
    pub stopping: bool,
    /// How it is doing, in a line for people.
    pub status: Option<String>,
    /// What it failed with, as in errno(3).
    pub errno: Option<i32>,
    /// What it failed with, as a D-Bus error.
    pub bus_error: Option<String>,
    /// Which process is to be watched.
    pub main_pid: Option<u32>,
    /// It is not stuck.
    pub watchdog: bool,
    /// It is in trouble, and wants to be treated as if it were stuck.
    pub trouble: bool,
    /// How much more time it asks for.
    pub extend_timeout: Option<Duration>,
}

impl Notice {
    /// Returns what a message says; `None` where that is nothing that is known, or no text.
    fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        // A C program may send the end of its string too.
        let text = text.strip_suffix('\0').unwrap_or(text);
        if text.contains('\0') {
            return None;
        }
        let mut notice = Self::default();
        let known = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, value)| notice.take(name, value));
        (known.count() > 0).then_some(notice)
    }

    /// Returns whether the variable is known and its value makes sense.
    fn take(&mut self, name: &str, value: &str) -> bool {
        match (name, value) {
            ("READY", "1") => self.ready = true,
            ("RELOADING", "1") => self.reloading = true,
            ("STOPPING", "1") => self.stopping = true,
            ("WATCHDOG", "1") => self.watchdog = true,
            ("WATCHDOG", "trigger") => self.trouble = true,
            // That it is closed is the answer.
            ("BARRIER", "1") => {}
            ("STATUS", _) => self.status = Some(printable(value)),
            ("BUSERROR", _) => self.bus_error = Some(printable(value)),
            ("ERRNO", _) => return set(&mut self.errno, value.parse().ok().filter(|errno| *errno > 0)),
            ("MAINPID", _) => return set(&mut self.main_pid, value.parse().ok().filter(|pid| *pid > 0)),
            ("EXTEND_TIMEOUT_USEC", _) => {
                return set(&mut self.extend_timeout, value.parse().ok().map(Duration::from_micros));
            }
            _ => return false,
        }
        true
    }

    /// Returns whether the process with this pid sent it, or one of the session that it leads: a helper that it started.
    ///
    /// A helper that has ended already is nobody's.
    pub fn is_from(&self, daemon: u32) -> bool {
        self.pid != 0 && (self.pid == daemon || process::session_leader(self.pid, daemon).is_some())
    }
}

fn set<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    let is_set = value.is_some();
    *field = value.or(field.take());
    is_set
}

/// For a terminal, or a log: no control characters, and not the whole of a page.
fn printable(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::*;
    use crate::sys::poll::{self, Want};

    fn send(private: &Private, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let to = datagram::Address::parse(private.address()).unwrap();
        datagram::send_to(datagram::sender().unwrap().as_fd(), &to, bytes, fds).unwrap();
    }

    #[test]
    fn every_known_variable_is_understood_and_the_sender_is_this_process() {
        let private = Private::new().unwrap();
        let text = "READY=1\nRELOADING=1\nSTOPPING=1\nSTATUS=half\tway = 50%\nERRNO=2\nBUSERROR=org.x\nMAINPID=42\n\
                    WATCHDOG=1\nEXTEND_TIMEOUT_USEC=1500000\nX_OTHER=1\nMONOTONIC_USEC=7\n";
        send(&private, text.as_bytes(), &[]);
        let notice = private.receive().unwrap().unwrap();
        let expected = Notice {
            pid: std::process::id(),
            uid: crate::sys::unix::effective_uid(),
            ready: true,
            reloading: true,
            stopping: true,
            status: Some("half way = 50%".to_owned()),
            errno: Some(2),
            bus_error: Some("org.x".to_owned()),
            main_pid: Some(42),
            watchdog: true,
            trouble: false,
            extend_timeout: Some(Duration::from_millis(1500)),
        };
        assert_eq!(notice, expected);
        assert!(notice.is_from(std::process::id()) && !notice.is_from(1));
        assert!(private.receive().unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_passed_over_and_what_follows_is_read() {
        let private = Private::new().unwrap();
        let long = format!("READY=1\nSTATUS={}", "x".repeat(MESSAGE_MAX));
        let nonsense: [&[u8]; 8] = [
            b"",
            b"READY=0",
            b"READY",
            b"READY=1\0STATUS=x",
            b"\xff\xfe",
            b"MAINPID=-1\nERRNO=0",
            b"X_A=1",
            long.as_bytes(),
        ];
        for bytes in nonsense {
            send(&private, bytes, &[]);
            send(&private, b"WATCHDOG=trigger\0", &[]);
            let notice = private.receive().unwrap().unwrap();
            assert!(notice.trouble && !notice.ready && notice.status.is_none(), "{notice:?}");
        }
    }

    #[test]
    fn descriptors_that_come_along_are_closed_which_answers_a_barrier() {
        let private = Private::new().unwrap();
        let (reading, writing) = io::pipe().unwrap();
        send(&private, b"BARRIER=1", &[writing.as_fd()]);
        send(&private, b"FDSTORE=1", &[writing.as_fd(), writing.as_fd()]);
        drop(writing);
        let soon = || Some(std::time::Instant::now());
        assert!(!poll::wait_one(reading.as_fd(), Want::Read, soon()).unwrap(), "they are in flight");
        assert_eq!(private.receive().unwrap().map(|notice| notice.ready), Some(false));
        assert!(private.receive().unwrap().is_none());
        assert!(poll::wait_one(reading.as_fd(), Want::Read, soon()).unwrap(), "all copies are closed");
    }

    #[test]
    fn a_flood_of_nonsense_ends_a_call() {
        let private = Private::new().unwrap();
        let mut sent = 0;
        let to = datagram::Address::parse(private.address()).unwrap();
        let sender = datagram::sender().unwrap();
        while sent < 3 * NONSENSE_MAX && datagram::send_to(sender.as_fd(), &to, b"x", &[]).is_ok() {
            sent += 1;
        }
        for _ in 0..sent.div_ceil(NONSENSE_MAX) {
            assert!(private.receive().unwrap().is_none());
        }
        send(&private, b"READY=1", &[]);
        assert!(private.receive().unwrap().unwrap().ready);
    }

    #[test]
    fn the_socket_goes_on_under_its_name_and_each_has_its_own() {
        let [first, second] = [Private::new().unwrap(), Private::new().unwrap()];
        assert_ne!(first.address(), second.address());
        let again = Private::from_fd(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(again.var(), first.var());
        send(&again, b"READY=1", &[]);
        assert!(first.receive().unwrap().unwrap().ready);
        assert!(Private::from_fd(io::pipe().unwrap().0.into()).is_err());
    }

    #[test]
    fn systemd_notify_is_heard_and_is_no_other_sessions() {
        let private = Private::new().unwrap();
        let mut command = Command::new("systemd-notify");
        command.args(["--ready", "--status=from outside"]).env(SOCKET_VAR, private.address());
        // It waits for its barrier, which nobody answers before this thread does.
        let Ok(mut child) = command.spawn() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have systemd");
            return eprintln!("skipped: needs systemd");
        };
        let deadline = Some(std::time::Instant::now() + Duration::from_secs(60));
        assert!(poll::wait_one(private.as_fd(), Want::Read, deadline).unwrap());
        let notice = private.receive().unwrap().unwrap();
        assert!(notice.ready && notice.status.as_deref() == Some("from outside"));
        assert!(!notice.is_from(child.id().wrapping_add(1)));
        while child.try_wait().unwrap().is_none() {
            poll::wait_one(private.as_fd(), Want::Read, poll::after(Duration::from_millis(20))).unwrap();
            private.receive().unwrap();
        }
        assert!(child.wait().unwrap().success());
    }
}
