//! Other tools before and after the link: each passes sockets to it and gets them from it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{HANDOFF, PATIENCE, eventually, example, has_tool, wait_for_exit};
use crate::{Serving, hold, python, said, text};

/// Kills a process at the end of a test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_dialect_that_is_spoken_is_understood() {
    for dialect in ["listen-fds", "server-starter", "einhorn", "s6", "nginx"] {
        let words = ["--listen", "a=127.0.0.1:0", "--listen", "b=udp:127.0.0.1:0", "--as", dialect];
        // Without the fd table and the layout, the dialect's variables are all that there is.
        let stranger = ["--", "env", "-u", "HANDOFF_FDS", "-u", "HANDOFF_LAYOUT"];
        let mut command = Command::new(HANDOFF);
        command
            .arg("hold-fds")
            .args(words)
            .args(stranger)
            .args([HANDOFF, "hold-fds", "--inherit"])
            .args(python());
        let serving = Serving::start(&mut command);
        serving.expect_answers();
        assert_eq!(serving.sockets.len(), 2, "{dialect}");
        if matches!(dialect, "listen-fds" | "s6") {
            assert_eq!(serving.names(), ["a", "b"], "{dialect}");
        }
    }
}

#[test]
fn what_a_dialect_left_behind_is_not_passed_on() {
    let show = "env | grep -cE '^(NGINX|EINHORN|SERVER_STARTER|S6_FD|HANDOFF_LAYOUT)'";
    let words = [
        "--listen",
        "a=127.0.0.1:0",
        "--as",
        "nginx",
        "--as",
        "einhorn",
        "--as",
        "s6",
        "--as",
        "server-starter",
    ];
    let inherit =
        ["--", "env", "-u", "HANDOFF_FDS", "-u", "HANDOFF_LAYOUT", HANDOFF, "hold-fds", "--inherit"];
    let output = hold(&[&words[..], &inherit, &["--", "sh", "-c", show]].concat());
    assert_eq!(text(&output.stdout), "0\n", "{}", text(&output.stderr));
}

#[test]
fn a_malformed_or_closed_dialect_is_named() {
    for (variable, expected) in [
        ("SERVER_STARTER_PORT=8080=x", "SERVER_STARTER_PORT is malformed at \"8080=x\""),
        ("SERVER_STARTER_PORT=8080=99", "SERVER_STARTER_PORT names it, but it is closed"),
        ("EINHORN_FD_COUNT=x", "EINHORN_FD_COUNT is malformed"),
        ("EINHORN_FD_COUNT=1", "EINHORN_FD_0 is malformed at \"\""),
        ("S6_FD_0=99", "S6_FD_0 names it, but it is closed"),
        ("NGINX=99;", "NGINX names it, but it is closed"),
        ("NGINX=/usr/sbin/nginx", "nothing was inherited"),
    ] {
        let output =
            Command::new("env").args([variable, HANDOFF, "hold-fds", "--inherit", "--", "true"]).output();
        let stderr = text(&output.unwrap().stderr);
        assert!(stderr.contains(expected), "{variable}: {stderr}");
    }
}

