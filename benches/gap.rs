//! How long nobody accepts while one daemon takes over from another, when the daemon itself has nothing to do.
//!
//! ```text
//! cargo bench --bench gap -- [--swaps N] [--dir DIR] [--no-journal] [--json]
//!                            [--daemon COMMAND --driver COMMAND]
//! ```
//!
//! Without `--daemon` and `--driver` it measures this library: the daemon is `tests/examples/minimal.rs`, built into this
//! program, and this process is the driver. With them it measures anything else, on the same machine, in the same run, beside
//! the same floor. Both are run by `sh`, with `CONTROL`, `DATA_DIR` and `JOURNAL` in their environment. The daemon is started once
//! and must be ready when `$CONTROL` exists. The driver is started once for each swap, and its last line of output is the gap: a
//! number of microseconds, or a JSON object with a `gap_us`. For instance, this library once more, by other means:
//!
//! ```text
//! E=target/release/examples; cargo build --release --examples
//! cargo bench --bench gap -- --daemon 'exec $E/minimal $CONTROL $DATA_DIR' \
//!     --driver 'exec $E/driver $CONTROL $JOURNAL 0 $E/minimal $CONTROL $DATA_DIR'
//! ```
//!
//! The floor is what no implementation of this protocol can go below: as many messages, one after another between two
//! processes, as a swap has in its gap, and one `pwrite` with its `fdatasync` of a file like the owner record's. It is measured
//! between the swaps, so that both see the same disk and the same neighbours; compare ratios, not microseconds.
#![allow(clippy::unwrap_used)]

#[path = "../tests/examples/minimal.rs"]
mod minimal;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use handoff::supervisor::{HandoffOutcome, SpawnSpec, Supervisor};
use serde::Serialize;

/// Makes this program the daemon, or the other end of the floor's messages.
const PART: &str = "HANDOFF_BENCH_PART";

/// The messages that wait for each other in a gap: drained, seal, sealed, begin, ready, granted.
const ROUND_TRIPS: usize = 3;
/// About as long as such a message is.
const MESSAGE: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match std::env::var(PART).as_deref() {
        Ok("daemon") => minimal::main().unwrap(),
        Ok(_) => echo(),
        Err(_) => return run(&Args::parse()),
    }
    ExitCode::SUCCESS
}

struct Args {
    swaps: usize,
    dir: PathBuf,
    journal: bool,
    json: bool,
    other: Option<Other>,
}

/// Another implementation, or this one by other means.
struct Other {
    daemon: String,
    driver: String,
}

impl Args {
    fn parse() -> Self {
        let mut args = Self {
            swaps: 1000,
            // A file system in memory has no sync to speak of.
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            journal: true,
            json: false,
            other: None,
        };
        let (mut daemon, mut driver) = (None, None);
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--swaps" => args.swaps = value().parse().expect("--swaps takes a number"),
                "--dir" => args.dir = value().into(),
                "--daemon" => daemon = Some(value()),
                "--driver" => driver = Some(value()),
                "--no-journal" => args.journal = false,
                "--json" => args.json = true,
                // Cargo says so to every benchmark.
                "--bench" => {}
                other => panic!("unknown option {other}; the source says which there are"),
            }
        }
        args.other = match (daemon, driver) {
            (Some(daemon), Some(driver)) => Some(Other { daemon, driver }),
            (None, None) => None,
            _ => panic!("--daemon and --driver go together"),
        };
        args
    }
}

fn run(args: &Args) -> ExitCode {
    let place = Place::new(&args.dir, args.journal);
    let mut floor = Floor::start(&place.dir);
    let mut driver: Box<dyn Driver> = match &args.other {
        Some(other) => Box::new(Foreign::start(other, &place)),
        None => Box::new(Own::start(&place)),
    };
    let (mut gaps, mut floors, mut hops) = (vec![], vec![], vec![]);
    for _ in 0..args.swaps {
        gaps.push(driver.swap());
        floors.push(floor.once());
        hops.extend(driver.hops());
    }
    drop(driver);
    let report = Report::new(gaps, floors, &hops);
    if args.json {
        println!("{}", serde_json::to_string(&report).unwrap());
    } else {
        report.print();
    }
    ExitCode::SUCCESS
}

