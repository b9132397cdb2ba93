//! A daemon that dies while a chain holds its lease: whoever is there goes on, as after a crash.

use crate::rig::{Rig, Run, signal};

/// Shells that hold the lease of a daemon that has stopped, where no successor was started yet.
const COLD: [&str; 3] = [
    "exec handoff drain --no-seal -- sh",
    "exec handoff drain -- sh",
    "exec handoff hold-fds --from-incumbent -- handoff journal begin -- handoff drain -- sh",
];

/// A shell at which the daemon has just been killed.
fn widowed_shell(rig: &mut Rig, line: &str) -> Run {
    let mut shell = rig.sh(line);
    shell.types("echo held");
    shell.wait_for("held");
    kill_first(rig);
    shell
}

fn kill_first(rig: &mut Rig) {
    rig.first.as_mut().unwrap().kill();
}

/// The next version serves, and its predecessor was killed.
#[track_caller]
fn expect_heir(rig: &Rig) -> u32 {
    let pid = rig.settle();
    assert_eq!(rig.label(), "v2");
    pid
}

#[test]
fn the_death_of_a_daemon_that_a_shell_holds_is_followed_in_place() {
    for line in COLD {
        let mut rig = Rig::start(&[]);
        let mut shell = widowed_shell(&mut rig, line);
        shell.types("exec handoff exec-successor kvd-v2");
        assert_eq!(expect_heir(&rig), shell.pid(), "{line}");
        rig.expect_no_loss();
    }
}

#[test]
fn the_death_of_a_daemon_that_a_shell_holds_is_followed_by_a_successor_that_it_starts() {
    for line in COLD {
        let mut rig = Rig::start(&[]);
        let mut shell = widowed_shell(&mut rig, line);
        assert_eq!(shell.asks("handoff exec-successor --wait kvd-v2", "successor"), 0, "{}", shell.said());
        shell.leave();
        shell.expect(0);
        expect_heir(&rig);
        rig.expect_no_loss();
    }
}

#[test]
fn the_death_of_a_daemon_is_said_and_known_to_the_next_command() {
    let mut rig = Rig::start(&[]);
    let mut shell = widowed_shell(&mut rig, "exec handoff drain --no-seal -- sh");
    assert_eq!(shell.asks("handoff seal", "seal"), 0, "{}", shell.said());
    shell.wait_for("handoff seal: warning: the daemon has died: the successor starts as after a crash");
    shell.wait_for("widowed ");
    for (number, wrong) in ["drain", "drain --exit", "commit"].iter().enumerate() {
        let code = shell.asks(&format!("handoff {wrong}"), &format!("wrong-{number}"));
        assert_eq!(code, 100, "{wrong}: {}", shell.said());
    }
    shell.wait_for("is widowed: what comes next is `handoff exec-successor`, in place or with --wait");
    shell.types("exec handoff exec-successor kvd-v2");
    assert_eq!(expect_heir(&rig), shell.pid());
    rig.expect_no_loss();
}

#[test]
fn the_death_of_a_daemon_whose_successor_is_warm_is_followed_at_once_and_the_chain_finds_out() {
    for line in [
        "exec handoff exec-successor --warm kvd-v2 -- sh",
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal -- sh",
        "exec handoff journal begin -- handoff exec-successor --warm kvd-v2 -- handoff drain -- sh",
    ] {
        let mut rig = Rig::start(&[]);
        let mut shell = widowed_shell(&mut rig, line);
        // It needs nobody.
        rig.settle_beside(&[shell.pid()]);
        assert_eq!(rig.label(), "v2");
        let next = if line.contains("--no-seal") {
            "seal"
        } else if line.contains("drain") {
            "commit"
        } else {
            "drain"
        };
        assert_eq!(shell.asks(&format!("handoff {next}"), "next"), 0, "{line}: {}", shell.said());
        shell.wait_for("committed ");
        assert_eq!(shell.asks("handoff commit", "commit"), 0, "{line}: {}", shell.said());
        shell.leave();
        shell.expect(0);
        expect_heir(&rig);
        rig.expect_no_loss();
    }
}

#[test]
fn a_chain_whose_daemon_dies_at_work_ends_in_a_successor_that_serves() {
    for (fault, phase) in [("slow-drain-ms=600000", "draining"), ("slow-seal-ms=600000", "sealing")] {
        for line in [
            "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit",
            "exec handoff journal begin -- handoff drain -- handoff exec-successor kvd-v2",
            "exec handoff drain -- sh -c 'exec handoff exec-successor --wait kvd-v2'",
        ] {
            let mut rig = Rig::start(&["--fail", fault]);
            let mut run = rig.sh(line);
            rig.await_phase(phase);
            kill_first(&mut rig);
            let pid = expect_heir(&rig);
            if line.contains("exec-successor kvd-v2") {
                assert_eq!(pid, run.pid(), "{line}");
            } else {
                run.expect(0);
            }
            rig.expect_no_loss();
        }
    }
}

#[test]
fn a_daemon_that_dies_after_the_lease_was_passed_on_is_succeeded() {
    for line in [
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit",
        "exec handoff drain -- handoff exec-successor kvd-v2",
        "exec handoff drain -- sh -c 'exec handoff exec-successor --wait kvd-v2'",
    ] {
        let mut rig = Rig::start(&[]);
        let mut run = rig.sh_with(line, &[("KVD_FAIL", "--fail slow-open-ms=500")]);
        rig.await_phase("attached");
        kill_first(&mut rig);
        let pid = expect_heir(&rig);
        if line.contains("exec-successor kvd-v2") {
            assert_eq!(pid, run.pid(), "{line}");
        } else {
            run.expect(0);
        }
        rig.expect_no_loss();
    }
}

#[test]
fn a_daemon_that_is_stopped_while_a_shell_holds_it_sealed_is_in_nobodys_way() {
    for line in ["exec handoff exec-successor kvd-v2", "handoff exec-successor --wait kvd-v2; echo ended=$?"]
    {
        let in_place = line.starts_with("exec");
        let rig = Rig::start(&[]);
        let mut shell = rig.sh("exec handoff drain --deadline 1s -- sh");
        shell.types("echo held");
        shell.wait_for("held");
        signal(rig.first_pid(), "STOP");
        shell.types(line);
        // Nobody grants; whoever has the lock kills the one that is silent.
        if in_place {
            assert_eq!(rig.settle(), shell.pid());
        } else {
            shell.wait_for("ended=0");
            shell.leave();
            shell.expect(0);
        }
        expect_heir(&rig);
        rig.expect_no_loss();
    }
}
