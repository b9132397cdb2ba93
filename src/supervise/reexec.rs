//! The supervisor's own upgrade: its program is asked whether it understands, and then this process becomes it, with the same pid, children and sockets.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::engine::{Engine, Task};
use crate::error::{Error, Result};
use crate::fds::{self, Role};
use crate::proto::supervisor::Job;
use crate::sys::poll::{self, Want};
use crate::sys::spawn::{Image, Program, Spawn};
use crate::sys::{inherit, memory, reexec, socket};

/// The variable by which a supervisor finds what it is to go on with.
const STATE_VAR: &str = "HANDOFF_SUPERVISOR";
/// The format of the state.
const FORMAT: u32 = 1;
/// What a program answers that understands a state, before its version.
const UNDERSTOOD: &str = "handoff supervisor format 1, version ";
/// How long an answer gets.
const ANSWER_MAX: usize = 256;
/// What stands before the state's descriptor where a program is only asked.
const REHEARSAL: &str = "check:";
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The state's number in a program that is asked.
const NUMBER: RawFd = 3;

/// What a supervisor is, from one of its programs to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    format: u32,
    pub listening: RawFd,
    /// The daemon's NOTIFY_SOCKET.
    #[serde(default)]
    pub private: Option<RawFd>,
    /// As in the fd table.
    pub listeners: String,
    /// Who asked for this, and is to be told.
    pub asker: Option<RawFd>,
    pub waiting: Vec<Waiting>,
    /// The children that were started here.
    pub leaders: Vec<u32>,
    pub restarts: u32,
    /// How long ago each of the last restarts was, in milliseconds.
    pub restarted_ms: Vec<u64>,
    pub swaps: Vec<(String, u64)>,
}

/// A request that waits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub is_swap: bool,
    pub client: Option<RawFd>,
    pub program: Option<(PathBuf, RawFd)>,
    pub args: Option<Vec<String>>,
    pub bake_ms: Option<u64>,
}

/// What this process was started for.
pub(super) enum Found {
    /// It is a supervisor that has just been started.
    Nothing,
    /// It is to say whether it understands a state.
    Rehearsal(Result<()>),
    /// It is a supervisor that goes on.
    State(Box<State>),
}

/// Looks for the state of this process's program of before.
///
/// # Errors
///
/// It is there, and cannot be read.
pub(super) fn find() -> Result<Found> {
    let Some(text) = inherit::take_var(STATE_VAR).and_then(|text| text.into_string().ok()) else {
        return Ok(Found::Nothing);
    };
    let (is_rehearsal, text) = match text.strip_prefix(REHEARSAL) {
        Some(text) => (true, text),
        None => (false, text.as_str()),
    };
    // A variable that a supervisor leaked to another program says nothing to it: the descriptor is not there.
    let Some(memory) = memory::adopt_named(text) else { return Ok(Found::Nothing) };
    let state = read(&memory);
    if is_rehearsal {
        return Ok(Found::Rehearsal(state.map(drop)));
    }
    state.map(|state| Found::State(Box::new(state)))
}

/// Says that this program understands.
///
/// # Errors
///
/// Nobody listens.
pub(super) fn answer(version: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{UNDERSTOOD}{version}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("answer the supervisor", e))
}

fn read(memory: &OwnedFd) -> Result<State> {
    let text = memory::read(memory.as_fd()).map_err(|e| Error::io("read what is supervised", e))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| Error::Protocol { expected: "a supervisor's state".to_owned(), got: e.to_string() })?;
    if state.format > FORMAT {
        return Err(Error::NewerFormat { path: STATE_VAR.into(), ours: FORMAT, found: state.format });
    }
    Ok(state)
}

/// Names the state's descriptor, with what it must turn out to be.
fn named(memory: &OwnedFd, number: RawFd) -> Result<String> {
    let inode = socket::inode(memory.as_fd()).map_err(|e| Error::io("identify what is supervised", e))?;
    Ok(format!("{number}@{}:{}", inode.dev, inode.ino))
}

