//! A handoff phase by phase: what the links of a chain of commands use, and drivers that stop between phases.
//!
//! A driver takes the lease ([`Steps::begin_warm`]), or finds it in the chain that it inherited ([`Steps::resume_or_begin`]), does a
//! phase or several, and then either ends the handoff or [hands it over](Steps::hand_over) to the next link.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::chain::{Chain, ID_VAR, JOURNAL_VAR};
use crate::channel::Channel;
use crate::drive::{Drive, Inheritance, State};
use crate::error::{Error, Result};
use crate::fds::Role;
use crate::journal::Journal;
use crate::proto::driver::Phase;
pub use crate::proto::driver::{Next, Order};
use crate::supervisor::{Event, HandoffOutcome, SpawnSpec, Wish};
use crate::sys::memory;
use crate::sys::process::PidFd;
use crate::sys::spawn::Program;

/// The phase of a handoff whose lease a command is passing on.
const CLAIMED: &str = "deciding";

/// A handoff in progress, whose lease this process holds.
///
/// Dropping it closes this process's copy of the lease; if that is the last one, the handoff is undone.
pub struct Steps<'a> {
    drive: Drive<'a>,
}

/// What came of [`Steps::hand_over`].
pub enum HandedOver<'a> {
    /// The chain holds it now.
    Yes,
    /// It ended at the last moment.
    Ended(Box<Steps<'a>>),
}

/// Why [`Steps::exec_successor`] returned.
pub enum Stayed<'a> {
    /// The handoff had ended: how is what [`finish`](Steps::finish) says.
    Ended(Box<Steps<'a>>),
    /// This process could not become the program.
    Failed(Error),
}

/// What is known of the handoff in a chain.
#[derive(Clone, Debug)]
pub struct Inherited {
    /// Its id.
    pub handoff: String,
    /// Where it holds: `prepared`, `warm`, `drained`, `sealed` or `widowed`; or how it ended.
    pub phase: String,
    /// Whether a successor waits.
    pub has_successor: bool,
    /// The incumbent's data directory and the lock file in it.
    pub lock_file: PathBuf,
    /// The incumbent's pid.
    pub incumbent: u32,
    /// What was agreed on with whoever took the lease.
    pub spec: SpawnSpec,
}

impl Inherited {
    /// Whether another command of this chain uses the lease up at this moment, or was killed when it did.
    pub fn is_claimed(&self) -> bool {
        self.phase == CLAIMED
    }

    /// Whether the handoff is not over, and the lease is still this chain's to go on with.
    pub fn is_held(&self) -> bool {
        Phase::HELD.iter().any(|phase| phase.name() == self.phase)
    }
}

impl<'a> Steps<'a> {
    /// Goes on with the handoff whose lease the chain holds. Where it holds none, takes the lease without a successor: the incumbent is to seal
    /// first, and it holds as `prepared`.
    ///
    /// # Errors
    ///
    /// Nobody answers at the control path; a descriptor of the chain is missing or cannot be used; [`Error::Refused`] where the handoff is over
    /// already. A refusal by the incumbent is an outcome.
    pub fn resume_or_begin(
        control: &'a Path,
        spec: SpawnSpec,
        chain: &Chain,
        observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<Self> {
        let Some(state) = state_of(chain)? else {
            let mut drive = driver(control, spec, Order::Cold, chain, observer)?;
            drive.take_lease()?;
            return Ok(Self { drive });
        };
        let inherited = Inheritance {
            lease: copy(chain, &Role::Lease)?.map(Channel::new),
            incumbent: pidfd_of(chain)?,
            successor: copy(chain, &Role::Successor)?.map(Channel::new),
        };
        let mut drive = driver(control, spec, state.order(), chain, observer)?;
        drive.take_up(state, inherited)?;
        Ok(Self { drive })
    }

    /// Takes the lease, starts the successor, and waits until it is warm. It holds as `warm`.
    ///
    /// # Errors
    ///
    /// As [`resume_or_begin`](Self::resume_or_begin).
    pub fn begin_warm(
        control: &'a Path,
        spec: SpawnSpec,
        program: Program,
        chain: &Chain,
        observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
    ) -> Result<Self> {
        let mut drive = driver(control, spec, Order::Warm, chain, observer)?;
        drive.set_program(program);
        drive.take_lease()?;
        Ok(Self { drive })
    }

    /// Returns where it holds, or the last phase that it came to.
    pub fn phase(&self) -> &'static str {
        self.drive.phase_name()
    }

    /// Whether it is over: how is what [`finish`](Self::finish) says.
    pub fn has_ended(&self) -> bool {
        self.drive.has_ended()
    }

