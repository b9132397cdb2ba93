//! A link of a chain is transparent: the program behind it sees what it would have seen without it.
//!
//! Every case prepares a process in some odd way and lets it become a program that writes down what it was started with, once directly and
//! once behind each link. The program, `tests/examples/bare.rs`, has no language runtime that would change what it is to show.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use handoff::control::Control;

use common::{HANDOFF, Kvd, PATIENCE, eventually, example, has_script, wait_for_exit};

/// How a process is prepared before it becomes the link or the program.
#[derive(Default)]
struct Case {
    name: &'static str,
    /// For bash, in a directory that holds nothing.
    setup: &'static str,
    /// The numbers of the signals that are blocked, separated by commas.
    mask: &'static str,
    /// The whole environment, each entry with a NUL at its end.
    env: &'static [u8],
    /// Whether it leads a process group.
    leads_group: bool,
    /// Whether it has a terminal.
    terminal: bool,
}

/// What nothing else needs, and what a program finds that looks for its locale or its home.
const ENV: &[u8] = b"HOME=/nowhere\0LC_ALL=C\0";

/// Not a variable, or not the only one of its name, or not text.
const ODD_ENV: &[u8] =
    b"nameless\0A=1\0\0A=2\0=\0=B=3\0==\0A\0\xff\xfe=\xfd\0C=\0D=a=b\0\x80\0E= \n\t\x01\0A=1\0";

fn cases() -> Vec<Case> {
    let case = |name, setup| Case { name, setup, env: ENV, ..Case::default() };
    vec![
        case("nothing special", ""),
        case("SIGPIPE ignored", "trap '' PIPE"),
        case("SIGCHLD ignored", "trap '' CHLD"),
        case(
            "all that is usually ignored",
            "trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2 CHLD TSTP TTIN TTOU URG WINCH SEGV BUS ABRT FPE SYS 34 50 64",
        ),
        Case { mask: "1,2,10,13,14,15,17,20,28", ..case("signals blocked", "") },
        Case { mask: "13", ..case("SIGPIPE blocked and ignored", "trap '' PIPE") },
        Case { env: ODD_ENV, ..case("an odd environment", "") },
        Case { env: b"", ..case("an empty environment", "") },
        case("another directory", "cd /proc/sys/kernel"),
        case("a directory that is gone", "mkdir gone; cd gone; rmdir ../gone"),
        case("another umask", "umask 0137"),
        case(
            "limits",
            "ulimit -S -n 100; ulimit -H -n 200; ulimit -c 0; ulimit -S -s 4096; ulimit -S -f 10000; ulimit -S -l 16",
        ),
        case("a lower priority", "renice -n 7 -p $$ >/dev/null"),
        case("descriptors of others", ": >f; exec 3<f 4>>f 5<>f 6<. 17</dev/zero 99<&3 200>f"),
        case("standard descriptors that are files", ": >f; exec 0<>f 1>>f 2>/dev/full"),
        case("standard descriptors that are /dev/null", "exec 0</dev/null 1>/dev/null 2<>/dev/null"),
        case("0 closed", "exec 0<&-"),
        case("1 closed", "exec 1>&-"),
        case("2 closed", "exec 2>&-"),
        case("0 and 1 closed", "exec 0<&- 1>&-"),
        case("0 and 2 closed", "exec 0<&- 2>&-"),
        case("1 and 2 closed", "exec 1>&- 2>&-"),
        case("0, 1 and 2 closed", "exec 0<&- 1>&- 2>&-"),
        case("all closed but 3", "exec 3</dev/zero 0<&- 1>&- 2>&-"),
        Case { leads_group: true, ..case("a process group of its own", "") },
        Case { terminal: true, ..case("a terminal", "") },
        Case { terminal: true, ..case("a terminal, with its signals ignored", "trap '' HUP INT QUIT TSTP") },
    ]
}

/// A program that is to be transparent.
struct Link {
    words: Vec<String>,
    /// The descriptors that it adds, as the table calls them.
    adds: &'static [&'static str],
}

