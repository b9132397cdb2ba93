//! The holder's loop: one thread, and everything that others can make it do is bounded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::reload::Rehearsal;
use super::{
    Allowed, Answer, GIVE_MAX, HOLDER, Held, LINE_MAX, Request, SOCKETS_MAX, Say, State, become_anew,
    remove_if_ours,
};
use crate::channel::Lines;
use crate::error::{Error, Result};
use crate::fds;
use crate::notify;
use crate::sys::poll::{self, Want};
use crate::sys::process::{self, PeerCred};
use crate::sys::signals::{Termination, Terminations};
use crate::sys::{inherit, reactor, reexec, unix};

/// How many clients are served at a time; more wait in the queue.
const PEERS_MAX: usize = 32;
/// How many of them may be one user's.
const PEERS_OF_A_USER_MAX: usize = 8;
/// How long a client may take for a request, or for taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nobody is accepted after that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Descriptors besides the sockets: what answers in flight may carry, and a few of its own.
const SPARE: u64 = (PEERS_MAX * (GIVE_MAX + 2) + 32) as u64;

pub(super) struct Server {
    state: State,
    listening: OwnedFd,
    sockets: Vec<(String, OwnedFd)>,
    capacity: usize,
    peers: Vec<Peer>,
    signals: Terminations,
    rehearsal: Option<Rehearsal>,
    accepts_from: Instant,
    say: Say,
}

struct Peer {
    lines: Lines,
    cred: PeerCred,
    may_store: bool,
    deadline: Instant,
}

impl Server {
    pub(super) fn new(mut state: State, say: Say) -> Result<Self> {
        let sockets = fds::adopt_listeners(&state.sockets)?;
        let listening = inherit::adopt(state.listening)
            .map_err(|e| Error::io(format!("go on listening at {}", state.path.display()), e))?;
        let signals = Terminations::catch_with_request().map_err(|e| Error::io("catch signals", e))?;
        reexec::release_signals();
        let allowed = reactor::allow_open_files(SOCKETS_MAX as u64 + SPARE)
            .map_err(|e| Error::io("raise the limit of open files", e))?;
        let capacity = usize::try_from(allowed.saturating_sub(SPARE)).unwrap_or(SOCKETS_MAX).min(SOCKETS_MAX);
        if let Some(number) = state.ready_fd.take() {
            notify::say_ready(number).map_err(|e| Error::io(format!("write to descriptor {number}"), e))?;
        }
        let server = Self {
            state,
            listening,
            sockets,
            capacity,
            peers: vec![],
            signals,
            rehearsal: None,
            accepts_from: Instant::now(),
            say,
        };
        notify::tell_ready(&server.status());
        Ok(server)
    }

