//! `handoff journal` as a link and as a command, on journals in every state.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::said::Said;
use common::{HANDOFF, Kvd, wait_for_exit};
use handoff::journal::{self, Actor, Event, HandoffSummary, Journal, Outcome, Record};

/// A directory with a journal in it, and perhaps a daemon.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn journal(&self) -> PathBuf {
        self.path("journal")
    }

    fn kvd(&self) -> Kvd {
        Kvd::start(&self.path("data"), &["--version-label", "v1"])
    }

    /// Runs a shell in the directory, for which `$H` is the command.
    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("sh".as_ref());
        command.args(["-c", script]).env("H", HANDOFF);
        command
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["HANDOFF_FDS", "HANDOFF_JOURNAL", "HANDOFF_CONTROL", "HANDOFF_DATA_DIR", "HANDOFF_ID"] {
            command.env_remove(name);
        }
        command.env_remove("HANDOFF_LOG").env_remove("RUST_LOG").env_remove("SUDO_USER");
        command
    }

    fn run(&self, script: &str) -> Said {
        Said::of(self.shell(script))
    }

    fn records(&self) -> Vec<Record> {
        journal::read(self.journal()).unwrap().records
    }

    fn handoffs(&self) -> Vec<HandoffSummary> {
        journal::handoffs(&self.records())
    }

    /// Starts a chain that ends in a shell that waits until its standard input closes.
    fn hold(&self, chain: &str) -> Child {
        let mut command = self.shell(&format!("exec {chain} sh -c 'echo here; read line'"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        child
    }
}

fn release(mut child: Child) {
    drop(child.stdin.take());
    wait_for_exit(&mut child);
}

fn by(record: &Record) -> &journal::Requester {
    let Event::Begun { by: Some(by), .. } = &record.event else { panic!("{record}") };
    by
}

// ---- begin

#[test]
fn begin_records_who_wants_what_and_hands_the_journal_on() {
    let place = Place::new();
    let kvd = place.kvd();
    let script = "$H journal begin --journal journal --control data/control -- \
                  sh -c 'echo \"$HANDOFF_ID $HANDOFF_JOURNAL $HANDOFF_FDS\"'";
    let said = place.run(script).expect(0);
    assert_eq!(said.err, "", "nothing to say where all is well");
    let words: Vec<&str> = said.out.split_whitespace().collect();
    let [id, path, table] = words[..] else { panic!("{said:?}") };
    assert_eq!(Path::new(path), place.journal());
    assert!(table.starts_with("journal="), "{table}");
    let records = place.records();
    assert_eq!((records.len(), records[0].handoff.as_str()), (1, id));
    assert_eq!(records[0].actor, Actor::Driver);
    let by = by(&records[0]);
    assert_eq!(by.uid, nix::unistd::getuid().as_raw());
    assert_eq!(by.command[1..3], ["journal".to_owned(), "begin".to_owned()]);
    assert!(by.command.iter().any(|word| word.contains("HANDOFF_ID")), "the whole chain: {by:?}");
    let Event::Begun { binary, control, data_dir, lock_file, generation, incumbent, .. } = &records[0].event
    else {
        panic!("{records:?}")
    };
    assert_eq!((binary, control), (&None, &place.path("data/control")));
    assert_eq!(
        (data_dir.as_deref(), lock_file.as_deref()),
        (Some(place.path("data").as_path()), Some(".handoff.lock"))
    );
    assert_eq!((*generation, incumbent.as_ref().unwrap().pid), (Some(1), kvd.child.id()));
}

#[test]
fn begin_records_the_unknown_as_unknown_and_warns_only_where_a_daemon_was_named() {
    let place = Place::new();
    let said = place.run("$H journal begin --journal journal true").expect(0);
    assert_eq!(said.err, "");
    let said = place.run("$H journal begin --journal other --control gone true").expect(0);
    assert!(
        said.err.starts_with("handoff journal begin: warning: unable to ask the daemon who it is"),
        "{said:?}"
    );
    assert!(said.err.contains("gone: No such file") && said.err.lines().count() == 1, "{said:?}");
    let unknown = |name: &str| {
        let records = journal::read(place.path(name)).unwrap().records;
        let Event::Begun { control, data_dir, lock_file, generation, incumbent, .. } = &records[0].event
        else {
            panic!("{records:?}")
        };
        assert_eq!((data_dir, lock_file, generation, incumbent), (&None, &None, &None, &None));
        control.clone()
    };
    assert_eq!((unknown("journal"), unknown("other")), (PathBuf::new(), place.path("gone")));
}

#[test]
fn begin_without_a_program_or_a_journal_or_a_second_time_changes_nothing() {
    let place = Place::new();
    let said = place.run("$H journal begin --journal journal").expect(100);
    assert!(said.err.contains("a program must follow: the journal is let go"), "{said:?}");
    let said = place.run("$H journal begin true").expect(100);
    assert!(said.err.contains("--journal"), "{said:?}");
    place.run("$H journal begin --journal journal no-such-program").expect(127);
    place.run("$H journal begin --journal journal --bogus true").expect(100);
    assert!(!place.journal().exists());
    let said =
        place.run("$H journal begin --journal journal $H journal begin --journal journal true").expect(100);
    assert!(said.err.contains("this chain has begun handoff 1"), "{said:?}");
    assert_eq!(place.records().len(), 1);
}

#[test]
fn a_journal_that_a_chain_holds_is_held_by_all_of_it_and_by_nobody_else() {
    let place = Place::new();
    let chain = place.hold("$H journal begin --journal journal env nohup");
    let said = place.run("$H journal begin --journal journal true").expect(1);
    let holder = format!("held by pid {} (", chain.id());
    assert!(
        said.err.starts_with("handoff journal begin: fatal: unable to lock ") && said.err.contains(&holder)
    );
    let said = place.run("$H journal record --journal journal --wait 20ms too late").expect(1);
    assert!(said.err.contains(&holder), "{said:?}");
    // Reading needs no lock.
    place.run("$H journal show --journal journal").expect(0);
    release(chain);
    place.run("$H journal record --journal journal 'not too late'").expect(0);
}

#[test]
fn a_daemon_in_a_handoff_is_busy_and_nothing_is_begun() {
    let place = Place::new();
    let _kvd = place.kvd();
    let swap = "exec $H swap --control data/control --bake 10m $H kvd --data-dir data --version-label v2";
    let mut baking = place.shell(swap).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    common::eventually("the trial", || {
        place.run("$H status --control data/control").out.contains("on-trial")
    });
    let said = place.run("$H journal begin --journal journal --control data/control true").expect(1);
    assert!(
        said.err.contains("fatal: unable to begin a handoff: busy: handoff ")
            && said.err.contains("on-trial")
    );
    assert!(!place.journal().exists());
    place.run("$H abort --control data/control").expect(0);
    assert_eq!(wait_for_exit(&mut baking).code(), Some(3));
}

#[test]
fn begin_settles_what_a_dead_chain_has_left_open() {
    let place = Place::new();
    let _kvd = place.kvd();
    let begin = "$H journal begin --journal journal --control data/control";
    place.run(&format!("{begin} true")).expect(0);
    // The daemon is asked where it was: this one names none.
    let said = place.run("$H journal begin --journal journal true").expect(0);
    let handoffs = place.handoffs();
    let left = &handoffs[0];
    let expected = format!("handoff {} was left open by a driver that died: rolled back: ", left.id);
    assert!(said.err.contains(&expected), "{said:?}");
    assert!(matches!(left.outcome, Outcome::RolledBack { .. }), "{left:?}");
    assert_eq!(handoffs.len(), 2);
    // Neither does this one, and nobody was ever asked for anything.
    place.run("$H journal record --journal journal --phase mine").expect(0);
    let said = place.run("$H journal begin --journal journal true").expect(0);
    assert!(said.err.contains("no daemon was named, and none was asked for anything"), "{said:?}");
    assert!(place.handoffs()[1].ended.is_some());
}

#[test]
fn begin_begins_nothing_while_it_is_not_known_how_the_last_one_ended() {
    let place = Place::new();
    let mut journal = Journal::open(place.journal()).unwrap();
    let begun = |control: PathBuf| Event::Begun {
        binary: None,
        args: vec![],
        build_id: None,
        control,
        data_dir: None,
        lock_file: None,
        generation: None,
        incumbent: None,
        by: None,
        successor: None,
    };
    journal.append("h1", Actor::Driver, begun(PathBuf::new())).unwrap();
    journal.append("h1", Actor::Driver, Event::Phase { name: "sealed".into() }).unwrap();
    drop(journal);
    let said = place.run("$H journal begin --journal journal true").expect(1);
    assert!(said.err.contains("handoff h1, of a driver that died, is not over: "), "{said:?}");
    assert!(said.err.contains("give --control; next: handoff journal resume --journal journal"), "{said:?}");
    assert_eq!(place.records().len(), 2);
}

#[test]
fn a_later_link_may_begin_the_same_handoff_again_and_knows_better() {
    let place = Place::new();
    let _kvd = place.kvd();
    place.run("$H journal begin --journal journal --control data/control true").expect(0);
    let first = place.records().remove(0);
    let mut journal = Journal::open(place.journal()).unwrap();
    let again = Event::Begun {
        binary: Some("/bin/kvd-v2".into()),
        args: vec!["-x".into()],
        build_id: Some("v2".into()),
        control: PathBuf::new(),
        data_dir: None,
        lock_file: None,
        generation: None,
        incumbent: None,
        by: None,
        successor: None,
    };
    journal.append(&first.handoff, Actor::Driver, again).unwrap();
    drop(journal);
    let handoffs = place.handoffs();
    let [handoff] = &handoffs[..] else { panic!("{handoffs:?}") };
    let Some(Event::Begun { binary, args, build_id, control, data_dir, generation, incumbent, by, .. }) =
        &handoff.begun
    else {
        panic!("{handoff:?}")
    };
    assert_eq!(
        (binary.as_deref(), args.len(), build_id.as_deref()),
        (Some(Path::new("/bin/kvd-v2")), 1, Some("v2"))
    );
    assert_eq!((control, data_dir), (&place.path("data/control"), &Some(place.path("data"))));
    assert!(*generation == Some(1) && incumbent.is_some() && by.is_some());
    let text = place.run("$H journal timeline --journal journal").expect(0).out;
    assert!(text.contains("/bin/kvd-v2 is to take over from "), "{text}");
    let said = place.run("$H journal resume --journal journal").expect(0);
    assert!(said.out.contains("rolled back"), "{said:?}");
}

// ---- record

#[test]
fn record_writes_into_the_journal_that_the_chain_holds_and_passes_it_on() {
    let place = Place::new();
    let script = "$H journal begin --journal journal -- $H journal record --phase snapshot -- \
                  $H journal record --note 'by \"hand\"' sh -c 'echo $HANDOFF_FDS; $H journal record --note plain; \
                  env -u HANDOFF_JOURNAL $H journal record all these words; \
                  env -u HANDOFF_FDS $H journal record --wait 0s --note stranger; exit 7'";
    let said = place.run(script).expect(7);
    assert!(said.out.starts_with("journal=") && said.out.lines().count() == 1, "{said:?}");
    assert!(said.err.contains("unable to lock ") && said.err.lines().count() == 1, "still held: {said:?}");
    let handoffs = place.handoffs();
    assert_eq!((handoffs.len(), handoffs[0].phases[0].name.as_str()), (1, "snapshot"));
    assert_eq!(handoffs[0].phases[0].actor, Actor::Operator);
    let records = place.records();
    assert!(records.iter().all(|record| record.handoff == handoffs[0].id));
    let notes: Vec<&Event> = records.iter().map(|record| &record.event).skip(2).collect();
    let note = |text: &str| Event::Note { text: text.into() };
    assert_eq!(notes, [&note("by \"hand\""), &note("plain"), &note("all these words")]);
}

#[test]
fn record_without_a_chain_opens_the_journal_and_writes_to_no_handoff_or_a_known_one() {
    let place = Place::new();
    place.run("HANDOFF_JOURNAL=journal $H journal record first").expect(0);
    place.run("$H journal begin --journal journal true").expect(0);
    let id = place.handoffs()[0].id.clone();
    place.run(&format!("$H journal record --journal journal --handoff {id} --note late echo x")).expect(0);
    let said =
        place.run("$H journal record --journal journal --handoff nope --note late touch ran").expect(1);
    assert!(said.err.contains("unable to find handoff nope in journal"), "{said:?}");
    assert!(!place.path("ran").exists());
    let said =
        place.run("HANDOFF_ID=stale $H journal record --journal journal --note stale echo went on").expect(0);
    assert!(
        said.err.contains("warning: handoff stale, which HANDOFF_ID names, is not in journal"),
        "{said:?}"
    );
    assert_eq!(said.out, "went on\n");
    let ids: Vec<String> = place.records().into_iter().map(|record| record.handoff).collect();
    assert_eq!(ids, [String::new(), id.clone(), id, String::new()]);
}

#[test]
fn record_waits_for_a_driver_only_so_long() {
    let place = Place::new();
    let chain = place.hold("$H journal begin --journal journal");
    place.run("$H journal record --journal journal --wait 100ms late").expect(1);
    let waiting =
        place.shell("exec $H journal record --journal journal --wait forever --note waited").spawn();
    let mut waiting = waiting.unwrap();
    release(chain);
    assert_eq!(wait_for_exit(&mut waiting).code(), Some(0));
    assert!(place.records().iter().any(|record| record.event == Event::Note { text: "waited".into() }));
}

#[test]
fn record_refuses_what_could_be_text_or_a_program() {
    let place = Place::new();
    for (script, part) in [
        ("$H journal record", "there is nothing to write"),
        ("$H journal record ''", "there is nothing to write"),
        ("$H journal record --note ''", "--note"),
        ("$H journal record -- touch ran", "give it by --note or --phase where a program follows"),
        ("$H journal record some text -- touch ran", "give it by --note or --phase"),
        ("$H journal record --note x --phase y", "--phase"),
        ("$H journal record --nope", "--nope"),
    ] {
        let said =
            place.run(&format!("HANDOFF_JOURNAL=journal; export HANDOFF_JOURNAL; {script}")).expect(100);
        assert!(said.err.contains(part), "{script}: {said:?}");
    }
    let said = place.run("$H journal record text").expect(100);
    assert!(said.err.contains("no journal is named: give --journal, or set HANDOFF_JOURNAL"), "{said:?}");
    assert!(!place.journal().exists() && !place.path("ran").exists());
    assert!(!fs::exists(place.path("ran")).unwrap());
}

// ---- On journals in every state.

/// What a journal may be like when a command finds it.
const STATES: [&str; 9] =
    ["missing", "empty", "torn", "torn header", "damaged", "foreign", "future", "directory", "unreadable"];

/// Where the second record begins, and the whole.
struct Sample {
    bytes: Vec<u8>,
    last: usize,
}

impl Sample {
    fn new(place: &Place) -> Self {
        let mut journal = Journal::open(place.path("sample")).unwrap();
        journal.append("", Actor::Operator, Event::Note { text: "first".into() }).unwrap();
        journal.append("", Actor::Operator, Event::Note { text: "second".into() }).unwrap();
        let bytes = fs::read(place.path("sample")).unwrap();
        let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        Self { bytes, last }
    }

    fn header_len(&self) -> usize {
        self.bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1
    }

    /// Brings a path into a state.
    fn make(&self, state: &str, path: &Path) {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir(path);
        let whole = self.bytes.as_slice();
        match state {
            "missing" => {}
            "empty" => fs::write(path, "").unwrap(),
            "torn" => fs::write(path, &whole[..whole.len() - 5]).unwrap(),
            "torn header" => fs::write(path, &whole[..30]).unwrap(),
            "damaged" => {
                let mut bytes = whole.to_vec();
                bytes[self.header_len() + 40] ^= 1;
                fs::write(path, bytes).unwrap();
            }
            "foreign" => fs::write(path, "#!/bin/sh\necho a program\n").unwrap(),
            "future" => fs::write(path, future()).unwrap(),
            "directory" => fs::create_dir(path).unwrap(),
            "unreadable" => {
                fs::write(path, whole).unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
            }
            other => unreachable!("{other}"),
        }
    }
}

/// A header that a later release wrote.
fn future() -> String {
    let body = r#","journal":"handoff","format":9,"file":"f","rotated_from":null,"wall_ms":5}"#;
    format!("{{\"crc\":\"{:08x}\"{body}\n", crc32c::crc32c(body.as_bytes()))
}

/// What is expected: the exit code, and parts of what is said on standard error and on standard output.
type Row = (i32, &'static [&'static str], &'static [&'static str]);

