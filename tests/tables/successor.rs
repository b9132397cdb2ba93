//! The successor's table.

use handoff::drainable::SealReport;
use handoff::proto::Reason;
use handoff::proto::incumbent::Found;
use handoff::proto::record::Standing;
use handoff::proto::successor::{Input, Machine, Phase, Row, Timer, Title, Trial};

use crate::incumbent::opened;
use crate::{Answer, Column, plain, why};

const EXPECTED: u64 = 7;

pub(crate) fn table() -> String {
    let phases: Vec<Column<Input>> = machines()
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

fn machines() -> Vec<(String, Machine)> {
    use Phase as P;
    let phases = [
        P::Waiting,
        P::Locking(Title::Lease),
        P::Locking(Title::Crash),
        P::Opening(Title::Lease),
        P::Opening(Title::Crash),
        P::Announced,
        P::Recording(Trial::No),
        P::Recording(Trial::Yes),
        P::Serving(Trial::No),
        P::Serving(Trial::Yes),
        P::Binding(Trial::No),
        P::Binding(Trial::Yes),
        P::OnTrial,
        P::Finalizing,
        P::SteppingDown(why()),
        P::Promoted,
        P::Gone(why()),
    ];
    let mut machines: Vec<(String, Machine)> =
        phases.into_iter().map(|phase| (describe(&phase), machine(phase, None))).collect();
    let unfit = machine(P::Announced, Some(Reason::Unhealthy));
    let after_announced = machines.iter().position(|(name, _)| name == "announced").unwrap() + 1;
    machines.insert(after_announced, ("announced (unfit)".to_owned(), unfit));
    machines
}

fn machine(phase: Phase, unfit: Option<Reason>) -> Machine {
    let sealed = SealReport { last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] };
    Machine { phase, expected: EXPECTED, sealed: Some(sealed), unfit }
}

fn inputs() -> Vec<(&'static str, Input)> {
    let found = |generation| Input::Locked(Found { generation, standing: Standing::Final });
    let sealed = SealReport { last_revision_per_shard: vec![1], data_dir_fingerprint: [0; 32] };
    vec![
        ("begin", Input::Begin(sealed)),
        ("dismissed", Input::Dismissed(why())),
        ("channel lost", Input::ChannelLost),
        ("incumbent lost", Input::IncumbentLost),
        ("lease lost", Input::LeaseLost),
        ("granted", Input::Granted(Trial::No)),
        ("granted (trial)", Input::Granted(Trial::Yes)),
        ("aborted", Input::Aborted(why())),
        ("finalize", Input::Finalize),
        ("step-down", Input::StepDown(why())),
        ("locked (expected generation)", found(EXPECTED)),
        ("locked (another generation)", found(EXPECTED + 1)),
        ("lock busy", Input::LockBusy),
        ("opened (as sealed)", Input::Opened(opened(true))),
        ("opened (otherwise)", Input::Opened(opened(false))),
        ("failed", Input::Failed(String::new())),
        ("persisted", Input::Persisted),
        ("serve called", Input::ServeCalled),
        ("bound", Input::Bound),
        ("stepped down", Input::SteppedDown),
        ("Silence", Input::Expired(Timer::Silence)),
    ]
}

fn is_result(input: &Input) -> bool {
    matches!(
        input,
        Input::Locked(_)
            | Input::LockBusy
            | Input::Opened(_)
            | Input::Persisted
            | Input::ServeCalled
            | Input::Bound
            | Input::SteppedDown
    )
}

fn describe(phase: &Phase) -> String {
    use Phase as P;
    match phase {
        P::Locking(Title::Crash) | P::Opening(Title::Crash) => format!("{} (after a crash)", phase.name()),
        P::Recording(Trial::Yes) | P::Serving(Trial::Yes) | P::Binding(Trial::Yes) => {
            format!("{} (trial)", phase.name())
        }
        P::Gone(r) if *r != why() => format!("gone ({})", r.kind()),
        _ => phase.name().to_owned(),
    }
}
