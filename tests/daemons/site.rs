//! A server that nobody here wrote: its releases, good ones and bad ones, in a directory of their own, and who runs there.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use handoff::sys::process::{PidFd, Signal};

use crate::common::{PATIENCE, has_tool};

/// A kind of server.
pub struct Server {
    /// The name of its script in `scripts/wrap/`.
    pub name: &'static str,
    /// The program that the script runs.
    pub program: &'static str,
    /// Returns where it is, in the directory if it has to be built; says so if it is missing.
    pub find: fn(&Path) -> Option<PathBuf>,
    /// Whether it has data: what is acknowledged is read back.
    pub writes: bool,
    /// Writes a release into a directory of its own, and returns the script's arguments.
    pub release: fn(&Site, &Release) -> Vec<String>,
}

/// A release to be written.
pub struct Release {
    pub dir: PathBuf,
    /// What it says when it is asked for its version.
    pub label: String,
    pub is_broken: bool,
}

impl Release {
    /// Writes one of its files, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// What is wrong with a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It exits at once.
    Exits,
    /// It runs, and does nothing.
    Mute,
    /// It serves, and is killed with its children when it is [told so](Site::let_die).
    Dies,
}

/// Where it all happens.
pub struct Site {
    pub server: &'static Server,
    dir: tempfile::TempDir,
    real: PathBuf,
    pub addr: SocketAddr,
}

impl Site {
    /// Makes one, unless the server is missing, which was said.
    pub fn new(server: &'static Server) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("handoff-daemons-").tempdir().unwrap();
        // Workers that run as somebody else come here, too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["data", "releases", "bin"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let real = (server.find)(dir.path())?;
        let site = Self { server, dir, real, addr: free_address() };
        site.install(None);
        Some(site)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a release, and returns the arguments of the script, or of the program.
    pub fn release(&self, label: &str, is_broken: bool) -> Vec<String> {
        let dir = self.path("releases").join(label);
        fs::create_dir_all(&dir).unwrap();
        let release = Release { dir, label: label.to_owned(), is_broken };
        release.file("VERSION", &format!("{label}\n"));
        (self.server.release)(self, &release)
    }

    /// Puts the program into place, as a deployment does that flips a link.
    pub fn install(&self, fault: Option<Fault>) {
        let link = self.path("bin").join(self.server.program);
        let next = self.path("bin/next");
        symlink(self.program(fault), &next).unwrap();
        fs::rename(next, link).unwrap();
    }

    /// Returns where the program is, or one in its place with a fault. What checks a configuration is passed on to the real one.
    pub fn program(&self, fault: Option<Fault>) -> PathBuf {
        let Some(fault) = fault else { return self.real.clone() };
        let real = self.real.display();
        let end = match fault {
            Fault::Exits => "exit 7".to_owned(),
            Fault::Mute => "exec sleep 1000".to_owned(),
            Fault::Dies => format!(
                "((until test -e {0}; do kill -0 $$ 2>/dev/null || exit; sleep 0.02; done\n\
                 all=$(cat /proc/$$/task/$$/children); kill -KILL $$ $all) &)\nexec {1} \"$@\"",
                self.path("die").display(),
                real
            ),
        };
        let dir = self.path(&format!("bin-{fault:?}"));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(self.server.program);
        let text = format!("#!/bin/sh\ncase $1 in -t | -c | --check*) exec {real} \"$@\" ;; esac\n{end}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Kills what has been told to die then.
    pub fn let_die(&self) {
        fs::write(self.path("die"), "").unwrap();
    }

    /// Sets a command's environment and directory. All that it becomes is found again by the directory.
    pub fn at_home(&self, command: &mut Command, fault: Option<Fault>) {
        let bin = match fault {
            Some(fault) => self.program(Some(fault)).parent().unwrap().to_owned(),
            None => self.path("bin"),
        };
        let handoff = Path::new(crate::common::HANDOFF).parent().unwrap();
        command
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{}:{SYSTEM_PATH}", bin.display(), handoff.display()))
            .env("DATA", self.path("data"))
            .env("HANDOFF_DATA_DIR", self.path("data"))
            .env("HANDOFF_CONTROL", self.path("control"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("HANDOFF_LOG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
    }

    /// Returns what the server says of its version.
    pub fn version(&self) -> Option<String> {
        let said = crate::load::ask_for(self.addr, "/", Duration::from_secs(5)).ok()?;
        Some(said.trim_end().to_owned())
    }

    /// Returns the processes that run here.
    pub fn running(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let home = self.dir.path().canonicalize().unwrap();
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&home)))
            .collect()
    }

    /// Kills all that runs here.
    pub fn clear(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let running = self.running();
            if running.is_empty() || Instant::now() > until {
                return;
            }
            for pid in running {
                kill(pid);
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Where Debian puts programs: a server's interpreter is the one that it was packaged with.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns where a program of a Debian package is, which can be asked for its version.
pub fn packaged(program: &str, version: &str, package: &str) -> Option<PathBuf> {
    let found = SYSTEM_PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    let found = found.unwrap_or_else(|| program.into());
    has_tool(package, Command::new(&found).arg(version)).then_some(found)
}

/// Returns an address that was free a moment ago: a configuration needs a fixed one. The kernel gives none of these to clients.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let tried = || std::process::id() * 131 + NEXT.fetch_add(1, Ordering::Relaxed);
    let mut addresses =
        std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], 10_000 + (tried() % 22_000) as u16)));
    addresses.find(|addr| TcpListener::bind(addr).is_ok()).unwrap()
}

fn kill(pid: u32) {
    if let Ok(process) = PidFd::open(pid) {
        // It may have ended already.
        let _ = process.signal(Signal::SIGKILL);
    }
}
