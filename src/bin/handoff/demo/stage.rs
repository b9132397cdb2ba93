//! The stage: a kvd that serves, a load, and what it takes to try a scenario on them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::control::Control;
use handoff::proto::wire::Status;
use handoff::supervisor::Supervisor;
use handoff::sys::process::{PidFd, Signal};

use super::driver::{Driver, Ended, News, Order};
use super::premises::Premises;
use super::report::Row;
use super::scenario::{Act, Expected, Scenario, Victim};
use crate::load::{Answer, Connection, Load, Plan};

/// How long to wait for what does not take long, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// How often a scenario is set up anew when the machine was too slow for its moment.
const TRIES: u32 = 3;

/// A kvd that serves, and a load on it.
pub struct Stage<'a> {
    premises: &'a Premises,
    binary: PathBuf,
    /// The first kvd, for as long as nobody has waited for its end.
    first: Child,
    load: Load,
    addr: SocketAddr,
    serving: Serving,
    /// The number in the newest release's name.
    release: u32,
    /// What goes wrong in the first successor, though it should not.
    sabotage: Option<String>,
}

/// Who answers clients.
struct Serving {
    label: String,
    process: PidFd,
    pid: u32,
}

/// How a swap went, as far as its driver or the journal can tell.
struct Tried {
    label: String,
    ended: Ended,
    /// Whether there was the moment for what was to be done to it.
    acted: bool,
}

