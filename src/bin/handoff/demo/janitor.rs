//! The janitor of a demonstration: a process that waits for its end, whatever ends it, and then clears its premises.
//!
//! A process that is killed with SIGKILL, or whose terminal is closed, ends without a last word; what it has started
//! would go on for ever. The janitor holds the reading end of a pipe whose other end closes with the demonstration.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::premises::Premises;
use crate::exit::Exit;

/// A janitor that waits.
pub struct Janitor(Child);

impl Janitor {
    /// Starts one, in a process group of its own: Ctrl-C is not for it.
    pub fn start(premises: &Premises) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["demo", "--janitor"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut janitor = Self(command.spawn().context("start the janitor")?);
        let pipe = janitor.0.stdin.as_mut().context("speak with the janitor")?;
        let mut line = serde_json::to_vec(premises)?;
        line.push(b'\n');
        pipe.write_all(&line).context("speak with the janitor")?;
        Ok(janitor)
    }
}

impl Drop for Janitor {
    /// Lets it do its work and go.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // There is nobody to tell how it ended.
        let _ = self.0.wait();
    }
}

/// Is the janitor: waits for the end of the demonstration at the other end of standard input, and clears up.
pub fn run() -> anyhow::Result<Exit> {
    let mut pipe = BufReader::new(std::io::stdin());
    let mut line = String::new();
    pipe.read_line(&mut line).context("hear from the demonstration")?;
    let premises: Premises = serde_json::from_str(&line).context("understand the demonstration")?;
    // Either way it has ended.
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    premises.clear();
    Ok(Exit::Done)
}
