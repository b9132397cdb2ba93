//! What touches the kernel: the only place with `unsafe`, `nix`, `libc` and `fs2`. It does and decides nothing.
#![allow(unsafe_code, reason = "the one module that talks to the kernel; every block carries its argument")]

pub(crate) mod file;
pub mod inherit;
pub mod lock;
pub mod poll;
pub mod process;
pub mod tree;
pub mod unix;
