//! HAProxy, which answers by itself.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "haproxy",
    program: "haproxy",
    find: |_| packaged("haproxy", "-v", "haproxy"),
    writes: false,
    release,
};

/// Where it listens is in the environment: `fd@N` where the socket was passed.
fn release(_: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "no such thing" } else { "" };
    let conf = format!(
        "global\n\
         \x20 hard-stop-after 20s\n\
         defaults\n\
         \x20 mode http\n\
         \x20 timeout client 60s\n\
         \x20 timeout connect 60s\n\
         \x20 timeout server 60s\n\
         \x20 option idle-close-on-response\n\
         frontend http\n\
         \x20 bind \"${{BIND}}\"\n\
         \x20 http-request return status 200 content-type text/plain string \"{label}\"\n\
         {broken}\n",
        label = release.label,
    );
    vec![release.file("haproxy.cfg", &conf)]
}
