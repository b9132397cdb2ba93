//! A service manager that a test plays: every datagram of a service's life is compared with sd_notify(3), and what it stored is given back.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::control::Control;
use handoff::supervise::client::Client;
use handoff::sys::poll::{self, Want};
use handoff::sys::spawn::{Image, Program, Spawn};
use handoff::sys::{clock, datagram, socket};

use crate::common::said::Said;
use crate::common::{HANDOFF, Lines, PATIENCE, eventually, has_tool, wait_for_exit};
use crate::label_of;

/// The watchdog's limit: short enough to be heard of, and long enough for a slow machine, as nobody is killed here.
const WATCHDOG: Duration = Duration::from_millis(400);

/// A message, taken apart: all that is said in it is one of the variables of sd_notify(3), and as that has it.
#[derive(Debug)]
struct Message {
    vars: Vec<(String, String)>,
    fds: Vec<OwnedFd>,
    /// The clock when it came.
    came_us: u64,
}

impl Message {
    fn get(&self, name: &str) -> Option<&str> {
        self.vars.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn says(&self, name: &str) -> bool {
        self.get(name) == Some("1")
    }

    /// Whether it is one that may come at any time.
    fn is_passing(&self) -> bool {
        self.vars
            .iter()
            .all(|(name, _)| ["STATUS", "WATCHDOG", "EXTEND_TIMEOUT_USEC"].contains(&name.as_str()))
    }

    /// Each variable by itself, and those that belong together.
    fn check(&self, service: u32) {
        assert!(!self.vars.is_empty(), "an empty message");
        for (name, value) in &self.vars {
            let is_number = || value.parse::<u64>().is_ok_and(|number| number > 0);
            let is_right = match name.as_str() {
                "READY" | "RELOADING" | "STOPPING" | "WATCHDOG" | "FDSTORE" | "FDSTOREREMOVE" => value == "1",
                "MAINPID" => value.parse() == Ok(service),
                "MONOTONIC_USEC" | "EXTEND_TIMEOUT_USEC" => is_number(),
                "STATUS" => !value.is_empty() && !value.chars().any(char::is_control),
                "FDNAME" => value.len() <= 255 && value.bytes().all(|b| b.is_ascii_graphic() && b != b':'),
                "FDPOLL" => value == "0",
                _ => false,
            };
            assert!(is_right, "{name}={value} in {self:?}");
            let count = self.vars.iter().filter(|(other, _)| other == name).count();
            assert_eq!(count, 1, "{name} in {self:?}");
        }
        assert_eq!(self.says("RELOADING"), self.get("MONOTONIC_USEC").is_some(), "{self:?}");
        assert_eq!(self.says("FDSTORE"), !self.fds.is_empty(), "{self:?}");
        assert_eq!(
            self.says("FDSTORE") || self.says("FDSTOREREMOVE"),
            self.get("FDNAME").is_some(),
            "{self:?}"
        );
        assert_eq!(self.says("FDSTORE"), self.get("FDPOLL").is_some(), "{self:?}");
        let states = ["READY", "RELOADING", "STOPPING"].iter().filter(|name| self.says(name)).count();
        assert!(states <= 1, "{self:?}");
        if let Some(us) = self.get("MONOTONIC_USEC") {
            let us: u64 = us.parse().unwrap();
            let minute = 60_000_000;
            assert!(us <= self.came_us && us + minute > self.came_us, "{self:?}");
        }
    }
}

/// The manager, and the service that it watches.
struct Manager {
    dir: tempfile::TempDir,
    socket: OwnedFd,
    address: OsString,
    service: Option<Child>,
    stderr: Option<Lines>,
    /// What was stored, by name.
    store: Vec<(String, OwnedFd)>,
    port: u16,
    /// All messages but those that may come at any time, as long as nobody has asked for them.
    news: Vec<Message>,
    watchdogs: u32,
    extensions: Vec<Duration>,
    statuses: Vec<String>,
}

impl Manager {
    /// A manager that listens at a path, or under an abstract name.
    fn new(is_abstract: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, address) = if is_abstract {
            let socket = datagram::receiver().unwrap();
            let name = String::from_utf8(datagram::abstract_name(socket.as_fd()).unwrap()).unwrap();
            (socket, OsString::from(format!("@{name}")))
        } else {
            let path = dir.path().join("notify");
            (UnixDatagram::bind(&path).unwrap().into(), path.into_os_string())
        };
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::set_permissions(dir.path().join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            dir,
            socket,
            address,
            service: None,
            stderr: None,
            store: vec![],
            port,
            news: vec![],
            watchdogs: 0,
            extensions: vec![],
            statuses: vec![],
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn configure(&self, label: &str, faults: &[&str]) {
        let dir = self.dir.path().display();
        let faults: String = faults.iter().map(|fault| format!(", \"--fail\", \"{fault}\"")).collect();
        let text = format!(
            "control_socket = \"{dir}/run/control\"\ndata_dir = \"{dir}/data\"\nbinary = \"{HANDOFF}\"\n\
             args = [\"kvd\", \"--version-label\", \"{label}\"{faults}]\n\n[[listeners]]\nname = \"resp\"\naddr = \"{}\"\n",
            self.addr()
        );
        fs::create_dir_all(self.path("data")).unwrap();
        fs::write(self.path("beside"), text).unwrap();
        fs::rename(self.path("beside"), self.path("handoff.toml")).unwrap();
    }

    /// Has a shell become the daemon, after it has run this, and lets it say when it is ready.
    fn configure_shell(&self, script: &str) {
        self.configure("v1", &[]);
        let text = fs::read_to_string(self.path("handoff.toml")).unwrap();
        let (binary, args) = (format!("binary = \"{HANDOFF}\""), "args = [\"kvd\"");
        assert!(text.contains(&binary) && text.contains(args), "{text}");
        let script = format!("{script} exec '{HANDOFF}' \"$@\"");
        let shell = format!("args = [\"-c\", {script:?}, \"sh\", \"kvd\"");
        let text = text.replace(&binary, "binary = \"/bin/sh\"").replace(args, &shell);
        fs::write(self.path("handoff.toml"), text + "[readiness]\nby = \"notify\"\n").unwrap();
    }

    /// Starts the service with what is stored, as a service manager would.
    fn start(&mut self) {
        let program = Program::open(Path::new(HANDOFF)).unwrap();
        let mut image = Image::new(&program);
        let config = self.path("handoff.toml");
        image.args =
            ["supervise".as_ref(), "--config".as_ref(), config.as_os_str()].map(OsStr::to_owned).into();
        image.env = vec![
            ("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("NOTIFY_SOCKET".into(), self.address.clone()),
            ("WATCHDOG_USEC".into(), WATCHDOG.as_micros().to_string().into()),
        ];
        if !self.store.is_empty() {
            image.env.push(("LISTEN_FDS".into(), self.store.len().to_string().into()));
            let names: Vec<_> = self.store.iter().map(|(name, _)| name.as_str()).collect();
            image.env.push(("LISTEN_FDNAMES".into(), names.join(":").into()));
            image.listen_pid = true;
            image.fds = (3..).zip(&self.store).map(|(number, (_, fd))| (number, fd.as_fd())).collect();
        }
        let (reading, writing) = std::io::pipe().unwrap();
        let spawn = Spawn { stderr: Some(writing.as_fd()), ..Spawn::new(image) };
        self.service = Some(spawn.spawn().unwrap());
        drop(writing);
        self.stderr = Some(Lines::of(OwnedFd::from(reading).into()));
    }

    fn pid(&self) -> u32 {
        self.service.as_ref().unwrap().id()
    }

    /// Takes the next message, if one comes before the deadline, and checks it by itself.
    fn take(&mut self, deadline: Instant) -> bool {
        if !poll::wait_one(self.socket.as_fd(), Want::Read, Some(deadline)).unwrap() {
            return false;
        }
        let mut buffer = [0; 4097];
        let got = datagram::receive(self.socket.as_fd(), &mut buffer).unwrap();
        assert!(got.bytes <= 4096, "longer than a manager takes");
        if let Some(sender) = got.sender {
            assert_eq!(sender.pid, self.pid(), "NotifyAccess=main");
        }
        let text = std::str::from_utf8(&buffer[..got.bytes]).unwrap();
        let vars = text.lines().map(|line| {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{text:?}"));
            (name.to_owned(), value.to_owned())
        });
        let message = Message { vars: vars.collect(), fds: got.fds, came_us: clock::monotonic_us() };
        message.check(self.pid());
        self.watchdogs += u32::from(message.says("WATCHDOG"));
        self.statuses.extend(message.get("STATUS").map(str::to_owned));
        self.extensions
            .extend(message.get("EXTEND_TIMEOUT_USEC").map(|us| Duration::from_micros(us.parse().unwrap())));
        if !message.is_passing() {
            self.news.push(message);
        }
        true
    }

    /// Returns the next message that changes something; stores what is to be stored, and goes on.
    #[track_caller]
    fn next(&mut self) -> Message {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while !self.news.is_empty() {
                let message = self.news.remove(0);
                match message.get("FDNAME").map(str::to_owned) {
                    None => return message,
                    Some(name) if message.says("FDSTOREREMOVE") => {
                        self.store.retain(|(other, _)| *other != name)
                    }
                    Some(name) => self.keep(&name, message.fds),
                }
            }
            assert!(self.take(deadline), "no message: {:?}", self.said());
        }
    }

    /// As systemd does: not a socket that it has already.
    fn keep(&mut self, name: &str, fds: Vec<OwnedFd>) {
        for fd in fds {
            let inode = |fd: &OwnedFd| socket::inode(fd.as_fd()).unwrap();
            if !self.store.iter().any(|(_, other)| inode(other) == inode(&fd)) {
                self.store.push((name.to_owned(), fd));
            }
        }
    }

    /// The next message that changes something must say this.
    #[track_caller]
    fn expect(&mut self, name: &str) -> Message {
        let message = self.next();
        assert!(message.says(name), "{name} was expected, and {message:?} came; {:?}", self.said());
        message
    }

    /// Nothing that changes something comes any more, after the service has ended.
    #[track_caller]
    fn expect_silence(&mut self) {
        while self.take(Instant::now()) {}
        assert!(self.news.is_empty(), "{:?}", self.news);
    }

    fn said(&self) -> Vec<String> {
        self.stderr.as_ref().map_or(vec![], Lines::so_far)
    }

    fn label(&self) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let status =
            Control::connect(self.path("run/control"), "test", deadline).ok()?.status(deadline).ok()?;
        let rests = status.phase == "serving" && status.handoff.is_none();
        rests.then(|| label_of(&status.build_id))
    }

