//! Between the shipped machines and the small codes that a state keeps.

use handoff::drainable::{ReadinessSnapshot, SealReport};
use handoff::proto::driver::{Machine as Driver, Order, Outcome, Phase as DriverPhase, Refusal};
use handoff::proto::incumbent::{
    End, Machine as Incumbent, Opened, Phase as IncumbentPhase, Run as IncumbentRun,
};
use handoff::proto::successor::{Machine as Successor, Phase as SuccessorPhase, Title, Trial};
use handoff::proto::{Reason, Terms};

use crate::world::{Opening, Role, Run};

/// No row depends on a reason: one stands for all.
pub const REASON: Reason = Reason::LeaseLost;

pub fn incumbent_phase(code: u8) -> IncumbentPhase {
    use IncumbentPhase as P;
    match code {
        0 => P::Serving,
        1 => P::Prepared,
        2 => P::Draining,
        3 => P::Drained,
        4 => P::Sealing,
        5 => P::Unlocking,
        6 => P::Sealed,
        7 => P::Attached,
        8 => P::StandingBy,
        9 => P::Baking,
        10 => P::Finalizing,
        11 => P::SteppingDown(REASON),
        12 => P::Undoing(REASON),
        13 => P::Fencing(REASON),
        14 => P::Locking(REASON),
        15 => P::Recording(REASON),
        16 => P::Resuming(REASON),
        17 => P::Gone(End::Committed),
        18 => P::Gone(End::Superseded),
        19 => P::Gone(End::Overtaken { found: 0 }),
        21 => P::Gone(End::Retired),
        _ => P::Gone(End::Failed(String::new())),
    }
}

pub fn incumbent_code(phase: &IncumbentPhase) -> u8 {
    use IncumbentPhase as P;
    match phase {
        P::Serving => 0,
        P::Prepared => 1,
        P::Draining => 2,
        P::Drained => 3,
        P::Sealing => 4,
        P::Unlocking => 5,
        P::Sealed => 6,
        P::Attached => 7,
        P::StandingBy => 8,
        P::Baking => 9,
        P::Finalizing => 10,
        P::SteppingDown(_) => 11,
        P::Undoing(_) => 12,
        P::Fencing(_) => 13,
        P::Locking(_) => 14,
        P::Recording(_) => 15,
        P::Resuming(_) => 16,
        P::Gone(End::Committed) => 17,
        P::Gone(End::Superseded) => 18,
        P::Gone(End::Overtaken { .. }) => 19,
        P::Gone(End::Failed(_)) => 20,
        P::Gone(End::Retired) => 21,
    }
}

/// The successor's phases, by name where the world asks for them.
pub const WAITING: u8 = 0;
pub const SERVING_ON_TRIAL: u8 = 9;
pub const BINDING_ON_TRIAL: u8 = 11;
pub const ON_TRIAL: u8 = 12;
pub const FINALIZING: u8 = 13;
pub const STEPPING_DOWN: u8 = 14;
pub const PROMOTED: u8 = 15;
pub const LOCK_HELD: u8 = 16;
pub const TOO_LATE: u8 = 17;

pub fn successor_phase(code: u8) -> SuccessorPhase {
    use SuccessorPhase as P;
    match code {
        WAITING => P::Waiting,
        1 => P::Locking(Title::Lease),
        2 => P::Locking(Title::Crash),
        3 => P::Opening(Title::Lease),
        4 => P::Opening(Title::Crash),
        5 => P::Announced,
        6 => P::Recording(Trial::No),
        7 => P::Recording(Trial::Yes),
        8 => P::Serving(Trial::No),
        SERVING_ON_TRIAL => P::Serving(Trial::Yes),
        10 => P::Binding(Trial::No),
        BINDING_ON_TRIAL => P::Binding(Trial::Yes),
        ON_TRIAL => P::OnTrial,
        FINALIZING => P::Finalizing,
        STEPPING_DOWN => P::SteppingDown(REASON),
        PROMOTED => P::Promoted,
        LOCK_HELD => P::Gone(Reason::LockHeld),
        TOO_LATE => P::Gone(Reason::TooLate { expected: 0, found: 0 }),
        18 => P::Gone(Reason::Failed { detail: String::new() }),
        _ => P::Gone(REASON),
    }
}

pub fn successor_code(phase: &SuccessorPhase) -> u8 {
    use SuccessorPhase as P;
    match phase {
        P::Waiting => WAITING,
        P::Locking(Title::Lease) => 1,
        P::Locking(Title::Crash) => 2,
        P::Opening(Title::Lease) => 3,
        P::Opening(Title::Crash) => 4,
        P::Announced => 5,
        P::Recording(Trial::No) => 6,
        P::Recording(Trial::Yes) => 7,
        P::Serving(Trial::No) => 8,
        P::Serving(Trial::Yes) => SERVING_ON_TRIAL,
        P::Binding(Trial::No) => 10,
        P::Binding(Trial::Yes) => BINDING_ON_TRIAL,
        P::OnTrial => ON_TRIAL,
        P::Finalizing => FINALIZING,
        P::SteppingDown(_) => STEPPING_DOWN,
        P::Promoted => PROMOTED,
        P::Gone(Reason::LockHeld) => LOCK_HELD,
        P::Gone(Reason::TooLate { .. }) => TOO_LATE,
        P::Gone(Reason::Failed { .. }) => 18,
        P::Gone(_) => 19,
    }
}

