//! Under a real systemd, with the units as they are shipped: what their comments promise.

use std::process::Command;

use handoff::sys::process::{PidFd, Signal};

use crate::common::said::Said;
use crate::common::{HANDOFF, has_tool};
use crate::machine::{Machine, units};

/// Runs systemd-analyze over the units, with a program that is there.
#[test]
fn the_units_are_what_systemd_understands() {
    if !has_tool("systemd", Command::new("systemd-analyze").arg("--version")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["kvd.service", "kvd.socket"] {
        let unit = std::fs::read_to_string(units().join(name)).unwrap();
        std::fs::write(dir.path().join(name), unit.replace("/usr/local/bin/handoff", "/bin/true")).unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    command
        .args(["verify", "--man=no"])
        .args(["kvd.service", "kvd.socket"].map(|name| dir.path().join(name)));
    let said = Said::of(command).expect(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
}

/// As far as the unit goes; what it says of this machine is another matter.
#[test]
fn the_doctor_finds_no_trap_in_the_unit() {
    let mut command = Command::new(HANDOFF);
    command.args(["doctor", "--json", "--unit"]).arg(units().join("kvd.service"));
    let found = Said::of(command).json();
    let checks = found["checks"].as_array().unwrap();
    let of_the_unit: Vec<_> = checks.iter().filter(|check| check["check"] == "unit").collect();
    assert!(!of_the_unit.is_empty() && of_the_unit.iter().all(|check| check["verdict"] == "ok"), "{found}");
}

/// A machine with the service, under load, and the daemon's pid.
fn start(units: &[&str], drop_in: &str) -> Option<(Machine, u32)> {
    let mut machine = Machine::boot()?;
    machine.drop_in("[Service]\nStandardOutput=append:/var/lib/said\nStandardError=inherit\n");
    if !drop_in.is_empty() {
        machine.drop_in(drop_in);
    }
    machine.configure("args = [\"kvd\"]", "args = [\"kvd\", \"--version-label\", \"v1\"]");
    machine.ctl(&[&["start"], units].concat());
    // The start has succeeded: so somebody serves already.
    assert_eq!(machine.show("SubState"), "running", "{}", machine.log());
    let daemon = machine.settle("v1");
    machine.begin_load();
    Some((machine, daemon))
}

impl Machine {
    /// Deploys as the unit has it, and waits until systemd sees that it is over.
    fn reload(&self, from: &str, to: &str) {
        self.configure(from, to);
        self.ctl(&["reload", "kvd.service"]);
    }

    fn await_running(&self) {
        self.await_shown("SubState", |state| state == "running");
    }

    fn kill_supervisor(&self, signal: &str) {
        self.ctl(&["kill", "--kill-whom=main", "--signal", signal, "kvd.service"]);
    }

    /// Kills the supervisor, and waits for the next one.
    fn lose_supervisor(&self) {
        let (before, restarts) = (self.main_pid(), self.restarts());
        self.kill_supervisor("KILL");
        self.await_shown("NRestarts", |n| n.parse() == Ok(restarts + 1));
        self.await_running();
        assert_ne!(self.main_pid(), before);
    }

    fn restarts(&self) -> u32 {
        self.show("NRestarts").parse().unwrap()
    }
}

#[test]
fn swaps_keep_the_main_pid_and_a_stop_leaves_nothing() {
    let Some((mut machine, _)) = start(&["kvd.socket", "kvd.service"], "") else { return };
    let supervisor = machine.main_pid();
    for (from, to) in [("v1", "v2"), ("v2", "v3"), ("v3", "v4")] {
        machine.reload(&format!("\"{from}\""), &format!("\"{to}\""));
        let daemon = machine.settle(to);
        machine.await_running();
        let mut expected = vec![supervisor, daemon];
        expected.sort_unstable();
        // Who served may still be there for a moment.
        crate::common::eventually("the two processes", || {
            let mut found = machine.processes();
            found.sort_unstable();
            found == expected
        });
        assert_eq!(machine.main_pid(), supervisor, "{}", machine.log());
    }
    // A successor that is not healthy: the incumbent serves on, and systemd has nothing to do.
    machine.reload("\"v4\"", "\"v5\", \"--fail\", \"unhealthy\"");
    machine.await_log("rolled-back");
    machine.settle("v4");
    machine.await_running();
    assert_eq!((machine.main_pid(), machine.restarts()), (supervisor, 0), "{}", machine.log());
    assert!(machine.show("StatusText").contains("rolled-back"), "{}", machine.show("StatusText"));

    // A new supervisor in place.
    machine.kill_supervisor("USR2");
    machine.await_log("goes on as version");
    machine.reload("\"v5\", \"--fail\", \"unhealthy\"", "\"v6\"");
    machine.settle("v6");
    machine.await_running();
    assert_eq!((machine.main_pid(), machine.restarts()), (supervisor, 0), "{}", machine.log());

    machine.expect_clean();
    machine.ctl(&["stop", "kvd.socket", "kvd.service"]);
    assert_eq!(machine.show("ActiveState"), "inactive");
    assert_eq!((machine.show("Result"), machine.show("ExecMainStatus")), ("success".into(), "0".into()));
    assert_eq!(machine.show("NFileDescriptorStore"), "0");
    assert!(machine.all_handoffs().is_empty(), "{:?}", machine.all_handoffs());
}

#[test]
fn a_supervisor_that_is_killed_leaves_the_daemon_to_the_next_one() {
    let Some((mut machine, daemon)) = start(&["kvd.service"], "") else { return };
    for _ in 0..3 {
        machine.lose_supervisor();
        assert_eq!(machine.settle("v1"), daemon, "{}", machine.log());
    }
    // The next one does all that the first one did.
    machine.reload("\"v1\"", "\"v2\"");
    machine.settle("v2");
    machine.await_running();
    machine.expect_clean();
    machine.ctl(&["stop", "kvd.service"]);
    assert_eq!(machine.show("Result"), "success");
    assert!(machine.all_handoffs().is_empty(), "{:?}", machine.all_handoffs());
}

#[test]
fn the_sockets_outlive_everything_in_the_service() {
    let Some((mut machine, daemon)) = start(&["kvd.service"], "") else { return };
    machine.await_shown("NFileDescriptorStore", |n| n == "1");
    // Every process at once: only systemd has the socket then.
    machine.ctl(&["kill", "--kill-whom=all", "--signal", "KILL", "kvd.service"]);
    machine.await_shown("NRestarts", |n| n == "1");
    machine.await_running();
    let next = machine.settle("v1");
    assert_ne!(next, daemon);
    machine.expect_served();
    machine.ctl(&["restart", "kvd.service"]);
    machine.await_running();
    assert_ne!(machine.settle("v1"), next);
    assert_eq!(machine.show("NFileDescriptorStore"), "1");
    machine.expect_none_refused();
}

#[test]
fn the_other_kill_modes_end_the_daemon_with_its_supervisor_and_nothing_is_lost() {
    for mode in ["control-group", "mixed"] {
        let drop_in = format!("[Service]\nKillMode={mode}\n");
        let Some((mut machine, daemon)) = start(&["kvd.service"], &drop_in) else { return };
        machine.lose_supervisor();
        assert_ne!(machine.settle("v1"), daemon, "{mode}: {}", machine.log());
        machine.expect_none_refused();
    }
}

#[test]
fn a_supervisor_that_is_stuck_is_replaced_and_the_daemon_serves_on() {
    let drop_in = "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n";
    let Some((mut machine, daemon)) = start(&["kvd.service"], drop_in) else { return };
    // It is fed, and longer than it would live otherwise.
    let since = std::time::Instant::now();
    while since.elapsed() < std::time::Duration::from_secs(5) {
        machine.expect_served();
        assert_eq!(machine.restarts(), 0, "{}", machine.log());
    }
    machine.kill_supervisor("STOP");
    machine.await_shown("NRestarts", |n| n == "1");
    machine.await_running();
    assert_eq!(machine.settle("v1"), daemon, "{}", machine.log());
    machine.expect_clean();
}

#[test]
fn a_daemon_that_dies_is_started_again_by_its_supervisor_and_systemd_sees_nothing() {
    let Some((mut machine, daemon)) = start(&["kvd.service"], "") else { return };
    let supervisor = machine.main_pid();
    PidFd::open(machine.pid_outside(daemon)).unwrap().signal(Signal::SIGKILL).unwrap();
    crate::common::eventually("another daemon", || {
        machine.who_serves().is_some_and(|(pid, _)| pid != daemon)
    });
    machine.settle("v1");
    assert_eq!((machine.main_pid(), machine.restarts()), (supervisor, 0), "{}", machine.log());
    machine.expect_none_refused();
}

#[test]
fn a_configuration_that_is_wrong_is_not_tried_again() {
    let Some(machine) = Machine::boot() else { return };
    machine.drop_in("[Service]\nStandardOutput=append:/var/lib/said\nStandardError=inherit\n");
    machine.configure("control_socket", "control_sockets");
    assert_ne!(machine.systemctl(&["start", "kvd.service"]).code, 0);
    machine.await_shown("ActiveState", |state| state == "failed");
    assert_eq!((machine.show("ExecMainStatus"), machine.restarts()), ("100".into(), 0), "{}", machine.log());
    assert!(machine.log().contains("control_sockets"), "{}", machine.log());
}
