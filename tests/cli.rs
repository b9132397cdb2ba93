//! The command line, as a person or a script uses it, against running kvds.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::load::{Answer, Connection};
use common::said::Said;
use common::{HANDOFF, Kvd, PATIENCE, eventually, wait_for_exit};
use handoff::control::Control;
use handoff::proto::wire::Status;
use handoff::sys::process::{self, PidFd, Signal};
use serde_json::Value;

/// A kvd that serves, and what it takes to swap it.
struct Rig {
    dir: tempfile::TempDir,
    first: Kvd,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let first = Kvd::start(&dir.path().join("data"), &["--version-label", "v1"]);
        Self { dir, first }
    }

    fn control(&self) -> PathBuf {
        self.data_dir().join("control")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command
            .args(args)
            .env("HANDOFF_CONTROL", self.control())
            .env("HANDOFF_JOURNAL", self.journal())
            .env_remove("HANDOFF_LOG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args))
    }

    /// Swaps to a kvd of another label, which fails in some way.
    fn swap(&self, options: &[&str], label: &str, fault: &[&str]) -> Said {
        let words = self.swap_words(options, label, fault);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn swap_words(&self, options: &[&str], label: &str, fault: &[&str]) -> Vec<String> {
        let data_dir = self.data_dir();
        let successor = [HANDOFF, "kvd", "--data-dir", data_dir.to_str().unwrap(), "--version-label", label];
        ["swap"].iter().chain(options).chain(&successor).chain(fault).map(|word| (*word).to_owned()).collect()
    }

    /// Begins a swap, and waits until its successor is on trial.
    fn bake(&self, options: &[&str], fault: &[&str]) -> Child {
        let mut options = options.to_vec();
        options.extend(["--bake", "10m"]);
        let words = self.swap_words(&options, "v2", fault);
        let mut command = self.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the trial", || self.status().is_some_and(|status| status.phase == "on-trial"));
        child
    }

    fn status(&self) -> Option<Status> {
        let deadline = Instant::now() + Duration::from_secs(5);
        Control::connect(self.control(), "test", deadline).ok()?.status(deadline).ok()
    }

    /// Asks the store itself who it is.
    fn serving(&self) -> String {
        let mut connection = Connection::open(self.first.addr, PATIENCE).unwrap();
        let Answer::Bulk(Some(info)) = connection.call(&["INFO", "handoff"]).unwrap() else {
            panic!("INFO has no text")
        };
        let info = String::from_utf8(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("build_id:")).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Rig {
    /// A successor is nobody's child here.
    fn drop(&mut self) {
        for _ in 0..2 {
            let Some(status) = self.status() else { return };
            for process in status.handoff.iter().flat_map(|h| [&h.incumbent, &h.successor]).flatten() {
                kill(process.pid);
            }
            kill(status.process.pid);
        }
    }
}

fn kill(pid: u32) {
    if let Ok(process) = PidFd::open(pid) {
        // It may have ended already.
        let _ = process.signal(Signal::SIGKILL);
        let _ = process.wait_dead(Instant::now() + PATIENCE);
    }
}

// ---- swap

#[test]
fn a_swap_by_hand_reuses_the_arguments_and_prints_one_line() {
    let mut rig = Rig::start();
    let next = rig.dir.path().join("kvd-next");
    fs::copy(HANDOFF, &next).unwrap();
    let said = rig.run(&["swap", next.to_str().unwrap()]).expect(0);
    assert_eq!(said.err, "", "nothing on standard error when all is well and nobody watches");
    assert_eq!(said.out.lines().count(), 1, "{said:?}");
    assert!(said.out.starts_with("committed "), "{said:?}");
    for part in
        [" gap ", "(drain ", " seal ", " ready ", " queue peak 0/", " overflows ", " connections closed "]
    {
        assert!(said.out.contains(part), "{part:?} in {said:?}");
    }
    assert_eq!(rig.first.wait().code(), Some(0));
    let status = rig.status().unwrap();
    assert_eq!((status.generation, status.binary), (2, next.display().to_string()));
    // The label is one of the arguments.
    assert_eq!(rig.serving(), "v1");
    assert!(rig.first.stderr.wait_for("handed over").contains("kvd"));
}

#[test]
fn relative_paths_among_reused_arguments_mean_the_same_to_the_successor() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(HANDOFF);
    command.args(["kvd", "--listen", "127.0.0.1:0", "--data-dir", "data"]).current_dir(dir.path());
    let first = Kvd::spawn(command);
    let rig = Rig { dir, first };
    let said = rig.run(&["swap", HANDOFF]).expect(0);
    assert!(said.out.starts_with("committed "), "{said:?}");
    // So they do to whoever starts the daemon again after everything is gone, wherever that is.
    let pid = rig.status().unwrap().process.pid;
    let directory = rig.dir.path().canonicalize().unwrap();
    assert_eq!(process::working_directory(pid).unwrap(), directory);
    kill(pid);
    let mut again = rig.command(&["journal", "current"]);
    let found = Said::of({
        again.arg("--data-dir").arg(rig.data_dir());
        again
    });
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("eval \"exec {}\"", found.out.trim())]).current_dir("/");
    let again = Kvd::spawn(shell);
    assert_eq!(process::working_directory(again.child.id()).unwrap(), directory);
    assert_eq!(rig.status().unwrap().process.pid, again.child.id());
}

