//! How it is known that the daemon serves.
//!
//! A connection proves nothing: the kernel makes it for whoever listens, also while nobody looks. So a probe that connects waits until
//! its connection was accepted, and where others accept from the same queue it looks for it among the daemon's descriptors.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Keeper;
use super::sockets::Socket;
use crate::error::{Error, Result};
use crate::sys::poll::{self, Want};
use crate::sys::{acceptance, unix};

/// Between two attempts of a probe: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How long an answer may take before another connection is made.
const ANSWER: Duration = Duration::from_secs(10);
/// How much of an answer is looked at.
const HEAD_MAX: usize = 8192;

/// Whether a line of the daemon's output says that it serves.
#[derive(Clone)]
pub struct Matcher {
    /// As it was asked for.
    pub text: String,
    /// What decides.
    pub matches: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Matcher").field(&self.text).finish()
    }
}

/// What must hold before the daemon serves.
#[derive(Clone, Debug)]
pub enum Ready {
    /// It says `READY=1` on its `NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
    /// It writes a line to a descriptor, at a number of its own or at the next free one.
    Fd(Option<RawFd>),
    /// It accepts a connection; on this listener, or on all that have an address and a port.
    Tcp(Option<String>),
    /// It accepts a connection; on this listener, or on all that have a path.
    Unix(Option<String>),
    /// It answers an HTTP request, with this status or any of 200 to 399.
    Http {
        /// What is asked for.
        path: String,
        /// The status.
        status: Option<u16>,
        /// Where; the first stream listener by default.
        listener: Option<String>,
    },
    /// A command of `sh -c` succeeds.
    Exec(String),
    /// It writes a line to standard output or error that matches.
    Log(Matcher),
    /// It lives for so long.
    Alive(Duration),
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |name: &Option<String>| name.as_ref().map_or_else(String::new, |name| format!(":{name}"));
        match self {
            Self::Notify => f.write_str("notify"),
            Self::Fd(None) => f.write_str("fd"),
            Self::Fd(Some(number)) => write!(f, "fd:{number}"),
            Self::Tcp(name) => write!(f, "tcp{}", at(name)),
            Self::Unix(name) => write!(f, "unix{}", at(name)),
            Self::Http { path, status, listener } => {
                write!(f, "http:{path}")?;
                status.iter().try_for_each(|status| write!(f, "={status}"))?;
                listener.iter().try_for_each(|name| write!(f, "@{name}"))
            }
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Log(matcher) => write!(f, "log:{}", matcher.text),
            Self::Alive(length) => write!(f, "alive:{}ms", length.as_millis()),
        }
    }
}

/// Probes that run, each in a thread of its own, until all hold or they are dropped.
#[derive(Debug)]
pub(super) struct Probes {
    over: Arc<AtomicBool>,
    running: Vec<Arc<Probe>>,
}

/// One of them.
#[derive(Debug)]
struct Probe {
    what: Ready,
    state: Mutex<Found>,
}

/// What a probe has found so far.
#[derive(Clone, Debug)]
enum Found {
    Not(String),
    Yes,
}

