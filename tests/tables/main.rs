//! The tables in ARCHITECTURE.md are what the machines do.
//!
//! `UPDATE=1 cargo test --test tables` writes them anew.
#![allow(clippy::unwrap_used)]

mod driver;
mod incumbent;
mod recovery;
mod successor;
mod supervisor;

use std::fmt::Debug;
use std::path::Path;

use handoff::proto::Reason;

/// What a machine does with an input.
pub(crate) enum Answer {
    Goes(String, Vec<String>),
    Ignores,
    Impossible,
}

/// The reason that a phase already has.
pub(crate) fn why() -> Reason {
    Reason::Failed { detail: String::new() }
}

/// Writes a value as `Debug` does, without the fields of its structs.
pub(crate) fn plain(value: &impl Debug) -> String {
    let mut depth = 0;
    let mut text = String::new();
    for c in format!("{value:?}").chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            c if depth == 0 => text.push(c),
            _ => {}
        }
    }
    text.replace(" )", ")")
        .replace(" ,", ",")
        .replace("Failed)", "why)")
        .replace("\"\"", "detail")
        .trim()
        .to_owned()
}

/// A phase, by its name, and what a machine in it does.
pub(crate) type Column<I> = (String, Box<dyn Fn(&I) -> Answer>);

/// Writes the table of a machine: a row for inputs that do the same, and a line a phase for those that change nothing.
///
/// That a phase never gets a result which it does not wait for goes without saying.
pub(crate) fn table<I>(phases: &[Column<I>], inputs: &[(&str, I)], results: &[&str]) -> String {
    let mut rows = String::from("| phase | input | next | actions |\n| --- | --- | --- | --- |\n");
    let mut rest = String::new();
    for (phase, answer) in phases {
        let mut going: Vec<(String, Vec<&str>)> = vec![];
        let (mut ignored, mut impossible) = (vec![], vec![]);
        for (name, input) in inputs {
            match answer(input) {
                Answer::Goes(next, actions) => join(&mut going, cells(&next, &actions), name),
                Answer::Ignores => ignored.push(*name),
                Answer::Impossible if results.contains(name) => {}
                Answer::Impossible => impossible.push(*name),
            }
        }
        for (cells, names) in going {
            rows += &format!("| {phase} | {} | {cells} |\n", names.join(", "));
        }
        rest += &format!("- {phase}{}{}\n", others("ignores", &ignored), others("never gets", &impossible));
    }
    format!("{rows}\n{rest}")
}

fn cells(next: &str, actions: &[String]) -> String {
    let actions: Vec<String> = actions.iter().map(|action| format!("`{action}`")).collect();
    format!("{next} | {}", actions.join(", "))
}

fn join<'a>(rows: &mut Vec<(String, Vec<&'a str>)>, cells: String, name: &'a str) {
    match rows.iter_mut().find(|(other, _)| *other == cells) {
        Some((_, names)) => names.push(name),
        None => rows.push((cells, vec![name])),
    }
}

fn others(verb: &str, names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!(" · {verb} {}", names.join(", ")) }
}

/// Compares a table with its section in ARCHITECTURE.md, or writes it there.
fn assert_printed(name: &str, table: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let marker = format!("<!-- table: {name} -->\n");
    let start =
        text.find(&marker).unwrap_or_else(|| panic!("ARCHITECTURE.md has no {marker}")) + marker.len();
    let end = start + text[start..].find("<!-- end -->").expect("a table's section has an end");
    let printed = format!("\n{table}\n");
    if text[start..end] == printed {
        return;
    }
    assert!(
        std::env::var_os("UPDATE").is_some(),
        "the table of the {name} in ARCHITECTURE.md is not what the machine does: look at the difference after \
         `UPDATE=1 cargo test --test tables`"
    );
    std::fs::write(&file, [&text[..start], &printed, &text[end..]].concat()).unwrap();
}

/// One test, as all tables are in one file.
#[test]
fn the_printed_tables_are_what_the_machines_do() {
    assert_printed("incumbent", &incumbent::table());
    assert_printed("driver", &driver::table());
    assert_printed("successor", &successor::table());
    assert_printed("recovery", &recovery::table());
    assert_printed("supervisor", &supervisor::table());
}
