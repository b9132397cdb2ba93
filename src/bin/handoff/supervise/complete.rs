//! What a configuration comes to: defaults where nothing was said, and what cannot be true together.

use std::path::Path;
use std::time::Duration;

use handoff::listen::{Address, Listen, Spec};
use handoff::supervise::{Health, Limits, Policy, Readiness, ReadyBy, Restart, Settings};
use handoff::sys::unix;

use super::draft::{self, Draft, ReadyWord};
use super::faults::Faults;

const DRAIN_GRACE: Duration = Duration::from_secs(25);
const DEADLINE: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_secs(600);
const STAND_BY: Duration = Duration::from_secs(10);
/// How much longer than its drain a planned stop may take.
const STOP_SPARE: Duration = Duration::from_secs(10);
const LINGER: Duration = Duration::from_secs(30);
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const RESTART_DELAY: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);
const RESTART_MAX: u32 = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Settings, and what the key of each listener is called in messages.
pub struct Complete {
    pub settings: Settings,
    pub listener_keys: Vec<String>,
}

/// Completes a draft; where something is missing or impossible, that is added to the faults.
pub fn complete(draft: Draft, faults: &mut Faults) -> Option<Complete> {
    let limits = limits(&draft, faults);
    let health = health(&draft, faults);
    let readiness = readiness(&draft);
    let restart = restart(&draft, faults);
    let required = [
        ("control_socket", draft::CONTROL, draft.control.is_some()),
        ("data_dir", draft::DATA_DIR, draft.data_dir.is_some()),
        ("binary", draft::BINARY, draft.binary.is_some()),
    ];
    for (key, expected, is_there) in required {
        if !is_there && !faults.is_set(key) {
            faults.add(key, format!("it is missing: expected {expected}"));
        }
    }
    let (listener_keys, listeners) = listeners(draft.listeners, faults);
    let control = draft.control.clone()?;
    let trigger = draft.trigger.unwrap_or_else(|| control.with_file_name("trigger"));
    distinct(&control, &trigger, faults);
    for (key, listen) in listener_keys.iter().zip(&listeners) {
        distinct_listener(&control, &trigger, &format!("{key}.addr"), listen, faults);
    }
    let data_dir = draft.data_dir?;
    let settings = Settings {
        journal: draft.journal.unwrap_or_else(|| data_dir.join("journal")),
        control,
        trigger,
        data_dir,
        binary: draft.binary?,
        args: draft.args,
        env: draft.env,
        directory: draft.directory,
        listeners,
        ignore_record: draft.ignore_record,
        limits,
        health,
        readiness,
        restart,
        allowed_uids: draft.allowed_uids,
        allowed_binaries: draft.allowed_binaries,
        ready_fd: draft.ready_fd,
        metrics_file: draft.metrics_file,
    };
    Some(Complete { settings, listener_keys })
}

fn limits(draft: &Draft, faults: &mut Faults) -> Limits {
    let drain_grace = draft.drain_grace.unwrap_or(DRAIN_GRACE);
    let deadline = draft.deadline.unwrap_or(DEADLINE);
    if drain_grace > deadline {
        let key = if faults.is_set("drain_grace_secs") { "drain_grace_secs" } else { "deadline_secs" };
        let text = format!(
            "the drain may take {} and the swap {}: expected drain_grace_secs to be at most deadline_secs",
            shown(drain_grace),
            shown(deadline)
        );
        faults.add(key, text);
    }
    let stop = draft.stop.unwrap_or(drain_grace + STOP_SPARE);
    if stop < drain_grace {
        let text = format!(
            "the stop may take {} and its drain {}: expected stop_secs to be at least drain_grace_secs",
            shown(stop),
            shown(drain_grace)
        );
        faults.add("stop_secs", text);
    }
    Limits {
        drain_grace,
        deadline,
        warm_up: draft.warm_up.unwrap_or(WARM_UP),
        stand_by: draft.stand_by.unwrap_or(STAND_BY),
        bake: draft.bake,
        stop,
        linger: draft.linger.unwrap_or(LINGER),
    }
}