impl Probe {
    fn found(&self) -> Found {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is(&self, found: Found) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

impl Probes {
    /// Starts them for the daemon that was just started; `pipe` is where it writes the line of [`Ready::Fd`].
    pub fn start(keeper: &Arc<Keeper>, what: &[Ready], mut pipe: Option<OwnedFd>) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let mut running = vec![];
        for what in what {
            let not_yet = Mutex::new(Found::Not("not yet".to_owned()));
            let probe = Arc::new(Probe { what: what.clone(), state: not_yet });
            running.push(Arc::clone(&probe));
            let (keeper, over) = (Arc::clone(keeper), Arc::clone(&over));
            let pipe = if matches!(what, Ready::Fd(_)) { pipe.take() } else { None };
            std::thread::Builder::new()
                .name("handoff-probe".to_owned())
                .spawn(move || probe.run(&keeper, pipe, &over))
                .map_err(|e| Error::io("start the thread that looks whether the daemon serves", e))?;
        }
        Ok(Self { over, running })
    }

    /// Whether all hold.
    pub fn hold(&self) -> bool {
        self.running.iter().all(|probe| matches!(probe.found(), Found::Yes))
    }

    /// Says which do not hold, and why.
    pub fn missing(&self) -> String {
        let missing = self.running.iter().filter_map(|probe| match probe.found() {
            Found::Not(why) => Some(format!("{}: {why}", probe.what)),
            Found::Yes => None,
        });
        missing.collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Probe {
    fn run(&self, keeper: &Arc<Keeper>, pipe: Option<OwnedFd>, over: &AtomicBool) {
        let since = Instant::now();
        let mut pause = PAUSE.0;
        let mut pipe = pipe.map(std::fs::File::from);
        let attempt = Attempt { keeper, over };
        while !over.load(Ordering::Relaxed) {
            let found = match (&self.what, &mut pipe) {
                (Ready::Fd(_), Some(pipe)) => attempt.read_line(pipe),
                (Ready::Alive(length), _) => attempt.is_older(since, *length),
                (what, _) => attempt.make(what),
            };
            match found {
                Ok(true) => {
                    self.is(Found::Yes);
                    return keeper.wake();
                }
                Ok(false) => {}
                Err(e) => self.is(Found::Not(e.to_string())),
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE.1);
        }
    }
}

/// Makes a probe once, as a health check does.
pub(super) fn once(keeper: &Arc<Keeper>, what: &Ready, over: &AtomicBool) -> io::Result<bool> {
    Attempt { keeper, over }.make(what)
}

/// One attempt of a probe.
struct Attempt<'a> {
    keeper: &'a Arc<Keeper>,
    over: &'a AtomicBool,
}

impl Attempt<'_> {
    fn make(&self, what: &Ready) -> io::Result<bool> {
        match what {
            Ready::Notify => Ok(self.keeper.was_notified()),
            Ready::Log(_) => Ok(self.keeper.has_logged()),
            Ready::Tcp(name) => {
                self.all_accept(name.as_deref(), |socket| socket.is_stream() && socket.is_inet())
            }
            Ready::Unix(name) => {
                self.all_accept(name.as_deref(), |socket| socket.is_stream() && !socket.is_inet())
            }
            Ready::Http { path, status, listener } => self.answers(path, *status, listener.as_deref()),
            Ready::Exec(command) => self.keeper.succeeds(command, self.over),
            // It is looked at elsewhere, and that it lives is known.
            Ready::Fd(_) | Ready::Alive(_) => Ok(true),
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// A line may come in pieces, and the daemon may close the descriptor after it.
    fn read_line(&self, pipe: &mut std::fs::File) -> io::Result<bool> {
        let mut byte = [0];
        loop {
            if !poll::wait_one(pipe.as_fd(), Want::Read, Some(Instant::now() + PAUSE.1))? {
                return Ok(false);
            }
            match pipe.read(&mut byte)? {
                0 => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "it closed the descriptor without a line",
                    ));
                }
                _ if byte == [b'\n'] => return Ok(true),
                _ => {}
            }
        }
    }

    fn is_older(&self, since: Instant, length: Duration) -> io::Result<bool> {
        let left = length.saturating_sub(since.elapsed());
        std::thread::sleep(left.min(PAUSE.1));
        Ok(since.elapsed() >= length)
    }