/// Every link. Those that hand over hold the lease of a daemon, which serves on when the program behind them has ended.
fn links(dir: &Path, control: &Path) -> Vec<Link> {
    let (data, journal) = (text(&dir.join("data")), text(&dir.join("journal")));
    fs::create_dir_all(&data).unwrap();
    let link =
        |words: &[&str], adds| Link { words: words.iter().map(|word| (*word).to_owned()).collect(), adds };
    let ours = |words: &[&str], adds| link(&[&[HANDOFF], words].concat(), adds);
    let control = text(control);
    const LEASE: &[&str] = &["lease", "incumbent", "state", "listener.resp"];
    vec![
        link(&[&text(&example("link"))], &[]),
        ours(&["lock", &data], &["lock"]),
        ours(&["--verbose", "lock", "--wait", "1s", &data, "--"], &["lock"]),
        ours(&["hold-fds", "--listen", "web=127.0.0.1:0", "--"], &["listener.web"]),
        ours(&["journal", "begin", "--journal", &journal, "--"], &["journal"]),
        ours(&["drain", "--control", &control, "--no-seal", "--"], LEASE),
        ours(
            &["drain", "--control", &control, "--", HANDOFF, "lock", &data],
            &["lease", "incumbent", "state", "listener.resp", "lock"],
        ),
    ]
}

impl Link {
    /// Takes out of a report what is there for what the link is for: variables, and the descriptors that they name.
    fn take_out_what_it_adds(&self, seen: &mut Vec<String>) {
        let mut added = vec![];
        seen.retain(|line| match line.strip_prefix("env HANDOFF_FDS=") {
            Some(table) => {
                added = table.trim_end_matches("\\x00").split(' ').map(str::to_owned).collect();
                false
            }
            None => !["env HANDOFF_", "env LISTEN_"].iter().any(|ours| line.starts_with(ours)),
        });
        let names: Vec<&str> = added.iter().map(|entry| entry.split('=').next().unwrap()).collect();
        let is_added = |name: &&str| self.adds.contains(name);
        assert!(
            names.iter().all(is_added) && names.len() == self.adds.len(),
            "{names:?}, behind {:?}",
            self.words
        );
        for entry in &added {
            let number = entry.split(['=', '@']).nth(1).unwrap();
            let before = seen.len();
            seen.retain(|line| !line.starts_with(&format!("fd {number} ")));
            assert_eq!(seen.len(), before - 1, "{entry} is open, behind {:?}", self.words);
        }
    }
}

