//! What clients see of a drain, a seal and a resume: the server in this process, over real sockets.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use handoff::sys::reactor;
use handoff::{DrainReport, SealReport};

use super::data::Settings;
use super::log::{Frame, Writer};
use super::server::{self, Config, Handle, Identity};
use super::store::{Record, Warm};
use crate::load::{Answer, Connection, Load, Plan};

/// Long enough for any machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    handle: Handle,
    /// Another copy of the listener, as a successor or a holder has it.
    _held: TcpListener,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = reactor::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let (held, addr) = (listener.try_clone().unwrap(), listener.local_addr().unwrap());
        let config = Config {
            settings: Settings { dir: dir.path().into(), compact_from: 1 << 16, max_memory: 1 << 30 },
            identity: Identity { build_id: "test".into(), role: "cold start" },
            max_clients: 1000,
            loses_a_write: false,
            on_shutdown: Box::new(|| {}),
        };
        let opened = Warm::open(dir.path(), Some(1)).unwrap().finish().unwrap();
        let on_end = |e| eprintln!("the event loop has ended: {e}");
        let handle = server::start(opened, false, vec![listener], config, on_end).unwrap();
        handle.accept(1).unwrap();
        Self { handle, _held: held, addr, dir }
    }

    fn connect(&self) -> Connection {
        Connection::open(self.addr, PATIENCE).unwrap()
    }

    /// Connects and makes sure that the server has the connection.
    fn connect_and_ping(&self) -> Connection {
        let mut connection = self.connect();
        assert_eq!(connection.call(&["PING"]).unwrap(), Answer::Simple("PONG".into()));
        connection
    }

    /// Connects without a protocol; the server has the connection, and an answer has been read.
    fn accepted_stream(&self) -> TcpStream {
        let mut stream = self.stream();
        stream.write_all(b"PING\r\n").unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
        stream
    }

    fn stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn drain(&self) -> DrainReport {
        self.handle.drain(Instant::now() + PATIENCE).unwrap()
    }

    fn drain_and_seal(&self) -> SealReport {
        assert_eq!(self.drain(), DrainReport { open_conns_remaining: 0, accept_closed: true });
        self.handle.seal().unwrap()
    }
}

/// Reads to the end of file, and fails if the connection is reset before.
fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the connection ends in order");
    text
}

#[test]
fn every_request_that_arrived_is_answered_before_the_end_of_file() {
    let rig = Rig::start();
    let mut client = rig.accepted_stream();
    let count = 20_000;
    let requests: String = (0..count).map(|i| format!("SET k{i} {i}\r\n")).collect();
    client.write_all(requests.as_bytes()).unwrap();
    rig.drain_and_seal();
    assert_eq!(read_to_end(&mut client), "+OK\r\n".repeat(count));
    let state = Warm::open(rig.dir.path(), None).unwrap().finish().unwrap().state;
    assert_eq!(state.len(), count);
}

#[test]
fn a_request_that_comes_after_the_last_answer_destroys_no_answer_and_is_not_done() {
    let rig = Rig::start();
    let mut client = rig.accepted_stream();
    client.write_all(b"SET a 1\r\n").unwrap();
    rig.drain_and_seal();
    client.write_all(b"SET a 2\r\n").unwrap();
    assert_eq!(read_to_end(&mut client), "+OK\r\n");
    rig.handle.resume().unwrap();
    assert_eq!(rig.connect().call(&["GET", "a"]).unwrap(), Answer::Bulk(Some(b"1".into())));
}

#[test]
fn a_connection_that_has_just_been_made_gets_its_first_answer() {
    let rig = Rig::start();
    for _ in 0..20 {
        let mut client = rig.connect();
        let drained = std::thread::scope(|scope| {
            let drain = scope.spawn(|| rig.drain());
            // In the queue, or accepted and silent, or never accepted: answered in each case.
            client.send(&["PING"]).unwrap();
            drain.join().unwrap()
        });
        assert_eq!(drained.open_conns_remaining, 0);
        rig.handle.resume().unwrap();
        assert_eq!(client.answer().unwrap(), Answer::Simple("PONG".into()));
    }
}

