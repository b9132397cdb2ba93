//! The rules of the protocol, and what a system is like without one of them.
//!
//! A rule that is a row of a machine is taken out by replacing that row; a rule that is a shell's or the kernel's part
//! of the bargain is taken out by weakening the world (`step` asks [`Rule`] there).

use handoff::proto::driver::{self, Action as DriverDo, Next, Order, Phase as DriverPhase};
use handoff::proto::incumbent::{self, Action as IncumbentDo, Message, Phase, Request, Timer};
use handoff::proto::record::Standing;
use handoff::proto::successor::{self, Action as SuccessorDo, Phase as SuccessorPhase, Title, Trial};

use crate::pack::REASON;
use crate::system::claim;

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

    /// What is violated without it.
    pub fn keeps(self) -> &'static str {
        match self {
            Self::DeadlineEndsAtGrant | Self::OwnPidfd => claim::SPARED,
            Self::DeadlineRuns | Self::LockWithoutBlocking | Self::OneAtATime => claim::TIDY,
            Self::NothingBeforeGrant => claim::GRANTED,
            Self::GrantCompares => claim::FOUNDED,
            Self::DriverClosesLease | Self::PidfdIsDeath | Self::EndOfFileIsDeath => claim::NOTICED,
            Self::DriverHasNoFurtherRole
            | Self::UnlockNotClose
            | Self::UnlockBeforeSealed
            | Self::LockAfterSealed => claim::STAYS,
            Self::WritesAreJoined => claim::LOCKED,
            Self::SealSyncs | Self::DurableBeforeWrite | Self::TrialStartsPrevious => claim::BOOTS,
            Self::ResumeUnderLock => claim::ONE,
            Self::RecordReadAgain | Self::RollbackIsRecorded => claim::IN_TIME,
            Self::RecordDecides => claim::OWNED,
            Self::ReloadsFromDisk => claim::KEPT,
            Self::StandsBy
            | Self::CrashIsTried
            | Self::DeathIsGrant
            | Self::FencesAtDeadline
            | Self::FencesTree
            | Self::FencesDeadToo
            | Self::SuccessorFences
            | Self::DriverFences
            | Self::HungIsKilled
            | Self::TrialIsNotFinal
            | Self::TrialIsUndone => claim::SERVED,
        }
    }
}

/// The incumbent's row, or a wrong one where a rule is missing.
pub fn incumbent_row(
    without: Option<Rule>,
    machine: &incumbent::Machine,
    input: &incumbent::Input,
) -> incumbent::Row {
    let Some(rule) = without else { return machine.row(input) };
    wrong_decision(rule, machine, input)
        .or_else(|| wrong_rollback(rule, machine, input))
        .unwrap_or_else(|| machine.row(input))
}

/// A wrong row on the way to a commit.
fn wrong_decision(
    rule: Rule,
    machine: &incumbent::Machine,
    input: &incumbent::Input,
) -> Option<incumbent::Row> {
    use incumbent::{Input, Row};
    let grant = IncumbentDo::Send(Message::Granted);
    let arm = IncumbentDo::Arm(Timer::StandBy);
    let granted = matches!(machine.row(input), Row::Go(Phase::StandingBy, _));
    Some(match (rule, &machine.phase, input) {
        (Rule::DeadlineEndsAtGrant, Phase::Attached, Input::Lease(Request::Ready(_))) if granted => {
            Row::Go(Phase::StandingBy, vec![arm, grant])
        }
        (Rule::DeadlineEndsAtGrant, Phase::StandingBy | Phase::Baking, Input::Expired(Timer::Deadline)) => {
            Row::Go(Phase::Fencing(REASON), vec![IncumbentDo::Fence])
        }
        (Rule::DeadlineRuns, _, Input::Expired(Timer::Deadline)) => Row::Ignore,
        (Rule::GrantCompares, Phase::Attached, Input::Lease(Request::Ready(_))) => {
            Row::Go(Phase::StandingBy, vec![IncumbentDo::Disarm(Timer::Deadline), arm, grant])
        }
        (Rule::StandsBy, Phase::Attached, Input::Lease(Request::Ready(_))) if granted => {
            Row::Go(Phase::Gone(incumbent::End::Committed), vec![grant, IncumbentDo::CloseLease])
        }
        (Rule::UnlockBeforeSealed, Phase::Sealing, Input::SealReturned(Ok(report))) => Row::Go(
            Phase::Unlocking,
            vec![IncumbentDo::Send(Message::Sealed(report.clone())), IncumbentDo::Unlock],
        ),
        (Rule::UnlockBeforeSealed, Phase::Unlocking, Input::Unlocked(Ok(()))) => {
            Row::Go(Phase::Sealed, vec![])
        }
        (Rule::OneAtATime, Phase::Drained | Phase::Sealed | Phase::Attached, Input::Prepare(conn, _))
            if machine.run.as_ref().is_some_and(|run| run.lease != *conn) =>
        {
            Row::Go(Phase::Prepared, vec![IncumbentDo::Send(Message::Prepared(machine.generation))])
        }
        (Rule::TrialIsUndone, Phase::StandingBy, Input::Lease(Request::Serving))
            if matches!(machine.row(input), Row::Go(Phase::Baking, _)) =>
        {
            Row::Go(Phase::Gone(incumbent::End::Committed), vec![IncumbentDo::CloseLease])
        }
        _ => return None,
    })
}

/// A wrong row on the way back.
fn wrong_rollback(
    rule: Rule,
    machine: &incumbent::Machine,
    input: &incumbent::Input,
) -> Option<incumbent::Row> {
    use incumbent::{Input, Row};
    Some(match (rule, &machine.phase, input) {
        (Rule::ResumeUnderLock, Phase::Sealed, _) => match machine.row(input) {
            Row::Go(Phase::Locking(reason), _) => {
                Row::Go(Phase::Resuming(reason), vec![IncumbentDo::CallResume])
            }
            other => other,
        },
        (Rule::RecordDecides, Phase::Locking(reason), Input::Locked(found)) => {
            let next = found.generation.max(machine.generation) + 1;
            Row::Go(Phase::Recording(reason.clone()), vec![IncumbentDo::Persist(next)])
        }
        (Rule::RollbackIsRecorded, Phase::Locking(reason), Input::Locked(found))
            if found.generation == machine.generation || found.standing == Standing::Trial =>
        {
            Row::Go(Phase::Resuming(reason.clone()), vec![IncumbentDo::CallResume])
        }
        (Rule::FencesAtDeadline, Phase::Attached, Input::Expired(Timer::Deadline)) => Row::Go(
            Phase::Locking(REASON),
            vec![IncumbentDo::Send(Message::Aborted(REASON)), IncumbentDo::TryLock],
        ),
        (Rule::HungIsKilled, _, Input::Expired(Timer::StandBy)) => Row::Ignore,
        _ => return None,
    })
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
        (Some(Rule::DriverClosesLease), DriverPhase::Sealed, Input::Go(Next::Phase))
            if machine.order == Order::Warm =>
        {
            Row::Go(DriverPhase::Deciding, vec![DriverDo::PassLease])
        }
        (
            Some(Rule::DriverFences),
            DriverPhase::Sealing | DriverPhase::Sealed | DriverPhase::Deciding,
            Input::Expired(_),
        ) => Row::Ignore,
        _ => right,
    }
}
