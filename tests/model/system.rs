//! The system as stateright sees it: where it starts, how it moves, what must hold.

use std::sync::atomic::{AtomicU64, Ordering};

use handoff::proto::driver::Order;
use stateright::{Model, Property};

use crate::judge::is_trial;
use crate::moves::Move;
use crate::pack;
use crate::rules::Rule;
use crate::world::*;

/// The shipped machines in a world of limited faults.
pub struct System {
    pub budget: Budget,
    /// With and without a trial.
    pub bakes: &'static [bool],
    /// With the successor first, and with the seal first.
    pub orders: &'static [Order],
    /// The rule that is missing.
    pub without: Option<Rule>,
    /// All actions of one step at once: no kill and nobody else's step between them.
    pub coarse: bool,
    pub seen: AtomicU64,
}

/// The names of what must hold.
pub mod claim {
    pub const LOCKED: &str = "no write without the lock";
    pub const KEPT: &str = "no acknowledged write is lost";
    pub const ONE: &str = "never two serving, and who serves has the lock";
    pub const FOUNDED: &str = "a grant only to who was ready and opened what was sealed";
    pub const GRANTED: &str = "nobody serves without a grant";
    pub const OWNED: &str = "nobody serves data that another made final";
    pub const SPARED: &str = "a granted healthy successor is not killed by the incumbent";
    pub const IN_TIME: &str = "an aborted or late successor never serves";
    pub const STAYS: &str = "nobody gives up untold";
    pub const BOOTS: &str = "at boot the right binary";
    pub const POSSIBLE: &str = "our own shell never produces the impossible";
    pub const TRUE: &str = "a driver's verdict is true";
    pub const SERVED: &str = "at rest exactly one serves";
    pub const TIDY: &str = "at rest no process is left over";
    pub const NOTICED: &str = "a death is noticed without a timer";
}

/// What must be possible.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Committed,
    CommittedAfterBake,
    Superseded,
    /// The incumbent ended without a successor, as it was asked to.
    Retired,
    /// A successor that was the driver's own process serves for good.
    CommittedInPlace,
    /// A driver became the successor of an incumbent that was dead.
    BecameWidowed,
    /// The incumbent serves again after a handoff that was undone in this phase.
    RolledBackFrom(u8),
    /// The successor, in this phase, went on when the incumbent died.
    CarriedOnFrom(u8),
}

impl Event {
    fn bit(self) -> u64 {
        1 << match self {
            Self::Committed => 0,
            Self::CommittedAfterBake => 1,
            Self::Superseded => 2,
            Self::Retired => 3,
            Self::CommittedInPlace => 4,
            Self::BecameWidowed => 5,
            Self::RolledBackFrom(phase) => 8 + phase,
            Self::CarriedOnFrom(phase) => 32 + phase,
        }
    }

    /// Everything that must have been seen.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Committed,
            Self::CommittedAfterBake,
            Self::CommittedInPlace,
            Self::Superseded,
            Self::Retired,
            Self::BecameWidowed,
        ];
        // Prepared to SteppingDown, but for Unlocking: there, a failure of the unlock is the only way back.
        all.extend((1..=11).filter(|phase| *phase != 5).map(Self::RolledBackFrom));
        // Waiting, Locking and Opening with a lease, Announced, OnTrial. Later ones need not heed it.
        all.extend([pack::WAITING, 3, 5, pack::ON_TRIAL].map(Self::CarriedOnFrom));
        all
    }

    pub fn name(self) -> String {
        match self {
            Self::RolledBackFrom(phase) => {
                format!("rolled back from {}", pack::incumbent_phase(phase).name())
            }
            Self::CarriedOnFrom(phase) => {
                format!("carried on alone from {}", pack::successor_phase(phase).name())
            }
            other => format!("{other:?}"),
        }
    }
}

impl System {
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            bakes: &[false, true],
            orders: &[Order::Warm, Order::Cold],
            without: None,
            coarse: false,
            seen: AtomicU64::new(0),
        }
    }

    pub fn is_without(&self, rule: Rule) -> bool {
        self.without == Some(rule)
    }

    pub fn saw(&self, event: Event) {
        if self.seen.load(Ordering::Relaxed) & event.bit() == 0 {
            self.seen.fetch_or(event.bit(), Ordering::Relaxed);
        }
    }

    pub fn has_seen(&self, event: Event) -> bool {
        self.seen.load(Ordering::Relaxed) & event.bit() != 0
    }
}

