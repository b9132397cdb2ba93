//! The question to a program, whether it can go on with what this one holds: asked of a child, before this process becomes it.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use super::{REHEARSAL, STATE_VAR, State, UNDERSTOOD, named, write_state};
use crate::error::{Error, Result};
use crate::sys::spawn::{Image, Program, Spawn};

/// How long the program may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The state's number in the child.
const NUMBER: i32 = 3;

/// A program that was asked, and has not answered yet.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub(super) program: Program,
    pub(super) deadline: Instant,
    child: Child,
    answer: PipeReader,
    said: Vec<u8>,
}

impl Rehearsal {
    pub(super) fn start(state: &mut State) -> Result<Self> {
        let program = Program::open(&state.program)?;
        let memory = write_state(state, &[])?;
        let (answer, writer) = io::pipe().map_err(|e| Error::io("make a pipe", e))?;
        let mut image = Image::new(&program);
        image.args = vec!["hold-fds".into(), "--serve".into(), state.path.clone().into()];
        let text = format!("{REHEARSAL}{}", named(&memory, NUMBER)?);
        image.env.push((STATE_VAR.into(), text.into()));
        image.fds = vec![(NUMBER, memory.as_fd())];
        let spawn = Spawn { stdout: Some(writer.as_fd()), ..Spawn::new(image) };
        let child = spawn.spawn()?;
        drop(writer);
        Ok(Self { program, deadline: Instant::now() + PATIENCE, child, answer, said: vec![] })
    }

    /// Takes in what was said, once there is something to read. Returns whether the program understands, once that is known.
    pub(super) fn hear(&mut self) -> Option<bool> {
        let mut buffer = [0; 64];
        match self.answer.read(&mut buffer) {
            Ok(0) | Err(_) => return Some(self.end()),
            Ok(length) => self.said.extend_from_slice(&buffer[..length]),
        }
        // Whatever says more is something else.
        (self.said.len() > UNDERSTOOD.len()).then(|| self.end())
    }

    /// Ends the child, and returns whether it had understood.
    pub(super) fn end(&mut self) -> bool {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.said == UNDERSTOOD.as_bytes()
    }
}

impl AsFd for Rehearsal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }
}
