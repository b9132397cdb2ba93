//! A machine of its own for what the documents say: the paths, the port and the programs that they name, and nothing else. So
//! what is printed there can be run as it stands, beside other tests and whatever this machine runs.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{HANDOFF, PATIENCE, has_tool};

/// What a line of shell came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The line.
    pub line: String,
    /// What it wrote to standard output and error, in the order in which it was written.
    pub said: String,
    /// Its exit code.
    pub code: i32,
}

/// Returns whether a sandbox can be made; says loudly that a test is skipped if not, and fails in CI.
pub fn is_possible() -> bool {
    let mut unshare = enter();
    has_tool(
        "unshare and ip, and leave to make namespaces",
        unshare.args(["sh", "-c", "mount -t tmpfs tmpfs /run && ip link set lo up"]),
    )
}

/// Returns the command that runs another one in namespaces of its own, where it may mount and bind what it likes.
fn enter() -> Command {
    let mut command = Command::new("unshare");
    // Whoever is not root here is root there.
    if Path::new("/proc/self").metadata().is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        command.arg("--map-root-user");
    }
    // When its first process ends, all others are killed.
    command.args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
}

/// Runs lines of shell one after the other, in one shell and a sandbox of their own; behind one that goes on in the background, the
/// next one waits until that serves.
pub fn run(lines: &[String]) -> Vec<Ran> {
    let dir = tempfile::tempdir().unwrap();
    for (n, line) in lines.iter().enumerate() {
        fs::write(dir.path().join(format!("{n}.line")), line).unwrap();
    }
    let mut command = enter();
    command.args(["sh", "-c", include_str!("run.sh"), "sh"]).arg(dir.path()).arg(HANDOFF);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/home"));
    for (name, _) in std::env::vars_os() {
        if ["HANDOFF_", "RUST_LOG", "LISTEN_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    let own = fs::File::create(dir.path().join("own")).unwrap();
    let mut child = command
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stdout(own.try_clone().unwrap())
        .stderr(own)
        .spawn()
        .unwrap();
    let in_time = ends_in_time(&mut child);
    let read = |path: PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let ran = |(n, line): (usize, &String)| {
        let said = read(dir.path().join(format!("{n}.said")))
            .or_else(|_| read(dir.path().join(format!("{n}.all"))))
            .unwrap_or_default();
        let code = read(dir.path().join(format!("{n}.code"))).unwrap_or_else(|_| {
            let own = read(dir.path().join("own")).unwrap();
            let why = if in_time { "the shell ended" } else { "it took too long" };
            panic!("{why} in {line:?} of {lines:#?}, which said {said:?}; the shell itself: {own}")
        });
        Ran { line: line.clone(), said, code: code.trim().parse().unwrap() }
    };
    lines.iter().enumerate().map(ran).collect()
}

/// Waits for the end, and kills what does not come to it.
fn ends_in_time(child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
