//! A C daemon that is made for systemd, with `sd_listen_fds` and `sd_notify`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::has_tool;
use crate::site::{Release, Server, Site};

pub const SERVER: Server =
    Server { name: "sd_listen", program: "sd_listen", find: build, writes: true, release };

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemons/apps/sd_listen.c");

fn build(dir: &Path) -> Option<PathBuf> {
    let built = dir.join("sd_listen");
    let mut cc = Command::new("cc");
    cc.args(["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&built).args([SOURCE, "-lsystemd"]);
    has_tool("gcc and libsystemd-dev", &mut cc).then_some(built)
}

/// It has no configuration that could be wrong: it is called in a wrong way.
fn release(site: &Site, release: &Release) -> Vec<String> {
    let mut args = vec!["sd_listen".to_owned(), release.label.clone()];
    if !release.is_broken {
        args.push(site.path("data/added").to_str().unwrap().to_owned());
    }
    args
}
