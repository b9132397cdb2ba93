//! The failure table of ARCHITECTURE.md, with real processes: one test for each row.
//!
//! Each ends in the state that the table says: one process serves, has the lock and owns the data, nobody else is left, and
//! every write that was acknowledged is there.
#![allow(clippy::unwrap_used)]

#[path = "../rig/mod.rs"]
mod rig;

mod driver;
mod existing;
mod hooks;
mod incumbent;
mod resources;
mod strangers;
mod successor;
mod syscalls;
