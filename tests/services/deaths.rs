//! A daemon that dies by itself: what the service manager sees of it is what handoff.toml says.

use handoff::sys::process::Signal;

use crate::common::eventually;
use crate::look;
use crate::rig::{Service, Setup, Tools, kill, signal};

each_manager! {
    a_daemon_that_dies_takes_its_supervisor_with_it_and_finish_is_told_the_same
    a_daemon_that_is_started_again_is_no_matter_for_the_service_manager
    a_daemon_that_ends_with_success_is_started_again_only_where_that_is_asked_for
    a_daemon_that_dies_again_and_again_is_given_up
    a_daemon_whose_command_line_is_wrong_is_not_tried_for_ever
}

fn a_daemon_that_dies_takes_its_supervisor_with_it_and_finish_is_told_the_same(tools: Tools) {
    let setup = Setup { policy: "never", ..Setup::default() };
    let Some(mut service) = Service::start(tools, &setup) else { return };
    service.swap("v2", &[]).expect(0);
    let before = service.settle_with("v2");
    kill(before.daemon);
    service.await_log("kvd/finish: warning: ended by signal 9");
    let next = service.settle_with("v2");
    assert_ne!(next.supervisor, before.supervisor);
    signal(next.daemon, Signal::SIGTERM);
    service.await_log("kvd/finish: info: 0: ");
    let last = service.settle_with("v2");
    assert_ne!(last.supervisor, next.supervisor);
    service.expect_nothing_lost();
}

fn a_daemon_that_is_started_again_is_no_matter_for_the_service_manager(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    service.swap("v2", &[]).expect(0);
    let before = service.settle_with("v2");
    kill(before.daemon);
    let after = service.settle_as("another daemon", |settled| settled.daemon != before.daemon);
    // What was deployed last, not what handoff.toml names.
    assert_eq!((after.supervisor, after.label), (before.supervisor, "v2".to_owned()));
    assert_eq!(look::supervising(&service.trigger()).unwrap().restarts, 1);
    assert!(!service.log().contains("kvd/finish"), "{}", service.log());
    service.expect_none_refused();
}

fn a_daemon_that_ends_with_success_is_started_again_only_where_that_is_asked_for(tools: Tools) {
    let setup = Setup { policy: "always", ..Setup::default() };
    let Some(mut service) = Service::start(tools, &setup) else { return };
    let before = service.settle();
    signal(before.daemon, Signal::SIGTERM);
    let after = service.settle_as("another daemon", |settled| settled.daemon != before.daemon);
    assert_eq!(after.supervisor, before.supervisor);
    service.expect_none_refused();
    service.down();
    service.configure(&Setup::default());
    service.up();
    let before = service.settle();
    signal(before.daemon, Signal::SIGTERM);
    let after = service.settle_as("another daemon", |settled| settled.daemon != before.daemon);
    assert_ne!(after.supervisor, before.supervisor);
}

fn a_daemon_that_dies_again_and_again_is_given_up(tools: Tools) {
    let setup = Setup {
        faults: &["crash-after-serving-ms=1"],
        restart: "max = 2\ndelay_secs = 0.01\n",
        ..Setup::default()
    };
    let Some(service) = Service::supervised(tools, &setup) else { return };
    service.await_log("kvd/finish: warning: ended by signal 6");
    let serves = service.log().matches(" serves on ").count();
    assert!(serves >= 3, "{}", service.log());
}

fn a_daemon_whose_command_line_is_wrong_is_not_tried_for_ever(tools: Tools) {
    let setup = Setup { faults: &["nonsense"], policy: "never", ..Setup::default() };
    let Some(mut service) = Service::supervised(tools, &setup) else { return };
    service.await_log("kvd/finish: warning: exit code 100: ");
    eventually("the service to be down", || service.is_down());
    service.configure(&Setup::default());
    service.up();
    service.settle_with("v1");
    service.begin_load();
    service.expect_clean();
}
