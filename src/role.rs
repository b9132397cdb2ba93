//! What a daemon is when it starts: the first of its kind, or the successor of one that serves.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::data_dir::{self, DataDirLock};
use crate::drainable::{ReadinessSnapshot, SealReport};
use crate::error::{Error, Result};
use crate::fds::{self, Inherited};
use crate::incumbent::{Identity, Incumbent, Wakers};
use crate::proto::VERSIONS;
use crate::proto::incumbent::{Found, Opened};
use crate::proto::record::{self, Reading, Standing};
use crate::proto::successor::{Action, Input, Phase, Trial};
use crate::proto::wire::{Hello, Message, Served};
use crate::session::Session;
use crate::sys::clock;
use crate::sys::process::{PidFd, ProcessId};
use crate::sys::unix::Bound;

/// How long a driver that has just started this process may take to say what it is for.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What a daemon is when it starts.
#[derive(Debug)]
pub enum Role {
    /// Nobody serves yet, as far as this process was told.
    ColdStart {
        /// The sockets that it inherited, from a holder or a service manager; often none.
        inherited: Inherited,
    },
    /// An incumbent serves, and this process is to take over.
    Successor(Successor),
}

/// Finds out what this process is to be, from the descriptors and variables that it inherited.
///
/// The variables are taken out of the environment, so that no child adopts them. Call this first in `main`, before the
/// process starts threads, and once: a second call finds a cold start without sockets.
///
/// # Errors
///
/// [`Error::Descriptor`] for a descriptor that is closed or is another one than was passed, [`Error::Invalid`] for a malformed
/// table.
pub fn detect_role() -> Result<Role> {
    let mut channel = None;
    let mut listeners = vec![];
    for (role, fd) in fds::take()? {
        match role {
            fds::Role::Channel => channel = Some(Channel::new(fd)),
            fds::Role::Lock => data_dir::offer_inherited(fd),
            fds::Role::Listener(name) => listeners.push((name, fd)),
            // The one is locked for as long as it is open, the other is all that is left of a handoff that is over: of no use to
            // a daemon.
            fds::Role::Journal | fds::Role::State => drop(fd),
            role @ (fds::Role::Lease | fds::Role::Incumbent | fds::Role::Successor) => {
                return Err(not_for_daemons(&role));
            }
        }
    }
    let inherited = Inherited::new(listeners);
    Ok(match channel {
        None => Role::ColdStart { inherited },
        Some(channel) => Role::Successor(Successor { channel, listeners: inherited }),
    })
}

/// A daemon that starts with the lease in its hand would be a second one beside the incumbent.
fn not_for_daemons(role: &fds::Role) -> Error {
    let detail = format!(
        "this process was given the {role} of a handoff in progress, which a daemon cannot use: start it with \
         `handoff exec-successor`"
    );
    Error::Invalid { detail }
}

/// A successor that has not spoken yet.
#[derive(Debug)]
pub struct Successor {
    channel: Channel,
    listeners: Inherited,
}

impl Successor {
    /// Speaks with the driver: which versions, which handoff. What is done after this and before
    /// [`wait_for_begin`](HandshookSuccessor::wait_for_begin) is the warm-up, while the incumbent serves on.
    ///
    /// `build_id` says what this program was built from, in any form; empty for the build id that the linker left in it.
    ///
    /// # Errors
    ///
    /// No version in common, a driver that is gone or speaks another protocol, or nothing from it in time.
    pub fn handshake(mut self, build_id: impl Into<Vec<u8>>) -> Result<HandshookSuccessor> {
        let deadline = Instant::now() + HANDSHAKE;
        let build_id = crate::incumbent::build_id_text(&build_id.into());
        match self.channel.deliver(&Message::Hello(own_hello("successor", &build_id)?), &[], deadline) {
            // A driver that became this very process: all that it had to say was said before, and is there to be read.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {}
            delivered => delivered?,
        }
        check_hello(self.channel.wait("the driver's hello", deadline)?.0)?;
        let (offer, incumbent) = match self.channel.wait("the driver's offer", deadline)? {
            (Message::Offer(offer), fds) => (offer, pidfd(fds)?),
            (Message::Dismissed { reason }, _) => return Err(Error::Aborted { reason: reason.to_string() }),
            (other, _) => {
                return Err(Error::Protocol { expected: "offer".to_owned(), got: other.name().to_owned() });
            }
        };
        let copies = self.listeners.copies()?;
        let identity = Identity::of_this_process(&build_id)?;
        rehearse(&identity);
        let session = Session::new(self.channel, incumbent, offer, identity)?;
        Ok(HandshookSuccessor { session, listeners: self.listeners, copies })
    }