fn write(engine: &Engine) -> Result<(OwnedFd, Vec<BorrowedFd<'_>>)> {
    let table: Vec<(Role, RawFd, BorrowedFd<'_>)> = engine
        .listeners
        .iter()
        .map(|(name, fd)| (Role::Listener(name.clone()), fd.as_raw_fd(), fd.as_fd()))
        .collect();
    let mut kept: Vec<BorrowedFd<'_>> = table.iter().map(|(_, _, fd)| *fd).collect();
    kept.push(engine.clients.listening.as_fd());
    kept.extend(engine.managed.private());
    let client = |task: &Task| engine.clients.socket(task.client?);
    let asker = engine.reexec.as_ref().and_then(client);
    let mut waiting = vec![];
    for task in &engine.queue {
        let socket = client(task);
        kept.extend(socket);
        kept.extend(task.program.as_ref().map(AsFd::as_fd));
        waiting.push(Waiting {
            is_swap: task.job == Job::Swap,
            client: socket.map(|fd| fd.as_raw_fd()),
            program: task
                .program
                .as_ref()
                .map(|program| (program.path().to_owned(), program.as_fd().as_raw_fd())),
            args: task.args.clone(),
            bake_ms: task.bake_ms,
        });
    }
    kept.extend(asker);
    let ms = |at: &Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    let state = State {
        format: FORMAT,
        listening: engine.clients.listening.as_raw_fd(),
        private: engine.managed.private().map(|fd| fd.as_raw_fd()),
        listeners: fds::render(&table)?,
        asker: asker.map(|fd| fd.as_raw_fd()),
        waiting,
        leaders: engine.leaders.iter().map(|leader| leader.pid).collect(),
        restarts: engine.restarts_total,
        restarted_ms: engine.restarts.iter().map(ms).collect(),
        swaps: engine.swaps.clone(),
    };
    let text = serde_json::to_vec(&state)
        .map_err(|e| Error::io("write down what is supervised", io::Error::from(e)))?;
    let memory = memory::create("handoff-supervisor", &text)
        .map_err(|e| Error::io("write down what is supervised", e))?;
    Ok((memory, kept))
}

/// Becomes the program; returns if that fails, and then nothing has changed.
pub(super) fn become_anew(engine: &Engine, program: &Program) -> Error {
    let (memory, mut kept) = match write(engine) {
        Ok(written) => written,
        Err(e) => return e,
    };
    kept.push(memory.as_fd());
    let found = match named(&memory, memory.as_raw_fd()) {
        Ok(found) => found,
        Err(e) => return e,
    };
    let args: Vec<OsString> = std::env::args_os().collect();
    let ours = |name: &OsString| name == STATE_VAR || name == fds::HANDOFF_FDS;
    let env = std::env::vars_os().filter(|(name, _)| !ours(name));
    let manager = engine.managed.manager().vars().iter().cloned();
    let env: Vec<(OsString, OsString)> =
        env.chain(manager).chain([(STATE_VAR.into(), found.into())]).collect();
    let e = reexec::become_program(program, &args, &env, &kept);
    Error::io(format!("become {} anew", program.path().display()), e)
}

/// The question to a program, whether it can go on with what this one has: asked of a child, which gets this process's own command line, and so reads
/// the configuration too.
#[derive(Debug)]
pub(super) struct Rehearsal {
    program: Program,
    memory: OwnedFd,
}

impl Rehearsal {
    /// Opens the program, and writes down what it is asked about.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn prepare(engine: &Engine) -> Result<Self> {
        Ok(Self { program: Program::open(&engine.own.program)?, memory: write(engine)?.0 })
    }

    /// Asks, and returns the program if it understands.
    ///
    /// # Errors
    ///
    /// It does not, or does not answer in time.
    pub fn run(self) -> Result<Program> {
        let (mut answer, writer) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
        let mut image = Image::new(&self.program);
        let mut args = std::env::args_os();
        image.argv0 = args.next().unwrap_or_default();
        image.args = args.collect();
        let text = format!("{REHEARSAL}{}", named(&self.memory, NUMBER)?);
        image.env.retain(|(name, _)| name != STATE_VAR);
        image.env.push((STATE_VAR.into(), text.into()));
        image.fds = vec![(NUMBER, self.memory.as_fd())];
        let spawn = Spawn { stdout: Some(writer.as_fd()), ..Spawn::new(image) };
        let mut child = spawn.spawn()?;
        drop(writer);
        let said = hear(&mut answer, Instant::now() + PATIENCE);
        let status = end(&mut child);
        match said.strip_prefix(UNDERSTOOD) {
            Some(_) => Ok(self.program),
            None => {
                let reason = format!("the program there does not understand what this one has ({status})");
                Err(Error::Refused { reason })
            }
        }
    }
}

fn hear(answer: &mut PipeReader, deadline: Instant) -> String {
    let mut said = vec![];
    let mut buffer = [0; ANSWER_MAX];
    while said.len() < ANSWER_MAX && !said.contains(&b'\n') {
        if !poll::wait_one(answer.as_fd(), Want::Read, Some(deadline)).unwrap_or(false) {
            break;
        }
        match answer.read(&mut buffer) {
            Ok(length @ 1..) => said.extend_from_slice(&buffer[..length]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Ends the child, and says how it ended by itself, where it did.
fn end(child: &mut Child) -> String {
    const MOMENT: Duration = Duration::from_millis(500);
    let until = Instant::now() + MOMENT;
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return status.to_string();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // It may have ended already.
    let _ = child.kill();
    child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
}