impl Model for System {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        let with = |order: &Order| {
            let order = *order;
            self.bakes.iter().map(move |bake| State::new(order, *bake, self.budget))
        };
        self.orders.iter().flat_map(with).collect()
    }

    fn actions(&self, s: &State, moves: &mut Vec<Move>) {
        // What is broken stays broken: there is nothing more to learn behind it.
        if s.broken == 0 {
            self.moves(s, moves);
        }
    }

    fn next_state(&self, before: &State, step: Move) -> Option<State> {
        let mut after = *before;
        self.make(&mut after, step);
        if self.coarse {
            self.finish_steps(&mut after);
        }
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(claim::LOCKED, |_, s: &State| !s.is_broken(Broken::WriteWithoutLock)),
            Property::always(claim::KEPT, |_, s: &State| {
                !s.is_broken(Broken::WriteLost) && serving(s).all(|(_, d)| d.view == s.disk.acknowledged)
            }),
            Property::always(claim::ONE, |_, s: &State| serving(s).all(|(i, _)| s.lock == Some(i as u8))),
            Property::always(claim::FOUNDED, |_, s: &State| !s.is_broken(Broken::GrantUnfounded)),
            Property::always(claim::GRANTED, |_, s: &State| !s.is_broken(Broken::Ungranted)),
            Property::always(claim::OWNED, |_, s: &State| {
                serving(s).all(|(_, d)| d.program == s.disk.owner || on_trial(s, d))
            }),
            Property::always(claim::SPARED, |_, s: &State| !s.is_broken(Broken::HealthyKilled)),
            Property::always(claim::IN_TIME, |_, s: &State| !s.is_broken(Broken::LateServes)),
            Property::always(claim::STAYS, |_, s: &State| !s.is_broken(Broken::GaveUpUntold)),
            Property::always(claim::BOOTS, starts_right),
            Property::always(claim::POSSIBLE, |_, s: &State| !s.is_broken(Broken::ImpossibleRow)),
            Property::always(claim::TRUE, |_, s: &State| !s.is_broken(Broken::FalseVerdict)),
            Property::always(claim::SERVED, |m: &System, s: &State| one_serves(s) || !m.rests(s, |_| true)),
            Property::always(claim::TIDY, |m: &System, s: &State| !left_over(s) || !m.rests(s, |_| true)),
            Property::always(claim::NOTICED, |m: &System, s: &State| {
                let excused = anybody_stopped(s) || s.helper.is_some_and(|h| !m.needs_no_end_of_file(s, h));
                excused || one_serves(s) || !m.rests(s, |step| !step.is_timer())
            }),
        ]
    }
}

impl System {
    /// Whether a helper's copies of the lease do not matter: the incumbent has the successor's pidfd. Before that, the
    /// deadline is all there is.
    fn needs_no_end_of_file(&self, s: &State, helper: Helper) -> bool {
        let attached = |d: usize| {
            (0..DAEMONS).any(|i| self.run_of(s, i).is_some_and(|run| run.attached && run.lease as usize == d))
        };
        (0..DRIVERS).all(|d| helper.clients & (1 << d) == 0 || attached(d))
    }

    /// Whether nothing of a kind is left that the system does by itself.
    fn rests(&self, s: &State, kind: impl Fn(Move) -> bool) -> bool {
        let mut moves = Vec::new();
        self.moves(s, &mut moves);
        s.broken == 0 && !moves.iter().any(|step| step.is_protocol() && kind(*step))
    }
}

fn serving(s: &State) -> impl Iterator<Item = (usize, &Daemon)> {
    s.daemons.iter().enumerate().filter(|(_, daemon)| daemon.alive() && daemon.serving)
}

fn on_trial(s: &State, daemon: &Daemon) -> bool {
    s.newest().standing == Standing::Trial && s.newest().program == daemon.program
}

fn anybody_stopped(s: &State) -> bool {
    s.daemons.iter().any(|daemon| daemon.life == Life::Stopped)
        || s.drivers.iter().any(|driver| driver.life == Life::Stopped)
}

/// Exactly one serves, or faults took everybody who could.
///
/// A process that a fault stopped and that is never continued counts as taken by a fault. So does one that was killed
/// because it had been stopped or had failed. The lock in the hand of a process that inherited it from a dead one is a
/// known limit: whoever wants it is told the holder's name.
fn one_serves(s: &State) -> bool {
    let active = s.daemons.iter().filter(|d| d.life == Life::Running && d.serving).count();
    let taken = s.daemons.iter().all(|daemon| {
        matches!(
            daemon.life,
            Life::Absent | Life::Stopped | Life::Gone(End::Fault) | Life::Gone(End::Relieved)
        )
    });
    active == 1 || taken || s.lock_leaked()
}

/// Whether a process runs that is neither serving outside of a handoff nor stopped.
fn left_over(s: &State) -> bool {
    let daemon_left = s.daemons.iter().any(|daemon| {
        let settled = matches!(daemon.role, Role::Incumbent { phase: 0, .. }) && daemon.serving;
        daemon.life == Life::Running && !settled
    });
    let driver_left = s.drivers.iter().any(|driver| driver.life == Life::Running);
    (daemon_left || driver_left) && !s.lock_leaked()
}

/// If the power failed now, and any of what is not synced were gone, the right program would start on all the data.
fn starts_right(system: &System, s: &State) -> bool {
    if s.disk.synced < s.disk.acknowledged {
        return false;
    }
    s.records.iter().all(|record| {
        let ignores_trial = system.is_without(Rule::TrialStartsPrevious);
        let starts = if ignores_trial { record.program } else { record.starts() };
        starts >= s.disk.format && serving(s).all(|(_, daemon)| expects(s, daemon, starts))
    })
}

/// While a trial becomes final, or its process leaves because it could not, either program is right; during it the previous one; without one, who serves.
fn expects(s: &State, daemon: &Daemon, starts: u8) -> bool {
    match daemon.role {
        Role::Successor { phase: pack::FINALIZING | pack::LOCK_HELD.., .. } => true,
        Role::Successor { phase, .. } if is_trial(phase) => starts == s.disk.owner,
        _ => starts == daemon.program,
    }
}
