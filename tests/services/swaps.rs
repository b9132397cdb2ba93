//! Swaps: the service manager sees one pid, and clients see nothing.

use crate::common::said::Said;
use crate::rig::{Service, Setup, Tools};

each_manager! {
    swaps_by_trigger_and_by_hup_keep_one_pid_and_disturb_nobody
    #[ignore = "takes long"]
    thirty_swaps_keep_one_pid_and_disturb_nobody
    a_swap_to_what_a_link_leads_to_is_a_flip_and_a_hup
}

fn swaps_by_trigger_and_by_hup_keep_one_pid_and_disturb_nobody(tools: Tools) {
    swap_often(tools, 6);
}

fn thirty_swaps_keep_one_pid_and_disturb_nobody(tools: Tools) {
    swap_often(tools, 30);
}

fn swap_often(tools: Tools, swaps: usize) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let first = service.settle_with("v1");
    let (mut before, mut gaps) = (first.clone(), vec![]);
    for number in 0..swaps {
        let label = format!("v{}", number + 2);
        if number % 2 == 0 {
            let said = Said::of(service.swap_command(&label, &["--json"], &[])).expect(0);
            gaps.push(said.json()["gap_us"].as_u64().unwrap());
        } else {
            service.configure(&Setup { label: &label, ..Setup::default() });
            service.hup();
        }
        let after = service.settle_with(&label);
        assert_eq!(after.supervisor, first.supervisor);
        assert_ne!(after.daemon, before.daemon);
        before = after;
    }
    let counts = service.expect_clean();
    gaps.sort_unstable();
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
    println!(
        "figures: {}: {swaps} swaps, every other one by HUP: one pid, {} requests, {} disturbances, 0 lost, longest stall {}, gap median {} max {}",
        tools.name,
        counts.answered,
        counts.disturbances(),
        ms(counts.stall_us_max),
        ms(gaps[gaps.len() / 2]),
        ms(*gaps.last().unwrap()),
    );
}

/// The usual deploy: nothing in handoff.toml changes.
fn a_swap_to_what_a_link_leads_to_is_a_flip_and_a_hup(tools: Tools) {
    let binary = |service: &Service| {
        let [one, two, link] = ["kvd-1", "kvd-2", "kvd"].map(|name| service.path("bin").join(name));
        (one, two, link)
    };
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let (one, two, link) = binary(&service);
    for copy in [&one, &two] {
        std::fs::copy(crate::common::HANDOFF, copy).unwrap();
    }
    let flip_to = |target: &std::path::Path| {
        let beside = link.with_extension("new");
        std::os::unix::fs::symlink(target, &beside).unwrap();
        std::fs::rename(&beside, &link).unwrap();
    };
    let keys = format!("binary = \"{}\"\n", link.display());
    let first = service.settle();
    for (target, label) in [(&one, "v1"), (&two, "v2"), (&one, "v3")] {
        flip_to(target);
        // The label tells the test that the swap is over; the program is what the link leads to.
        service.configure(&Setup { label, keys: &keys, ..Setup::default() });
        service.hup();
        let daemon = service
            .settle_as("the program that the link leads to", |settled| {
                std::fs::read_link(format!("/proc/{}/exe", settled.daemon)).is_ok_and(|exe| exe == *target)
            })
            .daemon;
        assert_ne!(daemon, first.daemon);
    }
    assert_eq!(service.settle().supervisor, first.supervisor);
    service.expect_clean();
}
