//! A load that keeps a ledger: many clients that write, remember what was acknowledged, and read it back in the end.
//!
//! Every SET has a key of its own, so each acknowledged one can be checked; every client has a counter, whose answers
//! show a lost or doubled INCR at once. What was sent and not answered may have happened or not, and is allowed either way.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What load to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the store is.
    pub addr: SocketAddr,
    /// How many clients, each with a thread.
    pub clients: usize,
    /// Whether a client keeps its connection; otherwise it makes one for each request.
    pub keep_alive: bool,
    /// Begins every key, so that loads can share a store.
    pub prefix: String,
    /// How long to wait for an answer or a connection before it counts as timed out.
    pub timeout: Duration,
}

impl Plan {
    /// Returns a plan for clients that make a connection for each request.
    pub fn new(addr: SocketAddr, clients: usize) -> Self {
        Self { addr, clients, keep_alive: false, prefix: "load".into(), timeout: Duration::from_secs(30) }
    }
}

/// What happened to the clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that were answered as they should be.
    pub answered: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections refused.
    pub refused: u64,
    /// Connections reset, by an RST or a closed socket under a request.
    pub reset: u64,
    /// Connections closed by the store after a request and before its answer.
    pub unanswered: u64,
    /// Connections closed by the store between requests, as a handoff does it.
    pub closed_idle: u64,
    /// Requests and connections that took longer than the plan allows.
    pub timed_out: u64,
    /// Error replies.
    pub errors: u64,
    /// Answers that contradict what was acknowledged before.
    pub contradictions: u64,
    /// The longest that a connection took, in microseconds.
    pub connect_us_max: u64,
    /// The longest that an answer took, in microseconds.
    pub answer_us_max: u64,
}

impl Counts {
    /// Returns how often a client saw something that it must never see when connections are made for each request.
    pub fn disturbances(&self) -> u64 {
        self.refused + self.reset + self.unanswered + self.timed_out + self.errors + self.contradictions
    }
}

/// A load that is running.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    clients: Vec<JoinHandle<Account>>,
}

impl Load {
    /// Starts all clients.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let mut load = Self { stop: Arc::default(), counts: Arc::default(), clients: Vec::new() };
        for number in 0..plan.clients {
            let mut client = Client {
                plan: plan.clone(),
                account: Account::new(&plan.prefix, number),
                counts: Arc::clone(&load.counts),
                connection: None,
            };
            let stop = Arc::clone(&load.stop);
            let spawn =
                std::thread::Builder::new().name("load".into()).stack_size(128 * 1024).spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        client.step();
                    }
                    client.account
                });
            load.clients.push(spawn?);
        }
        Ok(load)
    }

    /// Returns what has happened so far.
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Lets every client finish its request, and returns what was acknowledged.
    pub fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let accounts =
            self.clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect();
        let counts = lock(&self.counts).clone();
        Ledger { accounts, counts }
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one client knows.
struct Account {
    /// Begins the client's keys.
    prefix: String,
    /// The number of the next request.
    next: u64,
    /// The SETs that were acknowledged.
    acknowledged: Vec<u64>,
    /// The last answer of the counter, and how many INCRs since are in doubt.
    counter: u64,
    in_doubt: u64,
}

impl Account {
    fn new(prefix: &str, number: usize) -> Self {
        Self {
            prefix: format!("{prefix}:{number}"),
            next: 0,
            acknowledged: Vec::new(),
            counter: 0,
            in_doubt: 0,
        }
    }

    fn key(&self, number: u64) -> String {
        format!("{}:{number}", self.prefix)
    }

    fn value(&self, number: u64) -> String {
        format!("{}={number}", self.prefix)
    }

    fn counter_key(&self) -> String {
        format!("{}:counter", self.prefix)
    }

    /// Takes the counter's new value; returns whether it fits what is known.
    fn count(&mut self, value: u64) -> bool {
        let fits = (self.counter + 1..=self.counter + 1 + self.in_doubt).contains(&value);
        if fits {
            self.in_doubt -= value - self.counter - 1;
        }
        self.counter = value;
        fits
    }
}

