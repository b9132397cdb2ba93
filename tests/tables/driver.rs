//! The driver's table.

use handoff::proto::driver::{Input, Machine, Outcome, Phase, Refusal, Row, Timer};
use handoff::proto::{Reason, Verdict};

use crate::{Answer, Column, plain, why};

pub(crate) fn table() -> String {
    let phases: Vec<Column<Input>> = phases()
        .into_iter()
        .map(|phase| {
            let name = describe(&phase);
            let machine = Machine { phase };
            let answer = move |input: &Input| match machine.row(input) {
                Row::Go(next, actions) => Answer::Goes(describe(&next), actions.iter().map(plain).collect()),
                Row::Ignore => Answer::Ignores,
            };
            (name, Box::new(answer) as Box<dyn Fn(&Input) -> Answer>)
        })
        .collect();
    crate::table(&phases, &inputs(), &[])
}

fn phases() -> Vec<Phase> {
    use Phase as P;
    vec![
        P::Preparing,
        P::Warming,
        P::Rearming,
        P::Draining,
        P::Sealing,
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
        Outcome::Refused(_) => "refused",
        Outcome::NothingServing(_) => "nothing serving",
        Outcome::Undecided(_) => "undecided",
    }
}
