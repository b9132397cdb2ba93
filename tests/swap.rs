//! Swaps of real processes.
#![allow(clippy::unwrap_used)]

use handoff::supervisor::{SpawnSpec, Supervisor};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

fn example(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    dir.pop();
    dir.join("examples").join(name)
}

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("ctl");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut first = Command::new(example("minimal")).arg(&control).arg(&data).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !control.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let supervisor = Supervisor::new(&control).unwrap().with_journal(dir.path().join("journal"));
    let mut gaps = vec![];
    let mut children = vec![];
    for _ in 0..50 {
        let outcome = supervisor
            .perform_handoff(SpawnSpec {
                binary: example("minimal"),
                args: vec![control.display().to_string(), data.display().to_string()],
                ..Default::default()
            })
            .unwrap();
        assert!(outcome.committed, "{:?}", outcome);
        gaps.push(outcome.measured.gap_us.unwrap());
        children.push(outcome.child.unwrap());
    }
    first.wait().unwrap();
    gaps.sort_unstable();
    println!("{gaps:?}");
    let mut last = children.pop().unwrap();
    for mut child in children {
        child.wait().unwrap();
    }
    last.kill().unwrap();
    last.wait().unwrap();
}