#[test]
fn an_incumbent_that_becomes_the_successors_program_does_so_in_that_ones_directory() {
    let rig = Rig::start();
    let first = rig.status().unwrap().process.pid;
    let mut swap = rig.command(&["swap", HANDOFF, "kvd", "--data-dir", "data", "--version-label", "v2"]);
    swap.args(["--fail", "crash-when-ready"]).current_dir(rig.dir.path());
    Said::of(swap).expect(0);
    eventually("the incumbent to become the successor's program", || {
        rig.status().is_some_and(|status| status.generation > 1 && status.process.pid == first)
    });
    assert_eq!(rig.serving(), "v2");
    assert_eq!(process::working_directory(first).unwrap(), rig.dir.path().canonicalize().unwrap());
}

#[test]
fn the_successor_logs_where_the_incumbent_did_and_the_swap_can_end() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    rig.first.stderr.wait_for("kvd v2 serves on ");
}

#[test]
fn options_after_the_program_are_the_programs() {
    let rig = Rig::start();
    // kvd has no --json: had it been ours, the swap would have gone well.
    let said = rig.swap(&[], "v2", &["--json"]).expect(3);
    assert!(said.out.starts_with("rolled back "), "{said:?}");
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn json_has_the_fields_that_scripts_need() {
    let rig = Rig::start();
    let said = rig.swap(&["--json"], "v2", &[]).expect(0).json();
    assert_eq!(said["outcome"], "committed");
    assert_eq!((&said["committed"], &said["exit"], &said["reason"]), (&true.into(), &0.into(), &Value::Null));
    for field in ["gap_us", "drain_us", "seal_us", "ready_us", "queue_peak", "queue_limit", "total_ms", "pid"]
    {
        assert!(said[field].is_u64(), "{field} in {said:#}");
    }
    let parts = ["drain_us", "seal_us", "ready_us"].map(|part| said[part].as_u64().unwrap());
    let gap = said["gap_us"].as_u64().unwrap();
    assert!(gap > 0 && gap <= parts.iter().sum(), "{gap} {parts:?}");
    assert_eq!(u64::from(rig.status().unwrap().process.pid), said["pid"].as_u64().unwrap());
    let undone = rig.swap(&["--json"], "v3", &["--fail", "unhealthy"]).expect(3).json();
    assert_eq!((&undone["outcome"], &undone["reason_kind"]), (&"rolled-back".into(), &"unhealthy".into()));
}

#[test]
fn a_program_that_cannot_be_run_is_found_before_anything_is_asked() {
    let rig = Rig::start();
    let plain = rig.dir.path().join("plain");
    fs::write(&plain, "not a program").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    // Nobody answers at this path either, and that is not what is said.
    for (program, code) in [("/no/such/kvd", 127), ("no-such-kvd", 127), (plain.to_str().unwrap(), 126)] {
        let said = rig.run(&["swap", "--control", "/no/control", program]).expect(code);
        assert!(said.err.starts_with("handoff swap: fatal: unable to "), "{said:?}");
        assert!(said.err.contains(program) && said.err.lines().count() == 1, "{said:?}");
        assert_eq!(said.out, "");
    }
    assert!(!rig.journal().exists());
}

#[test]
fn an_unknown_option_before_the_program_is_a_usage_error() {
    let rig = Rig::start();
    for words in [
        &["swap", "--lsiten", HANDOFF][..],
        &["swap", "-x", HANDOFF],
        &["swap", "--drain-grace", "soon", HANDOFF],
        &["swap", "--health", "true", HANDOFF],
        &["swap", "--env", "novalue", HANDOFF],
        &["swap"],
        &["sawp", HANDOFF],
        &["journal", "timeline", "--nope"],
    ] {
        let said = rig.run(words).expect(100);
        assert_eq!(said.out, "", "{words:?}");
    }
    assert_eq!(rig.status().unwrap().generation, 1);
}

#[test]
fn a_control_path_where_nobody_answers_is_named() {
    let rig = Rig::start();
    let said = rig.run(&["swap", "--control", "/no/such/control", HANDOFF]).expect(111);
    assert!(said.err.starts_with("handoff swap: fatal: unable to connect to /no/such/control: "), "{said:?}");
    for command in ["commit", "abort"] {
        let said = rig.run(&[command, "--control", "/no/such/control"]).expect(111);
        assert!(said.err.contains("unable to connect to /no/such/control"), "{said:?}");
    }
}

#[test]
fn a_second_swap_is_told_which_handoff_is_in_its_way() {
    let rig = Rig::start();
    let baking = rig.bake(&[], &[]);
    let id = rig.status().unwrap().handoff.unwrap().handoff;
    let said = rig.swap(&[], "v3", &[]).expect(1);
    assert!(said.err.starts_with("handoff swap: fatal: unable to swap the daemon: busy: "), "{said:?}");
    assert!(said.err.contains(&id) && said.err.contains("on-trial"), "{said:?}");
    let said = rig.swap(&["--json"], "v3", &[]).expect(1).json();
    assert_eq!(said["outcome"], "refused");
    rig.run(&["commit"]).expect(0);
    assert!(Said::by(baking).expect(0).out.contains(&id));
    assert_eq!(rig.serving(), "v2");
}

#[test]
fn a_bad_successor_is_rolled_back_with_the_reason() {
    let rig = Rig::start();
    // There has to be something for a stale successor to have missed.
    rig.first.call(&["SET", "k", "v"]);
    for (fault, code, reason) in [
        ("crash-at-start", 3, "the successor died (signal: 6 (SIGABRT)"),
        ("exit-while-warm", 3, "the successor died (exit status: 0)"),
        ("stale", 3, "the successor opened other data than was sealed"),
        ("unhealthy", 3, "the successor reported that it is not healthy"),
        ("crash-after-begin", 3, "the successor died (signal: 6 (SIGABRT)"),
        ("hang-after-begin", 4, "the deadline passed"),
    ] {
        let said = rig.swap(&["--deadline", "500ms"], "bad", &["--fail", fault]).expect(code);
        assert!(said.out.starts_with("rolled back ") && said.out.contains(reason), "{fault}: {said:?}");
        assert!(said.out.ends_with("; the incumbent serves\n"), "{said:?}");
        assert_eq!(rig.serving(), "v1", "{fault}");
    }
    let said = rig.swap(&["--warm-up-limit", "200ms"], "bad", &["--fail", "hang-while-warm"]);
    assert_eq!((said.code, rig.serving().as_str()), (4, "v1"), "{said:?}");
}

#[test]
fn an_interrupted_swap_is_undone() {
    for signal in ["INT", "TERM"] {
        let rig = Rig::start();
        let baking = rig.bake(&[], &[]);
        let sent = Command::new("kill").args([format!("-{signal}"), baking.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let said = Said::by(baking).expect(3);
        assert!(said.out.contains(&format!("asked to stop by SIG{signal}")), "{said:?}");
        assert_eq!(rig.serving(), "v1");
    }
}

#[test]
fn variables_and_the_control_path_reach_the_successor() {
    let rig = Rig::start();
    let script = rig.dir.path().join("next");
    let seen = rig.dir.path().join("seen");
    fs::write(&script, "#!/bin/sh\necho \"$COLOUR $1\" >\"$SEEN\"\nexit 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let variable = format!("SEEN={}", seen.display());
    let script = script.to_str().unwrap();
    let words = ["swap", "--env", "COLOUR=b=lue", "--env", &variable, script, "--word"];
    rig.run(&words).expect(3);
    assert_eq!(fs::read_to_string(&seen).unwrap(), "b=lue --word\n");
    let words = ["swap", "--no-reuse-args", "--env", "COLOUR=", "--env", &variable, script];
    rig.run(&words).expect(3);
    assert_eq!(fs::read_to_string(&seen).unwrap(), " \n");
}

// ---- bake

#[test]
fn a_bake_that_is_committed_early_keeps_the_successor() {
    let mut rig = Rig::start();
    let baking = rig.bake(&[], &[]);
    let said = rig.run(&["commit"]).expect(0);
    assert!(said.out.starts_with("committed ") && said.out.contains("(v2) serves generation 2"), "{said:?}");
    let swap = Said::by(baking).expect(0);
    assert!(swap.out.starts_with("committed ") && swap.out.contains(" bake "), "{swap:?}");
    assert_eq!((rig.serving().as_str(), rig.first.wait().code()), ("v2", Some(0)));
    let said = rig.run(&["commit"]).expect(1);
    assert!(said.err.contains("no handoff is in progress"), "{said:?}");
}

#[test]
fn a_bake_ends_by_itself_and_keeps_the_successor() {
    let rig = Rig::start();
    let said = rig.swap(&["--bake", "300ms", "--health", "true"], "v2", &[]).expect(0);
    assert!(said.out.contains(" bake "), "{said:?}");
    assert_eq!(rig.serving(), "v2");
}

#[test]
fn a_bake_that_is_aborted_gives_the_service_back() {
    let rig = Rig::start();
    let baking = rig.bake(&[], &[]);
    let said = rig.run(&["abort", "--reason", "too many errors"]).expect(0);
    assert!(said.out.starts_with("rolled back ") && said.out.contains("(v1) serves"), "{said:?}");
    let swap = Said::by(baking).expect(3);
    assert!(swap.out.contains("too many errors"), "{swap:?}");
    assert_eq!(rig.serving(), "v1");
    let json = rig.run(&["abort", "--json"]).expect(1);
    assert!(json.err.contains("no handoff is in progress"), "{json:?}");
}

#[test]
fn a_bake_whose_health_check_died_with_its_driver_is_undone() {
    let rig = Rig::start();
    let mut baking = rig.bake(&["--health", "true"], &[]);
    baking.kill().unwrap();
    baking.wait().unwrap();
    eventually("the daemon to take over again", || {
        rig.status().is_some_and(|status| status.role == "incumbent" && status.phase == "serving")
    });
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn a_bake_without_a_health_check_goes_on_without_its_driver() {
    let mut rig = Rig::start();
    let mut baking = rig.bake(&[], &[]);
    baking.kill().unwrap();
    baking.wait().unwrap();
    assert_eq!(rig.status().unwrap().phase, "on-trial");
    rig.run(&["commit"]).expect(0);
    assert_eq!((rig.serving().as_str(), rig.first.wait().code()), ("v2", Some(0)));
}

#[test]
fn a_second_store_does_not_take_the_control_path_of_the_first() {
    let rig = Rig::start();
    let other = rig.dir.path().join("other");
    let words = ["kvd", "--listen", "127.0.0.1:0", "--data-dir", other.to_str().unwrap()];
    let said = rig.run(&words).expect(1);
    assert!(
        said.err.contains("choose another control path") && said.err.contains("leads to pid"),
        "{said:?}"
    );
    assert_eq!(rig.status().unwrap().process.pid, rig.first.child.id());
}

#[test]
fn a_failing_health_check_undoes_the_bake_with_what_it_said() {
    let rig = Rig::start();
    let check = "test \"$(ls /proc/self/fd | wc -l)\" -le 4 || exit 9; echo the disk is on fire; exit 3";
    let options = ["--bake", "10m", "--health", check, "--health-interval", "10ms"];
    let said = rig.swap(&options, "v2", &[]).expect(3);
    assert!(said.out.contains("the health check failed: exit status: 3: the disk is on fire"), "{said:?}");
    assert_eq!(rig.serving(), "v1");
    let options = ["--bake", "10m", "--health", "sleep 1000", "--health-timeout", "100ms"];
    let said = rig.swap(&options, "v2", &[]).expect(3);
    assert!(said.out.contains("no end after 100ms"), "{said:?}");
    assert_eq!(rig.serving(), "v1");
}

#[test]
fn an_abort_reaches_a_successor_that_warms_up() {
    let rig = Rig::start();
    let words = rig.swap_words(&[], "v2", &["--fail", "hang-while-warm"]);
    let mut command = rig.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let swap = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the warm-up", || rig.status().is_some_and(|status| status.handoff.is_some()));
    rig.run(&["abort", "--reason", "changed my mind"]).expect(0);
    let said = Said::by(swap).expect(3);
    assert!(said.out.contains("changed my mind"), "{said:?}");
    assert_eq!(rig.serving(), "v1");
}

// ---- status

#[test]
fn status_says_what_runs() {
    let rig = Rig::start();
    let said = rig.run(&["status"]).expect(0);
    let pid = rig.first.child.id();
    for part in [
        format!("incumbent serving: pid {pid}, up "),
        "(v1)".to_owned(),
        "generation 1, final".to_owned(),
        format!("held by pid {pid} ("),
        format!("resp {}, queue 0/", rig.first.addr),
        "handoff   none".to_owned(),
    ] {
        assert!(said.out.contains(&part), "{part:?} in {said:#?}");
    }
    let json = rig.run(&["status", "--json"]).expect(0).json();
    assert_eq!((&json["answers"], &json["status"]["phase"]), (&true.into(), &"serving".into()));
    assert_eq!(json["record"]["generation"], 1);
    assert_eq!(json["holders"][0]["pid"], pid);
}

#[test]
fn status_in_the_middle_of_a_bake_names_both_processes_and_the_time_left() {
    let rig = Rig::start();
    let baking = rig.bake(&[], &[]);
    let said = rig.run(&["status"]).expect(0);
    let first = rig.first.child.id();
    for part in
        ["successor on-trial: ", "generation 2, on trial", " left, ", &format!("incumbent pid {first}")]
    {
        assert!(said.out.contains(part), "{part:?} in {said:#?}");
    }
    let json = rig.run(&["status", "--json"]).expect(0).json();
    assert_eq!(json["status"]["handoff"]["incumbent"]["pid"], first);
    assert_eq!(json["record"]["standing"], "trial");
    rig.run(&["abort"]).expect(0);
    Said::by(baking).expect(3);
}

#[test]
fn status_of_a_dead_daemon_says_what_to_start() {
    let mut rig = Rig::start();
    rig.first.child.kill().unwrap();
    rig.first.child.wait().unwrap();
    let data_dir = rig.data_dir();
    let said = rig.run(&["status", "--data-dir", data_dir.to_str().unwrap()]).expect(1);
    assert!(said.out.starts_with(&format!("nobody answers at {}: ", rig.control().display())), "{said:?}");
    assert!(said.out.contains("nobody holds it"), "{said:?}");
    let start = said.out.lines().find_map(|line| line.strip_prefix("start ")).unwrap();
    assert!(start.trim().starts_with("env --chdir=/"), "{start}");
    assert!(start.contains(&format!(" {HANDOFF} kvd --listen 127.0.0.1:0 ")), "{start}");
    let json = rig.run(&["status", "--json", "--data-dir", data_dir.to_str().unwrap()]).expect(1).json();
    assert_eq!(json["start"]["binary"], HANDOFF);
    rig.run(&["status"]).expect(1);
}

// ---- journal

#[test]
fn the_journal_answers_after_a_commit_and_a_rollback() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    let undone = rig.swap(&["--json"], "v3", &["--fail", "unhealthy"]).expect(3).json();
    let undone = undone["handoff"].as_str().unwrap();

    let shown = rig.run(&["journal", "show"]).expect(0).out;
    assert!(shown.contains("committed: generation 2") && shown.contains("rolled back: "), "{shown}");
    let one = rig.run(&["journal", "show", "--json", "--handoff", undone]).expect(0).out;
    assert!(one.lines().count() > 3);
    for line in one.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["handoff"], undone);
    }
    rig.run(&["journal", "show", "--handoff", "nope"]).expect(1);

    let current = rig.run(&["journal", "current"]).expect(0);
    let directory = std::env::current_dir().unwrap();
    let start = format!("env --chdir={} {HANDOFF} kvd ", directory.display());
    assert!(current.out.starts_with(&start) && current.out.contains("--version-label v2"), "{current:?}");
    assert!(current.err.contains("the owner record in ") && current.err.contains("the journal agrees"));
    let current = rig.run(&["journal", "current", "--json"]).expect(0).json();
    assert_eq!(current["decided_by"], "owner-record");
    assert_eq!(current["program"]["directory"], directory.to_str().unwrap());
    // The rollback made a record of its own: the incumbent's third generation is the program of the second.
    assert_eq!(current["record"]["generation"], 3);
    assert_eq!(current["journal"]["generation"], 2);
}

#[test]
fn the_journal_alone_says_what_is_current_where_the_record_is_gone() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    let nowhere = rig.dir.path().join("nowhere");
    fs::create_dir(&nowhere).unwrap();
    let nowhere = nowhere.to_str().unwrap();
    let current = rig.run(&["journal", "current", "--json", "--data-dir", nowhere]).expect(0).json();
    assert_eq!(current["decided_by"], "journal");
    let no_journal = Path::new(nowhere).join("journal");
    let words = ["journal", "current", "--data-dir", nowhere, "--journal", no_journal.to_str().unwrap()];
    rig.run(&words).expect(1);
}

#[test]
fn a_timeline_shows_the_gap_in_text_and_as_pictures() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    let text = rig.run(&["journal", "timeline"]).expect(0).out;
    for part in [": committed, gap ", "warming", "draining", "serving", "█"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours where nobody looks");
    let (svg, trace) = (rig.dir.path().join("t.svg"), rig.dir.path().join("t.json"));
    let words = ["journal", "timeline", "--svg", svg.to_str().unwrap(), "--trace", trace.to_str().unwrap()];
    rig.run(&words).expect(0);
    assert!(fs::read_to_string(svg).unwrap().contains("<svg"));
    assert!(serde_json::from_str::<Value>(&fs::read_to_string(trace).unwrap()).is_ok());
    rig.swap(&[], "v3", &["--fail", "unhealthy"]).expect(3);
    let text = rig.run(&["journal", "timeline"]).expect(0).out;
    assert!(text.contains("rolled back: the successor reported"), "{text}");
    rig.run(&["journal", "timeline", "nope"]).expect(1);
}

#[test]
fn a_damaged_journal_is_left_alone_and_the_repair_is_named() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    let journal = rig.journal();
    let mut bytes = fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    let repair = format!("next: handoff journal repair {}", journal.display());
    let words =
        [&["journal", "show"][..], &["journal", "current"], &["journal", "timeline"], &["journal", "resume"]];
    for words in words {
        let said = rig.run(words).expect(1);
        assert!(said.err.contains("is damaged at byte ") && said.err.contains(&repair), "{said:?}");
    }
    let said = rig.swap(&[], "v3", &[]).expect(1);
    assert!(said.err.contains(&repair), "{said:?}");
    assert_eq!((fs::read(&journal).unwrap(), rig.serving().as_str()), (bytes, "v2"));

    let said = rig.run(&["journal", "repair"]).expect(0);
    assert!(said.out.contains("moved to "), "{said:?}");
    assert!(rig.run(&["journal", "repair"]).expect(0).out.starts_with("sound: "));
    assert!(rig.run(&["journal", "show"]).expect(0).out.contains("repaired: "));
    rig.swap(&[], "v3", &[]).expect(0);
}