struct Client {
    plan: Plan,
    account: Account,
    counts: Arc<Mutex<Counts>>,
    connection: Option<Connection>,
}

/// After a refusal or an error reply, so that a store that is down is not flooded.
const PAUSE: Duration = Duration::from_millis(1);

impl Client {
    fn step(&mut self) {
        let number = self.account.next;
        self.account.next += 1;
        match number % 4 {
            0 | 2 => self.set(number),
            1 => self.increment(),
            _ => self.read_own_write(),
        }
    }

    fn set(&mut self, number: u64) {
        let (key, value) = (self.account.key(number), self.account.value(number));
        match self.request(&["SET", &key, &value]) {
            Some(Answer::Simple(ok)) if ok == "OK" => {
                self.account.acknowledged.push(number);
                lock(&self.counts).acknowledged += 1;
            }
            Some(other) => self.contradiction(&format!("SET {key}: {other:?}")),
            None => {}
        }
    }

    fn increment(&mut self) {
        match self.request(&["INCR", &self.account.counter_key()]) {
            Some(Answer::Integer(value)) => {
                lock(&self.counts).acknowledged += 1;
                let before = self.account.counter;
                if !self.account.count(u64::try_from(value).unwrap_or(0)) {
                    self.contradiction(&format!("{}: {value} after {before}", self.account.counter_key()));
                }
            }
            Some(other) => self.contradiction(&format!("INCR: {other:?}")),
            None => self.account.in_doubt += 1,
        }
    }

    fn read_own_write(&mut self) {
        let Some(number) = self.account.acknowledged.last().copied() else { return };
        let expected = Answer::Bulk(Some(self.account.value(number).into_bytes()));
        match self.request(&["GET", &self.account.key(number)]) {
            Some(answer) if answer != expected => self.contradiction(&format!("GET after SET: {answer:?}")),
            _ => {}
        }
    }

    fn contradiction(&self, what: &str) {
        tracing::warn!("{what}");
        lock(&self.counts).contradictions += 1;
    }

    /// Returns the answer, or `None` after counting why there is none.
    fn request(&mut self, words: &[&str]) -> Option<Answer> {
        let mut connection = self.connect()?;
        let asked = Instant::now();
        let answer = connection.call(words);
        let took = micros(asked);
        let mut counts = lock(&self.counts);
        match answer {
            Ok(Answer::Error(_)) => {
                counts.errors += 1;
                drop(counts);
                std::thread::sleep(PAUSE);
                None
            }
            Ok(answer) => {
                counts.answered += 1;
                counts.answer_us_max = counts.answer_us_max.max(took);
                self.connection = self.plan.keep_alive.then_some(connection);
                Some(answer)
            }
            Err(e) => {
                *counts.of(&e) += 1;
                None
            }
        }
    }

    fn connect(&mut self) -> Option<Connection> {
        if let Some(mut kept) = self.connection.take() {
            if kept.is_open() {
                return Some(kept);
            }
            lock(&self.counts).closed_idle += 1;
        }
        let began = Instant::now();
        let connected = Connection::open(self.plan.addr, self.plan.timeout);
        let took = micros(began);
        let mut counts = lock(&self.counts);
        match connected {
            Ok(connection) => {
                counts.connections += 1;
                counts.connect_us_max = counts.connect_us_max.max(took);
                Some(connection)
            }
            Err(e) => {
                *counts.of(&e) += 1;
                drop(counts);
                std::thread::sleep(PAUSE);
                None
            }
        }
    }
}

impl Counts {
    /// Returns where an error is counted.
    fn of(&mut self, e: &io::Error) -> &mut u64 {
        match e.kind() {
            io::ErrorKind::ConnectionRefused => &mut self.refused,
            io::ErrorKind::UnexpectedEof => &mut self.unanswered,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => &mut self.timed_out,
            _ => &mut self.reset,
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// An answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A simple string.
    Simple(String),
    /// An error reply.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A string, or the null string.
    Bulk(Option<Vec<u8>>),
    /// An array.
    Array(Vec<Answer>),
}

/// A connection to the store that does one request at a time.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    pub fn open(addr: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// UnexpectedEof when the store closed the connection before the answer.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Answer> {
        self.send(words)?;
        self.answer()
    }