/// Where the daemons live.
struct Place {
    dir: PathBuf,
    journal: bool,
}

impl Place {
    fn new(parent: &Path, journal: bool) -> Self {
        let dir = parent.join(format!("gap-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("data")).unwrap();
        Self { dir, journal }
    }

    fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.control().exists() {
            assert!(Instant::now() < deadline, "the daemon did not make {}", self.control().display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed is in a directory for what may be removed.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs swaps, and ends what it has started when it is dropped.
trait Driver {
    /// Returns the gap in microseconds.
    fn swap(&mut self) -> u64;

    /// Returns the times between the phases of the last swap, where they are known.
    fn hops(&mut self) -> Vec<(String, u64)> {
        vec![]
    }
}

struct Own {
    supervisor: Supervisor,
    spec: SpawnSpec,
    serving: Reaped,
    last: Option<HandoffOutcome>,
}

impl Own {
    fn start(place: &Place) -> Self {
        let binary = std::env::current_exe().unwrap();
        let (control, data_dir) = (place.control(), place.data_dir());
        let args = vec![control.display().to_string(), data_dir.display().to_string()];
        let serving = Reaped(Command::new(&binary).args(&args).env(PART, "daemon").spawn().unwrap());
        place.wait_until_ready();
        let supervisor = Supervisor::new(&control).unwrap();
        let supervisor = if place.journal { supervisor.with_journal(place.journal()) } else { supervisor };
        let env = vec![(PART.to_owned(), "daemon".to_owned())];
        Self {
            supervisor,
            spec: SpawnSpec { binary, args, env, ..SpawnSpec::default() },
            serving,
            last: None,
        }
    }
}

impl Driver for Own {
    fn swap(&mut self) -> u64 {
        let mut outcome = self.supervisor.perform_handoff(self.spec.clone()).unwrap();
        assert!(outcome.committed, "{outcome:?}");
        let before = std::mem::replace(&mut self.serving, Reaped(outcome.child.take().unwrap()));
        before.wait();
        let gap = outcome.measured.gap_us.unwrap();
        self.last = Some(outcome);
        gap
    }

    fn hops(&mut self) -> Vec<(String, u64)> {
        let Some(outcome) = self.last.take() else { return vec![] };
        let phases = &outcome.measured.phases;
        let between = |pair: &[_]| {
            let [a, b]: &[handoff::proto::wire::PhaseMark; 2] = pair.try_into().unwrap();
            (format!("{} to {}", a.phase, b.phase), b.at_us - a.at_us)
        };
        phases.windows(2).map(between).collect()
    }
}

struct Foreign {
    driver: String,
    place: Vec<(&'static str, PathBuf)>,
    _daemon: Reaped,
}

impl Foreign {
    fn start(other: &Other, place: &Place) -> Self {
        let env =
            vec![("CONTROL", place.control()), ("DATA_DIR", place.data_dir()), ("JOURNAL", place.journal())];
        let daemon = shell(&other.daemon, &env).spawn().unwrap();
        place.wait_until_ready();
        Self { driver: other.driver.clone(), place: env, _daemon: Reaped(daemon) }
    }
}

impl Driver for Foreign {
    fn swap(&mut self) -> u64 {
        // Into a file: the daemon that it starts has its output too, and a pipe would not end before that one does.
        let path = self.place[0].1.with_file_name("driver.out");
        let status = shell(&self.driver, &self.place).stdout(File::create(&path).unwrap()).status().unwrap();
        assert!(status.success(), "the driver: {status}");
        let said = std::fs::read_to_string(&path).unwrap();
        let last = said.lines().last().expect("the driver prints the gap");
        let value: serde_json::Value = serde_json::from_str(last).expect("the gap is a number or JSON");
        let gap = value.get("gap_us").unwrap_or(&value).as_f64().expect("the gap is a number");
        gap as u64
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Only its driver knows the pid of the last daemon: the lock's holders are asked, which is this library's way.
        for holder in handoff::DataDirLock::who(&self.place[1].1).unwrap_or_default() {
            let _ = Command::new("kill").arg(holder.pid.to_string()).status();
        }
    }
}

fn shell(command: &str, env: &[(&str, PathBuf)]) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).envs(env.iter().cloned());
    shell
}

/// A child that does not outlive this program.
struct Reaped(Child);

impl Reaped {
    fn wait(mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The messages and the sync of a swap, and nothing else.
struct Floor {
    peer: UnixStream,
    record: File,
    _echo: Reaped,
}

impl Floor {
    fn start(dir: &Path) -> Self {
        let (peer, theirs) = UnixStream::pair().unwrap();
        let echo = Command::new(std::env::current_exe().unwrap())
            .env(PART, "echo")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let record = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("floor"))
            .unwrap();
        record.write_all_at(&[0; 8192], 0).unwrap();
        record.sync_all().unwrap();
        Self { peer, record, _echo: Reaped(echo) }
    }

    fn once(&mut self) -> (u64, u64) {
        let mut message = [1; MESSAGE];
        let start = Instant::now();
        for _ in 0..ROUND_TRIPS {
            self.peer.write_all(&message).unwrap();
            self.peer.read_exact(&mut message).unwrap();
        }
        let messages = start.elapsed();
        self.record.write_all_at(&[2; 4096], 0).unwrap();
        self.record.sync_data().unwrap();
        (micros(messages), micros(start.elapsed()))
    }
}

/// Answers every message with the same, until the other end closes.
fn echo() {
    let mut message = [0; MESSAGE];
    let (mut input, mut output) = (std::io::stdin(), UnixStream::from(stdin_fd()));
    while input.read_exact(&mut message).is_ok() {
        output.write_all(&message).unwrap();
    }
}

fn stdin_fd() -> OwnedFd {
    use std::os::fd::AsFd;
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap()
}

#[derive(Serialize)]
struct Report {
    swaps: usize,
    gap_us: Spread,
    floor_us: Spread,
    floor_messages_us: Spread,
    /// Of the medians.
    ratio: f64,
    /// The medians of the times between the phases that the driver sees.
    between_us: Vec<(String, u64)>,
}

#[derive(Serialize)]
struct Spread {
    min: u64,
    median: u64,
    p99: u64,
    max: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Self { min: at(0.0), median: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl Report {
    fn new(gaps: Vec<u64>, floors: Vec<(u64, u64)>, hops: &[(String, u64)]) -> Self {
        let swaps = gaps.len();
        let (messages, floors) = floors.into_iter().unzip();
        let (gap_us, floor_us) = (Spread::of(gaps), Spread::of(floors));
        let ratio = gap_us.median as f64 / floor_us.median as f64;
        let between_us = medians(hops);
        Self { swaps, gap_us, floor_us, floor_messages_us: Spread::of(messages), ratio, between_us }
    }

    fn print(&self) {
        println!("{} swaps; microseconds   min  median     p99     max", self.swaps);
        for (name, spread) in
            [("gap", &self.gap_us), ("floor", &self.floor_us), ("  of it messages", &self.floor_messages_us)]
        {
            println!("{name:22} {:>7} {:>7} {:>7} {:>7}", spread.min, spread.median, spread.p99, spread.max);
        }
        println!("the gap is {:.2} times the floor (medians)", self.ratio);
        for (name, median) in &self.between_us {
            println!("{median:>10}  {name}");
        }
    }
}

fn medians(hops: &[(String, u64)]) -> Vec<(String, u64)> {
    let mut names: Vec<&String> = vec![];
    for (name, _) in hops {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |name: &String| hops.iter().filter(|(other, _)| other == name).map(|(_, us)| *us).collect();
    names.into_iter().map(|name| (name.clone(), Spread::of(of(name)).median)).collect()
}
