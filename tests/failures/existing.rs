//! What broke the closest existing library when it was tried, where no other row of the table is about it.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use handoff::supervisor::{SpawnSpec, Supervisor};
use handoff::sys::poll::{self, Want};
use handoff::sys::unix;

use crate::rig::{Rig, ask, example};

fn spec(rig: &Rig, args: &[&str]) -> SpawnSpec {
    let paths = [rig.control(), rig.data()].map(|path| path.display().to_string());
    let args = paths.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
    SpawnSpec { binary: example("probe"), args, ..SpawnSpec::default() }
}

#[test]
fn a_successor_that_starts_and_exits_changes_nothing_for_an_epoll_loop() {
    let mut rig = Rig::start_idle(tempfile::tempdir().unwrap(), "epoll", &[]);
    let flags = || {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", rig.listener.as_raw_fd())).unwrap();
        info.lines().find(|line| line.starts_with("flags:")).unwrap().to_owned()
    };
    let before = flags();
    for fault in ["at=start:exit", "at=warm:exit", "at=begun:exit", "say=unhealthy"] {
        let mut driver = rig.swap(&[], &[fault]);
        assert_ne!(driver.outcome(), "committed", "{fault}");
        for _ in 0..20 {
            assert_eq!(ask(rig.addr(), "PID").unwrap().trim(), rig.first.pid().to_string(), "{fault}");
        }
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", rig.listener.as_raw_fd())).unwrap();
    assert!(info.contains(&before), "{info}");
    assert_eq!(rig.settle(&[]), rig.first.pid());
}

/// The driver goes on at once, while the one that handed over is on its way out.
#[test]
fn a_hundred_swaps_right_after_one_another_commit_and_leave_nothing_behind() {
    let rig = Rig::start(&[]);
    let supervisor = Supervisor::new(rig.control()).unwrap();
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (mut counts, mut children) = (vec![], vec![]);
    for round in 0..100 {
        let outcome = supervisor.perform_handoff(spec(&rig, &[])).unwrap();
        assert!(outcome.committed, "{round}: {outcome:?}");
        children.push(outcome.child.unwrap());
        if round % 33 == 0 {
            counts.push(descriptors(rig.settle(&[])));
        }
    }
    let serving = rig.settle(&[]);
    assert_eq!(children.last().unwrap().id(), serving);
    assert!(counts.iter().max() <= counts.iter().min().map(|least| least + 3).as_ref(), "{counts:?}");
    let left: Vec<_> =
        std::fs::read_dir(rig.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the control path and the data directory: {left:?}");
    rig.expect_clean();
    for mut child in children {
        let _ = child.kill();
        child.wait().unwrap();
    }
}

#[test]
fn a_wrapper_shell_between_driver_and_daemon_commits_rolls_back_and_is_killed_too() {
    for (fault, word) in [("at=warm:mark", "committed"), ("at=begun:hang", "deadline"), ("at=begun:kill", "")]
    {
        let mut rig = Rig::start(&[]);
        // It stays, and so does what it has started beside the daemon.
        let body = format!(
            "sh -c 'sleep 600; :' helper {} & {} \"$@\"; exit $?",
            rig.data().display(),
            example("probe").display()
        );
        let script = rig.script(&body);
        let mut driver = rig.swap_for(&script, &["deadline=500"], &[fault]);
        let outcome = driver.outcome();
        assert!(outcome == word || (word.is_empty() && outcome != "committed"), "{fault}: {outcome}");
        if outcome == "committed" {
            let status = rig.await_status("serving", "the successor", |status| {
                status.generation == 2 && status.handoff.is_none()
            });
            assert_ne!(status.process.pid, rig.first.pid());
            continue;
        }
        assert_eq!(
            rig.settle_within(Duration::from_millis(500)),
            rig.first.pid(),
            "{fault}: the helper is gone too"
        );
        rig.expect_clean();
    }
}

#[test]
fn a_daemon_that_reads_the_variables_of_sd_listen_fds_finds_itself_named() {
    let mut rig = Rig::start(&[]);
    let mut driver = rig.swap(&[], &["say=listen-fds"]);
    let said = driver.line(" listen-fds ");
    assert!(said.ends_with(" 1 true"), "{said}");
    assert_eq!(driver.outcome(), "committed");
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_missing_binary_is_named_also_where_there_are_many_listeners() {
    let rig = Rig::start(&[]);
    let mut supervisor = Supervisor::new(rig.control()).unwrap();
    for i in 0..200 {
        supervisor = supervisor.with_listener(format!("l{i}"), rig.listener.as_raw_fd());
    }
    let missing = SpawnSpec { binary: "/nonexistent/kvd".into(), ..spec(&rig, &[]) };
    let error = supervisor.perform_handoff(missing).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/kvd"), "{error}");
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn two_hundred_listeners_are_passed() {
    let rig = Rig::start(&[]);
    let mut supervisor =
        Supervisor::new(rig.control()).unwrap().with_listener("http", rig.listener.as_raw_fd());
    for i in 0..200 {
        supervisor = supervisor.with_listener(format!("l{i}"), rig.listener.as_raw_fd());
    }
    let outcome = supervisor.perform_handoff(spec(&rig, &[])).unwrap();
    assert!(outcome.committed, "{outcome:?}");
    let mut child = outcome.child.unwrap();
    assert_eq!(rig.settle(&[]), child.id());
    rig.expect_clean();
    child.wait().unwrap();
}

#[test]
fn a_garbage_journal_is_refused_by_name_and_nothing_is_begun() {
    let mut rig = Rig::start(&[]);
    std::fs::write(rig.journal(), "garbage\nmore garbage\n").unwrap();
    let mut driver = rig.swap(&[&format!("journal={}", rig.journal().display())], &[]);
    driver.line("journal");
    assert!(!driver.wait().success());
    assert_eq!(std::fs::read_to_string(rig.journal()).unwrap(), "garbage\nmore garbage\n");
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

/// What the machine adds to a wait of that length is measured in the same moment.
#[test]
fn a_deadline_of_two_seconds_ends_within_fifty_milliseconds_of_it() {
    let rig = Rig::start(&[]);
    let bare = std::thread::spawn(|| {
        let (quiet, _open) = unix::pair().unwrap();
        let before = Instant::now();
        poll::wait_one(std::os::fd::AsFd::as_fd(&quiet), Want::Read, Some(before + Duration::from_secs(2)))
            .unwrap();
        before.elapsed().saturating_sub(Duration::from_secs(2))
    });
    let supervisor = Supervisor::new(rig.control()).unwrap();
    let deadline = Duration::from_secs(2);
    let outcome =
        supervisor.perform_handoff(SpawnSpec { deadline, ..spec(&rig, &["at=begun:hang"]) }).unwrap();
    let at = |phase: &str| outcome.measured.phases.iter().find(|mark| mark.phase == phase).unwrap().at_us;
    let took = Duration::from_micros(at("dismissing") - at("rearming"));
    let late = bare.join().unwrap();
    assert!(took >= deadline, "{took:?}");
    assert!(
        took < deadline + Duration::from_millis(50) + 10 * late,
        "{took:?}, and a bare wait was {late:?} late"
    );
    assert_eq!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}
