//! uvicorn, with an ASGI application.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "uvicorn",
    program: "uvicorn",
    find: |_| packaged("uvicorn", "--version", "uvicorn"),
    writes: true,
    release,
};

fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "import no_such_thing\n" } else { "" };
    release.file("asgi.py", &format!("{}{broken}", include_str!("../apps/asgi.py")));
    vec![release.dir.to_str().unwrap().to_owned(), "--log-level".into(), "warning".into()]
}
