//! deploy.sh and deploy.execline.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::said::Said;
use crate::common::{HANDOFF, eventually, wait_for_exit};
use crate::rig::{Rig, Way, expect, signal_group};
use crate::scripts;

fn script(way: Way) -> &'static str {
    if way == Way::Execline { "deploy.execline" } else { "deploy.sh" }
}

fn start(way: Way, args: &[&str]) -> Option<Rig> {
    Rig::start(way, script(way), args)
}

/// Runs a test for each interpreter.
macro_rules! each_way {
    ($($name:ident)*) => {
        mod dash { $(#[test] fn $name() { super::$name(super::Way::Dash) })* }
        mod bash { $(#[test] fn $name() { super::$name(super::Way::Bash) })* }
        mod execline { $(#[test] fn $name() { super::$name(super::Way::Execline) })* }
    };
}

each_way! {
    a_deploy_says_one_line_and_a_failing_release_leaves_the_old_one
    what_is_refused_changes_nothing
    a_daemon_that_fails_to_drain_or_seal_serves_on
    a_deploy_that_is_interrupted_before_any_step_leaves_the_old_one
    a_deploy_that_is_killed_before_any_step_leaves_the_old_one
    a_deploy_whose_chain_is_killed_says_how_it_ended
    a_deploy_goes_on_without_the_script_that_started_it
    ctrl_c_while_a_command_waits_undoes_the_deploy
    a_daemon_that_is_killed_meanwhile_is_succeeded
    a_full_disk_under_the_journal
}

fn a_deploy_says_one_line_and_a_failing_release_leaves_the_old_one(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    let said = rig.expect("v2", &[], &[], 0, "committed ");
    assert_eq!((said.out.lines().count(), said.err.as_str()), (1, ""), "{said:?}");
    rig.expect_serving("v2");
    for (fault, reason) in [
        ("crash-at-start", "died"),
        ("exit-while-warm", "died"),
        ("crash-after-begin", "died"),
        ("stale", "revision"),
        ("unhealthy", "not healthy"),
    ] {
        let said = rig.expect("v3", &[fault], &[], 3, "rolled back: the old program serves");
        assert!(said.out.contains(reason) && said.out.lines().count() == 1, "{fault}: {said:?}");
        rig.expect_serving("v2");
    }
    for (fault, limit) in
        [("hang-while-warm", ("WARM_UP", "300ms")), ("hang-after-begin", ("DEADLINE", "1s"))]
    {
        let said = rig.expect("v3", &[fault], &[limit], 4, "it took too long");
        assert!(said.out.contains("rolled back "), "{said:?}");
        rig.expect_serving("v2");
    }
    // The data is its own when it dies: its program must run, and the incumbent's process becomes it.
    rig.expect("v4", &["crash-when-ready"], &[], 0, "committed ");
    rig.expect_serving("v4");
    from_elsewhere(&rig, way);
    rig.expect_clean();
}

/// Another directory, a relative path to the script, a program with a space in its name, and no arguments.
fn from_elsewhere(rig: &Rig, way: Way) {
    let here = rig.path("some where");
    fs::create_dir(&here).unwrap();
    fs::copy(scripts().join(script(way)), here.join("de ploy")).unwrap();
    fs::copy(HANDOFF, here.join("kvd five")).unwrap();
    let mut command = rig.script_at(Path::new("./de ploy"));
    command.arg("./kvd five").current_dir(&here);
    expect(Said::of(command), 0, "committed ");
    assert!(rig.status().unwrap().binary.ends_with("kvd five"));
    rig.expect_serving("v4");
}

fn what_is_refused_changes_nothing(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    let run = |words: &[&str]| {
        let mut command = rig.script();
        command.args(words);
        Said::of(command)
    };
    expect(run(&[]), 100, "usage: ");
    expect(run(&["--nonsense"]), 100, "usage: ");
    assert!(expect(run(&["-h"]), 0, "usage: ").out.contains("usage: "));
    expect(run(&["/nowhere/kvd"]), 127, "was not found, and nothing was changed");
    fs::write(rig.path("no program"), "").unwrap();
    expect(
        run(&[rig.path("no program").to_str().unwrap()]),
        126,
        "cannot be executed, and nothing was changed",
    );
    if way != Way::Execline {
        expect(run(&["kvd", "--", "x"]), 100, "`handoff swap`");
        let mut bare = rig.script();
        bare.arg("kvd").env("PATH", empty_path(&rig, way));
        expect(Said::of(bare), 127, "handoff is not in PATH; nothing was changed");
    }

    let nowhere = rig.path("nowhere");
    let wrong = [("HANDOFF_CONTROL", nowhere.to_str().unwrap())];
    rig.expect("v2", &[], &wrong, 111, "unable to connect to ");
    rig.expect_serving("v1");

    // What the wrong path has left open, the right one settles.
    let said = rig.handoff(&["journal", "resume"]).output().unwrap();
    assert!(said.status.success(), "{said:?}");

    let held = hold(&rig, &["journal", "begin"]);
    rig.expect("v2", &[], &[], 1, "refused: nothing was changed");
    end(held);
    let held = hold(&rig, &["exec-successor", "--warm", HANDOFF, "--"]);
    rig.expect("v2", &[], &[], 1, "busy: handoff ");
    end(held);
    rig.expect_serving("v1");

    rig.expect("v1", &[], &[], 0, "committed ");
    damage(&rig.path("journal"));
    rig.expect("v2", &[], &[], 1, "next: handoff journal repair ");
    rig.expect_serving("v1");
    assert!(rig.handoff(&["journal", "repair"]).output().unwrap().status.success());
    rig.expect("v2", &[], &[], 0, "committed ");
    rig.expect_serving("v2");
    rig.expect_clean();
}

/// Starts a chain that holds what these words take, in a program that waits.
fn hold(rig: &Rig, words: &[&str]) -> Child {
    let mut command = rig.handoff(words);
    command.args(["sh", "-c", "echo held; exec sleep 600"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}

fn end(mut child: Child) {
    child.kill().unwrap();
    wait_for_exit(&mut child);
}

/// Overwrites a record in the middle.
fn damage(journal: &Path) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(journal).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let middle = text[..text.len() / 2].rfind('\n').unwrap();
    file.seek(SeekFrom::Start(middle as u64 + 20)).unwrap();
    file.write_all(b"????").unwrap();
}

/// Returns a PATH that has the shell's own tools, and no handoff.
fn empty_path(rig: &Rig, way: Way) -> PathBuf {
    let bin = rig.path("bare");
    fs::create_dir(&bin).unwrap();
    for tool in ["env", way.program(), "cat", "head"] {
        let there = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(tool));
        symlink(there.iter().find(|path| path.exists()).unwrap(), bin.join(tool)).unwrap();
    }
    bin
}

fn a_daemon_that_fails_to_drain_or_seal_serves_on(way: Way) {
    for (fault, reason) in [("fail-drain", "drain"), ("fail-seal", "seal")] {
        let Some(mut rig) = start(way, &["--fail", fault]) else { return };
        let said = rig.expect("v2", &[], &[], 3, "rolled back: the old program serves");
        assert!(said.out.contains(reason), "{said:?}");
        rig.expect_serving("v1");
        rig.expect_clean();
    }
}

/// What comes before each of them was done.
const STEPS: [&str; 4] = ["journal begin", "exec-successor", "drain", "commit"];

fn a_deploy_that_is_interrupted_before_any_step_leaves_the_old_one(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    for step in STEPS {
        let paused = rig.pause("v2", step, &[]);
        signal_group(&paused.child, "INT");
        if way == Way::Execline {
            assert_eq!(paused.killed(), Some(2), "{step}");
        } else if step == "journal begin" {
            expect(paused.said(), 1, "refused: nothing was changed");
        } else {
            expect(paused.said(), 3, "it was stopped on request");
        }
        rig.expect_serving("v1");
    }
    rig.expect_clean();
}

fn a_deploy_that_is_killed_before_any_step_leaves_the_old_one(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    for step in STEPS {
        let paused = rig.pause("v2", step, &[]);
        signal_group(&paused.child, "KILL");
        assert_eq!(paused.killed(), Some(9), "{step}");
        rig.expect_serving("v1");
    }
    // Nobody has written down how the last one ended: the next one does.
    rig.expect("v3", &[], &[], 0, "was left open by a driver that died: rolled back");
    rig.expect_serving("v3");
    rig.expect_clean();
}

fn a_deploy_whose_chain_is_killed_says_how_it_ended(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    for step in STEPS {
        let paused = rig.pause("v2", step, &[]);
        let chain = paused.chain();
        crate::rig::kill(chain);
        if way != Way::Execline && ["drain", "commit"].contains(&step) {
            // A command of the chain is at work still, and holds the lease.
            paused.go();
        }
        let code = match (way, step) {
            (Way::Execline, _) => 5,
            // The shell is dead, but what it has begun goes on: the last step of all is done.
            (_, "commit") => 0,
            (_, "journal begin") => 1,
            _ => 3,
        };
        let said = paused.said().expect(code);
        assert_eq!(said.err.contains("killed by signal 9"), way != Way::Execline, "{step}: {said:#?}");
        rig.expect_serving(if code == 0 { "v2" } else { "v1" });
    }
    rig.expect_clean();
}

fn a_deploy_goes_on_without_the_script_that_started_it(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    for (n, step) in STEPS.into_iter().enumerate() {
        let label = format!("v{}", n + 2);
        let mut paused = rig.pause(&label, step, &[]);
        paused.child.kill().unwrap();
        paused.go();
        wait_for_exit(&mut paused.child);
        rig.expect_serving(&label);
    }
    eventually("the last record", || !rig.journal().lines().last().unwrap().contains("begun"));
    rig.expect_clean();
}

fn ctrl_c_while_a_command_waits_undoes_the_deploy(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    for (fault, phase) in [("hang-while-warm", "prepared"), ("hang-after-begin", "attached")] {
        let mut child = rig.until(phase, rig.deploy("v2", &["--fail", fault], &[]));
        signal_group(&child, "INT");
        if way == Way::Execline {
            wait_for_exit(&mut child);
            // The chain ends a moment later.
            Said::of(rig.handoff(&["journal", "record", "--wait", "60s", "it is free"])).expect(0);
        } else {
            let said = expect(Said::by(child), 3, "it was stopped on request");
            assert!(said.out.contains("asked to stop by SIGINT"), "{said:#?}");
        }
        rig.expect_serving("v1");
    }
    rig.expect_clean();
}

fn a_daemon_that_is_killed_meanwhile_is_succeeded(way: Way) {
    for step in ["exec-successor", "drain", "commit"] {
        let Some(mut rig) = start(way, &[]) else { return };
        let paused = rig.pause("v2", step, &[]);
        crate::rig::kill(rig.first.child.id());
        paused.go();
        if step == "exec-successor" {
            // There was nobody to succeed it.
            let part = if way == Way::Execline { "nobody answers at" } else { "now: nobody answers at" };
            expect(paused.said(), 111, part);
            continue;
        }
        let said = expect(paused.said(), 0, "committed ");
        assert_eq!(said.out.lines().count(), 1, "{said:?}");
        rig.expect_serving("v2");
        rig.expect_nothing_lost();
    }
}

fn a_full_disk_under_the_journal(way: Way) {
    let Some(mut rig) = start(way, &[]) else { return };
    let Some(small) = Small::mount(rig.path("small")) else { return };
    let journal = rig.path("small/journal");
    let env = [("HANDOFF_JOURNAL", journal.to_str().unwrap())];
    let paused = rig.pause("v2", "drain", &env);
    small.fill();
    paused.go();
    // Begun is begun: what cannot be written down is warned about.
    expect(paused.said(), 0, "the journal misses a record");
    rig.expect_serving("v2");
    fs::remove_file(&journal).unwrap();
    small.fill();
    rig.expect("v3", &[], &env, 111, "unable to ");
    rig.expect_serving("v2");
    rig.expect_clean();
}

/// A file system of so few pages that it can be filled.
struct Small(PathBuf);

impl Small {
    /// None where this user may not mount, which is said, and fails in CI.
    fn mount(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&path).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: needs to mount a tmpfs");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to mount a tmpfs");
        None
    }

    fn fill(&self) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.0.join("filling")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What is still open keeps it until it is closed.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
