//! `link PROG ARG...` becomes the program: a link of a chain that does nothing.

use std::path::Path;
use std::process::ExitCode;

use handoff::sys::spawn::{Image, Program};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let failed = match words.next().map(|name| Program::open(Path::new(&name))) {
        Some(Ok(program)) => Image { args: words.collect(), ..Image::new(&program) }.exec(),
        Some(Err(e)) => e,
        None => return ExitCode::from(100),
    };
    eprintln!("link: fatal: {failed}");
    ExitCode::from(111)
}
