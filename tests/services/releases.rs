//! A bad release: it is rolled back, and the service manager sees nothing.

use crate::look;
use crate::rig::{Service, Setup, Tools};

each_manager! {
    a_bad_release_is_rolled_back_and_nobody_notices
    a_bad_release_by_hup_is_rolled_back_and_said_in_the_log
    a_release_that_dies_on_trial_is_rolled_back_with_its_writes_kept
    a_release_that_dies_when_it_is_granted_is_started_in_the_incumbents_place
}

/// A bad release, and what `handoff trigger` exits with.
const BAD: [(&str, i32); 7] = [
    ("crash-at-start", 3),
    ("exit-while-warm", 3),
    ("hang-while-warm", 4),
    ("crash-after-begin", 3),
    ("hang-after-begin", 4),
    ("stale", 3),
    ("unhealthy", 3),
];

const SHORT: &str = "warm_up_secs = 2\ndeadline_secs = 2\ndrain_grace_secs = 1\n";

fn a_bad_release_is_rolled_back_and_nobody_notices(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup { keys: SHORT, ..Setup::default() }) else { return };
    let before = service.settle();
    for (fault, code) in BAD {
        let said = service.swap("v2", &[fault]);
        assert_eq!(said.code, code, "{fault}: {said:?}");
        assert_eq!(service.settle(), before, "{fault}");
    }
    service.swap("v3", &[]).expect(0);
    let after = service.settle_with("v3");
    assert_eq!(after.supervisor, before.supervisor);
    service.expect_clean();
}

fn a_bad_release_by_hup_is_rolled_back_and_said_in_the_log(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let before = service.settle();
    service.configure(&Setup { label: "v2", faults: &["unhealthy"], ..Setup::default() });
    service.hup();
    let trigger = service.trigger();
    crate::common::eventually("a swap that has ended", || {
        look::supervising(&trigger).is_some_and(|state| !state.swaps.is_empty() && state.doing == "serving")
    });
    assert_eq!(service.settle(), before);
    service.await_log("rolled-back");
    // What it starts the daemon with has changed; which program serves has not.
    crate::rig::kill(before.daemon);
    let after = service.settle_as("another daemon", |settled| settled.daemon != before.daemon);
    assert_eq!(after.label, "v1");
    service.expect_none_refused();
}

fn a_release_that_dies_on_trial_is_rolled_back_with_its_writes_kept(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let before = service.settle();
    let command = service.swap_command("v2", &["--bake", "10m"], &["crash-after-serving-ms=200"]);
    crate::common::said::Said::of(command).expect(3);
    assert_eq!(service.settle(), before);
    service.expect_none_refused();
}

fn a_release_that_dies_when_it_is_granted_is_started_in_the_incumbents_place(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let before = service.settle();
    let said = service.swap("v2", &["crash-when-ready"]);
    // Its record is final: it is its program that serves then, in the process of the one before.
    let after = service.settle();
    assert_eq!(after.supervisor, before.supervisor, "{said:?}");
    assert_eq!(after.label, "v2", "{said:?}");
    service.expect_none_refused();
}
