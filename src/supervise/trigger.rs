//! The trigger socket: who may ask for what, and the clients that are connected.

use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Settings;
use super::wire::{Answer, Request};
use crate::channel::{Limits, Lines};
use crate::error::{Error, Result};
use crate::sys::bind::{self, Access, Occupied, Options};
use crate::sys::process::{self, PeerCred};
use crate::sys::socket::Transport;
use crate::sys::spawn::Program;
use crate::sys::unix;

/// How many clients are served at a time; more wait in the queue.
const CLIENTS_MAX: usize = 64;
/// How many of them may be one other user's, and one's of those who may do everything.
const OF_A_USER_MAX: usize = 8;
const OF_OURS_MAX: usize = 48;
/// How many new clients are taken in before those that have gone are let go: they would count as their user's.
const TURN: usize = 8;
/// How long a client may take for a request, or for taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a supervisor that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(1);
/// How long nobody is accepted after that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// What a client is borne with: a request names a program and its arguments.
const LIMITS: Limits = Limits { line: 256 << 10, fds: 1, backlog: 1 << 20 };

/// Which client: the number is not used again.
pub(super) type ClientId = u64;

/// Whoever is connected.
#[derive(Debug)]
pub(super) struct Clients {
    pub path: PathBuf,
    pub listening: OwnedFd,
    pub inode: (u64, u64),
    list: Vec<Client>,
    next: ClientId,
    accepts_from: Instant,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    lines: Lines,
    cred: PeerCred,
    /// None while it waits for what it asked for: that may take long.
    deadline: Option<Instant>,
    /// Whether nothing more is to be said to it.
    is_done: bool,
}

/// A request, and who asks.
#[derive(Debug)]
pub(super) struct Asked {
    pub client: ClientId,
    pub cred: PeerCred,
    /// Or what is wrong with it.
    pub request: Result<Request, String>,
    pub fds: Vec<OwnedFd>,
}

/// Binds the trigger socket.
///
/// # Errors
///
/// Another supervisor listens there; the path cannot be one; a system call failed.
pub(super) fn bind(settings: &Settings) -> Result<OwnedFd> {
    let path = &settings.trigger;
    if path.as_os_str().len() > unix::PATH_MAX || path.file_name().is_none() {
        let detail = format!("{} cannot be a socket's path: it is none, or too long", path.display());
        return Err(Error::Invalid { detail });
    }
    // Where others may ask, everybody may connect, and who it is decides.
    let access = Access { mode: Some(mode(settings)), ..Access::default() };
    match bind_patiently(path, access) {
        Ok(Ok(fd)) => Ok(fd),
        Ok(Err(Occupied::ByFile)) => {
            let detail = "a file that is no socket is there".to_owned();
            Err(Error::Foreign { path: path.clone(), detail })
        }
        Ok(Err(Occupied::ByLive(cred))) => {
            let holder = cred.and_then(|cred| crate::sys::users::process(cred.pid));
            let who = holder.map_or("another process".to_owned(), |user| user.to_string());
            Err(Error::Refused { reason: format!("{who} listens at {} already", path.display()) })
        }
        Err(e) => Err(Error::io(format!("listen for triggers at {}", path.display()), e)),
    }
}

/// A supervisor that was killed is gone, but what it had just forked may have its socket until it becomes another program.
fn bind_patiently(path: &Path, access: Access) -> std::io::Result<Result<OwnedFd, Occupied>> {
    let until = Instant::now() + DYING;
    loop {
        match bind::unix_path(Transport::Stream, path, &Options::default(), access) {
            Ok(Err(Occupied::ByLive(_))) if Instant::now() < until => std::thread::sleep(DYING / 100),
            bound => return bound,
        }
    }
}

fn mode(settings: &Settings) -> u32 {
    if settings.allowed_uids.is_empty() { 0o600 } else { 0o666 }
}

impl Clients {
    pub fn new(path: PathBuf, listening: OwnedFd) -> Result<Self> {
        let meta = std::fs::symlink_metadata(&path)
            .map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
        let inode = (meta.dev(), meta.ino());
        Ok(Self { path, listening, inode, list: vec![], next: 1, accepts_from: Instant::now() })
    }

    /// Goes on with a client of this process's program of before, which waits.
    pub fn adopt(&mut self, socket: OwnedFd) -> Option<ClientId> {
        let cred = process::peer_cred(socket.as_fd()).ok()?;
        Some(self.add(socket, cred, None))
    }

    fn add(&mut self, socket: OwnedFd, cred: PeerCred, deadline: Option<Instant>) -> ClientId {
        let id = self.next;
        self.next += 1;
        self.list.push(Client { id, lines: Lines::new(socket, LIMITS), cred, deadline, is_done: false });
        id
    }

