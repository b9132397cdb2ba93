//! gunicorn, with an application that has a SQLite database.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "gunicorn",
    program: "gunicorn",
    find: |_| packaged("gunicorn", "--version", "gunicorn"),
    writes: true,
    release,
};

fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "import no_such_thing\n" } else { "" };
    release.file("app.py", &format!("{}{broken}", include_str!("../apps/app.py")));
    vec![release.dir.to_str().unwrap().to_owned(), "--workers".into(), "2".into()]
}