    fn daemon(&self) -> u32 {
        let state =
            Client::connect(self.path("run/trigger")).unwrap().status(Instant::now() + PATIENCE).unwrap();
        state.daemon.unwrap().pid
    }

    fn trigger(&self, label: &str, faults: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command.arg("trigger").arg("--trigger").arg(self.path("run/trigger"));
        command.args([HANDOFF, "kvd", "--version-label", label]);
        command.args(faults.iter().flat_map(|fault| ["--fail", fault])).stdin(Stdio::null());
        command
    }

    fn kill_service(&mut self) {
        let mut service = self.service.take().unwrap();
        service.kill().unwrap();
        service.wait().unwrap();
        while self.take_from_the_dead() {}
    }

    /// What it said before it was killed is of no interest any more.
    fn take_from_the_dead(&self) -> bool {
        datagram::receive(self.socket.as_fd(), &mut [0; 4096]).is_ok()
    }

    /// Stops it, and returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.expect("STOPPING");
        wait_for_exit(self.service.as_mut().unwrap()).code()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap().success());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            // It may have ended already.
            let _ = service.kill();
            let _ = service.wait();
        }
        let deadline = Instant::now() + PATIENCE;
        let control = Control::connect(self.path("run/control"), "test", deadline);
        if let Ok(status) = control.and_then(|mut control| control.status(deadline)) {
            let daemon = handoff::sys::process::PidFd::open(status.process.pid);
            // It may be going.
            let _ = daemon.and_then(|daemon| daemon.signal(handoff::sys::process::Signal::SIGKILL));
        }
    }
}