    /// Returns what to wait for.
    pub fn wanted(&self) -> Vec<(BorrowedFd<'_>, crate::sys::poll::Want)> {
        use crate::sys::poll::Want;
        let clients = self.list.iter().map(|client| {
            (client.lines.as_fd(), if client.lines.wants_write() { Want::Both } else { Want::Read })
        });
        let listening = self.accepts().then(|| (self.listening.as_fd(), Want::Read));
        clients.chain(listening).collect()
    }

    fn accepts(&self) -> bool {
        self.list.len() < CLIENTS_MAX && self.accepts_from <= Instant::now()
    }

    /// Returns when there is something to do though nothing has come.
    pub fn wake_at(&self) -> Option<Instant> {
        let paused = (self.accepts_from > Instant::now()).then_some(self.accepts_from);
        self.list.iter().filter_map(|client| client.deadline).chain(paused).min()
    }

    /// Accepts whoever waits, and takes in what has been asked.
    pub fn serve(&mut self, say: super::Say) -> Vec<Asked> {
        self.accept(say);
        let now = Instant::now();
        let mut asked = vec![];
        for i in (0..self.list.len()).rev() {
            let client = &mut self.list[i];
            let stays = match client.hear() {
                Ok(Some((line, fds))) => {
                    client.deadline = Some(now + PATIENCE);
                    let request = serde_json::from_slice(&line).map_err(|e| e.to_string());
                    asked.push(Asked { client: client.id, cred: client.cred, request, fds });
                    true
                }
                Ok(None) => client.deadline.is_none_or(|deadline| deadline > now),
                Err(_) => false,
            };
            if !stays || (client.is_done && !client.lines.wants_write()) {
                self.list.swap_remove(i);
            }
        }
        asked
    }

    fn accept(&mut self, say: super::Say) {
        for _ in 0..TURN {
            if !self.accepts() {
                return;
            }
            let socket = match unix::accept_from(self.listening.as_fd()) {
                Ok(socket) => socket,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    say("warning", &format!("unable to accept a client: {e}"));
                    self.accepts_from = Instant::now() + PAUSE;
                    return;
                }
            };
            let Ok(cred) = process::peer_cred(socket.as_fd()) else { continue };
            let max = if is_ours(cred.uid) { OF_OURS_MAX } else { OF_A_USER_MAX };
            let of_this_user = self.list.iter().filter(|client| client.cred.uid == cred.uid).count();
            let id = self.add(socket, cred, Some(Instant::now() + PATIENCE));
            if of_this_user >= max {
                let reason = format!("user {} has {max} connections already", cred.uid);
                self.end(id, &Answer::Refused { reason });
                self.list
                    .iter_mut()
                    .filter(|client| client.id == id)
                    .for_each(|client| client.is_done = true);
            }
        }
    }

    /// Says something to a client, where it is still there.
    pub fn tell(&mut self, id: ClientId, answer: &Answer, fds: &[BorrowedFd<'_>]) {
        let Some(client) = self.list.iter_mut().find(|client| client.id == id) else { return };
        let Ok(mut line) = serde_json::to_vec(answer) else { return };
        line.push(b'\n');
        // One that does not listen is found gone in the next round.
        client.is_done |= client.lines.send(line, fds).is_err();
    }

    /// Says the last thing to a client.
    pub fn end(&mut self, id: ClientId, answer: &Answer) {
        self.tell(id, answer, &[]);
        if let Some(client) = self.list.iter_mut().find(|client| client.id == id) {
            client.deadline = Some(Instant::now() + PATIENCE);
        }
    }

    /// Lets a client wait for as long as it takes.
    pub fn hold(&mut self, id: ClientId) {
        if let Some(client) = self.list.iter_mut().find(|client| client.id == id) {
            client.deadline = None;
        }
    }

    /// Returns a client's socket, where nothing is half said on it.
    pub fn socket(&self, id: ClientId) -> Option<BorrowedFd<'_>> {
        let client = self.list.iter().find(|client| client.id == id)?;
        client.lines.is_clean().then(|| client.lines.as_fd())
    }

    /// Delivers what is still on its way, and removes the path.
    pub fn close(mut self, deadline: Instant) {
        for client in &mut self.list {
            // It may be gone, or not listen.
            let _ = client.lines.deliver("an answer", deadline);
        }
        super::remove_if_ours(&self.path, self.inode);
    }
}

impl Client {
    fn hear(&mut self) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.lines.flush()?;
        if self.lines.wants_write() {
            return Ok(None);
        }
        match self.lines.receive()? {
            // It waits for an answer, and says more: that is not how it is done.
            Some(_) if self.deadline.is_none() => {
                Err(Error::Protocol { expected: "nothing".to_owned(), got: "another request".to_owned() })
            }
            heard => Ok(heard),
        }
    }
}

/// Root, and the user who runs this supervisor, may do everything that it can.
pub(super) fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == unix::effective_uid()
}