const MISSING: Row = (
    111,
    &["unable to open the journal {journal}: No such file", "; next: name another journal; a swap or"],
    &[],
);
const TORN: &[&str] =
    &["warning: the last record is torn: ", " bytes at byte {last}; the next driver cuts it off"];
const TORN_HEADER: &[&str] = &["the last record is torn: 30 bytes at byte 0; the next driver cuts it off"];
const CUT: &[&str] = &["warning: cut a torn last record off the journal", " offset={last} "];
const CUT_HEADER: &[&str] = &["warning: cut a torn last record off the journal", " offset=0 bytes=30"];
const DAMAGED: Row = (
    1,
    &[
        "{journal} is damaged at byte {first}: expected the checksum ",
        "; next: handoff journal repair {journal}",
    ],
    &[],
);
const FOREIGN: Row =
    (1, &["{journal} is not ours: expected a journal of handoff, ", "; next: name another journal"], &[]);
const FUTURE: Row = (
    1,
    &["{journal} has format 9 and this release reads up to 1: use the release that wrote it, or a later one"],
    &[],
);
const DIRECTORY: Row = (100, &["{journal} is not a regular file, as a journal must be"], &[]);
const UNREADABLE: Row = (
    111,
    &[
        "unable to open the journal {journal}: Permission denied",
        "; next: run this as the user whose it is, or as root",
    ],
    &[],
);

