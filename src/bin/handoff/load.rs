//! A load that keeps a ledger: many clients that write, remember what was acknowledged, and read it back in the end.
//!
//! Every SET has a key of its own, so each acknowledged one can be checked; every client has a counter, whose answers
//! show a lost or doubled INCR at once. What was sent and not answered may have happened or not, and is allowed either way.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    /// The longest that a client waited for an answer, its connection included, in microseconds.
    pub stall_us_max: u64,
}

impl Counts {
    /// Returns how often a client saw something that it must never see when connections are made for each request.
    #[cfg(test)]
    pub fn disturbances(&self) -> u64 {
        self.refused + self.reset + self.unanswered + self.timed_out + self.errors + self.contradictions
    }
}

/// A load that is running.
pub struct Load {
    gate: Arc<Gate>,
    tally: Arc<Tally>,
    accounts: Vec<Arc<Mutex<Account>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all clients.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let gate = Arc::new(Gate::new(plan.clients));
        let mut load = Self { gate, tally: Arc::default(), accounts: Vec::new(), clients: Vec::new() };
        for number in 0..plan.clients {
            let account = Arc::new(Mutex::new(Account::new(&plan.prefix, number)));
            let mut client = Client {
                plan: plan.clone(),
                account: Arc::clone(&account),
                tally: Arc::clone(&load.tally),
                connection: None,
            };
            let gate = Arc::clone(&load.gate);
            let spawn =
                std::thread::Builder::new().name("load".into()).stack_size(128 * 1024).spawn(move || {
                    while gate.pass() {
                        let answered = client.step();
                        gate.served(number, answered);
                    }
                });
            load.accounts.push(account);
            load.clients.push(spawn?);
        }
        Ok(load)
    }

    /// Returns what has happened so far.
    #[cfg(test)]
    pub fn counts(&self) -> Counts {
        lock(&self.tally.total).clone()
    }

    /// Returns what has happened since the last lap, and begins the next one. Of a load that is paused, for exact numbers.
    #[allow(dead_code, reason = "not every program that has a load counts laps")]
    pub fn lap(&self) -> Counts {
        self.accounts.iter().for_each(|account| lock(account).begin_lap());
        std::mem::take(&mut *lock(&self.tally.lap))
    }

    /// Lets every client finish its request and then wait; returns whether all of them do by the deadline.
    #[allow(dead_code, reason = "as for laps")]
    pub fn pause(&self, deadline: Instant) -> bool {
        let clients = self.clients.len();
        lock(&self.gate.state).paused = true;
        self.gate.wait(deadline, |state| state.idle == clients)
    }

    /// Lets the clients go on.
    #[allow(dead_code, reason = "as for laps")]
    pub fn resume(&self) {
        lock(&self.gate.state).paused = false;
        self.gate.moved.notify_all();
    }

    /// Waits until each client got another answer; returns whether all of them have by the deadline.
    #[allow(dead_code, reason = "as for laps")]
    pub fn each_is_served(&self, deadline: Instant) -> bool {
        let before = lock(&self.gate.state).answered.clone();
        self.gate.wait(deadline, |state| state.answered.iter().zip(&before).all(|(now, before)| now > before))
    }

    /// Reads back what was acknowledged since the last lap. Of a load that is paused.
    #[allow(dead_code, reason = "as for laps")]
    pub fn read_back_lap(&self, addr: SocketAddr) -> io::Result<ReadBack> {
        let mut connection = Connection::open(addr, READ_BACK)?;
        let mut found = ReadBack::default();
        for account in &self.accounts {
            lock(account).check_lap(&mut connection, &mut found)?;
        }
        Ok(found)
    }

    /// Lets every client finish its request, and returns what was acknowledged.
    pub fn stop(self) -> Ledger {
        lock(&self.gate.state).stopped = true;
        self.gate.moved.notify_all();
        for client in self.clients {
            client.join().expect("a client does not panic");
        }
        let counts = lock(&self.tally.total).clone();
        Ledger { accounts: self.accounts, counts }
    }
}

fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where clients stop between two requests, when they are asked to.
struct Gate {
    state: Mutex<GateState>,
    moved: Condvar,
}

#[derive(Default)]
struct GateState {
    paused: bool,
    stopped: bool,
    /// How many clients wait here.
    idle: usize,
    /// How many answers each client got.
    answered: Vec<u64>,
}

