//! `handoff supervise` under whoever manages services: a real systemd with the units of `scripts/systemd`, a manager that a test plays, and as the
//! first process of a pid namespace.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod container;
mod machine;
mod played;
mod systemd;
