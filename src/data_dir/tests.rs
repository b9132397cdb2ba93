#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::mpsc;

use tempfile::tempdir;

use super::*;
use crate::proto::record::{FILE_LEN, Owner, Program, Standing};

#[test]
fn a_fresh_directory_gets_a_complete_lock_file_without_a_record() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let metadata = fs::metadata(dir.path().join(FILE_NAME)).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(metadata.len(), FILE_LEN as u64);
    assert_eq!(lock.record().unwrap(), None);
    assert_eq!(lock.dir(), dir.path().canonicalize().unwrap());
}

#[test]
fn a_record_is_read_by_the_next_owner_and_by_an_observer() {
    let dir = tempdir().unwrap();
    assert_eq!(DataDirLock::read_record(&dir).unwrap(), Reading::default(), "nobody was here yet");
    for generation in 1..=8 {
        let lock = DataDirLock::acquire(&dir).unwrap();
        lock.write_record(&record(generation), generation % 2 == 0).unwrap();
        assert_eq!(DataDirLock::read_record(&dir).unwrap().record, Some(record(generation)));
        assert_eq!(DataDirLock::read_record(lock.path()).unwrap().record, Some(record(generation)));
        drop(lock);
        let next = DataDirLock::acquire(&dir).unwrap();
        assert_eq!(next.record().unwrap(), Some(record(generation)));
        assert_eq!(fs::metadata(next.path()).unwrap().len(), FILE_LEN as u64, "the size never changes");
    }
}

#[test]
fn a_record_too_long_is_refused_and_changes_nothing() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    lock.write_record(&record(1), true).unwrap();
    let before = fs::read(lock.path()).unwrap();
    let mut long = record(2);
    long.owner.binary = "x".repeat(FILE_LEN).into();
    assert!(matches!(lock.write_record(&long, true), Err(Error::Invalid { .. })));
    assert_eq!(fs::read(lock.path()).unwrap(), before);
}

#[test]
fn settling_keeps_the_record_and_spares_the_next_process_a_sync() {
    let dir = tempdir().unwrap();
    // Each owner knows only its own records.
    for generation in 1..=4 {
        DataDirLock::acquire(&dir).unwrap().write_record(&record(generation), true).unwrap();
    }
    let lock = DataDirLock::acquire(&dir).unwrap();
    assert!(!lock.read().unwrap().is_settled());
    lock.settle().unwrap();
    assert!(lock.read().unwrap().is_settled());
    assert_eq!(lock.record().unwrap(), Some(record(4)));
    let before = fs::read(lock.path()).unwrap();
    lock.settle().unwrap();
    assert_eq!(fs::read(lock.path()).unwrap(), before, "there was nothing to do");
}

#[test]
fn a_lock_is_exclusive_between_threads_and_the_holder_is_named() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let path = dir.path().to_path_buf();
    let conflict = thread::spawn(move || DataDirLock::acquire(path).unwrap_err()).join().unwrap();
    assert!(pids_in(&conflict).contains(&std::process::id()), "{conflict}");
    let us = lock.holders().unwrap().into_iter().find(|holder| holder.pid == std::process::id()).unwrap();
    assert_eq!(us.inherited_from, None);
    assert!(DataDirLock::who(&dir).unwrap().contains(&us));
    drop(lock);
    assert_eq!(DataDirLock::who(&dir).unwrap(), []);
    DataDirLock::acquire(&dir).unwrap();
}

#[test]
fn of_many_threads_one_gets_the_lock_and_the_file_is_created_once() {
    let dir = tempdir().unwrap();
    let taken: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| DataDirLock::acquire(&dir))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 1);
}

