//! Kill at every system call, not at the points someone thought of.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::rig::{Process, Rig, example};

/// Those by which a process speaks, locks, writes, and lets go. Close comes last: it is what death does by itself.
const CALLS: [&str; 9] =
    ["sendmsg", "recvmsg", "flock", "pwrite64", "fdatasync", "rename", "accept4", "ppoll", "close"];

/// More often no call is made in one swap by one thread; the end of a round is that the call was not reached.
const ROUNDS: u32 = 60;

fn has_strace() -> bool {
    let there = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("skipped: needs strace");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have strace");
    }
    there
}

/// For each call and each count: runs a swap with a kill there, until one survives.
fn at_every_call(actor: &str, swap_with_kill: impl Fn(&str, &str) -> bool) {
    if !has_strace() {
        return;
    }
    for call in CALLS {
        let mut kills = 0;
        while kills < ROUNDS && swap_with_kill(call, &format!("inject={call}:signal=KILL:when={}", kills + 1))
        {
            kills += 1;
        }
        eprintln!("{actor}: killed at {kills} calls of {call}");
    }
}

/// Waits for the end of the driver and of the story; starts what a supervisor would start where nobody is left. Returns whether
/// that was needed.
fn settle(rig: &mut Rig, driver: &mut Process, point: &str) -> bool {
    driver.wait();
    let said = driver.lines();
    assert!(!said.iter().any(|line| line.contains("outcome undecided")), "{point}: {said:#?}");
    eprintln!("{point}");
    rig.settle_or_restart(Duration::ZERO)
}

fn says(driver: &Process, what: &str) -> bool {
    driver.lines().iter().any(|line| line.contains(what))
}

#[test]
fn a_successor_killed_at_any_call_leaves_one_that_serves() {
    at_every_call("successor", |call, kill| {
        let mut rig = Rig::start(&[]);
        let trace = format!("exec strace -f -qqq -o /dev/null -e trace={call} -e {kill}");
        let script = rig.script(&format!("{trace} {} \"$@\"", example("probe").display()));
        let mut driver = rig.swap_for(&script, &[], &[]);
        // Once it serves for good its death is an ordinary crash: that is where this ends.
        let crashed = settle(&mut rig, &mut driver, kill);
        assert!(!crashed || says(&driver, "outcome committed"), "{kill}: {:#?}", driver.lines());
        let is_first = rig.status().unwrap().process.pid == rig.first.pid();
        rig.expect_no_loss();
        is_first && !crashed
    });
}

#[test]
fn an_incumbent_killed_at_any_call_leaves_one_that_serves() {
    at_every_call("incumbent", |call, kill| {
        let mut rig = Rig::start(&[]);
        let (pid, log) = (rig.first.pid().to_string(), rig.dir().join("trace"));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", &format!("trace={call}"), "-e", kill, "-p", &pid, "-o"]).arg(&log);
        let mut tracer = Process::start(&mut strace);
        tracer.line("attached");
        let mut driver = rig.swap(&[], &[]);
        let crashed = settle(&mut rig, &mut driver, kill);
        tracer.wait();
        // Before the successor was started nobody else was there.
        assert!(!crashed || !says(&driver, "phase rearming"), "{kill}: {:#?}", driver.lines());
        let killed = std::fs::read_to_string(log).unwrap().contains("killed by SIGKILL");
        rig.expect_no_loss();
        killed
    });
}

#[test]
fn a_driver_killed_at_any_call_leaves_one_that_serves() {
    at_every_call("driver", |call, kill| {
        let mut rig = Rig::start(&[]);
        let plain = rig.driver(&example("probe"), &[], &[]);
        let mut command = Command::new("strace");
        // Without -f: what it starts is not what is to be killed.
        command.args(["-qqq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", kill]);
        command.arg(plain.get_program()).args(plain.get_args());
        let mut driver = Process::start(&mut command);
        assert!(!settle(&mut rig, &mut driver, kill), "{kill}: nobody else was killed");
        let killed = !says(&driver, " outcome ");
        rig.expect_clean();
        killed
    });
}
