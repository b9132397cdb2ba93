//! A unit of systemd, with its drop-ins: what in it works against a process that stays while its daemon is replaced.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Plan, shell};
use crate::checks::Finding;
use crate::duration::show_ms;

const CHECK: &str = "unit";

/// An assignment, and where it stands.
#[derive(Clone, Debug)]
struct Setting {
    value: String,
    place: String,
}

/// What counts of a unit: the last assignment of each key, by section and key.
#[derive(Debug, Default)]
struct Unit {
    name: String,
    settings: BTreeMap<(String, String), Setting>,
}

impl Unit {
    /// Reads a unit and its drop-ins, as systemd.unit(5) says.
    fn read(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut unit = Self { name, settings: BTreeMap::new() };
        unit.add(path)?;
        for path in drop_ins(path)? {
            unit.add(&path)?;
        }
        Ok(unit)
    }

    fn add(&mut self, path: &Path) -> io::Result<()> {
        let text = fs::read(path)?;
        let mut section = String::new();
        for (line, text) in logical_lines(&String::from_utf8_lossy(&text)) {
            if let Some(name) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((key, value)) = text.split_once('=') {
                let place = format!("{}:{line}", path.display());
                let value = value.trim().to_owned();
                self.settings.insert((section.clone(), key.trim().to_owned()), Setting { value, place });
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&Setting> {
        let setting = self.settings.get(&("Service".to_owned(), key.to_owned()))?;
        // An empty one takes back what was said before.
        (!setting.value.is_empty()).then_some(setting)
    }

    fn value(&self, key: &str) -> &str {
        self.get(key).map_or("", |setting| &setting.value)
    }

    fn is_on(&self, key: &str) -> bool {
        ["yes", "true", "on", "1"].contains(&self.value(key).to_lowercase().as_str())
    }

    /// Says what a setting is, and where.
    fn shown(&self, key: &str, by_default: &str) -> String {
        match self.get(key) {
            Some(setting) => format!("{}: {key}={}", setting.place, setting.value),
            None => format!("{}: {key}= is not set, which means {by_default}", self.name),
        }
    }
}

fn drop_ins(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(e),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    Ok(paths)
}

/// Returns the lines that say something, each with the number of its first one: those that end in a backslash go on.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = vec![];
    let mut goes_on = false;
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        // Also between lines that go on.
        if line.starts_with(['#', ';']) || (line.is_empty() && !goes_on) {
            continue;
        }
        let (line, more) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, begun)) => *begun = format!("{} {}", begun.trim_end(), line.trim()),
            None => lines.push((n + 1, line.trim_end().to_owned())),
        }
        goes_on = more;
    }
    lines
}

/// Looks at a unit.
pub fn check(path: &Path, plan: &Plan) -> Vec<Finding> {
    let unit = match Unit::read(path) {
        Ok(unit) => unit,
        Err(e) => {
            let found = format!("{} cannot be read: {e}", path.display());
            return vec![Finding::error(CHECK, found, "give the path of the unit's file")];
        }
    };
    let checks = [
        start(&unit),
        kind(&unit),
        access(&unit),
        kill_mode(&unit),
        hang_up(&unit),
        stop(&unit, plan),
        restart(&unit),
        store(&unit, plan),
        limit(&unit),
        reload(&unit),
        runtime_directory(&unit, plan),
    ];
    let mut findings: Vec<Finding> = checks.into_iter().flatten().collect();
    findings.extend(private(&unit, plan));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} fits a supervisor", unit.name)));
    }
    findings
}

fn error(found: String, advice: impl Into<String>) -> Option<Finding> {
    Some(Finding::error(CHECK, found, advice))
}

fn warning(found: String, advice: impl Into<String>) -> Option<Finding> {
    Some(Finding::warning(CHECK, found, advice))
}

/// The process that systemd starts is the one that it watches, and it must be the supervisor.
fn start(unit: &Unit) -> Option<Finding> {
    let Some(command) = unit.get("ExecStart") else {
        return error(format!("{} has no ExecStart=", unit.name), "name handoff supervise there");
    };
    let shown = format!("{}: ExecStart={}", command.place, command.value);
    let words: Vec<&str> =
        command.value.trim_start_matches(['@', '-', ':', '+', '!']).split_whitespace().collect();
    if let Some(trap) = shell::leads(&words) {
        return match trap {
            shell::Trap::Closes(_) => error(
                shown,
                "it closes descriptors and stays in between, so that systemd watches it and not the supervisor: use User=",
            ),
            shell::Trap::Forks => error(
                shown,
                "the shell stays in between, and systemd watches it and not the supervisor: name the program itself, or put exec before it",
            ),
            shell::Trap::Execs => None,
        };
    }
    match shell::is_supervisor(&command.value) {
        true => None,
        false => warning(
            shown,
            "it is not handoff supervise: a swap ends the process that systemd watches, and systemd then ends the successor",
        ),
    }
}