#[test]
fn journals_that_are_missing_empty_torn_or_not_ours_are_told_apart() {
    let rig = Rig::start();
    let journal = rig.journal();
    assert!(rig.run(&["journal", "show"]).expect(111).err.contains("No such file"));
    fs::write(&journal, "").unwrap();
    assert!(rig.run(&["journal", "show"]).expect(0).err.contains("is empty"));
    fs::write(&journal, "#!/bin/sh\necho a program\n").unwrap();
    let said = rig.run(&["journal", "show"]).expect(1);
    assert!(said.err.contains("is not ours") && said.err.contains("name another journal"), "{said:?}");
    fs::remove_file(&journal).unwrap();
    rig.swap(&[], "v2", &[]).expect(0);
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 5]).unwrap();
    assert!(rig.run(&["journal", "show"]).expect(0).err.contains("the last record is torn"));
}

#[test]
fn a_handoff_whose_driver_was_killed_is_settled_by_resume_and_only_once() {
    let rig = Rig::start();
    let mut baking = rig.bake(&[], &[]);
    baking.kill().unwrap();
    baking.wait().unwrap();
    rig.run(&["commit"]).expect(0);
    let said = rig.run(&["journal", "resume"]).expect(0);
    assert!(said.out.contains(": committed"), "{said:?}");
    assert_eq!(rig.run(&["journal", "resume"]).expect(0).out, "nothing was left open\n");
    assert_eq!(rig.serving(), "v2");
}

