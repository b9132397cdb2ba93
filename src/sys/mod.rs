//! What touches the kernel: the only place with `unsafe`, `nix`, `libc` and `fs2`. It does and decides nothing.
#![allow(unsafe_code, reason = "the one module that talks to the kernel; every block carries its argument")]

pub mod acceptance;
pub mod append;
pub mod bind;
pub mod brood;
mod build_id;
pub mod children;
pub mod clock;
pub mod datagram;
pub mod end;
pub mod file;
pub mod format;
pub mod inherit;
pub mod lock;
pub mod memory;
pub mod poll;
pub mod process;
mod program;
pub mod queue;
pub mod random;
pub mod reactor;
pub mod reexec;
pub mod resources;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod start;
pub mod terminal;
pub mod tree;
pub mod unix;
pub mod users;
