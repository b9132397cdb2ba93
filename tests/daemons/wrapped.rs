//! A server under `handoff wrap`, started by its script in `scripts/wrap/` as it is shipped, and a load on it.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use handoff::control::Control;
use handoff::proto::wire::Status;

use crate::common::{HANDOFF, eventually, wait_for_exit};
use crate::load::{Counts, Load, Plan};
use crate::site::{Fault, Server, Site};

pub struct Wrapped {
    pub site: Site,
    first: Child,
    load: Option<Load>,
}

/// How a swap ended.
#[derive(Debug)]
#[allow(dead_code, reason = "what was said is shown when a test fails")]
pub struct Swapped {
    pub code: i32,
    pub said: String,
}

/// A swap that is going on.
pub struct Swapping(Child);

impl Wrapped {
    /// Starts the first version and a load; none where the server is missing, which was said.
    pub fn start(server: &'static Server) -> Option<Self> {
        let mut this = Self::start_idle(server)?;
        let plan = Plan { fresh: 6, kept: 4, pause: Duration::from_millis(10), ..this.plan() };
        this.load(plan);
        Some(this)
    }

    /// Starts the first version.
    pub fn start_idle(server: &'static Server) -> Option<Self> {
        let site = Site::new(server)?;
        let this = Self::started_by(site, |site| {
            let mut command = Command::new(script(site.server));
            command.args(site.release("v1", false));
            at_home(site, &mut command, None);
            command.spawn().unwrap()
        });
        this.expect_serving("v1");
        Some(this)
    }

    /// Starts something that starts the first version.
    pub fn started_by(site: Site, start: impl Fn(&Site) -> Child) -> Self {
        Self { first: start(&site), site, load: None }
    }

    /// A plan to be completed.
    pub fn plan(&self) -> Plan {
        Plan {
            addr: self.site.addr,
            fresh: 0,
            kept: 0,
            writes: self.site.server.writes,
            pause: Duration::ZERO,
        }
    }

    pub fn load(&mut self, plan: Plan) {
        self.load = Some(Load::start(plan));
        self.expect_served();
    }

    /// Swaps to a good release.
    #[track_caller]
    pub fn swap(&self, label: &str) {
        let swapped = self.swap_to(&self.site.release(label, false), None, &[]);
        assert!(swapped.code == 0, "{label}: {swapped:?}\n{}", self.log());
        self.expect_serving(label);
        self.expect_served();
    }

    /// Swaps to what is not good; returns how that ended.
    pub fn swap_to(&self, args: &[String], fault: Option<Fault>, options: &[&str]) -> Swapped {
        self.begin(args, fault, options).end(&self.site)
    }

    /// Swaps to what has a fault, or a wrong configuration; returns whether clients are answered then.
    #[allow(dead_code, reason = "for the benchmark")]
    pub fn survives(&self, label: &str, fault: Option<Fault>) -> bool {
        let args = self.site.release(label, fault.is_none());
        if fault == Some(Fault::Dies) {
            let swapping = self.begin(&args, fault, &["--bake", "10m"]);
            self.until("the trial", || self.status().is_some_and(|status| status.phase == "on-trial"));
            self.until("it to serve", || self.site.version().as_deref() == Some(label));
            self.site.let_die();
            swapping.end(&self.site);
        } else {
            self.swap_to(&args, fault, &[]);
        }
        self.site.version().is_some()
    }

    /// Begins a swap.
    pub fn begin(&self, args: &[String], fault: Option<Fault>, options: &[&str]) -> Swapping {
        let mut command = Command::new(HANDOFF);
        command.arg("swap").args(options).arg(script(self.site.server)).args(args);
        at_home(&self.site, &mut command, fault);
        // The successor has this output too: a pipe would not end.
        command.stdout(File::create(self.site.path("swapped")).unwrap());
        Swapping(command.spawn().unwrap())
    }

    pub fn status(&self) -> Option<Status> {
        let deadline = Instant::now() + Duration::from_secs(5);
        Control::connect(self.site.path("control"), "test", deadline).ok()?.status(deadline).ok()
    }

    /// One serves, it is this one, and nobody is left of any other.
    #[track_caller]
    pub fn expect_serving(&self, label: &str) {
        let serving = |status: Status| status.phase == "serving" && status.handoff.is_none();
        self.until(&format!("{label} to serve"), || {
            self.status().is_some_and(serving)
                && self.site.version().as_deref() == Some(label)
                && self.wraps().len() == 1
        });
    }

    /// Every client gets answers.
    #[track_caller]
    pub fn expect_served(&self) {
        let served = self.load.as_ref().is_none_or(|load| load.each_is_served(3));
        assert!(served, "some client is not answered any more\n{}", self.log());
    }

    #[track_caller]
    pub fn until(&self, what: &str, reached: impl FnMut() -> bool) {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually(what, reached)));
        assert!(waited.is_ok(), "waited in vain for {what}: {:?}\n{}", self.status(), self.log());
    }

    /// Returns the processes that wrap.
    pub fn wraps(&self) -> Vec<u32> {
        let mut running = self.site.running();
        running.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"wrap")
        });
        running
    }

    /// Ends the load, and reads back all that was acknowledged.
    #[track_caller]
    pub fn expect_nothing_lost(&mut self) -> Counts {
        self.expect_served();
        let ledger = self.load.take().unwrap().stop();
        if self.site.server.writes {
            let lost = ledger.lost(self.site.addr).unwrap();
            let all = ledger.acknowledged.len();
            assert!(all > 0 && lost.is_empty(), "of {all} writes {} are lost: {lost:?}", lost.len());
        }
        assert_eq!(ledger.counts.refused, 0, "{:?}\n{}", ledger.counts, self.log());
        ledger.counts
    }

    /// As [`expect_nothing_lost`](Self::expect_nothing_lost), and no client that connected for its request noticed anything.
    #[track_caller]
    pub fn expect_clean(&mut self) -> Counts {
        let counts = self.expect_nothing_lost();
        assert_eq!(counts.disturbances(), 0, "{counts:?}\n{}", self.log());
        counts
    }

    /// What everybody has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.site.path("log")).unwrap_or_default()
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        drop(self.load.take());
        self.site.clear();
        // It may have ended long ago.
        let _ = self.first.wait();
    }
}

impl Swapping {
    pub fn end(mut self, site: &Site) -> Swapped {
        let code = wait_for_exit(&mut self.0).code().expect("it was not killed");
        let said = fs::read_to_string(site.path("swapped")).unwrap();
        Swapped { code, said }
    }
}

pub fn script(server: &Server) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scripts/wrap/{}.sh", server.name))
}

pub fn at_home(site: &Site, command: &mut Command, fault: Option<Fault>) {
    let log = OpenOptions::new().create(true).append(true).open(site.path("log")).unwrap();
    site.at_home(command, fault);
    command.env("LISTEN", site.addr.to_string()).stdout(log.try_clone().unwrap()).stderr(log);
    if fault == Some(Fault::Mute) {
        command.env("READY_TIMEOUT", "1s");
    }
}
