//! A Node server.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "node",
    program: "node",
    find: |_| packaged("node", "--version", "nodejs"),
    writes: true,
    release,
};

fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "no such thing\n" } else { "" };
    vec![release.file("server.js", &format!("{}{broken}", include_str!("../apps/server.js")))]
}
