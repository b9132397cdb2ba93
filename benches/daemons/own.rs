//! The servers' own ways to be replaced, each as its manual says, with the care that a person would take: what is replaced is stopped only
//! when the next one answers.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use handoff::sys::process::{PidFd, Signal};

use crate::common::PATIENCE;
use crate::site::{Fault, Site};

/// Whoever looks whether the next one has come gives up after this, or sooner where nothing can come.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_IN_VAIN: Duration = Duration::from_secs(3);

/// A server without us.
pub struct Own {
    pub site: Site,
    way: Way,
    look: Cell<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Stopped, and started again.
    Restart,
    /// What it has itself.
    Upgrade,
}

impl Own {
    pub fn start(site: Site, way: Way) -> Self {
        let own = Self { site, way, look: Cell::new(LOOK) };
        own.point_at("v1");
        own.launch();
        assert!(own.comes("v1"), "{}: {}", own.site.server.name, own.log());
        own
    }

    /// Makes a release the one that is started, as a deployment does that flips a link.
    pub fn point_at(&self, label: &str) {
        let next = self.site.path("next");
        symlink(self.site.path("releases").join(label), &next).unwrap();
        fs::rename(next, self.site.path("current")).unwrap();
    }

    /// Replaces what serves by what is pointed at; returns whether the next one came.
    pub fn swap(&self, label: &str) -> bool {
        self.point_at(label);
        match (self.way, self.site.server.name) {
            (Way::Restart, _) => self.restart(label),
            (Way::Upgrade, "nginx") => self.upgrade_nginx(label),
            (Way::Upgrade, "haproxy") => self.reload_haproxy(label),
            (Way::Upgrade, "gunicorn") => self.upgrade_gunicorn(label),
            (Way::Upgrade, other) => unreachable!("{other} has no way of its own"),
        }
    }

    fn restart(&self, label: &str) -> bool {
        let graceful = match self.site.server.name {
            "nginx" => Signal::SIGQUIT,
            "haproxy" => Signal::SIGUSR1,
            _ => Signal::SIGTERM,
        };
        let until = Instant::now() + PATIENCE;
        // HAProxy's master forgets what it is told in its first moments.
        while !self.site.running().is_empty() && Instant::now() < until {
            if let Some(main) = self.main() {
                send(main, graceful);
            }
            self.until(Duration::from_secs(1), || self.site.running().is_empty());
        }
        self.launch();
        self.comes(label)
    }

    /// USR2 to the master; when the next one answers, WINCH and QUIT.
    fn upgrade_nginx(&self, label: &str) -> bool {
        let Some(before) = self.main() else { return false };
        send(before, Signal::SIGUSR2);
        let oldbin = self.site.path("nginx.pid.oldbin");
        if !self.until(self.look.get(), || oldbin.exists() && self.main().is_some_and(|pid| pid != before))
            || !self.comes(label)
        {
            return false;
        }
        send(before, Signal::SIGWINCH);
        send(before, Signal::SIGQUIT);
        self.until(PATIENCE, || !is_there(before))
    }

    /// USR2 to the master, which becomes the next one itself.
    fn reload_haproxy(&self, label: &str) -> bool {
        let Some(master) = self.main() else { return false };
        send(master, Signal::SIGUSR2);
        // The worker before leaves when its clients have.
        self.comes(label) && self.until(PATIENCE, || children(master).len() == 1)
    }

    /// USR2 to the master; when the next one answers, TERM.
    fn upgrade_gunicorn(&self, label: &str) -> bool {
        let Some(before) = self.main() else { return false };
        send(before, Signal::SIGUSR2);
        let second = self.site.path("gunicorn.pid.2");
        if !self.until(self.look.get(), || second.exists()) || !self.comes(label) {
            return false;
        }
        send(before, Signal::SIGTERM);
        // It takes the name of the one before, within a second or so.
        self.until(PATIENCE, || !is_there(before) && !second.exists())
    }

