//! What a link of a chain costs, beside s6's `s6-setlock` and beside the least that a C program can do.
//!
//! ```text
//! cargo bench --bench link -- [--rounds N] [--json] [--check]
//! ```
//!
//! Four links and `true` behind them, each link locking a file of its own: ours (`handoff lock`), s6's, and a static C program that opens,
//! locks and execs, compiled here. A round runs each of them once, beginning with another one each time, so that all see the same
//! machine; what is compared are the medians of many rounds, and the spread is that of the ratios of medians of ten parts of
//! the run. `true` alone is there to show what of it is not the links'. `--check` fails when a ratio is above what is expected.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use serde::Serialize;

const LINKS: usize = 4;
const ROUNDS: usize = 1000;
/// The run is also looked at in so many parts.
const PARTS: usize = 10;
/// No more than this against s6-setlock, and against C.
const EXPECTED_S6: f64 = 0.9;
const EXPECTED_C: f64 = 1.2;

const C_LINK: &str = r#"
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd;
	if (argc < 3) return 100;
	fd = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) return 111;
	execvp(argv[2], argv + 2);
	return 127;
}
"#;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| args.iter().any(|arg| arg == option);
    let rounds = args.iter().position(|arg| arg == "--rounds").map(|at| args[at + 1].parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let report = Report::of(measure(&contestants(dir.path()), rounds.unwrap_or(ROUNDS)));
    print!("{}", if has("--json") { report.json() } else { report.text() });
    let is_above = report.ratios.iter().any(|ratio| ratio.expected.is_some_and(|most| ratio.ratio > most));
    if has("--check") && is_above { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A command line whose time is taken.
struct Contestant {
    name: &'static str,
    words: Vec<String>,
    /// How much of its time ours may take.
    expected: Option<f64>,
}

/// Ours first. Who cannot be run is left out, and that is said.
fn contestants(dir: &Path) -> Vec<Contestant> {
    let chain = |name, link: &[&str], file: &dyn Fn(usize) -> PathBuf, expected| {
        let mut words = vec![];
        for i in 0..LINKS {
            words.extend(link.iter().map(|word| (*word).to_owned()));
            words.push(file(i).to_str().unwrap().to_owned());
        }
        words.push("true".to_owned());
        Contestant { name, words, expected }
    };
    let data = |i| {
        let data = dir.join(format!("data{i}"));
        std::fs::create_dir_all(&data).unwrap();
        data
    };
    let lock = |i| dir.join(format!("lock{i}"));
    let mut all = vec![chain("handoff lock", &[env!("CARGO_BIN_EXE_handoff"), "lock"], &data, None)];
    if Command::new("s6-setlock").stderr(Stdio::null()).status().is_ok() {
        all.push(chain("s6-setlock", &["s6-setlock", "-n"], &lock, Some(EXPECTED_S6)));
    } else {
        eprintln!("skipped: needs s6");
    }
    match compile(dir) {
        Some(link) => all.push(chain("static C", &[link.to_str().unwrap()], &lock, Some(EXPECTED_C))),
        None => eprintln!("skipped: needs gcc"),
    }
    all.push(Contestant { name: "no link", words: vec!["true".to_owned()], expected: None });
    all
}

fn compile(dir: &Path) -> Option<PathBuf> {
    let (source, link) = (dir.join("link.c"), dir.join("link"));
    std::fs::write(&source, C_LINK).unwrap();
    let status = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&link).arg(&source).status();
    status.is_ok_and(|status| status.success()).then_some(link)
}

/// Returns the name of each, how much of its time ours may take, and how long it took in each round, in microseconds.
fn measure(contestants: &[Contestant], rounds: usize) -> Vec<(&'static str, Option<f64>, Vec<f64>)> {
    let mut times = vec![Vec::with_capacity(rounds); contestants.len()];
    // The first round finds nothing in memory and creates the lock files.
    for round in 0..=rounds {
        for turn in 0..contestants.len() {
            let at = (round + turn) % contestants.len();
            let time = run(&contestants[at].words);
            if round > 0 {
                times[at].push(time);
            }
        }
    }
    contestants
        .iter()
        .zip(times)
        .map(|(contestant, times)| (contestant.name, contestant.expected, times))
        .collect()
}

fn run(words: &[String]) -> f64 {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().unwrap();
    let time = start.elapsed();
    assert!(status.success(), "{words:?}: {status}");
    time.as_secs_f64() * 1e6
}

#[derive(Serialize)]
struct Report {
    rounds: usize,
    links: usize,
    times: Vec<Times>,
    ratios: Vec<Ratio>,
}

/// Of one command line, in microseconds.
#[derive(Serialize)]
struct Times {
    name: &'static str,
    lower_quartile_us: f64,
    median_us: f64,
    upper_quartile_us: f64,
}

/// Of our median and another's.
#[derive(Serialize)]
struct Ratio {
    to: &'static str,
    ratio: f64,
    /// The least and the greatest of the parts of the run.
    spread: (f64, f64),
    expected: Option<f64>,
}

impl Report {
    fn of(measured: Vec<(&'static str, Option<f64>, Vec<f64>)>) -> Self {
        let rounds = measured[0].2.len();
        let ours = &measured[0].2;
        let part = rounds.div_ceil(PARTS).max(1);
        let ratio = |(to, expected, theirs): &(&'static str, Option<f64>, Vec<f64>)| {
            let parts = ours.chunks(part).zip(theirs.chunks(part));
            let parts: Vec<f64> = parts.map(|(a, b)| quantile(a, 0.5) / quantile(b, 0.5)).collect();
            let least = parts.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = parts.iter().copied().fold(0.0, f64::max);
            let ratio = quantile(ours, 0.5) / quantile(theirs, 0.5);
            Ratio { to, ratio, spread: (least, greatest), expected: *expected }
        };
        let ratios = measured.iter().filter(|(_, expected, _)| expected.is_some()).map(ratio).collect();
        let times = |(name, _, times): &(&'static str, Option<f64>, Vec<f64>)| Times {
            name,
            lower_quartile_us: quantile(times, 0.25),
            median_us: quantile(times, 0.5),
            upper_quartile_us: quantile(times, 0.75),
        };
        Self { rounds, links: LINKS, times: measured.iter().map(times).collect(), ratios }
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap() + "\n"
    }

    fn text(&self) -> String {
        let mut text = format!("{LINKS} links and true, median (quartiles) of {}:\n", self.rounds);
        for times in &self.times {
            let Times { name, lower_quartile_us, median_us, upper_quartile_us } = times;
            let _ = writeln!(
                text,
                "{name:<14} {median_us:>6.0} us ({lower_quartile_us:.0} to {upper_quartile_us:.0})"
            );
        }
        for Ratio { to, ratio, spread: (least, greatest), expected } in &self.ratios {
            let expected = expected.map_or(String::new(), |most| format!(", expected {most} at most"));
            let _ = writeln!(text, "ratio to {to:<11} {ratio:.2} ({least:.2} to {greatest:.2}){expected}");
        }
        text
    }
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part) as usize]
}
