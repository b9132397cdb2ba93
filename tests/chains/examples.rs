//! The chains that handoff is made for, word for word as they are documented.

use std::path::Path;

use crate::common::eventually;
use crate::rig::{Rig, children_of, descriptors, variables};

#[test]
fn a_cold_start_in_a_run_script_is_a_chain_whose_daemon_has_the_socket_and_the_lock() {
    let mut rig = Rig::prepare();
    // Without a port and a place that others may have.
    let data = rig.data();
    let line = format!(
        "exec handoff hold-fds --listen http=0.0.0.0:0 -- handoff lock {} -- kvd",
        data.to_str().unwrap()
    );
    rig.begin(&["sh", "-c", &line], &[]);
    // The daemon has the pid that the service manager knows; one copy of its lock, which it did not take itself; and the socket.
    assert_eq!(rig.settle(), rig.first_pid());
    let held = descriptors(rig.first_pid());
    assert_eq!(held.iter().filter(|(_, to)| to.ends_with("/.handoff.lock")).count(), 1, "{held:?}");
    assert!(held.iter().any(|(_, to)| *to == rig.listening_inode()), "{held:?}");
    let who = rig.expect(&format!("handoff lock --who {}", data.display()), 0);
    assert!(who.contains(&format!("{} ", rig.first_pid())) && who.contains("took it"), "{who}");
    assert!(!who.contains("inherited"), "{who}");
    rig.expect_clean();
}

const WHOLE: &str = "handoff hold-fds --from-incumbent -- handoff journal begin -- \\
  handoff exec-successor --warm kvd-v2 -- handoff drain --grace 25s -- handoff commit";

#[test]
fn the_whole_swap_as_one_chain_commits() {
    let mut rig = Rig::start(&[]);
    let said = rig.expect(WHOLE, 0);
    assert!(said.starts_with("committed "), "{said}");
    rig.expect_succeeded();
    let current = rig.expect("handoff journal show", 0);
    assert!(current.contains("committed"), "{current}");
    rig.expect_clean();
}

#[test]
fn a_swap_in_place_makes_the_chains_own_process_the_daemon() {
    let mut rig = Rig::start(&[]);
    let chain = rig.sh(
        "exec handoff hold-fds --from-incumbent -- handoff drain --grace 25s -- handoff exec-successor kvd-v2",
    );
    assert_eq!(rig.expect_succeeded(), chain.pid());
    rig.expect_clean();
}

#[test]
fn a_person_at_a_prompt_goes_on_step_by_step() {
    let mut rig = Rig::start(&[]);
    let mut shell = rig.sh("handoff drain --grace 25s -- sh");
    assert_eq!(shell.asks("handoff status", "status"), 0);
    assert!(shell.said().contains("sealed"), "{}", shell.said());
    assert_eq!(shell.asks("handoff exec-successor --wait kvd-v2", "successor"), 0);
    shell.wait_for("committed ");
    shell.leave();
    shell.expect(0);
    rig.expect_succeeded();
    rig.expect_clean();
}

#[test]
fn a_swap_in_one_command_commits() {
    let mut rig = Rig::start(&[]);
    rig.expect("handoff swap kvd-v2", 0);
    rig.expect_succeeded();
    rig.expect_clean();
}

/// What a daemon has open, by kind, without what its surroundings had open before.
fn kinds(pid: u32, surroundings: &[(i32, String)]) -> Vec<String> {
    let kind = |to: String| match to.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => Path::new(&to).file_name().map_or(to.clone(), |name| name.to_string_lossy().into_owned()),
    };
    let own = descriptors(pid).into_iter().filter(|entry| !surroundings.contains(entry));
    let mut kinds: Vec<String> = own.map(|(_, to)| kind(to)).collect();
    kinds.sort();
    kinds
}

/// Nothing of the chain is left in the daemon: no descriptor, no variable, no child.
fn expect_nothing_left(rig: &Rig, pid: u32, started: &[String]) {
    let listening = rig.listening_inode();
    assert!(descriptors(pid).iter().any(|(_, to)| *to == listening), "{:?}", descriptors(pid));
    let is_ours = |name: &&String| name.starts_with("LISTEN_") || *name == "HANDOFF_FDS";
    let variables = variables(pid);
    let left: Vec<&String> =
        variables.iter().filter(|name| !is_ours(name) && !started.contains(name)).collect();
    assert!(left.is_empty(), "{left:?}");
    for name in ["HANDOFF_ID", "HANDOFF_JOURNAL"] {
        assert!(!variables.iter().any(|other| other == name), "{variables:?}");
    }
    assert!(children_of(pid).is_empty());
}

#[test]
fn nothing_of_a_chain_is_left_in_the_daemon() {
    let mut same: Option<Vec<String>> = None;
    for line in [
        "handoff hold-fds --from-incumbent -- handoff journal begin -- handoff drain -- handoff exec-successor PROG",
        "handoff journal begin -- handoff drain -- handoff exec-successor PROG",
        "handoff journal begin -- handoff exec-successor --warm PROG -- handoff drain -- handoff commit",
        "handoff journal begin -- handoff drain -- sh -c 'exec handoff exec-successor --wait PROG'",
    ] {
        let mut rig = Rig::start(&[]);
        let idle = rig.sh("exec sleep 600");
        let (started, surroundings) = (variables(idle.pid_when_running("sleep")), descriptors(idle.pid()));
        drop(idle);
        // A program, not a script: that one is open in its interpreter.
        let program = format!("handoff kvd --version-label v2 --data-dir {}", rig.data().display());
        let chain = rig.sh(&format!("exec {}", line.replace("PROG", &program)));
        let pid = rig.expect_succeeded();
        expect_nothing_left(&rig, pid, &started);
        // Whichever way it became the daemon, it has the same open. A load's connections come and go.
        rig.stop_load();
        let mut found = vec![];
        eventually("the end of the last connection", || {
            let before = std::mem::replace(&mut found, kinds(pid, &surroundings));
            before == found
        });
        assert_eq!(*same.get_or_insert_with(|| found.clone()), found, "{line}: {:?}", descriptors(pid));
        assert_eq!(found.iter().filter(|kind| *kind == ".handoff.lock").count(), 1, "{found:?}");
        assert!(
            !found.iter().any(|kind| kind.contains("handoff-state") || kind.contains("journal")),
            "{found:?}"
        );
        drop(chain);
    }
}
