//! A successor as a process: started with sockets in a session of its own, and killed with everything that it started.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use handoff::sys::process::{PidFd, ProcessId, Signal};
use handoff::sys::queue::accept_queue;
use handoff::sys::spawn::{Image, Program, Spawn};
use handoff::sys::tree::{Killed, Tree, kill};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Starts a shell script that leads a session and has the listener at 3.
fn start(script: &str, listener: &TcpListener) -> (Child, BufReader<PipeReader>) {
    let shell = Program::open(Path::new("/bin/sh")).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let image = Image {
        args: ["-c", script].map(OsString::from).to_vec(),
        fds: vec![(3, listener.as_fd())],
        listen_pid: true,
        ..Image::new(&shell)
    };
    let spawn = Spawn { new_session: true, stdout: Some(writer.as_fd()), ..Spawn::new(image) };
    (spawn.spawn().unwrap(), BufReader::new(reader))
}

fn number(reader: &mut impl BufRead) -> u32 {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_helper_that_outlives_the_successor_and_ignores_signals_dies_with_its_session() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut successor, mut output) = start("trap '' TERM HUP; sleep 600 & echo $!", &listener);
    let pidfd = PidFd::open(successor.id()).unwrap();
    let helper = ProcessId::of(number(&mut output)).unwrap();
    successor.wait().unwrap();
    PidFd::open(helper.pid).unwrap().signal(Signal::SIGTERM).unwrap();
    assert!(helper.is_alive(), "it has a copy of the listener and could go on for ever");

    let killed = kill(Some(&pidfd), &Tree::Session { sid: successor.id() }, soon()).unwrap();
    assert_eq!(killed, Killed::default());
    assert!(!helper.is_alive());
}

#[test]
fn a_hung_successor_is_killed_and_the_clients_in_the_queue_are_still_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut successor, mut output) = start("echo $LISTEN_PID; kill -STOP $$", &listener);
    assert_eq!(number(&mut output), successor.id());
    let mut clients = [(); 3].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());

    let pidfd = PidFd::open(successor.id()).unwrap();
    let killed = kill(Some(&pidfd), &Tree::Session { sid: successor.id() }, soon()).unwrap();
    assert_eq!(killed, Killed::default());
    successor.wait().unwrap();
    assert_eq!(accept_queue(listener.as_fd()).unwrap().unwrap().len, 3);
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn a_thousand_starts_leave_no_descriptor_and_no_zombie_behind() {
    let program = Program::open(Path::new("true")).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let before = open();
    for _ in 0..1000 {
        let image = Image { fds: vec![(3, listener.as_fd()), (4, listener.as_fd())], ..Image::new(&program) };
        assert!(Spawn::new(image).spawn().unwrap().wait().unwrap().success());
    }
    // The other tests of this file have a few of their own, coming and going.
    assert!(open() < before + 100, "{} descriptors", open());
    let zombies = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(zombies.trim(), "");
}
