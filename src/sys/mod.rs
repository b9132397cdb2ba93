//! What touches the kernel: the only place with `unsafe`, `nix`, `libc` and `fs2`. It does and decides nothing.
#![allow(unsafe_code, reason = "the one module that talks to the kernel; every block carries its argument")]

pub mod lock;
pub mod reactor;
pub mod signals;
