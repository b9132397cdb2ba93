//! `handoff hold-fds`: the link, other tools on both sides of it, and the holder that stays.
#![allow(clippy::unwrap_used, missing_docs)]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod holder;
mod interop;
mod link;

use std::io::{BufRead, BufReader};
use std::os::fd::IntoRawFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Once, OnceLock};

use handoff::sys::inherit;

use client::Address;
use common::HANDOFF;

/// What follows a link that is to serve whatever it has: the words, and the program.
pub fn python() -> [&'static str; 3] {
    static PYTHON: OnceLock<String> = OnceLock::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hold_fds/listen_fds.py");
    // What is called python3 may be a script that finds another one by its own name.
    let find = || said(Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]));
    ["--", PYTHON.get_or_init(find), script]
}

/// Keeps from the programs that are started here what the tests themselves were started with: it would be in their way.
pub fn close_strays() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in (3..1024).filter(|number| inherit::is_passed_on(*number)) {
            // It stays open here, and closes at exec.
            let _ = inherit::adopt(number).unwrap().into_raw_fd();
        }
    });
}

/// Runs `handoff hold-fds` with these words, and waits for its end.
pub fn hold(words: &[&str]) -> Output {
    close_strays();
    Command::new(HANDOFF)
        .arg("hold-fds")
        .args(words)
        .env_remove("HANDOFF_CONTROL")
        .env_remove("HANDOFF_DATA_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a command that must succeed in silence, and returns what it prints.
pub fn said(command: &mut Command) -> String {
    close_strays();
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that serves the sockets that it was given, and is ended with this.
pub struct Serving {
    pub child: Child,
    /// The names of its sockets, and where each can be reached.
    pub sockets: Vec<(String, Address)>,
}

impl Serving {
    /// Starts what is `tests/hold_fds/listen_fds.py` in the end, and waits until it serves.
    pub fn start(command: &mut Command) -> Self {
        close_strays();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut sockets = vec![];
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["serving"] => return Self { child, sockets },
                [name, family, kind, address] => {
                    sockets.push((name.to_owned(), Address::parse(family, kind, address)));
                }
                _ => panic!("{command:?}: {line}"),
            }
        }
        panic!("{command:?} ended: {}", child.wait().unwrap());
    }

    pub fn names(&self) -> Vec<&str> {
        self.sockets.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Asks each socket, which must answer with its name.
    pub fn expect_answers(&self) {
        for (name, address) in &self.sockets {
            assert_eq!(client::ask(address, "hello").unwrap(), format!("{name} hello"), "{address:?}");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
