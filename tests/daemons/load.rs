//! Clients of a web server, and the book of what happened to them.
//!
//! Some connect anew for each request, and to them nothing may ever happen. Others keep their connection, as browsers do, and what happens
//! to those is counted apart: a server may close a connection that is idle, and a request can be on its way at that moment. Where
//! the server has data, every request is a write with an id of its own, and all that were acknowledged are read back in the end.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A client that waits so long has been forgotten.
const PATIENCE: Duration = Duration::from_secs(60);

/// What load to make.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub addr: SocketAddr,
    /// How many clients connect for each request.
    pub fresh: usize,
    /// How many keep their connection.
    pub kept: usize,
    /// Whether they write.
    pub writes: bool,
    /// How long each waits between two requests.
    pub pause: Duration,
}

/// What happened to the clients.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub answered: u64,
    pub refused: u64,
    /// Connections made for one request that were reset.
    pub reset: u64,
    /// Those that were closed before the answer.
    pub cut: u64,
    /// No answer in a minute.
    pub late: u64,
    /// Answers such as 502 and 503.
    pub errors: u64,
    /// Requests on a connection that was kept that were reset or closed before the answer.
    pub kept_cut: u64,
    /// Connections that were kept and closed while idle, or with the announcement that they would be.
    pub kept_closed: u64,
    /// The longest that anybody waited for an answer, the connection included.
    pub stall: Duration,
    /// The first few of what should not have happened, in words.
    pub said: Vec<String>,
}

impl Counts {
    /// What no client may see that connects for each request.
    pub fn disturbances(&self) -> u64 {
        self.refused + self.reset + self.cut + self.late + self.errors
    }

    fn note(&mut self, error: &io::Error, reused: bool) {
        let count = match error.kind() {
            io::ErrorKind::ConnectionRefused => &mut self.refused,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => &mut self.late,
            _ if reused => &mut self.kept_cut,
            io::ErrorKind::UnexpectedEof => &mut self.cut,
            io::ErrorKind::InvalidData => &mut self.errors,
            _ => &mut self.reset,
        };
        *count += 1;
        if !reused {
            self.say(error);
        }
    }

    fn say(&mut self, error: &io::Error) {
        if self.said.len() < 5 {
            self.said.push(error.to_string());
        }
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.reset += other.reset;
        self.cut += other.cut;
        self.late += other.late;
        self.errors += other.errors;
        self.kept_cut += other.kept_cut;
        self.kept_closed += other.kept_closed;
        self.stall = self.stall.max(other.stall);
        self.said.extend(other.said);
        self.said.truncate(5);
    }
}

/// What a load that has ended knows.
#[derive(Debug, Default)]
pub struct Ledger {
    pub counts: Counts,
    pub acknowledged: Vec<String>,
}

impl Ledger {
    /// Returns which acknowledged writes the server does not have.
    pub fn lost(&self, addr: SocketAddr) -> io::Result<Vec<String>> {
        let all = ask(addr, "/all")?;
        let found: HashSet<&str> = all.split_whitespace().collect();
        Ok(self.acknowledged.iter().filter(|id| !found.contains(id.as_str())).cloned().collect())
    }
}

/// A load that is running.
pub struct Load {
    clients: Vec<JoinHandle<Ledger>>,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    stop: AtomicBool,
    /// How many answers each client got.
    answered: Vec<AtomicU64>,
}

