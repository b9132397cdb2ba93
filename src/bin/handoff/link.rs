//! What follows a link: the next program of the chain, with the same pid.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use handoff::chain::Chain;
use handoff::error::Error;
use handoff::sys::spawn::Program;

use crate::ahead;
use crate::exit::{self, Exit};

/// The rest of the command line.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[group(skip)]
pub struct Next {
    /// The next program, which this process becomes, and its arguments
    // No hyphens: `words` puts `--` before them, and what looks like an option before that is one, if a mistyped one.
    #[arg(value_name = "PROG", trailing_var_arg = true, value_hint = clap::ValueHint::CommandWithArguments)]
    words: Vec<OsString>,
}

/// A program that was opened before anything else was done.
#[derive(Debug)]
pub struct Opened {
    program: Program,
    args: Vec<OsString>,
}

impl Next {
    /// Returns what follows an operand.
    pub fn new(words: &[OsString]) -> Self {
        Self { words: words.to_vec() }
    }

    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Returns the words as a text, for a link that may take them for one.
    pub fn text(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Opens the program, if one follows; to be called before anything is changed.
    ///
    /// # Errors
    ///
    /// The exit code, after it was said why the program cannot be run.
    pub fn open(&self, command: &str) -> Result<Option<Opened>, Exit> {
        // After an operand `--` is a word like any other, and there it ends nothing but the link's own arguments.
        let words = self.words.strip_prefix(&[OsString::from("--")]).unwrap_or(&self.words);
        if words.is_empty() { Ok(None) } else { open_words(command, words).map(Some) }
    }

    /// As [`open`](Self::open), and what is wrong with the links that follow is found now: for a link after which undoing costs
    /// something.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_ahead(&self, command: &str) -> Result<Option<Opened>, Exit> {
        let opened = self.open(command)?;
        opened.iter().try_for_each(|opened| opened.check_ahead(command))?;
        Ok(opened)
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

/// Opens a program that is given with its arguments.
///
/// # Errors
///
/// The exit code, after it was said why the program cannot be run.
pub fn open_words(command: &str, words: &[OsString]) -> Result<Opened, Exit> {
    let Some((name, args)) = words.split_first() else {
        let detail = "a program must follow `--`".to_owned();
        return Err(exit::fatal(command, &exit::attempt(Error::Invalid { detail }, "go on with the chain")));
    };
    match Program::open(Path::new(name)) {
        Ok(program) => Ok(Opened { program, args: args.to_vec() }),
        Err(e) => Err(unusable(command, e)),
    }
}

impl Opened {
    /// Looks at the links that follow, if this is one.
    ///
    /// # Errors
    ///
    /// The exit code, after it was said what is wrong.
    pub fn check_ahead(&self, command: &str) -> Result<(), Exit> {
        if self.program.same_file(Path::new("/proc/self/exe")) {
            ahead::check(command, &self.args)
        } else {
            Ok(())
        }
    }

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

/// Returns the path that this program was started by: what is there later is its next release.
pub fn own_program() -> anyhow::Result<PathBuf> {
    let name: Option<OsString> = std::env::args_os().next();
    let opened = name.map(|name| Program::open(Path::new(&name))).transpose();
    let path = match opened {
        Ok(Some(program)) if program.same_file(Path::new("/proc/self/exe")) => program.path().to_owned(),
        _ => std::env::current_exe().context("find this program")?,
    };
    std::path::absolute(path).context("find the working directory")
}