    /// Does the next thing, and goes on until it holds again or is over.
    ///
    /// # Errors
    ///
    /// The journal cannot be written before anything has changed, or a system call fails.
    pub fn go(&mut self, next: Next) -> Result<()> {
        self.drive.go(next)
    }

    /// Starts the successor after the seal, passes the lease on, and goes on until the handoff is over.
    ///
    /// # Errors
    ///
    /// As [`go`](Self::go).
    pub fn spawn(&mut self, program: Program, chain: &Chain) -> Result<()> {
        self.claim(chain)?;
        self.drive.set_program(program);
        self.drive.fetch_output();
        self.drive.go(Next::Spawn)
    }

    /// Tells those who share the chain that this command uses the lease up: two successors on one lease would be one too many.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where another one does so already.
    pub fn claim(&self, chain: &Chain) -> Result<()> {
        let (Some(mut state), Some(fd)) = (self.drive.state(), chain.get(&Role::State)) else {
            return Ok(());
        };
        let claim = memory::claim(fd).map_err(|e| Error::io("claim the lease in the chain's state", e))?;
        let is_free = claim.is_some() && state_of(chain)?.is_some_and(|known| known.phase == state.phase);
        if !is_free {
            let reason = format!("handoff {} is with another command of this chain", state.handoff);
            return Err(Error::Refused { reason });
        }
        CLAIMED.clone_into(&mut state.phase);
        write_state(chain, &state)
    }

    /// Makes [`go`](Self::go) return when the successor serves on trial, as `baking`: the trial ends without this process.
    pub fn leave_trial(&mut self) {
        self.drive.leave_trial();
    }

    /// Undoes the handoff.
    ///
    /// # Errors
    ///
    /// A system call fails.
    pub fn cancel(&mut self, detail: &str) -> Result<()> {
        self.drive.cancel_for(detail)
    }

    /// Says how it ended, and tells those who share the chain.
    ///
    /// # Errors
    ///
    /// It has not ended.
    pub fn finish(self, chain: &Chain) -> Result<HandoffOutcome> {
        self.tell(chain)?;
        self.drive.finish()
    }

    /// Tells those who share the chain how far it has come.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn tell(&self, chain: &Chain) -> Result<()> {
        self.drive.state().map_or(Ok(()), |state| write_state(chain, &state))
    }

    /// Puts all that the next link needs into the chain.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] where a peer has sent half a message; EMFILE and ENOMEM.
    pub fn hand_over(mut self, chain: &mut Chain) -> Result<HandedOver<'a>> {
        // It listens once more, and that may have ended it.
        let Some((state, Inheritance { lease, incumbent, successor })) = self.drive.leave()? else {
            return Ok(HandedOver::Ended(Box::new(self)));
        };
        let text = json(&state)?;
        match chain.get(&Role::State) {
            Some(fd) => memory::replace(fd, &text).map_err(|e| Error::io("write the chain's state", e))?,
            None => {
                let fd = memory::create("handoff-state", &text)
                    .map_err(|e| Error::io("make the chain's state", e))?;
                chain.add(Role::State, fd);
            }
        }
        chain.set_var(ID_VAR, state.handoff);
        // The chain is their holder from here on: they stay open whoever dies.
        self.hand_over_listeners(chain)?;
        let parts = [
            (Role::Lease, lease.map(Channel::into_socket)),
            (Role::Incumbent, Some(OwnedFd::from(incumbent))),
            (Role::Successor, successor.map(Channel::into_socket)),
        ];
        for (role, fd) in parts {
            // What is there already is a copy of the same; what is gone must not be handed on.
            let _old = chain.take(&role);
            if let Some(fd) = fd {
                chain.add(role, fd);
            }
        }
        Ok(HandedOver::Yes)
    }

    /// Becomes the successor: the program finds an offer, `begin` and the lease waiting in its channel, whose other end is closed. If that fails, the
    /// handoff is undone when this process ends.
    ///
    /// Returns only then, and where the handoff is over.
    pub fn exec_successor(mut self, chain: &mut Chain, program: &Program, args: &[OsString]) -> Stayed<'a> {
        match self.prepare_successor(chain, program, args) {
            Ok(()) if self.drive.has_become() => {
                drop(self);
                Stayed::Failed(chain.exec(program, args))
            }
            Ok(()) => Stayed::Ended(Box::new(self)),
            Err(e) => Stayed::Failed(e),
        }
    }

    fn hand_over_listeners(&self, chain: &mut Chain) -> Result<()> {
        if chain.listeners().next().is_none() {
            for (name, fd) in self.drive.copy_listeners()? {
                chain.add_listener(&name, fd)?;
            }
        }
        Ok(())
    }

    fn prepare_successor(&mut self, chain: &mut Chain, program: &Program, args: &[OsString]) -> Result<()> {
        self.hand_over_listeners(chain)?;
        self.drive.note_target(program, args)?;
        self.drive.go(Next::Become)?;
        if !self.drive.has_become() {
            // It was over before that, and the incumbent serves.
            return Ok(());
        }
        self.drive.tell_journal();
        let channel = self.drive.fill_channel()?;
        // The lock is to be taken once the incumbent has let go, and the rest is a driver's.
        chain.retain(|role| matches!(role, Role::Listener(_)));
        chain.add(Role::Channel, channel);
        chain.run_exactly();
        chain.unset_var(ID_VAR);
        chain.unset_var(JOURNAL_VAR);
        Ok(())
    }
}

