//! What a configuration says, before it is complete.

use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff::fds;
use handoff::listen::Listen;
use handoff::supervise::Policy;

use super::source::Section;

/// The keys of the file itself.
pub const KEYS: [&str; 26] = [
    "control_socket",
    "trigger_socket",
    "data_dir",
    "journal",
    "binary",
    "args",
    "directory",
    "drain_grace_secs",
    "deadline_secs",
    "warm_up_secs",
    "stand_by_secs",
    "bake_secs",
    "stop_secs",
    "linger_secs",
    "health",
    "health_interval_secs",
    "health_timeout_secs",
    "allowed_uids",
    "allowed_binaries",
    "ready_fd",
    "metrics_file",
    "ignore_record",
    "env",
    "restart",
    "readiness",
    "listeners",
];
const RESTART_KEYS: [&str; 5] = ["policy", "delay_secs", "delay_max_secs", "max", "window_secs"];
const READINESS_KEYS: [&str; 3] = ["by", "command", "timeout_secs"];
/// Those of a listener that are options of the socket.
const OPTIONS: [&str; 12] = [
    "backlog",
    "mode",
    "owner",
    "group",
    "reuseaddr",
    "v6only",
    "keepalive",
    "nodelay",
    "rcvbuf",
    "sndbuf",
    "freebind",
    "transparent",
];

const POLICIES: [(&str, Policy); 3] =
    [("never", Policy::Never), ("on-failure", Policy::OnFailure), ("always", Policy::Always)];
const READY_BY: [(&str, ReadyWord); 3] =
    [("control", ReadyWord::Control), ("notify", ReadyWord::Notify), ("command", ReadyWord::Command)];

/// What says that a daemon is ready, without the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWord {
    Control,
    Notify,
    Command,
}

/// The highest number that a user may have: the one above it stands for none.
const UID_MAX: i64 = u32::MAX as i64 - 1;
/// The first number that is no standard descriptor.
const FIRST_FREE: i64 = 3;

/// What was given; what was not is [completed](super::complete).
#[derive(Debug, Default)]
pub struct Draft {
    pub control: Option<PathBuf>,
    pub trigger: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub journal: Option<PathBuf>,
    pub binary: Option<PathBuf>,
    pub args: Vec<String>,
    pub directory: Option<PathBuf>,
    pub drain_grace: Option<Duration>,
    pub deadline: Option<Duration>,
    pub warm_up: Option<Duration>,
    pub stand_by: Option<Duration>,
    pub bake: Option<Duration>,
    pub stop: Option<Duration>,
    pub linger: Option<Duration>,
    pub health: Option<String>,
    pub health_interval: Option<Duration>,
    pub health_timeout: Option<Duration>,
    pub allowed_uids: Vec<u32>,
    pub allowed_binaries: Vec<PathBuf>,
    pub ready_fd: Option<i32>,
    pub metrics_file: Option<PathBuf>,
    pub ignore_record: bool,
    pub env: Vec<(String, String)>,
    pub policy: Option<Policy>,
    pub delay: Option<Duration>,
    pub delay_max: Option<Duration>,
    pub max: Option<u32>,
    pub window: Option<Duration>,
    pub ready_by: Option<ReadyWord>,
    pub ready_command: Option<String>,
    pub ready_timeout: Option<Duration>,
    /// Each with what it is called in messages, such as `listeners[0]`.
    pub listeners: Vec<(String, Listen)>,
}

impl Draft {
    /// Reads all of a file; relative paths are relative to `dir`.
    pub fn read(mut file: Section<'_>, dir: &Path) -> Self {
        file.expect(&KEYS);
        let mut draft = Self::default();
        draft.read_paths(&mut file, dir);
        draft.read_lengths(&mut file);
        draft.read_rights(&mut file, dir);
        draft.read_tables(&mut file, dir);
        draft
    }

