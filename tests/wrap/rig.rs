//! A wrap with a data directory of its own, its daemon, and what is asked of both.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use handoff::sys::inherit;
use handoff::sys::process::{PidFd, Signal};

use crate::common::{HANDOFF, Lines, PATIENCE, eventually, wait_for_exit};

/// A directory, an address, and the wrap that was started first.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub address: String,
    pub first: Wrap,
}

/// A running wrap.
pub struct Wrap {
    pub child: Child,
    pub said: Lines,
}

/// What a wrap is started with.
#[derive(Clone, Default)]
pub struct Spec<'a> {
    /// Its options.
    pub options: Vec<&'a str>,
    /// The daemon's label and faults.
    pub daemon: Vec<&'a str>,
}

pub fn spec<'a>(options: &[&'a str], daemon: &[&'a str]) -> Spec<'a> {
    Spec { options: options.to_vec(), daemon: daemon.to_vec() }
}

/// The interpreter itself: what is called python3 may be a script that looks for one.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let words = ["-c", "import sys; print(sys.executable, end='')"];
        let output = Command::new("python3").args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    })
}

/// Keeps from the programs that are started here what the tests themselves were started with.
fn close_strays() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in (3..1024).filter(|number| inherit::is_passed_on(*number)) {
            // It stays open here, and closes at exec.
            let _ = inherit::adopt(number).unwrap().into_raw_fd();
        }
    });
}

pub fn handoff() -> Command {
    close_strays();
    let mut command = Command::new(HANDOFF);
    command.stdin(Stdio::null());
    for name in ["HANDOFF_CONTROL", "HANDOFF_DATA_DIR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// Returns a port that was free a moment ago: nobody else asks for a certain one here.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Rig {
    pub fn start(options: &[&str], daemon: &[&str]) -> Self {
        let address = free_address();
        Self::start_at(tempfile::tempdir().unwrap(), address, options, daemon)
    }

    pub fn start_at(dir: tempfile::TempDir, address: String, options: &[&str], daemon: &[&str]) -> Self {
        let listen = format!("web={address}");
        let mut all = vec!["--listen", listen.as_str()];
        all.extend(options);
        let words = words(dir.path(), &spec(&all, daemon));
        let first = Wrap::start(handoff().args(&words));
        first.said.wait_for(" serves");
        Self { dir, address, first }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn control(&self) -> PathBuf {
        self.path().join("data/control")
    }

    /// What is on disk.
    pub fn count(&self) -> u64 {
        std::fs::read_to_string(self.path().join("data/tally")).unwrap().parse().unwrap()
    }

    /// The pid of the daemon: the eldest that has inherited the lock.
    pub fn daemon(&self) -> u32 {
        self.find_daemon().unwrap()
    }

    pub fn find_daemon(&self) -> Option<u32> {
        let holders = handoff::DataDirLock::who(self.path().join("data")).unwrap_or_default();
        let daemons = holders.iter().filter(|holder| holder.inherited_from.is_some());
        daemons.min_by_key(|holder| (holder.start_ticks, holder.pid)).map(|holder| holder.pid)
    }

    /// Whether the daemon's first listener is non-blocking.
    pub fn is_nonblocking(&self) -> bool {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/3", self.daemon())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & 0o4000 != 0
    }

    /// Lets those go on that wait for it.
    pub fn go(&self) {
        std::fs::write(self.path().join("data/tally.go"), "").unwrap();
    }

    /// Asks the daemon something; its answer without the end of the line.
    pub fn ask(&self) -> String {
        ask(&self.address, "x").unwrap()
    }

    pub fn tell(&self, text: &str) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        // It dies of it, and does not answer.
        let _ = stream.read(&mut [0; 16]);
    }

    /// Swaps to another wrap; the command's output, and its exit code.
    pub fn swap(&self, keys: &[&str], successor: &Spec<'_>) -> (i32, String) {
        let output = self.swap_command(keys, successor).output().unwrap();
        (output.status.code().unwrap(), said(&output))
    }

    pub fn swap_command(&self, keys: &[&str], successor: &Spec<'_>) -> Command {
        let mut command = handoff();
        command.arg("swap").arg("--control").arg(self.control()).args(["--progress", "never"]).args(keys);
        command.arg(HANDOFF).args(words(self.path(), successor));
        command
    }

    pub fn expect_commit(&self, keys: &[&str], successor: &Spec<'_>) {
        let (code, said) = self.swap(keys, successor);
        assert_eq!(code, 0, "{said}");
    }

    pub fn is_locked(&self) -> bool {
        handoff().args(["lock", "--who"]).arg(self.path().join("data")).output().unwrap().status.success()
    }
}

pub fn words(dir: &Path, spec: &Spec<'_>) -> Vec<String> {
    let data = dir.join("data");
    let mut words = vec!["wrap".to_owned(), "--data-dir".to_owned(), data.display().to_string()];
    words.extend(spec.options.iter().map(|word| (*word).to_owned()));
    words.push("--".to_owned());
    if let ["exactly", exact @ ..] = &spec.daemon[..] {
        words.extend(exact.iter().map(|word| (*word).to_owned()));
        return words;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wrap/daemon.py");
    words.extend([python().to_owned(), script.to_owned(), spec.daemon[0].to_owned()]);
    words.push(data.join("tally").display().to_string());
    words.extend(spec.daemon[1..].iter().map(|word| (*word).to_owned()));
    words
}

impl Wrap {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Lines::of(child.stderr.take().unwrap());
        Self { child, said }
    }

    pub fn signal(&self, which: Signal) {
        signal(self.child.id(), which);
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }
}

impl Drop for Rig {
    /// Whoever serves has the lock, and so has all that is left of the daemons.
    fn drop(&mut self) {
        let _ = self.first.child.kill();
        let _ = self.first.child.wait();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let holders = handoff::DataDirLock::who(self.path().join("data")).unwrap_or_default();
            if holders.is_empty() {
                return;
            }
            for holder in holders.iter().filter(|holder| holder.pid != std::process::id()) {
                if let Ok(pidfd) = PidFd::open(holder.pid) {
                    let _ = pidfd.signal(Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn signal(pid: u32, which: Signal) {
    PidFd::open(pid).unwrap().signal(which).unwrap();
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn ask(address: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.trim_end() {
        "" => Err(ErrorKind::UnexpectedEof.into()),
        answer => Ok(answer.to_owned()),
    }
}

/// Clients that write one after another, and the book of what was acknowledged.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<std::io::Error>>>,
}

impl Load {
    pub fn start(address: &str) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (stop, acknowledged, address) =
                (Arc::clone(&stop), Arc::clone(&acknowledged), address.to_owned());
            std::thread::spawn(move || {
                let mut errors = vec![];
                while !stop.load(Ordering::Relaxed) {
                    match ask(&address, "x") {
                        Ok(_) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => errors.push(e),
                    }
                }
                errors
            })
        };
        let clients = (0..2).map(client).collect();
        Self { stop, acknowledged, clients }
    }

    /// Waits until there were more writes.
    pub fn go_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually("more writes", || self.acknowledged.load(Ordering::Relaxed) > before + 5);
    }

    /// Ends it, and returns what went wrong and how many writes were acknowledged.
    pub fn end(self) -> (Vec<std::io::Error>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let errors = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (errors, self.acknowledged.load(Ordering::Relaxed))
    }

    /// Ends it: nothing was refused, reset, cut or lost.
    pub fn expect_undisturbed(self, rig: &Rig) {
        let (errors, acknowledged) = self.end();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(rig.count(), acknowledged);
    }
}
