//! Odd surroundings: another user by sudo, no environment, no standard descriptors, a taken descriptor 3, few descriptors, many sockets.
//! Each either works or says why, in one line, with an exit code of the table; and the daemon that serves goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::load::Answer;
use common::said::Said;
use common::{HANDOFF, Kvd, eventually, has_sudo};
use handoff::{DataDirLock, DrainReport, Drainable, Incumbent, SealReport, StateSnapshot};

/// What whoever runs the tests has left open would be in the way of the sockets.
const CLOSE_STRAYS: &str = "for n in $(ls /proc/$$/fd); do [ $n -lt 3 ] || eval \"exec $n>&-\"; done; ";

/// Runs a script by bash, with the command as `$H` and a directory as `$D`.
fn bash(dir: &Path, script: &str) -> Said {
    Said::of(script_in(dir, script))
}

fn script_in(dir: &Path, script: &str) -> Command {
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(format!("{CLOSE_STRAYS}{script}"))
        .env("H", HANDOFF)
        .env("D", dir)
        .stdin(Stdio::null());
    command
}

/// Whether the message is one line of ours that says what could not be done.
#[track_caller]
fn expect_a_reason(said: &Said, context: &str) {
    let line = said.err.trim_end();
    let is_said =
        line.lines().count() == 1 && line.starts_with("handoff ") && line.contains("fatal: unable to ");
    assert!(is_said, "{context}: {said:#?}");
}

fn serves(kvd: &Kvd) {
    assert_eq!(kvd.call(&["PING"]), Answer::Simple("PONG".to_owned()));
}

// ---- Another user.

/// The command where everybody may run it, and a data directory of the user nobody.
struct Nobody {
    dir: tempfile::TempDir,
}

impl Nobody {
    fn new() -> Option<Self> {
        if !has_sudo() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::copy(HANDOFF, dir.path().join("handoff")).unwrap();
        let status =
            Command::new("install").args(["-d", "-o", "nobody"]).arg(dir.path().join("data")).status();
        assert!(status.unwrap().success());
        Some(Self { dir })
    }

    fn run(&self, script: &str) -> Said {
        let mut command = script_in(self.dir.path(), script);
        command.env("H", self.dir.path().join("handoff")).env("AS", "sudo -n -u nobody");
        Said::of(command)
    }
}

#[test]
fn a_whole_chain_runs_under_sudo() {
    let Some(nobody) = Nobody::new() else { return };
    let said = nobody
        .run("$AS $H hold-fds --listen a=127.0.0.1:0 -- $H lock $D/data sh -c 'id -un; echo $LISTEN_FDS'");
    assert_eq!(said.expect(0).out, "nobody\n1\n");
}

#[test]
fn a_chain_whose_descriptors_sudo_has_closed_names_it() {
    let Some(nobody) = Nobody::new() else { return };
    let said = nobody.run(
        "$H hold-fds --listen a=127.0.0.1:0 -- $AS --preserve-env=HANDOFF_FDS $H lock $D/data sh -c 'echo ran'",
    );
    let said = said.expect(111);
    expect_a_reason(&said, "closed by sudo");
    assert!(said.err.contains("listener.a") && said.err.contains("sudo"), "{said:#?}");
    assert_eq!(said.out, "");
}

#[test]
fn what_sudo_took_out_of_the_environment_is_not_found_by_accident() {
    let Some(nobody) = Nobody::new() else { return };
    let said = nobody.run(
        "$H hold-fds --listen a=127.0.0.1:0 -- $AS $H lock $D/data sh -c 'echo ${LISTEN_FDS-none} ${HANDOFF_FDS%%=*}'",
    );
    assert_eq!(said.expect(0).out, "none lock\n");
}

#[test]
fn a_lease_that_sudo_has_closed_is_given_back_and_the_successor_is_not_started() {
    let Some(nobody) = Nobody::new() else { return };
    let data = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(data.path(), &[]);
    let said = nobody.run(&format!(
        "C={}; $H drain --control $C -- sudo -n -u root $H exec-successor --control $C $H kvd --data-dir {}",
        data.path().join("control").display(),
        data.path().display()
    ));
    assert_ne!(said.code, 0, "{said:#?}");
    expect_a_reason(&said, "no lease");
    assert!(said.err.contains("lease"), "{said:#?}");
    serves(&kvd);
}

