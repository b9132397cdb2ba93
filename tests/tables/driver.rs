//! The driver's table.

use handoff::proto::driver::{Input, Machine, Next, Order, Outcome, Phase, Refusal, Row, Timer};
use handoff::proto::{Reason, Verdict};

use crate::{Answer, Column, plain, why};

pub(crate) fn table() -> String {
    let phases: Vec<Column<Input>> = phases()
        .into_iter()
        .map(|(phase, order)| {
            let both = is_in_both(&phase);
            let name = if both && order == Order::Cold {
                format!("{} (cold)", describe(&phase))
            } else {
                describe(&phase)
            };
            let machine = Machine { phase, order };
            let answer = move |input: &Input| match machine.row(input) {
                Row::Go(next, actions) => Answer::Goes(describe(&next), actions.iter().map(plain).collect()),
                Row::Ignore => Answer::Ignores,
            };
            (name, Box::new(answer) as Box<dyn Fn(&Input) -> Answer>)
        })
        .collect();
    crate::table(&phases, &inputs(), &[])
}

/// The phases in which something depends on what comes first.
fn is_in_both(phase: &Phase) -> bool {
    matches!(phase, Phase::Preparing | Phase::Draining | Phase::Drained | Phase::Sealing | Phase::Sealed)
}

fn phases() -> Vec<(Phase, Order)> {
    let warm = all_phases().into_iter().filter(|phase| !is_cold_only(phase));
    let cold = all_phases().into_iter().filter(|phase| is_cold_only(phase) || is_in_both(phase));
    warm.map(|phase| (phase, Order::Warm)).chain(cold.map(|phase| (phase, Order::Cold))).collect()
}

fn is_cold_only(phase: &Phase) -> bool {
    use Phase as P;
    matches!(phase, P::Prepared | P::Starting | P::Retiring | P::Widowed | P::Became)
}

fn all_phases() -> Vec<Phase> {
    use Phase as P;
    vec![
        P::Preparing,
        P::Warming,
        P::Warm,
        P::Rearming,
        P::Prepared,
        P::Draining,
        P::Drained,
        P::Sealing,
        P::Sealed,
        P::Starting,
        P::Retiring,
        P::Widowed,
        P::Became,
        P::Aborting(why()),
        P::Deciding,
        P::Baking,
        P::Orphaned,
        P::Inquiring,
        P::Dismissing(Outcome::RolledBack(why())),
        P::Done(Outcome::RolledBack(why())),
    ]
}

fn inputs() -> Vec<(&'static str, Input)> {
    let detail = String::new;
    vec![
        ("prepared", Input::Prepared(7)),
        ("refused", Input::Refused(Refusal::Lost)),
        ("drained", Input::Drained),
        ("sealed", Input::Sealed),
        ("aborted", Input::Aborted(why())),
        ("lease lost", Input::LeaseLost),
        ("verdict: committed", Input::Verdict(Verdict::Committed)),
        ("verdict: rolled back", Input::Verdict(Verdict::RolledBack { reason: why() })),
        ("verdict: retired", Input::Verdict(Verdict::Retired)),
        ("verdict: superseded", Input::Verdict(Verdict::Superseded)),
        ("verdict: nothing serving", Input::Verdict(Verdict::NothingServing { detail: detail() })),
        ("verdict: unknown", Input::Verdict(Verdict::Unknown)),
        ("watch lost", Input::WatchLost),
        ("spawn failed", Input::SpawnFailed(detail())),
        ("waiting", Input::Waiting),
        ("serving", Input::Serving),
        ("successor done", Input::SuccessorDone),
        ("successor failed", Input::SuccessorFailed(why())),
        ("successor lost", Input::SuccessorLost),
        ("go on", Input::Go(Next::Phase)),
        ("go on: spawn", Input::Go(Next::Spawn)),
        ("go on: become", Input::Go(Next::Become)),
        ("go on: retire", Input::Go(Next::Retire)),
        ("cancel", Input::Cancel(detail())),
        ("concluded: committed", Input::Concluded(Outcome::Committed)),
        ("concluded: rolled back", Input::Concluded(Outcome::RolledBack(Reason::LeaseLost))),
        ("concluded: nothing serving", Input::Concluded(Outcome::NothingServing(detail()))),
        ("concluded: undecided", Input::Concluded(Outcome::Undecided(detail()))),
        ("Answer", Input::Expired(Timer::Answer)),
        ("WarmUp", Input::Expired(Timer::WarmUp)),
        ("Silence", Input::Expired(Timer::Silence)),
        ("Dismissal", Input::Expired(Timer::Dismissal)),
    ]
}

fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Aborting(r) if *r != why() => format!("aborting ({})", r.kind()),
        Phase::Dismissing(outcome) | Phase::Done(outcome) => format!("{} ({})", phase.name(), word(outcome)),
        _ => phase.name().to_owned(),
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::RolledBack(_) => "rolled back",
        Outcome::Retired => "retired",
        Outcome::Refused(_) => "refused",
        Outcome::NothingServing(_) => "nothing serving",
        Outcome::Undecided(_) => "undecided",
    }
}