#[test]
fn a_whole_life_is_told_as_the_manual_page_has_it() {
    for is_abstract in [true, false] {
        whole_life(&mut Manager::new(is_abstract));
    }
}

fn whole_life(manager: &mut Manager) {
    // The daemon takes a while to serve, and READY waits for it.
    manager.configure("v1", &["slow-open-ms=300"]);
    manager.start();
    manager.expect("READY");
    assert_eq!(manager.label().as_deref(), Some("v1"), "who is ready serves");
    TcpStream::connect(manager.addr()).unwrap();
    let pid = manager.pid();
    let names: Vec<_> = manager.store.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["resp"], "the sockets are stored before it is ready");

    // The daemon has none of what is the supervisor's.
    let environ = fs::read(format!("/proc/{}/environ", manager.daemon())).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let address = manager.address.to_string_lossy().into_owned();
    assert!(!environ.contains(&address) && !environ.contains("WATCHDOG_"), "{environ:?}");

    // A swap that is committed, and one that is not: both begin and end, in the manager's eyes.
    for (label, faults, code, serves) in [("v2", &[][..], 0, "v2"), ("v3", &["unhealthy"], 3, "v2")] {
        let before = clock::monotonic_us();
        let swap =
            manager.trigger(label, faults).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let reloading = manager.expect("RELOADING");
        let us: u64 = reloading.get("MONOTONIC_USEC").unwrap().parse().unwrap();
        assert!(us >= before, "the clock of this swap");
        manager.expect("READY");
        Said::by(swap).expect(code);
        assert_eq!(manager.label().as_deref(), Some(serves));
    }
    // A swap by the configuration, which is how systemctl reload asks.
    manager.configure("v4", &["slow-drain-ms=5000"]);
    manager.signal("HUP");
    manager.expect("RELOADING");
    manager.expect("READY");
    assert_eq!(manager.label().as_deref(), Some("v4"));

    // A supervisor that becomes itself anew goes on talking, under its pid, and to the same manager.
    manager.signal("USR2");
    manager.expect("RELOADING");
    manager.expect("READY");
    let fed = manager.watchdogs;
    let deadline = Instant::now() + PATIENCE;
    while manager.watchdogs < fed + 3 {
        assert!(manager.take(deadline), "the watchdog is not fed");
    }
    assert!(manager.news.is_empty() && manager.pid() == pid, "{:?}", manager.news);

    // A stop that takes long asks for time.
    manager.extensions.clear();
    assert_eq!(manager.stop(), Some(0), "{:?}", manager.said());
    manager.expect_silence();
    assert!(!manager.extensions.is_empty(), "it took five seconds");
    assert!(manager.extensions.iter().all(|by| (1..=60).contains(&by.as_secs())), "{:?}", manager.extensions);
    assert!(!manager.statuses.is_empty());
}

