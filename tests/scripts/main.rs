//! The scripts in `scripts/` that people copy, under every shell they are for: what they say, which code they end with, and that one
//! daemon serves with every acknowledged write afterwards, also when something fails or is killed at each step.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod checked;
mod deploy;
mod rig;
mod services;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the scripts are.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

const SHELL_SCRIPTS: [&str; 21] = [
    "deploy.sh",
    "deploy-checked.sh",
    "runit/kvd/run",
    "runit/kvd/check",
    "runit/kvd/finish",
    "runit/kvd/log/run",
    "runit/kvd-chain/run",
    "runit/kvd-chain/log/run",
    "s6/kvd/run",
    "s6/kvd/finish",
    "s6/kvd/log/run",
    "s6/kvd-chain/run",
    "s6/kvd-chain/log/run",
    "test",
    "wrap/gunicorn.sh",
    "wrap/haproxy.sh",
    "wrap/nginx.sh",
    "wrap/node.sh",
    "wrap/python.sh",
    "wrap/sd_listen.sh",
    "wrap/uvicorn.sh",
];

fn run(program: &str, args: &[&str], script: &Path) -> Output {
    Command::new(program).args(args).arg(script).output().unwrap()
}

#[test]
fn every_shell_script_is_read_by_every_shell() {
    for shell in [rig::Way::Dash, rig::Way::Bash] {
        if !shell.is_there() {
            continue;
        }
        for script in SHELL_SCRIPTS {
            let output = run(shell.program(), &["-n"], &scripts().join(script));
            assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
        }
    }
}

#[test]
fn shellcheck_has_nothing_to_say() {
    if !common::has_tool("shellcheck", Command::new("shellcheck").arg("--version")) {
        return;
    }
    for script in SHELL_SCRIPTS {
        let output = run("shellcheck", &["--shell=sh"], &scripts().join(script));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// What each script says of the exit codes is what the one table has.
#[test]
fn every_deploy_script_explains_every_exit_code() {
    for script in ["deploy.sh", "deploy-checked.sh", "deploy.execline"] {
        let text = std::fs::read_to_string(scripts().join(script)).unwrap();
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        for code in ["0 ", "1 ", "3, 4 ", "5 ", "6 ", "100 ", "111 ", "126 ", "127 "] {
            let explained = header.iter().any(|line| line.starts_with(&format!("#   {code}")));
            assert!(explained, "{script} does not say what {code}means");
        }
    }
}