/// Waits until the daemon has put back what the link before has left undone.
fn settle(control: &Path) {
    let serves = || {
        let deadline = Instant::now() + PATIENCE;
        let status =
            Control::connect(control, "test", deadline).and_then(|mut daemon| daemon.status(deadline));
        status.is_ok_and(|status| status.handoff.is_none())
    };
    eventually("the daemon serves", serves);
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_next_program_sees_what_it_would_have_seen_without_the_link() {
    let has_script = has_script();
    let data = tempfile::tempdir().unwrap();
    let _kvd = Kvd::start(data.path(), &[]);
    for case in cases().iter().filter(|case| has_script || !case.terminal) {
        let dir = tempfile::tempdir().unwrap();
        let direct = observe(case, dir.path(), &[]);
        assert!(direct.len() > 50, "{direct:#?}");
        let control = data.path().join("control");
        // It prints its report first, which in the other test would be the program's.
        let status = ["status", "--control", &text(&control), "--"];
        let status = Link {
            words: [&[HANDOFF], &status[..]].concat().iter().map(|word| (*word).to_owned()).collect(),
            adds: &[],
        };
        for link in links(dir.path(), &control).into_iter().chain([status]) {
            settle(&control);
            let mut seen = observe(case, dir.path(), &link.words);
            link.take_out_what_it_adds(&mut seen);
            let only_in = |a: &[String], b: &[String]| -> Vec<String> {
                a.iter().filter(|line| !b.contains(line)).cloned().collect()
            };
            let (added, lost) = (only_in(&seen, &direct), only_in(&direct, &seen));
            // An order or a number of equal lines that differs shows in none of the two.
            assert!(
                seen == direct,
                "{}, behind {:?}: added {added:#?}, lost {lost:#?}",
                case.name,
                link.words
            );
        }
    }
}

/// Runs the reporting program behind a link, or alone; returns its report.
fn observe(case: &Case, dir: &Path, link: &[String]) -> Vec<String> {
    let bare = example("bare");
    let [env, report, work] = ["env", "report", "work"].map(|name| dir.join(name));
    // The same paths each time, since they are seen too.
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work).unwrap();
    fs::write(&env, case.env).unwrap();
    let mut words = vec![text(&bare), "start".into(), case.mask.into(), text(&env)];
    words.extend_from_slice(link);
    words.extend([text(&bare), "report".into(), text(&report)]);
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("{}\nexec {}", case.setup, words.join(" "));

    let mut command = if case.terminal { in_terminal(&script) } else { bash(&script) };
    command.current_dir(work).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    if case.leads_group {
        command.process_group(0);
    }
    let mut child = command.spawn().unwrap();
    assert!(wait_for_exit(&mut child).success(), "{}, behind {link:?}", case.name);
    let mut lines: Vec<String> = fs::read_to_string(&report).unwrap().lines().map(str::to_owned).collect();
    fs::remove_file(report).unwrap();
    let pid = lines.iter().position(|line| line.starts_with("pid ")).unwrap();
    let pid = lines.remove(pid);
    if case.terminal {
        // It is a child of script(1), which is another process each time.
        lines.retain(|line| !line.starts_with("parent "));
    } else {
        assert_eq!(pid, format!("pid {}", child.id()), "{}, behind {link:?}: the same process", case.name);
    }
    lines
}

#[test]
fn a_script_finds_its_own_name_and_no_descriptor_of_the_links() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("my-daemon");
    // The shell reads the script at a number of its own, which is close-on-exec.
    let content = "#!/bin/sh\necho \"$0 $*\"; cat /proc/$$/comm; tr '\\0' ' ' </proc/$$/cmdline; exec ls -l /proc/self/fd\n";
    fs::write(&script, content).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let data = tempfile::tempdir().unwrap();
    let _kvd = Kvd::start(data.path(), &[]);
    for name in ["./my-daemon", "my-daemon", &text(&script)] {
        let run = |link: &[String]| {
            let mut command = Command::new("env");
            command.args(link).args([name, "one", "two words"]).current_dir(dir.path()).stdin(Stdio::null());
            let output = command.env("PATH", format!("{}:/bin:/usr/bin", text(dir.path()))).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            // The descriptors' numbers and what they are, without times, and without the numbers of processes and pipes.
            let steady = |line: &str| match line.split_once(" -> ") {
                Some((left, what)) => {
                    format!("{} {}", left.rsplit(' ').next().unwrap(), what.replace(char::is_numeric, ""))
                }
                None => line.to_owned(),
            };
            // The listing has the directory open.
            said.lines().map(steady).filter(|line| !line.ends_with("/fd")).collect::<Vec<_>>()
        };
        let direct = run(&[]);
        assert!(direct.len() > 5 && direct[1] == "my-daemon", "{direct:#?}");
        for link in links(dir.path(), &data.path().join("control")) {
            settle(&data.path().join("control"));
            let mut seen = run(&link.words);
            let all = seen.len();
            seen.retain(|line| direct.contains(line));
            assert_eq!(seen, direct, "{name}, behind {:?}", link.words);
            assert_eq!(all - seen.len(), link.adds.len(), "{name}, behind {:?}", link.words);
        }
    }
}

fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg("-c").arg(script);
    command
}

/// The shell is then a child of the one that holds the terminal.
fn in_terminal(script: &str) -> Command {
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", script, "/dev/null"]).env("SHELL", PathBuf::from("/bin/bash"));
    command
}
