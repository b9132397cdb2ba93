//! `kill -9` of anybody, at any moment.

use std::process::Child;
use std::time::Duration;

use crate::common::eventually;
use crate::common::said::Said;
use crate::look::{self, Settled};
use crate::rig::{Service, Setup, Tools, kill, kill_at_once};

each_manager! {
    a_supervisor_that_is_killed_is_followed_by_one_that_adopts_the_daemon
    a_daemon_that_is_killed_is_followed_by_one_on_the_same_sockets
    a_supervisor_and_a_daemon_that_are_killed_are_followed_by_others
    everything_that_is_killed_starts_as_after_a_reboot
    a_supervisor_that_nobody_watches_any_more_makes_room_for_another
    #[ignore = "takes long"]
    a_supervisor_that_is_killed_at_twenty_moments_is_never_missed
    #[ignore = "takes long"]
    a_daemon_that_is_killed_at_twenty_moments_refuses_nobody
    #[ignore = "takes long"]
    a_supervisor_and_a_daemon_that_are_killed_at_twenty_moments_lose_nothing
    #[ignore = "takes long"]
    everything_that_is_killed_at_twenty_moments_loses_nothing
}

/// How many of the moments are in the plain run.
const SAMPLE: usize = 4;

fn a_supervisor_that_is_killed_is_followed_by_one_that_adopts_the_daemon(tools: Tools) {
    kill_often(tools, Victim::Supervisor, SAMPLE);
}

fn a_daemon_that_is_killed_is_followed_by_one_on_the_same_sockets(tools: Tools) {
    kill_often(tools, Victim::Daemon, SAMPLE);
}

fn a_supervisor_and_a_daemon_that_are_killed_are_followed_by_others(tools: Tools) {
    kill_often(tools, Victim::Both, SAMPLE);
}

fn everything_that_is_killed_starts_as_after_a_reboot(tools: Tools) {
    kill_often(tools, Victim::Everything, SAMPLE);
}

fn a_supervisor_that_is_killed_at_twenty_moments_is_never_missed(tools: Tools) {
    kill_often(tools, Victim::Supervisor, MOMENTS.len());
}

fn a_daemon_that_is_killed_at_twenty_moments_refuses_nobody(tools: Tools) {
    kill_often(tools, Victim::Daemon, MOMENTS.len());
}

fn a_supervisor_and_a_daemon_that_are_killed_at_twenty_moments_lose_nothing(tools: Tools) {
    kill_often(tools, Victim::Both, MOMENTS.len());
}

fn everything_that_is_killed_at_twenty_moments_loses_nothing(tools: Tools) {
    kill_often(tools, Victim::Everything, MOMENTS.len());
}

