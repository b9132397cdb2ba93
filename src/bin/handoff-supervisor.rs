//! `handoff-supervisor`: the name that integrators know `handoff supervise` by. It becomes the `handoff` beside itself, or else the one in
//! PATH, which tells by its own name what it is to be.
#![cfg_attr(not(test), no_main)]

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;

use handoff::error::{Error, Result};
use handoff::sys::spawn::{Image, Program};

const NAME: &str = "handoff-supervisor";

#[cfg(not(test))]
handoff::program!(main);

#[cfg_attr(test, allow(dead_code))]
fn main() -> u8 {
    let e = match handoff_beside().or_else(|_| Program::open(Path::new("handoff"))) {
        Ok(program) => {
            let args = std::env::args_os().skip(1).collect();
            Image { argv0: OsString::from(NAME), args, ..Image::new(&program) }.exec()
        }
        Err(e) => e,
    };
    // There is nowhere to say that standard error is closed.
    let _ = std::io::stderr().write_all(format!("{NAME}: fatal: {e}\n").as_bytes());
    code(&e)
}

fn handoff_beside() -> Result<Program> {
    let own = std::env::current_exe()
        .map_err(|e| Error::Io { attempt: "find this program".to_owned(), source: e })?;
    Program::open(&own.with_file_name("handoff"))
}

/// As a shell has it: it is not there, or it cannot be run.
fn code(e: &Error) -> u8 {
    match e {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => 127,
        _ => 126,
    }
}
