//! The holder: it gives and takes, outlives its own program, and nobody can block it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use handoff::error::Error;
use handoff::holder::Client;
use tempfile::TempDir;

use crate::common::{HANDOFF, Kvd, Lines, PATIENCE, eventually, wait_for_exit};
use crate::{Serving, close_strays, hold, python, said, text};

struct Holder {
    dir: TempDir,
    path: PathBuf,
    child: Child,
    stderr: Lines,
}

impl Holder {
    fn start(words: &[&str]) -> Self {
        Self::start_program(HANDOFF, words)
    }

    fn start_program(program: impl AsRef<Path>, words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        Self::start_at(dir, path, program.as_ref(), words)
    }

    /// Starts one at a path that may be in another one's directory.
    fn start_at(dir: TempDir, path: PathBuf, program: &Path, words: &[&str]) -> Self {
        close_strays();
        let mut command = Command::new(program);
        command.args(["hold-fds", "--serve"]).arg(&path).args(words).stdin(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Lines::of(child.stderr.take().unwrap());
        let holder = Self { dir, path, child, stderr };
        eventually("the holder answers", || holder.try_list().is_ok());
        holder
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, soon()).unwrap()
    }

    fn try_list(&self) -> handoff::Result<Vec<String>> {
        let held = Client::connect(&self.path, soon())?.list(soon())?;
        Ok(held.into_iter().map(|held| format!("{} {} {}", held.name, held.kind, held.address)).collect())
    }

    fn list(&self) -> Vec<String> {
        self.try_list().unwrap()
    }

    /// Runs `hold-fds --from` it.
    fn from(&self, words: &[&str]) -> Command {
        let mut command = Command::new(HANDOFF);
        command.args(["hold-fds", "--from"]).arg(&self.path).args(words);
        command
    }