#[test]
fn what_was_stored_is_taken_back_by_the_next_start() {
    let mut manager = Manager::new(true);
    manager.configure("v1", &[]);
    manager.start();
    manager.expect("READY");
    let first = manager.daemon();
    let kept = socket::cookie(manager.store[0].1.as_fd()).unwrap();

    // The supervisor alone: the daemon is adopted, and what the manager gave is the same socket.
    manager.kill_service();
    manager.start();
    manager.expect("READY");
    assert_eq!(manager.daemon(), first);

    // Both: only the manager has the socket, and a client that came meanwhile is served by the next daemon.
    manager.kill_service();
    handoff::sys::process::PidFd::open(first)
        .unwrap()
        .signal(handoff::sys::process::Signal::SIGKILL)
        .unwrap();
    eventually("the end of the daemon", || !Path::new(&format!("/proc/{first}/exe")).exists());
    let mut early = crate::common::load::Connection::open(manager.addr(), PATIENCE).unwrap();
    manager.start();
    manager.expect("READY");
    assert_ne!(manager.daemon(), first);
    assert_eq!(early.call(&["PING"]).unwrap(), crate::common::load::Answer::Simple("PONG".into()));
    let status =
        Client::connect(manager.path("run/trigger")).unwrap().status(Instant::now() + PATIENCE).unwrap();
    assert_eq!(status.listeners, ["resp"]);
    assert_eq!(manager.store.len(), 1, "the same socket is not kept twice");
    assert_eq!(socket::cookie(manager.store[0].1.as_fd()).unwrap(), kept);
    assert_eq!(manager.stop(), Some(0));
    manager.expect_silence();
}

#[test]
fn a_stored_socket_that_the_configuration_does_not_name_is_said_and_forgotten() {
    let mut manager = Manager::new(true);
    manager.configure("v1", &[]);
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    manager.store.push(("gone".to_owned(), stranger.into()));
    manager.start();
    manager.expect("READY");
    assert!(manager.said().iter().any(|line| line.contains("\"gone\"")), "{:?}", manager.said());
    let names: HashMap<_, _> = manager.store.iter().map(|(name, fd)| (name.as_str(), fd)).collect();
    assert!(names.contains_key("resp") && !names.contains_key("gone"), "{names:?}");
    assert_eq!(manager.stop(), Some(0));
}

