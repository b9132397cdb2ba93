//! A service directory of runit or s6.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::{Plan, shell};
use crate::checks::Finding;
use crate::duration::show_ms;

const CHECK: &str = "service";
/// How long `sv` waits by default, see sv(8).
const SV: Duration = Duration::from_secs(7);

/// Looks at a service directory.
pub fn check(dir: &Path, plan: &Plan) -> Vec<Finding> {
    let service = Service { dir };
    let mut findings = service.run();
    findings.extend(service.readiness(plan));
    findings.extend(service.stop(plan));
    findings.extend(service.down());
    findings.extend(service.log());
    findings.extend(service.signals());
    findings.extend(service.namespace());
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} fits a supervisor", dir.display())));
    }
    findings
}

struct Service<'a> {
    dir: &'a Path,
}

impl Service<'_> {
    /// Says something about a file in it.
    fn about(&self, name: &str, text: &str) -> String {
        format!("{}: {text}", self.dir.join(name).display())
    }

    fn read(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.dir.join(name)).ok()?.trim().to_owned())
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// Only s6 has these.
    fn is_of_s6(&self) -> bool {
        [
            "notification-fd",
            "timeout-kill",
            "timeout-finish",
            "type",
            "event",
            "down-signal",
            "max-death-tally",
        ]
        .iter()
        .any(|name| self.has(name))
    }

    fn runs(&self, name: &str) -> bool {
        fs::metadata(self.dir.join(name))
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    fn run(&self) -> Vec<Finding> {
        if !self.runs("run") {
            let found = self.about("run", "it is not there, or it may not be executed");
            return vec![Finding::error(
                CHECK,
                found,
                "write one that ends in exec handoff supervise, and chmod +x it",
            )];
        }
        // Not a script: nothing can be said.
        let Some(script) = self.read("run").filter(|script| script.starts_with("#!")) else { return vec![] };
        // execline becomes the next program by itself.
        if script.lines().next().is_some_and(|first| first.contains("execline")) {
            return vec![];
        }
        let line = logical(&script).into_iter().find(|(_, line)| shell::is_supervisor(line));
        let Some((n, line)) = line else {
            let found = self.about("run", "it does not name handoff supervise");
            let advice =
                "a swap ends the process that is watched, and another one is started beside the successor";
            return vec![Finding::warning(CHECK, found, advice)];
        };
        self.supervising(n, &line).into_iter().collect()
    }

    /// Looks at the line that starts the supervisor.
    fn supervising(&self, n: usize, line: &str) -> Option<Finding> {
        let found = format!("{}:{n}: {line}", self.dir.join("run").display());
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.ends_with('&') && !line.ends_with("&&") {
            return Some(Finding::error(
                CHECK,
                found,
                "a supervisor in the background is watched by nobody: let the script become it with exec",
            ));
        }
        let after_exec = match words.first() {
            Some(&"exec") => &words[1..],
            _ => {
                return Some(Finding::error(
                    CHECK,
                    found,
                    "the shell stays in between and gets the signals: put exec before it",
                ));
            }
        };
        match shell::leads(after_exec) {
            Some(shell::Trap::Closes(name)) => Some(Finding::error(
                CHECK,
                found,
                format!(
                    "{name} closes descriptors and stays in between: use chpst -u, s6-setuidgid or setpriv"
                ),
            )),
            Some(shell::Trap::Forks) => Some(Finding::error(
                CHECK,
                found,
                "the shell stays in between and gets the signals: put exec into it",
            )),
            Some(shell::Trap::Execs) | None => None,
        }
    }

    fn readiness(&self, plan: &Plan) -> Option<Finding> {
        let said = self.ready_fd().or(plan.ready_fd);
        let Some(text) = self.read("notification-fd") else {
            let number = said.filter(|_| self.is_of_s6())?;
            let found = self.about(
                "notification-fd",
                &format!("it is not there, and the supervisor is to write to descriptor {number}"),
            );
            return Some(Finding::error(
                CHECK,
                found,
                format!("write {number} to it, or leave --ready-fd out"),
            ));
        };
        let found = |text: String| self.about("notification-fd", &text);
        match (text.parse::<i32>(), said) {
            (Ok(number), Some(said)) if number == said => None,
            (Ok(number), Some(said)) => Some(Finding::error(
                CHECK,
                found(format!("it says {number}, and the supervisor writes to {said}")),
                "s6 never learns that the service is ready: let both be the same",
            )),
            (Ok(number), None) => Some(Finding::error(
                CHECK,
                found(format!("it says {number}, and nobody writes to it")),
                format!("s6 never learns that the service is ready: add --ready-fd {number}"),
            )),
            (Err(_), _) => {
                Some(Finding::error(CHECK, found(format!("{text:?} is no number")), "write 3 to it"))
            }
        }
    }

    /// What the run script says, of the number.
    fn ready_fd(&self) -> Option<i32> {
        let run = self.read("run")?;
        let (_, rest) = run.split_once("--ready-fd")?;
        let digits = rest.trim_start_matches(['=', ' ']);
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    fn stop(&self, plan: &Plan) -> Option<Finding> {
        let needed = show_ms(u64::try_from(plan.stop.as_millis()).unwrap_or(u64::MAX));
        if let Some(text) = self.read("timeout-kill") {
            let given = text.parse().ok().map(Duration::from_millis);
            // 0 is for ever.
            if given.is_some_and(|given| given.is_zero() || given >= plan.stop) {
                return None;
            }
            let found = self.about(
                "timeout-kill",
                &format!("after {text} ms s6 kills the supervisor, and a planned stop may take {needed}"),
            );
            return Some(Finding::error(CHECK, found, "make it longer, in milliseconds"));
        }
        if self.is_of_s6() || plan.stop <= SV {
            return None;
        }
        let found = format!(
            "{}: a planned stop may take {needed}, and sv gives up after {}",
            self.dir.display(),
            show_ms(7000)
        );
        let seconds = plan.stop.as_secs_f64().ceil();
        Some(Finding::warning(
            CHECK,
            found,
            format!(
                "the stop goes on, but sv says that it failed: use sv -w {seconds} stop, or set SVWAIT, and never force-stop"
            ),
        ))
    }

    fn down(&self) -> Option<Finding> {
        let found = || self.about("down", "it is there: the service is not started at boot");
        self.has("down").then(|| Finding::warning(CHECK, found(), "remove it, unless that is meant"))
    }

    fn log(&self) -> Option<Finding> {
        if self.runs("log/run") {
            return None;
        }
        if self.has("log") {
            let found = self.about("log/run", "it is not there, or it may not be executed");
            return Some(Finding::error(
                CHECK,
                found,
                "the supervisor blocks when the pipe to its log is full: chmod +x it",
            ));
        }
        // s6-rc has its loggers elsewhere.
        if self.has("producer-for") {
            return None;
        }
        let found = self.about("log", "it is not there");
        Some(Finding::warning(
            CHECK,
            found,
            "what the supervisor and the daemons say goes where the service manager's own messages go",
        ))
    }

    fn signals(&self) -> Vec<Finding> {
        let mut findings = vec![];
        if let Some(signal) = self.read("down-signal")
            && !["TERM", "SIGTERM", "15", "INT", "SIGINT", "2"].contains(&signal.as_str())
        {
            let found = self.about("down-signal", &format!("a stop sends {signal}"));
            findings.push(Finding::error(CHECK, found, "a planned stop is SIGTERM: remove it"));
        }
        for (name, word) in [("control/t", "TERM, which stops"), ("control/h", "HUP, which swaps")] {
            if self.runs(name) {
                let found = self.about(
                    name,
                    &format!("sv runs it before it sends {word}, and instead if it exits with 0"),
                );
                findings.push(Finding::warning(
                    CHECK,
                    found,
                    "make sure that the supervisor gets the signal",
                ));
            }
        }
        findings
    }

    fn namespace(&self) -> Option<Finding> {
        let found = || self.about("flag-newpidns", "the supervisor is pid 1 of a namespace of its own");
        let advice = "where it is killed, so is the daemon: remove it";
        self.has("flag-newpidns").then(|| Finding::error(CHECK, found(), advice))
    }
}

/// Returns the lines of a script with their numbers: no comments, and those that end in a backslash in one.
fn logical(script: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = vec![];
    let mut goes_on = false;
    for (n, line) in script.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        let more = line.ends_with('\\');
        let line = line.trim_end_matches('\\').trim();
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, begun)) => *begun = format!("{begun} {line}"),
            None => lines.push((n + 1, line.to_owned())),
        }
        goes_on = more;
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checks::Verdict;

    fn plan() -> Plan {
        Plan { stop: Duration::from_secs(35), ..Plan::default() }
    }

    /// Returns what is found in a directory with these files; those that begin with `#!` may be executed.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let findings = check(dir.path(), &plan());
        findings.iter().filter(|finding| finding.verdict != Verdict::Ok).map(Finding::line).collect()
    }

    const RUN: &str = "#!/bin/sh\nexec 2>&1\nexec handoff supervise --config handoff.toml --ready-fd 3\n";
    const LOG: (&str, &str) = ("log/run", "#!/bin/sh\nexec s6-log t .\n");
    const S6: [(&str, &str); 4] =
        [("run", RUN), LOG, ("notification-fd", "3\n"), ("timeout-kill", "45000\n")];

    #[test]
    fn a_directory_that_fits_is_fine() {
        assert_eq!(found(&S6), Vec::<String>::new());
    }

    #[test]
    fn every_trap_of_a_service_directory_is_found_and_is_the_only_one() {
        for (name, text, level, part) in [
            ("run", "exec handoff supervise --ready-fd 3\n", "error", "may not be executed"),
            (
                "run",
                "#!/bin/sh\nhandoff supervise --ready-fd 3\n",
                "error",
                "run:2: handoff supervise --ready-fd 3; the shell stays",
            ),
            ("run", "#!/bin/sh\nexec handoff \\\n  supervise --config x --ready-fd 3\n", "", ""),
            ("run", "#!/bin/sh\nexec handoff-supervisor \\\n  --ready-fd=3\n", "", ""),
            ("run", "#!/bin/sh\nexec handoff supervise --ready-fd 3 &\n", "error", "watched by nobody"),
            (
                "run",
                "#!/bin/sh\nexec sudo -u kv handoff supervise --ready-fd 3\n",
                "error",
                "sudo closes descriptors",
            ),
            ("run", "#!/bin/sh\nexec sh -c 'handoff supervise --ready-fd 3'\n", "error", "put exec into it"),
            ("run", "#!/bin/execlineb -P\nhandoff supervise --ready-fd 3\n", "", ""),
            ("run", "#!/bin/sh\nexec kvd --ready-fd 3\n", "warning", "does not name handoff supervise"),
            ("run", "#!/bin/sh\nexec handoff supervise\n", "error", "add --ready-fd 3"),
            ("notification-fd", "4\n", "error", "it says 4, and the supervisor writes to 3"),
            ("notification-fd", "three\n", "error", "no number"),
            ("timeout-kill", "30000\n", "error", "a planned stop may take 35.0s"),
            ("timeout-kill", "0\n", "", ""),
            ("down", "", "warning", "not started at boot"),
            ("log/run", "exec s6-log t .\n", "error", "pipe to its log"),
            ("down-signal", "HUP\n", "error", "a stop sends HUP"),
            ("control/h", "#!/bin/sh\n", "warning", "HUP, which swaps"),
            ("flag-newpidns", "", "error", "pid 1"),
        ] {
            let kept = S6.into_iter().filter(|(other, _)| *other != name);
            let files: Vec<(&str, &str)> = kept.chain([(name, text)]).collect();
            let found = found(&files);
            match part {
                "" => assert_eq!(found, Vec::<String>::new(), "{name} {text}"),
                part => {
                    let is_it = found.len() == 1 && found[0].starts_with(level) && found[0].contains(part);
                    assert!(is_it, "{name} {text}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn under_runit_a_stop_is_longer_than_sv_waits() {
        let run = "#!/bin/sh\nexec handoff supervise --config handoff.toml\n";
        let said = found(&[("run", run), LOG]);
        assert!(said.len() == 1 && said[0].contains("use sv -w 35 stop"), "{said:?}");
        let said = found(&[("run", run)]);
        assert!(said.len() == 2 && said[1].contains("log: it is not there"), "{said:?}");
    }

    #[test]
    fn a_descriptor_that_nobody_opens_is_found() {
        let said = found(&[("run", RUN), LOG, ("timeout-kill", "0")]);
        assert!(said.len() == 1 && said[0].contains("write 3 to it"), "{said:?}");
    }
}