impl Gate {
    fn new(clients: usize) -> Self {
        let state = GateState { answered: vec![0; clients], ..GateState::default() };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Returns whether to make another request.
    fn pass(&self) -> bool {
        let mut state = lock(&self.state);
        if state.paused && !state.stopped {
            state.idle += 1;
            self.moved.notify_all();
            while state.paused && !state.stopped {
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.idle -= 1;
        }
        !state.stopped
    }

    fn served(&self, client: usize, answered: bool) {
        lock(&self.state).answered[client] += u64::from(answered);
    }

    fn wait(&self, deadline: Instant, reached: impl Fn(&GateState) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !reached(&state) {
            let left = deadline.saturating_duration_since(Instant::now()).min(LOOK);
            if left.is_zero() {
                return false;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Between two looks at how many answers there were, of which nobody is notified.
const LOOK: Duration = Duration::from_millis(1);

/// What was counted, in all and since the last lap.
#[derive(Default)]
struct Tally {
    total: Mutex<Counts>,
    lap: Mutex<Counts>,
}

impl Tally {
    fn note(&self, count: impl Fn(&mut Counts)) {
        count(&mut lock(&self.total));
        count(&mut lock(&self.lap));
    }
}

/// What one client knows.
struct Account {
    /// Begins the client's keys.
    prefix: String,
    /// The number of the next request.
    next: u64,
    /// The SETs that were acknowledged.
    acknowledged: Vec<u64>,
    /// How many of them there were when the lap began.
    lap: usize,
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
            lap: 0,
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
    account: Arc<Mutex<Account>>,
    tally: Arc<Tally>,
    connection: Option<Connection>,
}

/// After a refusal or an error reply, so that a store that is down is not flooded.
const PAUSE: Duration = Duration::from_millis(1);

impl Client {
    /// Makes one request; returns whether it was answered.
    fn step(&mut self) -> bool {
        let mut account = lock(&self.account);
        let number = account.next;
        account.next += 1;
        drop(account);
        match number % 4 {
            0 | 2 => self.set(number),
            1 => self.increment(),
            _ => self.read_own_write(),
        }
    }

    fn set(&mut self, number: u64) -> bool {
        let account = lock(&self.account);
        let (key, value) = (account.key(number), account.value(number));
        drop(account);
        match self.request(&["SET", &key, &value]) {
            Some(Answer::Simple(ok)) if ok == "OK" => {
                lock(&self.account).acknowledged.push(number);
                self.tally.note(|counts| counts.acknowledged += 1);
                true
            }
            Some(other) => self.contradiction(&format!("SET {key}: {other:?}")),
            None => false,
        }
    }

    fn increment(&mut self) -> bool {
        let key = lock(&self.account).counter_key();
        match self.request(&["INCR", &key]) {
            Some(Answer::Integer(value)) => {
                self.tally.note(|counts| counts.acknowledged += 1);
                let mut account = lock(&self.account);
                let before = account.counter;
                let fits = account.count(u64::try_from(value).unwrap_or(0));
                drop(account);
                fits || self.contradiction(&format!("{key}: {value} after {before}"))
            }
            Some(other) => self.contradiction(&format!("INCR: {other:?}")),
            None => {
                lock(&self.account).in_doubt += 1;
                false
            }
        }
    }

    fn read_own_write(&mut self) -> bool {
        let account = lock(&self.account);
        let Some(number) = account.acknowledged.last().copied() else { return false };
        let (key, value) = (account.key(number), account.value(number));
        drop(account);
        match self.request(&["GET", &key]) {
            Some(answer) if answer != Answer::Bulk(Some(value.into_bytes())) => {
                self.contradiction(&format!("GET after SET: {answer:?}"))
            }
            answer => answer.is_some(),
        }
    }

    /// It was answered, and wrongly.
    fn contradiction(&self, what: &str) -> bool {
        tracing::warn!("{what}");
        self.tally.note(|counts| counts.contradictions += 1);
        true
    }

    /// Returns the answer, or `None` after counting why there is none.
    fn request(&mut self, words: &[&str]) -> Option<Answer> {
        let began = Instant::now();
        let mut connection = self.connect()?;
        let asked = Instant::now();
        let answer = connection.call(words);
        let (took, stalled) = (micros(asked), micros(began));
        match answer {
            Ok(Answer::Error(_)) => {
                self.tally.note(|counts| counts.errors += 1);
                std::thread::sleep(PAUSE);
                None
            }
            Ok(answer) => {
                self.tally.note(|counts| {
                    counts.answered += 1;
                    counts.answer_us_max = counts.answer_us_max.max(took);
                    counts.stall_us_max = counts.stall_us_max.max(stalled);
                });
                self.connection = self.plan.keep_alive.then_some(connection);
                Some(answer)
            }
            Err(e) => {
                self.tally.note(|counts| *counts.of(&e) += 1);
                None
            }
        }
    }

    fn connect(&mut self) -> Option<Connection> {
        if let Some(mut kept) = self.connection.take() {
            if kept.is_open() {
                return Some(kept);
            }
            self.tally.note(|counts| counts.closed_idle += 1);
        }
        let began = Instant::now();
        let connected = Connection::open(self.plan.addr, self.plan.timeout);
        let took = micros(began);
        match connected {
            Ok(connection) => {
                self.tally.note(|counts| {
                    counts.connections += 1;
                    counts.connect_us_max = counts.connect_us_max.max(took);
                });
                Some(connection)
            }
            Err(e) => {
                self.tally.note(|counts| *counts.of(&e) += 1);
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
    #[cfg(test)]
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
    accounts: Vec<Arc<Mutex<Account>>>,
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
/// How long an answer may take while everything is read back.
const READ_BACK: Duration = Duration::from_secs(30);

impl Ledger {
    /// Reads back every acknowledged write.
    pub fn read_back(&self, addr: SocketAddr) -> io::Result<ReadBack> {
        let mut connection = Connection::open(addr, READ_BACK)?;
        let mut found = ReadBack::default();
        for account in &self.accounts {
            lock(account).check(0, &mut connection, &mut found)?;
        }
        Ok(found)
    }
}

impl Account {
    fn begin_lap(&mut self) {
        self.lap = self.acknowledged.len();
    }

    fn check_lap(&self, connection: &mut Connection, found: &mut ReadBack) -> io::Result<()> {
        self.check(self.lap, connection, found)
    }

    /// Checks the counter and the SETs from the `first` acknowledged one on.
    fn check(&self, first: usize, connection: &mut Connection, found: &mut ReadBack) -> io::Result<()> {
        for numbers in self.acknowledged[first..].chunks(AT_ONCE) {
            self.check_sets(numbers, connection, found)?;
        }
        self.check_counter(connection, found)
    }

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