fn kind(unit: &Unit) -> Option<Finding> {
    let shown = unit.shown("Type", "simple");
    match unit.value("Type") {
        "notify" | "notify-reload" => None,
        "" | "simple" | "exec" | "idle" => warning(
            shown,
            "systemd does not learn when the daemon is ready, nor how a swap went: use Type=notify",
        ),
        _ => error(shown, "the supervisor neither forks nor ends nor is on a bus: use Type=notify"),
    }
}

fn access(unit: &Unit) -> Option<Finding> {
    let shown = unit.shown("NotifyAccess", "main with Type=notify");
    match unit.value("NotifyAccess") {
        "none" => error(
            shown,
            "what the supervisor says is not heard, and a start with Type=notify fails: use NotifyAccess=main",
        ),
        "all" | "exec" => warning(
            shown,
            "a helper of the daemon may say READY=1 or MAINPID= for the supervisor: use NotifyAccess=main",
        ),
        _ => None,
    }
}

fn kill_mode(unit: &Unit) -> Option<Finding> {
    let shown = unit.shown("KillMode", "control-group");
    match unit.value("KillMode") {
        "process" => None,
        "none" => error(shown, "a supervisor that hangs is never ended: use KillMode=process"),
        "mixed" => warning(
            shown,
            "where the supervisor is killed, so is the daemon, at once: KillMode=process lets it serve on until the next supervisor takes it over",
        ),
        _ => warning(
            shown,
            "a stop ends the daemon beside its supervisor, and where the supervisor is killed, so is the daemon: KillMode=process lets it serve on until the next supervisor takes it over",
        ),
    }
}

fn hang_up(unit: &Unit) -> Option<Finding> {
    if !unit.is_on("SendSIGHUP") {
        return None;
    }
    warning(
        unit.shown("SendSIGHUP", "no"),
        "SIGHUP asks for a swap, and this sends it at a stop: leave it out",
    )
}

/// systemd.service(5).
const STOP_BY_DEFAULT: Duration = Duration::from_secs(90);

fn stop(unit: &Unit, plan: &Plan) -> Option<Finding> {
    let key = if unit.get("TimeoutStopSec").is_some() { "TimeoutStopSec" } else { "TimeoutSec" };
    let given = match unit.value(key) {
        "" => Some(STOP_BY_DEFAULT),
        "infinity" | "0" => None,
        value => match time(value) {
            Some(length) => Some(length),
            None => return warning(unit.shown(key, "90s"), "it is no time that systemd knows"),
        },
    };
    let needed = plan.stop;
    if given? >= needed {
        return None;
    }
    let needed_ms = u64::try_from(needed.as_millis()).unwrap_or(u64::MAX);
    error(
        unit.shown(key, "90s"),
        format!(
            "a planned stop may take {}, and systemd kills in the middle of it: make it longer",
            show_ms(needed_ms)
        ),
    )
}

/// Reads a time as systemd.time(7) has it.
fn time(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "" | "s" | "sec" | "second" | "seconds" => 1.0,
                "us" | "usec" => 1e-6,
                "ms" | "msec" => 1e-3,
                "m" | "min" | "minute" | "minutes" => 60.0,
                "h" | "hr" | "hour" | "hours" => 3600.0,
                "d" | "day" | "days" => 86_400.0,
                _ => return None,
            };
        rest = rest[letters..].trim_start();
    }
    Duration::try_from_secs_f64(total).ok()
}

fn restart(unit: &Unit) -> Option<Finding> {
    match unit.value("Restart") {
        "" | "no" => warning(
            unit.shown("Restart", "no"),
            "a supervisor that was killed does not come back: use Restart=on-failure or always",
        ),
        _ => None,
    }
}

fn store(unit: &Unit, plan: &Plan) -> Option<Finding> {
    let shown = unit.shown("FileDescriptorStoreMax", "0");
    let given: usize = unit.value("FileDescriptorStoreMax").parse().unwrap_or_default();
    match given {
        0 => warning(
            shown,
            "when supervisor and daemon are killed the listening sockets are gone, and clients are refused: keep as many as there are listeners",
        ),
        given if given < plan.listeners => error(
            shown,
            format!("there are {} listeners, and systemd closes what does not fit", plan.listeners),
        ),
        _ => None,
    }
}

