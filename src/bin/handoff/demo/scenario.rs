//! What the demonstration tries, and what must come of it.

use std::time::Duration;

use super::driver::{Moment, Stop};

/// One thing that is tried.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is, for people.
    pub name: &'static str,
    /// How it must end.
    pub expected: Expected,
    /// What goes wrong in the successor: kvd's `--fail`.
    pub fault: Option<&'static str>,
    /// From the moment that the successor is warm to the last moment of a grant.
    pub deadline: Duration,
    /// How long the successor serves on trial.
    pub bake: Option<Duration>,
    /// What is done from outside.
    pub act: Act,
}

/// How a scenario must end.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// The successor serves.
    Commits,
    /// The incumbent serves, and it was for one of these reasons.
    RollsBack(&'static [&'static str]),
    /// The successor made the data its own and died: its program serves, as the incumbent's process.
    Superseded,
}

/// What is done to a swap from outside.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Nothing,
    /// `kill -9` at a moment, while the clients make requests.
    Kill(Victim, Moment),
    /// The same while no client has a connection: those of a process that is killed are reset, and no handoff could help
    /// that. They connect again while it is dead and nobody accepts.
    KillIdle(Victim, Moment),
    /// `handoff commit` during the trial.
    Commit,
    /// `handoff abort` during the trial.
    Abort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Driver,
    Incumbent,
    Successor,
}

/// Long enough for any machine.
const GENEROUS: Duration = Duration::from_secs(30);
/// For a successor that hangs.
const SHORT: Duration = Duration::from_millis(500);
/// A trial that nobody waits for to end.
const LONG_BAKE: Duration = Duration::from_secs(60);

/// A process that dies closes its connections first: whichever is seen first.
const DIED: &[&str] = &["successor-lost", "lease-lost"];
const DRIVER_GONE: &[&str] = &["lease-lost"];

/// A swap in which nothing goes wrong.
pub const SWAP: Scenario = Scenario {
    name: "a swap",
    expected: Expected::Commits,
    fault: None,
    deadline: GENEROUS,
    bake: None,
    act: Act::Nothing,
};

const fn bad(name: &'static str, fault: &'static str, reasons: &'static [&'static str]) -> Scenario {
    Scenario { name, fault: Some(fault), expected: Expected::RollsBack(reasons), ..SWAP }
}

const fn baked(name: &'static str, act: Act, expected: Expected) -> Scenario {
    Scenario { name, bake: Some(LONG_BAKE), act, expected, ..SWAP }
}

const fn killed(name: &'static str, act: Act, expected: Expected) -> Scenario {
    Scenario { name, act, expected, ..SWAP }
}

use Act::{Kill, KillIdle};
use Expected::{Commits, RollsBack};
use Moment::{Entering, Within};
use Stop::{Baking, Deciding, Draining, Sealing};
use Victim::{Driver, Incumbent, Successor};

/// Takes so long to open the data that something can be done meanwhile.
const SLOW: Option<&str> = Some("slow-open-ms=400");

/// What is tried after the swaps that go well.
pub const SCENARIOS: &[Scenario] = &[
    bad("the successor crashes at its start", "crash-at-start", DIED),
    bad("the successor exits while it warms up", "exit-while-warm", DIED),
    bad("the successor crashes when its turn comes", "crash-after-begin", DIED),
    Scenario {
        deadline: SHORT,
        ..bad("the successor hangs (deadline 500 ms)", "hang-after-begin", &["deadline"])
    },
    bad("the successor opens stale data", "stale", &["stale-revision"]),
    bad("the successor reports itself unhealthy", "unhealthy", &["unhealthy"]),
    Scenario {
        expected: Expected::Superseded,
        fault: Some("crash-when-ready"),
        name: "the successor dies once it is granted",
        ..SWAP
    },
    baked(
        "the successor dies while baking, clients idle",
        KillIdle(Successor, Entering(Baking)),
        RollsBack(DIED),
    ),
    baked("a bake is committed early", Act::Commit, Commits),
    baked("a bake is aborted by the operator", Act::Abort, RollsBack(&["operator"])),
    killed("the driver is killed before the drain", Kill(Driver, Entering(Draining)), RollsBack(DRIVER_GONE)),
    killed("the driver is killed after the drain", Kill(Driver, Entering(Sealing)), RollsBack(DRIVER_GONE)),
    killed("the driver is killed after the seal", Kill(Driver, Entering(Deciding)), RollsBack(DRIVER_GONE)),
    Scenario {
        fault: SLOW,
        ..killed("the driver is killed as a slow successor opens", Kill(Driver, Within(Deciding)), Commits)
    },
    killed(
        "the incumbent is killed before the drain, clients idle",
        KillIdle(Incumbent, Entering(Draining)),
        Commits,
    ),
    killed("the incumbent is killed after the drain", Kill(Incumbent, Entering(Sealing)), Commits),
    killed("the incumbent is killed after the seal", Kill(Incumbent, Entering(Deciding)), Commits),
    Scenario {
        fault: SLOW,
        ..killed(
            "the incumbent is killed as a slow successor opens",
            Kill(Incumbent, Within(Deciding)),
            Commits,
        )
    },
];

impl Expected {
    /// Returns how it is said in the table.
    pub fn words(self) -> &'static str {
        match self {
            Commits => "commits",
            RollsBack(_) => "rolls back",
            Self::Superseded => "its program serves",
        }
    }
}

impl Act {
    /// Returns where the driver has to stop for it.
    pub fn moment(self) -> Option<Moment> {
        match self {
            Self::Nothing => None,
            Kill(_, moment) | KillIdle(_, moment) => Some(moment),
            Self::Commit | Self::Abort => Some(Entering(Baking)),
        }
    }
}
