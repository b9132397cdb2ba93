//! What the command says, in sessions that are documentation too: `tests/transcripts/*.md`.
//!
//! Each file is run in a sandbox of its own, line by line, and compared with what it says. `UPDATE=1 cargo test --test transcripts`
//! writes down what was said now; read the difference before it is committed. What differs from run to run stands there as a
//! placeholder: `[PID]`, `[TIME]`, ...
#![allow(clippy::unwrap_used)]

mod common;
mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapbox::assert::Action;
use snapbox::{Assert, Redactions};

/// A file of sessions: text, and between fences what was typed and what came of it.
struct Transcript {
    path: PathBuf,
    text: String,
}

/// Opens a session.
const FENCE: &str = "```console";

fn transcripts() -> Vec<Transcript> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    paths.sort();
    paths.into_iter().map(|path| Transcript { text: fs::read_to_string(&path).unwrap(), path }).collect()
}

impl Transcript {
    /// Returns the lines of shell in it.
    fn lines(&self) -> Vec<String> {
        let mut in_session = false;
        let mut lines = vec![];
        for line in self.text.lines() {
            match line {
                FENCE => in_session = true,
                "```" => in_session = false,
                line if in_session => lines.extend(line.strip_prefix("$ ").map(str::to_owned)),
                _ => {}
            }
        }
        lines
    }

    /// Returns the text as it would be if this were what came of its lines.
    fn with(&self, ran: &[sandbox::Ran]) -> String {
        let mut ran = ran.iter();
        let mut in_session = false;
        let mut text = String::new();
        for line in self.text.lines() {
            match line {
                FENCE => in_session = true,
                "```" => in_session = false,
                _ if in_session => {
                    if line.starts_with("$ ") {
                        let ran = ran.next().expect("as many as there are lines of shell");
                        text += &format!("{line}\n{}", said(ran));
                    }
                    continue;
                }
                _ => {}
            }
            text += &format!("{line}\n");
        }
        text
    }

    /// Returns what is there of each line: the line, and whether it ended in an error.
    fn tried(&self) -> Vec<(String, bool)> {
        let mut tried: Vec<(String, bool)> = vec![];
        for line in self.text.lines() {
            if let Some(line) = line.strip_prefix("$ ") {
                tried.push((line.to_owned(), false));
            } else if line.starts_with("? ") {
                tried.last_mut().unwrap().1 = true;
            }
        }
        tried
    }
}

fn said(ran: &sandbox::Ran) -> String {
    let lines: String = ran.said.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let code = if ran.code == 0 { String::new() } else { format!("? {}\n", ran.code) };
    lines + &code
}

