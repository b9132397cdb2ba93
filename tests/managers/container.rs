//! As the first process of a pid namespace, which is what a container's command is.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use handoff::control::Control;

use crate::common::load::{Load, Plan};
use crate::common::said::Said;
use crate::common::{HANDOFF, Lines, PATIENCE, eventually, has_tool, wait_for_exit};
use crate::label_of;

/// A pid namespace with a supervisor as its first process.
struct Container {
    dir: tempfile::TempDir,
    unshare: Child,
    stderr: Lines,
    first: u32,
    addr: std::net::SocketAddr,
}

impl Container {
    /// None where there may be no namespaces, which was said.
    fn start(binary: &str, args: &[&str], tables: &str) -> Option<Self> {
        let mut probe = Self::enter();
        if !has_tool("unshare, and leave to make namespaces", probe.arg("true")) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = dir.path().display();
        for name in ["run", "data"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), std::os::unix::fs::PermissionsExt::from_mode(0o700))
                .unwrap();
        }
        let config = format!(
            "control_socket = \"{at}/run/control\"\ndata_dir = \"{at}/data\"\nbinary = \"{binary}\"\nargs = {args:?}\n\
             [[listeners]]\nname = \"resp\"\naddr = \"{addr}\"\n{tables}"
        );
        fs::write(dir.path().join("handoff.toml"), config).unwrap();
        let mut command = Self::enter();
        command.arg(HANDOFF).args(["supervise", "--config"]).arg(dir.path().join("handoff.toml"));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut unshare = command.spawn().unwrap();
        let stderr = Lines::of(unshare.stderr.take().unwrap());
        let mut this = Self { dir, unshare, stderr, first: 0, addr };
        this.first = this.find_first();
        this.settle("v1");
        Some(this)
    }

    fn enter() -> Command {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
    }

    fn find_first(&self) -> u32 {
        let mut first = None;
        eventually("the first process", || {
            first = children(self.unshare.id()).first().copied();
            first.is_some()
        });
        first.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn label(&self) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let status =
            Control::connect(self.path("run/control"), "test", deadline).ok()?.status(deadline).ok()?;
        let rests = status.phase == "serving" && status.handoff.is_none();
        rests.then(|| label_of(&status.build_id))
    }

    #[track_caller]
    fn settle(&self, label: &str) {
        eventually(&format!("{label} to serve; {:?}", self.stderr.so_far()), || {
            self.label().as_deref() == Some(label)
        });
    }

    fn swap(&self, label: &str, faults: &[&str]) -> Said {
        let mut command = Command::new(HANDOFF);
        command.args(["trigger", "--queue", "--trigger"]).arg(self.path("run/trigger"));
        command.args([HANDOFF, "kvd", "--version-label", label]);
        Said::of({
            command.args(faults.iter().flat_map(|fault| ["--fail", fault])).stdin(Stdio::null());
            command
        })
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.first.to_string()]).status().unwrap().success());
    }

    /// Waits for the end of the supervisor, which unshare passes on.
    fn end(mut self) -> ExitStatus {
        wait_for_exit(&mut self.unshare)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With its first process all others end.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

const V1: [&str; 3] = ["kvd", "--version-label", "v1"];

#[test]
fn the_first_process_swaps_stops_on_term_and_loses_nothing() {
    let Some(container) = Container::start(HANDOFF, &V1, "") else { return };
    let load = Load::start(&Plan::new(container.addr, 3)).unwrap();
    for label in ["v2", "v3"] {
        container.swap(label, &[]).expect(0);
        container.settle(label);
        assert!(load.each_is_served(Instant::now() + PATIENCE));
    }
    container.swap("v4", &["unhealthy"]).expect(3);
    container.settle("v3");
    assert!(load.each_is_served(Instant::now() + PATIENCE));
    let ledger = load.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}; {:?}", ledger.counts, container.stderr.so_far());
    assert_eq!(ledger.read_back(container.addr).unwrap().lost, 0);
    // Nobody is left of those who served before, and nobody of the first process's is unburied.
    eventually("one child", || children(container.first).len() == 1);
    container.signal("TERM");
    assert_eq!(container.end().code(), Some(0));
}

/// The daemon starts others that nobody waits for: the shell becomes the daemon, and does not know them.
#[test]
fn orphans_are_buried_and_those_that_live_do_not_keep_it() {
    let script =
        format!("for i in 1 2 3; do (sleep 0.0$i & ) ; done; (setsid sleep 600 &); exec '{HANDOFF}' \"$@\"");
    let args = [&["-c", &script, "sh"], &V1[..]].concat();
    let Some(container) = Container::start("/bin/sh", &args, "") else { return };
    // The one that sleeps has come to the first process, and the three that ended are gone.
    eventually("two children, none of them dead", || {
        let children = children(container.first);
        let is_alive = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        children.len() == 2 && children.iter().all(is_alive)
    });
    container.signal("TERM");
    assert_eq!(container.end().code(), Some(0));
}

/// The first process of a namespace has no default for signals: what should kill it must still end it.
#[test]
fn a_daemon_that_dies_ends_the_container_with_what_it_died_of() {
    let args = [&V1[..], &["--fail", "crash-after-serving-ms=300"]].concat();
    let Some(container) = Container::start(HANDOFF, &args, "[restart]\npolicy = \"never\"\n") else { return };
    let first = container.first;
    let status = container.end();
    assert!(!status.success(), "{status:?}");
    assert!(!PathBuf::from(format!("/proc/{first}/exe")).exists());
}
