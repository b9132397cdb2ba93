//! Kills everything that was made for a successor, so that nothing of it can write once the data has another owner.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::process::{PidFd, Signal, Stat, is_no_process};
pub use crate::proto::party::Tree;

/// How cgroup.procs shows a process of a pid namespace that is not below ours (cgroups(7)).
const UNNAMED: u32 = 0;

/// Between two looks at processes whose end cannot be waited for.
const PAUSE: Duration = Duration::from_millis(2);

/// What a kill left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// Processes that still live: they may not be signalled, or are stuck in the kernel or in a frozen control group. A
    /// zero stands for those of a control group that are in another pid namespace, and have no pid here.
    pub left: Vec<u32>,
}

/// Kills the leader and everything in its tree, and waits until they have ended. Zombies have ended.
///
/// Give the leader even if it is dead: its pidfd proves that the session's id is still the one that was meant.
///
/// # Errors
/// `InvalidInput`, and nothing was killed, if the tree is not the leader's or if this process is in it.
pub fn kill(leader: Option<&PidFd>, tree: &Tree, deadline: Instant) -> io::Result<Killed> {
    refuse_own(leader, tree)?;
    // Looked at before the leader dies: afterwards its pid proves nothing.
    let members = Members::of(leader, tree)?;
    let refused = leader.is_some_and(|leader| leader.signal(Signal::SIGKILL).is_err());
    let mut left = members.map_or(Ok(Vec::new()), |members| members.kill(deadline))?;
    if let Some(leader) = leader
        && (refused || !leader.wait_dead(deadline)?)
    {
        left.extend(leader.pid());
    }
    left.sort_unstable();
    left.dedup();
    Ok(Killed { left })
}

/// Returns the processes of a tree that live, its leader among them.
///
/// # Errors
/// As [`kill`].
pub fn members(leader: Option<&PidFd>, tree: &Tree) -> io::Result<Vec<u32>> {
    Members::of(leader, tree)?.map_or(Ok(Vec::new()), |members| members.list())
}

fn refuse_own(leader: Option<&PidFd>, tree: &Tree) -> io::Result<()> {
    let me = std::process::id();
    if leader.and_then(PidFd::pid) == Some(me) {
        return Err(refusal("the leader is this process"));
    }
    match tree {
        Tree::Lone => Ok(()),
        Tree::Session { sid } if Stat::of(me)?.session == *sid => {
            Err(refusal(format!("this process is in session {sid} itself")))
        }
        Tree::Cgroup { path } if in_cgroup(path)?.contains(&me) => {
            Err(refusal(format!("this process is in control group {} itself", path.display())))
        }
        Tree::Session { .. } | Tree::Cgroup { .. } => Ok(()),
    }
}

fn refusal(detail: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, detail.into())
}

/// Where to look for the processes of a tree.
enum Members<'a> {
    Session(u32),
    Cgroup(&'a Path),
}

impl<'a> Members<'a> {
    /// Returns nothing where there is nothing beside the leader.
    fn of(leader: Option<&PidFd>, tree: &'a Tree) -> io::Result<Option<Self>> {
        match tree {
            Tree::Lone => Ok(None),
            Tree::Session { sid } => Ok(session_is_the_leaders(leader, *sid)?.then_some(Self::Session(*sid))),
            Tree::Cgroup { path } => Ok(Some(Self::Cgroup(path))),
        }
    }

    fn list(&self) -> io::Result<Vec<u32>> {
        match self {
            Self::Session(sid) => in_session(*sid),
            Self::Cgroup(path) => in_cgroup(path),
        }
    }

    fn kill(&self, deadline: Instant) -> io::Result<Vec<u32>> {
        let at_once = match self {
            Self::Cgroup(path) => kill_cgroup_at_once(path)?,
            Self::Session(_) => false,
        };
        loop {
            let opened = open_all(self.list()?)?;
            // Listed again with the pidfds open: whoever is in both lists is a member, and the pidfd is his.
            // A tree is empty when two lists are: one can miss a process that was forked behind its back.
            let members: HashSet<u32> = self.list()?.into_iter().collect();
            if opened.is_empty() && members.is_empty() {
                return Ok(Vec::new());
            }
            let (dying, mut refused) = kill_all(opened.iter().filter(|(pid, _)| members.contains(pid)));
            // The kernel's own kill reaches the unnamed too, and nothing else does.
            refused.extend(members.get(&UNNAMED).filter(|_| !at_once));
            if dying.is_empty() && !refused.is_empty() {
                return Ok(refused);
            }
            if dying.is_empty() {
                std::thread::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
            }
            for pidfd in dying {
                pidfd.wait_dead(deadline)?;
            }
            if Instant::now() >= deadline {
                return self.list();
            }
        }
    }
}

