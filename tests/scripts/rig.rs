//! A daemon under load, in a directory whose name has a space, and a script that deploys.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use handoff::control::Control;
use handoff::proto::wire::Status;
use handoff::sys::process::{PidFd, Signal};

use crate::common::load::{Answer, Connection, Counts, Load, Plan};
use crate::common::said::Said;
use crate::common::{HANDOFF, Kvd, PATIENCE, eventually, has_tool, wait_for_exit};
use crate::scripts;

/// What reads a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Dash,
    Bash,
    Execline,
}

impl Way {
    pub fn program(self) -> &'static str {
        match self {
            Self::Dash => "dash",
            Self::Bash => "bash",
            Self::Execline => "execlineb",
        }
    }

    /// Says loudly that a test is skipped where it is not there, and fails in CI.
    pub fn is_there(self) -> bool {
        let mut probe = Command::new(self.program());
        let end = if self == Self::Execline { "exit 0" } else { "exit" };
        has_tool(self.program(), probe.args(["-c", end]))
    }
}

/// A kvd under load, and what it takes to deploy another.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub first: Kvd,
    way: Way,
    script: PathBuf,
    load: Option<Load>,
}

impl Rig {
    /// None where the script's interpreter is missing, which was said.
    pub fn start(way: Way, script: &str, args: &[&str]) -> Option<Self> {
        if !way.is_there() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("with a space ").tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(HANDOFF, bin.join("handoff")).unwrap();
        if way != Way::Execline {
            // The script calls itself by `sh`.
            let shell = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(way.program()));
            symlink(shell.iter().find(|path| path.exists()).unwrap(), bin.join("sh")).unwrap();
        }
        let args: Vec<&str> = ["--version-label", "v1"].iter().chain(args).copied().collect();
        let first = Kvd::start(&dir.path().join("data"), &args);
        let load = Some(Load::start(&Plan::new(first.addr, 3)).unwrap());
        let rig = Self { dir, first, way, script: scripts().join(script), load };
        assert!(rig.load.as_ref().unwrap().each_is_served(Instant::now() + PATIENCE));
        Some(rig)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the script's command, with nothing after its name yet.
    pub fn script(&self) -> Command {
        self.script_at(&self.script)
    }

    /// As [`script`](Self::script), for one that was copied to another place.
    pub fn script_at(&self, script: &Path) -> Command {
        // A shell in the background has children that ignore Ctrl-C, and tests may run there.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,HUP,TERM", self.way.program()]).arg(script);
        command
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display()))
            .env("HANDOFF_CONTROL", self.path("data/control"))
            .env("HANDOFF_JOURNAL", self.path("journal"))
            .env_remove("HANDOFF_LOG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Adds the successor and its arguments.
    pub fn successor(&self, command: &mut Command, label: &str, args: &[&str]) {
        command.args([HANDOFF, "kvd", "--listen", "127.0.0.1:0", "--version-label", label, "--data-dir"]);
        command.arg(self.path("data")).args(args);
    }

    /// Returns the command of a deploy.
    pub fn deploy(&self, label: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = self.script();
        self.successor(&mut command, label, args);
        command.envs(env.iter().copied());
        command
    }

    /// Returns a handoff command.
    pub fn handoff(&self, args: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command.args(args).env("HANDOFF_CONTROL", self.path("data/control"));
        command.env("HANDOFF_JOURNAL", self.path("journal")).stdin(Stdio::null());
        command
    }

    /// Deploys, and expects an exit code, and a part of what is said.
    #[track_caller]
    pub fn expect(&self, label: &str, fault: &[&str], env: &[(&str, &str)], code: i32, part: &str) -> Said {
        let args: Vec<&str> = fault.iter().flat_map(|fault| ["--fail", fault]).collect();
        expect(Said::of(self.deploy(label, &args, env)), code, part)
    }

    /// One serves, it is this one, it alone has the lock, and every client gets answers.
    #[track_caller]
    pub fn expect_serving(&self, label: &str) {
        eventually(&format!("{label} to serve"), || {
            let serving = |status: Status| {
                status.role == "incumbent" && status.phase == "serving" && status.handoff.is_none()
            };
            self.status().is_some_and(serving) && label_at(self.first.addr).as_deref() == Some(label)
        });
        let known = Said::of(self.handoff(&["lock", "--who", "--json", self.path("data").to_str().unwrap()]));
        assert_eq!(known.json()["holders"].as_array().map(Vec::len), Some(1), "{known:?}");
        let load = self.load.as_ref().unwrap();
        assert!(load.each_is_served(Instant::now() + PATIENCE), "{:?}", load.counts());
    }

    /// Ends the load, and reads back all that was acknowledged.
    #[track_caller]
    pub fn expect_nothing_lost(&mut self) -> Counts {
        let ledger = self.load.take().unwrap().stop();
        let found = ledger.read_back(self.first.addr).unwrap();
        assert!(found.lost == 0 && found.checked > 0, "{found}");
        assert_eq!(ledger.counts.contradictions, 0, "{:?}", ledger.counts);
        ledger.counts
    }

    /// As [`expect_nothing_lost`](Self::expect_nothing_lost), and no client has noticed anything.
    #[track_caller]
    pub fn expect_clean(&mut self) {
        let counts = self.expect_nothing_lost();
        assert_eq!(counts.disturbances(), 0, "{counts:?}");
    }

    pub fn status(&self) -> Option<Status> {
        status(&self.path("data/control"))
    }

    pub fn journal(&self) -> String {
        Said::of(self.handoff(&["journal", "show"])).expect(0).out
    }

    /// Starts a deploy that stops before the handoff command that begins with these words.
    pub fn pause(&self, label: &str, before: &str, env: &[(&str, &str)]) -> Paused {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        let gate = dir.path().join("gate");
        assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
        let wrapper = dir.path().join("handoff");
        let pausing = format!(
            "#!/bin/sh\ncase \"$* \" in \"{before} \"*) if mkdir '{0}/reached' 2>/dev/null; then read -r _ <'{0}/gate'; fi ;; esac\n\
             exec '{HANDOFF}' \"$@\"\n",
            dir.path().display()
        );
        fs::write(&wrapper, pausing).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&wrapper).status().unwrap().success());
        let mut command = self.deploy(label, &[], env);
        let bin = self.path("bin").display().to_string();
        command.env("PATH", format!("{}:{bin}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display()));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let reached = dir.path().join("reached");
        eventually(&format!("the step {before}"), || reached.exists());
        Paused { child, dir }
    }

    /// Starts a deploy, and waits until the daemon that answers says that it is in this phase.
    pub fn until(&self, phase: &str, mut command: Command) -> Child {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually(&format!("the phase {phase}"), || {
            self.status().is_some_and(|status| status.phase == phase)
        });
        child
    }
}

