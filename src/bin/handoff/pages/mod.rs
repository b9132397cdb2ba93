//! The man pages and the shells' completions, made from the one definition of the command line.
//!
//! They are files of the tree, so that installing them takes no build. `UPDATE=1 cargo test --bin handoff pages` writes them anew;
//! without it the tests fail when they are not what the definition says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod completions;
mod man;
mod roff;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Files by their names.
type Files = BTreeMap<String, String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The definition, as complete as for parsing.
fn definition() -> clap::Command {
    let mut cli = crate::definition(None);
    cli.build();
    cli
}

/// Compares what was made with the files in `dir` for which `ours` holds, or writes them.
#[track_caller]
fn expect_files(dir: &str, made: &Files, ours: impl Fn(&str) -> bool) {
    let dir = root().join(dir);
    if std::env::var_os("UPDATE").is_some() {
        write_files(&dir, made, &ours);
    }
    let there: BTreeSet<String> = names(&dir).into_iter().filter(|name| ours(name)).collect();
    let wanted: BTreeSet<String> = made.keys().cloned().collect();
    let advice = "run: UPDATE=1 cargo test --bin handoff pages";
    assert_eq!(there, wanted, "the files in {} are not those that are made; {advice}", dir.display());
    for (name, text) in made {
        let path = dir.join(name);
        let found = fs::read_to_string(&path).unwrap();
        let differing = found.lines().zip(text.lines()).find(|(found, made)| found != made);
        assert!(found == *text, "{} is not what is made now, at {differing:?}; {advice}", path.display());
    }
}

fn write_files(dir: &Path, made: &Files, ours: &impl Fn(&str) -> bool) {
    fs::create_dir_all(dir).unwrap();
    for stale in names(dir).into_iter().filter(|name| ours(name) && !made.contains_key(name)) {
        fs::remove_file(dir.join(stale)).unwrap();
    }
    for (name, text) in made {
        fs::write(dir.join(name), text).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let files = entries.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn paths(dir: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    names(&root().join(dir))
        .into_iter()
        .filter(|name| wanted(name))
        .map(|name| root().join(dir).join(name))
        .collect()
}

/// Runs a tool that not every machine has; says loudly that a test is skipped without it, and fails in CI.
fn run_tool(name: &str, command: &mut Command) -> Option<Output> {
    if let Ok(output) = command.output() {
        return Some(output);
    }
    eprintln!("skipped: needs {name}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {name}");
    None
}