#[test]
fn the_control_socket_of_another_user_says_whose_it_is() {
    let Some(nobody) = Nobody::new() else { return };
    let data = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(data.path(), &[]);
    let control = data.path().join("control");
    let said = nobody.run(&format!("$AS $H drain --control {} true", control.display()));
    assert_eq!(said.code, 111, "{said:#?}");
    expect_a_reason(&said, "another user's");
    assert!(said.err.contains("ermission denied"), "{said:#?}");
    serves(&kvd);
}

// ---- No environment, no standard descriptors, a taken number.

#[test]
fn without_an_environment_links_and_a_swap_work() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "exec env -i $H hold-fds --listen a=127.0.0.1:0 -- $H lock $D sh -c 'echo $LISTEN_FDS $HOME'";
    assert_eq!(bash(dir.path(), script).expect(0).out, "1\n");
    let data = tempfile::tempdir().unwrap();
    let mut kvd = Kvd::start(data.path(), &[]);
    let end = EndOf(data.path().join("control"));
    bash(data.path(), "exec env -i $H swap --control $D/control $H kvd --data-dir $D").expect(0);
    assert!(kvd.wait().success());
    assert_eq!(end.generation(), 2);
}

#[test]
fn a_swap_and_its_parts_work_where_ended_children_are_nobodys() {
    // What some languages' daemons leave to the programs that they start: the kernel reaps for them.
    let drivers = [
        "$H swap $H kvd --data-dir $D",
        "$H drain -- $H exec-successor --wait $H kvd --data-dir $D",
        "$H exec-successor --warm $H kvd --data-dir $D -- $H drain -- $H commit",
    ];
    for driver in drivers {
        let data = tempfile::tempdir().unwrap();
        let mut kvd = Kvd::start(data.path(), &[]);
        let end = EndOf(data.path().join("control"));
        let script = format!("trap '' CHLD; export HANDOFF_CONTROL=$D/control; exec {driver}");
        bash(data.path(), &script).expect(0);
        assert!(kvd.wait().success());
        assert_eq!(end.generation(), 2, "{driver}");
    }
}

#[test]
fn between_two_links_an_environment_that_is_gone_leaves_no_lease_behind() {
    let data = tempfile::tempdir().unwrap();
    let kvd = Kvd::start(data.path(), &[]);
    let script =
        "$H drain --control $D/control -- env -i $H exec-successor --control $D/control $H kvd --data-dir $D";
    let said = bash(data.path(), script);
    assert_ne!(said.code, 0, "{said:#?}");
    expect_a_reason(&said, "no table");
    serves(&kvd);
}

#[test]
fn with_closed_standard_descriptors_a_chain_starts_a_daemon_and_a_swap_replaces_it() {
    for closed in ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"] {
        let data = tempfile::tempdir().unwrap();
        let control = data.path().join("control");
        let chain = "exec $H hold-fds --listen resp=127.0.0.1:0 -- $H lock $D $H kvd --data-dir $D";
        let mut daemon = script_in(data.path(), &format!("{chain} {closed}"));
        let mut child = daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = EndOf(control.clone());
        eventually("the control socket", || control.exists());
        let swap = format!("$H swap --control $D/control $H kvd --data-dir $D {closed}");
        bash(data.path(), &swap).expect(0);
        assert!(common::wait_for_exit(&mut child).success(), "{closed}");
        assert_eq!(end.generation(), 2, "{closed}");
        // What is wrong cannot be said on a closed descriptor; the code says it.
        bash(data.path(), &format!("$H lock $D true {closed}")).expect(1);
        drop(end);
    }
}

#[test]
fn where_descriptor_3_is_somebody_elses_a_daemon_gets_its_socket_and_the_lock_all_the_same() {
    let data = tempfile::tempdir().unwrap();
    let script =
        "exec 3</dev/zero; exec $H hold-fds --listen resp=127.0.0.1:0 -- $H lock $D $H kvd --data-dir $D";
    let kvd = Kvd::spawn(script_in(data.path(), script));
    serves(&kvd);
    let third = std::fs::read_link(format!("/proc/{}/fd/3", kvd.child.id())).unwrap();
    assert_eq!(third, Path::new("/dev/zero"));
}

// ---- Few descriptors.

