//! Replaces the binary of a running **stateful** daemon: no dropped connections, no lost writes, no split brain,
//! automatic rollback.
//!
//! The daemon that serves, the *incumbent*, finishes its work, makes its data final and lets go of the data directory's
//! lock; the *successor*, which has warmed up beside it, takes over the same listening sockets and the same data. If it
//! crashes, hangs, opens stale data or says that it is not healthy before it is granted, the incumbent goes on serving. Whoever runs a
//! swap, the *driver*, may die at any moment, as may the others: the control connection on which a handoff runs is a lease, and the kernel
//! closes it.
//!
//! # A tour
//!
//! - [`detect_role`] says what this process is to be. [`Role::ColdStart`] carries sockets that were inherited;
//!   [`Role::Successor`] leads through [`handshake`](Successor::handshake),
//!   [`wait_for_begin`](HandshookSuccessor::wait_for_begin) and
//!   [`announce_and_bind`](BegunSuccessor::announce_and_bind): each consumes what came before, so that a wrong order does not compile.
//! - [`DataDirLock`] is the right to write to the data directory, and carries the record of who owns it.
//! - [`Incumbent`] serves the control socket and calls the daemon's hooks, [`Drainable`].
//! - [`Acceptor`] accepts connections in a way that can be handed over, for daemons with a blocking accept loop.
//! - [`supervisor::Supervisor`] runs swaps, as `handoff swap` does; [`journal`] is what it writes down.
//! - [`control::Control`] asks a daemon how it is doing, and for its sockets.
//!
//! It is synchronous, needs no runtime, and starts no thread but those that [`Incumbent::serve`] (one, for the hooks) and
//! [`Acceptor::resume`] say. What happens is told as events of the `tracing` crate.
//!
//! # A daemon
//!
//! The least that takes part, with no data worth the name. README.md has a complete one.
//!
//! ```no_run
//! use std::io::Write;
//! use std::time::Instant;
//!
//! use handoff::drainable::ReadinessSnapshot;
//! use handoff::{Acceptor, DataDirLock, DrainReport, Drainable, Incumbent, Role, SealReport, StateSnapshot};
//!
//! struct Daemon(Acceptor);
//!
//! impl Drainable for Daemon {
//!     fn drain(&self, _deadline: Instant) -> handoff::Result<DrainReport> {
//!         self.0.pause();
//!         Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
//!     }
//!     fn seal(&self) -> handoff::Result<SealReport> {
//!         Ok(SealReport { last_revision_per_shard: vec![0], data_dir_fingerprint: [0; 32] })
//!     }
//!     fn resume_after_abort(&self) -> handoff::Result<()> {
//!         self.0.resume()
//!     }
//!     fn snapshot_state(&self) -> StateSnapshot {
//!         StateSnapshot { shard_count: 1, open_conns: 0, last_revision_per_shard: vec![0] }
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (control, data_dir) = ("/run/greeter/control", "/var/lib/greeter");
//!     let (incumbent, listener) = match handoff::detect_role()? {
//!         Role::ColdStart { mut inherited } => {
//!             let listener = match inherited.take("greeting") {
//!                 Some(listener) => listener,
//!                 None => handoff::listen("127.0.0.1:7000".parse()?)?,
//!             };
//!             let lock = DataDirLock::acquire_or_break_stale(data_dir)?;
//!             (Incumbent::bind_cold_start(control, lock)?.with_listener("greeting", &listener)?, listener)
//!         }
//!         Role::Successor(successor) => {
//!             let mut begun = successor.handshake("1.2.3")?.wait_for_begin()?;
//!             let listener = begun.take_listener("greeting").ok_or("no listener was passed")?;
//!             let lock = DataDirLock::acquire(data_dir)?;
//!             let readiness = ReadinessSnapshot {
//!                 listening_on: vec![listener.local_addr()?.to_string()],
//!                 healthz_ok: true,
//!                 advertised_revision_per_shard: vec![0],
//!             };
//!             (begun.announce_and_bind(readiness, control, lock)?, listener)
//!         }
//!     };
//!     let daemon = Daemon(Acceptor::new(listener, |mut client| {
//!         // A client that went away misses nothing.
//!         let _ = client.write_all(b"good morning\n");
//!     }));
//!     daemon.0.resume()?;
//!     incumbent.serve(daemon)?;
//!     Ok(())
//! }
//! ```
//!
//! # A swap
//!
//! ```no_run
//! use handoff::supervisor::{SpawnSpec, Supervisor};
//!
//! # fn main() -> handoff::Result<()> {
//! let outcome = Supervisor::new("/run/greeter/control")?
//!     .with_journal("/var/lib/greeter/journal")
//!     .perform_handoff(SpawnSpec { binary: "greeter-v2".into(), ..Default::default() })?;
//! match outcome.abort_reason {
//!     None => println!("committed, after a gap of {:?} us", outcome.measured.gap_us),
//!     Some(reason) => println!("not committed: {reason}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Where it runs
//!
//! On Linux. The protocol on the wire, the state machines and what has been proved of them are in ARCHITECTURE.md.

pub mod acceptor;
pub mod activation;
pub mod chain;
mod channel;
pub mod control;
pub mod data_dir;
pub mod dialect;
pub mod drainable;
mod drive;
pub mod error;
pub mod fds;
pub mod health;
pub mod holder;
pub mod incumbent;
pub mod journal;
pub mod listen;
pub mod metrics;
pub mod notify;
pub mod proto;
mod recover;
pub mod role;
mod serve;
mod session;
pub mod steps;
#[doc(hidden)]
pub mod suggest;
pub mod supervise;
pub mod supervisor;
#[doc(hidden)]
pub mod sys;
pub mod wrap;

pub use acceptor::{Acceptor, listen};
pub use data_dir::DataDirLock;
pub use drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
pub use error::{Error, Result};
pub use fds::Inherited;
pub use incumbent::{Incumbent, Limits, Served, Stopper, Superseded};
pub use role::{BegunSuccessor, HandshookSuccessor, Role, Successor, detect_role};
