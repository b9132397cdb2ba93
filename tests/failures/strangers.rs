//! What strangers on the control socket do: nothing to a swap, and nothing to `status`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use handoff::sys::unix;

use crate::rig::{Rig, process};

/// Lets a stranger loose in the middle of a drain; returns what he keeps open.
fn beside<T>(stranger: impl FnOnce(&Path, &Rig) -> T) {
    let mut rig = Rig::start(&["at=stopped:wait"]);
    let mut driver = rig.swap(&[], &[]);
    rig.first.at("stopped");
    let open = stranger(&rig.control(), &rig);
    // It is answered although the drain goes on until the test ends it.
    assert_eq!(rig.status().unwrap().phase, "draining");
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_ne!(rig.settle_within(Duration::ZERO), rig.first.pid());
    drop(open);
    rig.expect_clean();
}

fn connect(path: &Path) -> UnixStream {
    let stranger = UnixStream::connect(path).unwrap();
    stranger.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
    stranger
}

/// What is said to him until he is shown the door.
fn rest(mut stranger: &UnixStream) -> String {
    let mut said = String::new();
    // A reset after the answer is how a close with something unread looks.
    let _ = stranger.read_to_string(&mut said);
    said
}

#[test]
fn garbage_is_refused_and_its_sender_shown_the_door() {
    beside(|path, _| {
        let mut stranger = connect(path);
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(rest(&stranger).contains("refused"));
    });
}

#[test]
fn a_megabyte_without_a_newline_is_refused() {
    beside(|path, _| {
        let mut stranger = connect(path);
        // Its end comes before the last byte is taken.
        let _ = stranger.write_all(&vec![b'{'; 2 << 20]);
        assert!(rest(&stranger).contains("refused"));
    });
}

#[test]
fn a_flood_of_connections_delays_nobody() {
    beside(|path, _| (0..500).map(|_| connect(path)).collect::<Vec<_>>());
}

#[test]
fn slow_bytes_and_a_silent_guest_delay_nobody() {
    beside(|path, rig| {
        let mut slow = connect(path);
        for byte in b"{\"type\":\"sta" {
            slow.write_all(&[*byte]).unwrap();
        }
        // It says hello and stays.
        (slow, rig.connect().unwrap(), connect(path))
    });
}

#[test]
fn a_burst_of_requests_is_answered_to_the_last_one() {
    beside(|path, _| {
        const COUNT: usize = 50;
        let mut hasty = connect(path);
        hasty.write_all("{\"type\":\"status\"}\n".repeat(COUNT).as_bytes()).unwrap();
        // Nothing more comes from here, so that what is left over in a buffer is not woken by accident.
        let answers = BufReader::new(&hasty).lines().take(COUNT).map(Result::unwrap);
        assert_eq!(answers.filter(|line| line.contains("status-report")).count(), COUNT);
    });
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    beside(|path, rig| {
        let before = descriptors(rig);
        let stranger = connect(path);
        let null = std::fs::File::open("/dev/null").unwrap();
        let hundred: Vec<BorrowedFd<'_>> = (0..100).map(|_| null.as_fd()).collect();
        unix::send(stranger.as_fd(), b"{\"type\":\"status\"}\n", &hundred).unwrap();
        assert!(rest(&stranger).contains("expected none, got status with 100 descriptors"));
        drop(stranger);
        assert_eq!(descriptors(rig), before);
    });
}

#[test]
fn descriptors_that_do_not_fit_are_closed_too() {
    beside(|path, rig| {
        let before = descriptors(rig);
        let pid = rig.first.pid().to_string();
        let limit = |most: usize| {
            let mut prlimit = std::process::Command::new("prlimit");
            let status = prlimit.args(["--pid", &pid, &format!("--nofile={most}:")]).status().unwrap();
            assert!(status.success());
        };
        let stranger = connect(path);
        let null = std::fs::File::open("/dev/null").unwrap();
        let hundred: Vec<BorrowedFd<'_>> = (0..100).map(|_| null.as_fd()).collect();
        limit(60);
        unix::send(stranger.as_fd(), b"{\"type\":\"status\"}\n", &hundred).unwrap();
        assert!(rest(&stranger).contains("refused"));
        limit(1024);
        drop(stranger);
        assert_eq!(descriptors(rig), before);
    });
}

fn descriptors(rig: &Rig) -> usize {
    // Nobody else talks to it: what it has open is what it keeps.
    let count = || std::fs::read_dir(format!("/proc/{}/fd", rig.first.pid())).unwrap().count();
    let mut last = count();
    // The connection of the one who asked last may be on its way out.
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(2));
        last = last.min(count());
    }
    last
}

#[test]
fn a_lease_that_is_taken_and_never_used_ends_at_its_deadline() {
    let mut rig = Rig::start(&[]);
    let mut stranger = connect(&rig.control());
    let terms = "{\"type\":\"prepare\",\"handoff\":\"h\",\"deadline_ms\":300,\"stand_by_ms\":300}\n";
    stranger.write_all(terms.as_bytes()).unwrap();
    rig.await_status("prepared", "the incumbent", |status| status.phase == "prepared");
    let mut driver = rig.swap(&[], &[]);
    assert_eq!(driver.outcome(), "refused", "{:#?}", driver.lines());
    assert!(rest(&stranger).contains("\"deadline\""));
    assert_eq!(rig.swap(&[], &[]).outcome(), "committed");
    assert_ne!(rig.settle(&[]), rig.first.pid());
    rig.expect_clean();
}

#[test]
fn a_stranger_cannot_undo_commit_or_hurry_what_is_not_his() {
    let mut rig = Rig::start(&["at=stopped:wait"]);
    let mut driver = rig.swap(&[], &["at=warm:mark"]);
    let successor = driver.at("warm");
    rig.first.at("stopped");
    let mut stranger = connect(&rig.control());
    for word in ["\"seal\"", "\"drain\",\"grace_ms\":0", "\"stepped-down\"", "\"commit\""] {
        stranger.write_all(format!("{{\"type\":{word}}}\n").as_bytes()).unwrap();
    }
    stranger.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&stranger).matches("refused").count(), 4);
    assert_eq!(rig.status().unwrap().phase, "draining");
    rig.go();
    assert_eq!(driver.outcome(), "committed", "{:#?}", driver.lines());
    assert_eq!(rig.settle(&[]), successor);
    process::await_end(rig.first.pid());
    rig.expect_clean();
}