#[test]
fn a_wait_ends_when_the_lock_is_released() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let (started, waiting) = mpsc::channel();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            started.send(()).unwrap();
            DataDirLock::options().wait(Duration::MAX).acquire(&dir)
        });
        waiting.recv().unwrap();
        drop(lock);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let dir = tempdir().unwrap();
    let _lock = DataDirLock::acquire(&dir).unwrap();
    let start = Instant::now();
    let refused = DataDirLock::options().wait(Duration::from_millis(50)).acquire(&dir);
    assert!(matches!(refused, Err(Error::Locked { .. })));
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_forked_child_that_drops_its_copy_does_not_release_the_lock() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    // The child's copy of the value, which only the child drops.
    let mut copy = Some(lock);
    assert!(lock::in_forked_child(|| {
        drop(copy.take());
        true
    }));
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })));
    drop(copy);
    DataDirLock::acquire(&dir).unwrap();
}

#[test]
fn a_forked_child_may_not_unlock_or_lock() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    assert!(lock::in_forked_child(|| matches!(lock.unlock(), Err(Error::Invalid { .. }))));
    assert!(lock::in_forked_child(|| matches!(lock.relock(), Err(Error::Invalid { .. }))));
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })));
}

#[test]
fn unlocking_is_not_held_up_by_a_leaked_copy() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let _leaked = lock.try_clone_fd().unwrap();
    lock.unlock().unwrap();
    let other = DataDirLock::acquire(&dir).unwrap();
    assert!(!lock.relock().unwrap());
    drop(other);
    assert!(lock.relock().unwrap());
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })));
}

#[test]
fn nothing_is_written_without_the_lock() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    lock.write_record(&record(1), false).unwrap();
    assert!(lock::in_forked_child(|| lock.write_record(&record(2), false).is_err()));
    lock.unlock().unwrap();
    assert!(matches!(lock.write_record(&record(2), false), Err(Error::Invalid { .. })));
    assert_eq!(DataDirLock::read_record(&dir).unwrap().record, Some(record(1)));
    assert!(lock.relock().unwrap());
    lock.write_record(&record(2), false).unwrap();
}

#[test]
fn a_lock_that_could_not_be_released_is_still_held() {
    // A descriptor that only names the file (open(2)), which flock(2) refuses.
    const O_PATH: i32 = 0o10_000_000;
    let dir = tempdir().unwrap();
    let mut lock = DataDirLock::acquire(&dir).unwrap();
    let named = fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(lock.path()).unwrap();
    let file = std::mem::replace(&mut lock.file, named);
    assert!(lock.unlock().is_err());
    lock.file = file;
    lock.write_record(&record(1), false).unwrap();
    lock.unlock().unwrap();
    assert!(matches!(lock.write_record(&record(2), false), Err(Error::Invalid { .. })));
}

#[test]
fn a_lock_that_was_passed_on_lives_as_long_as_its_last_copy() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let passed = lock.try_clone_fd().unwrap();
    drop(lock);
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })));
    let kept = passed.try_clone().unwrap();
    drop(DataDirLock::adopt(passed, dir.path()).unwrap());
    assert!(
        matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })),
        "the one who passed it has it still"
    );
    drop(kept);
    once_forks_of_other_tests_are_gone(|| DataDirLock::acquire(&dir));
}

#[test]
fn an_adopted_lock_is_closed_by_exec() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let inherited = lock.try_clone_fd().unwrap();
    let number = inherited.as_raw_fd();
    file::clear_cloexec(inherited.as_fd());
    assert!(!is_cloexec(number));
    let adopted = DataDirLock::adopt(inherited, dir.path()).unwrap();
    assert_eq!(adopted.as_fd().as_raw_fd(), number);
    assert!(is_cloexec(number));
}

#[test]
fn only_the_lock_file_itself_is_adopted() {
    let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
    let lock = DataDirLock::acquire(&dir).unwrap();
    let elsewhere = DataDirLock::acquire(&other).unwrap().try_clone_fd().unwrap();
    assert!(matches!(DataDirLock::adopt(elsewhere, dir.path()), Err(Error::Descriptor { .. })));
    let read_only = File::open(lock.path()).unwrap().into();
    assert!(matches!(DataDirLock::adopt(read_only, dir.path()), Err(Error::Descriptor { .. })));
    let not_the_locked_one = File::options().read(true).write(true).open(lock.path()).unwrap().into();
    let conflict = DataDirLock::adopt(not_the_locked_one, dir.path()).unwrap_err();
    assert!(pids_in(&conflict).contains(&std::process::id()), "{conflict}");
}