impl Drop for Rig {
    /// A successor is nobody's child here.
    fn drop(&mut self) {
        end_all(&self.path("data/control"));
    }
}

/// Kills whoever serves at a control path, and who stands by.
pub fn end_all(control: &Path) {
    for _ in 0..3 {
        let Some(status) = status(control) else { return };
        for process in status.handoff.iter().flat_map(|h| [&h.incumbent, &h.successor]).flatten() {
            kill(process.pid);
        }
        kill(status.process.pid);
    }
}

pub fn kill(pid: u32) {
    if let Ok(process) = PidFd::open(pid) {
        // It may have ended already.
        let _ = process.signal(Signal::SIGKILL);
        let _ = process.wait_dead(Instant::now() + PATIENCE);
    }
}

pub fn status(control: &Path) -> Option<Status> {
    let deadline = Instant::now() + Duration::from_secs(5);
    Control::connect(control, "test", deadline).ok()?.status(deadline).ok()
}

/// Asks the store itself who it is.
pub fn label_at(addr: SocketAddr) -> Option<String> {
    let mut connection = Connection::open(addr, PATIENCE).ok()?;
    let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).ok()? else { return None };
    let info = String::from_utf8(info).unwrap();
    Some(info.lines().find_map(|line| line.strip_prefix("build_id:"))?.trim().to_owned())
}

#[track_caller]
pub fn expect(said: Said, code: i32, part: &str) -> Said {
    assert_eq!(said.code, code, "{said:#?}");
    assert!(said.out.contains(part) || said.err.contains(part), "no {part:?} in {said:#?}");
    said
}

/// Sends a signal to a whole process group, as a terminal does.
pub fn signal_group(child: &Child, name: &str) {
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-s", name, "--", &group]).status().unwrap().success());
}

/// A deploy that stands before one of its steps.
pub struct Paused {
    pub child: Child,
    dir: tempfile::TempDir,
}

impl Paused {
    /// Lets it go on.
    pub fn go(&self) {
        let mut gate = fs::OpenOptions::new().write(true).open(self.dir.path().join("gate")).unwrap();
        gate.write_all(b"\n").unwrap();
    }

    /// Returns the process of the chain.
    pub fn chain(&self) -> u32 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Waits for its end by itself.
    pub fn said(self) -> Said {
        Said::by(self.child)
    }

    /// Waits for its end by a signal.
    pub fn killed(mut self) -> Option<i32> {
        let status: ExitStatus = wait_for_exit(&mut self.child);
        status.signal()
    }
}
