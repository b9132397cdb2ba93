//! Under a real systemd.

use std::process::Command;

use crate::common::has_tool;
use crate::common::said::Said;
use crate::machine::{Machine, units};

/// Runs systemd-analyze over the units, with the program where it is installed.
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

#[test]
fn a_machine_boots() {
    let Some(machine) = Machine::boot() else { return };
    machine.ctl(&["start", "kvd.socket"]);
    eprintln!("{}", machine.log());
}
