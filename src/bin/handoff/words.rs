//! Options stop at the first word that is not one: what follows belongs to the program that is named there.
//!
//! clap alone would take `--listen` in `handoff swap kvd --listen x` for its own, or `--lsiten` before the program for the
//! program.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// Puts `--` before the program, for commands that are followed by one.
pub fn end_options(cli: &Command, mut words: Vec<OsString>) -> Vec<OsString> {
    if let Some(program) = program_at(cli, &words) {
        words.insert(program, "--".into());
    }
    words
}

fn program_at(cli: &Command, words: &[OsString]) -> Option<usize> {
    let global: Vec<&Arg> = cli.get_arguments().collect();
    let (mut command, mut from) = (cli, 1);
    loop {
        let options: Vec<&Arg> = command.get_arguments().chain(global.iter().copied()).collect();
        let word = first_operand(words, from, &options)?;
        match command.find_subcommand(&words[word]) {
            // `journal begin` is a link, and `journal show` is none.
            Some(subcommand) => (command, from) = (subcommand, word + 1),
            None => return takes_program(command).then_some(word),
        }
    }
}

fn takes_program(command: &Command) -> bool {
    command.get_positionals().any(Arg::is_trailing_var_arg_set)
}

/// Returns where the first word stands that is neither an option nor its value; `None` if `--` already says so.
fn first_operand(words: &[OsString], from: usize, options: &[&Arg]) -> Option<usize> {
    let mut at = from;
    loop {
        let word = words.get(at)?;
        if word == "--" {
            return None;
        }
        if !is_option(word) {
            return Some(at);
        }
        at += if wants_next(word, options) { 2 } else { 1 };
    }
}

/// A dash alone is a word.
fn is_option(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    bytes.len() > 1 && bytes[0] == b'-'
}

/// Whether the option's value is the next word. An option that nobody knows is clap's to refuse.
fn wants_next(word: &OsStr, options: &[&Arg]) -> bool {
    let word = word.to_string_lossy();
    let takes_value = |arg: Option<&&Arg>| arg.is_some_and(|arg| arg.get_action().takes_values());
    match word.strip_prefix("--") {
        Some(long) => {
            !long.contains('=') && takes_value(options.iter().find(|arg| arg.get_long() == Some(long)))
        }
        None => {
            takes_value(options.iter().find(|arg| arg.get_short().is_some_and(|short| word.ends_with(short))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words = end_options(&crate::definition(None), words);
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    #[test]
    fn the_first_word_that_is_no_option_ends_them() {
        for (line, expected) in [
            ("handoff swap kvd --json", "handoff swap -- kvd --json"),
            ("handoff swap --control c --json kvd -l", "handoff swap --control c --json -- kvd -l"),
            ("handoff --verbose swap --control=c kvd", "handoff --verbose swap --control=c -- kvd"),
            ("handoff swap --verbose --env A=B -", "handoff swap --verbose --env A=B -- -"),
            ("handoff swap --unknown kvd", "handoff swap --unknown -- kvd"),
            ("handoff swap --json -- -x", "handoff swap --json -- -x"),
            ("handoff swap --json", "handoff swap --json"),
            ("handoff status --json x", "handoff status --json -- x"),
            ("handoff demo --json x", "handoff demo --json x"),
            ("handoff journal begin kvd --json", "handoff journal begin -- kvd --json"),
            (
                "handoff journal --verbose begin --journal swap kvd",
                "handoff journal --verbose begin --journal swap -- kvd",
            ),
            ("handoff journal timeline x --svg f", "handoff journal timeline x --svg f"),
            ("handoff lock --wait 1s dir ls -l", "handoff lock --wait 1s -- dir ls -l"),
        ] {
            assert_eq!(ended(line), expected);
        }
    }
}
