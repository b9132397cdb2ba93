//! The holder: a process that keeps listening sockets open and does nothing else with them.
//!
//! It gives copies to those who may have them, over a Unix stream socket, and takes copies back. It becomes itself anew in place on SIGHUP, with all its
//! sockets, and stays small: what it serves with is none of the command line's machinery, since it became itself once before it began.
//!
//! # The wire
//!
//! One JSON object a line, its `type` a word; a client sends a request and reads the answer before it sends the next. A descriptor travels with
//! the line that mentions it. Fields that are not known are ignored, a request that is not known is refused.
//!
//! | request | fields | answer | descriptors |
//! | --- | --- | --- | --- |
//! | `list` | `from`, how many to leave out | `held`: `sockets` (each `name`, `kind`, `address`), `next` (what `from` is to be for the rest; missing at the end) | |
//! | `give` | `names` | `given`: `names`, of which the first so many as fit a message are given; ask again for the rest | one for each name, with the answer |
//! | `store` | `name`, `replace` (whether one of this name may be replaced) | `stored`: `replaced` | one, with the request |
//! | `forget` | `name` | `forgotten` | |
//! | any | | `refused`: `reason` | |

mod client;
mod reload;
mod server;

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::Client;

use crate::channel::Limits;
use crate::error::{Error, Result};
use crate::fds::{self, Role};
use crate::sys::bind::{self, Access, Occupied, Options};
use crate::sys::socket::{self, Family, SocketKind, Transport};
use crate::sys::spawn::Program;
use crate::sys::{inherit, memory, reexec};

/// How many sockets a holder keeps.
pub const SOCKETS_MAX: usize = 1024;
/// How many descriptors are given in one message: of those in flight, the kernel allows a process only so many.
const GIVE_MAX: usize = 32;
/// How long a request may be, and about how long an answer gets.
const LINE_MAX: usize = 4 << 10;

/// What a client bears with.
const CLIENT: Limits = Limits { line: 16 * LINE_MAX, fds: GIVE_MAX, backlog: 16 * LINE_MAX };
/// What a holder bears with: one descriptor, and one answer that is not taken yet.
const HOLDER: Limits = Limits { line: LINE_MAX, fds: 1, backlog: 16 * LINE_MAX };

/// The variable by which a holder finds what it is to hold, when it becomes itself anew.
const STATE_VAR: &str = "HANDOFF_HOLDER";
/// The format of the state.
const FORMAT: u32 = 1;
/// What a program answers that understands a state.
const UNDERSTOOD: &str = "handoff holder format 1\n";
/// What stands before the state's descriptor where a program is only asked whether it understands.
const REHEARSAL: &str = "check:";

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Request {
    List {
        #[serde(default)]
        from: usize,
    },
    Give {
        names: Vec<String>,
    },
    Store {
        name: String,
        #[serde(default)]
        replace: bool,
    },
    Forget {
        name: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Answer {
    Held {
        sockets: Vec<Held>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<usize>,
    },
    Given {
        names: Vec<String>,
    },
    Stored {
        replaced: bool,
    },
    Forgotten {},
    Refused {
        reason: String,
    },
}

/// A socket that a holder has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it is called.
    pub name: String,
    /// `tcp`, `udp`, `unix`, `seqpacket` or `datagram`.
    pub kind: String,
    /// What it is bound to.
    pub address: String,
}

impl Held {
    fn of(name: &str, fd: BorrowedFd<'_>) -> Self {
        let kind = socket::kind(fd).ok();
        Self {
            name: name.to_owned(),
            kind: kind.as_ref().map_or("", kind_text).to_owned(),
            address: kind.map_or(String::new(), |kind| kind.local_address),
        }
    }
}

fn kind_text(kind: &SocketKind) -> &'static str {
    match (kind.family, kind.transport) {
        (Family::Unix, Transport::Stream) => "unix",
        (Family::Unix, Transport::SeqPacket) => "seqpacket",
        (Family::Unix, _) => "datagram",
        (_, Transport::Datagram) => "udp",
        _ => "tcp",
    }
}