#[test]
fn an_offered_descriptor_is_adopted_by_the_acquire_of_its_directory() {
    let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
    let inherited = DataDirLock::acquire(&dir).unwrap().try_clone_fd().unwrap();
    let number = inherited.as_raw_fd();
    offer_inherited(inherited);
    let elsewhere = DataDirLock::acquire(&other).unwrap();
    assert_ne!(elsewhere.as_fd().as_raw_fd(), number);
    let lock = DataDirLock::acquire(&dir).unwrap();
    assert_eq!(lock.as_fd().as_raw_fd(), number);
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })), "it is adopted once");
}

#[test]
fn a_renamed_lock_file_is_noticed_when_it_is_locked_again() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    lock.unlock().unwrap();
    fs::rename(lock.path(), dir.path().join("moved")).unwrap();
    assert!(matches!(lock.relock(), Err(Error::LockReplaced { .. })));
    let successor = DataDirLock::acquire(&dir).unwrap();
    assert!(matches!(lock.relock(), Err(Error::LockReplaced { .. })), "there is another one at the path now");
    assert_eq!(DataDirLock::who(dir.path().join("moved")).unwrap(), [], "it did not stay locked");
    drop(successor);
}

#[test]
fn a_lock_file_that_was_replaced_after_it_was_opened_is_not_a_lock() {
    let dir = tempdir().unwrap();
    let place = DataDirLock::options().place(dir.path()).unwrap();
    let opened = file::open_or_create(&place.path).unwrap();
    fs::remove_file(&place.path).unwrap();
    assert!(matches!(place.lock_opened(opened), Ok(Attempt::Replaced)));
    let opened = file::open_or_create(&place.path).unwrap();
    fs::write(dir.path().join("new"), "").unwrap();
    fs::rename(dir.path().join("new"), &place.path).unwrap();
    assert!(matches!(place.lock_opened(opened), Ok(Attempt::Replaced)));
    DataDirLock::acquire(&dir).unwrap();
}

#[test]
fn an_unfinished_lock_file_is_completed() {
    for len in [0, 10, 5000, FILE_LEN - 1] {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), &record::blank()[..len]).unwrap();
        let lock = DataDirLock::acquire_or_break_stale(&dir).unwrap();
        assert_eq!(fs::read(lock.path()).unwrap(), record::blank());
        lock.write_record(&record(1), true).unwrap();
    }
}

#[test]
fn a_file_that_is_not_ours_or_too_new_is_left_as_it_is() {
    let later = [b"handoff lock file, format 2\n".as_slice(), &[0; FILE_LEN]].concat();
    for (bytes, newer) in [(b"4711\n".to_vec(), false), (later, true)] {
        let dir = tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, &bytes).unwrap();
        let refused = DataDirLock::acquire_or_break_stale(&dir).unwrap_err();
        assert_eq!(matches!(refused, Error::NewerFormat { found: 2, .. }), newer, "{refused}");
        assert_eq!(matches!(refused, Error::Damaged { offset: 0, .. }), !newer, "{refused}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(DataDirLock::who(&dir).unwrap(), [], "it did not stay locked");
    }
}

#[test]
fn a_symbolic_link_in_place_of_the_lock_file_is_refused() {
    let (dir, victim) = (tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    symlink(victim.path(), dir.path().join(FILE_NAME)).unwrap();
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Io { .. })));
    assert_eq!(victim.as_file().metadata().unwrap().len(), 0);
}

#[test]
fn a_file_name_is_not_a_path() {
    let dir = tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "/etc/passwd"] {
        let refused = DataDirLock::options().file_name(name).acquire(&dir);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{name:?}");
    }
    let lock = DataDirLock::options().file_name("lock").acquire(&dir).unwrap();
    assert_eq!(lock.path().file_name().unwrap(), "lock");
}

