//! A load of writes, and the book of what was acknowledged.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Clients that write one id after another, each on a connection of its own.
pub struct Load {
    clients: Vec<JoinHandle<Ledger>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

/// What the clients know.
#[derive(Debug, Default)]
pub struct Ledger {
    pub acknowledged: Vec<String>,
    pub disturbed: Disturbed,
}

/// What should not have happened to a client.
#[derive(Debug, Default)]
pub struct Disturbed {
    pub refused: u64,
    pub reset: u64,
    /// Closed without an answer.
    pub cut: u64,
    /// No answer in time.
    pub late: u64,
    pub other: Vec<String>,
}

impl Disturbed {
    pub fn total(&self) -> u64 {
        self.refused + self.reset + self.cut + self.late + self.other.len() as u64
    }

    fn note(&mut self, error: &std::io::Error) {
        match error.kind() {
            ErrorKind::ConnectionRefused => self.refused += 1,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => self.reset += 1,
            ErrorKind::UnexpectedEof => self.cut += 1,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => self.late += 1,
            _ => self.other.push(error.to_string()),
        }
    }

    fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.reset += other.reset;
        self.cut += other.cut;
        self.late += other.late;
        self.other.extend(other.other);
    }
}

impl Load {
    /// Starts clients and waits until writes are acknowledged.
    pub fn start(addr: SocketAddr, clients: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients)
            .map(|client| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                std::thread::spawn(move || run(addr, client, &stop, &acknowledged))
            })
            .collect();
        let load = Self { clients, stop, acknowledged };
        load.await_more(5);
        load
    }

    /// Waits until so many more writes have been acknowledged.
    pub fn await_more(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        let until = Instant::now() + PATIENCE;
        while self.acknowledged.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < until, "writes are not acknowledged any more");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for client in self.clients.drain(..) {
            let ledger = client.join().unwrap();
            all.acknowledged.extend(ledger.acknowledged);
            all.disturbed.add(ledger.disturbed);
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(addr: SocketAddr, client: usize, stop: &AtomicBool, acknowledged: &AtomicU64) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{client}-{number}");
        match ask(addr, &format!("ADD {id}")) {
            Ok(answer) if answer == "OK\n" => {
                ledger.acknowledged.push(id);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => ledger.disturbed.other.push(answer),
            Err(e) => {
                ledger.disturbed.note(&e);
                // It is counted; a million of them would tell no more.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // A trickle: the tests are about order, not about throughput, and share the machine.
        std::thread::sleep(Duration::from_millis(2));
    }
    ledger
}

/// Asks one question on a connection of its own.
pub fn ask(addr: SocketAddr, question: &str) -> std::io::Result<String> {
    ask_for(addr, question, PATIENCE)
}

/// As [`ask`], and waits for so long.
pub fn ask_for(addr: SocketAddr, question: &str, patience: Duration) -> std::io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&addr, patience)?;
    connection.set_read_timeout(Some(patience))?;
    writeln!(connection, "{question}")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}
