//! The `handoff` command.
mod kvd;
fn main() {}
