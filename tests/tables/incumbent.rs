//! The incumbent's table.

use handoff::drainable::{DrainReport, ReadinessSnapshot, SealReport};
use handoff::proto::incumbent::{End, Found, Input, Machine, Opened, Phase, Request, Row, Run, Timer};
use handoff::proto::record::Standing;
use handoff::proto::{Reason, Terms};

use crate::{Answer, Column, plain, why};

/// The generation that the incumbent wrote.
const OWN: u64 = 7;

pub(crate) fn table() -> String {
    let phases: Vec<Column<Input>> = phases()
        .into_iter()
        .map(|(name, machine)| {
            let answer = move |input: &Input| match machine.row(input) {
                Row::Go(next, actions) => Answer::Goes(describe(&next), actions.iter().map(plain).collect()),
                Row::Ignore => Answer::Ignores,
                Row::Impossible => Answer::Impossible,
            };
            (name, Box::new(answer) as Box<dyn Fn(&Input) -> Answer>)
        })
        .collect();
    let inputs = inputs();
    let results: Vec<&str> =
        inputs.iter().filter(|(_, input)| is_result(input)).map(|(name, _)| *name).collect();
    crate::table(&phases, &inputs, &results)
}

fn phases() -> Vec<(String, Machine)> {
    use Phase as P;
    let plain = [
        P::Serving,
        P::Prepared,
        P::Draining,
        P::Drained,
        P::Sealing,
        P::Unlocking,
        P::Sealed,
        P::Attached,
        P::StandingBy,
    ];
    let baked = [P::StandingBy, P::Baking, P::Finalizing, P::SteppingDown(why())];
    let undone =
        [P::Undoing(why()), P::Fencing(why()), P::Locking(why()), P::Recording(why()), P::Resuming(why())];
    let ended = [P::Gone(End::Committed)];
    let named = |phase: &Phase, bake: bool| match (phase, bake) {
        (P::StandingBy, true) => "standing-by (bake)".to_owned(),
        _ => phase.name().to_owned(),
    };
    plain
        .into_iter()
        .map(|phase| (phase, false))
        .chain(baked.into_iter().map(|phase| (phase, true)))
        .chain(undone.into_iter().chain(ended).map(|phase| (phase, false)))
        .map(|(phase, bake)| (named(&phase, bake), machine(phase, bake)))
        .collect()
}

fn machine(phase: Phase, bake: bool) -> Machine {
    let terms = Terms { handoff: String::new(), deadline_ms: 1, bake_ms: bake.then_some(1), stand_by_ms: 1 };
    let run = Run { lease: 1, terms, sealed: Some(sealed()), attached: true };
    let run = (phase != Phase::Serving).then_some(run);
    Machine { phase, run, generation: OWN }
}

fn sealed() -> SealReport {
    SealReport { last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] }
}

pub(crate) fn opened(healthz_ok: bool) -> Opened {
    let readiness =
        ReadinessSnapshot { listening_on: vec![], healthz_ok, advertised_revision_per_shard: vec![1] };
    Opened { readiness, fingerprint: [0; 32] }
}

fn inputs() -> Vec<(&'static str, Input)> {
    let terms = || Terms { handoff: String::new(), deadline_ms: 1, bake_ms: None, stand_by_ms: 1 };
    let found = |generation, standing| Input::Locked(Found { generation, standing });
    let error = String::new;
    vec![
        ("prepare (lease)", Input::Prepare(1, terms())),
        ("prepare (other)", Input::Prepare(2, terms())),
        ("drain", Input::Lease(Request::Drain)),
        ("seal", Input::Lease(Request::Seal)),
        ("abort", Input::Lease(Request::Abort(Reason::Driver { detail: String::new() }))),
        ("attach", Input::Lease(Request::Attach)),
        ("ready (as sealed)", Input::Lease(Request::Ready(opened(true)))),
        ("ready (otherwise)", Input::Lease(Request::Ready(opened(false)))),
        ("serving", Input::Lease(Request::Serving)),
        ("done", Input::Lease(Request::Done)),
        ("stepped-down", Input::Lease(Request::SteppedDown)),
        ("retire", Input::Lease(Request::Retire)),
        ("lease lost", Input::LeaseLost),
        ("successor lost", Input::SuccessorLost),
        ("operator: commit", Input::OperatorCommit(9)),
        ("operator: abort", Input::OperatorAbort(9, String::new())),
        ("drain returned", Input::DrainReturned(Ok(DrainReport::default()))),
        ("drain failed", Input::DrainReturned(Err(error()))),
        ("seal returned", Input::SealReturned(Ok(sealed()))),
        ("seal failed", Input::SealReturned(Err(error()))),
        ("unlocked", Input::Unlocked(Ok(()))),
        ("unlock failed", Input::Unlocked(Err(error()))),
        ("fenced", Input::Fenced),
        ("locked (own record)", found(OWN, Standing::Final)),
        ("locked (trial)", found(OWN + 1, Standing::Trial)),
        ("locked (final, another's)", found(OWN + 1, Standing::Final)),
        ("lock busy", Input::LockBusy),
        ("overtaken", Input::Overtaken(OWN + 1)),
        ("lock failed", Input::LockFailed(String::new())),
        ("persisted", Input::Persisted(Ok(()))),
        ("persist failed", Input::Persisted(Err(error()))),
        ("resumed", Input::ResumeReturned(Ok(()))),
        ("resume failed", Input::ResumeReturned(Err(error()))),
        ("Deadline", Input::Expired(Timer::Deadline)),
        ("StandBy", Input::Expired(Timer::StandBy)),
        ("Bake", Input::Expired(Timer::Bake)),
        ("StepDown", Input::Expired(Timer::StepDown)),
        ("Retry", Input::Expired(Timer::Retry)),
    ]
}

fn is_result(input: &Input) -> bool {
    matches!(
        input,
        Input::DrainReturned(_)
            | Input::SealReturned(_)
            | Input::Unlocked(_)
            | Input::Fenced
            | Input::Locked(_)
            | Input::LockBusy
            | Input::Overtaken(_)
            | Input::LockFailed(_)
            | Input::Persisted(_)
            | Input::ResumeReturned(_)
    )
}

fn describe(phase: &Phase) -> String {
    use Phase as P;
    match phase {
        P::SteppingDown(r)
        | P::Undoing(r)
        | P::Fencing(r)
        | P::Locking(r)
        | P::Recording(r)
        | P::Resuming(r)
            if *r != why() =>
        {
            format!("{} ({})", phase.name(), r.kind())
        }
        P::Gone(end) => format!("gone ({})", plain(end)),
        _ => phase.name().to_owned(),
    }
}
