//! The shipped machines, model-checked in a world that kills, stops and forgets.
#![allow(clippy::unwrap_used)]

mod cycle;
mod pack;
mod rules;
mod show;
mod step;
mod system;
mod world;

use stateright::{Checker, HasDiscoveries, Model};

use crate::rules::Rule;
use crate::system::{Event, System};
use crate::world::Budget;

const NO_FAULTS: Budget = Budget {
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

/// Explores everything that a system can do.
fn explore(system: System, threads: usize) -> impl Checker<System> {
    system.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join()
}

/// Asserts that nothing is violated, and returns what was explored.
fn assert_holds(name: &str, budget: Budget) -> impl Checker<System> {
    assert_system_holds(name, System::new(budget))
}

fn assert_system_holds(name: &str, system: System) -> impl Checker<System> {
    let checker = explore(system, 2);
    println!("{name}: {} unique states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    for (property, path) in checker.discoveries() {
        panic!("{name}: violated: {property}\n{}", show::path(path));
    }
    checker
}

fn assert_seen(checker: &impl Checker<System>) {
    let unseen: Vec<String> =
        Event::all().into_iter().filter(|event| !checker.model().has_seen(*event)).map(Event::name).collect();
    assert!(unseen.is_empty(), "the model never came to: {unseen:?}");
}

/// Every fault once, one after another or together with a second one.
#[test]
fn one_driver_and_a_few_faults() {
    let budget = Budget { kills: 1, stops: 1, bad: 1, words: 1, ..NO_FAULTS };
    assert_seen(&assert_holds("a kill, a stop, a bad successor and a word", budget));
    assert_holds("two kills and a restart", Budget { kills: 2, restarts: 1, ..NO_FAULTS });
    assert_holds("a kill and a helper", Budget { kills: 1, helpers: 1, ..NO_FAULTS });
    assert_holds("a kill and an error", Budget { kills: 1, errors: 1, ..NO_FAULTS });
}

#[test]
fn the_system_does_not_go_round_in_circles() {
    for budget in [
        Budget { kills: 1, stops: 1, ..NO_FAULTS },
        Budget { kills: 1, helpers: 1, restarts: 1, ..NO_FAULTS },
        Budget { errors: 1, bad: 1, words: 1, ..NO_FAULTS },
    ] {
        match cycle::find(&System::new(budget)) {
            Ok(states) => println!("{states} states, no circle"),
            Err(circle) => panic!("a circle: {circle:#?}"),
        }
    }
}

#[test]
fn the_ablation() {
    let ladder = [
        ("nothing", NO_FAULTS),
        ("a kill", Budget { kills: 1, ..NO_FAULTS }),
        ("a bad successor", Budget { bad: 1, ..NO_FAULTS }),
        ("a word", Budget { words: 1, ..NO_FAULTS }),
        ("a stop", Budget { stops: 1, ..NO_FAULTS }),
        ("a helper", Budget { helpers: 1, ..NO_FAULTS }),
        ("a kill and a helper", Budget { kills: 1, helpers: 1, ..NO_FAULTS }),
        ("a kill and a stop", Budget { kills: 1, stops: 1, ..NO_FAULTS }),
        ("a kill, a stop and a restart", Budget { kills: 1, stops: 1, restarts: 1, ..NO_FAULTS }),
        ("a kill and a word", Budget { kills: 1, words: 1, ..NO_FAULTS }),
        ("a driver", Budget { drivers: 1, ..NO_FAULTS }),
    ];
    let mut survivors = vec![];
    for rule in Rule::ALL {
        let found = ladder.iter().find_map(|(name, budget)| {
            let checker = explore(System::new(*budget).without(rule), 1);
            let (property, path) = checker.discoveries().into_iter().next()?;
            if std::env::var("SHOW").is_ok_and(|shown| shown == format!("{rule:?}")) {
                println!("{}", show::path(path.clone()));
            }
            Some((*name, property, path.into_actions().len()))
        });
        match found {
            Some((name, property, steps)) => {
                println!("{:2} {rule:?}: {property}, {steps} steps, {name}", rule.number())
            }
            None => survivors.push(rule),
        }
    }
    assert!(survivors.is_empty(), "without these rules, nothing is violated: {survivors:?}");
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
    println!("{} bytes a state", size_of::<world::State>());
    let system = System { coarse: std::env::var("COARSE").is_ok(), ..System::new(budget) };
    assert_seen(&assert_system_holds("a budget of your own", system));
}
