//! What README.md says of an integration, done: its programs are compiled as printed, and run.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Instant;

use handoff::control::Control;

use common::{PATIENCE, eventually, wait_for_exit};

const README: &str = include_str!("../README.md");

/// Returns the code blocks of the README in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("\n```{language}\n");
    README
        .match_indices(&opening)
        .map(|(at, _)| {
            let block = &README[at + opening.len()..];
            &block[..block.find("```\n").unwrap()]
        })
        .collect()
}

#[test]
fn the_programs_in_the_readme_are_the_examples_that_the_tests_run() {
    let blocks = blocks("rust");
    for (name, program) in
        [("counter", include_str!("examples/counter.rs")), ("deploy", include_str!("examples/deploy.rs"))]
    {
        assert!(
            blocks.contains(&program),
            "README.md and tests/examples/{name}.rs differ: copy the file's text"
        );
    }
}

fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo test`, or `cargo build --examples` first",
        path.display()
    );
    path
}

/// How a run of the deploy program ended.
#[derive(Debug)]
struct Deployed {
    code: i32,
    said: String,
}

/// A counter in a directory of its own, and all that came after it.
struct Rig {
    dir: tempfile::TempDir,
    address: SocketAddr,
    daemons: Vec<Child>,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let address = a_free_address();
        let mut rig = Self { dir, address, daemons: vec![] };
        rig.daemons.push(Command::new(example("counter")).args(rig.args()).spawn().unwrap());
        // It listens before it answers here. A client that tries a port of its own range too early can meet itself.
        let control = rig.path("control");
        eventually("the counter to answer", || {
            Control::connect(&control, "test", Instant::now() + PATIENCE).is_ok()
        });
        assert_eq!(rig.client().ask("get"), "0");
        rig
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn args(&self) -> [String; 3] {
        [self.path("control"), self.path("data"), self.address.to_string()]
    }

    fn deploy(&self, program: &Path) -> Deployed {
        self.deploy_with(program, &self.args())
    }

    fn deploy_with(&self, program: &Path, args: &[String]) -> Deployed {
        // Not a pipe: the successor inherits it, and would keep it open for as long as it serves.
        let said = self.dir.path().join("said");
        let mut deploy = Command::new(example("deploy"));
        deploy.args([self.path("control"), self.path("journal")]).arg(program).args(args);
        let mut running = deploy.stdout(std::fs::File::create(&said).unwrap()).spawn().unwrap();
        let code = wait_for_exit(&mut running).code().expect("it was not killed");
        Deployed { code, said: std::fs::read_to_string(said).unwrap() }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns the process that serves, as the owner record has it.
    fn owner(&self) -> u32 {
        let reading = handoff::DataDirLock::read_record(self.path("data")).unwrap();
        reading.record.unwrap().owner.pid
    }
}

impl Drop for Rig {
    /// The successors are children of programs that have ended, so the record names whom to kill.
    fn drop(&mut self) {
        let record =
            handoff::DataDirLock::read_record(self.path("data")).ok().and_then(|reading| reading.record);
        if let Some(record) = record {
            // A failing test has told what matters; what is left to kill is killed if that can be.
            let _ = Command::new("kill").arg("-9").arg(record.owner.pid.to_string()).status();
        }
        for daemon in &mut self.daemons {
            // It may have ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The counter takes an address and not a port of the kernel's choice. These are below those that the kernel gives to
/// clients (net.ipv4.ip_local_port_range), so none of them takes it before the counter does.
fn a_free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 500).unwrap() * 20;
    let addresses = std::iter::repeat_with(|| {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        SocketAddr::from(([127, 0, 0, 1], port))
    });
    addresses
        .take(1000)
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port among a thousand")
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Returns the answer; nothing if the connection ended without one.
    fn ask(&mut self, request: &str) -> String {
        self.try_ask(request).unwrap()
    }

    fn try_ask(&mut self, request: &str) -> std::io::Result<String> {
        writeln!(self.0.get_mut(), "{request}")?;
        self.try_answer()
    }

    fn answer(&mut self) -> String {
        self.try_answer().unwrap()
    }

    fn try_answer(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

#[test]
fn a_swap_keeps_every_increment_and_the_incumbent_exits() {
    let mut rig = Rig::start();
    for n in 1..=10 {
        assert_eq!(rig.client().ask("incr"), n.to_string());
    }
    let before = rig.owner();
    let deployed = rig.deploy(&example("counter"));
    assert_eq!(deployed.code, 0, "{deployed:?}");
    assert!(deployed.said.ends_with(" us\n"), "{deployed:?}");
    assert!(wait_for_exit(&mut rig.daemons[0]).success());
    assert_ne!(rig.owner(), before);
    assert_eq!(rig.client().ask("incr"), "11");
}

#[test]
fn a_client_gets_the_answers_to_what_it_sent_and_then_the_end() {
    let rig = Rig::start();
    let mut client = rig.client();
    assert_eq!(client.ask("incr"), "1");
    client.0.get_mut().write_all(b"incr\nincr\nget\ninc").unwrap();
    // Read by the time that the first of them is answered: they came in one piece.
    assert_eq!(client.answer(), "2");
    assert!(rig.deploy(&example("counter")).code == 0);
    assert_eq!([client.answer(), client.answer(), client.answer()], ["3", "3", ""]);
    assert_eq!(rig.client().ask("get"), "3", "what was cut short is no request");
}

#[test]
fn a_release_that_exits_is_rolled_back_and_the_incumbent_serves_on() {
    let mut rig = Rig::start();
    assert_eq!(rig.client().ask("incr"), "1");
    let before = rig.owner();
    let deployed = rig.deploy(Path::new("false"));
    assert_eq!(deployed.code, 3, "{deployed:?}");
    assert!(deployed.said.starts_with("rolled back, the incumbent serves: "), "{deployed:?}");
    assert_eq!(rig.owner(), before);
    assert_eq!(rig.client().ask("incr"), "2");
    assert!(rig.daemons[0].try_wait().unwrap().is_none(), "it serves on");
}

/// It speaks the protocol until it is told to begin, and ends: by then the incumbent has drained and sealed.
#[test]
fn a_release_that_cannot_open_the_data_is_rolled_back_after_the_seal() {
    let rig = Rig::start();
    assert_eq!(rig.client().ask("incr"), "1");
    let other = tempfile::tempdir().unwrap();
    let args = [rig.path("control"), other.path().display().to_string(), rig.address.to_string()];
    let deployed = rig.deploy_with(&example("counter"), &args);
    assert_eq!(deployed.code, 3, "{deployed:?}");
    assert_eq!(rig.client().ask("incr"), "2");
    assert!(rig.deploy(&example("counter")).code == 0, "the next release is as welcome as any");
    assert_eq!(rig.client().ask("incr"), "3");
}

#[test]
fn increments_under_load_are_counted_once_each_through_swaps() {
    let rig = Rig::start();
    let address = rig.address;
    let stop = AtomicBool::new(false);
    // So that a failure ends the load too.
    let deadline = Instant::now() + PATIENCE;
    let acknowledged = std::thread::scope(|scope| {
        let load = || {
            let mut acknowledged = vec![];
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                // A client that was silent for too long while it drained gets no answer, and is not counted then.
                let answer = Client::connect(address).try_ask("incr").unwrap_or_default();
                acknowledged.extend(answer.parse::<u64>());
            }
            acknowledged
        };
        let clients = [(); 4].map(|()| scope.spawn(load));
        let codes = [(); 5].map(|()| rig.deploy(&example("counter")).code);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(codes, [0; 5]);
        clients.map(|client| client.join().unwrap()).concat()
    });
    let mut distinct = acknowledged.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), acknowledged.len(), "no value was given twice");
    let value: u64 = rig.client().ask("get").parse().unwrap();
    assert_eq!(value, acknowledged.len() as u64, "every increment was answered, and every answer is on disk");
}

#[test]
fn the_command_swaps_it_too_and_rolls_a_bad_release_back() {
    let mut rig = Rig::start();
    assert_eq!(rig.client().ask("incr"), "1");
    let swap = |program: &Path| {
        let mut swap = Command::new(common::HANDOFF);
        swap.args(["swap", "--control", &rig.path("control")]).arg(program);
        // The successor writes where the incumbent does, so this ends with the command.
        let output = swap.env_remove("HANDOFF_JOURNAL").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = swap(&example("counter"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("committed "), "{said}");
    let (code, said) = swap(Path::new("false"));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.starts_with("rolled back ") && said.ends_with("; the incumbent serves\n"), "{said}");
    assert_eq!(rig.client().ask("incr"), "2");
    assert!(wait_for_exit(&mut rig.daemons[0]).success());
}
