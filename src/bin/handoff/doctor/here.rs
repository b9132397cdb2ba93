//! What is on this machine now: sockets, the owner record, limits, and what a service manager has set.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff::DataDirLock;
use handoff::control::{Control, is_absent};
use handoff::data_dir::FILE_NAME;
use handoff::error::Error;
use handoff::listen::{Address, Spec};
use handoff::proto::record::{Standing, boot_program};
use handoff::proto::wire::ListenerStatus;
use handoff::supervise::Settings;
use handoff::supervise::client::Client;
use handoff::sys::socket::Transport;
use handoff::sys::{process, queue, resources};

use crate::checks::{self, DESCRIPTORS_SPARE, Finding};
use crate::out;

/// How long anybody may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks at the trigger socket.
pub fn trigger(path: &Path) -> Finding {
    const CHECK: &str = "trigger";
    let shown = path.display();
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(CHECK, format!("{shown} is free: no supervisor runs"));
        }
        Err(e) => {
            return Finding::error(
                CHECK,
                format!("{shown} cannot be looked at: {e}"),
                "run this as the supervisor's user",
            );
        }
    };
    if !meta.file_type().is_socket() {
        return Finding::error(
            CHECK,
            format!("{shown} is there, and it is no socket"),
            "name another path, or move it away",
        );
    }
    let deadline = Instant::now() + ANSWER;
    match Client::connect(path).and_then(|mut client| client.status(deadline)) {
        Ok(state) => {
            Finding::ok(CHECK, format!("the supervisor, pid {}, answers: {}", state.pid, state.doing))
        }
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ConnectionRefused => {
            Finding::warning(
                CHECK,
                format!("{shown} is stale: nobody listens there"),
                "the supervisor that left it was killed: start one, which replaces it",
            )
        }
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            let owner = process::user_name(meta.uid()).unwrap_or_else(|| meta.uid().to_string());
            Finding::error(
                CHECK,
                format!("{shown} is of the user {owner}, and this one may not connect"),
                "run this as its user, or name another path",
            )
        }
        Err(e @ Error::TimedOut { .. }) => {
            Finding::error(CHECK, e.to_string(), "who listens there hangs, or is no supervisor")
        }
        Err(e) => Finding::error(
            CHECK,
            format!("{shown} is another's: {e}"),
            "name another path for the supervisor",
        ),
    }
}

/// Looks at the owner record.
pub fn record(data_dir: &Path, control: Option<&Path>) -> Finding {
    const CHECK: &str = "record";
    let lock_file = data_dir.join(FILE_NAME);
    if !lock_file.exists() {
        return Finding::ok(
            CHECK,
            format!("{} has none yet: a start takes the configured program", data_dir.display()),
        );
    }
    let reading = match DataDirLock::read_record(&lock_file) {
        Ok(reading) => reading,
        Err(e) => {
            return Finding::error(
                CHECK,
                e.to_string(),
                "find out what wrote to it; a start with --ignore-record does without",
            );
        }
    };
    let Some(record) = reading.record else {
        return Finding::ok(CHECK, "there is none yet: a start takes the configured program");
    };
    let boot = out::start_line(&boot_program(&record));
    let generation = record.generation;
    if record.standing == Standing::Trial {
        let is_on_trial = control.is_some_and(is_in_handoff);
        if is_on_trial {
            return Finding::ok(
                CHECK,
                format!("generation {generation} is on trial, and its handoff goes on"),
            );
        }
        let found = format!("generation {generation} was left on trial: a start would go back to {boot}");
        return Finding::warning(
            CHECK,
            found,
            "handoff journal resume settles it, and so does a supervisor's start",
        );
    }
    if !Path::new(&boot_program(&record).binary).exists() {
        let found = format!("generation {generation} is final, and its program is gone: {boot}");
        return Finding::warning(
            CHECK,
            found,
            "a start would take the configured program: put it back, or swap",
        );
    }
    Finding::ok(CHECK, format!("generation {generation} is final: a start would run {boot}"))
}

fn is_in_handoff(control: &Path) -> bool {
    let deadline = Instant::now() + ANSWER;
    let status =
        Control::connect(control, "handoff doctor", deadline).and_then(|mut daemon| daemon.status(deadline));
    status.is_ok_and(|status| status.handoff.is_some())
}

/// Looks at who answers on the control socket.
pub fn daemon(control: &Path) -> Finding {
    const CHECK: &str = "daemon";
    let deadline = Instant::now() + ANSWER;
    let status =
        Control::connect(control, "handoff doctor", deadline).and_then(|mut daemon| daemon.status(deadline));
    match status {
        Ok(status) => Finding::ok(CHECK, format!("{} is {}", status.process, status.phase)),
        Err(e) if is_absent(&e) => Finding::ok(CHECK, "none runs"),
        Err(e) => Finding::error(CHECK, e.to_string(), "look at who listens there"),
    }
}

/// Compares what is to be listened to with what the kernel allows.
pub fn backlogs(settings: &Settings, gap_us: Option<u64>) -> Vec<Finding> {
    const CHECK: &str = "backlog";
    let Ok(longest) = queue::longest() else {
        return vec![Finding::warning(CHECK, "net.core.somaxconn is not known", "is /proc mounted?")];
    };
    let specs: Vec<&Spec> =
        settings.listeners.iter().flat_map(|listen| &listen.sockets).filter(|spec| listens(spec)).collect();
    let mut findings = vec![];
    for spec in &specs {
        if let Some(asked) = spec.options.backlog.filter(|asked| *asked > longest) {
            let found = format!("{} asks for {asked}, and the kernel allows {longest}", spec.name);
            findings.push(Finding::warning(CHECK, found, format!("sysctl net.core.somaxconn={asked}")));
        }
    }
    let limits: Vec<ListenerStatus> = specs
        .iter()
        .map(|spec| ListenerStatus {
            name: spec.name.clone(),
            address: spec.address.to_string(),
            queue: Some((0, spec.options.backlog.unwrap_or(u32::MAX).min(longest))),
        })
        .collect();
    findings.extend(limits.iter().filter_map(little));
    if !limits.is_empty() {
        findings.extend(checks::queues(&limits, gap_us));
    }
    findings
}