#[test]
fn a_handoff_that_nobody_survived_is_settled_with_what_to_start() {
    let mut rig = Rig::start();
    let mut baking = rig.bake(&[], &[]);
    let successor = rig.status().unwrap().process.pid;
    baking.kill().unwrap();
    baking.wait().unwrap();
    rig.first.child.kill().unwrap();
    rig.first.child.wait().unwrap();
    kill(successor);
    // It was on trial, or had just learned that its incumbent is dead: either way somebody is named.
    let said = rig.run(&["journal", "resume"]).expect(6);
    assert!(said.out.contains("nothing serves: ") && said.out.contains(HANDOFF), "{said:?}");
    assert!(rig.run(&["journal", "resume"]).expect(0).out.starts_with("nothing was left open"));
    let said = rig.run(&["journal", "current"]).expect(0);
    let start: Vec<&str> = said.out.split_whitespace().collect();
    let mut command = Command::new(start[0]);
    command.args(&start[1..]);
    drop(Kvd::spawn(command));
}

#[test]
fn a_daemon_that_is_stopped_is_waited_for_only_so_long() {
    let rig = Rig::start();
    rig.first.signal("STOP");
    let said = rig.run(&["status", "--timeout", "200ms"]).expect(1);
    assert!(said.out.starts_with("nobody answers at ") && said.out.contains("timed out"), "{said:?}");
    rig.first.signal("CONT");
    rig.run(&["status"]).expect(0);
}