/// What systemd gives a service that does not ask for more.
const FILES_BY_DEFAULT: u64 = 1024;

fn limit(unit: &Unit) -> Option<Finding> {
    let soft = match unit.value("LimitNOFILE") {
        "" => FILES_BY_DEFAULT,
        "infinity" => return None,
        value => value.split(':').next().and_then(|soft| soft.parse().ok()).unwrap_or(FILES_BY_DEFAULT),
    };
    if soft > FILES_BY_DEFAULT {
        return None;
    }
    warning(
        unit.shown("LimitNOFILE", "1024"),
        "during a handoff connections and listeners are open in two processes' worth of descriptors: give it as many as it has clients, and spare",
    )
}

fn reload(unit: &Unit) -> Option<Finding> {
    let is_hang_up = |value: &str| {
        ["HUP", "hup", "-1"].iter().any(|word| value.contains(word)) || value.contains("trigger")
    };
    match unit.get("ExecReload") {
        Some(reload) if is_hang_up(&reload.value) => None,
        None if unit.value("Type") == "notify-reload" => None,
        Some(_) => warning(
            unit.shown("ExecReload", "none"),
            "systemctl reload does not ask the supervisor for a swap: use /bin/kill -HUP $MAINPID, or handoff trigger",
        ),
        None => warning(
            unit.shown("ExecReload", "that there is no reload"),
            "a swap by systemctl reload needs ExecReload=/bin/kill -HUP $MAINPID",
        ),
    }
}

/// systemd removes the directory when the service ends, and the daemon that lives on with it.
fn runtime_directory(unit: &Unit, plan: &Plan) -> Option<Finding> {
    let control = plan.control.as_deref()?;
    let mut names = unit.value("RuntimeDirectory").split_whitespace();
    let is_inside = names.any(|name| control.starts_with(Path::new("/run").join(name)));
    if !is_inside || ["yes", "restart"].contains(&unit.value("RuntimeDirectoryPreserve")) {
        return None;
    }
    error(
        unit.shown("RuntimeDirectoryPreserve", "no"),
        format!(
            "{} is removed when the supervisor ends, and the next one does not find the daemon: use RuntimeDirectoryPreserve=yes",
            control.display()
        ),
    )
}

