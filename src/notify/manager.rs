//! The service manager that watches this process.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::{SOCKET_VAR, VARS, ready_text, reloading_text, status_text};
use crate::proto::wire::FDS_MAX;
use crate::sys::datagram::{self, Address};
use crate::sys::inherit;

/// How many datagrams may wait for a manager that does not read; a holder's worth of sockets, and more.
const WAITING_MAX: usize = 2048;

/// The service manager that watches this process, if one does: what it is told, in order and without ever waiting for it.
///
/// What does not fit its queue waits here and goes with what is said next, or with [`flush`](Self::flush). Something that cannot be sent at
/// all is an event of the `tracing` crate, once, and nothing else: a service does not end because nobody listens.
#[derive(Debug)]
pub struct Manager {
    /// What the variables said, for the program that this process becomes.
    vars: Vec<(OsString, OsString)>,
    watchdog: Option<Duration>,
    line: Option<Mutex<Line>>,
}

/// The way to the manager.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    address: Address,
    waiting: VecDeque<Message>,
    complained: bool,
}

#[derive(Debug)]
struct Message {
    text: String,
    fds: Vec<OwnedFd>,
    /// Where a later one of its kind makes it worthless, what that kind is.
    passing: Option<Passing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    Status,
    Watchdog,
    Timeout,
}

impl Manager {
    /// Takes the variables of sd_notify(3) and sd_watchdog_enabled(3) out of the environment.
    ///
    /// To be called at the start, as [`take_var`](inherit::take_var) is.
    pub fn take() -> Self {
        let vars = VARS.into_iter().filter_map(|name| Some((name.into(), inherit::take_var(name)?)));
        Self::of(vars.collect())
    }

    fn of(vars: Vec<(OsString, OsString)>) -> Self {
        let value =
            |wanted: &str| vars.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_os_str());
        let number = |name: &str| value(name)?.to_str()?.parse::<u64>().ok();
        let is_for_us =
            value("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(std::process::id().into());
        let watchdog = number("WATCHDOG_USEC").filter(|us| is_for_us && *us > 0).map(Duration::from_micros);
        let line = value(SOCKET_VAR).filter(|socket| !socket.is_empty()).and_then(|socket| {
            Line::to(socket)
                .inspect_err(|e| {
                    let socket = socket.to_string_lossy();
                    tracing::warn!(%socket, error = %e, "unable to talk to the service manager, which is told nothing");
                })
                .ok()
        });
        Self { watchdog, line: line.map(Mutex::new), vars }
    }

    /// Returns the variables, for the environment of the program that this process becomes, and for no other.
    pub fn vars(&self) -> &[(OsString, OsString)] {
        &self.vars
    }

    /// Returns whether there is one.
    pub fn is_there(&self) -> bool {
        self.line.is_some()
    }

    /// Says that the service serves, and that this process is the one to watch; after [`reloading`](Self::reloading) also that this is over.
    pub fn ready(&self, status: &str) {
        self.post(ready_text(status), None);
    }

    /// Says that the service changes itself, as of now, until [`ready`](Self::ready) is said again.
    pub fn reloading(&self, status: &str) {
        self.post(format!("{}\n{}", reloading_text(), status_text(status)), None);
    }

    /// Says in a line how the service is doing, for people.
    pub fn status(&self, status: &str) {
        self.post(status_text(status), Some(Passing::Status));
    }

    /// Says that the service begins to stop.
    pub fn stopping(&self, status: &str) {
        self.post(format!("STOPPING=1\n{}", status_text(status)), None);
    }

