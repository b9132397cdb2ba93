//! The rules of the protocol, and what a system is like without one of them.
//!
//! A rule that is a row of a machine is taken out by replacing that row; a rule that is a shell's or the kernel's part
//! of the bargain is taken out by weakening the world (`step` asks [`Rule`] there).

use handoff::proto::driver::{self, Action as DriverDo, Phase as DriverPhase};
use handoff::proto::incumbent::{self, Action as IncumbentDo, Message, Phase, Request, Timer};
use handoff::proto::record::Standing;
use handoff::proto::successor::{self, Action as SuccessorDo, Phase as SuccessorPhase, Title, Trial};

use crate::pack::REASON;

/// A rule of the protocol. The number is the one of the list in ARCHITECTURE.md and of the protocol's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 1: the deadline ends with the grant.
    DeadlineEndsAtGrant,
    /// 1: there is a deadline.
    DeadlineRuns,
    /// 1: nothing is written or served before the grant.
    NothingBeforeGrant,
    /// 1: what was opened is compared with what was sealed.
    GrantCompares,
    /// 2: the driver closes its copy of the lease.
    DriverClosesLease,
    /// 2: a driver that dies after that changes nothing.
    DriverHasNoFurtherRole,
    /// 3: writes in flight are joined.
    WritesAreJoined,
    /// 3: what was acknowledged is synced.
    SealSyncs,
    /// 3: the lock is released, not merely closed.
    UnlockNotClose,
    /// 3: it is released before `sealed` is said.
    UnlockBeforeSealed,
    /// 3: it is held again before the incumbent resumes.
    ResumeUnderLock,
    /// 4: the lock is not tried before `sealed`.
    LockAfterSealed,
    /// 4: the lock is tried, not waited for.
    LockWithoutBlocking,
    /// 4: the record is read again under the lock.
    RecordReadAgain,
    /// 5: the pidfd is the successor's own, not the driver's.
    OwnPidfd,
    /// 5: a readable pidfd is a death, also while a copy of the lease is open.
    PidfdIsDeath,
    /// 5: end of file is a death, also before there is a pidfd.
    EndOfFileIsDeath,
    /// 6: the incumbent stands by after the grant.
    StandsBy,
    /// 6: the record decides whose the data is.
    RecordDecides,
    /// 6: a resumed incumbent reads the data again.
    ReloadsFromDisk,
    /// 7: if the incumbent dies before `sealed`, the successor tries the lock.
    CrashIsTried,
    /// 7: if it dies with the lock in the successor's hand, that is a grant.
    DeathIsGrant,
    /// 8: the successor is killed at the deadline.
    FencesAtDeadline,
    /// 8: its whole tree is.
    FencesTree,
    /// 8: even if it is dead itself.
    FencesDeadToo,
    /// 8: the successor kills a silent incumbent.
    SuccessorFences,
    /// 8: the driver kills an incumbent that was to seal and is silent.
    DriverFences,
    /// 8: a granted successor that hangs is killed.
    HungIsKilled,
    /// 9: a second driver is told `busy`.
    OneAtATime,
    /// 10: what is on trial is not final.
    TrialIsNotFinal,
    /// 10: the incumbent takes over from a trial that dies.
    TrialIsUndone,
    /// 11: the record is durable before the first write in a new format.
    DurableBeforeWrite,
    /// 11: `trial` at boot means the previous program.
    TrialStartsPrevious,
    /// 11: a rollback writes a record.
    RollbackIsRecorded,
}

impl Rule {
    pub const ALL: [Self; 34] = [
        Self::DeadlineEndsAtGrant,
        Self::DeadlineRuns,
        Self::NothingBeforeGrant,
        Self::GrantCompares,
        Self::DriverClosesLease,
        Self::DriverHasNoFurtherRole,
        Self::WritesAreJoined,
        Self::SealSyncs,
        Self::UnlockNotClose,
        Self::UnlockBeforeSealed,
        Self::ResumeUnderLock,
        Self::LockAfterSealed,
        Self::LockWithoutBlocking,
        Self::RecordReadAgain,
        Self::OwnPidfd,
        Self::PidfdIsDeath,
        Self::EndOfFileIsDeath,
        Self::StandsBy,
        Self::RecordDecides,
        Self::ReloadsFromDisk,
        Self::CrashIsTried,
        Self::DeathIsGrant,
        Self::FencesAtDeadline,
        Self::FencesTree,
        Self::FencesDeadToo,
        Self::SuccessorFences,
        Self::DriverFences,
        Self::HungIsKilled,
        Self::OneAtATime,
        Self::TrialIsNotFinal,
        Self::TrialIsUndone,
        Self::DurableBeforeWrite,
        Self::TrialStartsPrevious,
        Self::RollbackIsRecorded,
    ];

