//! How a daemon gets its sockets.

use crate::rig::{Rig, python, spec, words};

/// Answers with its arguments and a variable, on the descriptor that its first argument names.
const ANSWER: &str = "
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    client, _ = listener.accept()
    if client.recv(100):
        client.sendall((' '.join(sys.argv[1:]) + ' ' + os.environ.get('TOLD', '-') + ' ' + os.environ.get('LISTEN_FDS', '-')).encode())
    client.close()
";

fn answer(options: &[&str], args: &[&str]) -> (String, Rig) {
    let mut daemon = vec!["exactly", python(), "-c", ANSWER];
    daemon.extend(args);
    let rig = Rig::start(options, &daemon);
    (rig.ask(), rig)
}

#[test]
fn a_socket_is_at_the_number_that_was_asked_for() {
    assert_eq!(answer(&["--fd", "web=7", "--no-listen-fds"], &["{web}"]).0, "7 - -");
    assert_eq!(answer(&["--fd", "web=7"], &["{web}"]).0, "7 - 1");
    assert_eq!(answer(&["--no-listen-fds"], &["{web}"]).0, "3 - -");
    assert_eq!(answer(&["--no-listen-fds", "--stdin", "web"], &["0"]).0, "0 - -");
}

#[test]
fn arguments_and_variables_say_where_a_socket_is() {
    let (said, rig) =
        answer(&["--env", "TOLD={web};{web.port}"], &["{web}", "{web.addr}", "{web.host}", "{other}"]);
    let port = rig.address.rsplit(':').next().unwrap();
    assert_eq!(said, format!("3 127.0.0.1:{port} 127.0.0.1 {{other}} 3;{port} 1"));
}

#[test]
fn a_name_that_is_no_sockets_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--listen", "web=127.0.0.1:0", "--fd", "wbe=5"];
    let output = crate::rig::handoff().args(words(dir.path(), &spec(&options, &["v1"]))).output().unwrap();
    assert_eq!(output.status.code(), Some(100));
    assert!(crate::rig::said(&output).contains("there is no listener wbe: there are web"));
}