    fn all_accept(&self, name: Option<&str>, is_meant: impl Fn(&Socket) -> bool) -> io::Result<bool> {
        let sockets = self.keeper.sockets();
        let meant: Vec<&Socket> = match name {
            Some(name) => vec![sockets.get(name).ok_or_else(|| no_listener(name))?],
            None => sockets.iter().filter(|socket| is_meant(socket)).collect(),
        };
        for socket in meant {
            if !self.accepts(&mut Connection::to(socket)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the connection was accepted, by the daemon.
    fn accepts(&self, connection: &mut Connection) -> io::Result<bool> {
        let mut pause = PAUSE.0 / 10;
        while !self.is_over() {
            if let Some(inode) = connection.acceptor()? {
                return self.is_ours(inode);
            }
            if connection.was_closed()? {
                // Whoever closed it had accepted it, and is not to be seen any more.
                return if self.keeper.is_alone() { Ok(true) } else { Ok(false) };
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE.0);
        }
        Ok(false)
    }

    /// Where the daemon is alone, nobody else can have accepted it. Between the two halves of accept(2) nobody has the descriptor yet.
    fn is_ours(&self, inode: u64) -> io::Result<bool> {
        if self.keeper.is_alone() {
            return Ok(true);
        }
        for _ in 0..3 {
            let others = self.keeper.pids()?;
            if others.iter().any(|pid| acceptance::has_socket(*pid, inode)) {
                return Ok(true);
            }
            std::thread::sleep(PAUSE.0);
        }
        Err(io::Error::other("another process accepted the connection"))
    }

    fn answers(&self, path: &str, status: Option<u16>, name: Option<&str>) -> io::Result<bool> {
        let sockets = self.keeper.sockets();
        let socket = match name {
            Some(name) => sockets.get(name).ok_or_else(|| no_listener(name))?,
            None => {
                sockets.iter().find(|socket| socket.is_stream()).ok_or_else(|| no_listener("for a stream"))?
            }
        };
        let mut connection = Connection::to(socket)?;
        // Where it is not alone, an answer could be anybody's: so it is found out first who accepted.
        if !self.keeper.is_alone() && !self.accepts(&mut connection)? {
            return Ok(false);
        }
        let host = if socket.is_inet() { socket.kind.local_address.as_str() } else { "localhost" };
        connection.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: handoff\r\nConnection: close\r\n\r\n"
        ))?;
        let answered = self.status_line(&mut connection)?;
        match (answered, status) {
            (None, _) => Ok(false),
            (Some(answered), Some(wanted)) if answered == wanted => Ok(true),
            (Some(200..=399), None) => Ok(true),
            (Some(answered), _) => Err(io::Error::other(format!("it answers {answered}"))),
        }
    }

    fn status_line(&self, connection: &mut Connection) -> io::Result<Option<u16>> {
        let deadline = Instant::now() + ANSWER;
        let mut head = Vec::new();
        while !self.is_over() {
            if let Some(end) = head.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&head[..end]).trim_end().to_owned();
                let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
                return status.map(Some).ok_or_else(|| io::Error::other(format!("it answers {line:?}")));
            }
            if head.len() > HEAD_MAX || Instant::now() >= deadline {
                break;
            }
            if connection.more(&mut head)? == Some(0) {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "it closed the connection without an answer",
                ));
            }
        }
        Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"))
    }
}

fn no_listener(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("there is no listener {name}"))
}

/// A connection to one of the daemon's sockets.
enum Connection {
    Tcp { stream: TcpStream, server: SocketAddr, client: SocketAddr },
    Unix(UnixStream),
}

/// How long the kernel may take to make a connection: less than for a queue that is full.
const CONNECTING: Duration = Duration::from_secs(1);

impl Connection {
    fn to(socket: &Socket) -> io::Result<Self> {
        let address = &socket.kind.local_address;
        if socket.is_inet() {
            let address: SocketAddr = address
                .parse()
                .map_err(|_| io::Error::new(ErrorKind::InvalidInput, format!("{address} is no address")))?;
            let stream = TcpStream::connect_timeout(&reachable(address), CONNECTING)?;
            stream.set_nonblocking(true)?;
            let (server, client) = (stream.peer_addr()?, stream.local_addr()?);
            return Ok(Self::Tcp { stream, server, client });
        }
        let fd = unix::connect_to(Path::new(address)).map_err(io::Error::other)?;
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self::Unix(stream))
    }

    fn acceptor(&self) -> io::Result<Option<u64>> {
        match self {
            Self::Tcp { server, client, .. } => acceptance::of_tcp(*server, *client),
            Self::Unix(stream) => acceptance::of_unix(stream.as_fd()),
        }
    }

    /// A reset is an error: so a listener goes that was shut down.
    fn was_closed(&mut self) -> io::Result<bool> {
        let mut byte = [0];
        match self.stream().read(&mut byte) {
            // What greets before it is asked has accepted.
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn ask(&mut self, request: &str) -> io::Result<()> {
        // It fits the buffer of a connection on which nothing was sent.
        self.stream().write_all(request.as_bytes())
    }

    /// Reads what has come, after a short wait: nothing if nothing has.
    fn more(&mut self, head: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let fd = match &*self {
            Self::Tcp { stream, .. } => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        };
        if !poll::wait_one(fd, Want::Read, Some(Instant::now() + PAUSE.1))? {
            return Ok(None);
        }
        let mut buffer = [0; 1024];
        match self.stream().read(&mut buffer) {
            Ok(length) => {
                head.extend_from_slice(&buffer[..length]);
                Ok(Some(length))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn stream(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Tcp { stream, .. } => stream,
            Self::Unix(stream) => stream,
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// An any-address is one to listen on.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}