    fn signal(&self, name: &str) {
        said(Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]));
    }

    fn exe(&self) -> Option<u64> {
        Some(std::fs::metadata(format!("/proc/{}/exe", self.child.id())).ok()?.ino())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn refusal<T: std::fmt::Debug>(result: handoff::Result<T>) -> String {
    match result.unwrap_err() {
        Error::Refused { reason } => reason,
        e => panic!("no refusal: {e}"),
    }
}

#[test]
fn what_a_holder_has_is_served_by_one_program_after_another() {
    let holder = Holder::start(&["--listen", "http=127.0.0.1:0", "--listen", "dns=udp:127.0.0.1:0"]);
    for _ in 0..2 {
        let serving = Serving::start(holder.from(&[]).args(python()));
        assert_eq!(serving.names(), ["http", "dns"]);
        serving.expect_answers();
    }
    let shown = said(&mut holder.from(&["--only", "dns", "--", "sh", "-c", "echo $LISTEN_FDNAMES"]));
    assert_eq!(shown, "dns\n");
    // What is there already is not fetched, and what is to be bound is bound if the holder lacks it.
    let words = ["--listen", "http=127.0.0.1:0", "--listen", "more=127.0.0.1:0", "--", "sh", "-c"];
    assert_eq!(said(holder.from(&words).arg("echo $LISTEN_FDNAMES")), "http:dns:more\n");
    let shown = said(&mut holder.from(&["--list"]));
    assert!(shown.starts_with("http tcp 127.0.0.1:") && shown.contains("\ndns udp 127.0.0.1:"), "{shown}");
    assert!(said(&mut holder.from(&["--list", "--json"])).starts_with(r#"[{"name":"http","kind":"tcp""#));
}

#[test]
fn sockets_are_stored_replaced_and_forgotten() {
    let holder = Holder::start(&["--listen", "a=127.0.0.1:0"]);
    let store = |words: &[&str]| hold(&[words, &["--store", holder.path.to_str().unwrap()]].concat());
    let before = holder.list();
    assert_eq!(store(&["--listen", "b=127.0.0.1:0"]).status.code(), Some(0));
    assert_eq!(holder.list().len(), 2);
    let refused = store(&["--listen", "a=127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("there is another socket \"a\" already"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(holder.list()[..1], before);
    assert_eq!(store(&["--listen", "a=127.0.0.1:0", "--replace"]).status.code(), Some(0));
    assert_ne!(holder.list()[..1], before);
    said(&mut holder.from(&["--forget", "a"]));
    assert_eq!(holder.list().len(), 1);
    assert_eq!(hold(&["--from", holder.path.to_str().unwrap(), "--forget", "a"]).status.code(), Some(1));

    let (listener, file) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), std::fs::File::open("/dev/null").unwrap());
    let mut client = holder.client();
    assert!(!client.store("c", listener.as_fd(), false, soon()).unwrap());
    // Once more the same is no replacement.
    assert!(!client.store("c", listener.as_fd(), false, soon()).unwrap());
    assert!(refusal(client.store("d", file.as_fd(), false, soon())).contains("is no socket"));
    assert!(refusal(client.store("a b", listener.as_fd(), false, soon())).contains("cannot name a listener"));
    assert!(refusal(client.give(&["zz".to_owned()], soon())).contains("no socket \"zz\""));
}

#[test]
fn five_hundred_sockets_are_listed_and_given() {
    let words: Vec<String> =
        (0..500).flat_map(|i| ["--listen".to_owned(), format!("listener-number-{i}=127.0.0.1:0")]).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let holder = Holder::start(&words);
    let names: Vec<String> =
        holder.client().list(soon()).unwrap().into_iter().map(|held| held.name).collect();
    assert_eq!(names.len(), 500);
    let given = holder.client().give(&names, soon()).unwrap();
    assert!(given.iter().map(|(name, _)| name).eq(&names));
    assert_eq!(said(&mut holder.from(&["--", "sh", "-c", "echo $LISTEN_FDS"])), "500\n");
    holder.signal("HUP");
    eventually("they are all there after it became itself anew", || holder.list().len() == 500);
}

#[test]
fn a_second_holder_at_the_path_is_refused_and_told_who_is_there() {
    let holder = Holder::start(&["--listen", "a=127.0.0.1:0"]);
    let output = hold(&["--serve", holder.path.to_str().unwrap(), "--listen", "b=127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("pid {} (", holder.child.id());
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
    assert_eq!(holder.list().len(), 1);
}

#[test]
fn it_ends_in_order_and_removes_its_own_path_and_no_other() {
    let mut holder = Holder::start(&["--listen", "a=127.0.0.1:0"]);
    holder.signal("TERM");
    assert!(wait_for_exit(&mut holder.child).success());
    assert!(!holder.path.exists());
    let mut holder = Holder::start(&["--listen", "a=127.0.0.1:0"]);
    std::fs::remove_file(&holder.path).unwrap();
    std::fs::write(&holder.path, "another's").unwrap();
    holder.signal("INT");
    assert!(wait_for_exit(&mut holder.child).success());
    assert_eq!(std::fs::read_to_string(&holder.path).unwrap(), "another's");
}

#[test]
fn a_killed_holder_is_followed_by_one_that_fetches_the_sockets_from_the_incumbent() {
    let mut holder = Holder::start(&["--listen", "resp=127.0.0.1:0"]);
    let before = holder.list();
    let data = holder.dir.path().join("data");
    let kvd = Kvd::spawn({
        let mut command = holder.from(&["--", HANDOFF, "kvd", "--data-dir"]);
        command.arg(&data);
        command
    });
    holder.child.kill().unwrap();
    holder.child.wait().unwrap();
    let control = data.join("control").display().to_string();
    let words = [
        "--from-incumbent",
        "--control",
        &control,
        "--listen",
        "resp=127.0.0.1:0",
        "--listen",
        "more=127.0.0.1:0",
    ];
    // The dead one's socket is still at the path.
    let path = holder.path.clone();
    let second = Holder::start_at(tempfile::tempdir().unwrap(), path, Path::new(HANDOFF), &words);
    let now = second.list();
    assert_eq!((&now[..1], now.len()), (&before[..], 2));
    assert_eq!(now[0], format!("resp tcp {}", kvd.addr));
}

#[test]
fn it_becomes_itself_anew_under_load_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("handoff");
    let release = || {
        let beside = dir.path().join("next");
        std::fs::copy(HANDOFF, &beside).unwrap();
        std::fs::rename(&beside, &program).unwrap();
        std::fs::metadata(&program).unwrap().ino()
    };
    release();
    let holder = Holder::start_program(&program, &["--listen", "a=127.0.0.1:0", "--listen", "b=127.0.0.1:0"]);
    let listed = holder.list();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let names = ["a", "b"].map(str::to_owned);
                    assert_eq!(holder.client().give(&names, soon()).unwrap().len(), 2);
                    assert_eq!(holder.list(), listed);
                }
            });
        }
        for _ in 0..5 {
            let inode = release();
            // A signal that comes in the middle of becoming is not lost, and does not end it.
            (0..3).for_each(|_| holder.signal("HUP"));
            eventually("it is the new program", || holder.exe() == Some(inode));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(holder.list(), listed);
}

#[test]
fn a_program_that_does_not_understand_is_not_become() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("handoff");
    std::fs::copy(HANDOFF, &program).unwrap();
    let holder = Holder::start_program(&program, &["--listen", "a=127.0.0.1:0"]);
    let (before, exe) = (holder.list(), holder.exe());
    for (other, expected) in [(Some("/bin/true"), "does not understand"), (None, "No such file")] {
        std::fs::remove_file(&program).unwrap();
        if let Some(other) = other {
            std::fs::copy(other, &program).unwrap();
        }
        holder.signal("HUP");
        holder.stderr.wait_for(expected);
        assert_eq!((holder.list(), holder.exe()), (before.clone(), exe));
        std::fs::write(&program, "").unwrap();
    }
}

#[test]
fn readiness_is_said_once_to_each_who_wants_to_know() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = dir.path().join("s");
    let (mut ready, writer) = std::io::pipe().unwrap();
    close_strays();
    // Its standard input stands for the descriptor that s6 gives a service.
    let mut command = Command::new("sh");
    let script = "exec \"$0\" hold-fds --serve \"$1\" --listen a=127.0.0.1:0 --ready-fd 7 7>&0 0</dev/null";
    command.args(["-c", script, HANDOFF]).arg(&path).stdin(writer);
    let mut child = command.env("NOTIFY_SOCKET", dir.path().join("manager")).spawn().unwrap();
    drop(command);
    let heard = || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        text(&buffer[..length])
    };
    let status = format!("READY=1\nMAINPID={}\nSTATUS=holds 1 sockets at {}", child.id(), path.display());
    assert_eq!(heard(), status);
    let mut said_there = String::new();
    ready.read_to_string(&mut said_there).unwrap();
    assert_eq!(said_there, "\n", "one newline, and then it is closed");
    said(Command::new("kill").args(["-HUP", &child.id().to_string()]));
    assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(heard(), status);
    said(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    assert_eq!(heard(), "STOPPING=1");
    assert!(wait_for_exit(&mut child).success());
}

