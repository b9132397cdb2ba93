//! A chain that is cut between two links, or while one of them is at work.

use std::os::unix::process::ExitStatusExt;

use crate::common::{eventually, has_strace};
use crate::rig::{Rig, chain, cut_chain, signal};

const WARM: [&str; 5] = [
    "hold-fds --from-incumbent",
    "journal begin",
    "exec-successor --warm kvd-v2",
    "drain --grace 25s",
    "commit",
];
const WARM_BY_STEPS: [&str; 5] =
    ["journal begin", "exec-successor --warm kvd-v2", "drain --no-seal", "seal", "commit"];
const IN_PLACE: [&str; 4] =
    ["hold-fds --from-incumbent", "journal begin", "drain --grace 25s", "exec-successor kvd-v2"];
const IN_PLACE_BY_STEPS: [&str; 4] = ["journal begin", "drain --no-seal", "seal", "exec-successor kvd-v2"];
const ALL: [&[&str]; 4] = [&WARM, &WARM_BY_STEPS, &IN_PLACE, &IN_PLACE_BY_STEPS];

#[test]
fn a_chain_that_is_killed_between_any_two_links_is_undone() {
    for links in ALL {
        let mut rig = Rig::start(&[]);
        for at in 1..links.len() {
            let line = cut_chain(links, at, "cut");
            let mut run = rig.sh(&line);
            let cut = run.wait_for("cut ");
            assert_eq!(cut, format!("cut {}", run.pid()), "one process all along: {line}");
            run.kill();
            rig.expect_undone();
        }
        // What was left open does not keep the next one from it.
        let whole = rig.sh(&format!("exec {}", chain(links)));
        rig.expect_succeeded();
        rig.expect_clean();
        drop(whole);
    }
}

#[test]
fn a_link_that_fails_undoes_what_came_before_it() {
    let links = [
        ("sh -c 'kill -9 $$'", None),
        ("false", Some(1)),
        ("sh -c 'exit 7'", Some(7)),
        ("handoff no-such-command", Some(100)),
        ("handoff drain --no-such-option", Some(100)),
        ("no-such-program", Some(127)),
        ("not-executable", Some(126)),
    ];
    for chain in ALL {
        let rig = Rig::start(&[]);
        // Every failure after every link of those that go in small steps; two of them after those of the others.
        let some = if chain.contains(&"seal") { &links[..] } else { &links[..2] };
        for at in 1..chain.len() {
            for &(link, code) in some {
                let before = rig.status().unwrap().generation;
                let line = cut_chain(chain, at, link);
                let mut run = rig.sh(&line);
                let status = run.wait();
                assert_eq!(status.code(), code, "{line}: {}", run.said());
                rig.expect_undone();
                if matches!(code, Some(126 | 127)) && !chain[at - 1].starts_with("seal") {
                    // Found before the link that it follows did anything, so no seal was undone.
                    assert_eq!(rig.status().unwrap().generation, before, "{line}");
                }
            }
        }
        rig.expect_clean();
    }
}

#[test]
fn a_successor_that_cannot_be_run_is_found_before_it_is_needed() {
    let rig = Rig::start(&[]);
    let before = rig.status().unwrap().generation;
    for (program, code) in [("no-such-program", 127), ("not-executable", 126)] {
        for line in [
            "exec-successor --warm PROG -- handoff drain -- handoff commit",
            "drain -- handoff exec-successor PROG",
            "drain -- handoff exec-successor --wait PROG",
            "swap PROG",
        ] {
            rig.expect(&format!("handoff {}", line.replace("PROG", program)), code);
            rig.expect_undone();
        }
    }
    // Nothing was sealed.
    assert_eq!(rig.status().unwrap().generation, before);
    // What a shell will do nobody can know.
    for (program, code) in [("no-such-program", 127), ("not-executable", 126)] {
        rig.expect(&format!("handoff drain -- sh -c 'exec handoff exec-successor {program}'"), code);
        rig.expect_undone();
    }
    rig.expect_clean();
}

/// Kills the chain's process when its daemon is in this phase, and expects it undone.
fn killed_in(rig: &Rig, phase: &str, line: &str, env: &[(&str, &str)]) {
    let mut run = rig.sh_with(line, env);
    rig.await_phase(phase);
    run.kill();
    rig.expect_undone();
}

#[test]
fn a_chain_that_is_killed_while_the_daemon_drains_or_seals_is_undone() {
    for (fault, phase) in [("slow-drain-ms=600000", "draining"), ("slow-seal-ms=600000", "sealing")] {
        let rig = Rig::start(&["--fail", fault]);
        for links in ALL {
            killed_in(&rig, phase, &format!("exec {}", chain(links)), &[]);
        }
        killed_in(&rig, phase, "exec handoff drain --exit", &[]);
        rig.expect_clean();
    }
}

