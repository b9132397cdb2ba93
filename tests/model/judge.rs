//! What must not happen, caught where it would.

use handoff::proto::Reason;
use handoff::proto::successor::{self};

use crate::kernel::*;
use crate::pack::{self};
use crate::world::*;

pub fn judge_grant(s: &mut State, d: usize, msg: Msg) {
    if msg == Msg::Granted && !s.daemons[successor_of(d)].opened_all && s.daemons[successor_of(d)].alive() {
        s.mark(Broken::GrantUnfounded);
    }
}

/// The incumbent may kill a granted successor that is stopped, or that was told to go; not one that works.
pub fn judge_fence(s: &mut State, d: usize) {
    let granted_on_its_way = s.drivers[d].lease.to_client.iter().any(|msg| msg == Msg::Granted);
    let successor = &s.daemons[successor_of(d)];
    if successor.life == Life::Running
        && !successor.faulty
        && !successor.told
        && (successor.granted || granted_on_its_way)
    {
        s.mark(Broken::HealthyKilled);
    }
}

/// A successor that leaves by itself while the incumbent counts on it has to have a reason.
pub fn note_departure(s: &mut State, i: usize, before: u8, after: &successor::Phase) {
    let successor::Phase::Gone(reason) = after else { return };
    judge_departure(s, i, before, reason);
    // Whether it may go is decided here; what dies before it has gone is another matter.
    s.daemons[i].told |= heir(s, i) == End::Relieved || s.lock_leaked();
}

pub fn judge_departure(s: &mut State, i: usize, before: u8, reason: &Reason) {
    // A late successor of another handoff may have the lock for the moment in which it finds that it is late.
    let other = s.lock.is_some_and(|owner| {
        usize::from(owner) != i && matches!(s.daemons[usize::from(owner)].role, Role::Successor { .. })
    });
    let failed = matches!(reason, Reason::Failed { .. }) || s.daemons[i].faulty || other;
    if before == pack::WAITING || before >= pack::PROMOTED || s.daemons[i].told || failed {
        return;
    }
    let server = s.drivers[driver_of(i)].lease.server as usize;
    let Role::Incumbent { phase, run, .. } = s.daemons[server].role else { return };
    let counted_on = run.is_some_and(|run| run.lease as usize == driver_of(i)) && (1..=10).contains(&phase);
    if s.daemons[server].life == Life::Running && counted_on {
        s.mark(Broken::GaveUpUntold);
    }
}

/// What a driver concludes has to be true when it does.
///
/// What the incumbent said may be overtaken: if it dies after that, the successor may serve, and the driver hears of it
/// while it waits for the successor's end.
pub fn judge_outcome(s: &mut State, d: usize, before: u8) {
    let after = s.drivers[d].phase;
    let made_final = s.disk.made_final & (1 << d) != 0;
    let incumbent_runs = s.daemons[s.drivers[d].lease.server as usize].life == Life::Running;
    let wrong = match after {
        _ if after == before => false,
        pack::DONE_COMMITTED => !made_final,
        pack::DISMISSING => incumbent_runs && made_final,
        _ => false,
    };
    if wrong {
        s.mark(Broken::FalseVerdict);
    }
}

/// Whether a successor in this phase may write, but only in the format of its predecessor.
pub fn is_trial(phase: u8) -> bool {
    matches!(
        phase,
        pack::SERVING_ON_TRIAL
            | pack::BINDING_ON_TRIAL
            | pack::ON_TRIAL
            | pack::FINALIZING
            | pack::STEPPING_DOWN
    )
}