/// The kernel gives a session's id to nobody else while it has a member. So a living process with that pid that is
/// not the leader means that the session has long ended.
fn session_is_the_leaders(leader: Option<&PidFd>, sid: u32) -> io::Result<bool> {
    if sid <= 1 {
        return Err(refusal(format!("session {sid} is the system's")));
    }
    let taken = is_living(sid)?;
    match leader {
        Some(leader) if leader.is_dead()? => Ok(!taken),
        Some(leader) if is_member(leader, sid)? => Ok(true),
        Some(_) => Err(refusal(format!("session {sid} is not the leader's own"))),
        None if taken => {
            Err(refusal(format!("process {sid} lives, and nothing proves that it is the leader")))
        }
        None => Ok(true),
    }
}

/// A living member proves as much as the leader: while it lives, the id is nobody else's.
fn is_member(process: &PidFd, sid: u32) -> io::Result<bool> {
    let Some(pid) = process.pid() else { return Ok(false) };
    let is_in_session = match Stat::of(pid) {
        Ok(stat) => stat.session == sid,
        Err(e) if is_no_process(&e) => false,
        Err(e) => return Err(e),
    };
    // Alive after it was looked at: then it was the one that was looked at.
    Ok(is_in_session && !process.is_dead()?)
}

fn is_living(pid: u32) -> io::Result<bool> {
    match Stat::of(pid) {
        Ok(stat) => Ok(!stat.is_gone()),
        Err(e) if is_no_process(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn in_session(sid: u32) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match Stat::of(pid) {
            Ok(stat) if stat.session == sid && !stat.is_gone() => pids.push(pid),
            Ok(_) => {}
            Err(e) if is_no_process(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(pids)
}

/// Lists the group and those below it; one that was removed is empty.
fn in_cgroup(path: &Path) -> io::Result<Vec<u32>> {
    let mut pids = match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(listed) => living(&listed)?,
        Err(e) if is_removed(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            pids.extend(in_cgroup(&entry.path())?);
        }
    }
    Ok(pids)
}

fn living(listed: &str) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        // Whether one without a name has ended cannot be seen: it is not taken to be dead.
        if pid == UNNAMED || is_living(pid)? {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// A group that is removed between open and read answers ENODEV.
fn is_removed(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// Version 2 kills a whole group in one go, with whatever is forking in it (Linux 5.14). Elsewhere there is no such file,
/// and the answer is `false`.
fn kill_cgroup_at_once(path: &Path) -> io::Result<bool> {
    let opened = fs::OpenOptions::new().write(true).open(path.join("cgroup.kill"));
    match opened.and_then(|mut file| io::Write::write_all(&mut file, b"1")) {
        Ok(()) => Ok(true),
        Err(e) if is_removed(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn open_all(pids: Vec<u32>) -> io::Result<Vec<(u32, PidFd)>> {
    let mut opened = Vec::with_capacity(pids.len());
    for pid in pids.into_iter().filter(|&pid| pid != UNNAMED) {
        match PidFd::open(pid) {
            Ok(pidfd) => opened.push((pid, pidfd)),
            Err(e) if is_no_process(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(opened)
}

/// Returns those that are dying and the pids of those that may not be signalled.
fn kill_all<'a>(members: impl Iterator<Item = &'a (u32, PidFd)>) -> (Vec<&'a PidFd>, Vec<u32>) {
    let (mut dying, mut refused) = (Vec::new(), Vec::new());
    for (pid, pidfd) in members {
        match pidfd.signal(Signal::SIGKILL) {
            Ok(()) => dying.push(pidfd),
            Err(_) => refused.push(*pid),
        }
    }
    (dying, refused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Starts a shell and returns it with the pids that it printed, one a line, before it closed its output.
    fn start(script: &str, own_session: bool) -> (Child, Vec<u32>) {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped());
        if own_session {
            // SAFETY: setsid is async-signal-safe, and a nix error does not allocate.
            unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) };
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let pids = lines.map_while(|line| line.unwrap().parse().ok()).collect();
        (child, pids)
    }

    /// Two processes that ignore SIGTERM and outlive the shell that started them.
    const STUBBORN: &str = "trap '' TERM HUP; for i in 1 2; do sleep 600 >&- & echo $!; done";

    #[test]
    fn a_session_dies_whole_although_its_leader_is_dead_already() {
        let (mut leader, children) = start(STUBBORN, true);
        let pidfd = PidFd::open(leader.id()).unwrap();
        leader.wait().unwrap();
        assert_eq!(children.len(), 2);
        assert!(children.iter().all(|&pid| is_living(pid).unwrap()));

        let killed = kill(Some(&pidfd), &Tree::Session { sid: leader.id() }, soon()).unwrap();
        assert_eq!(killed, Killed::default());
        assert!(!children.iter().any(|&pid| is_living(pid).unwrap()));
    }

    #[test]
    fn a_session_dies_with_its_living_leader() {
        let (mut leader, children) = start(&format!("{STUBBORN}; exec >&-; sleep 600"), true);
        let pidfd = PidFd::open(leader.id()).unwrap();
        let killed = kill(Some(&pidfd), &Tree::Session { sid: leader.id() }, soon()).unwrap();
        assert_eq!(killed, Killed::default());
        assert!(pidfd.is_dead().unwrap());
        assert!(!children.iter().any(|&pid| is_living(pid).unwrap()));
        leader.wait().unwrap();
    }

    #[test]
    fn a_lone_process_dies_and_what_shares_its_session_does_not() {
        let (mut bystander, _) = start("exec >&-; exec sleep 600", false);
        let (mut lone, _) = start("exec >&-; exec sleep 600", false);
        let pidfd = PidFd::open(lone.id()).unwrap();
        assert_eq!(kill(Some(&pidfd), &Tree::Lone, soon()).unwrap(), Killed::default());
        assert!(pidfd.is_dead().unwrap());
        assert!(is_living(bystander.id()).unwrap());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        lone.wait().unwrap();
    }

    fn assert_refused(leader: Option<&PidFd>, tree: &Tree) {
        assert_eq!(kill(leader, tree, soon()).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{tree:?}");
    }

    #[test]
    fn our_own_session_and_process_are_refused_and_nothing_dies() {
        let own = Stat::of(std::process::id()).unwrap().session;
        // Asked directly: a mistake here would end the session that runs the tests.
        assert!(refuse_own(None, &Tree::Session { sid: own }).is_err());
        assert_refused(None, &Tree::Session { sid: own });
        assert_refused(Some(&PidFd::current().unwrap()), &Tree::Lone);
        assert_refused(None, &Tree::Session { sid: 0 });
        assert_refused(None, &Tree::Session { sid: 1 });

        // The leader is in our session, so this is not a session of its own.
        let (mut child, _) = start("exec >&-; exec sleep 600", false);
        let pidfd = PidFd::open(child.id()).unwrap();
        assert_refused(Some(&pidfd), &Tree::Session { sid: own });
        assert!(!pidfd.is_dead().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_session_whose_id_a_stranger_has_as_his_pid_is_left_alone() {
        let (mut dead, _) = start("exit 0", true);
        let dead_leader = PidFd::open(dead.id()).unwrap();
        dead.wait().unwrap();
        let (mut stranger, _) = start("exec >&-; exec sleep 600", true);
        let his = Tree::Session { sid: stranger.id() };

        assert_eq!(kill(Some(&dead_leader), &his, soon()).unwrap(), Killed::default());
        assert!(is_living(stranger.id()).unwrap());
        assert_refused(None, &his);
        assert_refused(Some(&PidFd::open(std::os::unix::process::parent_id()).unwrap()), &his);
        assert!(is_living(stranger.id()).unwrap());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_leader_that_is_in_another_session_than_claimed_is_refused() {
        let (mut one, _) = start("exec >&-; exec sleep 600", true);
        let (mut other, _) = start("exec >&-; exec sleep 600", true);
        assert_refused(Some(&PidFd::open(one.id()).unwrap()), &Tree::Session { sid: other.id() });
        for child in [&mut one, &mut other] {
            assert!(is_living(child.id()).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A control group for one test, where the machine lets us make one.
    struct Group(std::path::PathBuf);

    impl Group {
        fn make(parent: &str, name: &str) -> Option<Self> {
            let path = Path::new(parent).join(format!("handoff-test-{}-{name}", std::process::id()));
            if !Path::new(parent).join("cgroup.procs").exists() || fs::create_dir(&path).is_err() {
                eprintln!("skipped: no control group can be made in {parent}");
                return None;
            }
            Some(Self(path))
        }

        fn dies_whole(&self) {
            fs::create_dir(self.0.join("below")).unwrap();
            let script = format!("echo 0 >{}/below/cgroup.procs; {STUBBORN}", self.0.display());
            let (mut leader, children) = start(&script, true);
            let pidfd = PidFd::open(leader.id()).unwrap();
            leader.wait().unwrap();
            assert_eq!(in_cgroup(&self.0).unwrap(), children);
            let tree = Tree::Cgroup { path: self.0.clone() };
            assert_eq!(kill(Some(&pidfd), &tree, soon()).unwrap(), Killed::default());
            assert!(!children.iter().any(|&pid| is_living(pid).unwrap()));
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            // A group that a failed test left populated cannot be removed, and says so by its name.
            let _ = fs::remove_dir(self.0.join("below"));
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn a_control_group_dies_whole_with_and_without_a_kill_file() {
        for parent in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"] {
            if let Some(group) = Group::make(parent, "dies") {
                group.dies_whole();
            }
        }
    }

    #[test]
    fn what_cannot_die_in_a_frozen_group_is_named_at_the_deadline() {
        let Some(group) = Group::make("/sys/fs/cgroup/freezer", "frozen") else { return };
        let (mut child, _) =
            start(&format!("echo 0 >{}/cgroup.procs; exec >&-; exec sleep 600", group.0.display()), true);
        fs::write(group.0.join("freezer.state"), "FROZEN").unwrap();
        let deadline = soon();
        while fs::read_to_string(group.0.join("freezer.state")).unwrap().trim() != "FROZEN" {
            assert!(Instant::now() < deadline, "the kernel did not freeze the group");
            std::thread::yield_now();
        }
        let tree = Tree::Cgroup { path: group.0.clone() };
        let killed = kill(None, &tree, Instant::now() + Duration::from_millis(50)).unwrap();
        fs::write(group.0.join("freezer.state"), "THAWED").unwrap();
        child.wait().unwrap();
        assert_eq!(killed.left, [child.id()]);
    }

    #[test]
    fn a_control_group_that_was_removed_has_nothing_left() {
        let tree = Tree::Cgroup { path: "/sys/fs/cgroup/no-such-group".into() };
        assert_eq!(kill(None, &tree, soon()).unwrap(), Killed::default());
    }

    #[test]
    fn a_list_of_members_that_names_this_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        fs::write(dir.path().join("below/cgroup.procs"), format!("0\n{}\n", std::process::id())).unwrap();
        assert_refused(None, &Tree::Cgroup { path: dir.path().into() });
    }

    #[test]
    fn a_member_of_another_pid_namespace_is_not_taken_to_be_dead() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), "0\n").unwrap();
        let tree = Tree::Cgroup { path: dir.path().into() };
        assert_eq!(kill(None, &tree, soon()).unwrap().left, [UNNAMED], "nothing here can kill it");

        // With the kernel's own kill it dies, but when it has is only seen in the list.
        fs::write(dir.path().join("cgroup.kill"), "").unwrap();
        let shortly = Instant::now() + Duration::from_millis(20);
        assert_eq!(kill(None, &tree, shortly).unwrap().left, [UNNAMED]);
        assert_eq!(fs::read(dir.path().join("cgroup.kill")).unwrap(), b"1");
    }

    #[test]
    fn a_tree_is_written_in_words_that_a_journal_can_show() {
        let written = serde_json::to_string(&Tree::Session { sid: 7 }).unwrap();
        assert_eq!(written, r#"{"session":{"sid":7}}"#);
        assert_eq!(serde_json::to_string(&Tree::Lone).unwrap(), r#""lone""#);
        assert_eq!(serde_json::from_str::<Tree>(&written).unwrap(), Tree::Session { sid: 7 });
    }
}