    /// The rule's number in the protocol's description.
    pub fn number(self) -> u8 {
        match self {
            Self::DeadlineEndsAtGrant
            | Self::DeadlineRuns
            | Self::NothingBeforeGrant
            | Self::GrantCompares => 1,
            Self::DriverClosesLease | Self::DriverHasNoFurtherRole => 2,
            Self::WritesAreJoined
            | Self::SealSyncs
            | Self::UnlockNotClose
            | Self::UnlockBeforeSealed
            | Self::ResumeUnderLock => 3,
            Self::LockAfterSealed | Self::LockWithoutBlocking | Self::RecordReadAgain => 4,
            Self::OwnPidfd | Self::PidfdIsDeath | Self::EndOfFileIsDeath => 5,
            Self::StandsBy | Self::RecordDecides | Self::ReloadsFromDisk => 6,
            Self::CrashIsTried | Self::DeathIsGrant => 7,
            Self::FencesAtDeadline
            | Self::FencesTree
            | Self::FencesDeadToo
            | Self::SuccessorFences
            | Self::DriverFences
            | Self::HungIsKilled => 8,
            Self::OneAtATime => 9,
            Self::TrialIsNotFinal | Self::TrialIsUndone => 10,
            Self::DurableBeforeWrite | Self::TrialStartsPrevious | Self::RollbackIsRecorded => 11,
        }
    }
}

/// The incumbent's row, or a wrong one where a rule is missing.
pub fn incumbent_row(
    without: Option<Rule>,
    machine: &incumbent::Machine,
    input: &incumbent::Input,
) -> incumbent::Row {
    use incumbent::{Input, Row};
    let right = machine.row(input);
    match (without, &machine.phase, input) {
        (Some(Rule::DeadlineEndsAtGrant), Phase::Attached, Input::Lease(Request::Ready(_))) => {
            drop_actions(right, |action| matches!(action, IncumbentDo::Disarm(Timer::Deadline)))
        }
        (
            Some(Rule::DeadlineEndsAtGrant),
            Phase::StandingBy | Phase::Baking,
            Input::Expired(Timer::Deadline),
        ) => Row::Go(Phase::Fencing(REASON), vec![IncumbentDo::Fence]),
        (Some(Rule::DeadlineRuns), _, Input::Expired(Timer::Deadline)) => Row::Ignore,
        (Some(Rule::GrantCompares), Phase::Attached, Input::Lease(Request::Ready(_))) => Row::Go(
            Phase::StandingBy,
            vec![
                IncumbentDo::Disarm(Timer::Deadline),
                IncumbentDo::Arm(Timer::StandBy),
                IncumbentDo::Send(Message::Granted),
            ],
        ),
        (Some(Rule::StandsBy), Phase::Attached, Input::Lease(Request::Ready(_))) => match right {
            Row::Go(Phase::StandingBy, mut actions) => {
                actions.push(IncumbentDo::CloseLease);
                Row::Go(Phase::Gone(incumbent::End::Committed), actions)
            }
            other => other,
        },
        (Some(Rule::UnlockBeforeSealed), Phase::Sealing, Input::SealReturned(Ok(report))) => Row::Go(
            Phase::Unlocking,
            vec![IncumbentDo::Send(Message::Sealed(report.clone())), IncumbentDo::Unlock],
        ),
        (Some(Rule::UnlockBeforeSealed), Phase::Unlocking, Input::Unlocked(Ok(()))) => {
            Row::Go(Phase::Sealed, vec![])
        }
        (Some(Rule::ResumeUnderLock), Phase::Sealed, _) => match right {
            Row::Go(Phase::Locking(reason), _) => {
                Row::Go(Phase::Resuming(reason), vec![IncumbentDo::CallResume])
            }
            other => other,
        },
        (Some(Rule::RecordDecides), Phase::Locking(reason), Input::Locked(found)) => {
            let next = found.generation.max(machine.generation) + 1;
            Row::Go(Phase::Recording(reason.clone()), vec![IncumbentDo::Persist(next)])
        }
        (Some(Rule::RollbackIsRecorded), Phase::Locking(reason), Input::Locked(found))
            if found.generation == machine.generation || found.standing == Standing::Trial =>
        {
            Row::Go(Phase::Resuming(reason.clone()), vec![IncumbentDo::CallResume])
        }
        (Some(Rule::FencesAtDeadline), Phase::Attached, Input::Expired(Timer::Deadline)) => Row::Go(
            Phase::Locking(REASON),
            vec![IncumbentDo::Send(Message::Aborted(REASON)), IncumbentDo::TryLock],
        ),
        (Some(Rule::HungIsKilled), _, Input::Expired(Timer::StandBy)) => Row::Ignore,
        (Some(Rule::OneAtATime), phase, Input::Prepare(conn, _))
            if matches!(phase, Phase::Drained | Phase::Sealed | Phase::Attached)
                && machine.run.as_ref().is_some_and(|run| run.lease != *conn) =>
        {
            Row::Go(Phase::Prepared, vec![IncumbentDo::Send(Message::Prepared(machine.generation))])
        }
        (Some(Rule::TrialIsUndone), Phase::StandingBy, Input::Lease(Request::Serving)) => match right {
            Row::Go(Phase::Baking, _) => {
                Row::Go(Phase::Gone(incumbent::End::Committed), vec![IncumbentDo::CloseLease])
            }
            other => other,
        },
        _ => right,
    }
}