fn health(draft: &Draft, faults: &mut Faults) -> Option<Health> {
    if draft.health.is_some() && draft.bake.is_none() && !faults.is_set("bake_secs") {
        faults.add("health", "a health check is for a trial: expected bake_secs too");
    }
    for key in ["health_interval_secs", "health_timeout_secs"] {
        if faults.is_set(key) && !faults.is_set("health") {
            faults.add(key, "there is no health check that it could be for: expected health too");
        }
    }
    Some(Health {
        command: draft.health.clone()?,
        interval: draft.health_interval.unwrap_or(HEALTH_INTERVAL),
        timeout: draft.health_timeout.unwrap_or(HEALTH_TIMEOUT),
    })
}

fn readiness(draft: &Draft) -> Readiness {
    let by = match (draft.ready_by, &draft.ready_command) {
        (Some(ReadyWord::Command), Some(command)) => ReadyBy::Command(command.clone()),
        (Some(ReadyWord::Notify), _) => ReadyBy::Notify,
        _ => ReadyBy::Control,
    };
    Readiness { by, timeout: draft.ready_timeout.unwrap_or(READY_TIMEOUT) }
}

fn restart(draft: &Draft, faults: &mut Faults) -> Restart {
    let restart = Restart {
        policy: draft.policy.unwrap_or(Policy::Never),
        delay: draft.delay.unwrap_or(RESTART_DELAY),
        delay_max: draft.delay_max.unwrap_or(RESTART_DELAY_MAX.max(draft.delay.unwrap_or_default())),
        max: draft.max.unwrap_or(RESTART_MAX),
        window: draft.window.unwrap_or(RESTART_WINDOW),
    };
    if restart.delay > restart.delay_max {
        let text = format!(
            "the longest wait is {} and the first one {}: expected delay_max_secs to be at least delay_secs",
            shown(restart.delay_max),
            shown(restart.delay)
        );
        faults.add("restart.delay_max_secs", text);
    }
    restart
}

/// Returns a listener for each socket, so that what is printed reads back to the same; and what each one's key is called.
fn listeners(given: Vec<(String, Listen)>, faults: &mut Faults) -> (Vec<String>, Vec<Listen>) {
    let mut sockets: Vec<(String, Spec)> = vec![];
    for (key, listen) in given {
        for spec in listen.sockets {
            if let Some(text) = sockets.iter().find_map(|(_, other)| clash(other, &spec)) {
                faults.add(&format!("{key}.name"), text);
            } else {
                sockets.push((key.clone(), spec));
            }
        }
    }
    sockets.into_iter().map(|(key, spec)| (key, Listen { sockets: vec![spec] })).unzip()
}

fn clash(one: &Spec, other: &Spec) -> Option<String> {
    if one.name == other.name {
        return Some(format!("two listeners are called {}: expected a name of its own for each", one.name));
    }
    is_same_place(one, other).then(|| {
        format!(
            "{} and {} are both at {}: expected an address of its own for each",
            one.name, other.name, one.address
        )
    })
}

/// At port 0 everybody gets a port of his own.
fn is_same_place(one: &Spec, other: &Spec) -> bool {
    one.address == other.address && !one.address.to_string().ends_with(":0")
}

fn distinct(control: &Path, trigger: &Path, faults: &mut Faults) {
    for (key, path) in [("control_socket", control), ("trigger_socket", trigger)] {
        let length = path.as_os_str().len();
        if length > unix::PATH_MAX {
            faults.add(key, too_long(length));
        }
        if path.file_name().is_none() {
            faults.add(key, format!("{} is no path of a socket", path.display()));
        }
    }
    if control == trigger {
        faults.add("trigger_socket", "it is the control socket's path too: expected another one");
    }
}

fn distinct_listener(control: &Path, trigger: &Path, key: &str, listen: &Listen, faults: &mut Faults) {
    let paths = listen.sockets.iter().filter_map(|spec| match &spec.address {
        Address::Path { path, .. } => Some(path),
        Address::Inet { .. } | Address::Abstract { .. } => None,
    });
    for path in paths.filter(|path| *path == control || *path == trigger) {
        faults.add(
            key,
            format!("{} is the control or the trigger socket's path: expected another one", path.display()),
        );
    }
}

fn too_long(length: usize) -> String {
    format!(
        "the path is {length} bytes long, and a socket's path has room for {}: expected a shorter one, such as in /run/NAME",
        unix::PATH_MAX
    )
}

/// Returns a length as the file has it.
pub fn shown(length: Duration) -> String {
    format!("{} s", length.as_secs_f64())
}
