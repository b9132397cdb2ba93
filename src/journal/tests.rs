#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use tempfile::TempDir;

use super::*;

struct Rig {
    dir: TempDir,
    path: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("journal");
        Self { dir, path }
    }

    /// A journal of `count` records that are told apart by their notes.
    fn with_notes(count: usize) -> Self {
        let rig = Self::new();
        rig.append_notes(0..count);
        rig
    }

    fn append_notes(&self, notes: std::ops::Range<usize>) {
        let mut journal = Journal::open(&self.path).unwrap();
        for note in notes {
            journal.append("h1", Actor::Driver, Event::Note { text: format!("note {note}") }).unwrap();
        }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(&self.path, bytes).unwrap();
    }

    fn notes(&self) -> Vec<String> {
        notes(&read(&self.path).unwrap().records)
    }

    /// The offset of each line and the end of the file.
    fn lines(&self) -> Vec<usize> {
        let bytes = self.bytes();
        let newlines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        std::iter::once(0).chain(newlines).collect()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn holding_until_rotated(&self) -> Journal {
        let options = Options { max_bytes: 1000, ..Options::default() };
        Journal::open_with(&self.path, &options).unwrap()
    }
}

fn notes(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| match &record.event {
        Event::Note { text } => Some(text.clone()),
        _ => None,
    };
    records.iter().filter_map(text).collect()
}

fn numbered_notes(notes: impl Iterator<Item = usize>) -> Vec<String> {
    notes.map(|n| format!("note {n}")).collect()
}

fn begun() -> Event {
    Event::Begun {
        binary: Some("/bin/kvd-v2".into()),
        args: vec!["--port=1".into()],
        build_id: None,
        control: "/run/kv/control".into(),
        data_dir: None,
        lock_file: None,
        generation: None,
        incumbent: None,
        by: None,
        successor: None,
    }
}

fn phase(name: &str) -> Event {
    Event::Phase { name: name.into() }
}

fn committed(generation: u64) -> Event {
    let binary = format!("/bin/kvd-v{generation}").into();
    Event::Committed {
        generation,
        binary,
        args: vec![],
        build_id: format!("v{generation}"),
        gap_us: Some(312),
    }
}

// What is written.

