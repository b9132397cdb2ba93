//! The driver of the demonstration's swaps: a process of its own, so that it can be killed in the middle of one.
//!
//! It is this program again, with a hidden option. It gets its [`Order`] over a Unix socket, says there how far it is,
//! and where it is told to it stops and waits for a word.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::supervisor::{Event, HandoffOutcome, Outcome, SpawnSpec, Supervisor, Wish};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::premises::Premises;
use crate::exit::Exit;
use crate::logging;

/// How long a driver may take to start, and to end when it has nothing more to do.
const STARTING: Duration = Duration::from_secs(30);
/// How long a swap may take; longer than all its deadlines together.
const SWAP: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(1);

/// What to swap, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub control: PathBuf,
    pub journal: PathBuf,
    pub binary: PathBuf,
    pub args: Vec<String>,
    pub drain_grace: Duration,
    pub deadline: Duration,
    pub bake: Option<Duration>,
    /// Where to stop and wait for a word.
    pub stop: Option<Moment>,
}

/// A moment in a swap, as its driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    /// A phase was entered, and nothing was done in it yet.
    Entering(Stop),
    /// What begins the phase was done, and it goes on.
    Within(Stop),
}

/// The phases in which something is done to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    Draining,
    Sealing,
    Deciding,
    Baking,
}

impl Stop {
    fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Sealing => "sealing",
            Self::Deciding => "deciding",
            Self::Baking => "baking",
        }
    }
}

impl Moment {
    fn is(self, event: &Event<'_>) -> bool {
        match (self, event) {
            (Self::Entering(stop), Event::Phase(phase)) => *phase == stop.name(),
            (Self::Within(stop), Event::Tick { phase, .. }) => *phase == stop.name(),
            _ => false,
        }
    }
}

/// What a driver says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum News {
    /// The moment to stop at is here.
    Stopped,
    /// The swap has ended.
    Ended(Ended),
}

/// How a swap ended, in the driver's words.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ended {
    pub committed: bool,
    pub rolled_back: bool,
    /// The word for scripts: why it was rolled back, or what else happened.
    pub kind: String,
    /// The same as a sentence.
    pub reason: String,
    pub gap_us: Option<u64>,
}

/// The driver may go on.
#[derive(Serialize, Deserialize)]
struct GoOn {}

impl Ended {
    /// Returns what an outcome amounts to.
    pub fn of(outcome: &Outcome) -> Self {
        let kind = match outcome {
            Outcome::RolledBack(reason) => reason.kind(),
            other => other.name(),
        };
        let reason = match outcome {
            Outcome::Committed | Outcome::Retired => String::new(),
            Outcome::RolledBack(reason) => reason.to_string(),
            Outcome::Refused(refusal) => format!("{refusal:?}"),
            Outcome::NothingServing(detail) | Outcome::Undecided(detail) => detail.clone(),
        };
        let committed = *outcome == Outcome::Committed;
        let rolled_back = matches!(outcome, Outcome::RolledBack(_));
        Self { committed, rolled_back, kind: kind.into(), reason, gap_us: None }
    }
}

/// A driver that was started.
pub struct Driver {
    child: Child,
    line: Line,
}

impl Driver {
    /// Starts a driver, and gives it its order.
    pub fn start(premises: &Premises, binary: &Path, order: &Order) -> anyhow::Result<Self> {
        let path = premises.dir().join("driver");
        // The driver before has ended, or was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).context("listen for the driver")?;
        let mut command = Command::new(binary);
        command.args(["demo", "--driver"]).arg(&path).stdin(Stdio::null());
        let log = premises.log()?;
        command.stdout(log.try_clone().context("copy a descriptor")?).stderr(log);
        let mut child = premises.start(&mut command).context("start the driver")?;
        let stream = match accept(&listener, &mut child) {
            Ok(stream) => stream,
            Err(e) => {
                // It may have ended already.
                let _ = child.kill();
                let _ = child.wait();
                return Err(e).context("hear from the driver");
            }
        };
        let mut driver = Self { child, line: Line::new(stream).context("speak with the driver")? };
        driver.line.say(order).context("give the driver its order")?;
        Ok(driver)
    }

    /// Waits for the driver's next words.
    pub fn news(&mut self) -> anyhow::Result<News> {
        self.line.hear(Some(SWAP)).context("hear from the driver, whose messages are in the log")
    }

    /// Lets it go on after it stopped.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        self.line.say(&GoOn {}).context("speak with the driver")
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().and_then(|()| self.child.wait().map(drop)).context("kill the driver")
    }
}

impl Drop for Driver {
    /// One that has said how it ended has nothing more to do, and any other is of no more use.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn accept(listener: &UnixListener, child: &mut Child) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + STARTING;
    loop {
        match listener.accept() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            accepted => {
                let stream = accepted?.0;
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
}

/// One JSON value a line, in both directions.
struct Line(BufReader<UnixStream>);

impl Line {
    fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self(BufReader::new(stream)))
    }

    fn say(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)
    }

    fn hear<T: DeserializeOwned>(&mut self, patience: Option<Duration>) -> io::Result<T> {
        self.0.get_ref().set_read_timeout(patience)?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}

/// Is the driver: does one swap, as the demonstration at the other end of the socket wants it.
pub fn run(socket: &Path) -> anyhow::Result<Exit> {
    logging::to_stderr("demo");
    let stream = UnixStream::connect(socket).context("reach the demonstration")?;
    let mut line = Line::new(stream).context("reach the demonstration")?;
    let order: Order = line.hear(Some(STARTING)).context("get an order")?;
    let supervisor = Supervisor::new(&order.control)?.with_journal(&order.journal);
    let spec = SpawnSpec {
        binary: order.binary.clone(),
        args: order.args.clone(),
        drain_grace: order.drain_grace,
        deadline: order.deadline,
        bake: order.bake,
        ..SpawnSpec::default()
    };
    let mut stop = order.stop;
    let outcome = supervisor.perform_observed(spec, &mut |event| match stop.take_if(|stop| stop.is(event)) {
        Some(_) => wait_for_a_word(&mut line),
        None => Wish::Continue,
    });
    let HandoffOutcome { outcome, measured, .. } = outcome.context("swap")?;
    let ended = Ended { gap_us: measured.gap_us, ..Ended::of(&outcome) };
    line.say(&News::Ended(ended)).context("report to the demonstration")?;
    Ok(Exit::Done)
}

fn wait_for_a_word(line: &mut Line) -> Wish {
    match line.say(&News::Stopped).and_then(|()| line.hear::<GoOn>(None)) {
        Ok(GoOn {}) => Wish::Continue,
        Err(e) => Wish::Cancel(format!("the demonstration has gone: {e}")),
    }
}
