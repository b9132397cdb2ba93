//! A chain whose successor a supervisor starts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::rig::Rig;

const WARM: &str =
    "exec handoff exec-successor --warm --via $TRIGGER kvd-v2 -- handoff drain -- handoff commit";
const WAIT: &str = "exec handoff drain -- handoff exec-successor --wait --via $TRIGGER kvd-v2";

/// One that is asked and answers with what it is told to, to as many as come.
fn supervisor_that(path: &Path, answers: impl Fn(UnixStream, String) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            answers(stream, request);
        }
    });
}

fn expect_refusal(what: &str, answers: impl Fn(UnixStream, String) + Send + 'static) {
    let rig = Rig::start(&[]);
    let trigger = rig.path("trigger");
    supervisor_that(&trigger, answers);
    for line in [WARM, WAIT] {
        let said = rig.expect_with(line, &[("TRIGGER", trigger.to_str().unwrap())], 3);
        assert!(said.contains(&format!("the supervisor at {}", trigger.display())), "{said}");
        assert!(said.contains(what), "{said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_supervisor_that_refuses_is_named_with_its_reason() {
    expect_refusal("it is a holiday", |mut stream, request| {
        assert!(request.contains("\"type\":\"spawn\"") && request.contains("/kvd-v2\""), "{request}");
        stream.write_all(b"{\"type\":\"refused\",\"reason\":\"it is a holiday\"}\n").unwrap();
    });
}

#[test]
fn a_supervisor_that_goes_away_before_it_answers_is_a_rollback() {
    expect_refusal("", |stream, _| drop(stream));
}

#[test]
fn a_supervisor_that_names_a_successor_and_gives_none_is_a_rollback() {
    expect_refusal("pidfd", |mut stream, _| {
        let process = "{\"pid\":1,\"start_ticks\":1,\"boot_id\":\"b\"}";
        let answer = format!("{{\"type\":\"spawned\",\"process\":{process},\"tree\":\"lone\"}}\n");
        stream.write_all(answer.as_bytes()).unwrap();
    });
}

#[test]
fn a_supervisor_that_says_nothing_does_not_hold_the_daemon_up_for_long() {
    let kept = std::sync::Mutex::new(vec![]);
    expect_refusal("successor to be started", move |stream, _| kept.lock().unwrap().push(stream));
}

#[test]
fn where_no_supervisor_is_nothing_is_begun_and_it_is_said_what_to_look_at() {
    let rig = Rig::start(&[]);
    for line in [WARM, WAIT] {
        let said = rig.expect_with(line, &[("TRIGGER", "/nowhere/trigger")], 3);
        assert!(said.contains("/nowhere/trigger") && said.contains("is the supervisor running"), "{said}");
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn in_place_nobody_can_start_it() {
    let rig = Rig::start(&[]);
    let before = rig.status().unwrap().generation;
    for line in
        ["handoff exec-successor --via t kvd-v2", "handoff drain -- handoff exec-successor --via t kvd-v2"]
    {
        let said = rig.expect(line, 100);
        assert!(said.contains("--via needs --warm or --wait"), "{said}");
    }
    // It was found before the drain.
    assert_eq!(rig.status().unwrap().generation, before);
    rig.expect_undone();
    rig.expect_clean();
}