#[test]
fn a_record_lock_of_a_stranger_keeps_us_out() {
    let dir = tempdir().unwrap();
    drop(DataDirLock::acquire(&dir).unwrap());
    let stranger = File::options().write(true).open(dir.path().join(FILE_NAME)).unwrap();
    lock::take_record_lock(&stranger);
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Locked { .. })));
    drop(stranger);
    once_forks_of_other_tests_are_gone(|| DataDirLock::acquire(&dir));
}

#[test]
fn a_dead_owner_or_a_dying_holder_is_worth_waiting_for_and_a_living_one_is_not() {
    let dir = tempdir().unwrap();
    let lock = DataDirLock::acquire(&dir).unwrap();
    let mut living = lock.holders().unwrap();
    living.retain(|holder| holder.pid == std::process::id());
    let dead = Holder { start_ticks: living[0].start_ticks + 1, ..living[0].clone() };
    assert!(!is_closing(lock.path(), &living));
    assert!(is_closing(lock.path(), std::slice::from_ref(&dead)));
    assert!(!is_closing(lock.path(), &[dead, living[0].clone()]));
    lock.write_record(&record(1), false).unwrap();
    assert!(is_closing(lock.path(), &living), "the recorded owner belongs to another boot");
}

#[test]
fn a_successor_that_finds_another_generation_came_too_late() {
    if !alone("data_dir::tests::a_successor_that_finds_another_generation_came_too_late") {
        return;
    }
    let dir = tempdir().unwrap();
    expect_generation(Some(6));
    let Err(Error::Aborted { reason }) = DataDirLock::acquire(&dir) else {
        panic!("it is another directory")
    };
    assert_eq!(reason, "this data directory has no owner: the incumbent serves another one");
    expect_generation(Some(0));
    DataDirLock::acquire(&dir).unwrap().write_record(&record(7), true).unwrap();
    let Err(Error::Aborted { reason }) = DataDirLock::acquire(&dir) else { panic!("it was not too late") };
    assert_eq!(reason, "came too late: the data went on to generation 7, expected 0");
    assert_eq!(DataDirLock::who(&dir).unwrap(), [], "it let go of the lock");
    expect_generation(Some(7));
    DataDirLock::acquire(&dir).unwrap().write_record(&record(8), true).unwrap();
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Aborted { .. })));
    DataDirLock::acquire(tempdir().unwrap()).expect("it is not what was handed over");
    assert!(matches!(DataDirLock::acquire(&dir), Err(Error::Aborted { .. })));
    expect_generation(None);
    DataDirLock::acquire(&dir).unwrap();
}

/// Runs the test in a process of its own, as what it sets is the process's; `true` in that process.
fn alone(test: &str) -> bool {
    if std::env::var_os("HANDOFF_TEST_ALONE").is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([test, "--exact"]).env("HANDOFF_TEST_ALONE", "1").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
    false
}

/// What is released by closing it alone is released when the last fork is gone, and other tests start processes.
fn once_forks_of_other_tests_are_gone<T>(mut f: impl FnMut() -> Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match f() {
            Ok(done) => return done,
            Err(Error::Locked { .. }) if Instant::now() < deadline => thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
}

fn pids_in(error: &Error) -> Vec<u32> {
    let Error::Locked { holders, .. } = error else { panic!("expected a conflict, got {error}") };
    holders.iter().map(|holder| holder.pid).collect()
}

fn is_cloexec(fd: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0
}

fn record(generation: u64) -> OwnerRecord {
    let program =
        Program { binary: "/opt/kvd-v1".into(), args: vec![], build_id: "0a".into(), directory: None };
    OwnerRecord {
        generation,
        standing: Standing::Final,
        owner: Owner {
            pid: 17,
            start_ticks: 99,
            boot_id: "another boot".into(),
            binary: "/opt/kvd-v2".into(),
            args: vec!["--port".into(), "1".into()],
            build_id: "0b".into(),
            directory: None,
        },
        previous: Some(program),
        written_ms: 1_700_000_000_000,
    }
}
