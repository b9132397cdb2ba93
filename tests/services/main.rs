//! `handoff supervise` under real runit and real s6, with the service directories of `scripts/`: what the service manager sees, what clients see, and
//! what is left when anything is killed at any moment.
//!
//! Every test has a load whose ledger is read back, and is watched all the time: who answers clients, how many daemons there are, who holds the lock, and
//! which pid the service manager watches. Some print a line of figures. A part of the kills, chosen by a seed that is printed, is in the plain run
//! (HANDOFF_SEED repeats one); all of them, and the long run of swaps, are in
//!
//!     cargo test --test services -- --ignored --nocapture --test-threads 2
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

macro_rules! each_manager {
    ($($(#[$attribute:meta])* $name:ident)*) => {
        mod runit { $(#[test] $(#[$attribute])* fn $name() { super::$name(crate::rig::RUNIT) })* }
        mod s6 { $(#[test] $(#[$attribute])* fn $name() { super::$name(crate::rig::S6) })* }
    };
}

mod deaths;
mod kills;
mod look;
mod manners;
mod releases;
mod rig;
mod stops;
mod swaps;
mod watch;
