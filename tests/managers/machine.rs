//! A machine with a systemd of its own, in namespaces: the units of `scripts/systemd` are installed in it as they are shipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use handoff::control::Control;
use handoff::proto::wire::Status;

use crate::common::load::{Answer, Connection, Counts, Load, Plan};
use crate::common::said::Said;
use crate::common::{HANDOFF, PATIENCE, eventually, has_tool};

/// Where the socket unit listens, in the machine's own network.
const ADDR: &str = "127.0.0.1:6379";

/// Returns where the units are.
pub fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd")
}

/// The machine, which is off when this is dropped.
pub struct Machine {
    dir: tempfile::TempDir,
    unshare: Child,
    init: u32,
    load: Option<Load>,
}

impl Machine {
    /// Boots one. None where that cannot be done here, which was said.
    pub fn boot() -> Option<Self> {
        if !is_possible() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("handoff-systemd-").tempdir().unwrap();
        fs::create_dir(dir.path().join("cgroup")).unwrap();
        let said = fs::File::create(dir.path().join("said")).unwrap();
        let mut command = enter();
        command.args(["sh", "-c", include_str!("boot.sh"), "sh"]).arg(dir.path()).arg(HANDOFF).arg(units());
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let unshare = command.spawn().unwrap();
        let mut this = Self { dir, unshare, init: 0, load: None };
        this.await_boot();
        Some(this)
    }

    fn await_boot(&mut self) {
        eventually("the first process", || {
            let path = format!("/proc/{0}/task/{0}/children", self.unshare.id());
            let children = fs::read_to_string(path).unwrap_or_default();
            self.init = children.trim().parse().unwrap_or(0);
            assert!(self.unshare.try_wait().unwrap().is_none(), "it does not boot: {}", self.log());
            self.init != 0
        });
        eventually("systemd", || {
            assert!(self.unshare.try_wait().unwrap().is_none(), "it does not boot: {}", self.log());
            let comm = fs::read_to_string(format!("/proc/{}/comm", self.init)).unwrap_or_default();
            comm.trim() == "systemd" && self.systemctl(&["is-system-running"]).out.trim() == "running"
        });
    }

