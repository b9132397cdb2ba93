//! The pauses of `handoff swap --step`: what a person at the terminal is shown, and what comes of the answer.
//!
//! A thread of its own reads the terminal and waits for the shell, so that the driver goes on listening while the person thinks. The terminal
//! is never set otherwise than it was found: answers are lines.

use std::io::{self, IsTerminal, Write, stderr, stdin};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::chain::{CONTROL_VAR, ID_VAR};
use handoff::control::Control;
use handoff::error::Error;
use handoff::supervisor::{Event, Wish};
use handoff::sys::process::{PidFd, Signal};
use handoff::sys::signals::Termination;
use handoff::sys::spawn::{Image, Program, Spawn};
use handoff::sys::terminal::{self, Saved};

use crate::duration::show_ms;
use crate::progress::Progress;
use crate::{exit, out, status};

/// How long the daemon may take to say how it is doing.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a pause is looked at before it is shown without what the daemon has not said.
const LOOKS: u32 = 10;
/// Between two looks at whether the shell has been left.
const LOOK: Duration = Duration::from_millis(50);
/// How long a shell that was hung up may take to end before it is killed.
const HANGING_UP: Duration = Duration::from_secs(5);

/// Where a driver pauses, what that means, and what comes next.
const PAUSES: [(&str, &str, &str); 3] = [
    (
        "warm",
        "the successor is loaded and waits; the daemon serves, and nothing has changed",
        "drain: the daemon stops accepting and finishes what is in flight",
    ),
    (
        "drained",
        "the daemon has finished what was in flight; new clients wait in the accept queue",
        "seal: the daemon makes its data final and lets go of it",
    ),
    (
        "sealed",
        "the data is final and nobody's; new clients wait in the accept queue",
        "commit: the successor opens the data, and the daemon decides",
    ),
];

const HELP: &str = "\
  c, continue, or Enter   go on with the next phase
  s, status               show what is running now
  h, shell                open $SHELL, where handoff status works; leaving it comes back here
  a, abort, or Ctrl-D     undo the handoff: the daemon serves on
  ?, help                 show this
Doing nothing undoes it too, when the time is up.
";

/// Asks at each pause.
pub struct Pauses {
    orders: Sender<Order>,
    news: Receiver<News>,
    pause: Option<Pause>,
    waits_for: WaitsFor,
}

/// Where the driver holds.
struct Pause {
    phase: String,
    /// How it stands, as far as is known.
    standing: String,
    looks: u32,
}

/// What the thread at the terminal is doing.
enum WaitsFor {
    Nothing,
    Answer,
    /// It shows how the daemon is doing.
    Status,
    /// The shell's pidfd, once it runs.
    Shell(Option<PidFd>),
}

/// What the thread is to do.
enum Order {
    /// Show this, and read a line.
    Ask(String),
    ShowStatus(String),
    OpenShell,
}

/// What came of it.
enum News {
    /// A line, or the end of the input.
    Line(Option<String>),
    Shown,
    ShellRuns(PidFd),
    /// The shell has ended, or why there was none.
    ShellEnded(Option<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Continue,
    Status,
    Shell,
    Abort,
    Help,
    Unknown,
}

impl Answer {
    fn of(line: &str) -> Self {
        match line.trim().to_ascii_lowercase().as_str() {
            "" | "c" | "continue" => Self::Continue,
            "s" | "status" => Self::Status,
            "h" | "shell" => Self::Shell,
            "a" | "abort" => Self::Abort,
            "?" | "help" => Self::Help,
            _ => Self::Unknown,
        }
    }
}

impl Pauses {
    /// # Errors
    ///
    /// There is no terminal to ask at.
    pub fn new(control: &Path) -> anyhow::Result<Self> {
        for (name, is_terminal) in [("input", stdin().is_terminal()), ("error", stderr().is_terminal())] {
            if !is_terminal {
                let detail = format!(
                    "--step asks a person, and standard {name} is not a terminal; for scripts there is a command for each phase"
                );
                return Err(exit::attempt(Error::Invalid { detail }, "pause between the phases"));
            }
        }
        let control = std::path::absolute(control)
            .with_context(|| format!("find the full path of {}", control.display()))?;
        let (orders, ordered) = channel();
        let (tell, news) = channel();
        std::thread::spawn(move || attend(&control, &ordered, &tell));
        Ok(Self { orders, news, pause: None, waits_for: WaitsFor::Nothing })
    }