    /// Returns the names of the sockets that were passed.
    pub fn listener_names(&self) -> Vec<String> {
        self.listeners.names()
    }
}

/// A successor that warms up while the incumbent serves.
#[derive(Debug)]
pub struct HandshookSuccessor {
    session: Session,
    listeners: Inherited,
    copies: Vec<(String, OwnedFd)>,
}

impl HandshookSuccessor {
    /// Says that it is warm, and waits until the incumbent has sealed. The drain does not start before this is called.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when the handoff was called off, or the driver died while the incumbent serves: exit.
    pub fn wait_for_begin(mut self) -> Result<BegunSuccessor> {
        self.session.say_waiting();
        loop {
            let input = self.session.wait_input()?;
            self.session.step(input);
            match self.session.phase() {
                Phase::Waiting => {}
                Phase::Gone(reason) => return Err(Error::Aborted { reason: reason.to_string() }),
                _ => break,
            }
        }
        data_dir::expect_generation(Some(self.session.offer.generation));
        Ok(BegunSuccessor {
            session: self.session,
            listeners: self.listeners,
            copies: self.copies,
            fingerprint: None,
        })
    }

    /// Returns the handoff's id.
    pub fn handoff_id(&self) -> &str {
        &self.session.offer.handoff
    }

    /// Returns the names of the sockets that were passed.
    pub fn listener_names(&self) -> Vec<String> {
        self.listeners.names()
    }

    /// Returns the sockets that were passed, which the incumbent still accepts on. They are for a program that is made ready beside it.
    pub fn listeners(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.copies.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))
    }
}

/// A successor whose turn has come: it may take the lock and open the data, but not write.
#[derive(Debug)]
pub struct BegunSuccessor {
    session: Session,
    listeners: Inherited,
    copies: Vec<(String, OwnedFd)>,
    fingerprint: Option<[u8; 32]>,
}

impl BegunSuccessor {
    /// Takes the TCP listener of this name, if one was passed.
    pub fn take_listener(&mut self, name: &str) -> Option<TcpListener> {
        self.listeners.take(name)
    }

    /// Takes the listening Unix socket of this name, if one was passed.
    pub fn take_unix_listener(&mut self, name: &str) -> Option<UnixListener> {
        self.listeners.take_unix(name)
    }

    /// Takes the UDP socket of this name, if one was passed.
    pub fn take_udp(&mut self, name: &str) -> Option<UdpSocket> {
        self.listeners.take_udp(name)
    }

    /// Takes the socket of this name, whatever it is.
    pub fn take_fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.listeners.take_fd(name)
    }

    /// Returns the names of the sockets that are left.
    pub fn listener_names(&self) -> Vec<String> {
        self.listeners.names()
    }

    /// Returns the handoff's id.
    pub fn handoff_id(&self) -> &str {
        &self.session.offer.handoff
    }

    /// Returns what the incumbent made final; `None` when it died before it could, and this is a start as after a crash.
    pub fn sealed(&self) -> Option<&SealReport> {
        self.session.begin.as_ref().map(|begin| &begin.sealed)
    }

    /// Makes sure that the handoff goes on, where opening the data takes long; never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when it was undone: exit, without writing anything.
    pub fn check(&mut self) -> Result<()> {
        while let Some(input) = self.session.next_input() {
            // An incumbent that died is succeeded all the same, and what is to be done then comes after the lock.
            self.session.step(input);
            if let Phase::Gone(reason) = self.session.phase() {
                return Err(Error::Aborted { reason: reason.to_string() });
            }
        }
        Ok(())
    }

    /// Gives up, and says why to the driver; for whoever finds that it cannot serve.
    pub fn give_up(mut self, why: impl Into<String>) {
        self.session.step(Input::Failed(why.into()));
    }

    /// Says which data directory was opened. The incumbent refuses a fingerprint that differs from what it sealed; without
    /// this call it gets its own back.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: [u8; 32]) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Says that the data is open, and waits for the grant. When this returns the record is made, and the program may write
    /// and accept; it should do so at once, and call [`Incumbent::serve`] on a thread of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] when the incumbent refused or undid the handoff: exit, without writing anything.
    pub fn announce_and_bind(
        mut self,
        readiness: ReadinessSnapshot,
        control_path: impl AsRef<Path>,
        lock: DataDirLock,
    ) -> Result<Incumbent> {
        let fingerprint =
            self.fingerprint.or(self.sealed().map(|sealed| sealed.data_dir_fingerprint)).unwrap_or_default();
        let record = lock.record()?;
        let found = Found {
            generation: record.as_ref().map_or(0, |record| record.generation),
            standing: record.as_ref().map_or(Standing::Final, |record| record.standing),
        };
        let identity = self.session.identity.clone().following(record);
        let generation = found.generation + 1;
        let mut actions = self.session.step(Input::Locked(found));
        if actions == [Action::Open] {
            actions = self.session.step(Input::Opened(Opened { readiness, fingerprint }));
        }
        // While the incumbent decides. Nothing is recorded yet: what goes wrong here still undoes the handoff.
        let bound = Bound::beside(control_path.as_ref())?;
        let wakers = Wakers::new()?;
        let recorder = Recorder { lock: &lock, identity: &identity, generation };
        recorder.run(&mut self.session, actions)?;
        data_dir::expect_generation(None);
        let mut incumbent = Incumbent::promoted(
            self.session,
            control_path.as_ref(),
            bound,
            lock,
            identity,
            generation,
            wakers,
        );
        incumbent.listeners = self.copies;
        Ok(incumbent)
    }
}