    /// Returns a command that runs in the machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--cgroup",
        ]);
        command.args(words).env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null());
        command
    }

    pub fn systemctl(&self, args: &[&str]) -> Said {
        Said::of(self.command(&[&["systemctl"], args].concat()))
    }

    /// Runs systemctl, which must succeed.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) {
        let said = self.systemctl(args);
        assert_eq!(said.code, 0, "systemctl {args:?}: {said:?}; {}", self.log());
    }

    /// Returns what systemd knows of the service.
    pub fn show(&self, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, "kvd.service"]).out.trim().to_owned()
    }

    pub fn main_pid(&self) -> u32 {
        self.show("MainPID").parse().unwrap()
    }

    #[track_caller]
    pub fn await_shown(&self, property: &str, is_right: impl Fn(&str) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let shown = self.show(property);
            if is_right(&shown) {
                return;
            }
            assert!(Instant::now() < until, "{property} is {shown:?}: {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Adds to the unit, as a file beside it.
    pub fn drop_in(&self, text: &str) {
        let dir = self.path("/etc/systemd/system/kvd.service.d");
        fs::create_dir_all(&dir).unwrap();
        let number = fs::read_dir(&dir).unwrap().count();
        fs::write(dir.join(format!("{number}.conf")), text).unwrap();
        self.ctl(&["daemon-reload"]);
    }

    /// Replaces text in the supervisor's configuration.
    #[track_caller]
    pub fn configure(&self, from: &str, to: &str) {
        let path = self.path("/etc/kv/handoff.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "no {from:?} in {text}");
        let beside = path.with_extension("beside");
        fs::write(&beside, text.replace(from, to)).unwrap();
        fs::rename(beside, path).unwrap();
    }

    /// Returns where a file of the machine is for this process.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Begins a load from within the machine's network.
    pub fn begin_load(&mut self) {
        self.load = Some(self.inside(|| Load::start(&Plan::new(ADDR.parse().unwrap(), 3)).unwrap()));
        self.expect_served();
    }

    /// Runs something in a thread that is in the machine's network, as are those that it starts.
    fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let net = fs::File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(&net, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                run()
            });
            thread.join().unwrap()
        })
    }

    #[track_caller]
    pub fn expect_served(&self) {
        let load = self.load.as_ref().unwrap();
        assert!(load.each_is_served(Instant::now() + PATIENCE), "{:?}; {}", load.counts(), self.log());
    }

    /// Ends the load, and demands that nothing that was acknowledged is lost and that no client was refused.
    #[track_caller]
    pub fn expect_none_refused(&mut self) -> Counts {
        self.expect_served();
        let ledger = self.load.take().unwrap().stop();
        let found = self.inside(|| ledger.read_back(ADDR.parse().unwrap()).unwrap());
        assert!(found.lost == 0 && found.checked > 0, "{found}; {}", self.log());
        let counts = ledger.counts;
        let never = (counts.refused, counts.timed_out, counts.errors, counts.contradictions);
        assert_eq!(never, (0, 0, 0, 0), "{counts:?}; {}", self.log());
        counts
    }

    /// As [`expect_none_refused`](Self::expect_none_refused), and no client has noticed anything.
    #[track_caller]
    pub fn expect_clean(&mut self) {
        let counts = self.expect_none_refused();
        assert_eq!(counts.disturbances(), 0, "{counts:?}; {}", self.log());
    }

    /// Asks the store itself who it is: its pid in the machine, and its label.
    pub fn who_serves(&self) -> Option<(u32, String)> {
        self.inside(|| {
            let mut connection = Connection::open(ADDR.parse().unwrap(), PATIENCE).ok()?;
            let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).ok()? else { return None };
            let info = String::from_utf8(info).ok()?;
            let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            Some((field("pid:")?.parse().ok()?, field("build_id:")?.to_owned()))
        })
    }

    pub fn status(&self) -> Option<Status> {
        let deadline = Instant::now() + PATIENCE;
        Control::connect(self.path("/run/kv/control"), "test", deadline).ok()?.status(deadline).ok()
    }

    /// Waits until a daemon with this label serves and no handoff goes on, and returns its pid in the machine.
    #[track_caller]
    pub fn settle(&self, label: &str) -> u32 {
        let mut pid = 0;
        let mut found = None;
        let until = Instant::now() + PATIENCE;
        while pid == 0 {
            assert!(Instant::now() < until, "{label} does not serve: {found:?}; {}", self.log());
            let status = self.status();
            let rests =
                status.as_ref().is_some_and(|status| status.phase == "serving" && status.handoff.is_none());
            let serves = if rests { self.who_serves() } else { None };
            match &serves {
                Some((serving, found)) if found == label => pid = *serving,
                _ => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
            found = Some((status, serves));
        }
        pid
    }

    /// Returns the processes of the service, by their pids in the machine.
    pub fn processes(&self) -> Vec<u32> {
        let path = format!("/sys/fs/cgroup{}/cgroup.procs", self.show("ControlGroup"));
        let said = Said::of(self.command(&["cat", &path]));
        said.out.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Returns all processes of the machine that run handoff, by their pids in it.
    pub fn all_handoffs(&self) -> Vec<u32> {
        let pids = fs::read_dir(self.path("/proc")).unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let comm =
            |pid: &u32| fs::read_to_string(self.path(&format!("/proc/{pid}/comm"))).unwrap_or_default();
        pids.filter(|pid| comm(pid).trim() == "handoff").collect()
    }

    /// Returns the pid by which this process knows one of the machine's.
    #[track_caller]
    pub fn pid_outside(&self, inside: u32) -> u32 {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init);
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            namespace(*pid) == own
                && numbers
                    .is_some_and(|numbers| numbers.split_whitespace().last() == Some(&inside.to_string()))
        };
        pids.find(is_it).unwrap_or_else(|| panic!("no process {inside}: {}", self.log()))
    }

    #[track_caller]
    pub fn await_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no {text:?} in {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// What systemd, the supervisor and the daemons have said.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!("{}\n{}", read("said"), read("var/lib/said"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process all others end.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let name = self.dir.path().file_name().unwrap();
        let mut command = Command::new("unshare");
        let tidy = "mount -t cgroup2 cgroup2 \"$1\" && cd \"$1$(sed -n 's/^0:://p' /proc/self/cgroup)\" && \
                    until find \"$2\" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.02; done";
        command
            .args(["--mount", "timeout", "60", "sh", "-c", tidy, "sh"])
            .arg(self.dir.path().join("cgroup"))
            .arg(name);
        let tidied = command.status().unwrap();
        assert!(tidied.success() || std::thread::panicking(), "a control group was left");
    }
}

fn is_possible() -> bool {
    let mut probe = enter();
    probe.args(["sh", "-c", "mount -t cgroup2 cgroup2 /mnt && ip link set lo up && test -x /lib/systemd/systemd && nsenter --version"]);
    has_tool(
        "systemd, ip, nsenter, and leave to make namespaces and to mount a cgroup2 file system",
        &mut probe,
    )
}

/// Returns the command that runs another one in namespaces of its own, with whose first process all others end.
pub fn enter() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
}