#[test]
fn sockets_of_systemd_are_taken_with_their_names() {
    if !has_tool("systemd", Command::new("systemd-socket-activate").arg("--version")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (names, expected) in [(Some("http:admin"), ["http", "admin"]), (None, ["one", "4"])] {
        let paths = ["first", "second"].map(|name| dir.path().join(name).display().to_string());
        let mut command = Command::new("systemd-socket-activate");
        command.args(["-l", &paths[0], "-l", &paths[1]]);
        command.args(names.map(|names| format!("--fdname={names}")));
        command.args([HANDOFF, "hold-fds", "--inherit"]);
        if names.is_none() {
            // Without names they have their numbers, and can be called by their address.
            command.args(["--name", &format!("one={}", paths[0])]);
        }
        // It starts the program when the first client comes.
        let path = paths[0].clone();
        let knock = std::thread::spawn(move || {
            eventually("systemd-socket-activate listens", || UnixStream::connect(&path).is_ok());
        });
        let serving = Serving::start(command.args(python()).stderr(Stdio::null()));
        knock.join().unwrap();
        assert_eq!(serving.names(), expected);
        serving.expect_answers();
        for path in &paths {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn sockets_go_into_the_holder_of_s6_and_come_out_of_it() {
    if !has_tool("s6", Command::new("sh").args(["-c", "command -v s6-fdholder-list"])) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s").display().to_string();
    let rules = dir.path().join("rules");
    allow_everything(&rules.join("uid/default"));
    let mut holder = Command::new("s6-fdholder-daemon");
    holder.arg("-1").arg("-i").arg(&rules).arg(&socket);
    let mut holder = Killed(holder.stdout(Stdio::piped()).spawn().unwrap());
    // One newline says that it listens.
    holder.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();

    let listens = ["--listen", "http=127.0.0.1:0", "--listen", "dns=udp:127.0.0.1:0"];
    let stored = hold(&[&listens[..], &["--as", "s6", "--", "s6-fdholder-setdump", &socket]].concat());
    assert!(stored.status.success(), "{}", text(&stored.stderr));
    assert_eq!(said(Command::new("s6-fdholder-list").arg(&socket)), "http\ndns\n");
    let mut command = Command::new("s6-fdholder-getdump");
    let serving = Serving::start(command.args([&socket, HANDOFF, "hold-fds", "--inherit"]).args(python()));
    assert_eq!(serving.names(), ["http", "dns"]);
    serving.expect_answers();
}

fn allow_everything(rules: &Path) {
    std::fs::create_dir_all(rules.join("env")).unwrap();
    std::fs::write(rules.join("allow"), "").unwrap();
    for (variable, value) in [
        ("S6_FDHOLDER_GETDUMP", "1\n"),
        ("S6_FDHOLDER_SETDUMP", "1\n"),
        ("S6_FDHOLDER_LIST", "1\n"),
        ("S6_FDHOLDER_STORE_REGEX", "^\n"),
        ("S6_FDHOLDER_RETRIEVE_REGEX", "^\n"),
    ] {
        std::fs::write(rules.join("env").join(variable), value).unwrap();
    }
}

#[test]
fn sockets_of_start_server_are_taken_and_its_workers_find_ours() {
    if !has_tool("libserver-starter-perl", Command::new("start_server").arg("--version")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket").display().to_string();
    let mut command = Command::new("start_server");
    command.args([
        "--path",
        &path,
        "--",
        HANDOFF,
        "hold-fds",
        "--inherit",
        "--name",
        &format!("http={path}"),
    ]);
    // It stays the parent, and ends its worker when it is asked to end.
    let mut serving = Serving::start(command.args(python()).stderr(Stdio::null()));
    assert_eq!(serving.names(), ["http"]);
    serving.expect_answers();
    said(Command::new("kill").args(["-TERM", &serving.child.id().to_string()]));
    wait_for_exit(&mut serving.child);

    let worker =
        "use Server::Starter; my $p = Server::Starter::server_ports(); print join(' ', %$p), qq(\\n)";
    let shown = said(
        Command::new(HANDOFF)
            .args(["hold-fds", "--listen", "http=127.0.0.1:0", "--as", "server-starter", "--fd", "http=5"])
            .args(["--", "perl", "-e", worker]),
    );
    assert!(shown.starts_with("127.0.0.1:") && shown.ends_with(" 5\n"), "{shown}");
}

#[test]
fn gunicorn_serves_on_our_socket() {
    if !has_tool("gunicorn", Command::new("gunicorn").arg("--version")) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let app = "def app(environ, start):\n    start('200 OK', [])\n    return [b'from gunicorn']\n";
    std::fs::write(dir.path().join("app.py"), app).unwrap();
    let path = dir.path().join("socket");
    let mut command = Command::new(HANDOFF);
    command.args(["hold-fds", "--listen", &format!("http=unix:{}", path.display()), "--", "gunicorn"]);
    command
        .args(["--workers", "1", "--worker-tmp-dir"])
        .arg(dir.path())
        .arg("app:app")
        .current_dir(dir.path());
    let mut gunicorn = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // The socket is there before gunicorn is, and the queue holds the client until it accepts.
    eventually("the socket is bound", || path.exists());
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK") && answer.contains("from gunicorn"), "{answer}");
    // It ends its workers when it is asked to end.
    said(Command::new("kill").args(["-TERM", &gunicorn.0.id().to_string()]));
    wait_for_exit(&mut gunicorn.0);
}

#[test]
fn the_listenfd_crate_finds_our_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let (tcp, path) = (dir.path().join("port"), dir.path().join("socket"));
    let mut command = Command::new(HANDOFF);
    command.args(["hold-fds", "--listen", "first=127.0.0.1:0"]);
    command.args(["--listen", &format!("second=unix:{}", path.display()), "--", "sh", "-c"]);
    // The shell finds out the port from the dialect of start_server, and becomes the program.
    let script = "exec \"$1\" hold-fds --inherit --as server-starter --as listen-fds -- sh -c \
                  'echo \"$SERVER_STARTER_PORT\" >\"$2\"; exec \"$1\"' sh \"$3\" \"$2\"";
    command.args([script, "sh", HANDOFF]).arg(&tcp).arg(example("listenfd"));
    let mut program = Killed(command.spawn().unwrap());
    let mut port = String::new();
    eventually("the port is known", || {
        port = std::fs::read_to_string(&tcp).unwrap_or_default();
        port.ends_with('\n')
    });
    let address = port.split(['=', ';']).next().unwrap();
    let mut told = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut told).unwrap();
    UnixStream::connect(&path).unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "first\nsecond\n");
    assert!(wait_for_exit(&mut program.0).success());
}
