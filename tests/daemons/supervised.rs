//! The same under runit and s6: `handoff supervise`, with a server under `handoff wrap` as its daemon. The service's pid stays, whatever is
//! swapped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};

use handoff::sys::process::{PidFd, Signal};

use crate::common::{HANDOFF, has_tool};
use crate::load::Plan;
use crate::servers::{gunicorn, nginx};
use crate::site::{Server, Site};
use crate::wrapped::{Wrapped, at_home, script};

#[derive(Clone, Copy)]
struct Tools {
    package: &'static str,
    supervise: &'static str,
}

const RUNIT: Tools = Tools { package: "runit", supervise: "runsv" };
const S6: Tools = Tools { package: "s6", supervise: "s6-supervise" };

#[test]
fn nginx_under_runit() {
    a_supervised_server_is_swapped_and_survives_what_is_killed(&nginx::SERVER, RUNIT);
}

#[test]
fn nginx_under_s6() {
    a_supervised_server_is_swapped_and_survives_what_is_killed(&nginx::SERVER, S6);
}

#[test]
#[ignore = "takes longer, and tells what the other three do"]
fn gunicorn_under_runit() {
    a_supervised_server_is_swapped_and_survives_what_is_killed(&gunicorn::SERVER, RUNIT);
}

#[test]
fn gunicorn_under_s6() {
    a_supervised_server_is_swapped_and_survives_what_is_killed(&gunicorn::SERVER, S6);
}

fn a_supervised_server_is_swapped_and_survives_what_is_killed(server: &'static Server, tools: Tools) {
    let Some(mut service) = Service::start(server, tools) else { return };
    let pid = service.pid();
    for label in ["v2", "v3"] {
        assert_eq!(service.trigger(label, false), 0, "{}", service.wrapped.log());
        service.wrapped.expect_serving(label);
        service.wrapped.expect_served();
    }
    // A wrong configuration is found while the one before serves.
    assert_ne!(service.trigger("v4", true), 0);
    service.wrapped.expect_serving("v3");
    service.wrapped.expect_served();
    assert_eq!(service.pid(), pid);

    // The supervisor: the next one takes over what serves.
    let wrap = service.wrap();
    kill(pid);
    service.wrapped.until("the next supervisor", || service.try_pid().is_some_and(|now| now != pid));
    service.wrapped.until("an answer to a trigger", || service.status_is_known());
    assert_eq!(service.wrap(), wrap);
    let pid = service.pid();
    assert_eq!(service.trigger("v5", false), 0, "{}", service.wrapped.log());
    service.wrapped.expect_serving("v5");
    service.wrapped.expect_clean();

    // The server itself: started again by the supervisor, which holds the socket meanwhile.
    service.load();
    let wrap = service.wrap();
    kill(service.main());
    service.wrapped.until("another one", || service.wrapped.wraps().first().is_some_and(|now| *now != wrap));
    service.wrapped.expect_serving("v5");
    service.wrapped.expect_served();
    assert_eq!(service.trigger("v6", false), 0, "{}", service.wrapped.log());
    service.wrapped.expect_serving("v6");
    service.wrapped.until("nobody else to be left", || service.strays().is_empty());
    assert_eq!(service.pid(), pid);

    // What wraps it: the server is nobody's then, and the supervisor ends it before it starts the next one.
    let wrap = service.wrap();
    kill(wrap);
    service.wrapped.until("another one", || service.wrapped.wraps().first().is_some_and(|now| *now != wrap));
    service.wrapped.until("nobody else to be left", || service.strays().is_empty());
    service.wrapped.expect_serving("v6");
    assert_eq!(service.trigger("v7", false), 0, "{}", service.wrapped.log());
    service.wrapped.expect_serving("v7");
    assert_eq!(service.pid(), pid);
    service.wrapped.expect_nothing_lost();
}

struct Service {
    wrapped: Wrapped,
    tools: Tools,
}

