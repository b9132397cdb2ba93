//! The configuration that counts, as a file that reads back to the same.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use handoff::listen::{Address, Spec};
use handoff::supervise::{Policy, ReadyBy, Settings};
use handoff::sys::socket::Transport;
use serde::{Serialize, Serializer};

/// All keys of the file that have a value.
#[derive(Serialize)]
pub struct Effective {
    control_socket: Text,
    trigger_socket: Text,
    data_dir: Text,
    journal: Text,
    binary: Text,
    args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<Text>,
    drain_grace_secs: Seconds,
    deadline_secs: Seconds,
    warm_up_secs: Seconds,
    stand_by_secs: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    bake_secs: Option<Seconds>,
    stop_secs: Seconds,
    linger_secs: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_interval_secs: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_timeout_secs: Option<Seconds>,
    allowed_uids: Vec<u32>,
    allowed_binaries: Vec<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_fd: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_file: Option<Text>,
    ignore_record: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    restart: Restart,
    readiness: Readiness,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    listeners: Vec<Listener>,
}

#[derive(Serialize)]
struct Restart {
    policy: &'static str,
    delay_secs: Seconds,
    delay_max_secs: Seconds,
    max: u32,
    window_secs: Seconds,
}

#[derive(Serialize)]
struct Readiness {
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    timeout_secs: Seconds,
}

#[derive(Default, Serialize)]
struct Listener {
    name: String,
    addr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reuseaddr: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v6only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keepalive: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodelay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rcvbuf: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sndbuf: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freebind: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transparent: Option<bool>,
}

/// A path, whose bytes may be no text where it came from the command line.
#[derive(Serialize)]
struct Text(String);

impl From<&PathBuf> for Text {
    fn from(path: &PathBuf) -> Self {
        Self(path.to_string_lossy().into_owned())
    }
}

/// A length in seconds, without a fraction where there is none.
struct Seconds(Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => s.serialize_u64(self.0.as_secs()),
            _ => s.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

impl From<&Settings> for Effective {
    fn from(settings: &Settings) -> Self {
        let (limits, health) = (&settings.limits, settings.health.as_ref());
        Self {
            control_socket: (&settings.control).into(),
            trigger_socket: (&settings.trigger).into(),
            data_dir: (&settings.data_dir).into(),
            journal: (&settings.journal).into(),
            binary: (&settings.binary).into(),
            args: settings.args.clone(),
            directory: settings.directory.as_ref().map(Text::from),
            drain_grace_secs: Seconds(limits.drain_grace),
            deadline_secs: Seconds(limits.deadline),
            warm_up_secs: Seconds(limits.warm_up),
            stand_by_secs: Seconds(limits.stand_by),
            bake_secs: limits.bake.map(Seconds),
            stop_secs: Seconds(limits.stop),
            linger_secs: Seconds(limits.linger),
            health: health.map(|health| health.command.clone()),
            health_interval_secs: health.map(|health| Seconds(health.interval)),
            health_timeout_secs: health.map(|health| Seconds(health.timeout)),
            allowed_uids: settings.allowed_uids.clone(),
            allowed_binaries: settings.allowed_binaries.iter().map(Text::from).collect(),
            ready_fd: settings.ready_fd,
            metrics_file: settings.metrics_file.as_ref().map(Text::from),
            ignore_record: settings.ignore_record,
            env: settings.env.iter().cloned().collect(),
            restart: restart(settings),
            readiness: readiness(settings),
            listeners: settings.listeners.iter().flat_map(|listen| &listen.sockets).map(listener).collect(),
        }
    }
}

fn restart(settings: &Settings) -> Restart {
    let restart = &settings.restart;
    Restart {
        policy: match restart.policy {
            Policy::Never => "never",
            Policy::OnFailure => "on-failure",
            Policy::Always => "always",
        },
        delay_secs: Seconds(restart.delay),
        delay_max_secs: Seconds(restart.delay_max),
        max: restart.max,
        window_secs: Seconds(restart.window),
    }
}

fn readiness(settings: &Settings) -> Readiness {
    let (by, command) = match &settings.readiness.by {
        ReadyBy::Control => ("control", None),
        ReadyBy::Notify => ("notify", None),
        ReadyBy::Command(command) => ("command", Some(command.clone())),
    };
    Readiness { by, command, timeout_secs: Seconds(settings.readiness.timeout) }
}

fn listener(spec: &Spec) -> Listener {
    let options = &spec.options;
    Listener {
        name: spec.name.clone(),
        addr: addr(&spec.address),
        backlog: options.backlog,
        mode: spec.mode.map(|mode| format!("{mode:o}")),
        owner: spec.owner.clone(),
        group: spec.group.clone(),
        reuseaddr: options.reuse_address,
        v6only: options.v6_only,
        keepalive: options.keep_alive,
        nodelay: options.no_delay,
        rcvbuf: options.receive_buffer,
        sndbuf: options.send_buffer,
        freebind: options.free_bind,
        transparent: options.transparent,
    }
}

/// An any-address of both families is not the same as IPv6's: IPv4's takes its place where there is no IPv6.
fn addr(address: &Address) -> String {
    match address {
        Address::Inet { transport, address, falls_back: true } => match transport {
            Transport::Datagram => format!("udp:*:{}", address.port()),
            _ => format!("*:{}", address.port()),
        },
        address => address.to_string(),
    }
}

impl Effective {
    /// Returns it as a file.
    ///
    /// # Errors
    ///
    /// Never in practice: every value has a form there.
    pub fn toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }
}
