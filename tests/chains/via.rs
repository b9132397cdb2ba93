//! A chain whose successor a supervisor starts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff::supervise::client::Client;
use handoff::supervise::wire::State;

use crate::common::{eventually, example};
use crate::rig::{Rig, Run, chain, cut_chain, signal};

const WARM: &str =
    "exec handoff exec-successor --warm --via $TRIGGER kvd-v2 -- handoff drain -- handoff commit";
const WAIT: &str = "exec handoff drain -- handoff exec-successor --wait --via $TRIGGER kvd-v2";

/// One that is asked and answers with what it is told to, to as many as come.
fn supervisor_that(path: &Path, answers: impl Fn(UnixStream, String) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            answers(stream, request);
        }
    });
}

fn expect_refusal(what: &str, answers: impl Fn(UnixStream, String) + Send + 'static) {
    let rig = Rig::start(&[]);
    let trigger = rig.path("trigger");
    supervisor_that(&trigger, answers);
    for line in [WARM, WAIT] {
        let said = rig.expect_with(line, &[("TRIGGER", trigger.to_str().unwrap())], 3);
        assert!(said.contains(&format!("the supervisor at {}", trigger.display())), "{said}");
        assert!(said.contains(what), "{said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_supervisor_that_refuses_is_named_with_its_reason() {
    expect_refusal("it is a holiday", |mut stream, request| {
        assert!(request.contains("\"type\":\"spawn\"") && request.contains("/kvd-v2\""), "{request}");
        stream.write_all(b"{\"type\":\"refused\",\"reason\":\"it is a holiday\"}\n").unwrap();
    });
}

#[test]
fn a_supervisor_that_goes_away_before_it_answers_is_a_rollback() {
    expect_refusal("", |stream, _| drop(stream));
}

#[test]
fn a_supervisor_that_names_a_successor_and_gives_none_is_a_rollback() {
    expect_refusal("pidfd", |mut stream, _| {
        let process = "{\"pid\":1,\"start_ticks\":1,\"boot_id\":\"b\"}";
        let answer = format!("{{\"type\":\"spawned\",\"process\":{process},\"tree\":\"lone\"}}\n");
        stream.write_all(answer.as_bytes()).unwrap();
    });
}

#[test]
fn a_supervisor_that_says_nothing_does_not_hold_the_daemon_up_for_long() {
    let kept = std::sync::Mutex::new(vec![]);
    expect_refusal("successor to be started", move |stream, _| kept.lock().unwrap().push(stream));
}

#[test]
fn where_no_supervisor_is_nothing_is_begun_and_it_is_said_what_to_look_at() {
    let rig = Rig::start(&[]);
    for line in [WARM, WAIT] {
        let said = rig.expect_with(line, &[("TRIGGER", "/nowhere/trigger")], 3);
        assert!(said.contains("/nowhere/trigger") && said.contains("is the supervisor running"), "{said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn in_place_nobody_can_start_it() {
    let rig = Rig::start(&[]);
    let before = rig.status().unwrap().generation;
    for line in
        ["handoff exec-successor --via t kvd-v2", "handoff drain -- handoff exec-successor --via t kvd-v2"]
    {
        let said = rig.expect(line, 100);
        assert!(said.contains("--via needs --warm or --wait"), "{said}");
    }
    // It was found before the drain.
    assert_eq!(rig.status().unwrap().generation, before);
    rig.expect_undone();
    rig.expect_clean();
}

/// A supervisor of the first daemon; what it says of itself.
struct Supervised {
    rig: Rig,
    daemon: u32,
}

const BY_STEPS: [&str; 5] =
    ["journal begin", "exec-successor --warm --via $TRIGGER kvd-v2", "drain --no-seal", "seal", "commit"];

impl Supervised {
    fn start() -> Self {
        let mut rig = Rig::prepare();
        let (data, program) = (rig.data(), example("supervisor"));
        let data = data.to_str().unwrap();
        let words = [program.to_str().unwrap(), data, "listen=resp=127.0.0.1:0", "policy=always", "max=50"];
        rig.begin(&[&words[..], &["--", "handoff", "kvd", "--data-dir", data]].concat(), &[]);
        let mut this = Self { rig, daemon: 0 };
        this.daemon = this.settle();
        this
    }

    fn env(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.rig.data().join(name).to_str().unwrap().to_owned();
        [("TRIGGER", path("trigger")), ("HANDOFF_JOURNAL", path("journal"))]
    }

    fn sh(&self, line: &str) -> Run {
        let env = self.env();
        self.rig.sh_with(line, &env.each_ref().map(|(name, value)| (*name, value.as_str())))
    }

    #[track_caller]
    fn expect(&self, line: &str, code: i32) {
        let mut run = self.sh(line);
        run.leave();
        assert_eq!(run.wait().code(), Some(code), "{line}: {}", self.rig.everything_said());
    }

    fn state(&self) -> Option<State> {
        let soon = Instant::now() + Duration::from_secs(10);
        Client::connect(self.rig.data().join("trigger")).ok()?.status(soon).ok()
    }

    /// Waits until one daemon is left beside the supervisor, which knows of it; returns its pid.
    #[track_caller]
    fn settle(&self) -> u32 {
        let pid = self.rig.settle_beside(&[self.rig.first_pid()]);
        eventually("the supervisor to know of the daemon", || {
            self.state().is_some_and(|state| {
                state.doing == "serving" && state.daemon.is_some_and(|daemon| daemon.pid == pid)
            })
        });
        pid
    }

    /// Nothing is left of what was tried, and the supervisor goes on with its daemon.
    #[track_caller]
    fn expect_undone(&self) {
        assert_eq!(self.settle(), self.daemon, "{}", self.rig.everything_said());
        let state = self.state().unwrap();
        assert_eq!((state.restarts, state.is_child), (0, true));
    }
}

#[test]
fn what_a_chain_commits_is_the_supervisors_child_and_its_policy_applies() {
    for line in [WARM, WAIT] {
        let supervised = Supervised::start();
        supervised.expect(line, 0);
        let pid = supervised.settle();
        assert_ne!(pid, supervised.daemon);
        assert_eq!(supervised.rig.label(), "v2");
        let state = supervised.state().unwrap();
        assert_eq!((state.is_child, state.restarts), (true, 0));
        signal(pid, "KILL");
        eventually("the daemon to be started again", || {
            supervised.state().is_some_and(|state| state.restarts == 1 && state.doing == "serving")
        });
        assert_ne!(supervised.settle(), pid);
        assert_eq!(supervised.rig.label(), "v2", "the program that was committed");
        supervised.rig.expect_no_loss();
    }
}

#[test]
fn a_chain_with_a_supervisor_that_is_killed_between_any_two_links_is_undone() {
    let mut supervised = Supervised::start();
    for at in 1..BY_STEPS.len() {
        let mut run = supervised.sh(&cut_chain(&BY_STEPS, at, "cut"));
        run.wait_for("cut ");
        run.kill();
        supervised.expect_undone();
    }
    supervised.expect(&format!("exec {}", chain(&BY_STEPS)), 0);
    let pid = supervised.settle();
    assert_ne!(std::mem::replace(&mut supervised.daemon, pid), pid);
    supervised.expect_undone();
    supervised.rig.expect_clean();
}

#[test]
fn a_successor_that_fails_is_nobodys_child_any_more() {
    let supervised = Supervised::start();
    for program in ["false", "kvd-v2 --fail unhealthy", "kvd-v2 --fail crash-after-begin"] {
        supervised.expect(&WARM.replace("kvd-v2", program), 3);
        supervised.expect_undone();
        let gone = supervised.rig.alive().len();
        assert_eq!(gone, 2, "the supervisor and its daemon");
    }
    supervised.rig.expect_clean();
}

#[test]
fn a_supervisor_that_is_killed_meanwhile_undoes_nothing_and_adopts_what_came_of_it() {
    let supervised = Supervised::start();
    let line = "exec handoff exec-successor --warm --via $TRIGGER kvd-v2 -- \
                sh -c 'echo is-warm; read go; exec handoff drain -- handoff commit'";
    let mut run = supervised.sh(line);
    run.wait_for("is-warm");
    signal(supervised.rig.first_pid(), "KILL");
    run.types("go");
    assert_eq!(run.wait().code(), Some(0), "{}", supervised.rig.everything_said());
    // The one that was killed is a zombie of this process until the end.
    let pid = supervised.rig.settle_beside(&[supervised.rig.first_pid()]);
    assert_ne!(pid, supervised.daemon);
    let (data, program) = (supervised.rig.data(), example("supervisor"));
    let data = data.to_str().unwrap();
    let words = [program.to_str().unwrap(), data, "listen=resp=127.0.0.1:0", "--", "handoff", "kvd"];
    let next = supervised.rig.run_with(&[&words[..], &["--data-dir", data]].concat(), &[]);
    eventually("the next one to find the daemon", || {
        supervised.state().is_some_and(|state| {
            state.doing == "serving" && state.daemon.is_some_and(|daemon| daemon.pid == pid)
        })
    });
    assert_eq!(supervised.rig.settle_beside(&[supervised.rig.first_pid(), next.pid()]), pid);
    assert_eq!(supervised.rig.label(), "v2");
    supervised.rig.expect_clean();
}