#[test]
fn others_get_only_what_they_are_allowed() {
    if said(Command::new("id").arg("-u")) != "0\n" {
        eprintln!("skipped: needs root, to be another user");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run this as root");
        return;
    }
    let holders = [
        (&[][..], "unable to reach", "unable to reach"),
        (&["--allow", "12345"], "", "store or remove nothing"),
        (&["--allow", ":54321"], "", "store or remove nothing"),
        (&["--allow", "12346"], "user 12345 may not", "user 12345 may not"),
        (&["--allow-store", "12345"], "", ""),
    ];
    for (allowed, give, store) in holders {
        let holder = Holder::start(&[&["--listen", "a=127.0.0.1:0"], allowed].concat());
        said(Command::new("chmod").arg("755").arg(holder.dir.path()));
        // The binary may be where others cannot go.
        let program = holder.dir.path().join("handoff");
        std::fs::copy(HANDOFF, &program).unwrap();
        let run = |words: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "12345", "--regid", "12345", "--groups", "54321", "--"]);
            let output = command.arg(&program).arg("hold-fds").args(words).output().unwrap();
            assert_eq!(output.status.success(), output.stderr.is_empty());
            text(&output.stderr)
        };
        let path = holder.path.display().to_string();
        let said = run(&["--from", &path, "--only", "a", "--", "true"]);
        assert!(said.contains(give) && said.is_empty() == give.is_empty(), "{allowed:?}: {said}");
        let said = run(&["--listen", "b=127.0.0.1:0", "--store", &path]);
        assert!(said.contains(store) && said.is_empty() == store.is_empty(), "{allowed:?}: {said}");
    }
}