/// Returns what the chain knows of a handoff in progress.
///
/// # Errors
///
/// The state that was inherited cannot be read.
pub fn inherited(chain: &Chain) -> Result<Option<Inherited>> {
    let Some(mut state) = state_of(chain)? else { return Ok(None) };
    let has_successor = chain.get(&Role::Successor).is_some();
    // Without a successor nobody else has gone on.
    if !has_successor && state.is_held() && pidfd_of(chain)?.is_dead().unwrap_or(false) {
        state.phase = Phase::Widowed.name().to_owned();
    }
    Ok(Some(Inherited {
        handoff: state.handoff.clone(),
        phase: state.phase.clone(),
        has_successor,
        lock_file: Path::new(&state.prepared.data_dir).join(&state.prepared.lock_file),
        incumbent: state.prepared.incumbent.pid,
        spec: state.spec(),
    }))
}

fn state_of(chain: &Chain) -> Result<Option<State>> {
    let Some(fd) = chain.get(&Role::State) else { return Ok(None) };
    let text = memory::read(fd).map_err(|e| Error::io("read the chain's state", e))?;
    let state = serde_json::from_slice(&text).map_err(|e| Error::Invalid {
        detail: format!(
            "the chain's state cannot be read ({e}): another command of this chain is at work, or another release wrote it"
        ),
    })?;
    Ok(Some(state))
}

fn write_state(chain: &Chain, state: &State) -> Result<()> {
    let Some(fd) = chain.get(&Role::State) else { return Ok(()) };
    memory::replace(fd, &json(state)?).map_err(|e| Error::io("write the chain's state", e))
}

fn json(state: &State) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|e| Error::io("write the chain's state", std::io::Error::from(e)))
}

fn copy(chain: &Chain, role: &Role) -> Result<Option<OwnedFd>> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    chain.get(role).map(copy).transpose().map_err(|e| Error::io(format!("copy the {role}"), e))
}

fn pidfd_of(chain: &Chain) -> Result<PidFd> {
    let fd = copy(chain, &Role::Incumbent)?.ok_or_else(|| Error::Invalid {
        detail: "the chain holds a handoff's state, but not the incumbent's pidfd".to_owned(),
    })?;
    PidFd::from_fd(fd).map_err(|e| Error::io("use the incumbent's pidfd", e))
}

/// A driver with what the chain has. A handoff that was written down goes by the id that it was given there.
fn driver<'a>(
    control: &'a Path,
    spec: SpawnSpec,
    order: Order,
    chain: &Chain,
    observer: &'a mut dyn FnMut(&Event<'_>) -> Wish,
) -> Result<Drive<'a>> {
    let (listeners, journal) = (listeners_of(chain)?, journal_of(chain)?);
    let id = std::env::var(ID_VAR).ok().filter(|_| journal.is_some());
    let mut drive = Drive::without_program(control, spec, order, listeners, journal, observer)?;
    if let Some(id) = id {
        drive.name_as(id);
    }
    Ok(drive)
}

fn listeners_of(chain: &Chain) -> Result<Vec<(String, OwnedFd)>> {
    let copied: std::io::Result<_> =
        chain.listeners().map(|(name, fd)| Ok((name.to_owned(), fd.as_fd().try_clone_to_owned()?))).collect();
    copied.map_err(|e| Error::io("copy the listening sockets", e))
}

fn journal_of(chain: &Chain) -> Result<Option<Journal>> {
    let Some(fd) = copy(chain, &Role::Journal)? else { return Ok(None) };
    let path = std::env::var_os(JOURNAL_VAR).ok_or_else(|| Error::Invalid {
        detail: format!("a journal was inherited, but {JOURNAL_VAR} does not say which"),
    })?;
    Journal::adopt(fd, path).map(Some)
}