/// What differs from run to run.
fn redactions() -> Redactions {
    let mut redactions = Redactions::new();
    for (placeholder, pattern) in [
        ("[PID]", r#"(?:\bpid |"pid":|"sid":|\b(?:driver|incumbent|successor|operator)\[)(?<redacted>\d+)"#),
        ("[TIME]", r"(?<redacted>\b(?:\d+us|\d+m\d+s|\d+(?:\.\d+)? ?µs|\d+\.\d+ ?m?s|\d+ ms)\b)"),
        ("[WHEN]", r"(?<redacted>\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z)"),
        ("[ID]", r"(?<redacted>\b1m[0-9a-z]{11}\b)"),
        ("[BUILD]", r"(?<redacted>\b[0-9a-f]{40}\b)"),
        ("[BOOT]", r"(?<redacted>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b)"),
        ("[FINGERPRINT]", r"(?<redacted>\b[0-9a-f]{64}\b)"),
        ("[CRC]", r#"(?:"crc":"|checksum |checksum is )(?<redacted>[0-9a-f]{8})\b"#),
        ("[BYTE]", r"(?:\bat byte |\.damaged-)(?<redacted>\d+)"),
        ("[BYTES]", r"(?<redacted>\d+) bytes at byte"),
        ("[COOKIE]", r"\bcookie:(?<redacted>\d+)"),
        ("[INODE]", r"\binode:(?<redacted>\d+:\d+)"),
        ("[SEQ]", r"(?:Z|\]) +(?<redacted>\d+) (?:1m|\[ID|-)"),
        ("[N]", r#""(?:[a-z]+_(?:ms|us)|start_ticks)":(?<redacted>\d+)"#),
    ] {
        let pattern = regex::Regex::new(pattern).unwrap();
        redactions.insert(placeholder, pattern).unwrap();
    }
    redactions
}

#[test]
fn every_transcript_is_what_is_said_now() {
    if !sandbox::is_possible() {
        return;
    }
    for transcript in transcripts() {
        let now = transcript.with(&sandbox::run(&transcript.lines()));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&transcript.path, redactions().redact(&now)).unwrap();
        }
        let written = snapbox::Data::read_from(&transcript.path, None);
        Assert::new()
            .action(Action::Verify)
            .normalize_paths(false)
            .redact_with(redactions())
            .eq(now, written);
    }
}

#[test]
fn every_command_has_its_help_a_success_and_an_error_in_a_transcript() {
    let mut shown: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let commands = commands(&[]);
    for (line, failed) in transcripts().iter().flat_map(Transcript::tried) {
        for command in commands.iter().filter(|command| invokes(&line, command)) {
            let help = [" --help", " -h"].iter().any(|help| line.contains(help));
            let kind = if help {
                "help"
            } else if failed {
                "error"
            } else {
                "success"
            };
            shown.entry(command.clone()).or_default().insert(kind);
        }
    }
    assert!(commands.len() > 10, "found only {commands:?}");
    for command in &commands {
        let kinds = shown.remove(command).unwrap_or_default();
        assert_eq!(kinds.len(), 3, "handoff {command}: tests/transcripts has only {kinds:?}");
    }
}

/// Whether a line calls this command, also behind other links.
fn invokes(line: &str, command: &str) -> bool {
    let called = format!("handoff {command} ");
    format!("{line} ").contains(&called)
}

/// Returns every command that has no subcommands, such as `journal show`, as help names them.
fn commands(path: &[String]) -> Vec<String> {
    let help = Command::new(common::HANDOFF).args(path).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let rows =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<String> = rows
        .filter_map(|row| row.strip_prefix("  ").filter(|row| !row.starts_with(' ')))
        .filter_map(|row| row.split_whitespace().next().map(str::to_owned))
        .filter(|name| name != "help")
        .collect();
    if names.is_empty() {
        return vec![path.join(" ")];
    }
    names.into_iter().flat_map(|name| commands(&[path, &[name]].concat())).collect()
}

/// What the configuration's errors look like: the command, the file or the option, the place, the key, and then what the table has.
const FAULT: &str = r"^handoff supervise: fatal: unable to (?:read \S+|use [-A-Za-z]+): (?:line \d+, column \d+: )?(?:[a-z_]+(?:\[\d+\])?(?:\.\S+)?: )?";

/// Returns the rows of the configuration's error table in the manual, as patterns.
fn rows() -> Vec<(String, regex::Regex)> {
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/source/supervise.man")).unwrap();
    let (_, table) = source.split_once(".SH \"CONFIGURATION ERRORS\"\n").unwrap();
    let (table, _) = table.split_once("\n.SH ").unwrap();
    let heads = table.split(".TP\n").skip(1).map(|row| row.lines().next().unwrap().trim_matches('`'));
    let pattern = |head: &str| {
        let text = head.replace("\\(aq", "'").replace("\\-", "-");
        let pattern = regex::escape(&text).replace(r"\.\.\.", ".*");
        (text, regex::Regex::new(&format!("{FAULT}{pattern}$")).unwrap())
    };
    heads.map(pattern).collect()
}

#[test]
fn every_row_of_the_configurations_error_table_is_provoked_and_there_are_no_other_errors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/supervise.md");
    let text = fs::read_to_string(path).unwrap();
    let faults: Vec<&str> =
        text.lines().filter(|line| line.starts_with("handoff supervise: fatal: unable to ")).collect();
    // A text that has placeholders for what was there is no pattern's business.
    let rows = rows();
    assert!(rows.len() > 30, "{rows:?}");
    for (row, pattern) in &rows {
        assert!(faults.iter().any(|fault| pattern.is_match(fault)), "no transcript provokes {row:?}");
    }
    for fault in faults {
        assert!(rows.iter().any(|(_, pattern)| pattern.is_match(fault)), "the table lacks {fault:?}");
    }
}