    /// Replaces it by what has a fault; returns whether clients are answered then.
    pub fn survives(&self, label: &str, fault: Option<Fault>) -> bool {
        self.site.release(label, fault.is_none());
        self.look.set(if fault == Some(Fault::Dies) { LOOK } else { LOOK_IN_VAIN });
        match fault {
            Some(Fault::Dies) => {
                self.swap(label);
                self.site.running().into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            }
            // It imports the application itself, where others execute a program.
            Some(fault) if self.site.server.name == "gunicorn" => {
                let app = self.site.path("releases").join(label).join("app.py");
                let line =
                    if fault == Fault::Exits { "os._exit(7)" } else { "import time; time.sleep(1000)" };
                fs::write(app, format!("import os\n{line}\n")).unwrap();
                self.swap(label);
            }
            fault => {
                self.site.install(fault);
                self.swap(label);
                self.site.install(None);
            }
        }
        self.look.set(LOOK);
        let serves = self.until(LOOK_IN_VAIN, || self.site.version().is_some());
        if !serves {
            eprintln!("{}, {label}: {:?}: {}", self.site.server.name, self.site.running(), self.log());
        }
        serves
    }

    /// Starts what is known to be good where nobody serves any more, as a person would.
    pub fn mend(&self) {
        self.site.clear();
        for left in ["nginx.pid", "nginx.pid.oldbin", "gunicorn.pid", "gunicorn.pid.2"] {
            // It may not be there.
            let _ = fs::remove_file(self.site.path(left));
        }
        self.point_at("v1");
        self.launch();
        assert!(self.comes("v1"), "{}: {}", self.site.server.name, self.log());
        // One worker answers, and another may still read what is pointed at: nobody deploys in the same second.
        std::thread::sleep(Duration::from_secs(2));
    }

    /// Starts it, in the background.
    pub fn launch(&self) {
        let site = &self.site;
        let (current, port) = (site.path("current"), site.addr.port().to_string());
        let file = |name: &str| current.join(name).to_str().unwrap().to_owned();
        let program = site.path("bin").join(site.server.program);
        let mut command = Command::new(&program);
        site.at_home(&mut command, None);
        match site.server.name {
            "nginx" => command.args(["-e", "stderr", "-c", &file("nginx.conf")]),
            "haproxy" => {
                let pid = site.path("haproxy.pid");
                command
                    .args(["-W", "-f", &file("haproxy.cfg"), "-p"])
                    .arg(pid)
                    .env("BIND", site.addr.to_string())
            }
            "gunicorn" => {
                let pid = site.path("gunicorn.pid");
                command.args(["--workers", "2", "--bind", &site.addr.to_string(), "--chdir", &file(".")]);
                command.arg("--pid").arg(pid).arg("app:app")
            }
            "uvicorn" => command.args([
                "-m",
                "uvicorn",
                "--port",
                &port,
                "--app-dir",
                &file("."),
                "--log-level",
                "warning",
                "asgi:app",
            ]),
            "node" => command.arg(file("server.js")).env("PORT", port),
            "python" => command.arg(file("server.py")).env("PORT", port),
            other => unreachable!("{other} is not started without a socket"),
        };
        let log = OpenOptions::new().create(true).append(true).open(site.path("log")).unwrap();
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        fs::write(site.path("started"), child.id().to_string()).unwrap();
        // It is found by what it writes, and by where it runs.
        std::thread::spawn(move || child.wait());
    }

    /// Returns the process that signals go to.
    fn main(&self) -> Option<u32> {
        let name = match self.site.server.name {
            "nginx" => "nginx.pid",
            "gunicorn" => "gunicorn.pid",
            _ => "started",
        };
        fs::read_to_string(self.site.path(name)).ok()?.trim().parse().ok()
    }

    /// Waits until clients are answered by a version.
    fn comes(&self, label: &str) -> bool {
        self.until(self.look.get(), || self.site.version().as_deref() == Some(label))
    }

    fn until(&self, patience: Duration, mut reached: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + patience;
        while !reached() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.site.path("log")).unwrap_or_default()
    }
}

fn send(pid: u32, signal: Signal) {
    if let Ok(process) = PidFd::open(pid) {
        // It may have ended already.
        let _ = process.signal(signal);
    }
}

fn is_there(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok()
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}
