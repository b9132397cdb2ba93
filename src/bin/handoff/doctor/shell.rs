//! Command lines that lead to the supervisor, and what stays in between.

use std::path::Path;

/// What a command line does before the program that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trap {
    /// It closes descriptors, and stays as the program's parent: this program.
    Closes(String),
    /// A shell runs the program as its child.
    Forks,
    /// A shell becomes the program.
    Execs,
}

/// These change the user, and stay.
const CLOSING: [&str; 5] = ["sudo", "su", "runuser", "doas", "pkexec"];
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ksh", "zsh", "ash"];

/// Returns what stands before the program, where that matters.
pub fn leads(words: &[&str]) -> Option<Trap> {
    let name = Path::new(words.first()?).file_name()?.to_str()?;
    if CLOSING.contains(&name) {
        return Some(Trap::Closes(name.to_owned()));
    }
    if !SHELLS.contains(&name) || words.get(1) != Some(&"-c") {
        return None;
    }
    let script = words[2..].join(" ");
    Some(if script.contains("exec ") { Trap::Execs } else { Trap::Forks })
}

/// Returns whether a command line names the supervisor.
pub fn is_supervisor(line: &str) -> bool {
    line.contains("handoff supervise") || line.contains("handoff-supervisor")
}