/// The service manager's own process for the service is killed.
fn a_supervisor_that_nobody_watches_any_more_makes_room_for_another(tools: Tools) {
    let Some(mut service) = Service::start(tools, &Setup::default()) else { return };
    let before = service.settle();
    service.kill_watcher();
    let after = service.settle_as("another supervisor", |settled| settled.supervisor != before.supervisor);
    assert_eq!(after.daemon, before.daemon);
    service.swap("v2", &[]).expect(0);
    let last = service.settle_with("v2");
    assert_eq!(last.supervisor, after.supervisor);
    service.expect_clean();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Supervisor,
    /// Whoever answers at the control path.
    Daemon,
    Both,
    /// The service manager, too; and what is in the directory that a reboot empties is gone.
    Everything,
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    Idle,
    /// When whoever was killed is being followed.
    Starting,
    /// In this phase of a swap, as the daemon names it.
    In(&'static str),
    /// Some time after the beginning of a swap.
    After,
}

const MOMENTS: [Moment; 20] = [
    Moment::Idle,
    Moment::Idle,
    Moment::Starting,
    Moment::Starting,
    Moment::In("prepared"),
    Moment::In("prepared"),
    Moment::In("draining"),
    Moment::In("draining"),
    Moment::In("draining"),
    Moment::In("sealing"),
    Moment::In("sealing"),
    Moment::In("attached"),
    Moment::In("attached"),
    Moment::In("attached"),
    Moment::In("on-trial"),
    Moment::In("on-trial"),
    Moment::In("on-trial"),
    Moment::After,
    Moment::After,
    Moment::After,
];

/// Every phase lasts long enough to be seen, and to be killed in at any point.
const SLOW: [&str; 3] = ["slow-drain-ms=300", "slow-seal-ms=300", "slow-open-ms=300"];
const PHASE_MS: u64 = 300;
/// How long the longest swap takes, about.
const SWAP_MS: u64 = 1200;

fn kill_often(tools: Tools, victim: Victim, moments: usize) {
    let setup = Setup {
        faults: &SLOW,
        // So long a successor that hangs is waited for whose incumbent is gone.
        keys: "drain_grace_secs = 3\nwarm_up_secs = 3\ndeadline_secs = 5\n",
        // A daemon that is killed twenty times in a minute is no daemon that dies again and again.
        restart: "max = 1000\ndelay_secs = 0.01\n",
        ..Setup::default()
    };
    let Some(service) = Service::start(tools, &setup) else { return };
    let mut random = Random::seeded();
    let mut killer = Killer { service, victim, swaps: 1 };
    for moment in random.sample(moments) {
        println!("{} {victim:?} {moment:?}", tools.name);
        killer.strike(moment, &mut random);
    }
    let service = &mut killer.service;
    let counts = match victim {
        Victim::Supervisor => service.expect_clean(),
        Victim::Daemon => service.expect_none_refused(),
        Victim::Both | Victim::Everything => service.expect_nothing_lost(),
    };
    println!(
        "figures: {}: {moments} kills of {victim:?}: {} requests, 0 lost, refused {} reset {} unanswered {}, longest stall {:.1} ms",
        tools.name,
        counts.answered,
        counts.refused,
        counts.reset,
        counts.unanswered,
        counts.stall_us_max as f64 / 1000.0,
    );
}

struct Killer {
    service: Service,
    victim: Victim,
    swaps: u32,
}

impl Killer {
    /// Kills at a moment, and demands that all is as it should be afterwards.
    fn strike(&mut self, moment: Moment, random: &mut Random) {
        let before = self.service.settle();
        self.swaps += 1;
        let label = format!("v{}", self.swaps);
        let swap = self.reach(moment, &label, &before, random);
        let recorded = self.kill();
        if let Some(swap) = swap {
            // Whatever it was told: the trigger ends.
            let _ = Said::by(swap);
        }
        let after = self.service.settle();
        let fits = match &recorded {
            Some(recorded) => after.label == *recorded,
            None => after.label == before.label || after.label == label,
        };
        assert!(fits, "{after:?} after {before:?}, the record said {recorded:?}; {}", self.service.log());
        let stayed = after.supervisor == before.supervisor;
        assert_eq!(stayed, self.victim == Victim::Daemon, "{before:?} {after:?} {}", self.service.log());
        self.service.expect_served();
    }

    fn reach(&mut self, moment: Moment, label: &str, before: &Settled, random: &mut Random) -> Option<Child> {
        let (swap, spread) = match moment {
            Moment::Idle => (None, 20),
            Moment::Starting => {
                self.begin_to_follow(before);
                (None, 60)
            }
            Moment::In(phase) => (Some(self.swap_until(phase, label)), PHASE_MS),
            Moment::After => (Some(self.service.begin_swap(label, &[], &SLOW)), SWAP_MS),
        };
        random.pause(spread);
        swap
    }

    /// Kills once, so that the next kill hits who follows.
    fn begin_to_follow(&mut self, before: &Settled) {
        match self.victim {
            Victim::Daemon => kill(before.daemon),
            Victim::Supervisor => kill(before.supervisor),
            Victim::Both => kill_at_once(&[before.supervisor, before.daemon]),
            Victim::Everything => {
                self.service.lose_power();
                self.service.manage();
            }
        }
        if self.victim != Victim::Daemon {
            let service = &self.service;
            eventually("another supervisor", || service.pid().is_some_and(|pid| pid != before.supervisor));
        }
    }

    fn swap_until(&self, phase: &str, label: &str) -> Child {
        let service = &self.service;
        let swap = match phase {
            "prepared" => service.begin_swap(label, &[], &[&SLOW[..], &["hang-while-warm"]].concat()),
            "on-trial" => service.begin_swap(label, &["--bake", "2s"], &SLOW),
            _ => service.begin_swap(label, &[], &SLOW),
        };
        service.await_phase(phase);
        swap
    }

    /// Kills; after everything, returns which program the record says to start, and starts the service manager.
    fn kill(&mut self) -> Option<String> {
        let service = &mut self.service;
        // Who serves, or would: where nobody answers, whoever is there.
        let daemons = || match look::status(&service.control()) {
            Some(status) => vec![status.process.pid],
            None => {
                let all = look::processes(service.dir()).into_iter().filter(|process| process.runs("kvd"));
                all.map(|process| process.pid).collect()
            }
        };
        match self.victim {
            Victim::Supervisor => kill_at_once(&Vec::from_iter(service.pid())),
            Victim::Daemon => kill_at_once(&daemons()),
            Victim::Both => kill_at_once(&[Vec::from_iter(service.pid()), daemons()].concat()),
            Victim::Everything => {
                service.lose_power();
                let recorded = look::recorded(&service.data());
                service.manage();
                return recorded;
            }
        }
        None
    }
}

/// Numbers that can be had again.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        let given = std::env::var("HANDOFF_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish() | 1);
        println!("HANDOFF_SEED={seed}");
        Self(seed)
    }

    /// Returns a number below `n`; see xorshift64.
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn pause(&mut self, ms_max: u64) {
        std::thread::sleep(Duration::from_micros(self.below(ms_max * 1000)));
    }

    /// Returns so many of the moments, in any order.
    fn sample(&mut self, number: usize) -> Vec<Moment> {
        let mut moments = MOMENTS.to_vec();
        for last in (1..moments.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            moments.swap(last, other);
        }
        moments.truncate(number);
        moments
    }
}