/// Which users and groups may do something. The holder's own user and root always may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, also as supplementary ones.
    pub gids: Vec<u32>,
}

/// How a holder is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens.
    pub path: PathBuf,
    /// Who may list sockets and get copies.
    pub give: Allowed,
    /// Who may store, replace and remove them too.
    pub store: Allowed,
    /// Where a newline is to be written when it is ready, before it is closed.
    pub ready_fd: Option<RawFd>,
    /// The program that it becomes on SIGHUP.
    pub program: PathBuf,
}

/// What a holder is, from one of its programs to the next.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format: u32,
    path: PathBuf,
    /// The socket at the path, by device and inode.
    inode: (u64, u64),
    listening: RawFd,
    give: Allowed,
    store: Allowed,
    /// Where readiness is still to be said.
    ready_fd: Option<RawFd>,
    program: PathBuf,
    /// The sockets, as in the fd table.
    sockets: String,
}

/// Becomes a holder of these sockets, in this process: binds the path, and becomes its own program anew, which begins with nothing else in its memory.
///
/// # Errors
///
/// Returns only then: somebody listens at the path, or a system call failed.
pub fn start(setup: Setup, sockets: &[(String, OwnedFd)]) -> Error {
    match try_start(setup, sockets) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn try_start(setup: Setup, sockets: &[(String, OwnedFd)]) -> Result<std::convert::Infallible> {
    if sockets.len() > SOCKETS_MAX {
        let detail = format!("a holder keeps at most {SOCKETS_MAX} sockets, and these are {}", sockets.len());
        return Err(Error::Invalid { detail });
    }
    if let Some(number) = setup.ready_fd
        && !inherit::is_passed_on(number)
    {
        let detail = format!("descriptor {number}, on which to say that it is ready, is closed");
        return Err(Error::Invalid { detail });
    }
    let program = Program::open(Path::new("/proc/self/exe"))?;
    let listening = listen(&setup)?;
    let inode = inode_at(&setup.path)?;
    let state = State {
        format: FORMAT,
        path: std::path::absolute(&setup.path).map_err(|e| Error::io("find the working directory", e))?,
        inode,
        listening: listening.as_raw_fd(),
        give: setup.give,
        store: setup.store,
        ready_fd: setup.ready_fd,
        program: setup.program,
        sockets: String::new(),
    };
    let failed = become_anew(&program, state, &listening, sockets);
    remove_if_ours(&setup.path, inode);
    Err(failed)
}

/// Where others may come, the socket's mode lets everybody connect, and who it is decides.
fn listen(setup: &Setup) -> Result<OwnedFd> {
    let nobody_else = setup.give == Allowed::default() && setup.store == Allowed::default();
    let access = Access { mode: Some(if nobody_else { 0o600 } else { 0o666 }), ..Access::default() };
    let attempt = || format!("hold sockets at {}", setup.path.display());
    let too_long = setup.path.as_os_str().len() > crate::sys::unix::PATH_MAX;
    if too_long || setup.path.file_name().is_none() {
        let detail = format!("{} cannot be a socket's path: it is none, or too long", setup.path.display());
        return Err(Error::Invalid { detail });
    }
    match bind::unix_path(Transport::Stream, &setup.path, &Options::default(), access) {
        Ok(Ok(fd)) => Ok(fd),
        Ok(Err(Occupied::ByFile)) => {
            let detail = "a file that is no socket is there".to_owned();
            Err(Error::Foreign { path: setup.path.clone(), detail })
        }
        Ok(Err(Occupied::ByLive(cred))) => {
            let holder = cred.and_then(|cred| crate::sys::users::process(cred.pid));
            let who = holder.map_or("another process".to_owned(), |user| user.to_string());
            Err(Error::Refused { reason: format!("{who} holds sockets at {} already", setup.path.display()) })
        }
        Err(e) => Err(Error::io(attempt(), e)),
    }
}

fn inode_at(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path);
    let meta = meta.map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
    Ok((meta.dev(), meta.ino()))
}

