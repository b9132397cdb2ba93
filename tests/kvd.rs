//! `handoff kvd` as a process: what its clients and its operator see.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

use common::load::{Answer, Connection, Load, Plan};
use common::{HANDOFF, Kvd, command, eventually, has_redis_tools, run_to_end};

fn redis_cli(kvd: &Kvd, args: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &kvd.port()]).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn redis_cli_speaks_to_it() {
    if !has_redis_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(dir.path(), &["--version-label", "v7"]);
    for (args, answer) in [
        (&["PING"][..], "PONG"),
        (&["SET", "a", "some text"], "OK"),
        (&["GET", "a"], "some text"),
        (&["INCR", "n"], "1"),
        (&["MSET", "x", "1", "y", "2"], "OK"),
        (&["MGET", "x", "y", "z"], "1\n2"),
        (&["EXISTS", "a", "z"], "1"),
        (&["DEL", "a", "z"], "1"),
        (&["DBSIZE"], "3"),
        (&["CONFIG", "GET", "maxclients"], "maxclients\n10000"),
    ] {
        assert_eq!(redis_cli(&kvd, args), answer, "{args:?}");
    }
    let info = redis_cli(&kvd, &["INFO"]);
    for field in ["build_id:v7", "revision:5", "role:cold start", &format!("pid:{}", kvd.child.id())] {
        assert!(info.lines().any(|line| line.trim_end() == field), "{field} is not in {info}");
    }
    assert!(redis_cli(&kvd, &["COMMAND"]).contains("mget"));
    let mut scanned: Vec<_> = redis_cli(&kvd, &["--scan"]).lines().map(str::to_owned).collect();
    scanned.sort();
    assert_eq!(scanned, ["n", "x", "y"]);
}

#[test]
fn a_shutdown_ends_it_in_order_and_the_data_is_there_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(dir.path(), &[]);
    kvd.call(&["SET", "a", "1"]);
    let mut client = kvd.connect();
    client.send(&["SHUTDOWN"]).unwrap();
    assert!(client.answer().is_err(), "there is no answer");
    assert_eq!(kvd.wait().code(), Some(0));
    let kvd = Kvd::start(dir.path(), &[]);
    assert_eq!(kvd.call(&["GET", "a"]), Answer::Bulk(Some(b"1".into())));
}

fn redis_benchmark(kvd: &Kvd, args: &[&str]) -> Output {
    Command::new("redis-benchmark").args(["-q", "-p", &kvd.port()]).args(args).output().unwrap()
}

#[test]
fn redis_benchmark_finishes_without_an_error() {
    if !has_redis_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(dir.path(), &[]);
    for args in [
        &["-t", "ping,set,get,incr,mset", "-n", "20000", "-P", "16", "-c", "50"][..],
        &["-t", "set,get", "-n", "3000", "-k", "0", "-c", "50"],
        &["-t", "set", "-n", "2000", "-r", "1000", "-d", "10000", "-c", "20"],
    ] {
        let output = redis_benchmark(&kvd, args);
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        assert!(!said.contains("rror from server") && !said.contains("onnection reset"), "{args:?}: {said}");
    }
}

#[test]
fn every_acknowledged_write_is_there_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    for (round, keep_alive) in [false, true, false, true].into_iter().enumerate() {
        // A small limit, so that the kill also meets compactions.
        let kvd = Kvd::start(dir.path(), &["--compact-from", "20000"]);
        let prefix = format!("round{round}");
        let load = Load::start(&Plan { keep_alive, prefix, ..Plan::new(kvd.addr, 20) }).unwrap();
        eventually("some writes", || load.counts().acknowledged > 2000);
        kvd.kill();
        let ledger = load.stop();
        let kvd = Kvd::start(dir.path(), &[]);
        let found = ledger.read_back(kvd.addr).unwrap();
        assert_eq!(found.lost, 0, "{found}");
        assert!(found.checked > 2000, "{found}");
    }
}

#[test]
fn sigterm_answers_what_has_arrived_and_exits_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(dir.path(), &[]);
    let mut client = TcpStream::connect(kvd.addr).unwrap();
    client.write_all(b"PING\r\n").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    client.write_all(&b"INCR n\r\n".repeat(5000)).unwrap();
    kvd.signal("TERM");
    let mut answers = String::new();
    client.read_to_string(&mut answers).expect("it ends in order");
    assert_eq!(answers, (1..=5000).map(|i| format!(":{i}\r\n")).collect::<String>());
    drop(client);
    assert_eq!(kvd.wait().code(), Some(0));
}

fn log_of(dir: &Path) -> std::path::PathBuf {
    dir.join("kv.log")
}

#[test]
fn a_damaged_log_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(dir.path(), &[]);
    for i in 0..20 {
        kvd.call(&["SET", &format!("k{i}"), "value"]);
    }
    kvd.kill();
    let mut bytes = fs::read(log_of(dir.path())).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(log_of(dir.path()), &bytes).unwrap();
    let (code, said) = run_to_end(command(dir.path(), &[]));
    assert_eq!(code, 6, "{said}");
    assert!(said.starts_with("handoff kvd: fatal: unable to open the data: "), "{said}");
    assert!(said.contains(&format!("{} is damaged at byte ", log_of(dir.path()).display())), "{said}");
    let offset: usize = said.split("at byte ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!((1..=middle).contains(&offset) && offset + 100 > middle, "{said}");
    assert_eq!(fs::read(log_of(dir.path())).unwrap(), bytes);
}

