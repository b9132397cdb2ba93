//! The shipped machines, model-checked in a world that kills, stops and forgets.
#![allow(clippy::unwrap_used)]

mod pack;
mod rules;
mod show;
mod step;
mod system;
mod world;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::system::{Event, System};
use crate::world::Budget;

const NONE: Budget = Budget {
    kills: 0,
    stops: 0,
    helpers: 0,
    drivers: 0,
    errors: 0,
    bad: 0,
    words: 0,
    writes: 1,
    restarts: 0,
};

fn check(system: System) -> usize {
    let checker = system.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    for (name, path) in checker.discoveries() {
        println!("VIOLATED: {name}");
        println!("{}", show::path(path));
    }
    let failed: BTreeSet<&str> = checker.discoveries().into_keys().collect();
    println!("{} unique states, depth {}", checker.unique_state_count(), checker.max_depth());
    let unseen: Vec<String> =
        Event::all().into_iter().filter(|event| !checker.model().has_seen(*event)).map(Event::name).collect();
    println!("unseen: {unseen:?}");
    assert!(failed.is_empty(), "violated: {failed:?}");
    checker.unique_state_count()
}

#[test]
#[ignore = "for trying budgets: BUDGET=kills,stops,helpers,drivers,errors,bad,words,writes,restarts"]
fn a_budget_of_your_own() {
    let text = std::env::var("BUDGET").unwrap();
    let n: Vec<u8> = text.split(',').map(|n| n.parse().unwrap()).collect();
    let budget = Budget {
        kills: n[0],
        stops: n[1],
        helpers: n[2],
        drivers: n[3],
        errors: n[4],
        bad: n[5],
        words: n[6],
        writes: n[7],
        restarts: n[8],
    };
    check(System::new(budget));
}