#[test]
fn a_chain_that_is_killed_while_the_successor_warms_up_is_undone() {
    let rig = Rig::start(&[]);
    for (number, line) in [
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit",
        "exec handoff drain -- handoff exec-successor --wait kvd-v2",
        "exec handoff swap kvd-v2",
    ]
    .iter()
    .enumerate()
    {
        let go = rig.path(&format!("go-{number}"));
        let mut run = rig.sh_with(line, &[("KVD_WAITS_FOR", go.to_str().unwrap())]);
        let is_new = |pid: &u32| *pid != rig.first_pid() && *pid != run.pid();
        eventually("the successor", || rig.alive().iter().any(is_new));
        run.kill();
        rig.await_phase("serving");
        // It finds out when it has something to say.
        std::fs::write(go, "").unwrap();
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_chain_that_is_killed_after_it_passed_the_lease_is_not_missed() {
    for line in [
        "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit",
        "exec handoff drain -- handoff exec-successor --wait kvd-v2",
    ] {
        let mut rig = Rig::start(&[]);
        let mut run = rig.sh_with(line, &[("KVD_FAIL", "--fail slow-open-ms=1000")]);
        rig.await_phase("attached");
        run.kill();
        rig.expect_succeeded();
        rig.expect_clean();
    }
}

#[test]
fn a_successor_in_place_that_is_killed_with_the_lease_is_undone() {
    let rig = Rig::start(&[]);
    for fault in ["--fail hang-while-warm", "--fail hang-after-begin", "--fail slow-open-ms=60000"] {
        let line = "exec handoff drain -- handoff exec-successor kvd-v2";
        let mut run = rig.sh_with(line, &[("KVD_FAIL", fault)]);
        eventually("the successor", || crate::rig::runs(run.pid(), "--version-label"));
        if !fault.contains("warm") {
            rig.await_phase("attached");
        }
        signal(run.pid(), "KILL");
        run.wait();
        rig.expect_undone();
    }
    rig.expect_clean();
}

/// Shells that hold the lease, each at another place.
const SHELLS: [&str; 6] = [
    "exec handoff exec-successor --warm kvd-v2 -- sh",
    "exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal -- sh",
    "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- sh",
    "exec handoff drain --no-seal -- sh",
    "exec handoff drain -- sh",
    "exec handoff hold-fds --from-incumbent -- handoff journal begin -- handoff drain -- sh",
];

#[test]
fn leaving_the_shell_that_holds_the_lease_undoes_the_handoff() {
    let rig = Rig::start(&[]);
    for line in SHELLS {
        let mut shell = rig.sh(line);
        assert_eq!(shell.asks("handoff status", "status"), 0, "{line}");
        assert!(rig.status().unwrap().handoff.is_some(), "{line}");
        shell.leave();
        shell.expect(0);
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn an_abort_in_the_shell_that_holds_the_lease_undoes_the_handoff_and_the_next_command_says_so() {
    let rig = Rig::start(&[]);
    for line in SHELLS {
        let mut shell = rig.sh(line);
        assert_eq!(shell.asks("handoff abort", "abort"), 0, "{line}: {}", shell.said());
        assert_eq!(rig.settle_beside(&[shell.pid()]), rig.first_pid(), "{line}");
        for (number, next) in ["drain", "seal", "exec-successor kvd-v2", "commit"].iter().enumerate() {
            let code = shell.asks(&format!("handoff {next}"), &format!("next-{number}"));
            assert_eq!(code, 1, "{line}, {next}: {}", shell.said());
        }
        shell.wait_for("is over");
        shell.leave();
        shell.expect(0);
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_deadline_that_passes_while_a_shell_holds_the_lease_is_the_daemons_to_keep() {
    let rig = Rig::start(&[]);
    for (number, line) in SHELLS.iter().enumerate().skip(1) {
        let line = line.replace("handoff drain", "handoff drain --deadline 300ms");
        let next =
            ["", "seal", "commit", "seal", "exec-successor --wait kvd-v2", "exec-successor kvd-v2"][number];
        let mut shell = rig.sh(&line);
        shell.types("echo held");
        shell.wait_for("held");
        rig.await_phase("serving");
        // The first one that looks finds out, and the second one knows.
        for time in ["first", "second"] {
            let code = shell.asks(&format!("handoff {next}"), time);
            let expected = if time == "first" { 4 } else { 1 };
            assert_eq!(code, expected, "{line}, {next}: {}", shell.said());
        }
        shell.wait_for("is over");
        shell.leave();
        shell.expect(0);
        rig.expect_undone();
    }
    rig.expect_clean();
}

/// Those by which a link speaks, waits, and becomes the next one.
const CALLS: [&str; 5] =
    ["sendmsg", "recvmsg", "ppoll", "execve,execveat", "memfd_create,ftruncate,pwrite64"];

/// More often no link makes such a call; the end of a round is that the call was not reached.
const ROUNDS: u32 = 100;

/// Kills the chain's process, whatever link it is by then, at each of its calls, one chain for each.
fn killed_at_every_call(line: &str, env: &[(&str, &str)]) {
    if !has_strace() {
        return;
    }
    for calls in CALLS {
        let mut rig = Rig::start(&[]);
        let mut kills = 0;
        let was_killed = |rig: &Rig, at: u32| {
            let trace = format!("trace={calls}");
            let inject = format!("inject={calls}:signal=KILL:when={at}");
            // Without -f: what it starts is not what is to be killed.
            let strace = ["strace", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject, "sh", "-c", line];
            let mut run = rig.run_with(&strace, env);
            run.leave();
            run.wait().signal() == Some(9)
        };
        while kills < ROUNDS && was_killed(&rig, kills + 1) {
            kills += 1;
            if rig.settle() != rig.first_pid() {
                // It had passed the lease on, and nothing was missed.
                rig.expect_succeeded();
                std::mem::replace(&mut rig, Rig::start(&[])).expect_clean();
            }
        }
        eprintln!("killed at {kills} calls of {calls}");
        assert!((1..ROUNDS).contains(&kills), "{calls}");
        rig.settle();
        rig.expect_clean();
    }
}

#[test]
fn a_chain_with_a_warm_successor_that_is_killed_at_any_call_leaves_one_that_serves() {
    killed_at_every_call(&format!("exec {}", chain(&WARM_BY_STEPS)), &[]);
}

#[test]
fn a_chain_in_place_that_is_killed_at_any_call_before_the_grant_is_undone() {
    // The last kill is of a daemon that has the lease and the lock; it is never granted.
    killed_at_every_call(&format!("exec {}", chain(&IN_PLACE)), &[("KVD_FAIL", "--fail unhealthy")]);
}