/// Runs a script under every limit up to one at which it works; returns the first one at which it does.
fn first_limit_that_suffices(script: &str, mut between: impl FnMut()) -> u32 {
    let mut first = None;
    for limit in 4..64 {
        let dir = tempfile::tempdir().unwrap();
        let said = bash(dir.path(), &format!("ulimit -n {limit}; {script}"));
        between();
        match (said.code, first) {
            (0, None) => first = Some(limit),
            (0, Some(first)) if limit > first + 3 => return first,
            (0, Some(_)) => {}
            (_, Some(first)) => panic!("{first} descriptors suffice, and {limit} do not: {said:#?}"),
            (111, None) => expect_a_reason(&said, &format!("{limit} descriptors")),
            (_, None) => panic!("{limit} descriptors: {said:#?}"),
        }
    }
    panic!("64 descriptors do not suffice")
}

#[test]
fn with_few_descriptors_a_chain_works_or_says_why() {
    let one = "exec $H hold-fds --listen a=127.0.0.1:0 -- $H lock $D $H lock --wait 1s $D true";
    let listen: String = (0..10).map(|i| format!(" --listen a{i}=127.0.0.1:0")).collect();
    let ten = format!("exec $H hold-fds{listen} -- $H lock $D true");
    let (of_one, of_ten) = (first_limit_that_suffices(one, || ()), first_limit_that_suffices(&ten, || ()));
    // Three for each socket that is put in its place: itself, a copy out of the way, and one of what was there before.
    assert!(of_one <= 3 + 3 + 8, "{of_one}");
    assert!(of_ten <= 3 + 3 * 10 + 8, "{of_ten}");
}

// ---- Many sockets.

/// A daemon that does nothing, in this process.
struct Idle;

impl Drainable for Idle {
    fn drain(&self, _deadline: Instant) -> handoff::Result<DrainReport> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> handoff::Result<SealReport> {
        Ok(SealReport { last_revision_per_shard: vec![], data_dir_fingerprint: [0; 32] })
    }

    fn resume_after_abort(&self) -> handoff::Result<()> {
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot { shard_count: 0, open_conns: 0, last_revision_per_shard: vec![] }
    }
}

#[test]
fn one_to_five_hundred_sockets_pass_through_a_chain_and_come_from_an_incumbent() {
    // The kernel passes 253 in one message.
    for count in [1, 2, 253, 254, 500] {
        let dir = tempfile::tempdir().unwrap();
        let check = "sh -c 'echo $LISTEN_FDS; ls -l /proc/$$/fd | grep -c socket:'";
        let listen: String = (0..count).map(|i| format!(" --listen a{i}=127.0.0.1:0")).collect();
        let said = bash(dir.path(), &format!("exec $H hold-fds{listen} -- $H lock $D $H lock $D {check}"));
        let base: usize =
            bash(dir.path(), "ls -l /proc/$$/fd | grep -c socket: || true").out.trim().parse().unwrap();
        assert_eq!(said.expect(0).out, format!("{count}\n{}\n", base + count));

        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let mut incumbent = Incumbent::bind_cold_start(dir.path().join("control"), lock).unwrap();
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for (i, listener) in listeners.iter().enumerate() {
            incumbent = incumbent.with_listener(&format!("a{i}"), listener).unwrap();
        }
        let stopper = incumbent.stopper();
        let serving = std::thread::spawn(move || incumbent.serve(Idle));
        let fetch = format!("exec $H hold-fds --from-incumbent --control $D/control -- {check}");
        let said = bash(dir.path(), &fetch);
        stopper.stop();
        serving.join().unwrap().unwrap();
        assert_eq!(said.expect(0).out, format!("{count}\n{}\n", base + count));
    }
}

/// Ends the daemon that answers at a control socket.
struct EndOf(PathBuf);

impl EndOf {
    fn generation(&self) -> u64 {
        let mut command = Command::new(HANDOFF);
        command.args(["status", "--json", "--control"]).arg(&self.0);
        Said::of(command).expect(0).json()["status"]["generation"].as_u64().unwrap()
    }
}

impl Drop for EndOf {
    fn drop(&mut self) {
        // It may not have started.
        let _ = Command::new(HANDOFF).args(["drain", "--exit", "--control"]).arg(&self.0).output();
    }
}
