//! A service of `scripts/`, supervised by a service manager, and under load.

use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::sys::process::{PidFd, Signal};

use crate::common::load::{Counts, Load, Plan};
use crate::common::said::Said;
use crate::common::{HANDOFF, PATIENCE, eventually, has_tool};
use crate::look::{self, Settled};
use crate::watch::Watch;

/// A service manager's tools.
#[derive(Clone, Copy)]
pub struct Tools {
    /// The directory of its service in `scripts/`, and the Debian package.
    pub name: &'static str,
    /// What supervises: a service, or all in a directory.
    supervise: &'static str,
    /// What it is started for.
    of: &'static str,
}

pub const RUNIT: Tools = Tools { name: "runit", supervise: "runsv", of: "services/kvd" };
pub const S6: Tools = Tools { name: "s6", supervise: "s6-svscan", of: "services" };

impl Tools {
    fn are_there(self) -> bool {
        has_tool(self.name, Command::new("sh").args(["-c", &format!("command -v {}", self.supervise)]))
    }

    pub fn is_s6(self) -> bool {
        self.name == "s6"
    }
}

/// What is said in handoff.toml that the one of `scripts/` does not say.
pub struct Setup<'a> {
    pub label: &'a str,
    pub faults: &'a [&'a str],
    pub policy: &'a str,
    /// Keys before the first table, instead of those that it has.
    pub keys: &'a str,
    /// Keys of `[restart]`.
    pub restart: &'a str,
    /// Further tables.
    pub tables: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { label: "v1", faults: &[], policy: "on-failure", keys: "", restart: "", tables: "" }
    }
}

/// The service, supervised; a load; and somebody who watches.
pub struct Service {
    dir: tempfile::TempDir,
    pub tools: Tools,
    manager: Option<Child>,
    load: Option<Load>,
    watch: Option<Watch>,
    pub addr: SocketAddr,
}

impl Service {
    /// Starts it, and waits until it serves under load. None where the service manager is missing, which was said.
    pub fn start(tools: Tools, setup: &Setup<'_>) -> Option<Self> {
        let mut this = Self::supervised(tools, setup)?;
        this.settle();
        this.begin_load();
        Some(this)
    }

    /// As [`start`](Self::start), and waits for nothing.
    pub fn supervised(tools: Tools, setup: &Setup<'_>) -> Option<Self> {
        if !tools.are_there() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("with a space ").tempdir().unwrap();
        let addr = own_address();
        let mut this = Self { dir, tools, manager: None, load: None, watch: None, addr };
        fs::create_dir(this.path("services")).unwrap();
        fs::create_dir(this.path("bin")).unwrap();
        symlink(HANDOFF, this.path("bin/handoff")).unwrap();
        let service = this.service();
        copy(&scripts(tools).join("kvd"), &service);
        for script in ["run", "finish", "check"].map(|name| service.join(name)) {
            if script.exists() {
                this.adapt(&script);
            }
        }
        this.configure(setup);
        this.manage();
        Some(this)
    }

    /// Starts a load, and the watch over it.
    pub fn begin_load(&mut self) {
        self.load = Some(Load::start(&Plan::new(self.addr, 3)).unwrap());
        self.expect_served();
        self.watch = Some(Watch::start(self));
    }

    /// Does what its comments say: names directories of this test.
    fn adapt(&self, script: &Path) {
        let text = fs::read_to_string(script).unwrap();
        let [run, data] = ["run", "data"].map(|name| self.path(name).display().to_string());
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for line in &mut lines {
            *line = match line.as_str() {
                "run=/run/kv" => format!("run='{run}'"),
                "data=/var/lib/kv" => format!("data='{data}'"),
                "control=/run/kv/control" => format!("control='{run}/control'"),
                line => line.replace(" /run/kv/control ", &format!(" '{run}/control' ")),
            };
        }
        let adapted = lines.join("\n") + "\n";
        assert!(!adapted.lines().any(|line| !line.starts_with('#') && line.contains("/run/kv")), "{adapted}");
        // As it is: with its mode.
        fs::write(script, adapted).unwrap();
    }

    /// Writes handoff.toml, beside and by rename: it may be read at any moment.
    pub fn configure(&self, setup: &Setup<'_>) {
        let shipped = fs::read_to_string(scripts(self.tools).join("kvd/handoff.toml")).unwrap();
        let key = |line: &str| line.split_once(" = ").map(|(key, _)| format!("{key} = "));
        let is_given = |line: &&str| {
            key(line).is_some_and(|key| setup.keys.lines().any(|given| given.starts_with(&key)))
        };
        let shipped: String =
            shipped.lines().filter(|line| !is_given(line)).map(|line| format!("{line}\n")).collect();
        let args = self.args(setup.label, setup.faults);
        let policy = format!("policy = \"{}\"\n{}", setup.policy, setup.restart);
        let adapted = [
            ("\"/run/kv/", format!("\"{}/", self.path("run").display())),
            ("\"/var/lib/kv\"", format!("\"{}\"", self.path("data").display())),
            ("args = [\"kvd\"]", format!("args = {args:?}\n{}", setup.keys)),
            ("policy = \"on-failure\"", policy),
            ("127.0.0.1:6379", self.addr.to_string()),
        ]
        .iter()
        .fold(shipped, |text, (shipped, own)| {
            assert!(text.contains(shipped), "no {shipped} in {text}");
            text.replace(shipped, own)
        });
        let beside = self.path("handoff.toml");
        fs::write(&beside, adapted + setup.tables).unwrap();
        fs::rename(beside, self.service().join("handoff.toml")).unwrap();
    }

