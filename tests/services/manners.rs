//! What is expected of a good citizen: its own upgrade, readiness, and a log.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::said::Said;
use crate::common::{HANDOFF, eventually};
use crate::rig::{S6, Service, Setup, Tools, kill};

each_manager! {
    a_supervisor_becomes_its_next_release_with_the_same_pid_and_daemon
    a_supervisor_whose_next_release_is_broken_stays_what_it_is
    what_every_generation_says_reaches_the_logger
}

impl Service {
    /// Makes the name that the run script calls lead to another program.
    fn flip(&self, target: &Path) {
        let beside = self.path("bin/beside");
        symlink(target, &beside).unwrap();
        fs::rename(beside, self.path("bin/handoff")).unwrap();
    }

    fn supervisors_program(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.settle().supervisor)).unwrap()
    }
}

fn a_supervisor_becomes_its_next_release_with_the_same_pid_and_daemon(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    service.swap("v2", &[]).expect(0);
    let before = service.settle_with("v2");
    let [one, two] = ["handoff-1", "handoff-2"].map(|name| service.path(name));
    for copy in [&one, &two] {
        fs::copy(HANDOFF, copy).unwrap();
    }
    service.flip(&one);
    service.tell(&["2"], &["-2"]);
    eventually(&format!("the next release; {}", service.log()), || service.supervisors_program() == one);
    assert_eq!(service.settle(), before);
    service.flip(&two);
    Said::of(service.handoff(&["trigger", "--reexec"])).expect(0);
    assert_eq!(service.supervisors_program(), two);
    assert_eq!(service.settle(), before);
    // It is still the daemon's parent, and can still swap, start again and stop.
    service.swap("v3", &[]).expect(0);
    let after = service.settle_with("v3");
    assert_eq!(after.supervisor, before.supervisor);
    service.expect_clean();
    kill(after.daemon);
    service.settle_as("another daemon", |settled| settled.daemon != after.daemon);
    service.down();
    service.await_log("kvd/finish: info: 0: ");
}

fn a_supervisor_whose_next_release_is_broken_stays_what_it_is(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let before = service.settle();
    let broken = service.path("broken");
    for text in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\nexit 0\n", "no program\n"] {
        fs::write(&broken, text).unwrap();
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
        service.flip(&broken);
        let said = Said::of(service.handoff(&["trigger", "--reexec"]));
        assert!(said.code == 1 && !said.err.is_empty(), "{said:?}");
        service.tell(&["2"], &["-2"]);
        assert_eq!(service.settle(), before);
    }
    // One that is not there at all.
    service.flip(&service.path("missing"));
    Said::of(service.handoff(&["trigger", "--reexec"])).expect(1);
    assert_eq!(service.settle(), before);
    service.flip(Path::new(HANDOFF));
    service.swap("v2", &[]).expect(0);
    service.settle_with("v2");
    service.expect_clean();
}

fn what_every_generation_says_reaches_the_logger(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    for label in ["v2", "v3"] {
        service.swap(label, &[]).expect(0);
    }
    let before = service.settle_with("v3");
    kill(before.supervisor);
    service.settle_as("another supervisor", |settled| settled.supervisor != before.supervisor);
    // Who was adopted still has it, and who comes after has it again.
    service.swap("v4", &[]).expect(0);
    service.settle_with("v4");
    for label in ["v1", "v2", "v3", "v4"] {
        service.await_log(&format!("kvd {label} serves on {}", service.addr));
    }
    eventually("the last words of all but the last", || {
        service.log().matches("handed over in ").count() == 3
    });
    service.expect_clean();
}

mod readiness {
    use super::*;

    #[test]
    fn a_service_is_up_for_s6_once_its_daemon_is_ready_and_again_after_a_kill() {
        let Some(service) = gated() else { return };
        let gate = service.path("gate");
        eventually("the daemon", || service.log().contains(" serves on "));
        assert_eq!(service.svstat("ready").as_deref(), Some("false"));
        let waiting = Command::new("s6-svwait").args(["-U", "-t", "60000"]).arg(service.service()).spawn();
        fs::write(&gate, "").unwrap();
        assert!(crate::common::wait_for_exit(&mut waiting.unwrap()).success(), "{}", service.log());
        let first = service.settle();
        expect_no_notification_descriptor(&service, first.supervisor);
        // Once is once, also after a swap and when the supervisor becomes its program anew.
        service.swap("v2", &[]).expect(0);
        Said::of(service.handoff(&["trigger", "--reexec"])).expect(0);
        let before = service.settle_with("v2");
        assert_eq!(before.supervisor, first.supervisor);
        expect_no_notification_descriptor(&service, before.supervisor);
        // The next supervisor has a descriptor of its own.
        kill(before.supervisor);
        let after =
            service.settle_as("another supervisor", |settled| settled.supervisor != before.supervisor);
        let ready = Command::new("s6-svwait").args(["-U", "-t", "60000"]).arg(service.service()).status();
        assert!(ready.unwrap().success(), "{}", service.log());
        assert_eq!(after.daemon, before.daemon);
        expect_no_notification_descriptor(&service, after.supervisor);
    }

    /// A service that is ready once there is a file.
    fn gated() -> Option<Service> {
        let tables = "\n[readiness]\nby = \"command\"\ncommand = \"test -e ../../gate\"\n";
        Service::supervised(S6, &Setup { tables, ..Setup::default() })
    }

    /// The pipe to s6-supervise is closed, here and in the daemon: whatever gets its number next is not written to.
    #[track_caller]
    fn expect_no_notification_descriptor(service: &Service, supervisor: u32) {
        let manager = crate::look::processes(service.dir());
        let manager = manager.iter().find(|process| process.words[0] == "s6-supervise").unwrap().pid;
        let pipes = |pid: u32| -> Vec<String> {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let links = fds.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string()));
            links.filter(|link| link.starts_with("pipe:")).collect()
        };
        // The logger's is shared on purpose, and what this test was started with may have leaked into all of them.
        let mut theirs = pipes(manager);
        let own = pipes(std::process::id());
        let log = fs::read_link(format!("/proc/{supervisor}/fd/2")).unwrap();
        theirs.retain(|pipe| *pipe != log.display().to_string() && !own.contains(pipe));
        let daemon = service.settle().daemon;
        for pid in [supervisor, daemon] {
            let shared: Vec<String> = pipes(pid).into_iter().filter(|pipe| theirs.contains(pipe)).collect();
            assert!(shared.is_empty(), "{pid} shares {shared:?} with s6-supervise");
        }
    }
}
