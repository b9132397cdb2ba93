//! How long the command takes to start, beside a program that does nothing.
//!
//! `cargo bench --bench start`: runs `handoff --version` and `/bin/true` in turn, and prints both and their ratio, and the size of
//! the command. Both include the fork, the exec and the wait.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Instant;

const RUNS: usize = 500;

fn main() {
    let handoff = env!("CARGO_BIN_EXE_handoff");
    let (mut ours, mut nothing) = (vec![], vec![]);
    for _ in 0..RUNS {
        ours.push(run(handoff, &["--version"]));
        nothing.push(run("/bin/true", &[]));
    }
    let (ours, nothing) = (median(ours), median(nothing));
    println!("handoff --version  {ours} us (median of {RUNS})");
    println!("/bin/true          {nothing} us");
    println!("ratio              {:.2}", ours as f64 / nothing as f64);
    println!("size               {} KiB", std::fs::metadata(handoff).unwrap().len() >> 10);
}

fn run(program: &str, args: &[&str]) -> u128 {
    let start = Instant::now();
    let status = Command::new(program).args(args).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    start.elapsed().as_micros()
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}
