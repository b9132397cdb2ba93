//! Many swaps in a row: what each of them leaves behind shows.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Serving, eventually, example, wait_for_exit};
use handoff::supervisor::{HandoffOutcome, SpawnSpec, Supervisor};

/// How much a process may be larger after all the swaps: two KiB for each, and what the allocator keeps of a journal's rotation.
const GROWTH_KIB: u64 = 2048;

/// The descriptors of this process are counted: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A daemon that is swapped for itself.
struct Rig {
    dir: tempfile::TempDir,
    supervisor: Supervisor,
    serving: Serving,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let control = dir.path().join("control");
        let child = Command::new(example("minimal")).args(args(dir.path())).spawn().unwrap();
        let serving = Serving(child);
        eventually("the control socket", || control.exists());
        let supervisor = Supervisor::new(&control).unwrap().with_journal(dir.path().join("journal"));
        Self { dir, supervisor, serving, _alone: alone }
    }

    fn perform(&self, binary: PathBuf) -> HandoffOutcome {
        let args = args(self.dir.path());
        self.supervisor.perform_handoff(SpawnSpec { binary, args, ..SpawnSpec::default() }).unwrap()
    }

    fn swap(&mut self) {
        let outcome = self.perform(example("minimal"));
        assert!(outcome.committed, "{outcome:?}");
        let mut before = std::mem::replace(&mut self.serving, Serving(outcome.child.unwrap()));
        assert_eq!(wait_for_exit(&mut before.0).code(), Some(0));
    }

    fn fail_to_swap(&mut self) {
        let outcome = self.perform("/bin/false".into());
        assert!(!outcome.committed && outcome.child.is_none(), "{outcome:?}");
    }

    fn daemon(&self) -> Footprint {
        Footprint::of(self.serving.0.id())
    }

    /// What is in the directories, without the journal's old files, whose number is bounded.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = [self.dir.path().to_owned(), self.dir.path().join("data")]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["journal.1", "journal.2", "journal.3"].contains(&name.as_str()))
            .collect();
        names.sort();
        names
    }

    fn journal_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap);
        let journals = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("journal"));
        journals.map(|entry| entry.metadata().unwrap().len()).sum()
    }
}

fn args(dir: &Path) -> Vec<String> {
    ["control", "data"].map(|name| dir.join(name).display().to_string()).to_vec()
}

/// What a process has.
#[derive(Clone, Debug)]
struct Footprint {
    /// What its descriptors lead to, and how many there are of each.
    fds: BTreeMap<String, usize>,
    threads: u64,
    /// Its memory, without what is the content of files.
    anon_kib: u64,
}

impl Footprint {
    fn of(pid: u32) -> Self {
        let mut fds = BTreeMap::new();
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            // Closed since: the descriptor of this very directory, if the process is this one.
            let Ok(target) = fs::read_link(fd.unwrap().path()) else { continue };
            // Sockets and pipes are told apart by a number that is never the same.
            let kind = target.to_string_lossy().split(":[").next().unwrap().to_owned();
            *fds.entry(kind).or_default() += 1;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self { fds, threads: field("Threads:"), anon_kib: field("RssAnon:") }
    }

    fn assert_grown_from(&self, before: &Self, who: &str) {
        let grown = self.anon_kib.saturating_sub(before.anon_kib);
        println!("{who}: {} KiB before, {} KiB after", before.anon_kib, self.anon_kib);
        assert!(grown <= GROWTH_KIB, "{who} grew by {grown} KiB");
    }
}

/// The children of this process that have ended and were not waited for, and those that run.
fn children() -> (usize, usize) {
    let own = std::process::id().to_string();
    let stats = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let states: Vec<String> = stats
        .filter_map(|stat| {
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?.to_owned();
            (fields.next()? == own).then_some(state)
        })
        .collect();
    let zombies = states.iter().filter(|state| *state == "Z").count();
    (zombies, states.len() - zombies)
}

/// Everything that runs with this directory on its command line.
fn processes_of(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap().as_bytes().to_vec();
    let lines = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.windows(dir.len()).any(|window| window == dir)).count()
}

#[test]
fn a_thousand_swaps_leave_nothing_behind() {
    let mut rig = Rig::start();
    // A rotation reads a whole journal, and what that takes is kept by the allocator for the next one.
    while !rig.dir.path().join("journal.2").exists() {
        rig.swap();
    }
    let (driver, daemon, files) = (Footprint::of(std::process::id()), rig.daemon(), rig.files());

    (0..1000).for_each(|_| rig.swap());

    let after = Footprint::of(std::process::id());
    assert_eq!((&after.fds, after.threads), (&driver.fds, driver.threads));
    after.assert_grown_from(&driver, "the driver");
    // It closes its part of the handoff when everybody has been told.
    eventually("the daemon's descriptors", || rig.daemon().fds == daemon.fds);
    assert_eq!(rig.daemon().threads, daemon.threads);
    rig.daemon().assert_grown_from(&daemon, "the daemon");
    assert_eq!(children(), (0, 1));
    assert_eq!(processes_of(rig.dir.path()), 1);
    assert_eq!(rig.files(), files);
    assert_eq!(files, [".handoff.lock", "control", "data", "journal"]);
    assert!(rig.dir.path().join("journal.3").exists(), "the journal was not rotated again");
    assert!(rig.journal_bytes() < 5 << 20, "the journal takes {} bytes", rig.journal_bytes());
}

#[test]
fn a_hundred_failed_swaps_leave_nothing_behind() {
    let mut rig = Rig::start();
    (0..10).for_each(|_| rig.fail_to_swap());
    let (driver, files) = (Footprint::of(std::process::id()), rig.files());
    let daemon = rig.daemon();

    (0..100).for_each(|_| rig.fail_to_swap());

    let after = Footprint::of(std::process::id());
    assert_eq!((&after.fds, after.threads), (&driver.fds, driver.threads));
    after.assert_grown_from(&driver, "the driver");
    eventually("the daemon's descriptors", || rig.daemon().fds == daemon.fds);
    assert_eq!(rig.daemon().threads, daemon.threads);
    rig.daemon().assert_grown_from(&daemon, "the daemon");
    assert_eq!(children(), (0, 1));
    assert_eq!(rig.files(), files);
    rig.swap();
}
