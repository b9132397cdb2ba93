//! Servers that nobody here wrote, replaced under load by `handoff wrap`: with the scripts in `scripts/wrap/` as they are shipped, by good
//! releases and by bad ones.
//!
//! The ledger counts for clients that connect for each request: refused, reset, closed before an answer, and writes that were
//! acknowledged and are gone, of which there may be none. Connections that are kept are closed by each server in its own way, and
//! counted apart.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod load;
mod servers;
mod site;
mod supervised;
mod wrapped;

use site::{Fault, Server};
use wrapped::Wrapped;

macro_rules! each_server {
    ($($server:ident)*) => {
        $(mod $server {
            use crate::servers::$server::SERVER;

            #[test]
            fn swaps_under_load_are_not_noticed() {
                super::swaps_under_load_are_not_noticed(&SERVER, 5);
            }

            #[test]
            #[ignore = "takes longer"]
            fn thirty_swaps_under_load_are_not_noticed() {
                super::swaps_under_load_are_not_noticed(&SERVER, 30);
            }

            #[test]
            fn a_bad_release_leaves_the_good_one_serving() {
                super::a_bad_release_leaves_the_good_one_serving(&SERVER);
            }

            #[test]
            fn a_release_that_dies_on_trial_is_replaced_by_the_one_before() {
                super::a_release_that_dies_on_trial_is_replaced_by_the_one_before(&SERVER);
            }
        })*
    };
}

each_server! { nginx haproxy gunicorn uvicorn node python sd_listen }

fn swaps_under_load_are_not_noticed(server: &'static Server, swaps: usize) {
    let Some(mut wrapped) = Wrapped::start(server) else { return };
    for number in 2..swaps + 2 {
        wrapped.swap(&format!("v{number}"));
    }
    let counts = wrapped.expect_clean();
    // Whose doing it is: the daemon's, which closes what is kept.
    eprintln!("{}, {swaps} swaps: {counts:?}", server.name);
}

fn a_bad_release_leaves_the_good_one_serving(server: &'static Server) {
    let Some(mut wrapped) = Wrapped::start(server) else { return };
    let rolled_back = |args: &[String], fault: Option<Fault>| {
        let swapped = wrapped.swap_to(args, fault, &[]);
        assert!([3, 4].contains(&swapped.code), "{fault:?}: {swapped:?}\n{}", wrapped.log());
        wrapped.expect_serving("v1");
        wrapped.expect_served();
    };
    let good = wrapped.site.release("v2", false);
    rolled_back(&good, Some(Fault::Exits));
    rolled_back(&good, Some(Fault::Mute));
    rolled_back(&wrapped.site.release("v3", true), None);
    wrapped.swap("v4");
    wrapped.expect_clean();
}

/// What it had accepted dies with it; what it had acknowledged does not.
fn a_release_that_dies_on_trial_is_replaced_by_the_one_before(server: &'static Server) {
    let Some(mut wrapped) = Wrapped::start(server) else { return };
    let args = wrapped.site.release("v2", false);
    let swapping = wrapped.begin(&args, Some(Fault::Dies), &["--bake", "10m"]);
    wrapped.until("the trial", || wrapped.status().is_some_and(|status| status.phase == "on-trial"));
    wrapped.until("v2 to serve", || wrapped.site.version().as_deref() == Some("v2"));
    wrapped.expect_served();
    wrapped.site.let_die();
    let swapped = swapping.end(&wrapped.site);
    assert_eq!(swapped.code, 3, "{swapped:?}\n{}", wrapped.log());
    wrapped.expect_serving("v1");
    wrapped.expect_nothing_lost();
}
