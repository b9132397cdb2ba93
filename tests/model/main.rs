//! The shipped machines, model-checked in a world that kills, stops and forgets.
//!
//! `cargo test --test model` takes seconds. `cargo test --test model -- --ignored --nocapture` is the deep run: minutes on
//! two cores, about three gigabytes. What is modelled and what is not stands in ARCHITECTURE.md.
#![allow(clippy::unwrap_used)]

mod act;
mod cycle;
mod judge;
mod kernel;
mod moves;
mod pack;
mod rules;
mod show;
mod step;
mod system;
mod world;

use std::collections::BTreeSet;

use handoff::proto::driver::Order;
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

/// The least that the deep run has to explore.
const DEEP_STATES: usize = 2_000_000;

#[test]
fn one_driver_and_a_few_faults() {
    let budget = Budget { kills: 1, stops: 1, words: 1, ..NO_FAULTS };
    assert_seen(&holds("a kill, a stop and a word", System::new(budget)));
    holds("a kill and a bad peer", System::new(Budget { kills: 1, bad: 1, ..NO_FAULTS }));
    holds("two kills and a restart", System::new(Budget { kills: 2, restarts: 1, ..NO_FAULTS }));
    holds("a kill and a helper", System::new(Budget { kills: 1, helpers: 1, ..NO_FAULTS }));
    holds("a kill and an error", System::new(Budget { kills: 1, errors: 1, ..NO_FAULTS }));
}

#[test]
fn two_drivers_and_a_few_faults() {
    let coarse = |budget| System { coarse: true, ..System::new(budget) };
    holds("two drivers", coarse(Budget { drivers: 1, ..NO_FAULTS }));
    holds("two drivers and a kill", coarse(Budget { drivers: 1, kills: 1, writes: 0, ..NO_FAULTS }));
}

/// Two drivers, three kills and two stops, and every kind of fault with one driver.
#[test]
#[ignore = "minutes, and three gigabytes"]
fn deep() {
    // Steps are coarse here: that a step may be cut in the middle is what the runs with one driver are about.
    let drivers = Budget { drivers: 1, writes: 0, ..NO_FAULTS };
    let crowd = System {
        coarse: true,
        bakes: &[false],
        orders: &[Order::Warm],
        ..System::new(Budget { kills: 3, stops: 2, ..drivers })
    };
    let states = holds("two drivers, three kills and two stops", crowd).states;
    assert!(states >= DEEP_STATES, "only {states} states: does the model still do what it is for?");
    let chains = System {
        coarse: true,
        bakes: &[false],
        orders: &[Order::Cold],
        ..System::new(Budget { kills: 3, stops: 1, ..drivers })
    };
    holds("two chains that seal first, three kills and a stop", chains);
    let trials =
        System { coarse: true, bakes: &[true], ..System::new(Budget { kills: 2, stops: 1, ..drivers }) };
    holds("two drivers with trials, two kills and a stop", trials);

    let own = Budget { kills: 1, stops: 1, helpers: 1, errors: 1, words: 1, restarts: 1, ..NO_FAULTS };
    assert_seen(&holds("a fault of each kind", System::new(own)));
    let foreign = Budget { kills: 1, stops: 1, errors: 1, bad: 2, ..NO_FAULTS };
    holds("bad peers, and a kill, a stop and an error", System::new(foreign));
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
            Err(circle) => panic!("a circle:\n{}", circle.join("\n")),
        }
    }
}

/// Every rule is needed: without it, what it keeps is violated by no more than a fault or two.
#[test]
fn the_ablation() {
    let survivors: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| !is_needed(*rule)).collect();
    assert!(survivors.is_empty(), "without these rules, what they keep is kept: {survivors:?}");
}

/// Looks for a violation of what the rule keeps, with a few more faults at a time.
fn is_needed(rule: Rule) -> bool {
    let few = [
        ("no fault", NO_FAULTS),
        ("a kill", Budget { kills: 1, ..NO_FAULTS }),
        ("a bad successor", Budget { bad: 1, ..NO_FAULTS }),
        ("a stop", Budget { stops: 1, ..NO_FAULTS }),
        ("a helper", Budget { helpers: 1, ..NO_FAULTS }),
        ("a kill and a helper", Budget { kills: 1, helpers: 1, ..NO_FAULTS }),
        ("a kill and a stop", Budget { kills: 1, stops: 1, ..NO_FAULTS }),
        ("another driver", Budget { drivers: 1, ..NO_FAULTS }),
    ];
    for (faults, budget) in few {
        let system = System { without: Some(rule), ..System::new(budget) };
        // With one thread, the first violation is one of the shortest.
        let wanted = HasDiscoveries::AnyOf(BTreeSet::from([rule.keeps()]));
        let checker = system.checker().threads(1).finish_when(wanted).spawn_bfs().join();
        if let Some(path) = checker.discovery(rule.keeps()) {
            let steps = path.into_actions().len();
            println!(
                "{:2}. {rule:?}: violates \"{}\" in {steps} steps with {faults}",
                rule.number(),
                rule.keeps()
            );
            return true;
        }
    }
    false
}

/// For trying things: `BUDGET=kills,stops,helpers,drivers,errors,bad,words,writes,restarts`, and `COARSE`.
#[test]
#[ignore = "needs a budget"]
fn a_budget_of_your_own() {
    let Ok(text) = std::env::var("BUDGET") else { return };
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
    holds(
        "a budget of your own",
        System { coarse: std::env::var_os("COARSE").is_some(), ..System::new(budget) },
    );
}

/// What was explored, and what was seen there.
struct Explored {
    states: usize,
    unseen: Vec<String>,
}

/// Explores everything that a system can do, and asserts that nothing is violated.
fn holds(name: &str, system: System) -> Explored {
    let checker = system.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!("{name}: {states} unique states, {} steps deep", checker.max_depth());
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!("{name}: violated: {property}\n{}", show::path(path));
    }
    let unseen = Event::all().into_iter().filter(|event| !checker.model().has_seen(*event)).map(Event::name);
    Explored { states, unseen: unseen.collect() }
}

/// Asserts that everything that must be possible has happened.
fn assert_seen(explored: &Explored) {
    assert!(explored.unseen.is_empty(), "the model never came to: {:?}", explored.unseen);
}
