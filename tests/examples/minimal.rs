//! A daemon with nothing to lose: what the protocol costs by itself, and what an integration must have at least.
//!
//! `minimal CONTROL DATA_DIR [PORT]` accepts connections on a TCP port, answers each with one line and closes it.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use handoff::drainable::ReadinessSnapshot;
use handoff::{
    Acceptor, DataDirLock, DrainReport, Drainable, Incumbent, Role, SealReport, StateSnapshot, detect_role,
    listen,
};

struct Nothing(Acceptor);

impl Drainable for Nothing {
    fn drain(&self, _deadline: Instant) -> handoff::Result<DrainReport> {
        self.0.pause();
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }
    fn seal(&self) -> handoff::Result<SealReport> {
        Ok(SealReport { last_revision_per_shard: vec![0], data_dir_fingerprint: [0; 32] })
    }
    fn resume_after_abort(&self) -> handoff::Result<()> {
        self.0.resume()
    }
    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![0] }
    }
}

/// Public, for the benchmark that takes it in.
pub fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [control, data_dir] =
        [1, 2].map(|i| args.get(i).expect("usage: minimal CONTROL DATA_DIR [PORT]").as_str());
    let (incumbent, listener) = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let port = args.get(3).map_or("0", String::as_str);
            let listener = match inherited.take("http") {
                Some(listener) => listener,
                None => listen(format!("127.0.0.1:{port}").parse()?)?,
            };
            let lock = DataDirLock::acquire_or_break_stale(data_dir)?;
            let incumbent = Incumbent::bind_cold_start(control, lock)?.with_listener("http", &listener)?;
            (incumbent, listener)
        }
        Role::Successor(successor) => {
            let mut successor = successor.handshake(vec![])?.wait_for_begin()?;
            let listener = successor.take_listener("http").ok_or("no listener was passed")?;
            let lock = DataDirLock::acquire(data_dir)?;
            let readiness = ReadinessSnapshot {
                listening_on: vec![listener.local_addr()?.to_string()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![0],
            };
            (successor.announce_and_bind(readiness, control, lock)?, listener)
        }
    };
    let nothing = Nothing(Acceptor::new(listener, |mut connection| {
        // A client that does not wait for its answer misses nothing.
        let _ = writeln!(connection, "{}", std::process::id());
    }));
    nothing.0.resume()?;
    incumbent.serve(nothing)?;
    Ok(())
}