    fn args(&self, label: &str, faults: &[&str]) -> Vec<String> {
        let args = ["kvd", "--version-label", label].map(str::to_owned);
        args.into_iter()
            .chain(faults.iter().flat_map(|fault| ["--fail".into(), (*fault).to_owned()]))
            .collect()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn service(&self) -> PathBuf {
        self.path("services/kvd")
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn control(&self) -> PathBuf {
        self.path("run/control")
    }

    pub fn trigger(&self) -> PathBuf {
        self.path("run/trigger")
    }

    /// Starts the service manager, with the little environment that one has.
    pub fn manage(&mut self) {
        let said = fs::OpenOptions::new().create(true).append(true).open(self.path("said")).unwrap();
        let mut command = Command::new(self.tools.supervise);
        command
            .arg(self.path(self.tools.of))
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display()))
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .process_group(0);
        self.manager = Some(command.spawn().unwrap());
    }

    /// Returns a handoff command, which finds its sockets in the environment.
    pub fn handoff(&self, args: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command.args(args).env("HANDOFF_CONTROL", self.control()).env("HANDOFF_TRIGGER", self.trigger());
        command.env("HANDOFF_JOURNAL", self.data().join("journal")).stdin(Stdio::null());
        command
    }

    /// Returns the command that asks for a swap to a program of this label.
    pub fn swap_command(&self, label: &str, options: &[&str], faults: &[&str]) -> Command {
        let mut command = self.handoff(&["trigger"]);
        command.args(options).arg(HANDOFF).args(self.args(label, faults));
        command
    }

    pub fn swap(&self, label: &str, faults: &[&str]) -> Said {
        Said::of(self.swap_command(label, &[], faults))
    }