/// Writes and reads an owner record in memory: the first time takes a hundred microseconds longer, most of them for asking a
/// virtual processor which instructions it has for the checksum, and it would be in the gap.
fn rehearse(identity: &Identity) {
    let mut file = record::blank();
    if let Ok(write) = Reading::default().next_write(&identity.record(0, Standing::Final), 0) {
        file.splice(write.offset as usize..write.offset as usize + write.bytes.len(), write.bytes);
    }
    // Whatever it says, it is nobody's record.
    let _ = std::hint::black_box(record::decode(&file));
}

/// What makes the grant durable.
struct Recorder<'a> {
    lock: &'a DataDirLock,
    identity: &'a Identity,
    generation: u64,
}

impl Recorder<'_> {
    /// Waits for the grant and records it.
    fn run(&self, session: &mut Session, actions: Vec<Action>) -> Result<()> {
        let mut actions = VecDeque::from(actions);
        loop {
            while let Some(action) = actions.pop_front() {
                let input = self.perform(action, session)?;
                actions.extend(input.into_iter().flat_map(|input| session.step(input)));
            }
            match session.phase() {
                Phase::Serving(_) => return Ok(()),
                Phase::Gone(reason) => return Err(Error::Aborted { reason: reason.to_string() }),
                _ => {
                    let input = session.wait_input()?;
                    actions.extend(session.step(input));
                }
            }
        }
    }

    fn perform(&self, action: Action, session: &mut Session) -> Result<Option<Input>> {
        match action {
            Action::Persist(trial) => Ok(Some(self.persist(trial))),
            // The caller does it, when it has its incumbent.
            Action::Serve => {
                session.served = Some(served(self.generation, session.phase()));
                Ok(None)
            }
            Action::Unlock => self.lock.unlock().map(|()| None),
            other => unreachable!("{other:?} comes before ready or after the grant"),
        }
    }

    fn persist(&self, trial: Trial) -> Input {
        let standing = if trial == Trial::Yes { Standing::Trial } else { Standing::Final };
        let record = self.identity.record(self.generation, standing);
        match self.lock.write_record(&record, trial == Trial::No) {
            Ok(()) => Input::Persisted,
            Err(e) => Input::Failed(e.to_string()),
        }
    }
}

fn served(generation: u64, phase: &Phase) -> Served {
    Served { serving_us: clock::monotonic_us(), generation, on_trial: *phase == Phase::Serving(Trial::Yes) }
}

pub(crate) fn own_hello(actor: &str, build_id: &str) -> Result<Hello> {
    let process = ProcessId::current().map_err(|e| Error::io("read this process's start time", e))?;
    Ok(Hello { versions: VERSIONS, actor: actor.to_owned(), process, build_id: build_id.to_owned() })
}

pub(crate) fn check_hello(message: Message) -> Result<Hello> {
    let Message::Hello(hello) = message else {
        return Err(Error::Protocol { expected: "hello".to_owned(), got: message.name().to_owned() });
    };
    match VERSIONS.common(hello.versions) {
        Some(_) => Ok(hello),
        None => Err(Error::Version {
            ours: (VERSIONS.min, VERSIONS.max),
            theirs: (hello.versions.min, hello.versions.max),
        }),
    }
}

pub(crate) fn pidfd(mut fds: Vec<OwnedFd>) -> Result<PidFd> {
    let expected = || "one descriptor, a pidfd".to_owned();
    let count = fds.len();
    match fds.pop() {
        Some(fd) if count == 1 => {
            PidFd::from_fd(fd).map_err(|e| Error::Protocol { expected: expected(), got: e.to_string() })
        }
        _ => Err(Error::Protocol { expected: expected(), got: format!("{count} descriptors") }),
    }
}