#[test]
fn verbose_says_more_and_whoever_asks_with_a_variable_gets_that() {
    let rig = Rig::start();
    let warned = |command: &mut Command| {
        command.args(["swap", "--warm-up-limit", "100ms", HANDOFF, "kvd", "--fail", "hang-while-warm"]);
        command.args(["--data-dir", rig.data_dir().to_str().unwrap()]);
    };
    let mut loud = rig.command(&[]);
    warned(&mut loud);
    assert!(Said::of(loud).expect(4).err.contains("handoff swap: warning: the successor does not go"));
    let mut silent = rig.command(&[]);
    warned(&mut silent);
    silent.env("RUST_LOG", "off");
    assert_eq!(Said::of(silent).expect(4).err, "");
    let said = rig.swap(&["--verbose"], "v2", &[]).expect(0);
    assert!(said.err.contains("handoff swap: debug: ") && said.err.contains("draining"), "{said:?}");
    assert!(!said.err.contains('\u{1b}'), "no colours where nobody looks");
}

#[test]
fn show_follows_what_is_added() {
    let rig = Rig::start();
    let mut following = rig.command(&["journal", "show", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = following.stdout.take().unwrap();
    let seen = std::thread::spawn(move || {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains("committed: generation 2") {
            let n = out.read(&mut buffer).unwrap();
            assert!(n > 0, "{text}");
            text += &String::from_utf8_lossy(&buffer[..n]);
        }
    });
    rig.swap(&[], "v2", &[]).expect(0);
    eventually("the commit", || seen.is_finished());
    seen.join().unwrap();
    following.kill().unwrap();
    following.wait().unwrap();
}

// ---- terminals, pipes and help

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let rig = Rig::start();
    rig.swap(&[], "v2", &[]).expect(0);
    for words in [&["journal", "show"][..], &["status"], &["journal", "timeline"], &["status", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child =
            rig.command(words).stdout(Stdio::from(writer)).stderr(Stdio::piped()).spawn().unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((wait_for_exit(&mut child).code(), err.as_str()), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let rig = Rig::start();
    let quiet = rig.swap(&["--progress", "auto"], "v2", &[]).expect(0);
    assert_eq!(quiet.err, "");
    let lines = rig.swap(&["--progress", "always"], "v3", &[]).expect(0);
    assert!(lines.err.contains("handoff swap: info: draining\n"), "{lines:?}");
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: needs script, of bsdutils");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have script");
        return;
    }
    for (when, expected) in [("auto", true), ("never", false)] {
        let words = rig.swap_words(&["--progress", when], "v4", &["--fail", "slow-open-ms=300"]);
        let mut script = Command::new("script");
        script
            .args(["-qec", &format!("{HANDOFF} {}", words.join(" ")), "/dev/null"])
            .env("HANDOFF_CONTROL", rig.control())
            .env("TERM", "xterm")
            .stdin(Stdio::null());
        let said = Said::of(script).expect(0);
        assert_eq!(said.out.contains("deciding: accept queue 0/"), expected, "{when}: {said:?}");
        assert!(said.out.contains("committed "), "{said:?}");
    }
}

#[test]
fn help_teaches_and_has_the_table_of_exit_codes() {
    for words in [&["swap"][..], &["status"], &["commit"], &["abort"], &["journal"]] {
        let said = Said::of({
            let mut command = Command::new(HANDOFF);
            command.args(words).arg("--help");
            command
        })
        .expect(0);
        assert!(said.out.contains("EXAMPLES\n  "), "{said:?}");
        assert!(said.out.contains("  127  the program was not found"), "{said:?}");
    }
}