#[test]
fn a_first_request_is_waited_for_longer_than_the_rest_of_one() {
    let rig = Rig::start();
    let mut half = rig.stream();
    half.write_all(b"PING\r\n*2\r\n$3\r\nGET\r\n").unwrap();
    let mut pong = [0; 7];
    half.read_exact(&mut pong).unwrap();
    let mut slow = rig.connect();
    // It is behind the slow one in the queue, so that one has been accepted as well.
    let _last = rig.connect_and_ping();
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| rig.drain());
        assert_eq!(read_to_end(&mut half), "");
        slow.send(&["PING"]).unwrap();
        assert_eq!(slow.answer().unwrap(), Answer::Simple("PONG".into()));
        assert_eq!(drain.join().unwrap().open_conns_remaining, 0);
    });
}

#[test]
fn silent_and_half_sent_requests_are_waited_for_a_moment_and_then_closed_in_order() {
    let rig = Rig::start();
    let _pinged = rig.connect_and_ping();
    let mut half = rig.stream();
    half.write_all(b"PING\r\n*2\r\n$3\r\nGET\r\n").unwrap();
    let mut pong = [0; 7];
    half.read_exact(&mut pong).unwrap();
    let mut silent = rig.stream();
    // It is behind the silent one in the queue, so that one has been accepted as well.
    let _last = rig.connect_and_ping();
    assert_eq!(rig.drain().open_conns_remaining, 0);
    assert_eq!(read_to_end(&mut silent), "");
    assert_eq!(read_to_end(&mut half), "");
}

#[test]
fn connections_that_come_during_a_handoff_wait_in_the_queue() {
    let rig = Rig::start();
    rig.drain_and_seal();
    let mut client = rig.connect();
    client.send(&["PING"]).unwrap();
    assert_eq!(rig.handle.snapshot().open_conns, 0);
    rig.handle.resume().unwrap();
    assert_eq!(client.answer().unwrap(), Answer::Simple("PONG".into()));
}

#[test]
fn what_cannot_be_finished_is_counted_at_the_deadline_and_served_after_a_resume() {
    let rig = Rig::start();
    let mut writer = rig.connect_and_ping();
    let value = "v".repeat(4 << 20);
    assert_eq!(writer.call(&["SET", "big", &value]).unwrap(), Answer::Simple("OK".into()));
    // Far more answers than the sockets can buffer, and nobody reads them yet.
    let mut slow = rig.connect_and_ping();
    let count = 16;
    slow.send_bytes("GET big\r\n".repeat(count).as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(100);
    let report = rig.handle.drain(deadline).unwrap();
    assert!(Instant::now() >= deadline);
    assert_eq!(report.open_conns_remaining, 1);
    rig.handle.seal().unwrap();
    rig.handle.resume().unwrap();
    for _ in 0..count {
        assert_eq!(slow.answer().unwrap(), Answer::Bulk(Some(value.clone().into_bytes())));
    }
}

#[test]
fn an_interrupt_ends_a_drain_early() {
    let rig = Rig::start();
    let mut slow = rig.connect_and_ping();
    assert_eq!(
        rig.connect().call(&["SET", "big", &"v".repeat(4 << 20)]).unwrap(),
        Answer::Simple("OK".into())
    );
    slow.send_bytes("GET big\r\n".repeat(16).as_bytes()).unwrap();
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| rig.handle.drain(Instant::now() + PATIENCE * 10).unwrap());
        // An interrupt is kept until the resume, so it does not matter which comes first.
        rig.handle.interrupt();
        assert_eq!(drain.join().unwrap().open_conns_remaining, 1);
    });
    rig.handle.resume().unwrap();
    rig.connect_and_ping();
}

#[test]
fn what_is_sealed_is_what_a_successor_reads() {
    let rig = Rig::start();
    let mut client = rig.connect();
    for i in 0..100 {
        client.call(&["INCR", &format!("k{}", i % 7)]).unwrap();
    }
    let warm = Warm::open(rig.dir.path(), None).unwrap();
    client.call(&["SET", "last", "1"]).unwrap();
    let sealed = rig.drain_and_seal();
    let opened = warm.finish().unwrap();
    assert_eq!(sealed.last_revision_per_shard, [101]);
    assert_eq!(opened.state.revisions(), sealed.last_revision_per_shard);
    assert_eq!(opened.writer.position().fingerprint(), sealed.data_dir_fingerprint);
    assert_eq!(rig.handle.snapshot().last_revision_per_shard, [101]);
}

