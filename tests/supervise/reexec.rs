//! The supervisor's own upgrade.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use handoff::supervise::wire::Swap;

use crate::Rig;
use crate::common::{PATIENCE, eventually};
use crate::process::{self, example};

fn point(link: &Path, to: &Path) {
    let beside = link.with_extension("next");
    symlink(to, &beside).unwrap();
    std::fs::rename(beside, link).unwrap();
}

#[test]
fn a_supervisor_becomes_its_new_program_with_everything_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("supervisor");
    point(&link, &example("supervisor"));
    let program = format!("program={}", link.display());
    let rig = Rig::start(&[&program, "version=7", "policy=always"], &["--version-label", "v0"]);
    let load = rig.load();
    let (supervisor, daemon) = (rig.state().unwrap().pid, rig.settle());
    assert!(rig.swap(rig.to("v1", &[])).unwrap().committed);
    let daemon = (daemon, rig.settle());
    let copy = dir.path().join("copy");
    std::fs::copy(example("supervisor"), &copy).unwrap();
    point(&link, &copy);
    let version = rig.client().reexec(false, Some(Instant::now() + PATIENCE), &mut |_| {}).unwrap();
    assert_eq!(version, "7");
    assert_eq!(rig.settle(), daemon.1);
    assert_eq!(std::fs::read_link(format!("/proc/{supervisor}/exe")).unwrap(), copy.canonicalize().unwrap());
    let state = rig.state().unwrap();
    assert_eq!((state.pid, state.is_child), (supervisor, true));
    assert_eq!(state.swaps, [("committed".to_owned(), 1)]);
    rig.signal("USR2");
    rig.supervisor.line("goes on as version 7");
    assert!(rig.swap(Swap { queue: true, ..rig.to("v2", &[]) }).unwrap().committed);
    // It still knows its children, and starts them again.
    let last = rig.settle();
    process::signal(last, "KILL");
    eventually("another daemon", || rig.await_serving() != last);
    assert_eq!(rig.serving(), "v2");
    rig.expect_no_loss(load);
    rig.stop();
}

#[test]
fn a_supervisor_goes_on_where_its_new_program_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("supervisor");
    let program = format!("program={}", link.display());
    let rig = Rig::start(&[&program], &["--version-label", "v0"]);
    let load = rig.load();
    for (to, expected) in [
        ("/nowhere", "No such file"),
        ("/bin/false", "does not understand"),
        ("/bin/true", "does not understand"),
        ("/bin/sleep", "does not understand"),
    ] {
        point(&link, Path::new(to));
        let refused = rig.client().reexec(false, Some(Instant::now() + PATIENCE), &mut |_| {}).unwrap_err();
        assert!(refused.to_string().contains(expected), "{to}: {refused}");
    }
    assert!(rig.swap(rig.to("v1", &[])).unwrap().committed);
    rig.expect_clean(load);
    rig.stop();
}

#[test]
fn requests_that_wait_are_still_there_after_an_upgrade() {
    let rig = Rig::start(&[], &["--fail", "slow-drain-ms=500"]);
    let first = rig.swap_meanwhile(rig.to("v1", &[]));
    let mut client = rig.client();
    let upgrade =
        std::thread::spawn(move || client.reexec(true, Some(Instant::now() + PATIENCE), &mut |_| {}));
    eventually("the upgrade to wait", || rig.state().unwrap().queued == 1);
    let second = rig.swap_meanwhile(Swap { queue: true, ..rig.to("v2", &[]) });
    assert!(first.join().unwrap().unwrap().committed);
    assert_eq!(upgrade.join().unwrap().unwrap(), "1");
    assert!(second.join().unwrap().unwrap().committed);
    assert_eq!(rig.serving(), "v2");
    rig.stop();
}