impl Service {
    fn start(server: &'static Server, tools: Tools) -> Option<Self> {
        let path = format!("command -v {}", tools.supervise);
        if !has_tool(tools.package, Command::new("sh").args(["-c", &path])) {
            return None;
        }
        let site = Site::new(server)?;
        configure(&site);
        let service = Self { wrapped: Wrapped::started_by(site, |site| supervise(site, tools)), tools };
        service.wrapped.expect_serving("v1");
        let mut service = service;
        service.load();
        Some(service)
    }

    fn load(&mut self) {
        let plan =
            Plan { fresh: 6, kept: 0, pause: std::time::Duration::from_millis(10), ..self.wrapped.plan() };
        self.wrapped.load(plan);
    }

    /// Swaps by the supervisor; returns the exit code.
    fn trigger(&self, label: &str, is_broken: bool) -> i32 {
        let site = &self.wrapped.site;
        let mut command = self.ask();
        // It serves a moment before the supervisor knows of it.
        command.arg("--queue").arg(script(site.server)).args(site.release(label, is_broken));
        command.status().unwrap().code().expect("it was not killed")
    }

    fn status_is_known(&self) -> bool {
        self.ask().arg("--status").status().unwrap().success()
    }

    fn ask(&self) -> Command {
        let mut command = Command::new(HANDOFF);
        command.arg("trigger");
        at_home(&self.wrapped.site, &mut command, None);
        command.env("HANDOFF_TRIGGER", self.wrapped.site.path("trigger"));
        command
    }

    /// Returns the pid that the service manager watches.
    #[track_caller]
    fn pid(&self) -> u32 {
        self.try_pid().expect("it is up")
    }

    fn try_pid(&self) -> Option<u32> {
        let service = self.wrapped.site.path("service");
        let said = if self.tools.package == "runit" {
            fs::read_to_string(service.join("supervise/pid")).ok()?
        } else {
            let output = Command::new("s6-svstat").args(["-o", "pid"]).arg(&service).output().unwrap();
            String::from_utf8(output.stdout).ok()?
        };
        said.trim().parse().ok()
    }

    /// Returns the processes of the server that are not below the one that wraps it.
    fn strays(&self) -> Vec<u32> {
        let program = self.wrapped.site.server.program.as_bytes();
        let mut running = self.wrapped.site.running();
        running.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let is_servers =
                !line.starts_with(b"handoff") && line.windows(program.len()).any(|part| part == program);
            is_servers && !self.is_below_wrap(*pid)
        });
        running
    }

    /// Returns whether it is what wraps the server, or below it.
    fn is_below_wrap(&self, pid: u32) -> bool {
        // One that the supervisor has started again names its program by the whole path.
        if pid == self.wrap() {
            return true;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|pid| pid.trim().parse().unwrap());
        parent.is_none_or(|parent| parent > 1 && self.is_below_wrap(parent))
    }

    #[track_caller]
    fn wrap(&self) -> u32 {
        self.wrapped.wraps()[0]
    }

    /// Returns the server's main process: the eldest below what wraps it.
    #[track_caller]
    fn main(&self) -> u32 {
        let wrap = self.wrap();
        let children = fs::read_to_string(format!("/proc/{wrap}/task/{wrap}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn configure(site: &Site) {
    let text = format!(
        "control_socket = \"control\"\n\
         data_dir = \"data\"\n\
         binary = {:?}\n\
         args = {:?}\n\
         [restart]\n\
         policy = \"always\"\n\
         [[listeners]]\n\
         name = \"http\"\n\
         addr = \"{}\"\n",
        script(site.server),
        site.release("v1", false),
        site.addr
    );
    fs::write(site.path("handoff.toml"), text).unwrap();
    fs::create_dir(site.path("service")).unwrap();
    let run = site.path("service/run");
    fs::write(&run, "#!/bin/sh\ncd ..\nexec handoff supervise --config handoff.toml\n").unwrap();
    fs::set_permissions(run, fs::Permissions::from_mode(0o755)).unwrap();
}

fn supervise(site: &Site, tools: Tools) -> Child {
    let mut command = Command::new(tools.supervise);
    command.arg("service");
    at_home(site, &mut command, None);
    command.spawn().unwrap()
}

fn kill(pid: u32) {
    PidFd::open(pid).and_then(|process| process.signal(Signal::SIGKILL)).unwrap();
}