    pub(super) fn run(mut self) -> Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.signals && self.take_signal()? {
                notify::tell("STOPPING=1");
                remove_if_ours(&self.state.path, self.state.inode);
                return Ok(());
            }
            self.rehearse(ready.rehearsal);
            self.serve(&ready.peers);
            if ready.listening {
                self.accept();
            }
        }
    }

    fn status(&self) -> String {
        format!("holds {} sockets at {}", self.sockets.len(), self.state.path.display())
    }

    fn wait(&self) -> Result<Ready> {
        let now = Instant::now();
        let accepts = self.peers.len() < PEERS_MAX && self.accepts_from <= now;
        let mut wanted = vec![(self.signals.as_fd(), Want::Read)];
        if accepts {
            wanted.push((self.listening.as_fd(), Want::Read));
        }
        wanted.extend(self.rehearsal.iter().map(|rehearsal| (rehearsal.as_fd(), Want::Read)));
        wanted.extend(self.peers.iter().map(|peer| {
            (peer.lines.as_fd(), if peer.lines.wants_write() { Want::Write } else { Want::Read })
        }));
        let paused = (self.accepts_from > now).then_some(self.accepts_from);
        let deadlines = self.peers.iter().map(|peer| peer.deadline);
        let deadline = deadlines.chain(paused).chain(self.rehearsal.iter().map(|r| r.deadline)).min();
        let mut ready =
            poll::wait(&wanted, deadline).map_err(|e| Error::io("wait for clients", e))?.into_iter();
        Ok(Ready {
            signals: ready.next().unwrap_or(false),
            listening: accepts && ready.next().unwrap_or(false),
            rehearsal: self.rehearsal.is_some() && ready.next().unwrap_or(false),
            peers: ready.collect(),
        })
    }

    /// Returns whether it is to end.
    fn take_signal(&mut self) -> Result<bool> {
        let signal = self.signals.wait().map_err(|e| Error::io("read a signal", e))?;
        if signal != Termination::Hup {
            return Ok(true);
        }
        // One that is being asked already may have been opened before the file was replaced.
        if let Some(mut before) = self.rehearsal.take() {
            before.end();
        }
        notify::tell_reloading();
        match Rehearsal::start(&mut self.state) {
            Ok(rehearsal) => self.rehearsal = Some(rehearsal),
            Err(e) => self.stay(&e.to_string()),
        }
        Ok(false)
    }

    fn stay(&self, why: &str) {
        (self.say)(
            "warning",
            &format!("unable to become {} anew, and going on: {why}", self.state.program.display()),
        );
        notify::tell_ready(&self.status());
    }

    fn rehearse(&mut self, is_ready: bool) {
        let Some(rehearsal) = &mut self.rehearsal else { return };
        let verdict = if is_ready {
            rehearsal.hear()
        } else {
            (rehearsal.deadline <= Instant::now()).then(|| rehearsal.end())
        };
        let Some(understood) = verdict else { return };
        let Some(Rehearsal { program, .. }) = self.rehearsal.take() else { return };
        if !understood {
            return self.stay("the program there does not understand what this one holds");
        }
        let state = State {
            path: self.state.path.clone(),
            give: self.state.give.clone(),
            store: self.state.store.clone(),
            program: self.state.program.clone(),
            sockets: String::new(),
            ..self.state
        };
        let failed = become_anew(&program, state, &self.listening, &self.sockets);
        self.stay(&failed.to_string());
    }

    fn accept(&mut self) {
        let socket = match unix::accept_from(self.listening.as_fd()) {
            Ok(socket) => socket,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(e) => {
                (self.say)("warning", &format!("unable to accept a client: {e}"));
                self.accepts_from = Instant::now() + PAUSE;
                return;
            }
        };
        let Ok(cred) = process::peer_cred(socket.as_fd()) else { return };
        let may_store = is_allowed(&self.state.store, cred, socket.as_fd());
        let may_ask = may_store || is_allowed(&self.state.give, cred, socket.as_fd());
        let lines = Lines::new(socket, HOLDER);
        let mut peer = Peer { lines, cred, may_store, deadline: Instant::now() + PATIENCE };
        let reason = if !may_ask {
            format!("user {} may not have these sockets", cred.uid)
        } else if self.peers.iter().filter(|other| other.cred.uid == cred.uid).count() >= PEERS_OF_A_USER_MAX
        {
            format!("user {} has {PEERS_OF_A_USER_MAX} connections already", cred.uid)
        } else {
            return self.peers.push(peer);
        };
        // It is told so if it listens, and let go in any case.
        let _ = super::line(&Answer::Refused { reason }).and_then(|line| peer.lines.send(line, &[]));
    }

    fn serve(&mut self, ready: &[bool]) {
        let now = Instant::now();
        // From the end, so that the numbers of the others stay.
        for i in (0..self.peers.len()).rev() {
            let goes_on = if ready.get(i) == Some(&true) {
                self.serve_one(i).unwrap_or(false)
            } else {
                self.peers[i].deadline > now
            };
            if !goes_on {
                self.peers.swap_remove(i);
            }
        }
    }

    /// Returns whether the client stays.
    fn serve_one(&mut self, i: usize) -> Result<bool> {
        let peer = &mut self.peers[i];
        peer.lines.flush()?;
        if peer.lines.wants_write() {
            return Ok(peer.deadline > Instant::now());
        }
        let Some((line, fds)) = peer.lines.receive()? else { return Ok(peer.deadline > Instant::now()) };
        // The answer before must have been taken: so no more than one carries descriptors to nowhere.
        let unread =
            unix::unread(peer.lines.as_fd()).map_err(|e| Error::io("look at a client's queue", e))?;
        if unread > 0 || peer.lines.has_line() {
            return Ok(false);
        }
        peer.deadline = Instant::now() + PATIENCE;
        let may_store = peer.may_store;
        let before = self.sockets.len();
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => self.answer(request, fds, may_store),
            Err(e) => Answer::Refused { reason: format!("this is no request that this holder knows: {e}") },
        };
        let names: &[String] = if let Answer::Given { names } = &answer { names } else { &[] };
        let sockets = &self.sockets;
        let of = |name: &String| sockets.iter().find(|(other, _)| other == name).map(|(_, fd)| fd.as_fd());
        let given: Vec<BorrowedFd<'_>> = names.iter().filter_map(of).collect();
        self.peers[i].lines.send(super::line(&answer)?, &given)?;
        if self.sockets.len() != before {
            notify::tell(&format!("STATUS={}", self.status()));
        }
        Ok(true)
    }

    fn has(&self, name: &str) -> bool {
        self.sockets.iter().any(|(other, _)| other == name)
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>, may_store: bool) -> Answer {
        let done = match request {
            Request::List { from } => Ok(self.list(from)),
            Request::Give { names } => self.give(names),
            Request::Store { .. } | Request::Forget { .. } if !may_store => {
                Err("this user may have copies, and store or remove nothing".to_owned())
            }
            Request::Store { name, replace } => self.store(name, replace, fds),
            Request::Forget { name } => self.forget(&name),
        };
        done.unwrap_or_else(|reason| Answer::Refused { reason })
    }

    fn list(&self, from: usize) -> Answer {
        let mut sockets = vec![];
        let mut bytes = 0;
        for (name, fd) in self.sockets.iter().skip(from) {
            let held = Held::of(name, fd.as_fd());
            bytes += held.name.len() + held.address.len() + 64;
            if bytes > LINE_MAX && !sockets.is_empty() {
                return Answer::Held { next: Some(from + sockets.len()), sockets };
            }
            sockets.push(held);
        }
        Answer::Held { sockets, next: None }
    }

    fn give(&self, mut names: Vec<String>) -> Result<Answer, String> {
        names.truncate(GIVE_MAX);
        match names.iter().find(|name| !self.has(name)) {
            Some(missing) => Err(self.has_none(missing)),
            None => Ok(Answer::Given { names }),
        }
    }

    fn has_none(&self, name: &str) -> String {
        format!("this holder has no socket {name:?}")
    }

    fn store(&mut self, name: String, replace: bool, fds: Vec<OwnedFd>) -> Result<Answer, String> {
        fds::check_name(&name).map_err(|e| e.to_string())?;
        let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| "a socket must come with it".to_owned())?;
        fds::check_listener(&name, fd.as_fd()).map_err(|e| e.to_string())?;
        let same = |a: BorrowedFd<'_>, b: BorrowedFd<'_>| {
            use crate::sys::socket::inode;
            inode(a).is_ok_and(|a| inode(b).is_ok_and(|b| a == b))
        };
        match self.sockets.iter().position(|(other, _)| *other == name) {
            Some(at) if same(self.sockets[at].1.as_fd(), fd.as_fd()) => {
                Ok(Answer::Stored { replaced: false })
            }
            Some(at) if replace => {
                self.sockets[at].1 = fd;
                Ok(Answer::Stored { replaced: true })
            }
            Some(_) => Err(format!("there is another socket {name:?} already: remove or replace it")),
            None if self.sockets.len() >= self.capacity => {
                Err(format!("there is room for {} sockets", self.capacity))
            }
            None => {
                self.sockets.push((name, fd));
                Ok(Answer::Stored { replaced: false })
            }
        }
    }

    fn forget(&mut self, name: &str) -> Result<Answer, String> {
        let at =
            self.sockets.iter().position(|(other, _)| other == name).ok_or_else(|| self.has_none(name))?;
        self.sockets.remove(at);
        Ok(Answer::Forgotten {})
    }
}

/// What there is to do.
struct Ready {
    signals: bool,
    listening: bool,
    rehearsal: bool,
    peers: Vec<bool>,
}

fn is_allowed(allowed: &Allowed, cred: PeerCred, socket: BorrowedFd<'_>) -> bool {
    cred.uid == 0
        || cred.uid == unix::effective_uid()
        || allowed.uids.contains(&cred.uid)
        || allowed.gids.contains(&cred.gid)
        || (!allowed.gids.is_empty()
            && process::peer_groups(socket).iter().any(|gid| allowed.gids.contains(gid)))
}
