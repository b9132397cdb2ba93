//! `counter CONTROL DATA_DIR ADDRESS`: a counter over TCP. Every increment that was answered is on disk.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use handoff::drainable::ReadinessSnapshot;
use handoff::{
    Acceptor, DataDirLock, DrainReport, Drainable, Incumbent, Role, SealReport, Served, StateSnapshot,
};
use handoff::{detect_role, listen};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("counter: fatal: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // First of all: it takes what was inherited out of the environment, and no other thread may run yet.
    let role = detect_role()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [control, dir, address] = args.as_slice() else {
        return Err("usage: counter CONTROL DATA_DIR ADDRESS".into());
    };
    let (incumbent, counter) = match role {
        Role::ColdStart { mut inherited } => {
            let listener = match inherited.take("tcp") {
                Some(held) => held,
                None => listen(address.parse()?)?,
            };
            let lock = DataDirLock::acquire_or_break_stale(dir)?;
            create(Path::new(dir))?;
            let incumbent = Incumbent::bind_cold_start(control, lock)?.with_listener("tcp", &listener)?;
            (incumbent, Counter::open(dir, listener)?)
        }
        Role::Successor(successor) => {
            let warm = successor.handshake(env!("CARGO_PKG_VERSION"))?;
            // The incumbent still serves: now is the time for whatever takes long and does not touch the data.
            let mut begun = warm.wait_for_begin()?;
            // The incumbent has sealed: lock and open, but write and accept nothing yet.
            let listener = begun.take_listener("tcp").ok_or("no listener called tcp was passed")?;
            let lock = DataDirLock::acquire(dir)?;
            let counter = Counter::open(dir, listener)?;
            let readiness = ReadinessSnapshot {
                listening_on: vec![address.clone()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![counter.data.value()],
            };
            (begun.announce_and_bind(readiness, control, lock)?, counter)
        }
    };
    // From here on the data is ours.
    counter.acceptor.resume()?;
    match incumbent.serve(&counter)? {
        // The successor made the data its own and died before it served: its program must run, so become it.
        Served::Superseded(successor) => Err(successor.exec().into()),
        _ => Ok(()),
    }
}

struct Counter {
    dir: PathBuf,
    acceptor: Acceptor,
    clients: Arc<Clients>,
    data: Arc<Data>,
}

impl Counter {
    fn open(dir: impl Into<PathBuf>, listener: TcpListener) -> io::Result<Self> {
        let dir = dir.into();
        let data = Arc::new(Data::default());
        data.put(Store::open(&dir)?);
        let clients = Arc::new(Clients::default());
        let (theirs, shared) = (Arc::clone(&clients), Arc::clone(&data));
        // Paused for now.
        let acceptor = Acceptor::new(listener, move |connection| {
            // Counted here and not in its thread: when the acceptor has paused, a drain sees every client.
            let Ok(guest) = Clients::enter(&theirs, &connection) else { return };
            let data = Arc::clone(&shared);
            std::thread::spawn(move || {
                // A client that went away is no news.
                let _ = converse(&connection, &data);
                drop(guest);
            });
        });
        Ok(Self { dir, acceptor, clients, data })
    }
}

impl Drainable for Counter {
    fn drain(&self, deadline: Instant) -> handoff::Result<DrainReport> {
        self.acceptor.pause();
        let open_conns_remaining = self.clients.finish(deadline);
        Ok(DrainReport { open_conns_remaining, accept_closed: true })
    }

    fn seal(&self) -> handoff::Result<SealReport> {
        // Without its store, a request that still comes is not answered, and so not acknowledged.
        let store = guard(&self.data.store).take();
        let value = store.ok_or_else(|| handoff::Error::hook("there is nothing to seal"))?.value;
        Ok(SealReport { last_revision_per_shard: vec![value], data_dir_fingerprint: [0; 32] })
    }

    fn resume_after_abort(&self) -> handoff::Result<()> {
        // From disk: a successor may have served on trial.
        self.data.put(Store::open(&self.dir).map_err(handoff::Error::hook)?);
        self.acceptor.resume()
    }

    fn snapshot_state(&self) -> StateSnapshot {
        let last_revision_per_shard = vec![self.data.value()];
        StateSnapshot { shard_count: 1, open_conns: self.clients.count(), last_revision_per_shard }
    }
}

/// What all connections work on.
#[derive(Default)]
struct Data {
    /// None once it is sealed.
    store: Mutex<Option<Store>>,
    /// What the store says, to be read without waiting for the disk.
    value: AtomicU64,
}

impl Data {
    fn put(&self, store: Store) {
        self.value.store(store.value, Ordering::Relaxed);
        *guard(&self.store) = Some(store);
    }

    fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Returns the answer to a request; none when the data is not ours any more.
    fn answer(&self, request: &str) -> Option<String> {
        let mut store = guard(&self.store);
        let store = store.as_mut()?;
        let answer = match request {
            "incr" => store.increment().to_string(),
            "get" => store.value.to_string(),
            _ => "expected incr or get".to_owned(),
        };
        self.value.store(store.value, Ordering::Relaxed);
        Some(answer)
    }
}

/// The data: a file with a byte for each increment, so its length is the value, and no write can be torn.
struct Store {
    file: File,
    value: u64,
}

fn create(dir: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(dir.join("count"))?;
    File::open(dir)?.sync_all()
}

impl Store {
    /// Changes nothing: a successor calls it before the data is its own.
    fn open(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(dir.join("count"))?;
        // After a crash, what was written and not synced must not be shown before it is. After a seal there is nothing.
        file.sync_data()?;
        let value = file.metadata()?.len();
        Ok(Self { file, value })
    }

    fn increment(&mut self) -> u64 {
        if let Err(e) = self.file.write_all(b"+").and_then(|()| self.file.sync_data()) {
            // What is on disk now is known only by reading it again: let whoever supervises this start it anew.
            eprintln!("counter: fatal: unable to write: {e}");
            std::process::exit(111);
        }
        self.value += 1;
        self.value
    }
}

/// Answers each line until the client or a drain ends it.
fn converse(connection: &TcpStream, data: &Data) -> io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(connection), connection);
    let mut line = String::new();
    // What does not end in a newline was cut by the end of the connection: it is not a request.
    while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
        let Some(answer) = data.answer(line.trim_end()) else { break };
        writer.write_all(format!("{answer}\n").as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The connections that are open.
#[derive(Default)]
struct Clients {
    open: Mutex<HashMap<u64, TcpStream>>,
    entered: AtomicU64,
    left: Condvar,
}

/// One of them, until it is dropped.
struct Guest(Arc<Clients>, u64);

impl Drop for Guest {
    fn drop(&mut self) {
        guard(&self.0.open).remove(&self.1);
        self.0.left.notify_all();
    }
}

impl Clients {
    fn enter(clients: &Arc<Self>, connection: &TcpStream) -> io::Result<Guest> {
        let id = clients.entered.fetch_add(1, Ordering::Relaxed);
        guard(&clients.open).insert(id, connection.try_clone()?);
        Ok(Guest(Arc::clone(clients), id))
    }

    fn count(&self) -> u32 {
        guard(&self.open).len() as u32
    }

    /// Lets every client have the answers to what it has sent, and no more; returns how many are left at the deadline.
    fn finish(&self, deadline: Instant) -> u32 {
        // Who has just connected gets the time to ask; who is silent keeps the others waiting for no longer than this.
        let open = self.wait(guard(&self.open), deadline.min(Instant::now() + QUIET));
        for connection in open.values() {
            // Its thread still reads what has arrived, and then the end. Never do this to the listener: it is shared.
            let _ = connection.shutdown(Shutdown::Read);
        }
        self.wait(open, deadline).len() as u32
    }

    /// Waits until all have left.
    fn wait<'a>(&'a self, open: Open<'a>, until: Instant) -> Open<'a> {
        let left = until.saturating_duration_since(Instant::now());
        self.left.wait_timeout_while(open, left, |open| !open.is_empty()).expect("not poisoned").0
    }
}

/// The open connections, while nobody comes or goes.
type Open<'a> = MutexGuard<'a, HashMap<u64, TcpStream>>;

/// How long a drain waits for clients to leave by themselves.
const QUIET: Duration = Duration::from_millis(100);

/// No thread panics while it holds one of these locks, so none is ever poisoned.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}