    /// Asks for so much time from now on, for what goes on: a start, or a stop. To be asked for again before it is over.
    pub fn extend_timeout(&self, by: Duration) {
        self.post(format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()), Some(Passing::Timeout));
    }

    /// Returns how often [`watchdog`](Self::watchdog) is to be called, if at all: twice as often as the manager must hear of it.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.is_there()).map(|limit| limit / 2)
    }

    /// Says that this process is not stuck.
    pub fn watchdog(&self) {
        self.post("WATCHDOG=1".to_owned(), Some(Passing::Watchdog));
    }

    /// Gives the manager a copy of each socket to keep, until the service is stopped, and to hand to the next start of it in `LISTEN_FDS`.
    ///
    /// It is not to look at them: a listening socket that somebody shut down would leave its store unasked. It takes what its
    /// unit allows (`FileDescriptorStoreMax=`), and does not say what it took. One that it has already is not kept twice.
    ///
    /// # Errors
    ///
    /// A descriptor cannot be copied (EMFILE); those before it have been given.
    pub fn store<'a>(&self, sockets: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>) -> io::Result<()> {
        let Some(mut line) = self.line() else { return Ok(()) };
        for (name, fds) in by_name(sockets) {
            for fds in fds.chunks(FDS_MAX) {
                let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
                // It may have to wait, and its owner may close it.
                let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
                line.post(Message { text, fds, passing: None });
            }
        }
        Ok(())
    }

    /// Has the manager close what it keeps by this name.
    pub fn forget(&self, name: &str) {
        self.post(format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    /// Sends what waits. Returns whether nothing waits any more: if not, this is to be called again soon.
    pub fn flush(&self) -> bool {
        self.line().is_none_or(|mut line| {
            line.flush();
            line.waiting.is_empty()
        })
    }

    fn post(&self, text: String, passing: Option<Passing>) {
        if let Some(mut line) = self.line() {
            line.post(Message { text, fds: vec![], passing });
        }
    }

    fn line(&self) -> Option<MutexGuard<'_, Line>> {
        // Nothing is left half done by a panic between two messages.
        self.line.as_ref().map(|line| line.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Puts what has the same name together, in the order of the names' first.
fn by_name<'a>(
    sockets: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
) -> Vec<(&'a str, Vec<BorrowedFd<'a>>)> {
    let mut groups: Vec<(&str, Vec<BorrowedFd<'_>>)> = vec![];
    for (name, fd) in sockets {
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, fds)) => fds.push(fd),
            None => groups.push((name, vec![fd])),
        }
    }
    groups
}

impl Line {
    fn to(socket: &OsStr) -> io::Result<Self> {
        let address = Address::parse(socket)?;
        Ok(Self { socket: datagram::sender()?, address, waiting: VecDeque::new(), complained: false })
    }

    fn post(&mut self, message: Message) {
        if message.passing.is_some() {
            self.waiting.retain(|other| other.passing != message.passing);
        }
        self.waiting.push_back(message);
        self.flush();
        while self.waiting.len() > WAITING_MAX {
            self.waiting.pop_front();
            self.complain(&io::ErrorKind::WouldBlock.into());
        }
    }

    /// In order: what comes later does not overtake what waits.
    fn flush(&mut self) {
        while let Some(message) = self.waiting.front() {
            let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
            match datagram::send_to(self.socket.as_fd(), &self.address, message.text.as_bytes(), &fds) {
                Err(e) if datagram::is_for_now(&e) => return,
                Err(e) => self.complain(&e),
                Ok(()) => {}
            }
            self.waiting.pop_front();
        }
    }

