//! nginx, as Debian's nginx-light.

use crate::site::{Release, Server, Site, packaged};

pub const SERVER: Server = Server {
    name: "nginx",
    program: "nginx",
    find: |_| packaged("nginx", "-v", "nginx-light"),
    writes: false,
    release,
};

fn release(site: &Site, release: &Release) -> Vec<String> {
    let broken = if release.is_broken { "no such thing;" } else { "" };
    let conf = format!(
        "pid {pid};\n\
         error_log stderr;\n\
         worker_processes 2;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {tmp}/body;\n\
           proxy_temp_path {tmp}/proxy;\n\
           fastcgi_temp_path {tmp}/fastcgi;\n\
           uwsgi_temp_path {tmp}/uwsgi;\n\
           scgi_temp_path {tmp}/scgi;\n\
           {broken}\n\
           server {{\n\
             listen {addr} backlog=4096;\n\
             location / {{ default_type text/plain; return 200 \"{label}\\n\"; }}\n\
           }}\n\
         }}\n",
        pid = site.path("nginx.pid").display(),
        tmp = site.path("data").display(),
        addr = site.addr,
        label = release.label,
    );
    vec![release.file("nginx.conf", &conf)]
}