/// What only processes of one start of the service see.
fn private(unit: &Unit, plan: &Plan) -> Vec<Finding> {
    let mut findings = vec![];
    let sockets = [plan.control.as_deref(), plan.trigger.as_deref()];
    if unit.is_on("PrivateTmp") || unit.value("PrivateTmp") == "disconnected" {
        let in_tmp = |path: &&Path| path.starts_with("/tmp") || path.starts_with("/var/tmp");
        for path in sockets.into_iter().flatten().filter(in_tmp) {
            let found = unit.shown("PrivateTmp", "no");
            let advice = format!(
                "nobody else sees {}, nor does the next supervisor: use a directory in /run",
                path.display()
            );
            findings.extend(error(found, advice));
        }
    }
    if unit.is_on("PrivateNetwork") && plan.has_inet {
        findings.extend(error(
            unit.shown("PrivateNetwork", "no"),
            "what the supervisor binds is not reachable from outside, and the next supervisor is in another network: leave it out",
        ));
    }
    if unit.is_on("DynamicUser") {
        findings.extend(warning(
            unit.shown("DynamicUser", "no"),
            "the daemon may outlive its supervisor, and its user's number is given to others then: use User=",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checks::Verdict;

    const GOOD: &str = "[Unit]\nDescription=x\n[Service]\nType=notify\nNotifyAccess=main\n\
        ExecStart=/usr/bin/handoff supervise --config /etc/kv/handoff.toml\nExecReload=/bin/kill -HUP $MAINPID\n\
        KillMode=process\nRestart=on-failure\nTimeoutStopSec=45\nFileDescriptorStoreMax=8\nLimitNOFILE=65536\n";

    fn plan() -> Plan {
        Plan {
            control: Some("/run/kv/control".into()),
            trigger: Some("/tmp/trigger".into()),
            stop: Duration::from_secs(35),
            listeners: 2,
            has_inet: true,
            ready_fd: None,
        }
    }

    /// Returns what is found in the good unit where lines are put in the place of those for the same key.
    fn found(lines: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv.service");
        let keys: Vec<&str> = lines.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        let kept = GOOD.lines().filter(|line| !keys.iter().any(|key| line.starts_with(&format!("{key}="))));
        let text: String = kept.chain(lines.lines()).map(|line| format!("{line}\n")).collect();
        fs::write(&path, text).unwrap();
        said(&path)
    }

    fn said(path: &Path) -> Vec<String> {
        check(path, &plan())
            .iter()
            .filter(|finding| finding.verdict != Verdict::Ok)
            .map(Finding::line)
            .collect()
    }

    #[test]
    fn a_unit_that_fits_is_fine() {
        assert_eq!(found(""), Vec::<String>::new());
    }

    #[test]
    fn every_trap_of_a_unit_is_found_and_is_the_only_one() {
        for (lines, level, part) in [
            (
                "ExecStart=/bin/sh -c 'handoff supervise --config x; true'",
                "error",
                "the shell stays in between",
            ),
            ("ExecStart=/bin/sh -c 'exec handoff supervise --config x'", "", ""),
            ("ExecStart=/usr/bin/sudo -u kv handoff supervise --config x", "error", "closes descriptors"),
            ("ExecStart=/usr/bin/kvd", "warning", "it is not handoff supervise"),
            ("ExecStart=-/usr/bin/handoff-supervisor --config x", "", ""),
            ("ExecStart=", "error", "has no ExecStart="),
            ("Type=simple", "warning", "use Type=notify"),
            ("Type=", "warning", "is not set, which means simple"),
            ("Type=forking", "error", "neither forks"),
            ("NotifyAccess=none", "error", "is not heard"),
            ("NotifyAccess=all", "warning", "a helper"),
            ("KillMode=control-group", "warning", "KillMode=process lets it serve on"),
            ("KillMode=", "warning", "which means control-group"),
            ("KillMode=mixed", "warning", "at once"),
            ("KillMode=none", "error", "never ended"),
            ("SendSIGHUP=yes", "warning", "asks for a swap"),
            ("TimeoutStopSec=30", "error", "a planned stop may take 35.0s"),
            ("TimeoutStopSec=1min 5s", "", ""),
            ("TimeoutStopSec=infinity", "", ""),
            ("TimeoutStopSec=soon", "warning", "no time"),
            ("TimeoutStopSec=", "", ""),
            ("Restart=no", "warning", "does not come back"),
            ("FileDescriptorStoreMax=0", "warning", "clients are refused"),
            ("FileDescriptorStoreMax=1", "error", "there are 2 listeners"),
            ("LimitNOFILE=1024:4096", "warning", "LimitNOFILE=1024:4096"),
            ("LimitNOFILE=infinity", "", ""),
            ("ExecReload=", "warning", "no reload"),
            ("ExecReload=/bin/true", "warning", "does not ask"),
            ("RuntimeDirectory=kv", "error", "is removed when the supervisor ends"),
            ("RuntimeDirectory=kv\nRuntimeDirectoryPreserve=yes", "", ""),
            ("RuntimeDirectory=other", "", ""),
            ("PrivateTmp=yes", "error", "nobody else sees /tmp/trigger"),
            ("PrivateNetwork=yes", "error", "not reachable"),
            ("DynamicUser=yes", "warning", "given to others"),
        ] {
            let found = found(lines);
            match part {
                "" => assert_eq!(found, Vec::<String>::new(), "{lines}"),
                part => {
                    assert!(
                        found.len() == 1 && found[0].starts_with(level) && found[0].contains(part),
                        "{lines}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_drop_in_counts_more_and_a_finding_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv.service");
        fs::write(&path, GOOD).unwrap();
        let drop_ins = dir.path().join("kv.service.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::write(drop_ins.join("10.conf"), "# later ones win\n[Service]\nType=forking\nTimeoutStopSec=1\n")
            .unwrap();
        fs::write(drop_ins.join("20.conf"), "[Service]\nType=notify\n").unwrap();
        fs::write(drop_ins.join("30.conf.bak"), "[Service]\nType=oneshot\n").unwrap();
        let found = said(&path);
        assert!(
            found.len() == 1 && found[0].contains("kv.service.d/10.conf:4: TimeoutStopSec=1;"),
            "{found:?}"
        );
    }

    #[test]
    fn lines_go_on_and_comments_do_not_count() {
        let lines = logical_lines("[Service]\n# x\nExecStart=a \\\n; y\n  b \\\n  c\nType=d\n");
        let lines: Vec<(usize, &str)> = lines.iter().map(|(n, line)| (*n, line.as_str())).collect();
        assert_eq!(lines, [(1, "[Service]"), (3, "ExecStart=a b c"), (7, "Type=d")]);
    }

    #[test]
    fn a_unit_that_is_not_there_is_an_error() {
        assert!(said(Path::new("/nowhere/kv.service"))[0].starts_with("error"));
    }
}