#[test]
fn a_resume_serves_what_a_successor_on_trial_has_written() {
    let rig = Rig::start();
    rig.connect().call(&["SET", "a", "1"]).unwrap();
    rig.drain_and_seal();
    let mut trial: Writer = Warm::open(rig.dir.path(), None).unwrap().finish().unwrap().writer;
    let mut frame = Frame::default();
    Record::Set(b"b", b"2").encode(frame.payload());
    trial.append(&mut frame).unwrap();
    rig.handle.resume().unwrap();
    let both = Answer::Array(vec![Answer::Bulk(Some(b"1".into())), Answer::Bulk(Some(b"2".into()))]);
    assert_eq!(rig.connect().call(&["MGET", "a", "b"]).unwrap(), both);
}

#[test]
fn a_resume_works_without_a_seal_and_even_without_a_drain() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.call(&["SET", "a", "1"]).unwrap();
    rig.handle.resume().unwrap();
    assert_eq!(client.call(&["GET", "a"]).unwrap(), Answer::Bulk(Some(b"1".into())), "it was not disturbed");
    rig.drain();
    rig.handle.resume().unwrap();
    assert_eq!(rig.connect().call(&["GET", "a"]).unwrap(), Answer::Bulk(Some(b"1".into())));
}

#[test]
fn clients_with_a_connection_for_each_request_do_not_notice_handoffs() {
    let rig = Rig::start();
    let load = Load::start(&Plan::new(rig.addr, 16)).unwrap();
    for round in 1..=30 {
        wait_for(|| load.counts().acknowledged > round * 100);
        rig.drain_and_seal();
        rig.handle.resume().unwrap();
    }
    let ledger = load.stop();
    assert_eq!(ledger.counts.disturbances(), 0, "{:?}", ledger.counts);
    let found = ledger.read_back(rig.addr).unwrap();
    assert_eq!(found.lost, 0, "{found}");
    assert!(found.checked > 3000, "{found}");
}

#[test]
fn clients_that_keep_their_connection_lose_no_acknowledged_write() {
    let rig = Rig::start();
    let load = Load::start(&Plan { keep_alive: true, ..Plan::new(rig.addr, 16) }).unwrap();
    for round in 1..=20 {
        wait_for(|| load.counts().acknowledged > round * 200);
        rig.drain_and_seal();
        rig.handle.resume().unwrap();
    }
    let ledger = load.stop();
    let counts = &ledger.counts;
    assert_eq!(
        (counts.reset, counts.refused, counts.errors, counts.contradictions),
        (0, 0, 0, 0),
        "{counts:?}"
    );
    assert!(counts.closed_idle + counts.unanswered > 0, "they were closed by each handoff: {counts:?}");
    let found = ledger.read_back(rig.addr).unwrap();
    assert_eq!(found.lost, 0, "{found}");
}

fn wait_for(reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_hostile_client_is_told_and_closed() {
    let rig = Rig::start();
    for bytes in [&b"*1\r\n$99999999999\r\n"[..], b"*99999999\r\n", b"*1\r\nx", &vec![b'x'; 70_000]] {
        let mut client = rig.stream();
        client.write_all(bytes).unwrap();
        if bytes.ends_with(b"x") && bytes.len() < 100 {
            client.write_all(b"\r\n").unwrap();
        }
        let said = read_to_end(&mut client);
        assert!(said.starts_with("-ERR Protocol error: "), "{said}");
    }
    rig.connect_and_ping();
}

#[test]
fn a_quit_is_answered_and_the_connection_closed() {
    let rig = Rig::start();
    let mut client = rig.stream();
    client.write_all(b"SET a 1\r\nQUIT\r\nSET a 2\r\n").unwrap();
    assert_eq!(read_to_end(&mut client), "+OK\r\n+OK\r\n");
    assert_eq!(rig.connect().call(&["GET", "a"]).unwrap(), Answer::Bulk(Some(b"1".into())));
}

#[test]
fn a_client_that_ends_its_side_still_gets_its_answers() {
    let rig = Rig::start();
    let mut client = rig.stream();
    client.write_all(&b"INCR n\r\n".repeat(1000)).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let answers: String = (1..=1000).map(|i| format!(":{i}\r\n")).collect();
    assert_eq!(read_to_end(&mut client), answers);
}

#[test]
fn finishing_waits_for_clients_to_read_and_not_for_ever() {
    let rig = Rig::start();
    let mut client = rig.connect_and_ping();
    let silent = rig.connect_and_ping();
    rig.drain_and_seal();
    let deadline = Instant::now() + Duration::from_millis(200);
    rig.handle.finish(deadline);
    assert!(Instant::now() >= deadline, "the silent one has not closed");
    assert_eq!(client.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    drop(silent);
}