    /// Whether this signal is the shell's and not ours: Ctrl-C in a shell that has no job control.
    pub fn is_for_the_shell(&self, signal: Termination) -> bool {
        signal == Termination::Int && matches!(self.waits_for, WaitsFor::Shell(_))
    }

    /// Sees how the handoff goes, and returns what the person wants of it.
    pub fn observe(&mut self, event: &Event<'_>, progress: &mut Progress) -> Wish {
        match event {
            Event::Phase(phase) => self.enter(phase, progress),
            Event::Tick { open_conns, queue, left, .. } => self.look(*open_conns, *queue, *left, progress),
        }
        self.heed(progress)
    }

    fn enter(&mut self, phase: &str, progress: &mut Progress) {
        if self.pause.is_some() {
            self.leave_unanswered(phase, progress);
        }
        let holds = PAUSES.iter().any(|(name, ..)| *name == phase);
        self.pause = holds.then(|| Pause { phase: phase.to_owned(), standing: String::new(), looks: 0 });
    }

    /// The handoff has moved on while the person thought.
    fn leave_unanswered(&mut self, phase: &str, progress: &mut Progress) {
        self.pause = None;
        self.leave_line();
        if let Some(what) = moved(phase) {
            out::say("swap", "warning", what);
        }
        if !matches!(self.waits_for, WaitsFor::Shell(_)) {
            progress.go_on();
        }
    }

    /// What is half typed is for nobody else to read.
    fn leave_line(&mut self) {
        if matches!(self.waits_for, WaitsFor::Nothing) {
            return;
        }
        write("\n");
        if !matches!(self.waits_for, WaitsFor::Shell(_)) {
            // It fails only where the terminal is gone.
            let _ = terminal::discard_input(stdin().as_fd());
            // Its answer comes too late from here on.
            self.waits_for = WaitsFor::Nothing;
        }
    }

    fn look(
        &mut self,
        conns: Option<u32>,
        queue: Option<(u32, u32)>,
        left: Option<Duration>,
        progress: &mut Progress,
    ) {
        let Some(pause) = &mut self.pause else { return };
        pause.standing = standing(&pause.phase, conns, queue, left);
        pause.looks += 1;
        let is_known = conns.is_some() || pause.looks > LOOKS;
        if is_known && matches!(self.waits_for, WaitsFor::Nothing) {
            progress.hush();
            let text = pause.standing.clone();
            self.ask(&text);
        }
    }

    fn ask(&mut self, text: &str) {
        let asks = "[c]ontinue, [s]tatus, s[h]ell, [a]bort, [?]: ";
        self.order(Order::Ask(format!("{text}{asks}")), WaitsFor::Answer);
    }

    fn order(&mut self, order: Order, waits_for: WaitsFor) {
        // The thread lives as long as this does.
        let _ = self.orders.send(order);
        self.waits_for = waits_for;
    }

    fn heed(&mut self, progress: &mut Progress) -> Wish {
        let Ok(news) = self.news.try_recv() else { return Wish::Continue };
        if let News::ShellRuns(shell) = news {
            self.waits_for = WaitsFor::Shell(Some(shell));
            return Wish::Continue;
        }
        self.waits_for = WaitsFor::Nothing;
        if self.pause.is_none() {
            progress.go_on();
            return Wish::Continue;
        }
        match news {
            News::Line(Some(line)) => self.answer(Answer::of(&line), progress),
            News::Line(None) => {
                write("\n");
                self.settle(
                    Wish::Cancel("handoff swap --step found the end of its input".to_owned()),
                    progress,
                )
            }
            // The next look asks again, with how it stands then.
            News::Shown | News::ShellEnded(None) | News::ShellRuns(_) => Wish::Continue,
            News::ShellEnded(Some(why)) => {
                out::say("swap", "warning", &why);
                Wish::Continue
            }
        }
    }

