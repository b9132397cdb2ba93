//! The run scripts that do without `handoff supervise`, under runit and s6.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::common::load::{Counts, Load, Plan};
use crate::common::said::Said;
use crate::common::{HANDOFF, PATIENCE, eventually, has_tool, wait_for_exit};
use crate::rig::{end_all, kill, label_at, status};
use crate::scripts;

macro_rules! each_supervisor {
    ($($name:ident)*) => {
        mod runit { $(#[test] fn $name() { super::$name(super::RUNIT) })* }
        mod s6 { $(#[test] fn $name() { super::$name(super::S6) })* }
    };
}

each_supervisor! {
    a_program_that_was_swapped_is_taken_over_by_the_run_script
    a_daemon_that_is_killed_is_started_again_with_all_its_data
    a_service_goes_down_on_term_and_up_again
    a_daemon_that_lost_its_supervisor_is_taken_over_by_the_next_one
    a_trial_that_is_undone_leaves_the_supervised_pid
}

/// A supervisor's tools.
struct Tools {
    /// The directory of its run script.
    name: &'static str,
    package: &'static str,
    /// What supervises: a service, or all in a directory.
    supervise: &'static str,
    /// What it is started for.
    dir: &'static str,
}

const RUNIT: Tools = Tools { name: "runit", package: "runit", supervise: "runsv", dir: "services/kvd" };
const S6: Tools = Tools { name: "s6", package: "s6", supervise: "s6-svscan", dir: "services" };

impl Tools {
    fn are_there(&self) -> bool {
        let path = format!("command -v {} execlineb", self.supervise);
        has_tool(self.package, Command::new("sh").args(["-c", &path]))
    }
}

/// The service, supervised; and a load.
struct Service {
    dir: tempfile::TempDir,
    tools: Tools,
    supervisor: Child,
    load: Option<Load>,
    addr: std::net::SocketAddr,
}

impl Service {
    fn start(tools: Tools) -> Option<Self> {
        if !tools.are_there() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("with a space ").tempdir().unwrap();
        let service = dir.path().join("services/kvd");
        fs::create_dir(dir.path().join("services")).unwrap();
        copy(&scripts().join(tools.name).join("kvd-chain"), &service);
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(HANDOFF, dir.path().join("bin/handoff")).unwrap();
        let addr = free_address();
        let conf = format!(
            "data='{}'\nlisten=resp={addr}\nprogram='handoff kvd --listen {addr} --version-label v1'\n",
            dir.path().join("data").display()
        );
        fs::write(service.join("conf"), conf).unwrap();
        let supervisor = supervise(&tools, dir.path());
        let mut this = Self { dir, tools, supervisor, load: None, addr };
        this.expect_supervised("v1");
        this.load = Some(Load::start(&Plan::new(addr, 3)).unwrap());
        this.expect_served();
        Some(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn handoff(&self, args: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command.args(args).env("HANDOFF_CONTROL", self.path("data/control")).stdin(Stdio::null());
        command
    }

    fn swap_command(&self, label: &str, options: &[&str], fault: &[&str]) -> Command {
        let mut command = self.handoff(&["swap"]);
        command.args(options).arg(HANDOFF).args(["kvd", "--version-label", label]);
        command.args(["--listen", &self.addr.to_string(), "--data-dir"]).arg(self.path("data")).args(fault);
        command
    }

    fn swap(&self, label: &str, fault: &[&str]) -> Said {
        Said::of(self.swap_command(label, &[], fault))
    }

    /// Returns the pid that the supervisor watches, if it is up.
    fn pid(&self) -> Option<u32> {
        let service = self.path("services/kvd");
        if self.tools.name == "runit" {
            return fs::read_to_string(service.join("supervise/pid")).ok()?.trim().parse().ok();
        }
        let output = Command::new("s6-svstat").args(["-o", "pid"]).arg(&service).output().unwrap();
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    }

    /// Waits until the pid that the supervisor watches is the one that serves, with this label.
    #[track_caller]
    fn expect_supervised(&self, label: &str) -> u32 {
        let mut pid = 0;
        eventually(&format!("{label} under the supervisor; {}", self.log()), || {
            let Some(status) = status(&self.path("data/control")) else { return false };
            pid = status.process.pid;
            let serves = status.phase == "serving" && status.handoff.is_none();
            serves && self.pid() == Some(pid) && label_at(self.addr).as_deref() == Some(label)
        });
        pid
    }

    #[track_caller]
    fn expect_served(&self) {
        let load = self.load.as_ref().unwrap();
        assert!(load.each_is_served(Instant::now() + PATIENCE), "{:?}; {}", load.counts(), self.log());
    }

    #[track_caller]
    fn expect_nothing_lost(&mut self) -> Counts {
        let ledger = self.load.take().unwrap().stop();
        let found = ledger.read_back(self.addr).unwrap();
        assert!(found.lost == 0 && found.checked > 0, "{found}");
        assert_eq!(ledger.counts.contradictions, 0, "{:?}", ledger.counts);
        ledger.counts
    }

    fn control(&self, runit: &[&str], s6: &[&str]) {
        let (program, words) = if self.tools.name == "runit" { ("sv", runit) } else { ("s6-svc", s6) };
        let said = Command::new(program).args(words).arg(self.path("services/kvd")).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    }

    /// What the daemon has said, as its logger wrote it, and what the supervisor has said.
    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        read("services/kvd/log/main/current") + &read("said")
    }
}

fn a_program_that_was_swapped_is_taken_over_by_the_run_script(tools: Tools) {
    let Some(mut service) = Service::start(tools) else { return };
    let first = service.expect_supervised("v1");
    for label in ["v2", "v3"] {
        let said = service.swap(label, &[]);
        assert!(said.code == 0 && said.out.starts_with("committed "), "{said:?}");
        let pid = service.expect_supervised(label);
        assert_ne!(pid, first);
        service.expect_served();
    }
    eventually("its word in the log", || service.log().contains("somebody serves already: taking over"));
    // A release that fails is no matter for the supervisor.
    let before = service.expect_supervised("v3");
    service.swap("v4", &["--fail", "unhealthy"]).expect(3);
    assert_eq!(service.expect_supervised("v3"), before);
    let counts = service.expect_nothing_lost();
    assert_eq!(counts.disturbances(), 0, "{counts:?}");
}

fn a_daemon_that_is_killed_is_started_again_with_all_its_data(tools: Tools) {
    let Some(mut service) = Service::start(tools) else { return };
    service.swap("v2", &[]).expect(0);
    let before = service.expect_supervised("v2");
    kill(before);
    // What was deployed last, not what the run script names for the first start.
    assert_ne!(service.expect_supervised("v2"), before);
    service.expect_served();
    service.expect_nothing_lost();
}

fn a_service_goes_down_on_term_and_up_again(tools: Tools) {
    let Some(mut service) = Service::start(tools) else { return };
    if service.tools.name == "s6" {
        let ready =
            Command::new("s6-svwait").args(["-U", "-t", "60000"]).arg(service.path("services/kvd")).status();
        assert!(ready.unwrap().success(), "{}", service.log());
    }
    service.control(&["-w", "30", "down"], &["-wD", "-T", "30000", "-d"]);
    eventually("its last words in the log", || service.log().contains("asked to stop: SIGTERM"));
    assert!(status(&service.path("data/control")).is_none());
    service.control(&["-w", "30", "up"], &["-wu", "-T", "30000", "-u"]);
    service.expect_supervised("v1");
    service.expect_served();
    service.expect_nothing_lost();
}

fn a_daemon_that_lost_its_supervisor_is_taken_over_by_the_next_one(tools: Tools) {
    let Some(mut service) = Service::start(tools) else { return };
    let before = service.expect_supervised("v1");
    kill(parent_of(before));
    if service.tools.name == "runit" {
        // Here it is this test that watches the supervisor.
        wait_for_exit(&mut service.supervisor);
        assert_eq!(status(&service.path("data/control")).unwrap().process.pid, before);
        service.supervisor = supervise(&service.tools, service.dir.path());
    }
    let control = service.path("data/control");
    eventually("the takeover", || status(&control).is_some_and(|status| status.process.pid != before));
    service.expect_supervised("v1");
    service.expect_served();
    let counts = service.expect_nothing_lost();
    assert_eq!(counts.disturbances(), 0, "{counts:?}");
}

fn a_trial_that_is_undone_leaves_the_supervised_pid(tools: Tools) {
    let Some(mut service) = Service::start(tools) else { return };
    let before = service.expect_supervised("v1");
    let mut swap = service.swap_command("v2", &["--bake", "10m"], &[]);
    let child = swap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let control = service.path("data/control");
    eventually("the trial", || status(&control).is_some_and(|status| status.phase == "on-trial"));
    Said::of(service.handoff(&["abort"])).expect(0);
    Said::by(child).expect(3);
    assert_eq!(service.expect_supervised("v1"), before);
    service.expect_served();
    let counts = service.expect_nothing_lost();
    assert_eq!(counts.disturbances(), 0, "{counts:?}");
}

impl Drop for Service {
    /// First the one who would start it again.
    fn drop(&mut self) {
        if self.tools.name == "s6" {
            // It ends its children, too.
            let _ = Command::new("s6-svscanctl").arg("-t").arg(self.path("services")).status();
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && matches!(self.supervisor.try_wait(), Ok(None)) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        end_all(&self.dir.path().join("data/control"));
    }
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

/// Starts the supervisor, with the little environment that one has.
fn supervise(tools: &Tools, dir: &Path) -> Child {
    let said = fs::OpenOptions::new().create(true).append(true).open(dir.join("said")).unwrap();
    let mut command = Command::new(tools.supervise);
    command
        .arg(dir.join(tools.dir))
        .env_clear()
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.join("bin").display()))
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .process_group(0);
    command.spawn().unwrap()
}

/// Returns an address that was free a moment ago: a run script needs a fixed one.
fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}