/// Returns why a user may not ask at all, where he may not.
pub(super) fn check_user(settings: &Settings, uid: u32) -> Result<(), String> {
    if is_ours(uid) || settings.allowed_uids.contains(&uid) {
        return Ok(());
    }
    Err(format!("user {uid} may not ask this supervisor for anything"))
}

/// Opens the program that a request names, or the configured one, and makes sure that whoever asks may have it run. It is opened once: what is looked
/// at here is what runs.
///
/// # Errors
///
/// Why not, as a sentence.
pub(super) fn open_program(settings: &Settings, asked: Option<&Path>, uid: u32) -> Result<Program, String> {
    let configured = || Program::open(&settings.binary).map_err(|e| e.to_string());
    let Some(path) = asked else {
        let program = configured()?;
        check_configured(&program, uid)?;
        return Ok(program);
    };
    if !path.is_absolute() {
        return Err(format!("{} is no full path", path.display()));
    }
    let program = Program::open(path).map_err(|e| e.to_string())?;
    match configured() {
        Ok(configured) if same(&program, &configured) => check_configured(&configured, uid)?,
        _ => check_allowed(settings, &program, path, uid)?,
    }
    check_writers(&program, uid)?;
    Ok(program)
}

fn check_configured(program: &Program, uid: u32) -> Result<(), String> {
    check_writers(program, uid)?;
    if is_ours(uid) || !is_in_others_hands(program.path()) {
        return Ok(());
    }
    Err(format!(
        "others may write to a directory on the way to {}, so that it is run for root and this supervisor's user alone",
        program.path().display()
    ))
}

fn check_allowed(settings: &Settings, program: &Program, path: &Path, uid: u32) -> Result<(), String> {
    if settings.allowed_binaries.is_empty() {
        return if is_ours(uid) {
            Ok(())
        } else {
            Err(format!("{} is not the configured program, and no other is allowed", path.display()))
        };
    }
    let is_allowed = settings.allowed_binaries.iter().any(|allowed| is_in(program, allowed, uid));
    is_allowed.then_some(()).ok_or_else(|| format!("{} is none of the allowed programs", path.display()))
}

/// The file counts, not its name.
fn is_in(program: &Program, allowed: &Path, uid: u32) -> bool {
    let is_directory = allowed.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !is_ours(uid) && is_in_others_hands(allowed) {
        return false;
    }
    if !is_directory {
        return Program::open(allowed).is_ok_and(|allowed| same(program, &allowed));
    }
    let (Ok(directory), Ok(resolved)) = (allowed.canonicalize(), program.resolved()) else { return false };
    // A file that was removed has no place any more, and the kernel says so behind its name.
    let is_there = resolved.parent() == Some(&directory) && program.same_file(&resolved);
    is_there && (is_ours(uid) || !is_others(&directory))
}

fn same(a: &Program, b: &Program) -> bool {
    let identity = |program: &Program| program.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    identity(a).is_some() && identity(a) == identity(b)
}

/// Returns whether somebody else could put a program there.
fn is_others(directory: &Path) -> bool {
    std::fs::metadata(directory).map_or(true, |meta| may_be_written(&meta))
}

/// Returns whether somebody else chooses what this path leads to: whoever may write to a directory on the way to it can put another file, or a link
/// to any program, in its place.
fn is_in_others_hands(path: &Path) -> bool {
    let Ok(full) = std::path::absolute(path) else { return true };
    // Where links lead there are further directories.
    let Ok(resolved) = full.canonicalize() else { return true };
    let is_fixed =
        |path: &Path| path.ancestors().zip(path.ancestors().skip(1)).all(|(entry, dir)| is_fixed(entry, dir));
    !is_fixed(&full) || !is_fixed(&resolved)
}

/// Returns whether only we could put something else in this place of a directory.
fn is_fixed(entry: &Path, dir: &Path) -> bool {
    let Ok(dir) = std::fs::metadata(dir) else { return false };
    // In such a directory, as /tmp is one, nobody replaces what is another's.
    let is_sticky = is_ours(dir.uid()) && dir.mode() & 0o1000 != 0;
    !may_be_written(&dir)
        || (is_sticky && std::fs::symlink_metadata(entry).is_ok_and(|meta| is_ours(meta.uid())))
}

fn may_be_written(meta: &Metadata) -> bool {
    !is_ours(meta.uid()) || meta.mode() & 0o022 != 0
}

/// Whoever could write to the program would have it do as he likes, with this process's rights.
fn check_writers(program: &Program, uid: u32) -> Result<(), String> {
    let meta = program.metadata().map_err(|e| e.to_string())?;
    if is_ours(uid) || !may_be_written(&meta) {
        return Ok(());
    }
    Err(format!(
        "others may write to {}, so that it is run for root and this supervisor's user alone",
        program.path().display()
    ))
}