    fn answer(&mut self, answer: Answer, progress: &mut Progress) -> Wish {
        match answer {
            Answer::Continue => return self.settle(Wish::GoOn, progress),
            Answer::Abort => {
                let wish = Wish::Cancel("aborted at the prompt of handoff swap --step".to_owned());
                return self.settle(wish, progress);
            }
            Answer::Status => {
                let standing = self.pause.as_ref().map_or(String::new(), |pause| pause.standing.clone());
                self.order(Order::ShowStatus(standing), WaitsFor::Status);
            }
            Answer::Shell => self.order(Order::OpenShell, WaitsFor::Shell(None)),
            Answer::Help => self.ask(HELP),
            Answer::Unknown => self.ask("That is none of these.\n"),
        }
        Wish::Continue
    }

    fn settle(&mut self, wish: Wish, progress: &mut Progress) -> Wish {
        self.pause = None;
        progress.go_on();
        wish
    }

    /// The handoff is over. A shell that is still open is the person's to leave, unless somebody asks this command to stop.
    pub fn end(mut self, ended: &str, signals: &Receiver<Termination>) {
        self.pause = None;
        self.leave_line();
        if !matches!(self.waits_for, WaitsFor::Shell(_)) {
            return;
        }
        out::say("swap", "warning", &format!("{ended} (leave this shell to end handoff swap)"));
        let mut hung_up: Option<Instant> = None;
        loop {
            match self.news.recv_timeout(LOOK) {
                Ok(News::ShellRuns(shell)) => self.waits_for = WaitsFor::Shell(Some(shell)),
                Ok(_) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            }
            let WaitsFor::Shell(Some(shell)) = &self.waits_for else { continue };
            let asked = signals.try_iter().any(|signal| signal != Termination::Int);
            match hung_up {
                None if asked => {
                    // It may have ended already; its end is what is waited for.
                    let _ = shell.signal(Signal::SIGHUP);
                    hung_up = Some(Instant::now());
                }
                // Not even this ended it: it is stopped in the kernel, and holds nothing of ours.
                Some(at) if at.elapsed() > 2 * HANGING_UP => return,
                Some(at) if at.elapsed() > HANGING_UP => {
                    let _ = shell.signal(Signal::SIGKILL);
                }
                _ => {}
            }
        }
    }
}

/// What it means that the handoff has left a pause by itself.
fn moved(phase: &str) -> Option<&'static str> {
    Some(match phase {
        "aborting" | "dismissing" => "the handoff is being undone",
        "orphaned" => "the daemon has died: the successor starts as after a crash",
        "inquiring" => "the daemon says nothing: finding out who serves",
        _ => return None,
    })
}

fn standing(phase: &str, conns: Option<u32>, queue: Option<(u32, u32)>, left: Option<Duration>) -> String {
    let found = PAUSES.iter().find(|(name, ..)| *name == phase);
    let (means, next) = found.map_or(("", ""), |(_, means, next)| (*means, *next));
    let mut lines = vec![format!("{phase}: {means}")];
    let left = left.map(|left| show_ms(u64::try_from(left.as_millis()).unwrap_or(u64::MAX) / 100 * 100));
    lines.extend(left.map(|left| format!("  left     {left}, then the daemon undoes the handoff by itself")));
    let conns = conns.map_or("the daemon does not say".to_owned(), |n| format!("{n} left"));
    lines.push(format!("  clients  connections: {conns}{}", depth(queue)));
    lines.push(format!("  next     {next}"));
    lines.join("\n") + "\n"
}

fn depth(queue: Option<(u32, u32)>) -> String {
    queue.map_or(String::new(), |(len, limit)| format!("; accept queue: {len} of {limit}"))
}

// ---- At the terminal, in its thread.

