//! Shells within shells, whose environment tells of descriptors that are not there any more.

use crate::rig::{Rig, Run};

/// The number of a descriptor in a shell's fd table.
fn number(shell: &mut Run, role: &str) -> String {
    shell.types("echo table $HANDOFF_FDS");
    let table = shell.wait_for("table ");
    let entry = table
        .split(' ')
        .find_map(|word| word.strip_prefix(role))
        .unwrap_or_else(|| panic!("{role}: {table}"));
    entry.split('@').next().unwrap().to_owned()
}

/// Shells that hold a lease, and what goes on with it.
const SHELLS: [(&str, &str); 3] = [
    ("exec handoff drain -- sh", "exec-successor --wait kvd-v2"),
    ("exec handoff drain --no-seal -- sh", "seal"),
    ("exec handoff exec-successor --warm kvd-v2 -- handoff drain -- sh", "commit"),
];

#[test]
fn a_descriptor_that_was_closed_is_named_with_who_may_have_closed_it() {
    for (line, next) in SHELLS {
        for role in ["lease", "incumbent", "state"] {
            let rig = Rig::start(&[]);
            let mut shell = rig.sh(line);
            let fd = number(&mut shell, &format!("{role}="));
            // A shell within the shell that lost it, as after sudo without -C.
            let code = shell.asks(&format!("bash -c 'exec {fd}>&-; handoff {next}'"), "closed");
            assert_eq!(code, 111, "{line}, {role}: {}", shell.said());
            let error = shell.wait_for("fatal");
            assert!(error.contains(&format!("descriptor {fd} ({role})")), "{error}");
            assert!(error.contains("closed") && error.contains("sudo"), "{error}");
            // The outer shell has all of it still.
            assert!(rig.status().unwrap().handoff.is_some(), "{line}, {role}");
            assert_eq!(shell.asks("handoff abort", "abort"), 0, "{}", shell.said());
            shell.leave();
            shell.expect(0);
            rig.expect_undone();
            rig.expect_clean();
        }
    }
}

#[test]
fn a_descriptor_that_was_used_again_is_named_and_not_served() {
    for (line, next) in SHELLS {
        let rig = Rig::start(&[]);
        let mut shell = rig.sh(line);
        let fd = number(&mut shell, "lease=");
        let code = shell.asks(&format!("bash -c 'exec {fd}</dev/null; handoff {next}'"), "reused");
        assert_eq!(code, 111, "{line}: {}", shell.said());
        let error = shell.wait_for("fatal");
        assert!(
            error.contains(&format!("descriptor {fd} (lease)")) && error.contains("used again"),
            "{error}"
        );
        shell.leave();
        shell.expect(0);
        rig.expect_undone();
        rig.expect_clean();
    }
}

#[test]
fn a_table_of_another_shell_is_refused() {
    let rig = Rig::start(&[]);
    let mut shell = rig.sh("exec handoff drain --no-seal -- sh");
    shell.types("echo table $HANDOFF_FDS");
    let table = shell.wait_for("table ").trim_start_matches("table ").to_owned();
    // Copied from one window to another.
    for command in ["seal", "exec-successor --wait kvd-v2", "commit", "abort", "drain -- true"] {
        let said = rig.expect_with(&format!("handoff {command}"), &[("HANDOFF_FDS", &table)], 111);
        assert!(said.contains("fatal") && said.contains("descriptor "), "{command}: {said}");
    }
    assert_eq!(shell.asks("handoff seal", "seal"), 0);
    shell.types("exec handoff exec-successor kvd-v2");
    let pid = shell.pid();
    let mut rig = rig;
    assert_eq!(rig.expect_succeeded(), pid);
    rig.expect_clean();
}

#[test]
fn a_shell_in_the_background_that_keeps_the_lease_is_ended_by_the_deadline() {
    let rig = Rig::start(&[]);
    // The shell ends, and what it left behind has a copy of the lease.
    let mut run = rig.sh("exec handoff drain --deadline 500ms -- sh -c 'sleep 600 & echo $!'");
    run.expect(0);
    let left: u32 = run.said().trim().parse().unwrap();
    assert_eq!(rig.settle_beside(&[left]), rig.first_pid());
    crate::rig::signal(left, "KILL");
    rig.expect_undone();
    rig.expect_clean();
}

#[test]
fn an_environment_that_was_emptied_on_the_way_is_no_lease_and_undoes_the_handoff() {
    let rig = Rig::start(&[]);
    let control = rig.control();
    for (command, rest) in [("seal", ""), ("exec-successor", "kvd-v2"), ("exec-successor --wait", "kvd-v2")] {
        let line = format!(
            "exec handoff drain --no-seal -- env -i PATH=\"$PATH\" handoff {command} --control {} {rest}",
            control.display()
        );
        let said = rig.expect(&line, 100);
        assert!(said.contains("there is no lease in this chain"), "{command}: {said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn two_commands_of_one_chain_at_once_end_in_one_that_serves() {
    let rig = Rig::start(&[]);
    for (line, command) in [
        ("exec handoff drain --no-seal --deadline 5s -- sh", "seal"),
        ("exec handoff drain --deadline 5s -- sh", "exec-successor --wait kvd-v2"),
        ("exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal --deadline 5s -- sh", "seal"),
    ] {
        if rig.label() == "v2" {
            break;
        }
        let mut shell = rig.sh(line);
        shell.types(&format!("handoff {command} & handoff {command}; wait; echo both"));
        shell.wait_for("both");
        shell.leave();
        shell.wait();
        rig.settle();
    }
    rig.expect_clean();
}

#[test]
fn a_shell_that_holds_a_lease_is_not_taken_for_the_daemon() {
    let rig = Rig::start(&[]);
    for line in ["handoff drain", "handoff hold-fds --from-incumbent -- handoff drain"] {
        let said = rig.expect(&format!("{line} -- sh -c 'echo $HANDOFF_FDS; env | grep ^LISTEN_'"), 1);
        assert!(said.contains("listener.resp=") && !said.contains("LISTEN_"), "{line}: {said}");
        rig.expect_undone();
    }
    // A daemon that is started there by mistake would be a second one.
    for line in ["handoff drain -- kvd-v2", "handoff hold-fds --from-incumbent -- handoff drain -- kvd-v2"] {
        let data = rig.data();
        let said = rig.expect_with(line, &[("HANDOFF_DATA_DIR", data.to_str().unwrap())], 100);
        assert!(said.contains("start it with `handoff exec-successor`"), "{line}: {said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}
