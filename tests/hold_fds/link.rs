//! The link: each kind of socket is served by the program that follows, and what is wrong is said.

use std::path::Path;
use std::process::Command;

use crate::common::{HANDOFF, Kvd, eventually, load, run_to_end};
use crate::{Serving, client, hold, python, said, text};

#[test]
fn the_next_program_finds_its_sockets_in_order_from_three_on() {
    let dir = tempfile::tempdir().unwrap();
    let admin = format!("admin=unix:{}", dir.path().join("admin").display());
    let script =
        "echo $LISTEN_FDS $LISTEN_FDNAMES; [ $LISTEN_PID = $$ ] && readlink /proc/$$/fd/3 /proc/$$/fd/4";
    let output = hold(&["--listen", "http=127.0.0.1:0", "--listen", &admin, "--", "sh", "-c", script]);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "2 http:admin", "{said}{}", text(&output.stderr));
    assert!(lines[1].starts_with("socket:") && lines[2].starts_with("socket:"), "{said}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_cold_start_chain_serves_and_the_same_words_start_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let kvd = Kvd::spawn(cold_start(&data));
    assert_eq!(kvd.call(&["PING"]), load::Answer::Simple("PONG".to_owned()));
    // The incumbent has the port: nothing is bound, and the next program gets a copy of its socket.
    let control = data.join("control");
    let listen = format!("resp={}", kvd.addr);
    let script = "echo $LISTEN_FDNAMES; ls -l /proc/$$/fd | grep -c socket:";
    let words = ["--from-incumbent", "--control", control.to_str().unwrap(), "--listen", &listen];
    let output = hold(&[&words[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(text(&output.stdout), "resp\n1\n", "{}", text(&output.stderr));
    // Without it the port is taken, and it is said by whom.
    let output = hold(&["--listen", &listen, "--", "true"]);
    assert_eq!(output.status.code(), Some(111));
    let expected = format!("taken by pid {}", kvd.child.id());
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
}

/// Binds, locks, becomes the daemon: each with the pid that was started.
fn cold_start(data: &Path) -> Command {
    let mut command = Command::new(HANDOFF);
    command.args(["hold-fds", "--listen", "resp=127.0.0.1:0", "--", HANDOFF, "lock"]).arg(data);
    command.args([HANDOFF, "kvd", "--data-dir"]).arg(data);
    command
}

#[test]
fn where_no_incumbent_answers_the_sockets_are_bound_if_it_is_known_where() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let from = ["--from-incumbent", "--control", control.to_str().unwrap()];
    let output =
        hold(&[&from[..], &["--listen", "a=127.0.0.1:0", "--", "sh", "-c", "echo $LISTEN_FDNAMES"]].concat());
    assert_eq!(text(&output.stdout), "a\n", "{}", text(&output.stderr));
    let output = hold(&[&from[..], &["--", "true"]].concat());
    assert_eq!(output.status.code(), Some(111));
    assert!(text(&output.stderr).contains("is the daemon running"), "{}", text(&output.stderr));
}

#[test]
fn what_is_wrong_is_one_line_and_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let nowhere = format!("a={}", dir.path().join("none/socket").display());
    for (words, code, expected) in [
        (&["--listen", "a=127.0.0.1:0"][..], 100, "a program must follow"),
        (&["--", "touch"], 100, "give --listen NAME=ADDRESS"),
        (&["--inherit", "--", "touch"], 100, "nothing was inherited"),
        (&["--from-incumbent", "--", "touch"], 100, "HANDOFF_CONTROL"),
        (&["--listen", "a=127.0.0.1:x", "--", "touch"], 100, "is no port"),
        (&["--listen", &nowhere, "--", "touch"], 111, "make it first"),
        (&["--listen", "a=@x", "--listen", "a=@y", "--", "touch"], 100, "two listeners are called a"),
        (&["--listen", "a=127.0.0.1:0", "--", "handoff-no-such-program"], 127, "handoff-no-such-program"),
    ] {
        let mut command = Command::new(HANDOFF);
        let touched = words.contains(&"touch").then_some(&mark);
        command
            .arg("hold-fds")
            .args(words)
            .args(touched)
            .env_remove("HANDOFF_CONTROL")
            .env_remove("HANDOFF_DATA_DIR");
        let (found, said) = run_to_end(command);
        assert_eq!(found, code, "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {said}");
        assert!(!mark.exists());
    }
}

#[test]
fn every_kind_of_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let name = format!("@handoff-test-{}", std::process::id());
    let listens = [
        "four=tcp4:127.0.0.1:0".to_owned(),
        "both=tcp::0".to_owned(),
        "local=localhost:0,backlog=7,keepalive,nodelay,rcvbuf=64k".to_owned(),
        "packets=udp:127.0.0.1:0".to_owned(),
        format!("stream=unix:{},mode=600", at("stream")),
        format!("ordered=seqpacket:{}", at("ordered")),
        format!("datagrams=datagram:{}", at("datagrams")),
        format!("abstract=unix:{name}"),
    ];
    let mut words: Vec<&str> = listens.iter().flat_map(|listen| ["--listen", listen]).collect();
    let six = std::net::TcpListener::bind("[::1]:0").is_ok();
    if six {
        words.extend(["--listen", "six=tcp6:localhost:0"]);
    }
    let serving = Serving::start(Command::new(HANDOFF).arg("hold-fds").args(words).args(python()));
    serving.expect_answers();
    assert_eq!(serving.sockets.len(), listens.len() + usize::from(six));
    let of = |wanted: &str| serving.sockets.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
    let client::Address::Inet(both) = of("both") else { panic!("an address and a port") };
    for host in ["127.0.0.1", "::1"] {
        if host != "::1" || six {
            let address =
                client::Address::Inet((host.parse::<std::net::IpAddr>().unwrap(), both.port()).into());
            assert_eq!(client::ask(&address, "x").unwrap(), "both x", "IPv4 and IPv6 on one socket");
        }
    }
}