impl<'a> Stage<'a> {
    /// Starts the first release and the load.
    pub fn set(premises: &'a Premises, clients: usize, sabotage: Option<String>) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find this program")?;
        let log = premises.log()?;
        let mut command = Command::new(&binary);
        command.args(arguments(premises, "v1", None)).args(["--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let first = premises.start(&mut command).context("start kvd")?;
        let status = settled(&control(premises)).context("see kvd serve, whose messages are in the log")?;
        let address = status.listeners.first().context("find kvd's address")?.address.clone();
        let addr = address.parse().with_context(|| format!("understand the address {address:?}"))?;
        let serving = Serving::at(addr)?;
        let load = Load::start(&Plan::new(addr, clients)).context("start the load")?;
        Ok(Self { premises, binary, first, load, addr, serving, release: 1, sabotage })
    }

    /// Returns where the store is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Swaps to one release after another until `until`, and at least once.
    pub fn swap_until(&mut self, until: Instant, scenario: &Scenario) -> Row {
        self.perform(scenario, |stage, row| {
            loop {
                let tried = stage.try_once(scenario)?;
                stage.judge(scenario, &tried, row)?;
                if Instant::now() >= until || !row.problems.is_empty() {
                    return Ok(());
                }
            }
        })
    }

    /// Tries a scenario.
    pub fn play(&mut self, scenario: &Scenario) -> Row {
        self.perform(scenario, |stage, row| {
            let mut tries = 1;
            loop {
                let tried = stage.try_once(scenario)?;
                if tried.acted || tries == TRIES {
                    return stage.judge(scenario, &tried, row);
                }
                // A busy machine: the swap was over before its driver could stop. It is one more swap that went well.
                stage.judge(&super::scenario::SWAP, &tried, row)?;
                tries += 1;
            }
        })
    }

    /// Does something and then stops the load for a moment, to count and to read back exactly what belongs to it.
    fn perform(
        &mut self,
        scenario: &Scenario,
        play: impl FnOnce(&mut Self, &mut Row) -> anyhow::Result<()>,
    ) -> Row {
        let began = Instant::now();
        let mut row = Row::new(scenario);
        if let Err(e) = play(self, &mut row).and_then(|()| self.take_stock(&mut row)) {
            self.premises.mind_the_end();
            row.problems.push(format!("unable to {e:#}"));
        }
        row.seconds = began.elapsed().as_secs_f64();
        row
    }

    fn take_stock(&mut self, row: &mut Row) -> anyhow::Result<()> {
        if !self.load.each_is_served(Instant::now() + PATIENCE) {
            row.problems.push("not every client gets answers".into());
        }
        if !self.load.pause(Instant::now() + PATIENCE) {
            row.problems.push("a client waits for an answer that does not come".into());
        }
        let found = self.load.read_back_lap(self.addr).context("read back what was acknowledged");
        row.counts = self.load.lap();
        self.load.resume();
        let found = found?;
        row.lost = Some(found.lost);
        if found.lost > 0 {
            row.problems.push(found.to_string());
        }
        Ok(())
    }

    fn try_once(&mut self, scenario: &Scenario) -> anyhow::Result<Tried> {
        self.release += 1;
        let sabotage = self.sabotage.take();
        let fault = sabotage.as_deref().or(scenario.fault);
        let label = format!("v{}", self.release);
        let order = Order {
            control: control(self.premises),
            journal: journal(self.premises),
            binary: self.binary.clone(),
            args: arguments(self.premises, &label, fault),
            drain_grace: PATIENCE,
            deadline: scenario.deadline,
            bake: scenario.bake,
            stop: scenario.act.moment(),
        };
        let mut driver = Driver::start(self.premises, &self.binary, &order)?;
        let (ended, acted) = match driver.news()? {
            News::Ended(ended) => (ended, scenario.act.moment().is_none()),
            News::Stopped => (self.act(scenario.act, driver)?, true),
        };
        Ok(Tried { label, ended, acted })
    }

    /// Does to a swap what the scenario wants, and returns how it ended. Its driver has stopped.
    fn act(&self, act: Act, mut driver: Driver) -> anyhow::Result<Ended> {
        match act {
            Act::Nothing => {}
            Act::Kill(Victim::Driver, _) => {
                driver.kill()?;
                return self.ask_the_journal();
            }
            Act::Kill(victim, _) => self.kill(victim)?,
            Act::KillIdle(victim, _) => {
                anyhow::ensure!(self.load.pause(Instant::now() + PATIENCE), "let the clients finish");
                self.kill(victim)?;
                self.load.resume();
            }
            Act::Commit => self.during_trial(|control, deadline| control.commit(deadline))?,
            Act::Abort => self.during_trial(|control, deadline| {
                control.abort("the operator has changed their mind", deadline)
            })?,
        }
        driver.go_on()?;
        match driver.news()? {
            News::Ended(ended) => Ok(ended),
            News::Stopped => anyhow::bail!("understand a driver that stops twice"),
        }
    }

    fn kill(&self, victim: Victim) -> anyhow::Result<()> {
        let serving;
        let process = match victim {
            Victim::Incumbent => &self.serving.process,
            Victim::Successor => {
                serving = Serving::at(self.addr)?;
                &serving.process
            }
            Victim::Driver => unreachable!("the caller has it"),
        };
        process.signal(Signal::SIGKILL).context("kill it")?;
        let dead = process.wait_dead(Instant::now() + PATIENCE).context("wait for its end")?;
        anyhow::ensure!(dead, "see the end of a process that was killed");
        Ok(())
    }

    /// Lets the successor on trial serve every client, and then asks for something.
    fn during_trial(
        &self,
        ask: impl FnOnce(&mut Control, Instant) -> handoff::Result<()>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        anyhow::ensure!(self.load.each_is_served(deadline), "see every client served by the successor");
        let mut control = Control::connect(control(self.premises), "handoff demo", deadline)?;
        ask(&mut control, deadline).context("ask the successor on trial")
    }

    /// A driver that was killed says nothing: what does the next one find out?
    fn ask_the_journal(&self) -> anyhow::Result<Ended> {
        let supervisor = Supervisor::new(control(self.premises))?.with_journal(journal(self.premises));
        let recovered = supervisor.resume_from_journal().context("recover from the journal")?;
        let recovered = recovered.context("find the open handoff in the journal")?;
        Ok(Ended::of(&recovered.outcome))
    }

    /// Compares how it ended with what the scenario promises.
    fn judge(&mut self, scenario: &Scenario, tried: &Tried, row: &mut Row) -> anyhow::Result<()> {
        row.note_end(&tried.ended);
        if !tried.acted {
            row.problems.push("the swap was over before anything could be done to it".into());
        }
        settled(&control(self.premises)).context("find a daemon that serves")?;
        let now = Serving::at(self.addr)?;
        (row.version, row.pid) = (now.label.clone(), now.pid);
        let same_process = now.pid == self.serving.pid;
        let (right, who) = match scenario.expected {
            Expected::Commits => (now.label == tried.label && !same_process, "the successor"),
            Expected::RollsBack(_) => (now.label == self.serving.label && same_process, "the incumbent"),
            Expected::Superseded => (now.label == tried.label && same_process, "the successor's program"),
        };
        if !right {
            row.problems.push(format!("expected {who} to serve, found {} (pid {})", now.label, now.pid));
        }
        let kind = tried.ended.kind.as_str();
        let as_said = match scenario.expected {
            Expected::Commits | Expected::Superseded => kind == "committed",
            Expected::RollsBack(reasons) => reasons.contains(&kind),
        };
        if !as_said {
            row.problems.push(format!("unexpected: {kind} {}", tried.ended.reason));
        }
        self.serving = now;
        Ok(())
    }

    /// Reads everything back, stops the daemon, and returns what was found: the load's counts, the lost writes, problems.
    pub fn close(mut self) -> Closing {
        let mut problems = Vec::new();
        let ledger = self.load.stop();
        let lost = match ledger.read_back(self.addr) {
            Ok(found) if found.lost > 0 => {
                problems.push(found.to_string());
                Some(found.lost)
            }
            Ok(found) => Some(found.lost),
            Err(e) => {
                problems.push(format!("unable to read back what was acknowledged: {e}"));
                None
            }
        };
        let deadline = Instant::now() + PATIENCE;
        // Those that handed over let their clients read the last answers, and then end.
        let left = self.premises.wait_for_others(&[self.serving.pid], deadline);
        if !left.is_empty() {
            problems.push(format!("processes are left over: {left:?}"));
        }
        let stopped = self.serving.process.signal(Signal::SIGTERM);
        match stopped.and_then(|()| self.serving.process.wait_dead(deadline)) {
            Ok(true) => {}
            Ok(false) => problems.push("the last daemon does not stop".into()),
            Err(e) => problems.push(format!("unable to stop the last daemon: {e}")),
        }
        if self.premises.processes().is_empty() {
            // It has ended: nobody else waits for it.
            let _ = self.first.wait();
        }
        Closing { counts: ledger.counts, lost, left: left.len(), problems }
    }
}

/// What is found at the end.
pub struct Closing {
    pub counts: crate::load::Counts,
    /// Acknowledged writes that are not there; unknown where they could not be read back.
    pub lost: Option<u64>,
    /// Processes that should have ended.
    pub left: usize,
    pub problems: Vec<String>,
}

impl Serving {
    /// Asks who serves, as a client.
    fn at(addr: SocketAddr) -> anyhow::Result<Self> {
        let answer =
            Connection::open(addr, PATIENCE).and_then(|mut client| client.call(&["INFO", "handoff"]));
        let Answer::Bulk(Some(info)) = answer.context("ask who serves")? else {
            anyhow::bail!("understand the answer to INFO");
        };
        let info = String::from_utf8_lossy(&info);
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name)).context("understand INFO");
        let pid = field("pid:")?.parse().context("understand INFO")?;
        let process = PidFd::open(pid).context("open a pidfd of whoever serves")?;
        Ok(Self { label: field("build_id:")?.to_owned(), process, pid })
    }
}

/// Waits until a daemon serves and no handoff is going on.
fn settled(control: &Path) -> anyhow::Result<Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = Control::connect(control, "handoff demo", deadline).and_then(|mut c| c.status(deadline));
        match asked {
            Ok(status) if status.phase == "serving" && status.handoff.is_none() => return Ok(status),
            Ok(status) if Instant::now() >= deadline => {
                anyhow::bail!("see it serve: it is {} in phase {}", status.role, status.phase)
            }
            Err(e) if Instant::now() >= deadline => return Err(e.into()),
            Ok(_) | Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn control(premises: &Premises) -> PathBuf {
    premises.dir().join("control")
}

fn journal(premises: &Premises) -> PathBuf {
    premises.dir().join("journal")
}

fn arguments(premises: &Premises, label: &str, fault: Option<&str>) -> Vec<String> {
    let mut args = vec!["kvd".to_owned(), "--version-label".to_owned(), label.to_owned()];
    for (option, path) in [("--data-dir", premises.dir().to_owned()), ("--control", control(premises))] {
        args.extend([option.to_owned(), path.display().to_string()]);
    }
    args.extend(fault.into_iter().flat_map(|fault| ["--fail".to_owned(), fault.to_owned()]));
    args
}