    fn complain(&mut self, e: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(error = %e, "the service manager does not hear everything that it is told");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::socket;
    use crate::sys::unix::Received;

    /// A manager that a test plays: its socket, and who talks to it.
    struct Played {
        socket: OwnedFd,
        manager: Manager,
    }

    fn vars(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn play() -> Played {
        let socket = datagram::receiver().unwrap();
        let name = String::from_utf8(datagram::abstract_name(socket.as_fd()).unwrap()).unwrap();
        let manager =
            Manager::of(vars(&[("NOTIFY_SOCKET", &format!("@{name}")), ("WATCHDOG_USEC", "3000000")]));
        Played { socket, manager }
    }

    impl Played {
        fn next(&self) -> Option<(String, Received)> {
            let mut buffer = [0; 4096];
            let got = datagram::receive(self.socket.as_fd(), &mut buffer).ok()?;
            assert_eq!(got.sender.unwrap().pid, std::process::id());
            Some((String::from_utf8(buffer[..got.bytes].to_vec()).unwrap(), got))
        }

        fn texts(&self) -> Vec<String> {
            std::iter::from_fn(|| self.next()).map(|(text, _)| text).collect()
        }
    }

    #[test]
    fn every_datagram_is_as_the_manual_page_has_it() {
        let played = play();
        let manager = &played.manager;
        assert!(manager.is_there());
        manager.ready("serves\nkv");
        manager.status("is well");
        let before = crate::sys::clock::monotonic_us();
        manager.reloading("swaps");
        manager.extend_timeout(Duration::from_millis(1500));
        manager.watchdog();
        manager.forget("kv");
        manager.stopping("drains");
        let texts = played.texts();
        let us = texts[2].split('\n').nth(1).unwrap().strip_prefix("MONOTONIC_USEC=").unwrap();
        let us: u64 = us.parse().unwrap();
        assert!((before..=crate::sys::clock::monotonic_us()).contains(&us));
        let expected = [
            format!("READY=1\nMAINPID={}\nSTATUS=serves kv", std::process::id()),
            "STATUS=is well".to_owned(),
            format!("RELOADING=1\nMONOTONIC_USEC={us}\nSTATUS=swaps"),
            "EXTEND_TIMEOUT_USEC=1500000".to_owned(),
            "WATCHDOG=1".to_owned(),
            "FDSTOREREMOVE=1\nFDNAME=kv".to_owned(),
            "STOPPING=1\nSTATUS=drains".to_owned(),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn sockets_are_stored_by_name_and_no_more_in_a_message_than_the_kernel_takes() {
        let played = play();
        let [many, one] = [datagram::sender().unwrap(), datagram::sender().unwrap()];
        let sockets = std::iter::once(("one", one.as_fd()))
            .chain(std::iter::repeat_n(("many", many.as_fd()), FDS_MAX + 2));
        played.manager.store(sockets.chain([("one", many.as_fd())])).unwrap();
        for (name, inodes) in
            [("one", vec![&one, &many]), ("many", vec![&many; FDS_MAX]), ("many", vec![&many; 2])]
        {
            let (text, got) = played.next().unwrap();
            assert_eq!(text, format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"));
            let inode = |fd: &OwnedFd| socket::inode(fd.as_fd()).unwrap();
            assert!(got.fds.iter().map(inode).eq(inodes.into_iter().map(inode)), "{name}");
        }
        assert!(played.next().is_none());
    }

    #[test]
    fn what_a_full_queue_does_not_take_comes_later_in_order_and_only_the_last_of_what_passes() {
        let played = play();
        let manager = &played.manager;
        let mut fillers = 0;
        while manager.flush() {
            manager.ready("filler");
            fillers += 1;
        }
        for i in 0..3 {
            manager.status(&format!("status {i}"));
            manager.watchdog();
        }
        manager.store([("kv", played.socket.as_fd())]).unwrap();
        manager.stopping("stops");
        let mut texts = vec![];
        while !manager.flush() || texts.is_empty() {
            texts.extend(played.texts());
        }
        texts.extend(played.texts());
        let kinds: Vec<&str> = texts[fillers..].iter().map(|text| text.split('\n').next().unwrap()).collect();
        assert_eq!(kinds, ["STATUS=status 2", "WATCHDOG=1", "FDSTORE=1", "STOPPING=1"]);
    }

    #[test]
    fn a_manager_that_is_gone_costs_nothing_and_nothing_waits_for_it() {
        let Played { socket, manager } = play();
        drop(socket);
        manager.ready("serves");
        manager.stopping("stops");
        assert!(manager.flush());
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_a_strange_one_is_none() {
        for socket in [&[][..], &[("NOTIFY_SOCKET", "")], &[("NOTIFY_SOCKET", "vsock:2:1")]] {
            let manager = Manager::of(vars(socket));
            assert!(!manager.is_there());
            manager.ready("serves");
            assert!(manager.flush() && manager.watchdog_interval().is_none());
            assert_eq!(manager.vars(), vars(socket));
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_must_and_only_by_whom_it_watches() {
        let own = std::process::id().to_string();
        for (pid, interval) in
            [(None, Some(1500)), (Some(own.as_str()), Some(1500)), (Some("1"), None), (Some("x"), None)]
        {
            let mut given = vec![("NOTIFY_SOCKET", "/run/x"), ("WATCHDOG_USEC", "3000000")];
            given.extend(pid.map(|pid| ("WATCHDOG_PID", pid)));
            let manager = Manager::of(vars(&given));
            assert_eq!(manager.watchdog_interval(), interval.map(Duration::from_millis), "{pid:?}");
        }
        for limit in ["0", "", "-1"] {
            let manager = Manager::of(vars(&[("NOTIFY_SOCKET", "/run/x"), ("WATCHDOG_USEC", limit)]));
            assert_eq!(manager.watchdog_interval(), None, "{limit:?}");
        }
    }

    #[test]
    fn a_copy_that_waits_outlives_what_it_was_copied_from() {
        let played = play();
        while played.manager.flush() {
            played.manager.ready("filler");
        }
        let socket = datagram::sender().unwrap();
        let (inode, number) = (socket::inode(socket.as_fd()).unwrap(), socket.as_raw_fd());
        played.manager.store([("kv", socket.as_fd())]).unwrap();
        drop(socket);
        let stored = loop {
            played.manager.flush();
            let (text, got) = played.next().unwrap();
            if text.starts_with("FDSTORE") {
                break got;
            }
        };
        assert_eq!(socket::inode(stored.fds[0].as_fd()).unwrap(), inode, "{number}");
    }
}