/// What a burst of clients fills in a gap, on any machine.
const LITTLE: u32 = 128;

fn little(listener: &ListenerStatus) -> Option<Finding> {
    let (_, limit) = listener.queue.filter(|(_, limit)| *limit < LITTLE)?;
    let found = format!("{} lets {limit} clients wait while nobody accepts", listener.name);
    Some(Finding::warning(
        "backlog",
        found,
        "who comes later is late by a second or more: leave backlog out, and raise net.core.somaxconn where it is less than 4096",
    ))
}

fn listens(spec: &Spec) -> bool {
    let transport = match &spec.address {
        Address::Inet { transport, .. }
        | Address::Path { transport, .. }
        | Address::Abstract { transport, .. } => *transport,
    };
    transport != Transport::Datagram
}

/// Looks at how many descriptors a daemon would get.
pub fn limit(listeners: usize) -> Finding {
    match resources::own_limit() {
        Ok(own) => limited(own, listeners),
        Err(e) => Finding::warning("limit", format!("it is not known: {e}"), "see ulimit -n"),
    }
}

/// What a daemon with clients soon has, in descriptors.
const FEW: u64 = 1024;

fn limited(own: u64, listeners: usize) -> Finding {
    let finding = checks::heir(own, None, listeners as u64 + DESCRIPTORS_SPARE, 0);
    if own <= FEW && finding.advice.is_none() {
        let found =
            format!("the daemon may have {own} descriptors (RLIMIT_NOFILE), unless it raises that itself");
        return Finding::warning(
            "limit",
            found,
            "one for each client, and spare: ulimit -n, softlimit -o, LimitNOFILE=",
        );
    }
    finding
}

/// Looks at what a service manager has set in the environment.
pub fn notify(variable: Option<&std::ffi::OsStr>) -> Finding {
    const CHECK: &str = "notify";
    let Some(value) = variable.filter(|value| !value.is_empty()) else {
        return Finding::ok(CHECK, "NOTIFY_SOCKET is not set: no service manager is to be told");
    };
    let shown = value.display();
    let address = match value.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        Some((b'/', _)) => SocketAddr::from_pathname(value),
        _ => {
            let found = format!("NOTIFY_SOCKET={shown} is neither a path nor a name after @");
            return Finding::error(CHECK, found, "it is for systemd to set: leave it alone");
        }
    };
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect_addr(&address?));
    match connected {
        Ok(()) => Finding::ok(CHECK, format!("NOTIFY_SOCKET={shown} can be reached")),
        Err(e) => Finding::error(
            CHECK,
            format!("NOTIFY_SOCKET={shown} cannot be reached: {e}"),
            "the service manager would never learn that the daemon is ready: it was left over, or is outside of this chroot or namespace",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ffi::OsStr;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::checks::Verdict;

    #[track_caller]
    fn expect(finding: &Finding, verdict: Verdict, part: &str) {
        assert!(finding.verdict == verdict && finding.line().contains(part), "{part:?} in {finding:?}");
    }

    #[test]
    fn a_notify_socket_that_nobody_reads_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        expect(&notify(None), Verdict::Ok, "not set");
        expect(&notify(Some(path.as_os_str())), Verdict::Error, "cannot be reached");
        expect(&notify(Some(OsStr::new("vsock:2:3"))), Verdict::Error, "neither");
        let socket = UnixDatagram::bind(&path).unwrap();
        expect(&notify(Some(path.as_os_str())), Verdict::Ok, "can be reached");
        drop(socket);
        expect(&notify(Some(path.as_os_str())), Verdict::Error, "cannot be reached");
    }

    #[test]
    fn a_trigger_socket_is_free_stale_or_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trigger");
        expect(&trigger(&path), Verdict::Ok, "is free");
        let listener = UnixListener::bind(&path).unwrap();
        let stranger = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            io::Write::write_all(&mut client, b"220 mail\r\n").unwrap();
            // Until it has been read.
            let _ = io::Read::read_to_end(&mut client, &mut vec![]);
        });
        expect(&trigger(&path), Verdict::Error, "is another's");
        stranger.join().unwrap();
        expect(&trigger(&path), Verdict::Warning, "is stale");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        expect(&trigger(&path), Verdict::Error, "is no socket");
    }

    #[test]
    fn descriptors_and_a_short_queue_are_few() {
        expect(&limited(1 << 16, 2), Verdict::Ok, "65536");
        expect(&limited(1024, 2), Verdict::Warning, "RLIMIT_NOFILE");
        expect(&limited(20, 2), Verdict::Error, "listeners alone need 34");
        let of = |limit| ListenerStatus {
            name: "http".to_owned(),
            address: String::new(),
            queue: Some((0, limit)),
        };
        expect(&little(&of(5)).unwrap(), Verdict::Warning, "lets 5 clients wait");
        assert!(little(&of(4096)).is_none());
    }

    #[test]
    fn a_record_that_is_no_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        expect(&record(dir.path(), None), Verdict::Ok, "none yet");
        fs::write(dir.path().join(FILE_NAME), "mine\n".repeat(2000)).unwrap();
        expect(&record(dir.path(), None), Verdict::Error, "mine");
    }
}