    fn read_paths(&mut self, file: &mut Section<'_>, dir: &Path) {
        let mut path = |key, expected| file.text(key, expected).map(|text| full(dir, &text));
        self.control = path("control_socket", CONTROL);
        self.trigger = path("trigger_socket", "the path of a socket, such as \"/run/kv/trigger\"");
        self.data_dir = path("data_dir", DATA_DIR);
        self.journal = path("journal", "the path of a file, such as \"/var/lib/kv/journal\"");
        self.directory = path("directory", "the path of a directory");
        self.metrics_file = path("metrics_file", "the path of a file");
        self.binary = file.text("binary", BINARY).map(|text| program(dir, &text));
        self.args = file.texts("args").unwrap_or_default();
    }

    fn read_lengths(&mut self, file: &mut Section<'_>) {
        self.drain_grace = file.seconds("drain_grace_secs");
        self.deadline = file.some_seconds("deadline_secs", "");
        self.warm_up = file.some_seconds("warm_up_secs", "");
        self.stand_by = file.some_seconds("stand_by_secs", "");
        self.bake = file.some_seconds("bake_secs", "; leave it out for a swap without a trial");
        self.stop = file.some_seconds("stop_secs", "");
        self.linger = file.seconds("linger_secs");
        self.health = file.text("health", "a command for sh, such as \"redis-cli ping\"");
        self.health_interval = file.seconds("health_interval_secs");
        self.health_timeout = file.some_seconds("health_timeout_secs", "");
    }

    fn read_rights(&mut self, file: &mut Section<'_>, dir: &Path) {
        let uids = file.numbers("allowed_uids", 0, UID_MAX).unwrap_or_default();
        self.allowed_uids = uids.into_iter().filter_map(|uid| u32::try_from(uid).ok()).collect();
        let binaries = file.texts("allowed_binaries").unwrap_or_default();
        self.allowed_binaries = binaries.iter().map(|path| full(dir, path)).collect();
        let fd = file.number("ready_fd", FIRST_FREE, i64::from(i32::MAX));
        self.ready_fd = fd.and_then(|fd| i32::try_from(fd).ok());
        self.ignore_record = file.switch("ignore_record").unwrap_or_default();
    }

    fn read_tables(&mut self, file: &mut Section<'_>, dir: &Path) {
        self.env = file.section("env", variables).unwrap_or_default();
        file.section("restart", |restart| self.read_restart(restart));
        file.section("readiness", |readiness| self.read_readiness(readiness));
        self.listeners = file.sections("listeners", |listener| read_listener(listener, dir));
    }

    fn read_restart(&mut self, mut restart: Section<'_>) {
        restart.expect(&RESTART_KEYS);
        self.policy = restart.word("policy", &POLICIES);
        self.delay = restart.seconds("delay_secs");
        self.delay_max = restart.seconds("delay_max_secs");
        self.max = restart.number("max", 1, 1_000_000).and_then(|max| u32::try_from(max).ok());
        self.window = restart.some_seconds("window_secs", "");
    }

    fn read_readiness(&mut self, mut readiness: Section<'_>) {
        readiness.expect(&READINESS_KEYS);
        self.ready_by = readiness.word("by", &READY_BY);
        self.ready_command = readiness.text("command", "a command for sh");
        self.ready_timeout = readiness.some_seconds("timeout_secs", "");
        match (self.ready_by, readiness.has("command")) {
            (Some(ReadyWord::Command), false) => readiness.missing("command", "a command for sh"),
            (Some(ReadyWord::Control | ReadyWord::Notify), true) => {
                readiness.fault("command", "it is only used with by = \"command\"");
            }
            (None, true) if !readiness.has("by") => {
                readiness.fault("command", "it is only used with by = \"command\"");
            }
            _ => {}
        }
    }
}

pub const CONTROL: &str = "the path of the daemon's control socket, such as \"/run/kv/control\"";
pub const DATA_DIR: &str = "the path of the daemon's data directory, such as \"/var/lib/kv\"";
pub const BINARY: &str = "the daemon's program, by its path or by its name in PATH";

/// A name without a slash is looked up in PATH.
pub fn program(dir: &Path, text: &str) -> PathBuf {
    if text.contains('/') { full(dir, text) } else { text.into() }
}