#[test]
fn a_torn_end_is_cut_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(dir.path(), &[]);
    kvd.call(&["SET", "a", "1"]);
    kvd.call(&["SET", "a", "2"]);
    kvd.kill();
    let bytes = fs::read(log_of(dir.path())).unwrap();
    fs::write(log_of(dir.path()), &bytes[..bytes.len() - 3]).unwrap();
    let kvd = Kvd::start(dir.path(), &[]);
    kvd.stderr.wait_for("cut an incomplete last record");
    assert_eq!(kvd.call(&["GET", "a"]), Answer::Bulk(Some(b"1".into())));
}

#[test]
fn five_thousand_clients_are_served() {
    let count = 5000;
    let allowed = handoff::sys::reactor::allow_open_files(count + 100).unwrap();
    if allowed < count + 100 {
        eprintln!("skipped: needs {count} open files, and {allowed} are allowed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(dir.path(), &[]);
    let mut clients: Vec<Connection> = (0..count).map(|_| kvd.connect()).collect();
    for client in &mut clients {
        client.send(&["INCR", "n"]).unwrap();
    }
    let mut seen: Vec<i64> = clients
        .iter_mut()
        .map(|client| match client.answer().unwrap() {
            Answer::Integer(n) => n,
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=count as i64), "each increment was done once");
    kvd.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.answer().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }
    drop(clients);
    assert_eq!(kvd.wait().code(), Some(0));
}

#[test]
fn a_write_that_the_disk_refuses_is_not_acknowledged_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // A limit on the file's length stands in for a full disk: write(2) fails after a part.
    let mut shell = Command::new("bash");
    let limit = "trap '' XFSZ; ulimit -f 64; exec \"$0\" kvd --listen 127.0.0.1:0 --data-dir \"$1\"";
    shell.args(["-c", limit, HANDOFF]).arg(dir.path());
    let kvd = Kvd::spawn(shell);
    assert_eq!(kvd.call(&["SET", "small", "1"]), Answer::Simple("OK".into()));
    let big = "x".repeat(100_000);
    assert!(kvd.connect().call(&["SET", "big", &big]).is_err(), "closed without an answer");
    kvd.stderr.wait_for("unable to write kv.log");
    assert_eq!(kvd.call(&["GET", "big"]), Answer::Bulk(None));
    assert_eq!(kvd.call(&["GET", "small"]), Answer::Bulk(Some(b"1".into())));
    match kvd.call(&["SET", "small", "2"]) {
        Answer::Error(said) => assert!(said.starts_with("MISCONF unable to write kv.log"), "{said}"),
        other => panic!("{other:?}"),
    }
    eventually("writes to be taken again", || {
        kvd.call(&["SET", "small", "3"]) == Answer::Simple("OK".into())
    });
    kvd.kill();
    let kvd = Kvd::start(dir.path(), &[]);
    assert_eq!(
        kvd.call(&["MGET", "small", "big"]),
        Answer::Array(vec![Answer::Bulk(Some(b"3".into())), Answer::Bulk(None)])
    );
}

#[test]
fn descriptor_exhaustion_delays_clients_and_refuses_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("bash");
    let limit = "ulimit -n 64; exec \"$0\" kvd --listen 127.0.0.1:0 --data-dir \"$1\"";
    shell.args(["-c", limit, HANDOFF]).arg(dir.path());
    let kvd = Kvd::spawn(shell);
    let mut held: Vec<Connection> = (0..100).map(|_| kvd.connect()).collect();
    kvd.stderr.wait_for("leaving connections in the queue");
    let mut late = held.pop().unwrap();
    late.send(&["PING"]).unwrap();
    drop(held);
    assert_eq!(late.answer().unwrap(), Answer::Simple("PONG".into()));
}

#[test]
fn an_address_in_use_is_a_failure_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut second = Command::new(HANDOFF);
    second.args(["kvd", "--listen", &taken.local_addr().unwrap().to_string(), "--data-dir"]).arg(dir.path());
    let (code, said) = run_to_end(second);
    assert_eq!(code, 111);
    assert!(said.starts_with("handoff kvd: fatal: unable to listen on 127.0.0.1:"), "{said}");
    assert!(said.lines().count() == 1 && said.contains("Address already in use"), "{said}");
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for args in
        [&["kvd"][..], &["kvd", "--nope"], &["nope"], &["kvd", "--data-dir", "x", "--fail", "nope"], &[]]
    {
        let mut wrong = Command::new(HANDOFF);
        wrong.args(args).env_remove("HANDOFF_DATA_DIR");
        assert_eq!(run_to_end(wrong).0, 100, "{args:?}");
    }
    let output = Command::new(HANDOFF).args(["kvd", "-h"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("--fail"), "it is in the long help only");
}

#[test]
fn a_peer_that_never_reads_does_not_make_it_grow_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(dir.path(), &[]);
    let value = "v".repeat(1 << 20);
    kvd.call(&["SET", "big", &value]);
    let before = resident_kib(kvd.child.id());
    let mut greedy = kvd.connect();
    greedy.send_bytes(&b"GET big\r\n".repeat(2000)).unwrap();
    // Its answers are two gigabytes; what others see shows that its requests have been looked at.
    for _ in 0..100 {
        assert_eq!(kvd.call(&["GET", "big"]), Answer::Bulk(Some(value.clone().into_bytes())));
    }
    let grown = resident_kib(kvd.child.id()).saturating_sub(before);
    assert!(grown < 64 * 1024, "it has grown by {grown} KiB");
    assert_eq!(greedy.answer().unwrap(), Answer::Bulk(Some(value.into_bytes())));
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
