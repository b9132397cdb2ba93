//! A wrapper before a program: whether what is passed through it arrives, and whether the program is the process that was started. It is
//! run with a probe in the program's place.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context;
use handoff::sys::poll::{self, Want};
use handoff::sys::process::PidFd;
use handoff::sys::spawn::{Image, Program, Spawn};
use handoff::sys::{random, socket};
use serde::{Deserialize, Serialize};

use crate::checks::Finding;
use crate::out;

const CHECK: &str = "wrapper";
/// What the probe is asked by on its command line; not in the help.
pub const PROBE: &str = "probe";
/// How many descriptors are passed, from this number on.
const PASSED: i32 = 3;
const FIRST: i32 = 3;
/// A variable that must arrive.
const VARIABLE: &str = "HANDOFF_DOCTOR";
/// How long a wrapper may take to start the probe.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the probe may take behind a wrapper that has ended as if all was well.
const LAGGARD: Duration = Duration::from_secs(2);
/// Signals that a supervisor must get: their names and numbers.
const NEEDED: [(&str, u32); 4] = [("SIGHUP", 1), ("SIGUSR2", 12), ("SIGTERM", 15), ("SIGCHLD", 17)];

/// What the probe sees.
#[derive(Debug, Deserialize, Serialize)]
struct Seen {
    pid: u32,
    /// The inodes of the sockets at the numbers that were passed.
    sockets: Vec<Option<u64>>,
    has_variable: bool,
    /// The signals that are ignored or blocked, a bit each.
    deaf_to: u64,
}