#[test]
fn strangers_can_neither_block_it_nor_fill_it() {
    let holder = Holder::start(&["--listen", "a=127.0.0.1:0"]);
    let connect = || {
        let stream = UnixStream::connect(&holder.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let answer = |request: &[u8]| {
        let mut stream = connect();
        stream.write_all(request).unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).unwrap_or(0);
        text(&answer[..length])
    };
    assert!(answer(b"nonsense\n").contains("refused"));
    assert!(answer(b"{\"type\":\"from-the-future\"}\n").contains("refused"));
    assert!(answer(b"{\"type\":\"store\",\"name\":\"x\"}\n").contains("a socket must come with it"));
    assert_eq!(answer(b"{\"type\":\"list\"}\n{\"type\":\"list\"}\n"), "", "one request at a time");
    let mut endless = connect();
    let junk = vec![b'x'; 1 << 16];
    assert!((0..100).any(|_| endless.write_all(&junk).is_err()), "a line without an end is not listened to");
    // As many as may be there at once, and more, who say nothing.
    let silent: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    let mut told = String::new();
    let mut last = silent.last().unwrap();
    last.read_to_string(&mut told).unwrap();
    assert!(told.contains("connections already"), "{told}");
    drop(silent);
    eventually("it answers again", || holder.try_list().is_ok());
    // Those who are silent are let go after a while.
    let mut silent = connect();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", holder.child.id())).unwrap().count();
    eventually("nothing is left over", || descriptors() < 16);
}

/// What a holder may take, in KiB: proc_pid_status(5), VmRSS.
const RSS_MAX: u64 = 1536;

#[test]
#[ignore = "needs the release build: HANDOFF_RELEASE names it"]
fn it_stays_small() {
    let program = std::env::var("HANDOFF_RELEASE").expect("HANDOFF_RELEASE names the release build");
    let holder = Holder::start_program(program, &["--listen", "a=127.0.0.1:0", "--listen", "b=127.0.0.1:0"]);
    let field = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", holder.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let rss = || field("VmRSS:");
    let request = || {
        let names = ["a", "b"].map(str::to_owned);
        assert_eq!(holder.client().give(&names, soon()).unwrap().len(), 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        holder.client().store("c", listener.as_fd(), true, soon()).unwrap();
        holder.client().forget("c", soon()).unwrap();
        assert_eq!(holder.list().len(), 2);
    };
    // While it answers it needs more of its program; what it does not need any more it gives back as soon as nobody is served.
    let at_rest = || {
        eventually("it gives back what it needs no more", || rss() <= RSS_MAX);
        rss()
    };
    (0..10).for_each(|_| request());
    // Its own memory; the rest is its program's, which is more or less as it has just been used.
    let (busy, own) = (rss(), field("RssAnon:"));
    at_rest();
    (0..250).for_each(|_| request());
    let (rest, own_after) = (at_rest(), field("RssAnon:"));
    println!(
        "{busy} KiB when busy, {rest} KiB at rest; of its own {own} and, after 1000 requests, {own_after} KiB"
    );
    assert!(own_after <= own + 32, "from {own} to {own_after} KiB");
    // It has its first program's memory no more after it became itself anew.
    holder.signal("HUP");
    eventually("it answers", || holder.list().len() == 2);
    request();
    at_rest();
}