fn attend(control: &Path, orders: &Receiver<Order>, news: &Sender<News>) {
    for order in orders {
        let told = match order {
            Order::Ask(text) => News::Line(ask(&text)),
            Order::ShowStatus(standing) => {
                write(&(standing + &status::describe(control, ANSWER)));
                News::Shown
            }
            Order::OpenShell => News::ShellEnded(shell(control, news).err().map(|e| format!("{e:#}"))),
        };
        if news.send(told).is_err() {
            return;
        }
    }
}

/// What was typed before the question is no answer to it. A line that ends with the input is none either.
fn ask(text: &str) -> Option<String> {
    // It fails only where the terminal is gone, and then the reading tells.
    let _ = terminal::discard_input(stdin().as_fd());
    write(text);
    let mut line = String::new();
    match stdin().read_line(&mut line) {
        Ok(_) if line.ends_with('\n') => Some(line),
        // What is no text is no answer.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Some("invalid".to_owned()),
        Ok(_) | Err(_) => None,
    }
}

/// Opens a shell, and waits until it is left. The terminal is put back as it was, whatever was done to it.
fn shell(control: &Path, news: &Sender<News>) -> anyhow::Result<()> {
    let name = std::env::var_os("SHELL").filter(|name| !name.is_empty()).unwrap_or_else(|| "sh".into());
    let program = Program::open(Path::new(&name))?;
    let handoff = handoff_at(control);
    let saved = Saved::of(stdin().as_fd()).context("look at the terminal")?;
    let (input, output) = (copy(stdin().as_fd())?, copy(stderr().as_fd())?);
    let mut image = Image::new(&program);
    image.env.retain(|(name, _)| name != CONTROL_VAR && name != ID_VAR);
    image.env.push((CONTROL_VAR.into(), control.into()));
    image.env.extend(handoff.map(|id| (ID_VAR.into(), id.into())));
    let mut spawn = Spawn::new(image);
    // Standard output may be a file that is to hold the outcome.
    (spawn.stdin, spawn.stdout, spawn.stderr) =
        (Some(input.as_fd()), Some(output.as_fd()), Some(output.as_fd()));
    write("A shell in the pause; leave it (exit, Ctrl-D) to come back.\n");
    let mut child = spawn.spawn()?;
    match PidFd::open(child.id()) {
        // Nobody asks any more once the swap is over.
        Ok(pidfd) => drop(news.send(News::ShellRuns(pidfd))),
        Err(e) => tracing::debug!("unable to watch the shell: {e}"),
    }
    let waited = child.wait();
    saved.restore().context("put the terminal back")?;
    waited.context("wait for the shell")?;
    Ok(())
}

fn copy(fd: std::os::fd::BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    fd.try_clone_to_owned().context("copy the terminal's descriptor")
}

fn handoff_at(control: &Path) -> Option<String> {
    let deadline = Instant::now() + ANSWER;
    let status = Control::connect(control, "handoff swap", deadline).and_then(|mut c| c.status(deadline));
    Some(status.ok()?.handoff?.handoff)
}

fn write(text: &str) {
    // A terminal that is gone shows nothing, and its end of input is the next thing that is read.
    let _ = stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_words_and_an_empty_line_are_answers() {
        for (lines, answer) in [
            (["\n", "c\n", " Continue \n"], Answer::Continue),
            (["s\n", "S\n", "status\n"], Answer::Status),
            (["h\n", "shell\n", "SHELL\n"], Answer::Shell),
            (["a\n", "abort\n", "Abort\r\n"], Answer::Abort),
            (["?\n", "help\n", " ?\n"], Answer::Help),
            (["y\n", "cc\n", "exit\n"], Answer::Unknown),
        ] {
            for line in lines {
                assert_eq!(Answer::of(line), answer, "{line:?}");
            }
        }
    }

    #[test]
    fn a_pause_says_where_it_stands_and_what_is_left() {
        let left = Some(Duration::from_millis(58_123));
        let text = standing("drained", Some(3), Some((12, 4096)), left);
        for part in [
            "drained: the daemon has finished",
            "58.1s, then the daemon undoes",
            "connections: 3 left",
            "12 of 4096",
            "next     seal",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(standing("warm", None, None, None).contains("the daemon does not say"));
    }
}