/// Plays the program: tells whoever listens by this name what has arrived.
///
/// # Errors
///
/// Nobody listens.
pub fn probe(name: &str) -> anyhow::Result<()> {
    let address = SocketAddr::from_abstract_name(name).context("use the name of the doctor's socket")?;
    let mut doctor = UnixStream::connect_addr(&address).context("connect to the doctor")?;
    let seen = Seen {
        pid: std::process::id(),
        sockets: (FIRST..FIRST + PASSED).map(inode_at).collect(),
        has_variable: std::env::var_os(VARIABLE).is_some(),
        deaf_to: deaf_to(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
    };
    doctor.write_all(&serde_json::to_vec(&seen)?).context("tell the doctor")
}

fn inode_at(number: i32) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn deaf_to(status: &str) -> u64 {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    set("SigBlk:").unwrap_or_default() | set("SigIgn:").unwrap_or_default()
}

/// Runs a wrapper with the probe behind it.
pub fn check(words: &[OsString]) -> Vec<Finding> {
    let shown = shown(words);
    match run(words) {
        Ok((pid, passed, Ok(seen))) => findings(&shown, pid, &passed, &seen),
        Ok((_, _, Err(ended))) => {
            let found = format!("{shown} did not start the program behind it: {ended}");
            vec![Finding::error(
                CHECK,
                found,
                "end it with what stands before the program, such as sh -c 'exec \"$@\"' sh",
            )]
        }
        Err(e) => {
            // The library's errors say their own cause.
            let why = if e.is::<handoff::Error>() { e.to_string() } else { format!("{e:#}") };
            let found = format!("{shown} cannot be run: {why}");
            vec![Finding::error(CHECK, found, "name a program that this user may execute")]
        }
    }
}

fn shown(words: &[OsString]) -> String {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    words.split_first().map_or(String::new(), |(program, args)| out::command_line(program, args))
}

/// The pid that was started, the sockets that were passed to it, and what arrived or how it ended.
type Ran = (u32, Vec<u64>, Result<Seen, String>);

fn run(words: &[OsString]) -> anyhow::Result<Ran> {
    let (wrapper, args) = words.split_first().context("find the wrapper")?;
    let program = Program::open(Path::new(wrapper))?;
    let name = name()?;
    let listener =
        SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
    let listener = listener.context("listen for the probe")?;
    let sockets: Vec<UnixListener> = (0..PASSED)
        .map(|n| UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{name}.{n}"))?))
        .collect::<Result<_, _>>()
        .context("make sockets to pass")?;
    let passed =
        sockets.iter().map(|one| Ok(socket::inode(one.as_fd())?.ino)).collect::<std::io::Result<_>>();
    let own = std::env::current_exe().context("find this program")?;
    let probe = [own.into_os_string(), "doctor".into(), format!("--{PROBE}={name}").into()];
    let mut image = Image::new(&program);
    image.args = args.iter().cloned().chain(probe).collect();
    image.env.push((VARIABLE.into(), "1".into()));
    image.fds = (FIRST..).zip(sockets.iter().map(AsFd::as_fd)).collect();
    let mut child = Spawn::new(image).spawn()?;
    let seen = hear(&listener, &mut child);
    end(&mut child);
    Ok((child.id(), passed.context("know the sockets that are passed")?, seen))
}

fn name() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    random::fill(&mut bytes).context("make a name for the probe")?;
    Ok(format!("handoff-doctor-{:016x}", u64::from_ne_bytes(bytes)))
}

/// Waits for the probe, or for the wrapper's end without it.
fn hear(listener: &UnixListener, child: &mut Child) -> Result<Seen, String> {
    let deadline = Instant::now() + PATIENCE;
    let process = PidFd::open(child.id()).map_err(|e| e.to_string())?;
    let ready = poll::wait(&[(listener.as_fd(), Want::Read), (process.as_fd(), Want::Read)], Some(deadline));
    match ready.map_err(|e| e.to_string())?.as_slice() {
        [true, _] => read(listener, deadline),
        [false, true] => {
            let status = child.wait().map_err(|e| e.to_string())?;
            // The probe may have told already, or be another process that comes to it.
            let left = if status.success() { LAGGARD } else { Duration::ZERO };
            match poll::wait_one(listener.as_fd(), Want::Read, Some(Instant::now() + left)) {
                Ok(true) => read(listener, deadline),
                _ => Err(status.to_string()),
            }
        }
        _ => Err("nothing came of it in time".to_owned()),
    }
}

fn read(listener: &UnixListener, deadline: Instant) -> Result<Seen, String> {
    let (mut probe, _) = listener.accept().map_err(|e| e.to_string())?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut text = vec![];
    probe
        .set_read_timeout(Some(left))
        .and_then(|()| probe.read_to_end(&mut text))
        .map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

/// Waits for the wrapper; one that goes on is of no use any more.
fn end(child: &mut Child) {
    // Its pid may be another's by now.
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let is_over = PidFd::open(child.id()).and_then(|process| process.wait_dead(Instant::now() + PATIENCE));
    if !is_over.unwrap_or(false) {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    // What became of it does not matter.
    let _ = child.wait();
}

fn findings(shown: &str, pid: u32, passed: &[u64], seen: &Seen) -> Vec<Finding> {
    let mut findings = vec![descriptors(shown, passed, seen), process(shown, pid, seen)];
    if !seen.has_variable {
        let advice = "HANDOFF_FDS and LISTEN_FDS do not arrive: put what sets them behind it";
        findings.push(Finding::error(CHECK, format!("{shown} does not pass the environment on"), advice));
    }
    let deaf: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, number)| seen.deaf_to & (1 << (number - 1)) != 0)
        .map(|(name, _)| *name)
        .collect();
    if !deaf.is_empty() {
        let found = format!("behind {shown} the program ignores or blocks {}", deaf.join(", "));
        findings.push(Finding::warning(
            CHECK,
            found,
            "a program that does not set them itself never gets them",
        ));
    }
    findings
}

fn descriptors(shown: &str, passed: &[u64], seen: &Seen) -> Finding {
    let lost: Vec<String> = passed
        .iter()
        .zip(seen.sockets.iter().chain(std::iter::repeat(&None)))
        .zip(FIRST..)
        .filter(|((sent, found), _)| found.as_ref() != Some(sent))
        .map(|(_, number)| number.to_string())
        .collect();
    if lost.is_empty() {
        return Finding::ok(CHECK, format!("{shown} passes descriptors on"));
    }
    let found = format!(
        "{shown} closes descriptors: {} of {} to {} did not arrive",
        lost.join(", "),
        FIRST,
        FIRST + PASSED - 1
    );
    Finding::error(
        CHECK,
        found,
        "put it before handoff hold-fds and handoff supervise, not behind them, or use chpst -u, s6-setuidgid or setpriv",
    )
}

fn process(shown: &str, pid: u32, seen: &Seen) -> Finding {
    if seen.pid == pid {
        return Finding::ok(CHECK, format!("{shown} becomes the program: the pid stays"));
    }
    let found = format!(
        "{shown} starts the program as another process: {pid} was started, and {} is the program",
        seen.pid
    );
    Finding::error(
        CHECK,
        found,
        "signals and LISTEN_PID are for the wrapper then: use a form of it that becomes the program, such as exec in a shell",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Verdict;

    #[test]
    fn what_is_ignored_or_blocked_is_read_from_the_status() {
        let status =
            "Name:\tx\nSigBlk:\t0000000000000800\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert_eq!(deaf_to(status), 0x801);
        assert_eq!(deaf_to(""), 0);
    }

    #[test]
    fn what_did_not_arrive_is_named() {
        let seen = Seen { pid: 8, sockets: vec![Some(10), None, Some(99)], has_variable: false, deaf_to: 1 };
        let said: Vec<String> = findings("w", 7, &[10, 11, 12], &seen).iter().map(Finding::line).collect();
        for (n, part) in
            ["4, 5 of 3 to 5 did not arrive", "7 was started, and 8 is", "environment", "blocks SIGHUP"]
                .iter()
                .enumerate()
        {
            assert!(said[n].contains(part), "{said:?}");
        }
        let seen = Seen { pid: 7, sockets: vec![Some(10)], has_variable: true, deaf_to: 0 };
        assert!(findings("w", 7, &[10], &seen).iter().all(|finding| finding.verdict == Verdict::Ok));
    }
}
