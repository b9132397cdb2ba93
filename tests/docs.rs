//! What the documents say of the code is still so.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");
const README: &str = include_str!("../README.md");
const WIRE: &str = include_str!("../src/proto/wire.rs");
const PROTOCOL: &str = include_str!("../man/source/handoff-protocol.7.man");
const RECORD: &str = include_str!("../src/proto/record.rs");
const FDS: &str = include_str!("../src/fds.rs");
const CHAIN: &str = include_str!("../man/handoff-chain.7");

/// Returns the text between this heading of the second level and the next.
fn section(heading: &str) -> &'static str {
    let start = format!("\n## {heading}\n");
    let at = ARCHITECTURE.find(&start).unwrap_or_else(|| panic!("no section {heading}")) + start.len();
    let rest = &ARCHITECTURE[at..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// Returns what stands between backquotes.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the words that `Message::name` returns.
fn messages() -> Vec<&'static str> {
    let name = &WIRE[WIRE.find("pub fn name(&self)").unwrap()..];
    name.split('"').skip(1).step_by(2).collect()
}

/// Where the wire is described: for who keeps this code, and for who writes a peer.
fn wires() -> [(&'static str, BTreeSet<&'static str>); 2] {
    [("the section on the wire", quoted(section("The wire"))), ("handoff-protocol(7)", quoted(PROTOCOL))]
}

#[test]
fn every_message_is_described() {
    let messages = messages();
    assert!(messages.len() > 30, "found only {messages:?}");
    for (place, described) in wires() {
        for message in &messages {
            assert!(described.contains(message), "{place} does not say what `{message}` is");
        }
    }
}

/// Returns the public fields of the structs that travel, as they are spelt on the wire.
fn fields(source: &'static str) -> Vec<&'static str> {
    let fields = source.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "));
    fields
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect()
}

#[test]
fn every_field_is_described() {
    // Their own fields stand in the message's.
    let flattened = ["readiness", "report", "verdict"];
    for (place, described) in wires() {
        for field in fields(WIRE).into_iter().filter(|field| !flattened.contains(field)) {
            assert!(described.contains(field), "{place} does not say what `{field}` is");
        }
    }
}

/// Returns the words that a function gives for each variant.
fn words_of(source: &'static str, signature: &str) -> BTreeSet<&'static str> {
    let body = &source[source.rfind(signature).unwrap()..];
    let body = &body[..body.find("\n    }\n").unwrap()];
    body.lines().filter_map(|line| line.split_once("=> \"")?.1.split('"').next()).collect()
}

#[test]
fn every_word_of_the_wire_is_in_the_protocols_page() {
    let described = quoted(PROTOCOL);
    let reasons = words_of(include_str!("../src/proto/mod.rs"), "pub fn kind(&self)");
    let phases = words_of(
        include_str!("../src/proto/incumbent.rs"),
        "fn name(&self) -> &'static str {\n        match self {\n            P::",
    );
    let record = fields(&RECORD[..RECORD.find("pub fn boot_program").unwrap()]);
    assert!(record.len() > 10, "found only {record:?}");
    assert!(reasons.len() > 15 && phases.len() > 15, "found only {reasons:?} and {phases:?}");
    for word in reasons.into_iter().chain(phases).chain(record).chain(["args_dropped"]) {
        assert!(described.contains(word), "handoff-protocol(7) does not say what `{word}` is");
    }
    for limit in [handoff::proto::wire::LINE_MAX, handoff::proto::wire::FDS_MAX, handoff::sys::unix::PATH_MAX]
    {
        assert!(
            PROTOCOL.contains(&limit.to_string()),
            "handoff-protocol(7) does not mention the limit {limit}"
        );
    }
}

#[test]
fn every_name_in_the_fd_table_is_in_the_chains_page() {
    let names = &FDS[FDS.find("const NAMES:").unwrap()..];
    let names = &names[..names.find("];").unwrap()];
    let names: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 5, "found only {names:?}");
    for name in names.into_iter().chain(["listener."]) {
        assert!(
            CHAIN.contains(&format!("\n\\fB{name}\\fR")),
            "handoff-chain(7) does not say what `{name}` is"
        );
    }
}

fn sources(dir: &Path, into: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_a_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    sources(&root.join("tests"), &mut code);
    let is_test = |word: &&str| {
        word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let mut named = 0;
    for heading in ["Kernel facts", "Failures", "Invariants"] {
        for test in quoted(section(heading)).into_iter().filter(is_test) {
            named += 1;
            assert!(
                code.contains(&format!("fn {test}(")),
                "{heading} names the test `{test}`, which is not there"
            );
        }
    }
    assert!(named > 20, "found only {named} names");
}

#[test]
fn every_variable_of_a_chain_is_in_its_page() {
    let sources = [include_str!("../src/chain.rs"), include_str!("../src/dialect.rs"), FDS];
    let is_one = |line: &&str| line.starts_with("pub const ") && line.contains(": &str = \"HANDOFF_");
    let names: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.lines().filter(is_one))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    assert!(names.len() > 5, "found only {names:?}");
    for name in names {
        assert!(CHAIN.contains(&format!("\\fB{name}\\fR")), "handoff-chain(7) does not say what {name} is");
    }
}

#[test]
fn every_file_that_a_document_links_to_exists() {
    for text in [ARCHITECTURE, README] {
        for target in text.split("](").skip(1).map(|rest| &rest[..rest.find(')').unwrap()]) {
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists(),
                "{target} is linked to and not there"
            );
        }
    }
}

#[test]
fn the_exit_codes_in_the_readme_are_those_of_the_command() {
    let help =
        std::process::Command::new(env!("CARGO_BIN_EXE_handoff")).args(["swap", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let rows: Vec<String> = help
        .lines()
        .skip_while(|line| *line != "EXIT CODES")
        .skip(1)
        .filter_map(|line| line.trim().split_once("  "))
        .map(|(code, meaning)| format!("| {code} | {} |", meaning.trim()))
        .collect();
    assert!(rows.len() > 8, "found only {rows:?}");
    let table: Vec<&str> = README
        .lines()
        .skip_while(|line| *line != "| code | means |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(table, rows);
    // As they stand in every page.
    let chain = CHAIN.replace('\n', " ");
    for row in rows {
        let (code, meaning) = row.trim_matches(['|', ' ']).split_once(" | ").unwrap();
        let written = format!(".TP \\fB{code}\\fR {} .", meaning.replace('-', "\\-"));
        assert!(chain.contains(&written), "handoff-chain(7) does not have: {written}");
    }
}