/// Returns what is expected; `{last}` and `{first}` stand for where the last and the first record begin.
fn expected(subcommand: &str, state: &str) -> Row {
    match (subcommand, state) {
        ("begin" | "record", "missing" | "empty") => (0, &[], &[]),
        ("begin" | "record", "torn") => (0, CUT, &[]),
        ("begin" | "record", "torn header") => (0, CUT_HEADER, &[]),
        ("current", "missing") => {
            (1, &["no journal, as there is none at {journal}, says so; next: give --data-dir or"], &[])
        }
        ("current", "empty") => {
            (1, &["no owner record and no record of the journal {journal} says so; next: "], &[])
        }
        ("current", "torn") => (1, TORN, &[]),
        ("current", "torn header") => (1, TORN_HEADER, &[]),
        ("repair", "empty") => (0, &[], &["sound: 0 records\n"]),
        ("repair", "torn") => (
            0,
            &[],
            &[" bytes at byte {last}: a torn last record; moved to {journal}.damaged-{last}\n1 sound"],
        ),
        ("repair", "torn header") => {
            (0, &[], &["30 bytes at byte 0: a torn last record; moved to ", "\n0 sound records are kept"])
        }
        ("repair", "damaged") => (
            0,
            &[],
            &[
                " bytes at byte {first}: expected the checksum ",
                "moved to {journal}.damaged-{first}\n1 sound",
            ],
        ),
        ("resume", "empty") => (0, &[], &["nothing was left open\n"]),
        ("resume", "torn") => (0, TORN, &["nothing was left open\n"]),
        ("resume", "torn header") => (0, TORN_HEADER, &["nothing was left open\n"]),
        ("show", "empty") => (0, &["info: {journal} is empty"], &[]),
        ("show", "torn") => (0, TORN, &["note: first\n"]),
        ("show", "torn header") => (0, &["30 bytes at byte 0", "info: {journal} is empty"], &[]),
        ("timeline", "empty") => (1, &["unable to find a handoff in {journal}"], &[]),
        ("timeline", "torn") => (1, TORN, &[]),
        ("timeline", "torn header") => (1, TORN_HEADER, &[]),
        (_, "missing") => MISSING,
        (_, "damaged") => DAMAGED,
        (_, "foreign") => FOREIGN,
        (_, "future") => FUTURE,
        (_, "directory") => DIRECTORY,
        (_, "unreadable") => UNREADABLE,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn every_subcommand_says_what_is_wrong_with_a_journal_where_and_what_to_do_next() {
    let place = Place::new();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let sample = Sample::new(&place);
    let journal = place.journal();
    let is_root = nix::unistd::geteuid().is_root();
    // Root may read everything; the program may be where nobody else may go.
    let program = place.path("handoff");
    fs::copy(HANDOFF, &program).unwrap();
    for state in STATES {
        for subcommand in ["begin", "record", "show", "current", "timeline", "resume", "repair"] {
            sample.make(state, &journal);
            let before = fs::read(&journal).ok();
            let words = match subcommand {
                "begin" => vec!["begin", "true"],
                "record" => vec!["record", "--note", "x"],
                other => vec![other],
            };
            let mut command = place.command(&program);
            command.arg("journal").args(words).env("HANDOFF_JOURNAL", &journal);
            if state == "unreadable" && is_root {
                command.uid(65_534).gid(65_534);
            }
            let said = Said::of(command);
            let (code, err, out) = expected(subcommand, state);
            let context = format!("{subcommand} of a journal that is {state}: {said:#?}");
            assert_eq!(said.code, code, "{context}");
            let fill = |part: &str| {
                part.replace("{journal}", journal.to_str().unwrap())
                    .replace("{last}", &sample.last.to_string())
                    .replace("{first}", &sample.header_len().to_string())
            };
            for part in err {
                assert!(said.err.contains(&fill(part)), "{part:?}: {context}");
            }
            for part in out {
                assert!(said.out.contains(&fill(part)), "{part:?}: {context}");
            }
            if err.is_empty() {
                assert_eq!(said.err, "", "{context}");
            }
            let is_refused = code != 0;
            if is_refused {
                assert!(said.out.is_empty(), "{context}");
            }
            let writes = matches!(subcommand, "begin" | "record" | "repair");
            if is_refused || !writes {
                assert_eq!(fs::read(&journal).ok(), before, "{context}");
            }
        }
    }
}
