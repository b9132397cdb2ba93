//! What exhausted resources and foreign locks do.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::rig::{Process, Rig, example, process};

/// A file system of so few pages, so that it can be filled.
struct Small(PathBuf);

impl Small {
    /// None where this user may not mount, which is said, and fails in CI.
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(&path).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: needs to mount a tmpfs");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to mount a tmpfs");
        None
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filling")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_at_the_seal_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(dir.path().join("data")) else { return };
    let mut rig = Rig::start_in(dir, &["at=seal:full"]);
    let mut driver = rig.swap(&[], &[]);
    assert_eq!(driver.outcome(), "seal-failed", "{:#?}", driver.lines());
    assert_eq!(rig.settle_within(Duration::ZERO), rig.first.pid());
    rig.expect_clean();
    drop(small);
}

#[test]
fn a_disk_that_gets_full_under_the_journal_does_not_stop_a_handoff() {
    let mut rig = Rig::start(&[]);
    let Some(small) = Small::mount(rig.dir().join("small")) else { return };
    let journal = format!("journal={}", small.0.join("journal").display());
    let mut driver = rig.swap(&[&journal], &["at=warm:wait"]);
    driver.at("warm");
    small.fill();
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_journal_that_cannot_be_begun_begins_nothing() {
    let mut rig = Rig::start(&[]);
    let Some(small) = Small::mount(rig.dir().join("small")) else { return };
    small.fill();
    let journal = format!("journal={}", small.0.join("journal").display());
    let mut driver = rig.swap(&[&journal], &[]);
    driver.line("small/journal");
    assert!(!driver.wait().success());
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

fn limit_descriptors(pid: u32, most: usize) {
    let status =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]).status();
    assert!(status.unwrap().success());
}

/// Leaves a process not one more descriptor. Fewer than it has would also forbid it to poll them (EINVAL, poll(2)).
fn exhaust_descriptors(pid: u32) {
    let used: Vec<usize> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    limit_descriptors(pid, (0..).find(|number| !used.contains(number)).unwrap());
}

/// Processor time of a process so far, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_incumbent_without_a_free_descriptor_refuses_by_silence_and_does_not_spin() {
    let mut rig = Rig::start(&[]);
    let pid = rig.first.pid();
    drop(rig.load.take());
    rig.settle(&[]);
    exhaust_descriptors(pid);
    let before = ticks(pid);
    let mut driver = rig.swap(&[], &[]);
    assert!(!driver.wait().success(), "{:#?}", driver.lines());
    let spent = ticks(pid) - before;
    assert!(spent < 150, "{spent} ticks of processor time in five seconds");
    limit_descriptors(pid, 1024);
    assert_eq!(rig.settle(&[]), pid);
    assert_eq!(rig.swap(&[], &[]).outcome(), "committed");
    assert_ne!(rig.settle(&[]), pid);
}

#[test]
fn an_incumbent_without_a_free_descriptor_undoes_what_needs_one_and_commits_otherwise() {
    // While the successor warms up, its pidfd is still to come; when it has begun, nothing is.
    for (point, word) in [("warm", "protocol"), ("begun", "committed")] {
        let mut rig = Rig::start(&[]);
        let mut driver = rig.swap(&[], &[&format!("at={point}:wait")]);
        let successor = driver.at(point);
        drop(rig.load.take());
        let pid = rig.first.pid();
        exhaust_descriptors(pid);
        rig.go();
        assert_eq!(driver.outcome(), word, "{point}: {:#?}", driver.lines());
        limit_descriptors(pid, 1024);
        let expected = if word == "committed" { successor } else { pid };
        assert_eq!(rig.settle_within(Duration::ZERO), expected, "{point}");
    }
}

#[test]
fn a_successor_or_a_driver_without_descriptors_is_undone() {
    for most in [4, 6, 8, 10, 12, 14, 16] {
        let mut rig = Rig::start(&[]);
        let script = rig.script(&format!("ulimit -n {most}; exec {} \"$@\"", example("probe").display()));
        let mut driver = rig.swap_for(&script, &[], &[]);
        let outcome = driver.outcome();
        let serving = rig.settle_within(Duration::ZERO);
        // Granted and without a descriptor to serve, it is succeeded by its program in the incumbent's process.
        assert!(outcome == "committed" || serving == rig.first.pid(), "{most}: {outcome}");
        rig.expect_clean();

        let rig = Rig::start(&[]);
        let plain = rig.driver(&example("probe"), &[], &[]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {most}; exec \"$@\""), "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        let mut driver = Process::start(&mut command);
        let committed = driver.wait().success();
        let serving = rig.settle(&[]);
        assert_eq!(committed, serving != rig.first.pid(), "{most}: {:#?}", driver.lines());
        rig.expect_clean();
    }
}

#[test]
fn a_stranger_who_takes_the_lock_in_the_gap_is_named_and_waited_for() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&[], &["at=begun:wait"]);
    driver.at("begun");
    let mut stranger = Process::start(Command::new("flock").arg(rig.data().join(".handoff.lock")).args([
        "sh",
        "-c",
        "echo locked >&2; exec sleep 600",
    ]));
    stranger.line("locked");
    rig.go();
    let said = driver.line("held by pid");
    assert!(said.contains("(flock ") || said.contains("(sleep 600)"), "{said}");
    rig.await_status("locking", "the incumbent", |status| status.phase == "locking");
    end_tree(&mut stranger);
    assert_ne!(driver.outcome(), "committed");
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

/// flock(1) runs its command as a child that has the lock too.
fn end_tree(stranger: &mut Process) {
    let children = Command::new("pkill").args(["-KILL", "-P", &stranger.pid().to_string()]).status();
    assert!(children.is_ok());
    stranger.kill();
    stranger.wait();
}

#[test]
fn a_cold_start_beside_one_that_serves_is_refused_and_told_who_it_is() {
    let rig = Rig::start(&[]);
    let mut second = crate::rig::cold_start(rig.dir(), &rig.listener, "probe", &[]);
    assert!(!second.wait().success());
    let said = second.line("held by pid");
    assert!(said.contains(&format!("pid {} (", rig.first.pid())), "{said}");
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_helper_that_has_the_locks_descriptor_does_not_keep_the_lock_when_it_is_released() {
    let mut rig = Rig::start(&["say=helper"]);
    let helper = rig.first.at("helping");
    let mut driver = rig.swap(&[], &[]);
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle(&[helper]), rig.first.pid());
    rig.expect_clean();
}

/// Nobody may serve while a process of the dead incumbent could still write; once it is gone, a restart does.
#[test]
fn a_helper_that_outlives_a_killed_incumbent_keeps_the_lock_and_is_named() {
    let mut rig = Rig::start(&["say=helper"]);
    let helper = rig.first.at("helping");
    let mut driver = rig.swap(&["margin=200"], &["at=warm:wait"]);
    driver.at("warm");
    rig.first.kill();
    rig.first.wait();
    rig.go();
    let said = driver.line("held by pid");
    assert!(said.contains(&format!("pid {helper} ")), "{said}");
    assert_ne!(driver.outcome(), "committed", "{:#?}", driver.lines());
    process::signal(helper, "KILL");
    process::await_end(helper);
    assert!(rig.settle_or_restart(Duration::from_secs(30)));
    rig.expect_no_loss();
}
