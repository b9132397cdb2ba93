//! The supervisor's table.

use std::collections::VecDeque;

use handoff::proto::supervisor::{Found, How, Input, Job, Machine, Phase, Stop, Then, Timer, Watch};

use crate::{Answer, Column, plain};

pub(crate) fn table() -> String {
    let phases: Vec<Column<Input>> = machines()
        .into_iter()
        .map(|(name, machine)| {
            let answer = move |input: &Input| {
                let mut next = machine.clone();
                let actions = next.step(*input);
                if actions.is_empty() && next == machine {
                    return Answer::Ignores;
                }
                Answer::Goes(describe(&next), actions.iter().map(plain).collect())
            };
            (name.to_owned(), Box::new(answer) as Box<dyn Fn(&Input) -> Answer>)
        })
        .collect();
    crate::table(&phases, &inputs(), &[])
}

/// A machine that has said that it is ready.
fn in_phase(phase: Phase) -> Machine {
    let (mut machine, _) = Machine::start(true, VecDeque::new());
    (machine.phase, machine.daemon, machine.told_reloading) = (phase, true, false);
    machine
}

fn machines() -> Vec<(&'static str, Machine)> {
    use Phase as P;
    let with = |phase, change: fn(&mut Machine)| {
        let mut machine = in_phase(phase);
        change(&mut machine);
        machine
    };
    vec![
        ("inquiring (first)", Machine::start(false, VecDeque::new()).0),
        ("inquiring", in_phase(P::Inquiring)),
        ("inquiring (lost: restart)", with(P::Inquiring, |m| m.then = Some(Then::Restart))),
        ("inquiring (lost: follow)", with(P::Inquiring, |m| m.then = Some(Then::Follow))),
        ("inquiring (patient)", with(P::Inquiring, |m| m.watch = Watch::Patient)),
        ("inquiring (out of patience)", with(P::Inquiring, |m| m.watch = Watch::Over)),
        ("inquiring (one waits)", with(P::Inquiring, |m| m.waiting.push_back(Job::Swap))),
        ("inquiring (stop)", with(P::Inquiring, |m| m.stop = Stop::Asked)),
        ("inquiring (hurried)", with(P::Inquiring, |m| m.stop = Stop::Hurried)),
        ("watching", with(P::Watching, |m| m.watch = Watch::On)),
        ("watching (patient)", with(P::Watching, |m| m.watch = Watch::Patient)),
        ("starting", in_phase(P::Starting)),
        ("starting (stop)", with(P::Starting, |m| (m.stop, m.daemon) = (Stop::Asked, false))),
        ("serving", in_phase(P::Serving)),
        ("serving (one lingers)", with(P::Serving, |m| m.lingers = Some(None))),
        ("swapping", in_phase(P::Swapping)),
        ("swapping (stop)", with(P::Swapping, |m| m.stop = Stop::Asked)),
        ("waiting", with(P::Waiting, |m| (m.then, m.daemon) = (Some(Then::Restart), false))),
        ("reexecuting", in_phase(P::Reexecuting)),
        ("reexecuting (stop)", with(P::Reexecuting, |m| m.stop = Stop::Asked)),
        ("stopping", with(P::Stopping, |m| m.stop = Stop::Hurried)),
        ("ending", in_phase(P::Ending)),
        ("ending (stop)", with(P::Ending, |m| m.stop = Stop::Hurried)),
        ("done", in_phase(P::Done(How::Stopped))),
    ]
}

fn inputs() -> Vec<(&'static str, Input)> {
    let mut inputs = vec![
        ("found: serving", Input::Found(Found::Serving, true)),
        ("found: busy", Input::Found(Found::Busy, true)),
        ("found: lock held", Input::Found(Found::LockHeld, false)),
        ("found: lock held by one that is known", Input::Found(Found::LockHeld, true)),
        ("found: nobody", Input::Found(Found::Nobody, false)),
        ("found: nobody, and it lives", Input::Found(Found::Nobody, true)),
        ("started", Input::Started),
        ("start failed", Input::StartFailed(Then::Restart)),
        ("overtaken", Input::Overtaken),
        ("ready", Input::Ready),
        ("daemon lost", Input::DaemonLost(Then::Restart)),
        ("asked for a swap", Input::Asked(Job::Swap, false)),
        ("asked for a swap, and waits", Input::Asked(Job::Swap, true)),
        ("asked for a new program", Input::Asked(Job::Reexec, true)),
        ("swap ended", Input::SwapEnded),
        ("one lingers", Input::Lingers),
        ("lingerer lost", Input::LingererLost),
        ("rehearsed", Input::Rehearsed),
        ("reexec failed", Input::ReexecFailed),
        ("stop", Input::StopAsked),
        ("retire ended", Input::RetireEnded),
    ];
    for (name, timer) in [
        ("Look", Timer::Look),
        ("Patience", Timer::Patience),
        ("Backoff", Timer::Backoff),
        ("Readiness", Timer::Readiness),
        ("Stop", Timer::Stop),
        ("Signal", Timer::Signal),
        ("Linger", Timer::Linger),
    ] {
        inputs.push((name, Input::Expired(timer)));
    }
    inputs
}

/// The phase, and what is remembered besides.
fn describe(machine: &Machine) -> String {
    let mut notes = vec![];
    match machine.then {
        Some(Then::Restart) => notes.push("lost: restart"),
        Some(Then::Follow) => notes.push("lost: follow"),
        None => {}
    }
    match machine.stop {
        Stop::No => {}
        Stop::Asked => notes.push("stop"),
        Stop::Hurried => notes.push("hurried"),
    }
    match machine.watch {
        Watch::Off | Watch::On => {}
        Watch::Patient => notes.push("patient"),
        Watch::Over => notes.push("out of patience"),
    }
    if machine.lingers.is_some() {
        notes.push("one lingers");
    }
    if !machine.waiting.is_empty() {
        notes.push("one waits");
    }
    let name = match machine.phase {
        Phase::Done(How::Stopped) => "done (stopped)",
        Phase::Done(How::Follow) => "done (follows)",
        Phase::Done(How::Blocked) => "done (blocked)",
        phase => phase.name(),
    };
    if notes.is_empty() { name.to_owned() } else { format!("{name} ({})", notes.join(", ")) }
}
