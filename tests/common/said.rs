//! What a command says, and with which code it ends.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{eventually, wait_for_exit};

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Runs it to its end.
    pub fn of(mut command: Command) -> Self {
        Self::by(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Reads until both ends close: also a daemon that kept one open would hold a script up.
    pub fn by(mut child: Child) -> Self {
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = std::thread::spawn(move || {
            let mut err = String::new();
            stderr.read_to_string(&mut err).unwrap();
            err
        });
        let outputs = std::thread::spawn(move || {
            let mut out = String::new();
            stdout.read_to_string(&mut out).unwrap();
            out
        });
        let code = wait_for_exit(&mut child).code().expect("it was not killed");
        eventually("the end of the output", || outputs.is_finished() && errors.is_finished());
        Self { code, out: outputs.join().unwrap(), err: errors.join().unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }
}