fn drop_actions(row: incumbent::Row, dropped: impl Fn(&IncumbentDo) -> bool) -> incumbent::Row {
    match row {
        incumbent::Row::Go(phase, mut actions) => {
            actions.retain(|action| !dropped(action));
            incumbent::Row::Go(phase, actions)
        }
        other => other,
    }
}

/// The successor's row, or a wrong one where a rule is missing.
pub fn successor_row(
    without: Option<Rule>,
    machine: &successor::Machine,
    input: &successor::Input,
) -> successor::Row {
    use successor::{Input, Row};
    let right = machine.row(input);
    match (without, &machine.phase, input) {
        (Some(Rule::NothingBeforeGrant), SuccessorPhase::Opening(Title::Lease), Input::Opened(opened)) => {
            Row::Go(
                SuccessorPhase::Recording(Trial::No),
                vec![
                    SuccessorDo::Send(successor::Message::Ready(opened.clone())),
                    SuccessorDo::Persist(Trial::No),
                ],
            )
        }
        (Some(Rule::DriverHasNoFurtherRole), phase, Input::ChannelLost)
            if !matches!(phase, SuccessorPhase::Promoted | SuccessorPhase::Gone(_)) =>
        {
            Row::Go(SuccessorPhase::Gone(REASON), vec![SuccessorDo::Unlock])
        }
        (Some(Rule::RecordReadAgain), SuccessorPhase::Locking(title), Input::Locked(_)) => {
            Row::Go(SuccessorPhase::Opening(*title), vec![SuccessorDo::Open])
        }
        (Some(Rule::CrashIsTried), SuccessorPhase::Waiting, Input::IncumbentLost) => {
            Row::Go(SuccessorPhase::Gone(REASON), vec![])
        }
        (Some(Rule::DeathIsGrant), SuccessorPhase::Announced, Input::IncumbentLost) => Row::Ignore,
        (Some(Rule::SuccessorFences), phase, Input::Expired(_)) if *phase != SuccessorPhase::Waiting => {
            Row::Ignore
        }
        (Some(Rule::TrialIsNotFinal), SuccessorPhase::Announced, Input::Granted(Trial::Yes)) => {
            Row::Go(SuccessorPhase::Recording(Trial::Yes), vec![SuccessorDo::Persist(Trial::No)])
        }
        _ => right,
    }
}

/// The driver's row, or a wrong one where a rule is missing.
pub fn driver_row(without: Option<Rule>, machine: &driver::Machine, input: &driver::Input) -> driver::Row {
    use driver::{Input, Row};
    let right = machine.row(input);
    match (without, &machine.phase, input) {
        (Some(Rule::DriverClosesLease), DriverPhase::Sealing, Input::Sealed) => {
            Row::Go(DriverPhase::Deciding, vec![DriverDo::PassLease])
        }
        (Some(Rule::DriverFences), DriverPhase::Sealing | DriverPhase::Deciding, Input::Expired(_)) => {
            Row::Ignore
        }
        _ => right,
    }
}
