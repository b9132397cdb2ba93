//! TERM: a planned stop, which is never a swap.

use std::process::Command;

use crate::common::eventually;
use crate::common::said::Said;
use crate::look;
use crate::rig::{Service, Setup, Tools};

each_manager! {
    a_service_that_is_told_to_go_down_makes_its_data_final_and_comes_up_again
    a_swap_that_goes_on_is_settled_before_the_stop
    a_trial_that_goes_on_is_settled_before_the_stop
    a_daemon_that_hangs_in_its_last_drain_is_ended_in_time
    a_supervisor_that_is_killed_on_its_way_down_leaves_no_daemon
}

impl Service {
    /// Waits until only the service manager is left, and its logger.
    #[track_caller]
    fn expect_down(&self) {
        let is_left = |process: &look::Process| process.runs("supervise") || process.runs("kvd");
        eventually(&format!("nobody to be left; {}", self.log()), || {
            self.is_down() && !look::processes(self.dir()).iter().any(is_left)
        });
    }
}

fn a_service_that_is_told_to_go_down_makes_its_data_final_and_comes_up_again(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    service.swap("v2", &[]).expect(0);
    service.settle_with("v2");
    service.down();
    service.await_log("kvd/finish: info: 0: ");
    service.await_log("the data is sealed");
    service.expect_down();
    service.up();
    service.settle_with("v2");
    service.expect_nothing_lost();
}

fn a_swap_that_goes_on_is_settled_before_the_stop(tools: Tools) {
    let setup = Setup { faults: &["slow-drain-ms=700"], ..Setup::default() };
    let Some(mut service) = Service::start(tools, &setup) else { return };
    let swap = service.begin_swap("v2", &[], &[]);
    service.await_phase("draining");
    service.down();
    let said = Said::by(swap);
    let label = match said.code {
        0 => "v2",
        3 => "v1",
        _ => panic!("{said:?}; {}", service.log()),
    };
    service.await_log("kvd/finish: info: 0: ");
    service.expect_down();
    service.up();
    service.settle_with(label);
    service.expect_nothing_lost();
}

fn a_trial_that_goes_on_is_settled_before_the_stop(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let swap = service.begin_swap("v2", &["--bake", "10m"], &[]);
    service.await_phase("on-trial");
    service.down();
    let said = Said::by(swap);
    service.expect_down();
    let label = if said.code == 0 { "v2" } else { "v1" };
    assert!([0, 3].contains(&said.code), "{said:?}; {}", service.log());
    assert_eq!(look::recorded(&service.data()).as_deref(), Some(label), "{said:?}; {}", service.log());
    service.up();
    service.settle_with(label);
    service.expect_nothing_lost();
}

fn a_daemon_that_hangs_in_its_last_drain_is_ended_in_time(tools: Tools) {
    let setup = Setup {
        faults: &["slow-drain-ms=600000"],
        keys: "drain_grace_secs = 1\nstop_secs = 1\n",
        ..Setup::default()
    };
    let Some(mut service) = Service::start(tools, &setup) else { return };
    service.down();
    service.expect_down();
    service.await_log("kvd/finish: ");
    service.up();
    service.settle();
    service.expect_nothing_lost();
}

/// By `sv force-stop`, and by s6 after `timeout-kill`.
fn a_supervisor_that_is_killed_on_its_way_down_leaves_no_daemon(tools: Tools) {
    let setup = Setup { faults: &["slow-drain-ms=3000"], keys: "stop_secs = 60\n", ..Setup::default() };
    let Some(mut service) = Service::start(tools, &setup) else { return };
    if tools.is_s6() {
        // Read when the service starts.
        service.down();
        std::fs::write(service.service().join("timeout-kill"), "300\n").unwrap();
        service.up();
        service.settle();
        service.down();
    } else {
        // It says that it had to kill.
        let _ = Command::new("sv").args(["-w", "1", "force-stop"]).arg(service.service()).output().unwrap();
    }
    service.await_log("the supervisor was killed on its way down: stopping the daemon");
    service.expect_down();
    service.up();
    service.settle_with("v1");
    service.expect_nothing_lost();
}
