//! A wrap beside what links the library, and below a supervisor: to them it is a daemon like any other.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use handoff::sys::process::Signal;

use crate::common::{HANDOFF, eventually, example};
use crate::rig::{Rig, Wrap, ask, free_address, handoff, said, signal, spec, words};

fn increment(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"incr\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn a_wrapped_daemon_is_replaced_by_one_that_links_the_library_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // Each has a file of its own in the directory: the linked one makes its own only where it starts cold.
    std::fs::write(data.join("count"), "").unwrap();
    let address = free_address();
    let listen = format!("tcp={address}");
    let first = Wrap::start(handoff().args(words(dir.path(), &spec(&["--listen", &listen], &["v1"]))));
    first.said.wait_for(" serves");
    let rig = Rig { dir, address, first };
    assert_eq!(rig.ask(), "v1 1");

    let mut to_linked = handoff();
    to_linked.args(["swap", "--progress", "never", "--control"]).arg(rig.control()).arg(example("counter"));
    let output = to_linked.arg(rig.control()).arg(&data).arg(&rig.address).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(increment(&rig.address), "1");

    rig.expect_commit(&[], &spec(&[], &["v2"]));
    assert_eq!(rig.ask(), "v2 2");
    // What the linked one sealed was not this daemon's to say, and it gets it back.
    let mut to_linked = handoff();
    to_linked.args(["swap", "--progress", "never", "--control"]).arg(rig.control()).arg(example("counter"));
    let output = to_linked.arg(rig.control()).arg(&data).arg(&rig.address).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(increment(&rig.address), "2");
}

#[test]
fn a_linked_daemon_serves_again_when_the_wrap_that_was_to_follow_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let address = free_address();
    let mut linked = std::process::Command::new(example("counter"));
    let first = Wrap::start(linked.arg(data.join("control")).arg(&data).arg(&address));
    eventually("the counter", || TcpStream::connect(&address).is_ok());
    let rig = Rig { dir, address, first };
    eventually("the control socket", || rig.control().exists());
    assert_eq!(increment(&rig.address), "1");
    let (code, said) = rig.swap(&[], &spec(&[], &["v2", "exit-at-once"]));
    assert_eq!(code, 3, "{said}");
    assert_eq!(increment(&rig.address), "2");
}

#[test]
fn a_supervisor_swaps_wraps_and_knows_nothing_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let address = free_address();
    let trigger = dir.path().join("trigger");
    let mut supervise = handoff();
    supervise.arg("supervise").arg("--control").arg(data.join("control")).arg("--trigger").arg(&trigger);
    supervise.arg("--data-dir").arg(&data).args(["--listen", &format!("web={address}"), "--"]);
    supervise.arg(HANDOFF).args(words(dir.path(), &spec(&[], &["v1"])));
    let first = Wrap::start(&mut supervise);
    let rig = Rig { dir, address, first };
    // It answers a moment before the supervisor knows of it.
    eventually("the supervisor to serve", || {
        let mut status = handoff();
        status.args(["trigger", "--status", "--json", "--trigger"]).arg(&trigger);
        let told: serde_json::Value =
            serde_json::from_slice(&status.output().unwrap().stdout).unwrap_or_default();
        told["doing"] == "serving"
    });
    let mut ask_for = handoff();
    ask_for
        .arg("trigger")
        .arg("--trigger")
        .arg(&trigger)
        .arg(HANDOFF)
        .args(words(rig.path(), &spec(&[], &["v2"])));
    let output = ask_for.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(rig.ask().starts_with("v2"));
    rig.first.signal(Signal::SIGTERM);
    eventually("the lock to be free", || !rig.is_locked());
}

/// What is wrapped serves on when its wrap is killed, and keeps the lock: for a supervisor it is what its own daemon has left behind.
#[test]
fn a_wrap_that_is_killed_is_started_again_by_its_supervisor_and_what_it_wrapped_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let (config, address) = (dir.path().join("handoff.toml"), free_address());
    let args: Vec<String> =
        words(dir.path(), &spec(&[], &["v1"])).iter().map(|word| format!("{word:?}")).collect();
    let text = format!(
        "control_socket = {:?}\ndata_dir = {data:?}\nbinary = {HANDOFF:?}\nargs = [{}]\n[restart]\npolicy = \"on-failure\"\n\
         [[listeners]]\nname = \"web\"\naddr = \"{address}\"\n",
        data.join("control"),
        args.join(", ")
    );
    std::fs::write(&config, text).unwrap();
    let first = Wrap::start(handoff().args(["supervise", "--config"]).arg(&config));
    let rig = Rig { dir, address, first };
    eventually("the daemon", || ask(&rig.address, "x").is_ok());
    let owner = || handoff::DataDirLock::read_record(&data).unwrap().record.unwrap().owner.pid;
    let wrap = owner();
    signal(wrap, Signal::SIGKILL);
    rig.first.said.wait_for("has left processes behind, which are ended");
    eventually("another wrap", || owner() != wrap && ask(&rig.address, "x").is_ok());
    // One writes and not two: the next one begins where this one ended.
    let before = rig.ask();
    let after = rig.ask();
    assert_ne!(before, after);
    rig.first.signal(Signal::SIGTERM);
    eventually("the lock to be free", || !rig.is_locked());
}