fn full(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join(text);
    std::path::absolute(&path).unwrap_or(path)
}

/// What the supervisor sets itself in the daemon's environment, or takes out of it.
const RESERVED: [&str; 4] = ["HANDOFF_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"];

fn variables(mut env: Section<'_>) -> Vec<(String, String)> {
    let mut found = vec![];
    for name in env.names() {
        let Some(value) = env.any_text(&name, "a string") else { continue };
        if name.is_empty() || name.contains(['=', '\0']) {
            env.fault(&name, format!("{name:?} cannot name a variable: expected a name without ="));
        } else if RESERVED.iter().any(|reserved| name.starts_with(reserved)) {
            env.fault(&name, "the supervisor sets this variable itself, or takes it away");
        } else {
            found.push((name, value));
        }
    }
    found
}

const NAME: &str = "a name, such as \"http\"";
const ADDR: &str = "an address, such as \"127.0.0.1:8080\", \":8080\" or \"unix:/run/kv/socket\"";

/// Reads one listener as if it had been written on a command line, a part at a time, so that each mistake has its place.
fn read_listener(mut listener: Section<'_>, dir: &Path) -> Option<(String, Listen)> {
    let known: Vec<&'static str> = ["name", "addr"].into_iter().chain(OPTIONS).collect();
    listener.expect(&known);
    let (name, addr) = (listener.text("name", NAME), listener.text("addr", ADDR));
    listener.missing("name", NAME);
    listener.missing("addr", ADDR);
    let options: Vec<(&str, String)> =
        OPTIONS.into_iter().filter_map(|key| Some((key, option(&mut listener, key)?))).collect();
    let (name, addr) = (name?, addr?);
    if let Err(e) = fds::check_name(&name) {
        listener.fault("name", e.to_string());
        return None;
    }
    let mut line = format!("{name}={}", absolute(&addr, dir).replace(',', "\\,"));
    tried(&mut listener, "addr", &line)?;
    for (key, value) in options {
        let longer = format!("{line},{key}={value}");
        if tried(&mut listener, key, &longer).is_some() {
            line = longer;
        }
    }
    Some((listener.own_key(), line.parse().ok()?))
}

fn tried(listener: &mut Section<'_>, key: &str, line: &str) -> Option<Listen> {
    match line.parse() {
        Ok(listen) => Some(listen),
        Err(e) => {
            let e: handoff::Error = e;
            let text = e.to_string();
            // The place says which listener.
            let text = text
                .strip_prefix("listener ")
                .and_then(|text| text.split_once(": "))
                .map_or(&*text, |(_, text)| text);
            let what = if key == "addr" { "address" } else { "option of this socket" };
            listener.fault(key, format!("no {what}: {text}"));
            None
        }
    }
}

/// Reads an option's value as it is written on a command line.
fn option(listener: &mut Section<'_>, key: &str) -> Option<String> {
    match key {
        "backlog" => listener.number(key, 1, i64::from(i32::MAX)).map(|n| n.to_string()),
        "mode" => listener.text_or_number(key, "permission bits, such as \"660\"", 8),
        "owner" | "group" => listener.text_or_number(key, "a name or a number, such as \"www-data\"", 10),
        "rcvbuf" | "sndbuf" => {
            listener.text_or_number(key, "a number of bytes, such as 262144 or \"256k\"", 10)
        }
        _ => listener.switch(key).map(|on| if on { "on" } else { "off" }.to_owned()),
    }
}

/// A socket's path may be relative to the file's directory.
fn absolute(addr: &str, dir: &Path) -> String {
    for scheme in ["unix:", "seqpacket:", "datagram:"] {
        if let Some(path) =
            addr.strip_prefix(scheme).filter(|path| !path.is_empty() && !path.starts_with('@'))
        {
            return format!("{scheme}{}", full(dir, path).display());
        }
    }
    match addr.starts_with("./") {
        true => full(dir, addr).display().to_string(),
        false => addr.to_owned(),
    }
}