/// Another holder may have come to the path: that one's socket stays.
fn remove_if_ours(path: &Path, inode: (u64, u64)) {
    if inode_at(path).is_ok_and(|found| found == inode) {
        // What cannot be removed is found dead by the next one.
        let _ = std::fs::remove_file(path);
    }
}

/// Becomes a program with the state and the sockets; returns if that fails, and then nothing has changed.
fn become_anew(
    program: &Program,
    mut state: State,
    listening: &OwnedFd,
    sockets: &[(String, OwnedFd)],
) -> Error {
    match write_state(&mut state, sockets) {
        Ok(memory) => {
            let mut kept: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
            kept.extend([memory.as_fd(), listening.as_fd()]);
            let args: Vec<OsString> = std::env::args_os().collect();
            let found = match named(&memory, memory.as_raw_fd()) {
                Ok(found) => found,
                Err(e) => return e,
            };
            let env = environment(found);
            let e = reexec::become_program(program, &args, &env, &kept);
            Error::io(format!("become {} anew", program.path().display()), e)
        }
        Err(e) => e,
    }
}

fn environment(state: String) -> Vec<(OsString, OsString)> {
    let ours = |name: &OsString| name == STATE_VAR || name == fds::HANDOFF_FDS;
    let others = std::env::vars_os().filter(|(name, _)| !ours(name));
    others.chain([(STATE_VAR.into(), state.into())]).collect()
}

fn write_state(state: &mut State, sockets: &[(String, OwnedFd)]) -> Result<OwnedFd> {
    let entries: Vec<(Role, RawFd, BorrowedFd<'_>)> =
        sockets.iter().map(|(name, fd)| (Role::Listener(name.clone()), fd.as_raw_fd(), fd.as_fd())).collect();
    state.sockets = fds::render(&entries)?;
    let text = serde_json::to_vec(state)
        .map_err(|e| Error::io("write down what is held", std::io::Error::from(e)))?;
    memory::create("handoff-holder", &text).map_err(|e| Error::io("write down what is held", e))
}

/// Names the state's descriptor, with what it must turn out to be.
fn named(memory: &OwnedFd, number: RawFd) -> Result<String> {
    let inode = socket::inode(memory.as_fd()).map_err(|e| Error::io("identify what is held", e))?;
    Ok(format!("{number}@{}:{}", inode.dev, inode.ino))
}

/// How a holder says what happens: a level and a line.
pub type Say = fn(&str, &str);

/// Goes on as the holder that this process was before it became this program, if it was one; returns when it was asked to end.
///
/// To be called first of all: what it does not use is not in its memory.
///
/// # Errors
///
/// The state is not understood, or a system call failed.
pub fn resume(say: Say) -> Option<Result<()>> {
    let text = inherit::take_var(STATE_VAR)?.into_string().ok()?;
    let (is_rehearsal, text) = match text.strip_prefix(REHEARSAL) {
        Some(text) => (true, text),
        None => (false, text.as_str()),
    };
    // A variable that a holder leaked to another program says nothing to it: the descriptor is not there.
    let memory = memory::adopt_named(text)?;
    let state = read_state(&memory);
    drop(memory);
    Some(match state {
        Ok(_) if is_rehearsal => std::io::Write::write_all(&mut std::io::stdout(), UNDERSTOOD.as_bytes())
            .map_err(|e| Error::io("answer the holder", e)),
        Ok(state) => server::Server::new(state, say).and_then(server::Server::run),
        Err(e) => Err(e),
    })
}

fn read_state(memory: &OwnedFd) -> Result<State> {
    let text = memory::read(memory.as_fd()).map_err(|e| Error::io("read what is to be held", e))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| Error::Protocol { expected: "a holder's state".to_owned(), got: e.to_string() })?;
    if state.format > FORMAT {
        return Err(Error::NewerFormat { path: STATE_VAR.into(), ours: FORMAT, found: state.format });
    }
    Ok(state)
}

fn line(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec(message).map_err(|e| Error::io("write a message", std::io::Error::from(e)))?;
    bytes.push(b'\n');
    Ok(bytes)
}
