//! What goes to standard output and standard error: whole lines, one write each.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

use anyhow::Context;
use handoff::proto::record::Program;
use handoff::sys::terminal;
use serde::Serialize;

/// Writes text to standard output; breaks when nobody reads it any more, as `head` does not after its lines, nor a closed terminal.
pub fn text(text: &str) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == ErrorKind::BrokenPipe || terminal::is_gone(&e, io::stdout().as_fd()) => {
            Ok(ControlFlow::Break(()))
        }
        Err(e) => Err(e).context("write to standard output"),
    }
}

/// Writes one line.
pub fn line(line: &str) -> anyhow::Result<ControlFlow<()>> {
    text(&format!("{line}\n"))
}

/// Writes one JSON object on a line.
pub fn json(value: &impl Serialize) -> anyhow::Result<ControlFlow<()>> {
    line(&serde_json::to_string(value).context("write JSON")?)
}

/// Says something on standard error, in one write of one line.
pub fn say(command: &str, level: &str, text: &str) {
    // There is nowhere to say that standard error is closed.
    let _ = io::stderr().write_all(format!("handoff {command}: {level}: {}\n", one_line(text)).as_bytes());
}

/// What a stranger's program said must not move the cursor of the terminal that it is shown on.
pub fn one_line(text: &str) -> String {
    text.trim_end().replace(['\n', '\r'], " ").replace(char::is_control, "\u{fffd}")
}

/// Returns a command line as a shell reads it.
pub fn command_line(program: impl AsRef<OsStr>, args: &[String]) -> String {
    let program = program.as_ref().to_string_lossy();
    let words = std::iter::once(program.as_ref()).chain(args.iter().map(String::as_str));
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// Returns what starts a program, as a shell reads it: in its directory, where that is known.
pub fn start_line(program: &Program) -> String {
    let command = command_line(&program.binary, &program.args);
    match &program.directory {
        // `exec` can be put before it, and nothing has to be undone after it.
        Some(directory) => format!("env {} {command}", quoted(&format!("--chdir={}", directory.display()))),
        None => command,
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Returns a build id for people: the label that it was made from where it was text, and its beginning otherwise.
pub fn build(build_id: &str) -> String {
    let bytes: Option<Vec<u8>> = (0..build_id.len())
        .step_by(2)
        .map(|at| build_id.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    match bytes {
        Some(bytes) if !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic) => {
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ if build_id.is_empty() => "unknown".to_owned(),
        _ => build_id.chars().take(12).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let args = ["--listen", "127.0.0.1:1", "a b", "it's", ""].map(str::to_owned);
        assert_eq!(command_line("/bin/kvd", &args), "/bin/kvd --listen 127.0.0.1:1 'a b' 'it'\\''s' ''");
    }

    #[test]
    fn a_program_is_started_in_its_directory() {
        let mut program = Program {
            binary: "/bin/kvd".into(),
            args: vec!["data".to_owned()],
            build_id: String::new(),
            directory: None,
        };
        assert_eq!(start_line(&program), "/bin/kvd data");
        program.directory = Some("/srv/my kv".into());
        assert_eq!(start_line(&program), "env '--chdir=/srv/my kv' /bin/kvd data");
    }

    #[test]
    fn a_build_id_that_is_text_is_shown_as_text() {
        assert_eq!(build("7632"), "v2");
        assert_eq!(build("00ff00ff00ff00ff"), "00ff00ff00ff");
        assert_eq!(build(""), "unknown");
        assert_eq!(build("7"), "7");
    }

    #[test]
    fn what_is_said_is_one_line_that_moves_no_cursor() {
        assert_eq!(one_line("a\nb\u{1b}[2J\n"), "a b\u{fffd}[2J");
    }
}
