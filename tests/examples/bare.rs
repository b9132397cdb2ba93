//! Two programs without the language's runtime, which would change what they are to show.
//!
//! `bare report FILE` writes what it was started with to a file, one fact a line. `bare start MASK ENV PROG ARG...` blocks the signals
//! whose numbers are in MASK (separated by commas), and becomes PROG with the entries of the file ENV, each of which a NUL ends, as its
//! whole environment.
#![no_main]
#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd;

// SAFETY: the name is the C library's for this function, and nothing else here has it. It is called with two arguments, which
// C lets a function leave out.
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|word| word.to_str()) {
        Some("report") => report(Path::new(&args[1])),
        Some("start") => start(&args[1..]),
        _ => return 100,
    }
    0
}

fn start(args: &[OsString]) {
    let mut mask = SigSet::empty();
    for number in args[0].to_str().unwrap().split(',').filter(|number| !number.is_empty()) {
        mask.add(Signal::try_from(number.parse::<i32>().unwrap()).unwrap());
    }
    let env = fs::read(&args[1]).unwrap();
    let env: Vec<CString> =
        env.split_inclusive(|&byte| byte == 0).map(|entry| c_string(&entry[..entry.len() - 1])).collect();
    let words: Vec<CString> = args[2..].iter().map(|word| c_string(word.as_bytes())).collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).unwrap();
    let never = unistd::execve(&words[0], &words, &env);
    panic!("{never:?}");
}

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap()
}

fn report(to: &Path) {
    let mut lines = descriptors();
    lines.push(format!("pid {}", std::process::id()));
    lines.push(format!("cwd {:?}", fs::read_link("/proc/self/cwd").unwrap()));
    lines.push(format!("root {:?}", fs::read_link("/proc/self/root").unwrap()));
    for entry in fs::read("/proc/self/environ").unwrap().split_inclusive(|&byte| byte == 0) {
        lines.push(format!("env {}", entry.escape_ascii()));
    }
    for arg in std::env::args_os() {
        lines.push(format!("arg {:?}", OsString::from_vec(arg.into_vec())));
    }
    lines.extend(job());
    for file in ["limits", "oom_score_adj", "personality", "cgroup", "timerslack_ns", "loginuid"] {
        // Some kernels do not have all of them.
        let text = fs::read_to_string(Path::new("/proc/self").join(file)).unwrap_or_default();
        lines.extend(text.lines().map(|line| format!("{file} {line}")));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let changes = ["PPid:", "Pid:", "Tgid:", "NSpid:", "NSpgid:", "NSsid:", "NStgid:", "SigQ:", "FDSize:"];
    let steady = |line: &&str| {
        !line.starts_with("Vm")
            && !line.starts_with("Rss")
            && !line.contains("ctxt_switches")
            && !changes.iter().any(|name| line.starts_with(name))
    };
    lines.extend(status.lines().filter(steady).map(|line| format!("status {line}")));
    fs::write(to, lines.join("\n") + "\n").unwrap();
}

/// Before anything else is open.
fn descriptors() -> Vec<String> {
    let mut numbers: Vec<i32> =
        (0..1024).filter(|fd| Path::new(&format!("/proc/self/fd/{fd}")).is_symlink()).collect();
    numbers.sort_unstable();
    let describe = |fd: i32| {
        let what = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags:")).unwrap().replace('\t', " ");
        format!("fd {fd} {what:?} {flags}")
    };
    numbers.into_iter().map(describe).collect()
}

/// The process group, the session and the terminal. A number that is this process's own is not the same in two runs.
fn job() -> Vec<String> {
    let own = |id: unistd::Pid| if id == unistd::getpid() { "self".to_owned() } else { id.to_string() };
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    vec![
        format!("group {}", own(unistd::getpgrp())),
        format!("session {}", own(unistd::getsid(None).unwrap())),
        format!("parent {}", own(unistd::getppid())),
        format!("terminal {}", fields[4] != "0"),
        format!("foreground {}", fields[5] == unistd::getpgrp().to_string()),
        format!("nice {}", fields[16]),
        format!("policy {}", fields[38]),
    ]
}