impl Load {
    /// Starts the clients.
    pub fn start(plan: Plan) -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let load = LOADS.fetch_add(1, Ordering::Relaxed);
        let clients = plan.fresh + plan.kept;
        let answered = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { plan, stop: AtomicBool::new(false), answered });
        let spawn = |number| {
            let client =
                Client { load, number, shared: Arc::clone(&shared), ledger: Ledger::default(), kept: None };
            std::thread::spawn(move || client.run())
        };
        let clients = (0..clients).map(spawn).collect();
        Self { clients, shared }
    }

    /// Waits until every client has got so many more answers; returns whether they did in time.
    pub fn each_is_served(&self, more: u64) -> bool {
        let answered = || self.shared.answered.iter().map(|count| count.load(Ordering::Relaxed));
        let goals: Vec<u64> = answered().map(|count| count + more).collect();
        let until = Instant::now() + PATIENCE;
        while answered().zip(&goals).any(|(count, goal)| count < *goal) {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Lets every client finish its request, and returns what they know.
    pub fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for client in self.clients.drain(..) {
            let ledger = client.join().unwrap();
            all.counts.add(ledger.counts);
            all.acknowledged.extend(ledger.acknowledged);
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

struct Client {
    load: u64,
    number: usize,
    shared: Arc<Shared>,
    ledger: Ledger,
    kept: Option<Connection>,
}

impl Client {
    fn run(mut self) -> Ledger {
        for request in 0.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            self.request(request);
            std::thread::sleep(self.shared.plan.pause);
        }
        self.ledger
    }

    fn request(&mut self, request: u64) {
        let began = Instant::now();
        let kept = self.take_kept();
        let reused = kept.is_some();
        let id = format!("{}-{}-{request}", self.load, self.number);
        match self.answer(kept, &id) {
            Ok(()) => {
                self.ledger.counts.answered += 1;
                self.ledger.counts.stall = self.ledger.counts.stall.max(began.elapsed());
                if self.shared.plan.writes {
                    self.ledger.acknowledged.push(id);
                }
                self.shared.answered[self.number].fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => self.ledger.counts.note(&e, reused),
        }
    }

    /// Returns the connection that was kept, unless the server has closed it meanwhile.
    fn take_kept(&mut self) -> Option<Connection> {
        let mut kept = self.kept.take()?;
        if kept.is_open() {
            return Some(kept);
        }
        self.ledger.counts.kept_closed += 1;
        None
    }

    fn answer(&mut self, kept: Option<Connection>, id: &str) -> io::Result<()> {
        let plan = self.shared.plan;
        let keeps = self.number >= plan.fresh;
        let mut connection = match kept {
            Some(kept) => kept,
            None => Connection::open(plan.addr)?,
        };
        let (method, target) =
            if plan.writes { ("POST", format!("/add?id={id}")) } else { ("GET", "/".to_owned()) };
        let answer = connection.request(method, &target, keeps)?;
        if answer.status != 200 {
            let said = format!("{} {}", answer.status, answer.body.trim_end());
            return Err(io::Error::new(io::ErrorKind::InvalidData, said));
        }
        if keeps && answer.stays_open {
            self.kept = Some(connection);
        } else if keeps {
            self.ledger.counts.kept_closed += 1;
        }
        Ok(())
    }
}

/// Asks one question on a connection of its own.
pub fn ask(addr: SocketAddr, target: &str) -> io::Result<String> {
    ask_for(addr, target, PATIENCE)
}

/// As [`ask`], and waits for so long.
pub fn ask_for(addr: SocketAddr, target: &str, patience: Duration) -> io::Result<String> {
    let mut connection = Connection::open(addr)?;
    connection.0.get_ref().set_read_timeout(Some(patience))?;
    let answer = connection.request("GET", target, false)?;
    if answer.status == 200 { Ok(answer.body) } else { Err(io::Error::other(answer.body)) }
}

/// A connection that does one request at a time.
struct Connection(BufReader<TcpStream>);

struct Answer {
    status: u16,
    stays_open: bool,
    body: String,
}

impl Connection {
    fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Returns whether the server has neither closed it nor sent what nobody asked for.
    fn is_open(&mut self) -> bool {
        let peek = |stream: &TcpStream| {
            stream.set_nonblocking(true)?;
            let peeked = stream.peek(&mut [0]);
            stream.set_nonblocking(false)?;
            peeked
        };
        peek(self.0.get_ref()).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    fn request(&mut self, method: &str, target: &str, keep: bool) -> io::Result<Answer> {
        let connection = if keep { "keep-alive" } else { "close" };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let status = self.line()?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("the answer {status:?}"));
        let mut words = status.split(' ');
        let mut stays_open = words.next() == Some("HTTP/1.1");
        let status = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("content-length", value)) => length = value.parse().ok(),
                Some(("connection", value)) => stays_open = value == "keep-alive",
                Some(_) => {}
                None => break,
            }
        }
        let body = self.body(length)?;
        Ok(Answer { status, stays_open: stays_open && length.is_some(), body })
    }

    fn body(&mut self, length: Option<usize>) -> io::Result<String> {
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.0.read_exact(&mut body)?;
            }
            None => _ = self.0.read_to_end(&mut body)?,
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if line.ends_with('\n') {
            Ok(line.trim_end().into())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}
