//! What follows a link: the next program of the chain, with the same pid.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use handoff::chain::Chain;
use handoff::error::Error;
use handoff::sys::spawn::Program;

use crate::exit::{self, Exit};

/// The rest of the command line.
#[derive(Clone, clap::Args)]
#[group(skip)]
pub struct Next {
    /// The next program, which this process becomes, and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true, allow_hyphen_values = true, value_hint = clap::ValueHint::CommandWithArguments)]
    words: Vec<OsString>,
}

/// A program that was opened before anything else was done.
#[derive(Debug)]
pub struct Opened {
    program: Program,
    args: Vec<OsString>,
}

impl Next {
    /// Opens the program, if one follows; to be called before anything is changed.
    ///
    /// # Errors
    ///
    /// The exit code, after it was said why the program cannot be run.
    pub fn open(&self, command: &str) -> Result<Option<Opened>, Exit> {
        // After an operand `--` is a word like any other, and there it ends nothing but the link's own arguments.
        let words = self.words.strip_prefix(&[OsString::from("--")]).unwrap_or(&self.words);
        let Some((name, args)) = words.split_first() else { return Ok(None) };
        match Program::open(Path::new(name)) {
            Ok(program) => Ok(Some(Opened { program, args: args.to_vec() })),
            Err(e) => Err(unusable(command, e)),
        }
    }

    /// As [`open`](Self::open), for a link that is of no use without a program.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and the one for a wrong command line where no program follows.
    pub fn require(&self, command: &str, why: &str) -> Result<Opened, Exit> {
        self.open(command)?.ok_or_else(|| {
            let detail = format!("a program must follow: {why}");
            exit::fatal(command, &exit::attempt(Error::Invalid { detail }, "go on with the chain"))
        })
    }
}

impl Opened {
    /// Becomes the program, and hands the chain on. Returns only if that fails, after saying why.
    pub fn exec(self, command: &str, chain: &Chain) -> Exit {
        unusable(command, chain.exec(&self.program, &self.args))
    }
}

/// Says why a program cannot be run, and tells what is not there from what is.
pub fn unusable(command: &str, e: Error) -> Exit {
    let exit = match &e {
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => Exit::NotExecutable,
            ErrorKind::NotFound | ErrorKind::NotADirectory => Exit::NotFound,
            _ => Exit::System,
        },
        Error::Invalid { .. } => Exit::Usage,
        _ => Exit::System,
    };
    exit::fatal_as(command, &exit::attempt(e, "become the next program"), exit)
}
