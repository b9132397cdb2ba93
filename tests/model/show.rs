//! A counterexample, one line a step.

use stateright::Path;

use crate::moves::Move;
use crate::pack;
use crate::world::{Daemon, Life, Role, State};

pub fn path(path: Path<State, Move>) -> String {
    let steps = path.into_vec();
    let mut text = String::new();
    for (i, (state, step)) in steps.iter().enumerate() {
        text += &format!("{i:3} {}\n", line(state));
        if let Some(step) = step {
            text += &format!("      -> {step:?}\n");
        }
    }
    text
}

pub fn line(s: &State) -> String {
    let daemons: Vec<String> = s
        .daemons
        .iter()
        .enumerate()
        .filter(|(_, d)| d.life != Life::Absent)
        .map(|(i, d)| daemon(i, d))
        .collect();
    let drivers: Vec<String> = s
        .drivers
        .iter()
        .enumerate()
        .filter(|(_, d)| d.life != Life::Absent)
        .map(|(i, d)| format!("D{i}:{}{}", pack::driver_phase(d.phase).name(), life(d.life)))
        .collect();
    let lock = s.lock.map_or("free".to_owned(), |owner| owner.to_string());
    let records: Vec<String> =
        s.records.iter().map(|r| format!("{}/{}{:?}", r.generation, r.program, r.standing)).collect();
    format!("{} | {} | lock {lock} | {}", daemons.join(" "), drivers.join(" "), records.join(","))
}

fn daemon(i: usize, d: &Daemon) -> String {
    let phase = match d.role {
        Role::Nobody => "-",
        Role::Incumbent { phase, .. } => pack::incumbent_phase(phase).name(),
        Role::Successor { phase, .. } => pack::successor_phase(phase).name(),
    };
    let serving = if d.serving { "*" } else { "" };
    format!("{i}:{phase}{serving}{}", life(d.life))
}

fn life(life: Life) -> &'static str {
    match life {
        Life::Absent | Life::Running => "",
        Life::Stopped => "(stopped)",
        Life::Gone(_) => "(gone)",
    }
}
