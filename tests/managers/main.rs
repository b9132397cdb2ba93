//! `handoff supervise` under whoever manages services: a real systemd with the units of `scripts/systemd`, a manager that a test plays, and as the
//! first process of a pid namespace.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod container;
mod machine;
mod played;
mod systemd;

/// Returns the label that kvd was given, which is its build id.
fn label_of(build_id: &str) -> String {
    let bytes =
        build_id.as_bytes().chunks(2).map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16));
    String::from_utf8(bytes.collect::<Result<_, _>>().unwrap()).unwrap()
}
