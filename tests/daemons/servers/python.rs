//! A server on Python's http.server.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "python",
    program: "python3",
    find: |_| packaged("python3", "--version", "python3"),
    writes: true,
    release,
};

fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "no such thing\n" } else { "" };
    vec![release.file("server.py", &format!("{}{broken}", include_str!("../apps/server.py")))]
}
