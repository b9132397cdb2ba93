//! Every example in help and in the man pages is run as it stands there: in a sandbox of its own, where the daemon, the paths
//! and the programs are that it speaks of.
#![allow(clippy::unwrap_used)]

mod common;
mod sandbox;

use std::process::Command;

/// Where examples take place that do not start a daemon of their own.
const SERVING: [&str; 4] = [
    "mkdir /var/lib/kv",
    "export HANDOFF_CONTROL=/run/kv/control HANDOFF_DATA_DIR=/var/lib/kv HANDOFF_JOURNAL=/var/lib/kv/journal",
    "kvd &",
    "handoff swap kvd-v2",
];

/// Examples that take place elsewhere: what they begin with or contain, and what is done before them.
const ELSEWHERE: [(&str, &[&str]); 18] = [
    ("handoff kvd", &["mkdir /var/lib/kv"]),
    ("exec handoff hold-fds --listen", &COLD),
    ("exec handoff hold-fds --from /", &COLD),
    ("handoff lock --wait 10s", &COLD),
    ("eval \"exec $(handoff journal current", &STOPPED),
    ("handoff journal timeline 1m84h", &SERVING),
    ("handoff abort --control", &BAKING),
    ("handoff commit --control", &BAKING),
    ("handoff supervise --con", &CONFIGURED),
    ("exec handoff-supervisor", &CONFIGURED),
    ("handoff trigger", &SUPERVISED),
    ("handoff exec-successor --warm --via", &SUPERVISED),
    ("handoff doctor --config", &CONFIGURED),
    ("handoff doctor --wrapper", &CONFIGURED),
    ("handoff doctor --json", &CONFIGURED),
    ("handoff wrap --data-dir /run/web", &[WEB[0], WEB[1]]),
    (
        "handoff wrap --data-dir /var/lib/app",
        &["mkdir /var/lib/app", "export HANDOFF_CONTROL=/var/lib/app/control"],
    ),
    ("handoff swap --control /run/web", &WEB),
];

/// The machine of a service: what stands in its configuration, units and service directories.
const CONFIGURED: [&str; 8] = [
    SERVING[0],
    SERVING[1],
    "cp -R /etc /run/etc && mount --bind /run/etc /etc && mount -t tmpfs tmpfs /opt && mkdir -p /etc/kv /etc/s6/kv /opt/kv",
    "cp bin/kvd-v2 /opt/kv",
    "printf '%s = \"%s\"\\n' control_socket /run/kv/control data_dir /var/lib/kv binary kvd >/etc/kv/handoff.toml",
    "cp /etc/kv/handoff.toml . && printf '#!/bin/sh\\nexec handoff supervise --config /etc/kv/handoff.toml\\n' >/etc/s6/kv/run",
    "chmod +x /etc/s6/kv/run && mkdir -p /etc/systemd/system",
    "printf '[Service]\\nType=notify\\nExecStart=handoff supervise --config x\\n' >/etc/systemd/system/kv.service",
];
const SUPERVISED: [&str; 10] = [
    CONFIGURED[0],
    CONFIGURED[1],
    CONFIGURED[2],
    CONFIGURED[3],
    CONFIGURED[4],
    CONFIGURED[5],
    CONFIGURED[6],
    CONFIGURED[7],
    "export HANDOFF_TRIGGER=/run/kv/trigger",
    "handoff supervise --config /etc/kv/handoff.toml &",
];
const WEB: [&str; 3] = [
    "mkdir /run/web",
    "export HANDOFF_CONTROL=/run/web/control",
    "handoff wrap --data-dir /run/web --overlap --listen http=:80 -- my-web-server &",
];

const COLD: [&str; 2] = [SERVING[0], SERVING[1]];
const STOPPED: [&str; 6] = [
    SERVING[0],
    SERVING[1],
    SERVING[2],
    SERVING[3],
    "kill $(handoff status --json | jq .status.process.pid)",
    // It is held until the process has ended.
    "handoff lock --wait 60s /var/lib/kv true",
];
const BAKING: [&str; 5] =
    [SERVING[0], SERVING[1], SERVING[2], SERVING[3], "handoff swap --bake 1h ./kvd-v2 &"];

/// A line of an example, and what comes before it in its block.
struct Example {
    command: String,
    line: String,
    before: Vec<String>,
}

