//! Swaps out of single commands, cut wherever a chain can be cut, under a load that keeps a ledger.
//!
//! Whatever is cut, in the end one process of the story is alive: it serves, has the lock, owns the data and has no children. Every write
//! that was acknowledged is there.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod bake;
mod cuts;
mod examples;
mod incumbent;
mod order;
mod rig;
mod rivals;
mod signals;
mod stale;
mod stop;
mod successor;
mod via;