#[test]
fn five_hundred_sockets_pass_through_two_links() {
    let words: Vec<String> =
        (0..500).flat_map(|i| ["--listen".to_owned(), format!("a{i}=127.0.0.1:0")]).collect();
    let mut command = Command::new(HANDOFF);
    command.arg("hold-fds").args(&words).args(["--", HANDOFF, "hold-fds", "--inherit", "--"]);
    let script = "echo $LISTEN_FDS; ls -l /proc/$$/fd | grep -c socket:";
    assert_eq!(said(command.args(["sh", "-c", script])), "500\n500\n");
}

#[test]
fn sockets_are_placed_where_they_are_wanted_and_others_descriptors_stay() {
    let listens = ["--listen", "a=127.0.0.1:0", "--listen", "b=127.0.0.1:0", "--listen", "c=127.0.0.1:0"];
    let show = "echo $LISTEN_FDS $LISTEN_FDNAMES; for n in 0 3 4 8 9; do readlink /proc/$$/fd/$n; done; :";
    let run = |words: &[&str], redirected: &str| {
        let script = format!("exec {redirected} \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", HANDOFF, "hold-fds"]).args(listens).args(words);
        let lines = said(command.args(["--", HANDOFF, "hold-fds", "--inherit", "--", "sh", "-c", show]));
        let kind = |line: &str| line.split_once(":[").map_or(line, |(kind, _)| kind).to_owned();
        lines.lines().map(kind).collect::<Vec<_>>()
    };
    assert_eq!(run(&["--stdin", "b"], ""), ["2 a:c", "socket", "socket", "socket"]);
    let placed = run(&["--fd", "c=8"], "9</dev/full");
    assert_eq!(placed, ["2 a:b", "/dev/null", "socket", "socket", "socket", "/dev/full"]);
    // LISTEN_FDS cannot be spoken where somebody else's descriptor is at 4, and that one stays.
    let kept = run(&["--fd", "c=8"], "4</dev/full 2>/dev/null");
    assert_eq!(kept[..2], ["", "/dev/null"]);
    assert!(kept.contains(&"/dev/full".to_owned()), "{kept:?}");
}

#[test]
fn a_place_that_is_none_is_refused_before_anything_is_bound() {
    for (words, expected) in [
        (&["--fd", "a=1"][..], "use 0, or 3 and more"),
        (&["--fd", "a=x"], "is no descriptor"),
        (&["--fd", "b=10"], "unable to find a listener b: there are a"),
        (&["--fd", "a=10", "--stdin", "a"], "a has a place already"),
        (&["--only", "b"], "unable to find a listener b: there are a"),
        (&["--as", "ngnx"], "possible values: listen-fds, server-starter, einhorn, s6, nginx"),
        (&["--name", "b=c"], "there is no listener c to be called b"),
    ] {
        let output = hold(&[&["--listen", "a=127.0.0.1:0"], words, &["--", "true"]].concat());
        assert_eq!(output.status.code(), Some(100), "{words:?}");
        assert!(text(&output.stderr).contains(expected), "{words:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_descriptor_that_was_closed_or_replaced_on_the_way_is_named_with_who_may_have_done_it() {
    for (redirection, expected) in [("3<&-", "it is closed"), ("3</dev/null", "closed and used again")] {
        let script = format!("exec {redirection} {HANDOFF} hold-fds --inherit -- true");
        let output = hold(&["--listen", "http=127.0.0.1:0", "--", "sh", "-c", &script]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(111), "{stderr}");
        assert!(stderr.contains("descriptor 3 (listener.http)") && stderr.contains(expected), "{stderr}");
        assert!(stderr.contains("sudo") && stderr.contains("closefrom"), "{stderr}");
    }
}

#[test]
fn what_is_inherited_must_listen() {
    let script = format!(
        "exec env -u HANDOFF_FDS LISTEN_PID=$$ LISTEN_FDS=1 {HANDOFF} hold-fds --inherit -- true 3</dev/null"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(111));
    assert!(
        text(&output.stderr).contains("should be a listening socket and is no socket"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn variables_that_are_for_another_process_are_neither_believed_nor_passed_on() {
    let script = format!("env -u HANDOFF_FDS {HANDOFF} hold-fds --inherit -- true; echo $?");
    let output = hold(&["--listen", "http=127.0.0.1:0", "--", "sh", "-c", &script]);
    assert_eq!(text(&output.stdout), "100\n");
    assert!(text(&output.stderr).contains("a shell without exec"), "{}", text(&output.stderr));
    let script = format!("{HANDOFF} hold-fds --inherit -- env | grep -c LISTEN_PID=$$");
    let output = hold(&["--listen", "http=127.0.0.1:0", "--", "sh", "-c", &script]);
    assert_eq!(text(&output.stdout), "0\n", "{}", text(&output.stderr));
}

#[test]
fn a_path_that_a_killed_daemon_left_is_taken_over_and_that_of_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("a=unix:{}", path.display());
    let start =
        || Serving::start(Command::new(HANDOFF).args(["hold-fds", "--listen", &listen]).args(python()));
    let first = start();
    let output = hold(&["--listen", &listen, "--", "true"]);
    assert_eq!(output.status.code(), Some(111));
    let expected = format!("taken by pid {}", first.child.id());
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
    drop(first);
    eventually("the path is taken over", || hold(&["--listen", &listen, "--", "true"]).status.success());
    let second = start();
    second.expect_answers();
    assert_eq!(second.names(), ["a"]);
}
