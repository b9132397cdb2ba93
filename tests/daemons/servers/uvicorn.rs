//! uvicorn, with an ASGI application.

use std::process::Command;

use crate::common::has_tool;
use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "uvicorn",
    program: "python3",
    find: |_| {
        let python = packaged("python3", "--version", "python3")?;
        has_tool("uvicorn", Command::new(&python).args(["-c", "import uvicorn"])).then_some(python)
    },
    writes: true,
    release,
};

fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "import no_such_thing\n" } else { "" };
    release.file("asgi.py", &format!("{}{broken}", include_str!("../apps/asgi.py")));
    vec![release.dir.to_str().unwrap().to_owned(), "--log-level".into(), "warning".into()]
}