    /// Sends a request.
    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request += &format!("${}\r\n{word}\r\n", word.len()));
        self.0.get_mut().write_all(request.as_bytes())
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Waits for the next answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let line = self.line()?;
        let (kind, text) = line.split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
        let number = || text.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        match kind {
            "+" => Ok(Answer::Simple(text.into())),
            "-" => Ok(Answer::Error(text.into())),
            ":" => number().map(Answer::Integer),
            "$" => self.bulk(number()?).map(Answer::Bulk),
            "*" => (0..number()?).map(|_| self.answer()).collect::<io::Result<_>>().map(Answer::Array),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Returns whether the store has neither closed the connection nor sent what nobody asked for.
    pub fn is_open(&mut self) -> bool {
        let peek = |stream: &TcpStream| {
            stream.set_nonblocking(true)?;
            let peeked = stream.peek(&mut [0]);
            stream.set_nonblocking(false)?;
            peeked
        };
        peek(self.0.get_ref()).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    fn bulk(&mut self, len: i64) -> io::Result<Option<Vec<u8>>> {
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        let mut bytes = vec![0; len + 2];
        self.0.read_exact(&mut bytes)?;
        bytes.truncate(len);
        Ok(Some(bytes))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().into())
    }
}

/// What was acknowledged.
pub struct Ledger {
    accounts: Vec<Account>,
    /// What happened to the clients.
    pub counts: Counts,
}

/// What was found when everything was read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReadBack {
    /// Acknowledged writes that were checked.
    pub checked: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// The first few of them.
    pub examples: Vec<String>,
}

impl fmt::Display for ReadBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} acknowledged writes lost", self.lost, self.checked)?;
        if self.examples.is_empty() { Ok(()) } else { write!(f, ", such as {}", self.examples.join(", ")) }
    }
}

/// Keys in one request.
const AT_ONCE: usize = 500;

impl Ledger {
    /// Reads back every acknowledged write.
    pub fn read_back(&self, addr: SocketAddr) -> io::Result<ReadBack> {
        let mut connection = Connection::open(addr, Duration::from_secs(30))?;
        let mut found = ReadBack::default();
        for account in &self.accounts {
            for numbers in account.acknowledged.chunks(AT_ONCE) {
                account.check_sets(numbers, &mut connection, &mut found)?;
            }
            account.check_counter(&mut connection, &mut found)?;
        }
        Ok(found)
    }
}

impl Account {
    fn check_sets(
        &self,
        numbers: &[u64],
        connection: &mut Connection,
        found: &mut ReadBack,
    ) -> io::Result<()> {
        let keys: Vec<String> = numbers.iter().map(|number| self.key(*number)).collect();
        let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        let Answer::Array(values) = connection.call(&words)? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        for (number, value) in numbers.iter().zip(values) {
            let there = value == Answer::Bulk(Some(self.value(*number).into_bytes()));
            found.check(there, 1, || self.key(*number));
        }
        Ok(())
    }

    fn check_counter(&self, connection: &mut Connection, found: &mut ReadBack) -> io::Result<()> {
        let key = self.counter_key();
        let value = match connection.call(&["GET", &key])? {
            Answer::Bulk(Some(bytes)) => String::from_utf8_lossy(&bytes).parse().unwrap_or(0),
            _ => 0,
        };
        let fits = (self.counter..=self.counter + self.in_doubt).contains(&value);
        found.check(fits, self.counter, || format!("{key} ({value}, {} were acknowledged)", self.counter));
        Ok(())
    }
}

impl ReadBack {
    fn check(&mut self, fits: bool, writes: u64, name: impl Fn() -> String) {
        self.checked += writes;
        if fits {
            return;
        }
        self.lost += 1;
        if self.examples.len() < 5 {
            self.examples.push(name());
        }
    }
}
