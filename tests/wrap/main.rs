//! `handoff wrap`: daemons that know nothing of handoff, well-behaved and otherwise. Real ones are in `tests/daemons`.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod compose;
mod ends;
mod quirks;
mod ready;
mod rig;
mod sockets;
mod swaps;