    /// Begins a swap, and does not wait for its end.
    pub fn begin_swap(&self, label: &str, options: &[&str], faults: &[&str]) -> Child {
        let mut command = self.swap_command(label, options, faults);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until whoever answers at the control path is in this phase.
    #[track_caller]
    pub fn await_phase(&self, phase: &str) {
        eventually(&format!("the phase {phase}; {}", self.log()), || {
            look::status(&self.control()).is_some_and(|status| status.phase == phase)
        });
    }

    /// Returns the pid that the service manager watches, if the service is up.
    pub fn pid(&self) -> Option<u32> {
        let service = self.service();
        if !self.tools.is_s6() {
            return fs::read_to_string(service.join("supervise/pid")).ok()?.trim().parse().ok();
        }
        self.svstat("pid")?.parse().ok()
    }

    /// Returns what s6 knows of the service.
    pub fn svstat(&self, what: &str) -> Option<String> {
        let output = Command::new("s6-svstat").args(["-o", what]).arg(self.service()).output().unwrap();
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    }

    /// Returns whether the service manager has nothing to do for the service.
    pub fn is_down(&self) -> bool {
        if self.tools.is_s6() {
            return self.svstat("up,wantedup").as_deref() == Some("false false");
        }
        let stat = fs::read_to_string(self.service().join("supervise/stat")).unwrap_or_default();
        stat.trim() == "down"
    }

    /// Gives the service manager a command.
    #[track_caller]
    pub fn tell(&self, runit: &[&str], s6: &[&str]) {
        let (program, words) = if self.tools.is_s6() { ("s6-svc", s6) } else { ("sv", runit) };
        let said = Command::new(program).args(words).arg(self.service()).output().unwrap();
        assert!(said.status.success(), "{said:?}; {}", self.log());
    }

    /// Asks for a swap to what handoff.toml says.
    pub fn hup(&self) {
        self.tell(&["hup"], &["-h"]);
    }

    /// Stops the service, and waits until it is down.
    #[track_caller]
    pub fn down(&self) {
        self.tell(&["-w", "60", "down"], &["-wD", "-T", "60000", "-d"]);
    }

    pub fn up(&self) {
        self.tell(&["up"], &["-u"]);
    }

    /// Waits until everything is as it should be, and returns it.
    #[track_caller]
    pub fn settle(&self) -> Settled {
        self.settle_as("settled", |_| true)
    }

    /// As [`settle`](Self::settle), with this label.
    #[track_caller]
    pub fn settle_with(&self, label: &str) -> Settled {
        self.settle_as(label, |settled| settled.label == label)
    }

    #[track_caller]
    pub fn settle_as(&self, what: &str, is_right: impl Fn(&Settled) -> bool) -> Settled {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = look::settled(self);
            match found {
                Ok(settled) if is_right(&settled) => return settled,
                found => assert!(Instant::now() < until, "not {what}: {found:?}\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn expect_served(&self) {
        let load = self.load.as_ref().unwrap();
        assert!(load.each_is_served(Instant::now() + PATIENCE), "{:?}; {}", load.counts(), self.log());
    }

    /// Ends the load and the watch, and demands that no acknowledged write was lost, and that there never were two daemons.
    #[track_caller]
    pub fn expect_nothing_lost(&mut self) -> Counts {
        self.expect_served();
        let ledger = self.load.take().unwrap().stop();
        let found = ledger.read_back(self.addr).unwrap();
        assert!(found.lost == 0 && found.checked > 0, "{found}; {}", self.log());
        assert_eq!(ledger.counts.contradictions, 0, "{:?}; {}", ledger.counts, self.log());
        self.watch.take().unwrap().expect_one_daemon();
        for word in ["Address already in use", "EADDRINUSE", "panicked"] {
            assert!(!self.log().contains(word), "{word} in {}", self.log());
        }
        ledger.counts
    }

    /// As [`expect_nothing_lost`](Self::expect_nothing_lost), and no client has noticed anything.
    #[track_caller]
    pub fn expect_clean(&mut self) -> Counts {
        let counts = self.expect_nothing_lost();
        assert_eq!(counts.disturbances(), 0, "{counts:?}; {}", self.log());
        counts
    }

    /// As [`expect_nothing_lost`](Self::expect_nothing_lost), where who served was killed and the sockets were held.
    #[track_caller]
    pub fn expect_none_refused(&mut self) -> Counts {
        let counts = self.expect_nothing_lost();
        let never = (counts.refused, counts.timed_out, counts.errors);
        assert_eq!(never, (0, 0, 0), "{counts:?}; {}", self.log());
        counts
    }

    /// What the service has said, as its logger wrote it, and what the service manager has said.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        read("services/kvd/log/main/current") + &read("said")
    }

    #[track_caller]
    pub fn await_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no {text:?} in {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills who watches the service, and sees to it that somebody does again.
    pub fn kill_watcher(&mut self) {
        if self.tools.is_s6() {
            let all = look::processes(self.dir());
            let watches = |process: &&look::Process| process.words[..2] == ["s6-supervise", "kvd"];
            kill(all.iter().find(watches).unwrap().pid);
            return;
        }
        let mut manager = self.manager.take().unwrap();
        manager.kill().unwrap();
        manager.wait().unwrap();
        self.manage();
    }

    /// Kills everything, and takes away what a reboot takes away. The boot's id stays, which no test can change.
    pub fn lose_power(&mut self) {
        self.kill_all();
        fs::remove_dir_all(self.path("run")).unwrap();
    }

    /// All in the same moment, as much as can be; and again, since a service manager may just have started something.
    fn kill_all(&mut self) {
        loop {
            let mut left = look::processes(self.dir());
            left.sort_by_key(|process| {
                !process.words[0].starts_with("s6-") && !process.words[0].ends_with("runsv")
            });
            if left.is_empty() {
                break;
            }
            kill_at_once(&left.iter().map(|process| process.pid).collect::<Vec<_>>());
        }
        if let Some(mut manager) = self.manager.take() {
            // It was killed above.
            let _ = manager.wait();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Kills a process, if it is there, and waits until it has ended.
pub fn kill(pid: u32) {
    kill_at_once(&[pid]);
}

/// Kills several, as much in the same moment as can be.
pub fn kill_at_once(pids: &[u32]) {
    let all: Vec<PidFd> = pids.iter().filter_map(|pid| PidFd::open(*pid).ok()).collect();
    for process in &all {
        // As above.
        let _ = process.signal(Signal::SIGKILL);
    }
    for process in &all {
        let _ = process.wait_dead(Instant::now() + PATIENCE);
    }
}

pub fn signal(pid: u32, signal: Signal) {
    PidFd::open(pid).unwrap().signal(signal).unwrap();
}

fn scripts(tools: Tools) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(tools.name)
}

/// Copies a service directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copied = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &copied);
        } else {
            fs::copy(entry.path(), copied).unwrap();
        }
    }
}

/// Returns an address that is the service's own, also while it is down: of a network of sixteen million, and random.
fn own_address() -> SocketAddr {
    let [a, b, c, ..] = std::hash::RandomState::new().build_hasher().finish().to_ne_bytes();
    TcpListener::bind((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 0)).unwrap().local_addr().unwrap()
}
