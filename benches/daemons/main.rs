//! Servers that nobody here wrote, replaced under load: by `handoff wrap`, in their own way, and by a restart, in one run.
//!
//! ```text
//! cargo bench --bench daemons -- [--swaps N] [--without-wrap] [SERVER...]
//! ```
//!
//! Prints a table in Markdown. The load is that of the other table of this kind: 800 requests a second, of 8 clients that connect for each
//! request and 16 that keep their connection; where the server has data, all of them are writes. What is counted as refused, reset or closed
//! before an answer happened to the former. `kept` is how many requests of the latter were cut, which is each server's own doing; lost
//! are the writes that were acknowledged and were not there in the end. The longest stall is that of a request that was answered.
//!
//! Then the bad releases, one after another: a program that exits at once, one that never gets ready, a wrong configuration, and one that
//! serves and then dies, within the trial of `handoff swap --bake`, or just after the replacement where there is no trial. `serves` says
//! that clients are answered three seconds later, without that anybody does anything.
// What the tests have is not all used here.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/daemons/load.rs"]
mod load;
mod own;
#[path = "../../tests/daemons/servers/mod.rs"]
mod servers;
#[path = "../../tests/daemons/site.rs"]
mod site;
#[path = "../../tests/daemons/wrapped.rs"]
mod wrapped;

use std::time::Duration;

use load::{Ledger, Load, Plan};
use own::{Own, Way};
use servers::{gunicorn, haproxy, nginx, node, python, sd_listen, uvicorn};
use site::{Fault, Server, Site};
use wrapped::Wrapped;

fn main() {
    let args = Args::parse();
    println!(
        "| server | way | swaps | refused | reset | closed before an answer | kept | lost writes | longest stall | a bad release |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (server, ways) in SERVERS {
        if !args.servers.is_empty() && !args.servers.iter().any(|name| name == server.name) {
            continue;
        }
        if args.wrap {
            wrap(server, args.swaps);
        }
        for (way, name) in *ways {
            own(server, *way, name, args.swaps);
        }
    }
}

/// What there is beside us.
const SERVERS: &[(&Server, &[(Way, &str)])] = &[
    (&nginx::SERVER, &[(Way::Upgrade, "USR2, WINCH, QUIT"), RESTART]),
    (&haproxy::SERVER, &[(Way::Upgrade, "master-worker, USR2"), RESTART]),
    (&gunicorn::SERVER, &[(Way::Upgrade, "USR2, TERM"), RESTART]),
    (&uvicorn::SERVER, &[RESTART]),
    (&node::SERVER, &[RESTART]),
    (&python::SERVER, &[RESTART]),
    (&sd_listen::SERVER, &[]),
];

const RESTART: (Way, &str) = (Way::Restart, "restart");

struct Args {
    swaps: usize,
    wrap: bool,
    servers: Vec<String>,
}

impl Args {
    fn parse() -> Self {
        let mut args = Self { swaps: 30, wrap: true, servers: vec![] };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--swaps" => {
                    args.swaps = words.next().and_then(|n| n.parse().ok()).expect("--swaps takes a number")
                }
                "--without-wrap" => args.wrap = false,
                // Cargo says so to every benchmark.
                "--bench" => {}
                name => args.servers.push(name.to_owned()),
            }
        }
        args
    }
}

fn plan(site: &Site) -> Plan {
    let pause = Duration::from_millis(30);
    Plan { addr: site.addr, fresh: 8, kept: 16, writes: site.server.writes, pause }
}

/// What a release may suffer from; a wrong configuration is no fault of the program.
const FAULTS: [(Option<Fault>, &str); 4] = [
    (Some(Fault::Exits), "exits at once"),
    (Some(Fault::Mute), "never ready"),
    (None, "wrong configuration"),
    (Some(Fault::Dies), "dies afterwards"),
];

fn wrap(server: &'static Server, swaps: usize) {
    let Some(wrapped) = Wrapped::start_idle(server) else { return };
    let load = Load::start(plan(&wrapped.site));
    assert!(load.each_is_served(3));
    for number in 2..swaps + 2 {
        wrapped.swap(&format!("v{number}"));
        assert!(load.each_is_served(3));
    }
    let ledger = load.stop();
    let row = Row::new(&wrapped.site, "handoff wrap", swaps, &ledger);
    row.print(FAULTS.map(|(fault, name)| (name, wrapped.survives(name, fault))));
}

fn own(server: &'static Server, way: Way, name: &str, swaps: usize) {
    let Some(site) = Site::new(server) else { return };
    site.release("v1", false);
    let own = Own::start(site, way);
    let load = Load::start(plan(&own.site));
    assert!(load.each_is_served(3));
    for number in 2..swaps + 2 {
        let label = format!("v{number}");
        own.site.release(&label, false);
        assert!(own.swap(&label), "{} {name}: {label} did not come: {}", server.name, own.log());
        assert!(load.each_is_served(3));
    }
    let ledger = load.stop();
    let row = Row::new(&own.site, name, swaps, &ledger);
    row.print(FAULTS.map(|(fault, name)| {
        own.mend();
        (name, own.survives(name, fault))
    }));
}

/// A line of the table, but for its end.
struct Row(String);

impl Row {
    fn new(site: &Site, way: &str, swaps: usize, ledger: &Ledger) -> Self {
        let counts = &ledger.counts;
        let lost = if site.server.writes {
            let lost = ledger.lost(site.addr).unwrap();
            format!("{} of {}", lost.len(), ledger.acknowledged.len())
        } else {
            "-".to_owned()
        };
        eprintln!("{}, {way}: {counts:?}", site.server.name);
        Self(format!(
            "| {} | {way} | {swaps} | {} | {} | {} | {} | {lost} | {} ms |",
            site.server.name,
            counts.refused,
            counts.reset,
            counts.cut + counts.late + counts.errors,
            counts.kept_cut,
            counts.stall.as_millis(),
        ))
    }

    fn print(self, fates: [(&str, bool); 4]) {
        let down: Vec<&str> = fates.iter().filter(|(_, serves)| !serves).map(|(name, _)| *name).collect();
        let end = if down.is_empty() { "serves".to_owned() } else { format!("down: {}", down.join(", ")) };
        println!("{} {end} |", self.0);
    }
}