#[test]
fn a_daemon_that_never_serves_is_never_ready() {
    let mut manager = Manager::new(true);
    manager.configure("v1", &["crash-at-start"]);
    manager.start();
    let status = wait_for_exit(manager.service.as_mut().unwrap());
    assert!(!status.success());
    while manager.take(Instant::now()) {}
    let ready = manager.news.iter().any(|message| message.says("READY"));
    assert!(!ready, "{:?}", manager.news);
}

/// It waits for the first client, and then becomes what it is told, with the socket.
#[test]
fn a_socket_that_systemd_socket_activate_holds_is_the_daemons() {
    if !has_tool("systemd", Command::new("systemd-socket-activate").arg("--version")) {
        return;
    }
    let mut manager = Manager::new(true);
    manager.configure("v1", &[]);
    let mut child = socket_activate(&manager).spawn().unwrap();
    manager.stderr = Some(Lines::of(child.stderr.take().unwrap()));
    manager.service = Some(child);
    manager.stderr.as_ref().unwrap().wait_for("Listening on");
    let mut first = crate::common::load::Connection::open(manager.addr(), PATIENCE).unwrap();
    manager.expect("READY");
    assert_eq!(first.call(&["PING"]).unwrap(), crate::common::load::Answer::Simple("PONG".into()));
    let warned = manager.said().into_iter().any(|line| line.contains("warning"));
    assert!(!warned, "{:?}", manager.said());
    assert_eq!(manager.stop(), Some(0));
    manager.expect_silence();
}

fn socket_activate(manager: &Manager) -> Command {
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &manager.addr().to_string(), "--fdname=resp"]);
    // It clears the environment but for what it is told to pass on.
    let mut notify = OsString::from("--setenv=NOTIFY_SOCKET=");
    notify.push(&manager.address);
    command.arg(notify).args([HANDOFF, "supervise", "--config"]).arg(manager.path("handoff.toml"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The daemon's helper says so on the supervisor's socket, when somebody lets it.
#[test]
fn a_daemon_that_is_to_say_that_it_is_ready_is_waited_for_and_its_words_are_passed_on() {
    if !has_tool("systemd", Command::new("systemd-notify").arg("--version")) {
        return;
    }
    let mut manager = Manager::new(false);
    let gate = manager.path("gate");
    let notify = "systemd-notify --status='reads its data' && systemd-notify EXTEND_TIMEOUT_USEC=7000000";
    let helper = format!("(read _ <'{}' && systemd-notify --ready) &", gate.display());
    manager.configure_shell(&format!("{notify} || exit 9; {helper}"));
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    manager.start();
    let deadline = Instant::now() + PATIENCE;
    while manager.label().as_deref() != Some("v1") {
        assert!(Instant::now() < deadline, "{:?}", manager.said());
        manager.take(Instant::now() + Duration::from_millis(10));
    }
    // It serves, and is asked for nothing more: but has not said so.
    let until = Instant::now() + Duration::from_millis(300);
    while manager.take(until) {}
    assert!(!manager.news.iter().any(|message| message.says("READY")), "{:?}", manager.news);
    let daemon = manager.daemon();
    assert!(manager.statuses.contains(&format!("pid {daemon}: reads its data")), "{:?}", manager.statuses);
    assert!(manager.extensions.contains(&Duration::from_secs(7)), "{:?}", manager.extensions);

    // Nor does it count when somebody else says it.
    let environ = fs::read(format!("/proc/{daemon}/environ")).unwrap();
    let environ = environ.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let private =
        environ.filter_map(|var| Some(var.strip_prefix("NOTIFY_SOCKET=")?.to_owned())).next().unwrap();
    let address = datagram::Address::parse(OsStr::new(&private)).unwrap();
    datagram::send_to(datagram::sender().unwrap().as_fd(), &address, b"READY=1\nSTATUS=a stranger", &[])
        .unwrap();
    let until = Instant::now() + Duration::from_millis(300);
    while manager.take(until) {}
    assert!(!manager.news.iter().any(|message| message.says("READY")), "{:?}", manager.news);

    fs::write(&gate, "go\n").unwrap();
    manager.expect("READY");
    assert!(!manager.statuses.iter().any(|status| status.contains("stranger")), "{:?}", manager.statuses);
    assert_eq!(manager.stop(), Some(0));
    manager.expect_silence();
}