#[test]
fn what_was_appended_is_read_back_in_order_with_rising_numbers() {
    let rig = Rig::new();
    let mut journal = Journal::open(&rig.path).unwrap();
    let written = [("h1", begun()), ("h1", phase("drain")), ("", Event::Note { text: "by hand".into() })]
        .map(|(handoff, event)| journal.append(handoff, Actor::Driver, event).unwrap());
    journal.sync().unwrap();
    let contents = read(&rig.path).unwrap();
    assert_eq!(contents.records, written);
    assert_eq!(contents.records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(contents.torn_tail, None);
    assert_eq!(contents.header.unwrap().format, FORMAT);
    assert_eq!(contents.lines.len(), 3);
    assert!(contents.lines[1].contains("drain"));
    assert_eq!(journal.contents().unwrap().records, written);
}

#[test]
fn the_numbers_go_on_after_a_restart() {
    let rig = Rig::with_notes(2);
    rig.append_notes(2..3);
    let seqs: Vec<_> = read(&rig.path).unwrap().records.iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
}

#[test]
fn what_happened_elsewhere_keeps_its_own_time_and_process() {
    let rig = Rig::new();
    let stamp = Stamp { wall_ms: 1, mono_us: 2, boot_id: "other".into(), pid: 3 };
    let mut journal = Journal::open(&rig.path).unwrap();
    journal.append_stamped("h1", Actor::Incumbent, phase("drained"), stamp.clone()).unwrap();
    assert_eq!(read(&rig.path).unwrap().records[0].stamp, stamp);
}

#[test]
fn an_empty_file_is_a_journal_without_records() {
    let rig = Rig::new();
    rig.write(b"");
    assert_eq!(read(&rig.path).unwrap(), Contents::default());
    assert_eq!(repair(&rig.path).unwrap(), Repair::default());
    assert_eq!(rig.bytes(), b"");
    rig.append_notes(0..1);
    assert_eq!(rig.notes(), ["note 0"]);
}

#[test]
fn a_journal_is_for_its_owner_only() {
    let rig = Rig::with_notes(1);
    assert_eq!(fs::metadata(&rig.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn no_file_is_created_by_reading_or_repairing() {
    let rig = Rig::new();
    assert!(matches!(read(&rig.path), Err(Error::Io { .. })));
    assert!(matches!(repair(&rig.path), Err(Error::Io { .. })));
    assert!(rig.files().is_empty());
}

#[test]
fn an_unknown_event_is_read_and_shown() {
    let rig = Rig::with_notes(1);
    let newer = Record {
        seq: 2,
        handoff: "h1".into(),
        stamp: Stamp::now(),
        actor: Actor::Other("oracle".into()),
        event: Event::Unknown(serde_json::json!({"kind": "teleported", "to": "mars"})),
    };
    rig.write(&[rig.bytes(), newer.encode()].concat());
    let contents = read(&rig.path).unwrap();
    assert_eq!(contents.records[1], newer);
    rig.append_notes(2..3);
    assert_eq!(read(&rig.path).unwrap().records[2].seq, 3);
}

// Torn tails.

#[test]
fn every_cut_of_the_last_line_recovers_to_the_records_before_it_and_says_so() {
    let rig = Rig::with_notes(3);
    let (whole, lines) = (rig.bytes(), rig.lines());
    for cut in lines[3] + 1..lines[4] {
        rig.write(&whole[..cut]);
        let torn = TornTail { offset: lines[3] as u64, bytes: whole[lines[3]..cut].to_vec() };
        assert_eq!(read(&rig.path).unwrap().torn_tail, Some(torn.clone()), "cut at {cut}");
        assert_eq!(rig.bytes(), &whole[..cut], "reading changes nothing");

        let mut journal = Journal::open(&rig.path).unwrap();
        assert_eq!(journal.torn_tail(), Some(&torn));
        journal.append("h1", Actor::Driver, Event::Note { text: "after".into() }).unwrap();
        let records = read(&rig.path).unwrap().records;
        assert_eq!(notes(&records), ["note 0", "note 1", "after"], "cut at {cut}");
        assert!(matches!(&records[2].event, Event::Repaired { offset, .. } if *offset == lines[3] as u64));
        assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}

#[test]
fn every_cut_of_the_header_recovers_to_an_empty_journal() {
    let rig = Rig::with_notes(0);
    let whole = rig.bytes();
    for cut in 1..whole.len() {
        rig.write(&whole[..cut]);
        assert_eq!(read(&rig.path).unwrap().torn_tail.unwrap().bytes, &whole[..cut]);
        rig.append_notes(0..1);
        assert_eq!(rig.notes(), ["note 0"], "cut at {cut}");
    }
}

#[test]
fn a_last_line_with_a_bad_checksum_is_a_torn_one() {
    let rig = Rig::with_notes(3);
    let (whole, lines) = (rig.bytes(), rig.lines());
    for at in lines[3]..lines[4] {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        rig.write(&bad);
        let contents = read(&rig.path).unwrap();
        assert_eq!(notes(&contents.records), ["note 0", "note 1"], "byte {at}");
        assert_eq!(contents.torn_tail.unwrap().bytes, &bad[lines[3]..]);
    }
}

#[test]
fn zeros_that_a_power_failure_left_at_the_end_are_a_torn_tail() {
    let rig = Rig::with_notes(2);
    rig.write(&[rig.bytes(), vec![0; 300]].concat());
    rig.append_notes(2..3);
    assert_eq!(rig.notes(), ["note 0", "note 1", "note 2"]);
    rig.write(&[0; 100]);
    rig.append_notes(3..4);
    assert_eq!(rig.notes(), ["note 3"]);
}

#[test]
fn a_sound_line_that_is_no_record_is_not_cut() {
    let rig = Rig::with_notes(2);
    let body = ",\"seq\":\"three\"}";
    let line = format!("{{\"crc\":\"{:08x}\"{body}\n", crc32c::crc32c(body.as_bytes()));
    let before = [rig.bytes(), line.into_bytes()].concat();
    rig.write(&before);
    assert!(matches!(Journal::open(&rig.path), Err(Error::Damaged { .. })));
    assert_eq!(rig.bytes(), before);
}

// Damage.

#[test]
fn every_corrupt_byte_in_the_middle_is_named_and_repair_keeps_all_other_records() {
    let rig = Rig::with_notes(20);
    let (whole, lines) = (rig.bytes(), rig.lines());
    for (line, range) in lines.windows(2).enumerate().take(20) {
        for at in range[0]..range[1] {
            for flip in [0x01, 0x20, 0xff] {
                let mut bad = whole.clone();
                bad[at] ^= flip;
                let (records, first_bad) = damaged(&bad);
                assert!(
                    (range[0]..range[1]).contains(&first_bad),
                    "byte {at} of line {line}, named {first_bad}"
                );
                // A newline is no part of its record, and a header is none.
                let lost = if line == 0 || at == range[1] - 1 { None } else { Some(line - 1) };
                let kept = numbered_notes((0..20).filter(|n| Some(*n) != lost));
                assert_eq!(notes(&records), kept, "byte {at} of line {line}");
            }
        }
    }
}

/// Scans without a file, as there are thousands of these.
fn damaged(bytes: &[u8]) -> (Vec<Record>, usize) {
    let scan = scan::scan(bytes);
    let Err(Error::Damaged { offset, .. }) = scan.check_sound(Path::new("j"), bytes) else {
        panic!("not noticed: {scan:?}")
    };
    (scan.records.into_iter().map(|sound| sound.record).collect(), usize::try_from(offset).unwrap())
}

#[test]
fn repair_moves_the_bad_part_aside_and_tells_of_it() {
    let rig = Rig::with_notes(20);
    let (whole, lines) = (rig.bytes(), rig.lines());
    for line in 1..20 {
        let mut bad = whole.clone();
        bad[lines[line] + 40] ^= 4;
        rig.write(&bad);
        assert!(
            matches!(Journal::open(&rig.path), Err(Error::Damaged { offset, .. }) if offset == lines[line] as u64)
        );
        assert_eq!(rig.bytes(), bad, "an error changes nothing");

        let repair = repair(&rig.path).unwrap();
        assert_eq!((repair.records_kept, repair.moved.len()), (19, 1));
        let moved = &repair.moved[0];
        assert_eq!((moved.offset, moved.bytes), (lines[line] as u64, (lines[line + 1] - lines[line]) as u64));
        assert_eq!(fs::read(moved.moved_to.as_ref().unwrap()).unwrap(), &bad[lines[line]..lines[line + 1]]);

        assert_eq!(rig.notes(), numbered_notes((0..20).filter(|n| *n != line - 1)));
        let told = read(&rig.path).unwrap().records.pop().unwrap();
        assert!(matches!(told.event, Event::Repaired { moved_to, .. } if moved_to == moved.moved_to));
        rig.append_notes(20..21);
    }
}

#[test]
fn repair_never_overwrites_what_it_moved_aside_before() {
    let rig = Rig::with_notes(3);
    let (whole, lines) = (rig.bytes(), rig.lines());
    for round in 0..3u8 {
        let mut bad = whole.clone();
        bad[lines[1] + 40] = b'A' + round;
        rig.write(&bad);
        repair(&rig.path).unwrap();
    }
    let name = format!("journal.damaged-{}", lines[1]);
    assert_eq!(rig.files(), ["journal".to_owned(), name.clone(), format!("{name}.1"), format!("{name}.2")]);
    let first = fs::read(rig.dir.path().join(name)).unwrap();
    assert_eq!(first[40], b'A');
}

#[test]
fn repair_finds_several_bad_parts_a_torn_tail_and_a_lost_newline() {
    let rig = Rig::with_notes(6);
    let (mut bytes, lines) = (rig.bytes(), rig.lines());
    bytes.truncate(lines[7] - 10);
    bytes.remove(lines[5] - 1);
    bytes[lines[1] + 30] ^= 1;
    bytes[lines[2] + 30] ^= 1;
    bytes.splice(0..0, b"#!garbage\n".iter().copied());
    rig.write(&bytes);
    assert!(matches!(read(&rig.path), Err(Error::Damaged { offset: 0, .. })));
    let repair = repair(&rig.path).unwrap();
    let moved: Vec<_> = repair.moved.iter().map(|m| m.bytes).collect();
    // The garbage, the header that is no longer the first line, and two records next to each other are one bad part.
    assert_eq!(moved, [(10 + lines[3]) as u64, 0, (lines[7] - 10 - lines[6]) as u64]);
    assert_eq!(rig.notes(), ["note 2", "note 3", "note 4"]);
    let stored: u64 = rig.files().iter().filter(|f| f.contains("damaged")).map(|f| size(&rig, f)).sum();
    assert_eq!(stored, moved.iter().sum::<u64>(), "nothing is dropped");
    rig.append_notes(9..10);
}

fn size(rig: &Rig, name: &str) -> u64 {
    fs::metadata(rig.dir.path().join(name)).unwrap().len()
}

#[test]
fn repair_leaves_a_sound_journal_alone() {
    let rig = Rig::with_notes(3);
    let (before, inode) = (rig.bytes(), fs::metadata(&rig.path).unwrap().ino());
    assert_eq!(repair(&rig.path).unwrap(), Repair { moved: vec![], records_kept: 3 });
    assert_eq!((rig.bytes(), fs::metadata(&rig.path).unwrap().ino()), (before, inode));
}

#[test]
fn repair_leaves_a_journal_alone_that_a_driver_holds() {
    let rig = Rig::with_notes(3);
    let _held = Journal::open(&rig.path).unwrap();
    let mut bad = rig.bytes();
    bad[200] ^= 1;
    rig.write(&bad);
    assert!(matches!(repair(&rig.path), Err(Error::Locked { .. })));
    assert_eq!(rig.bytes(), bad);
}

// What is not ours.

#[test]
fn a_strangers_file_is_refused_and_not_touched() {
    let zeros = vec![0; 1 << 16];
    let strangers: [&[u8]; 6] = [
        b"#!/bin/sh\nrm -rf /\n",
        b"{\"a\":1}\n",
        b"\n",
        b"no newline",
        b"{\"crc\":\"00000000\",\"seq\":1}\n",
        &zeros,
    ];
    for stranger in strangers {
        let rig = Rig::new();
        rig.write(stranger);
        let errors = [read(&rig.path).err(), Journal::open(&rig.path).err(), repair(&rig.path).err()];
        for error in errors {
            assert!(matches!(error, Some(Error::Foreign { .. })), "{error:?}");
        }
        assert_eq!(rig.bytes(), stranger);
        assert_eq!(rig.files(), ["journal"]);
    }
}

#[test]
fn a_newer_versions_file_is_refused_and_not_touched() {
    let rig = Rig::with_notes(0);
    let header = Header { format: FORMAT + 1, ..Header::new(None) };
    let newer = [header.encode(), b"lines that we cannot know\n".to_vec()].concat();
    rig.write(&newer);
    let errors = [read(&rig.path).err(), Journal::open(&rig.path).err(), repair(&rig.path).err()];
    for error in errors {
        let Some(Error::NewerFormat { found, ours, .. }) = error else { panic!("{error:?}") };
        assert_eq!((found, ours), (FORMAT + 1, FORMAT));
    }
    assert_eq!(rig.bytes(), newer);
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let rig = Rig::new();
    make_fifo(&rig.path);
    for error in [read(&rig.path).err(), Journal::open(&rig.path).err(), repair(&rig.path).err()] {
        assert!(matches!(error, Some(Error::Invalid { .. })), "{error:?}");
    }
    assert!(matches!(read(rig.dir.path()), Err(Error::Invalid { .. })));
    assert!(matches!(Journal::open(rig.dir.path()), Err(Error::Invalid { .. })));
    assert!(matches!(Journal::open("/dev/null"), Err(Error::Invalid { .. })));
}

fn make_fifo(path: &Path) {
    assert!(process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

// Who holds it.

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let rig = Rig::with_notes(1);
    let held = Journal::open(&rig.path).unwrap();
    let Err(Error::Locked { path, holders }) = Journal::open(&rig.path) else {
        panic!("it was opened twice")
    };
    assert_eq!(path, rig.path);
    assert_eq!(holders.iter().map(|h| h.pid).collect::<Vec<_>>(), [process::id()]);
    assert!(holders[0].start_ticks > 0);
    drop(held);
    Journal::open(&rig.path).unwrap();
}

#[test]
fn a_child_that_inherited_the_journal_is_named_with_whom_it_has_it_from() {
    let rig = Rig::with_notes(1);
    let held = Journal::open(&rig.path).unwrap();
    let mut cat = process::Command::new("cat");
    let mut child =
        cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(OwnedFd::from(held)).spawn().unwrap();
    // It has a copy of the journal as well.
    drop(cat);
    // An answer shows that it runs as `cat`; and it ends with this test, however the test ends.
    child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let Err(Error::Locked { holders, .. }) = Journal::open(&rig.path) else { panic!("the child holds it") };
    let named: Vec<_> = holders.iter().map(|h| (h.pid, h.command.as_str(), h.inherited_from)).collect();
    assert_eq!(named, [(child.id(), "cat", Some(process::id()))]);
    // Closes its standard input first.
    child.wait().unwrap();
    Journal::open(&rig.path).unwrap();
}

#[test]
fn one_that_waits_gets_it_when_it_is_let_go() {
    let rig = Rig::with_notes(1);
    let held = Journal::open(&rig.path).unwrap();
    let options = Options { wait: Duration::from_mins(1), ..Options::default() };
    thread::scope(|scope| {
        let waiter = scope.spawn(|| Journal::open_with(&rig.path, &options).map(|_| ()));
        drop(held);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let rig = Rig::with_notes(1);
    let _held = Journal::open(&rig.path).unwrap();
    let (begun, wait) = (Instant::now(), Duration::from_millis(50));
    let waited = Journal::open_with(&rig.path, &Options { wait, ..Options::default() });
    assert!(matches!(waited, Err(Error::Locked { .. })));
    assert!(begun.elapsed() >= wait.max(FORK_GRACE));
}

#[test]
fn an_adopted_journal_goes_on_where_the_last_link_stopped() {
    let rig = Rig::with_notes(0);
    let mut first = Journal::open(&rig.path).unwrap();
    first.append("h1", Actor::Driver, begun()).unwrap();
    let copy = first.as_fd().try_clone_to_owned().unwrap();
    let mut second = Journal::adopt(copy, &rig.path).unwrap();
    assert_eq!(second.append("h1", Actor::Driver, phase("drain")).unwrap().seq, 2);
    // As in a shell that holds the journal while its commands use it.
    assert_eq!(first.append("h1", Actor::Driver, phase("drained")).unwrap().seq, 3);
    assert_eq!(second.append("h1", Actor::Driver, phase("seal")).unwrap().seq, 4);
    drop(first);
    assert!(matches!(Journal::open(&rig.path), Err(Error::Locked { .. })), "the last copy still holds it");
    let records = read(&rig.path).unwrap().records;
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn a_record_longer_than_the_guess_is_found_when_adopting() {
    let rig = Rig::with_notes(2);
    let mut journal = Journal::open(&rig.path).unwrap();
    journal.append("h1", Actor::Operator, Event::Note { text: "x".repeat(100_000) }).unwrap();
    let adopted = Journal::adopt(journal.into(), &rig.path).unwrap();
    assert_eq!(adopted.tip.next_seq, 4);
}

#[test]
fn a_foreign_descriptor_is_not_adopted() {
    let rig = Rig::with_notes(1);
    let reader: OwnedFd = fs::File::open(&rig.path).unwrap().into();
    assert!(matches!(Journal::adopt(reader, &rig.path), Err(Error::Descriptor { .. })));
    let pipe: OwnedFd = std::io::pipe().unwrap().1.into();
    assert!(matches!(Journal::adopt(pipe, &rig.path), Err(Error::Invalid { .. })));
    let elsewhere = Rig::with_notes(1);
    let other = Journal::open(&elsewhere.path).unwrap();
    assert!(matches!(Journal::adopt(other.into(), &rig.path), Err(Error::LockReplaced { .. })));
}

#[test]
fn an_adopted_journal_without_its_lock_is_refused_while_another_holds_it() {
    let rig = Rig::with_notes(1);
    let unlocked = sys::open_append(&rig.path, false).unwrap();
    let _held = Journal::open(&rig.path).unwrap();
    assert!(matches!(Journal::adopt(unlocked.into(), &rig.path), Err(Error::Locked { .. })));
}

#[test]
fn a_half_written_record_of_another_process_is_healed_by_the_next_append() {
    let rig = Rig::with_notes(1);
    let mut journal = Journal::open(&rig.path).unwrap();
    (&journal.file).write_all(b"{\"crc\":\"0123").unwrap();
    journal.append("h1", Actor::Driver, Event::Note { text: "after".into() }).unwrap();
    assert_eq!(rig.notes(), ["note 0", "after"]);
    assert_eq!(journal.torn_tail().unwrap().bytes, b"{\"crc\":\"0123");
}

// Readers beside a writer.

#[test]
fn a_reader_beside_a_writer_sees_whole_records_and_never_an_error() {
    let rig = Rig::with_notes(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| rig.append_notes(0..2000));
        let mut reads = 0;
        while !writer.is_finished() || reads == 0 {
            let records = read(&rig.path).unwrap().records;
            assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq));
            reads += 1;
        }
    });
    assert_eq!(read(&rig.path).unwrap().records.len(), 2000);
}

#[test]
fn a_reader_beside_a_writer_that_tears_and_heals_never_sees_damage() {
    let rig = Rig::with_notes(5);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut journal = Journal::open(&rig.path).unwrap();
            for n in 0..300 {
                (&journal.file).write_all(&b"{\"crc\":\"01234567\",torn".repeat(n % 40 + 1)).unwrap();
                journal.append("h1", Actor::Driver, Event::Note { text: "x".repeat(n) }).unwrap();
            }
        });
        while !writer.is_finished() {
            read(&rig.path).unwrap();
        }
    });
    assert_eq!(rig.notes().len(), 305);
}

// Full disks.

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_leaves_whole_records() {
    let tested = sys::testing::on_a_disk_of(64 << 10, |dir| {
        let path = dir.join("journal");
        let mut journal = Journal::open(&path).unwrap();
        // Leaves the journal one page.
        while sys::create_new(&dir.join("filler")).is_ok_and(|mut f| f.write_all(&[1; 128 << 10]).is_ok()) {}
        let mut written = 0;
        let error = loop {
            match journal.append("h1", Actor::Driver, Event::Note { text: "x".repeat(300) }) {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(written > 0, "the header's page has room");
        let Error::Io { attempt, source } = &error else { panic!("{error:?}") };
        assert!(attempt.contains(path.to_str().unwrap()), "{attempt}");
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        let contents = read(&path).unwrap();
        assert_eq!((contents.records.len(), contents.torn_tail), (written, None));
        assert_eq!(
            journal.append("h1", Actor::Driver, phase("drain")).is_ok(),
            fits(&path, 200),
            "small ones may fit"
        );

        fs::remove_file(dir.join("filler")).unwrap();
        journal.append("h1", Actor::Driver, Event::Note { text: "after".into() }).unwrap();
        assert_eq!(notes(&read(&path).unwrap().records).last().unwrap(), "after");
    });
    if let Err(why) = tested {
        assert!(std::env::var_os("CI").is_none(), "this must run in CI: {why}");
        eprintln!("skipped: needs root to mount a small disk: {why}");
    }
}

/// Returns whether a record of about so many bytes fits the last page of the file.
fn fits(path: &Path, record: u64) -> bool {
    4096 - fs::metadata(path).unwrap().len() % 4096 >= record
}

#[test]
fn a_rotation_that_does_not_fit_the_disk_leaves_the_journal_as_it_was() {
    let tested = sys::testing::on_a_disk_of(64 << 10, |dir| {
        let path = dir.join("journal");
        let mut journal =
            Journal::open_with(&path, &Options { max_bytes: 100, ..Options::default() }).unwrap();
        for _ in 0..6 {
            journal.append("h1", Actor::Driver, Event::Note { text: "x".repeat(300) }).unwrap();
        }
        while sys::create_new(&dir.join("filler")).is_ok_and(|mut f| f.write_all(&[1; 128 << 10]).is_ok()) {}
        journal.append("h2", Actor::Driver, begun()).unwrap();
        assert_eq!(read(&path).unwrap().records.len(), 7);
        assert!(!rotate::leftover(&path).exists() && !rotate::numbered(&path, 1).exists());
    });
    if let Err(why) = tested {
        assert!(std::env::var_os("CI").is_none(), "this must run in CI: {why}");
        eprintln!("skipped: needs root to mount a small disk: {why}");
    }
}

// Rotation.

/// A journal of 30 records with a finished handoff and a cold start among them, and an unfinished handoff at the end.
fn worn(rig: &Rig) -> Vec<Record> {
    let mut journal = Journal::open(&rig.path).unwrap();
    let mut append = |handoff: &str, event| journal.append(handoff, Actor::Driver, event).unwrap();
    let started = |generation| Event::Started {
        generation,
        binary: "/bin/kvd-v1".into(),
        args: vec![],
        build_id: "v1".into(),
    };
    append("", started(1));
    append("h1", begun());
    append("h1", committed(2));
    for _ in 0..25 {
        append("", Event::Note { text: "worn".into() });
    }
    append("h2", begun());
    append("h2", phase("drain"));
    drop(journal);
    read(&rig.path).unwrap().records
}

#[test]
fn a_rotation_carries_the_current_binary_and_the_unfinished_handoff_over() {
    let rig = Rig::new();
    let before = worn(&rig);
    let old_id = read(&rig.path).unwrap().header.unwrap().file;
    let mut journal = rig.holding_until_rotated();
    let next = journal.append("h3", Actor::Driver, begun()).unwrap();

    let contents = read(&rig.path).unwrap();
    let kept = [&before[2], &before[28], &before[29], &next].map(Clone::clone);
    assert_eq!(contents.records, kept);
    assert_eq!(contents.header.unwrap().rotated_from, Some(old_id));
    assert_eq!(current(&contents.records).unwrap().build_id, "v2");
    assert_eq!(read(rotate::numbered(&rig.path, 1)).unwrap().records, before);
    assert_eq!(rig.files(), ["journal", "journal.1"]);
    assert!(matches!(Journal::open(&rig.path), Err(Error::Locked { .. })), "the lock moved along");
}

#[test]
fn a_handoff_is_never_rotated_in_its_middle_and_neither_is_an_adopted_journal() {
    let rig = Rig::new();
    worn(&rig);
    let mut journal = rig.holding_until_rotated();
    for name in ["drain", "drained", "seal"] {
        journal.append("h2", Actor::Driver, phase(name)).unwrap();
    }
    let mut adopted = Journal::adopt(journal.into(), &rig.path).unwrap();
    adopted.append("h3", Actor::Driver, begun()).unwrap();
    assert_eq!(rig.files(), ["journal"]);
}

#[test]
fn the_size_stays_bounded_and_so_does_the_number_of_old_files() {
    let rig = Rig::new();
    let options = Options { max_bytes: 4096, keep: 2, wait: Duration::ZERO };
    let mut journal = Journal::open_with(&rig.path, &options).unwrap();
    for generation in 1..100 {
        let id = new_handoff_id();
        journal.append(&id, Actor::Driver, begun()).unwrap();
        for name in ["drain", "seal", "ready"] {
            journal.append(&id, Actor::Driver, phase(name)).unwrap();
        }
        journal.append(&id, Actor::Driver, committed(generation)).unwrap();
        assert_eq!(current(&read(&rig.path).unwrap().records).unwrap().generation, generation);
    }
    assert_eq!(rig.files(), ["journal", "journal.1", "journal.2"]);
    let one_handoff = 1500;
    assert!(rig.files().iter().all(|f| size(&rig, f) < options.max_bytes + one_handoff));
    let seqs: Vec<_> = read(&rig.path).unwrap().records.iter().map(|r| r.seq).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b));
    assert_eq!(*seqs.last().unwrap(), 99 * 5);
}

#[test]
fn a_file_that_is_all_needed_is_not_rotated_again_and_again() {
    let rig = Rig::new();
    let options = Options { max_bytes: 100, ..Options::default() };
    let mut journal = Journal::open_with(&rig.path, &options).unwrap();
    journal.append("h1", Actor::Driver, begun()).unwrap();
    journal.append("h1", Actor::Driver, phase("drain")).unwrap();
    journal.append("h1", Actor::Driver, begun()).unwrap();
    assert_eq!(rig.files(), ["journal"]);
}

/// A rotation that has written its new file and changed no name yet: the old file, and the steps to take.
fn begin_rotation(rig: &Rig, keep: usize) -> (File, Vec<rotate::Step>) {
    let old = sys::open_append(&rig.path, false).unwrap();
    let records = read(&rig.path).unwrap();
    let mut text = Header::new(records.header.map(|h| h.file)).encode();
    for at in story::carried(&records.records) {
        text.extend_from_slice(format!("{}\n", records.lines[at]).as_bytes());
    }
    drop(rotate::write_beside(&rig.path, &old, &text).unwrap());
    let steps = rotate::steps(&old, &rig.path, keep).unwrap();
    (old, steps)
}

/// A worn journal with so many old files.
fn worn_with_history(keep: usize) -> (Rig, Vec<Record>) {
    let rig = Rig::new();
    for old in 1..=keep {
        fs::copy(Rig::with_notes(old).path, rotate::numbered(&rig.path, old)).unwrap();
    }
    let records = worn(&rig);
    (rig, records)
}

#[test]
fn a_rotation_that_dies_after_any_step_loses_no_record_and_leaves_no_file() {
    for keep in 0..=3 {
        for until in 0..10 {
            let (rig, before) = worn_with_history(keep);
            let (old, steps) = begin_rotation(&rig, keep);
            for step in steps.iter().take(until) {
                rotate::take(*step, &old, &rig.path).unwrap();
            }
            let at = format!("keep {keep}, died before step {until} of {steps:?}");
            expect_nothing_lost(&rig, &before, keep, &at);

            let options = Options { max_bytes: 1000, keep, wait: Duration::ZERO };
            let mut journal = Journal::open_with(&rig.path, &options).unwrap();
            journal.append("h3", Actor::Driver, begun()).unwrap();
            expect_nothing_lost(&rig, &before, keep, &at);
            let names = (1..=keep).map(|n| format!("journal.{n}"));
            assert_eq!(rig.files(), [vec!["journal".into()], names.collect()].concat(), "{at}");
        }
    }
}

fn expect_nothing_lost(rig: &Rig, before: &[Record], keep: usize, at: &str) {
    let records = read(&rig.path).unwrap().records;
    assert_eq!(current(&records).unwrap().build_id, "v2", "{at}");
    assert!(handoffs(&records).iter().any(|handoff| handoff.id == "h2"), "{at}");
    let first = read(rotate::numbered(&rig.path, 1)).unwrap_or_default().records;
    let whole_story = records.starts_with(before) || first == before;
    assert!(whole_story || keep == 0, "{at}: the whole story is in one of the two");
}

/// Until a sync, a power failure may keep any of the changes of names and lose the others.
#[test]
fn a_power_failure_between_two_syncs_of_the_names_loses_no_record() {
    let (rig, _) = worn_with_history(3);
    let steps = begin_rotation(&rig, 3).1;
    let renames: Vec<_> = steps.into_iter().filter(|step| *step != rotate::Step::SyncOld).collect();
    let groups: Vec<_> = renames.split(|step| *step == rotate::Step::SyncNames).collect();
    for (synced, at_risk) in [(&[][..], groups[0]), (groups[0], groups[1])] {
        for subset in 0..1u32 << at_risk.len() {
            let (rig, before) = worn_with_history(3);
            let (old, _) = begin_rotation(&rig, 3);
            let kept = at_risk.iter().enumerate().filter(|(n, _)| subset & 1 << n != 0).map(|(_, step)| step);
            for step in synced.iter().chain(kept) {
                rotate::take(*step, &old, &rig.path).unwrap();
            }
            expect_nothing_lost(&rig, &before, 3, &format!("{synced:?} and {subset:b} of {at_risk:?}"));
            drop(Journal::open(&rig.path).unwrap());
            expect_nothing_lost(
                &rig,
                &before,
                3,
                &format!("opened after {synced:?} and {subset:b} of {at_risk:?}"),
            );
        }
    }
}

#[test]
fn a_repair_that_dies_before_its_end_can_be_run_again() {
    let rig = Rig::with_notes(3);
    let mut bad = rig.bytes();
    bad[rig.lines()[1] + 40] ^= 1;
    rig.write(&bad);
    let old = sys::open_append(&rig.path, false).unwrap();
    drop(rotate::write_beside(&rig.path, &old, b"half of a repaired jour").unwrap());
    repair(&rig.path).unwrap();
    assert_eq!(rig.notes(), ["note 1", "note 2"]);
    assert_eq!(rig.files().len(), 2);
}

#[test]
fn one_that_waited_on_the_old_file_goes_on_with_the_new_one() {
    let rig = Rig::new();
    worn(&rig);
    let mut journal = rig.holding_until_rotated();
    // A waiter that has opened the old file already.
    let waiting = sys::open_append(&rig.path, false).unwrap();
    journal.append("h3", Actor::Driver, begun()).unwrap();
    assert!(sys::try_lock(&waiting).unwrap(), "the old file's lock is free");
    assert!(!sys::is_at(&waiting, &rig.path).unwrap());
    drop(waiting);

    let options = Options { wait: Duration::from_mins(1), ..Options::default() };
    thread::scope(|scope| {
        let waiter = scope.spawn(|| Journal::open_with(&rig.path, &options).unwrap());
        for n in 0..20 {
            journal.append(&format!("r{n}"), Actor::Driver, begun()).unwrap();
            for _ in 0..10 {
                journal.append("", Actor::Driver, Event::Note { text: "fill".into() }).unwrap();
            }
        }
        drop(journal);
        let mut waiter = waiter.join().unwrap();
        waiter.append("h4", Actor::Driver, Event::Note { text: "seen".into() }).unwrap();
    });
    assert_eq!(rig.notes().last().unwrap(), "seen");
}

#[test]
fn a_rotation_follows_links_and_keeps_the_mode() {
    let rig = Rig::new();
    worn(&rig);
    fs::set_permissions(&rig.path, fs::Permissions::from_mode(0o640)).unwrap();
    let name = rig.dir.path().join("name");
    symlink(&rig.path, &name).unwrap();
    let options = Options { max_bytes: 1000, ..Options::default() };
    let mut journal = Journal::open_with(&name, &options).unwrap();
    journal.append("h3", Actor::Driver, begun()).unwrap();
    assert!(fs::symlink_metadata(&name).unwrap().is_symlink());
    assert_eq!(journal.path(), rig.path);
    assert_eq!(fs::metadata(&rig.path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(rig.files(), ["journal", "journal.1", "name"]);
}

#[test]
fn a_thousand_handoffs_leave_no_descriptor_behind() {
    let rig = Rig::new();
    let options = Options { max_bytes: 2000, keep: 1, wait: Duration::ZERO };
    let mut open = None;
    for n in 0..1000 {
        let mut journal = Journal::open_with(&rig.path, &options).unwrap();
        journal.append(&format!("h{n}"), Actor::Driver, begun()).unwrap();
        journal.append(&format!("h{n}"), Actor::Driver, committed(n)).unwrap();
        drop(journal);
        open.get_or_insert_with(|| descriptors_of(&rig));
    }
    assert_eq!(Some(descriptors_of(&rig)), open);
    assert_eq!(rig.files(), ["journal", "journal.1"]);
}

/// Counts this process's descriptors into the rig's directory: other tests run beside this one.
fn descriptors_of(rig: &Rig) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| fs::read_link(e.ok()?.path()).ok());
    links.filter(|target| target.starts_with(rig.dir.path())).count()
}

// The files together.

#[test]
fn a_history_has_every_record_of_every_file_once() {
    let rig = Rig::new();
    let options = Options { max_bytes: 2500, ..Options::default() };
    let mut journal = Journal::open_with(&rig.path, &options).unwrap();
    for n in 0..60 {
        let event = if n % 5 == 0 { begun() } else { committed(n) };
        journal.append(&format!("h{}", n / 5), Actor::Driver, event).unwrap();
    }
    let history = history(&rig.path).unwrap();
    let seqs: Vec<_> = history.records.iter().map(|record| record.seq).collect();
    let oldest = seqs[0];
    // The one that a rotation has carried over into the oldest file stands alone before the others.
    assert!(seqs[1..].windows(2).all(|pair| pair[1] == pair[0] + 1), "from {oldest}: {seqs:?}");
    assert_eq!((seqs.last(), history.files), (Some(&60), rig.files().len()));
    assert!(history.files > 2 && !history.torn && history.damage.is_none(), "{history:?}");
}

#[test]
fn a_history_ends_at_damage_and_at_a_journal_that_was_here_before() {
    let rig = Rig::new();
    worn(&rig);
    let mut journal = rig.holding_until_rotated();
    journal.append("h3", Actor::Driver, begun()).unwrap();
    drop(journal);
    let newest = read(&rig.path).unwrap().records;
    let all = history(&rig.path).unwrap();
    assert!(all.records.len() > newest.len() && all.files == 2, "{all:?}");

    let older = rotate::numbered(&rig.path, 1);
    let sound = fs::read(&older).unwrap();
    let mut bad = sound.clone();
    bad[sound.len() / 2] ^= 1;
    fs::write(&older, bad).unwrap();
    let cut = history(&rig.path).unwrap();
    assert_eq!((&cut.records, cut.files), (&newest, 1));
    assert!(cut.damage.unwrap().contains("journal.1"));

    fs::copy(Rig::with_notes(3).path, &older).unwrap();
    let alone = history(&rig.path).unwrap();
    assert_eq!((&alone.records, alone.damage), (&newest, None));
}

// What the records tell.

#[test]
fn a_handoff_is_told_from_its_records() {
    let rig = Rig::new();
    let mut journal = Journal::open(&rig.path).unwrap();
    let mut append = |id: &str, actor, event| journal.append(id, actor, event).unwrap();
    append("h1", Actor::Driver, begun());
    append("h1", Actor::Driver, phase("drain"));
    append("h1", Actor::Incumbent, phase("drained"));
    append("h1", Actor::Driver, Event::RolledBack { reason: "it died".into(), cause: None });
    append("h2", Actor::Driver, begun());
    append("h2", Actor::Driver, committed(3));
    append("h2", Actor::Operator, Event::Recovered { conclusion: "it serves".into() });
    let records = journal.contents().unwrap().records;
    let all = handoffs(&records);
    assert_eq!(all.iter().map(|h| h.id.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
    let phases: Vec<_> = all[0].phases.iter().map(|m| (m.name.as_str(), m.actor.clone())).collect();
    assert_eq!(phases, [("drain", Actor::Driver), ("drained", Actor::Incumbent)]);
    assert_eq!(all[0].outcome, Outcome::RolledBack { reason: "it died".into(), cause: None });
    assert_eq!(all[1].outcome, Outcome::Committed { gap_us: Some(312) });
    assert_eq!(all[0].begun, Some(begun()));
    assert_eq!(unfinished(&records), None);
}

#[test]
fn a_handoff_is_unfinished_until_somebody_knows_how_it_ended() {
    let rig = Rig::new();
    let mut journal = Journal::open(&rig.path).unwrap();
    let mut last = |event| {
        journal.append("h1", Actor::Driver, event).unwrap();
        unfinished(&journal.contents().unwrap().records)
            .map(|u| (u.handoff.outcome, u.last_phase.map(|m| m.name)))
    };
    assert_eq!(last(begun()), Some((Outcome::Unfinished, None)));
    assert_eq!(last(phase("seal")), Some((Outcome::Unfinished, Some("seal".into()))));
    let undecided = Outcome::Undecided { detail: "no answer".into() };
    assert_eq!(last(Event::Undecided { detail: "no answer".into() }), Some((undecided, Some("seal".into()))));
    assert_eq!(last(Event::Recovered { conclusion: "nobody serves".into() }), None);
}

#[test]
fn the_current_binary_is_the_newest_that_was_committed_or_started() {
    assert_eq!(current(&[]), None);
    let rig = Rig::new();
    let records = worn(&rig);
    let named = current(&records).unwrap();
    assert_eq!((named.generation, named.binary.to_str().unwrap()), (2, "/bin/kvd-v2"));
    assert_eq!(named.evidence.handoff.as_deref(), Some("h1"));
    assert!(named.evidence.to_string().starts_with("handoff h1 committed it at 2"), "{}", named.evidence);
    let cold = current(&records[..1]).unwrap();
    assert_eq!((cold.generation, cold.evidence.handoff), (1, None));
}

// Following.

#[test]
fn a_follower_sees_every_record_once_across_rotations() {
    let rig = Rig::new();
    let mut follower = Follower::new(&rig.path);
    assert_eq!(follower.poll().unwrap(), Contents::default(), "there is no file yet");
    let options = Options { max_bytes: 2500, ..Options::default() };
    let mut journal = Journal::open_with(&rig.path, &options).unwrap();
    let mut seen = Vec::new();
    for n in 0..200 {
        let event = if n % 5 == 0 { begun() } else { committed(n) };
        journal.append(&format!("h{}", n / 5), Actor::Driver, event).unwrap();
        // At times not before two rotations have passed.
        if n % 23 == 0 {
            seen.extend(follower.poll().unwrap().records);
        }
    }
    seen.extend(follower.poll().unwrap().records);
    assert_eq!(seen.iter().map(|r| r.seq).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
    assert!(rig.files().len() > 2, "it was rotated: {:?}", rig.files());
    assert_eq!(follower.poll().unwrap().records, []);
}

#[test]
fn a_follower_begins_anew_with_a_new_journal() {
    let rig = Rig::with_notes(3);
    let mut follower = Follower::new(&rig.path);
    assert_eq!(follower.poll().unwrap().records.len(), 3);
    // An old file of the one before it is not news.
    fs::rename(&rig.path, rotate::numbered(&rig.path, 1)).unwrap();
    rig.append_notes(7..8);
    assert_eq!(notes(&follower.poll().unwrap().records), ["note 7"]);
}