/// Returns the examples of every command, from its help.
fn examples(path: &[String]) -> Vec<Example> {
    let help = Command::new(common::HANDOFF).args(path).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let section = |title: &str| {
        let rest = help.lines().skip_while(move |line| *line != title).skip(1);
        rest.take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut found = vec![];
    let mut before: Vec<String> = vec![];
    let block = section("EXAMPLES").join("\n").replace("\\\n", "");
    for line in block.lines().map(|line| line.trim().split("  #").next().unwrap().trim_end().to_owned()) {
        if line.starts_with('#') {
            continue;
        }
        // What is set and started lasts; what is asked does not.
        let lasts = line.starts_with("export ") || line.ends_with('&');
        found.push(Example {
            command: format!("handoff {}", path.join(" ")),
            line: line.clone(),
            before: before.clone(),
        });
        before.extend(lasts.then_some(line));
    }
    let names = section("Commands:");
    let names = names.iter().filter_map(|row| row.strip_prefix("  ").filter(|row| !row.starts_with(' ')));
    for name in names.filter_map(|row| row.split_whitespace().next()).filter(|name| *name != "help") {
        found.extend(examples(&[path, &[name.to_owned()]].concat()));
    }
    found
}

/// Returns the examples that stand in man pages by hand.
fn examples_by_hand() -> Vec<Example> {
    let mut found = vec![];
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/man/source")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for block in text.split("\n.EX\n").skip(1).map(|rest| rest.split("\n.EE\n").next().unwrap()) {
            let command = path.file_name().unwrap().to_str().unwrap().to_owned();
            let example = |line: String| Example { command: command.clone(), line, before: vec![] };
            found.extend(lines_of(block).into_iter().map(example));
        }
    }
    found
}

/// Returns what is to be run of a block of lines.
fn lines_of(block: &str) -> Vec<String> {
    let block = block.replace("\\\n", "");
    if block.contains("socat") {
        return vec![format!("{block} | grep status-report")];
    }
    if let Some(session) = block.strip_prefix("$ ") {
        // What was started first reads what was typed then.
        let (first, typed) = session.split_once('\n').unwrap();
        return vec![format!("echo '{}' | {first}", typed.replace("$ ", ""))];
    }
    let is_command = |line: &&str| line.starts_with("handoff ") || line.starts_with("exec handoff ");
    let is_form = |line: &str| line.contains("OPTIONS") || line.contains("REASON");
    block.lines().filter(is_command).filter(|line| !is_form(line)).map(str::to_owned).collect()
}

impl Example {
    /// Returns the lines that make the place where it is run, and its own.
    fn lines(&self) -> Vec<String> {
        let starts_one = |line: &String| line.starts_with("handoff kvd");
        let place = match ELSEWHERE.iter().find(|(part, _)| self.line.starts_with(part)) {
            Some((_, place)) => place.to_vec(),
            None if self.before.iter().any(starts_one) => vec![],
            None => SERVING.to_vec(),
        };
        let place = place.into_iter().map(str::to_owned);
        place.chain(self.before.clone()).chain([self.run()]).collect()
    }

    /// Returns its own line, so that it comes to an end.
    fn run(&self) -> String {
        let line = &self.line;
        let quoted = format!("'{}'", line.replace('\'', "'\\''"));
        let becomes_one = line.starts_with("exec ")
            || line.starts_with("eval \"exec")
            || line.starts_with("handoff kvd")
            || (line.starts_with("handoff supervise") && !line.contains("--check"))
            || line.starts_with("handoff wrap")
            || line.contains("exec-successor kvd");
        if line.ends_with('&') {
            line.clone()
        } else if line.contains("--ready-fd 3") {
            format!("becomes '{line} 3>ready'")
        } else if line.starts_with("handoff doctor") && !line.contains('|') {
            // It may well find something here; that it has looked is what its last line says.
            format!("{line} | tail -n 1 | grep ' checks'")
        } else if becomes_one {
            format!("becomes {quoted}")
        } else if line.contains("--step") {
            // A person who says yes to everything, again and again: what is typed before a question does not count.
            format!("while sleep 0.1; do echo; done | script -qec {quoted} /dev/null")
        } else if line.contains("--bake") {
            format!("bakes {quoted}")
        } else if line.contains("--follow") {
            format!("follows {quoted}")
        } else {
            // The id of some handoff, which is another one here.
            line.replace(
                " 1m84h ",
                " $(handoff journal show --json | jq -r .handoff | tail -n 1 | cut -c1-6) ",
            )
        }
    }
}

#[test]
fn every_example_works() {
    if !sandbox::is_possible()
        || !common::has_redis_tools()
        || !common::has_script()
        || !common::has_tool("jq", Command::new("jq").arg("--version"))
        || !common::has_tool("socat", Command::new("socat").arg("-V"))
    {
        return;
    }
    let (in_help, by_hand) = (examples(&[]), examples_by_hand());
    assert!(in_help.len() > 20 && by_hand.len() > 5, "found only {} and {}", in_help.len(), by_hand.len());
    let mut failed = vec![];
    for example in in_help.iter().chain(&by_hand) {
        eprintln!("{}: {}", example.command, example.line);
        let ran = sandbox::run(&example.lines());
        if let Some(wrong) = ran.iter().find(|ran| ran.code != 0) {
            failed.push(format!("{}: {}\n    {wrong:?}", example.command, example.line));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