/// The driver's phases, by name where the world asks for them.
pub const DECIDING: u8 = 12;
pub const ORPHANED: u8 = 14;
pub const DISMISSING: u8 = 16;
pub const DISMISSING_NOTHING_SERVING: u8 = 17;
pub const WIDOWED: u8 = 19;
pub const DONE: u8 = 20;
pub const DONE_COMMITTED: u8 = DONE;
pub const BECAME: u8 = 26;

pub fn driver_phase(code: u8) -> DriverPhase {
    use DriverPhase as P;
    match code {
        0 => P::Preparing,
        1 => P::Warming,
        2 => P::Warm,
        3 => P::Rearming,
        4 => P::Prepared,
        5 => P::Draining,
        6 => P::Drained,
        7 => P::Sealing,
        8 => P::Sealed,
        9 => P::Starting,
        10 => P::Retiring,
        11 => P::Aborting(REASON),
        DECIDING => P::Deciding,
        13 => P::Baking,
        ORPHANED => P::Orphaned,
        15 => P::Inquiring,
        DISMISSING => P::Dismissing(Outcome::RolledBack(REASON)),
        DISMISSING_NOTHING_SERVING => P::Dismissing(Outcome::NothingServing(String::new())),
        18 => P::Dismissing(Outcome::Undecided(String::new())),
        WIDOWED => P::Widowed,
        DONE_COMMITTED => P::Done(Outcome::Committed),
        21 => P::Done(Outcome::RolledBack(REASON)),
        22 => P::Done(Outcome::NothingServing(String::new())),
        23 => P::Done(Outcome::Undecided(String::new())),
        24 => P::Done(Outcome::Refused(Refusal::Lost)),
        25 => P::Done(Outcome::Retired),
        _ => P::Became,
    }
}

pub fn driver_code(phase: &DriverPhase) -> u8 {
    use DriverPhase as P;
    // Whatever the reasons are, one stands for all.
    let same = |known: &DriverPhase| match (known, phase) {
        (P::Dismissing(a), P::Dismissing(b)) | (P::Done(a), P::Done(b)) => {
            std::mem::discriminant(a) == std::mem::discriminant(b)
        }
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    (0..=BECAME).find(|code| same(&driver_phase(*code))).expect("every phase has a code")
}

pub fn driver(phase: u8, order: Order) -> Driver {
    Driver { phase: driver_phase(phase), order }
}

pub fn terms(bake: bool) -> Terms {
    Terms { handoff: String::new(), deadline_ms: 1, bake_ms: bake.then_some(1), stand_by_ms: 1 }
}

pub fn report(revision: u8) -> SealReport {
    SealReport { last_revision_per_shard: vec![revision.into()], data_dir_fingerprint: [0; 32] }
}

pub fn opened(opening: Opening) -> Opened {
    let readiness = ReadinessSnapshot {
        listening_on: vec![],
        healthz_ok: opening.healthy,
        advertised_revision_per_shard: vec![opening.revision.into()],
    };
    Opened { readiness, fingerprint: [0; 32] }
}

pub fn opening(opened: &Opened) -> Opening {
    let revision = opened.readiness.advertised_revision_per_shard[0] as u8;
    Opening { healthy: opened.readiness.healthz_ok, revision }
}

pub fn incumbent(phase: u8, generation: u8, run: Option<Run>) -> Incumbent {
    let run = run.map(|run| IncumbentRun {
        lease: run.lease.into(),
        terms: terms(run.bake),
        sealed: run.sealed.map(report),
        attached: run.attached,
    });
    Incumbent { phase: incumbent_phase(phase), run, generation: generation.into() }
}

pub fn pack_incumbent(machine: &Incumbent, from: u8) -> Role {
    let run = machine.run.as_ref().map(|run| Run {
        lease: run.lease as u8,
        bake: run.terms.bake_ms.is_some(),
        sealed: run.sealed.as_ref().map(|report| report.last_revision_per_shard[0] as u8),
        attached: run.attached,
    });
    Role::Incumbent { phase: incumbent_code(&machine.phase), generation: machine.generation as u8, run, from }
}

pub fn successor(phase: u8, expected: u8, sealed: Option<u8>, unfit: bool) -> Successor {
    Successor {
        phase: successor_phase(phase),
        expected: expected.into(),
        sealed: sealed.map(report),
        unfit: unfit.then_some(REASON),
    }
}

pub fn pack_successor(machine: &Successor, warm: bool) -> Role {
    Role::Successor {
        phase: successor_code(&machine.phase),
        expected: machine.expected as u8,
        warm,
        sealed: machine.sealed.as_ref().map(|report| report.last_revision_per_shard[0] as u8),
        unfit: machine.unfit.is_some(),
    }
}
