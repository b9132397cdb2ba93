#![allow(clippy::unwrap_used)]
use super::*;

const SECTOR: usize = 512;
// Slots of one sector, of some, and of all of them.
const ARGS_LENS: [usize; 3] = [0, 700, 3500];

#[test]
fn the_newest_record_is_the_one_that_is_read() {
    let mut file = blank();
    assert_eq!(decode(&file), Ok(Reading::default()));
    for generation in 1..=10 {
        let written = record(generation, 0);
        write(&mut file, &written, 0);
        assert_eq!(decode(&file).unwrap().record, Some(written));
    }
}

#[test]
fn a_write_cut_at_any_byte_leaves_the_record_before_or_the_record_after() {
    let mut file = blank();
    let mut before = None;
    for generation in 1..=7 {
        let after = record(generation, ARGS_LENS[generation as usize % 3]);
        let whole = decode(&file).unwrap().next_write(&after, generation - 1).unwrap();
        for cut in 0..=SLOT_LEN {
            for beyond in [Beyond::Old, Beyond::Zeros, Beyond::Garbage] {
                let found = decode(&cut_short(&file, &whole, cut, beyond)).unwrap();
                assert!(
                    found.record == before || found.record.as_ref() == Some(&after),
                    "cut at {cut}, {beyond:?}"
                );
                assert!(cut < SLOT_LEN || found.record.as_ref() == Some(&after), "a whole write is read");
            }
        }
        apply(&mut file, &whole);
        before = Some(after);
    }
}

#[test]
fn after_a_torn_write_the_next_one_is_read() {
    for torn_at in 1..=7 {
        let mut file = written_up_to(torn_at - 1);
        let torn = decode(&file).unwrap().next_write(&record(torn_at, 700), torn_at - 1).unwrap();
        for cut in (0..SLOT_LEN).step_by(61) {
            file = cut_short(&file, &torn, cut, Beyond::Garbage);
            assert_eq!(decode(&file).unwrap().torn, [torn.offset]);
            let mut repaired = file.clone();
            let next = record(torn_at, 20);
            write(&mut repaired, &next, 0);
            let found = decode(&repaired).unwrap();
            assert_eq!(
                (found.record, found.torn),
                (Some(next), vec![]),
                "the torn slot is the one that is reused"
            );
        }
    }
}

#[test]
fn any_subset_of_the_sectors_of_a_write_leaves_the_record_before_or_the_record_after() {
    for generation in 1..=5 {
        let file = written_up_to(generation - 1);
        let (before, after) = (decode(&file).unwrap().record, record(generation, 3500));
        let whole = decode(&file).unwrap().next_write(&after, generation - 1).unwrap();
        assert!(!whole.sync_first, "what was before is known to be on disk");
        for subset in 0..=u8::MAX {
            let found = decode(&only_sectors(&file, &whole, subset)).unwrap().record;
            let expected = if subset == u8::MAX { Some(&after) } else { before.as_ref() };
            assert_eq!(found.as_ref(), expected, "sectors {subset:08b}");
        }
    }
}

#[test]
fn any_subset_of_the_sectors_of_two_unsynced_writes_leaves_one_of_the_records() {
    let file = written_up_to(3);
    let records = [record(3, 500), record(4, 3500), record(5, 3500)];
    let first = decode(&file).unwrap().next_write(&records[1], 3).unwrap();
    let mut cached = file.clone();
    apply(&mut cached, &first);
    let second = decode(&cached).unwrap().next_write(&records[2], 3).unwrap();
    assert!(!first.sync_first && !second.sync_first);
    for subset in 0..=u8::MAX {
        let with_first = only_sectors(&file, &first, subset);
        for other in 0..=u8::MAX {
            let found = decode(&only_sectors(&with_first, &second, other)).unwrap().record.unwrap();
            let newest = if other == u8::MAX { 2 } else { usize::from(subset == u8::MAX) };
            assert_eq!(found, records[newest], "sectors {subset:08b} and {other:08b}");
        }
    }
}

#[test]
fn no_power_failure_loses_a_durable_record_or_the_file() {
    let mut failures = Explorer { obey_sync_first: true, power_failures: 0 };
    failures.explore(&Case::new(&blank(), &[], 0, 0), 4).unwrap();
    failures.explore(&Case::new(&written_up_to(3), &history(3), 3, 3), 3).unwrap();
    assert!(failures.power_failures > 10_000, "{} is no exploration", failures.power_failures);
}

#[test]
fn without_the_sync_that_is_asked_for_a_power_failure_loses_a_durable_record() {
    let mut failures = Explorer { obey_sync_first: false, power_failures: 0 };
    let found = failures.explore(&Case::new(&blank(), &[], 0, 0), 4);
    assert!(
        found.is_err(),
        "{} power failures and all is well: the rule is not needed",
        failures.power_failures
    );
}

#[test]
fn a_handoff_needs_no_sync_before_its_record() {
    let mut file = blank();
    for generation in 1..=20 {
        // A successor, which knows nothing but the file: a durable trial, then the final record.
        let trial = write(&mut file, &record(generation, 0), 0);
        let settled = write(&mut file, &record(generation, 0), trial.sequence);
        assert!(!trial.sync_first && !settled.sync_first, "generation {generation}");
        assert!(decode(&file).unwrap().is_settled());
    }
}

#[test]
fn every_bit_of_a_slot_is_checked() {
    for args_len in ARGS_LENS {
        let whole = decode(&blank()).unwrap().next_write(&record(1, args_len), 0).unwrap();
        assert!(matches!(read_slot(&whole.bytes), Slot::Intact { .. }));
        for bit in 0..8 * SLOT_LEN {
            let mut slot = whole.bytes.clone();
            slot[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(read_slot(&slot), Slot::Torn), "bit {bit}");
        }
    }
}

#[test]
fn a_file_without_an_intact_slot_is_damaged_and_not_empty() {
    let mut file = written_up_to(3);
    for slot in 0..SLOTS {
        assert!(decode(&file).is_ok());
        file[slot_offset(slot) as usize + 200] ^= 1;
    }
    let Err(Defect::Damaged { offset, .. }) = decode(&file) else { panic!("three torn slots were read") };
    assert_eq!(offset, SLOT_LEN as u64);
}

#[test]
fn a_file_that_was_cut_off_is_damaged_where_it_ends() {
    let file = written_up_to(3);
    for len in [FILE_LEN - 1, 2 * SLOT_LEN + 17, SLOT_LEN, 100] {
        let Err(Defect::Damaged { offset, .. }) = decode(&file[..len]) else {
            // Up to the first slot nothing tells it from a file whose creation was cut short.
            assert!(len <= SLOT_LEN);
            continue;
        };
        assert_eq!(offset, len as u64);
    }
}

#[test]
fn a_creation_cut_at_any_byte_is_unfinished() {
    let whole = blank();
    // Behind the text there are only zeros.
    for cut in (0..2 * SECTOR).chain((2 * SECTOR..FILE_LEN).step_by(SECTOR - 1)) {
        assert!(decode(&whole[..cut]).unwrap().unfinished, "cut at {cut}");
        let mut zeros_beyond = whole.clone();
        zeros_beyond[cut..].fill(0);
        assert_eq!(decode(&zeros_beyond).unwrap().unfinished, zeros_beyond != whole, "zeros from {cut}");
    }
    let mut without_first_sector = whole.clone();
    without_first_sector[..SECTOR].fill(0);
    assert!(decode(&without_first_sector).unwrap().unfinished);
    assert!(!decode(&whole).unwrap().unfinished);
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    for foreign in [
        &b"4711\n"[..],
        b"handoff lock file, format one\n",
        b"handoff lock file, format +1\n",
        &[0xff; FILE_LEN],
    ] {
        assert!(matches!(decode(foreign), Err(Defect::Damaged { offset: 0, .. })), "{foreign:?}");
    }
}

#[test]
fn a_file_of_a_later_format_is_refused_as_such() {
    let mut file = written_up_to(2);
    file[FORMAT_LINE.len()] = b'7';
    assert_eq!(decode(&file), Err(Defect::Newer { found: 7 }));
}

#[test]
fn a_field_that_a_later_release_adds_is_ignored() {
    let mut json: serde_json::Value = serde_json::to_value(record(1, 0)).unwrap();
    json["colour"] = "green".into();
    json["owner"]["shoe_size"] = 43.into();
    let file = with_slot(&written_up_to(0), 0, &fill_slot(json.to_string().as_bytes(), 1, 0));
    assert_eq!(decode(&file).unwrap().record, Some(record(1, 0)));
}

#[test]
fn an_intact_slot_that_says_something_else_is_not_passed_over_for_an_older_one() {
    let file = with_slot(&written_up_to(1), 1, &fill_slot(br#"{"generation":"many"}"#, 2, 1));
    let Err(Defect::Damaged { offset, .. }) = decode(&file) else { panic!("the older record was read") };
    assert_eq!(offset, slot_offset(1));
}

#[test]
fn arguments_that_do_not_fit_are_left_out_and_said_to_be() {
    let mut file = blank();
    let long = record(1, SLOT_LEN);
    let whole = write(&mut file, &long, 0);
    assert!(whole.args_dropped);
    let found = decode(&file).unwrap();
    assert!(found.args_dropped);
    let found = found.record.unwrap();
    assert!(found.owner.args.is_empty());
    assert_eq!(found.owner.binary, long.owner.binary);
    write(&mut file, &record(2, 0), 0);
    assert!(!decode(&file).unwrap().args_dropped);
}

#[test]
fn the_directory_is_kept_and_left_out_before_the_arguments_are() {
    let mut file = blank();
    let mut placed = record(1, 100);
    placed.owner.directory = Some("/srv/kv".into());
    placed.previous.as_mut().unwrap().directory = Some("/srv/old".into());
    write(&mut file, &placed, 0);
    assert_eq!(decode(&file).unwrap().record, Some(placed.clone()));
    assert_eq!(boot_program(&placed).directory, Some("/srv/kv".into()));
    placed.owner.directory = Some(format!("/{}", "x".repeat(SLOT_LEN - 300)).into());
    let whole = write(&mut file, &placed, 0);
    assert!(!whole.args_dropped);
    let found = decode(&file).unwrap().record.unwrap();
    assert_eq!((found.owner.directory, found.previous.unwrap().directory), (None, None));
    assert_eq!(found.owner.args, placed.owner.args);
}

#[test]
fn a_path_that_does_not_fit_is_refused() {
    let mut long = record(1, 0);
    long.owner.binary = format!("/{}", "x".repeat(SLOT_LEN)).into();
    let refused = decode(&blank()).unwrap().next_write(&long, 0).unwrap_err();
    assert!(refused.takes > SLOT_LEN && refused.room < SLOT_LEN, "{refused}");
}

#[test]
fn a_path_that_is_not_text_survives() {
    use std::os::unix::ffi::OsStringExt;
    let mut odd = record(1, 0);
    odd.owner.binary = std::ffi::OsString::from_vec(b"/opt/\xff\xfe/kvd".to_vec()).into();
    let mut file = blank();
    write(&mut file, &odd, 0);
    assert_eq!(decode(&file).unwrap().record, Some(odd));
}

#[test]
fn a_trial_boots_its_predecessor_and_a_final_owner_itself() {
    let trial = OwnerRecord { standing: Standing::Trial, ..record(2, 9) };
    assert_eq!(boot_program(&trial), trial.previous.clone().unwrap());
    let settled = OwnerRecord { standing: Standing::Final, ..trial.clone() };
    assert_eq!(boot_program(&settled), settled.owner.program());
    let first = OwnerRecord { previous: None, ..trial };
    assert_eq!(boot_program(&first), first.owner.program());
}

#[test]
fn a_file_of_the_first_release_is_read() {
    let slot = concat!(
        "owner sequence=00000000000000000007 durable=00000000000000000006 length=0236 crc32c=18f5ed91\n",
        r#"{"generation":4,"standing":"trial","owner":{"pid":17,"start_ticks":99,"boot_id":"b","binary":"/opt/kvd-v2","#,
        r#""args":["--port","1"],"build_id":"0b"},"previous":{"binary":"/opt/kvd-v1","args":[],"build_id":"0a"},"#,
        r#""written_ms":1700000000000}"#,
        "\n"
    );
    let mut file = blank();
    file[SLOT_LEN..SLOT_LEN + slot.len()].copy_from_slice(slot.as_bytes());
    let found = decode(&file).unwrap();
    let record = found.record.unwrap();
    assert_eq!((found.sequence, found.durable, record.generation), (7, 6, 4));
    assert_eq!(record.standing, Standing::Trial);
    assert_eq!(record.owner.args, ["--port", "1"]);
    assert_eq!(record.owner.directory, None, "it came later");
    assert_eq!(boot_program(&record).binary, PathBuf::from("/opt/kvd-v1"));
}

/// Follows every sequence of writes, by the same process or by one that knows nothing, and lets the power fail at every
/// point, with every subset of what was not synced.
struct Explorer {
    obey_sync_first: bool,
    power_failures: u64,
}

/// A file with its history.
#[derive(Clone)]
struct Case {
    disk: Disk,
    written: Vec<OwnerRecord>,
    /// The records up to the last one whose write returned as durable.
    acknowledged: usize,
    /// The sequence that the process knows to be on disk.
    known: u64,
}

/// How a write ends: the process syncs it, or goes on without, or is killed in the middle of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Synced,
    Unsynced,
    Killed,
}

impl Explorer {
    fn explore(&mut self, case: &Case, depth: u32) -> Result<(), String> {
        if depth == 0 {
            return Ok(());
        }
        for ending in [Ending::Synced, Ending::Unsynced, Ending::Killed] {
            for known in [case.known, 0] {
                let mut next = Case { known, ..case.clone() };
                let sequence = next.write(ending, self.obey_sync_first)?;
                self.fail_power(&next)?;
                if ending == Ending::Synced {
                    next.disk.sync();
                    (next.acknowledged, next.known) = (next.written.len(), sequence);
                }
                self.explore(&next, depth - 1)?;
            }
        }
        Ok(())
    }

    fn fail_power(&mut self, case: &Case) -> Result<(), String> {
        for image in case.disk.after_power_failures() {
            self.power_failures += 1;
            let survivor = survivor(&image, &case.written)?;
            if survivor < case.acknowledged {
                return Err(format!("record {} was durable and {survivor} is left", case.acknowledged));
            }
            self.fail_power_again(&image, &case.written[..survivor])?;
        }
        Ok(())
    }

    /// The next boot writes, and the power fails again.
    fn fail_power_again(&self, image: &[u8], written: &[OwnerRecord]) -> Result<(), String> {
        let mut case = Case::new(image, written, 0, 0);
        case.write(Ending::Unsynced, self.obey_sync_first)?;
        for image in case.disk.after_power_failures() {
            if survivor(&image, &case.written)? < written.len() {
                return Err(format!("the next boot lost record {}", written.len()));
            }
        }
        Ok(())
    }
}

impl Case {
    fn new(image: &[u8], written: &[OwnerRecord], acknowledged: usize, known: u64) -> Self {
        Self { disk: Disk::new(image), written: written.to_vec(), acknowledged, known }
    }

    fn write(&mut self, ending: Ending, obey_sync_first: bool) -> Result<u64, String> {
        let next = record(self.written.len() as u64 + 1, 500);
        let reading = decode(&self.disk.cached()).map_err(|defect| format!("{defect:?}"))?;
        let write = reading.next_write(&next, self.known).unwrap();
        if write.sync_first && obey_sync_first {
            self.disk.sync();
            self.known = reading.sequence;
        }
        self.disk.write(&write, if ending == Ending::Killed { 1 } else { SLOT_LEN / SECTOR });
        self.written.push(next);
        Ok(write.sequence)
    }
}

/// Returns how many records of the history there are up to the one that is read.
fn survivor(image: &[u8], written: &[OwnerRecord]) -> Result<usize, String> {
    let reading = decode(image).map_err(|defect| format!("{defect:?}"))?;
    let Some(found) = reading.record else { return Ok(0) };
    written
        .iter()
        .position(|record| *record == found)
        .map(|i| i + 1)
        .ok_or("a record that was never written".into())
}

/// A file whose sectors are written back in any order: each may be as any write since the last sync left it.
#[derive(Clone)]
struct Disk {
    versions: Vec<Vec<[u8; SECTOR]>>,
}

impl Disk {
    fn new(image: &[u8]) -> Self {
        Self { versions: image.chunks_exact(SECTOR).map(|sector| vec![sector.try_into().unwrap()]).collect() }
    }

    fn write(&mut self, write: &SlotWrite, sectors: usize) {
        let first = write.offset as usize / SECTOR;
        let sectors = write.bytes.chunks_exact(SECTOR).take(sectors);
        for (versions, sector) in self.versions[first..].iter_mut().zip(sectors) {
            if versions.last().unwrap() != sector {
                versions.push(sector.try_into().unwrap());
            }
        }
    }

    fn sync(&mut self) {
        self.versions.iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
    }

    fn cached(&self) -> Vec<u8> {
        self.versions.iter().map(|versions| versions.last().unwrap().as_slice()).collect::<Vec<_>>().concat()
    }

    fn after_power_failures(&self) -> Vec<Vec<u8>> {
        let mut images = vec![self.cached()];
        for (i, versions) in self.versions.iter().enumerate().filter(|(_, versions)| versions.len() > 1) {
            images = images
                .iter()
                .flat_map(|image| versions.iter().map(|sector| with_sector(image, i, sector)))
                .collect();
        }
        images
    }
}

fn with_sector(image: &[u8], i: usize, sector: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[i * SECTOR..(i + 1) * SECTOR].copy_from_slice(sector);
    image
}

#[derive(Clone, Copy, Debug)]
enum Beyond {
    Old,
    Zeros,
    Garbage,
}

fn cut_short(file: &[u8], write: &SlotWrite, cut: usize, beyond: Beyond) -> Vec<u8> {
    let mut file = file.to_vec();
    let start = write.offset as usize;
    file[start..start + cut].copy_from_slice(&write.bytes[..cut]);
    let rest = &mut file[start + cut..start + SLOT_LEN];
    match beyond {
        Beyond::Old => {}
        Beyond::Zeros => rest.fill(0),
        Beyond::Garbage => rest.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 151 + 7) as u8 | 1),
    }
    file
}

fn only_sectors(file: &[u8], write: &SlotWrite, subset: u8) -> Vec<u8> {
    let mut file = file.to_vec();
    for i in (0..8).filter(|i| subset & (1 << i) != 0) {
        let (from, to) = (i * SECTOR, (i + 1) * SECTOR);
        let start = write.offset as usize;
        file[start + from..start + to].copy_from_slice(&write.bytes[from..to]);
    }
    file
}

fn with_slot(file: &[u8], slot: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let start = slot_offset(slot) as usize;
    file[start..start + SLOT_LEN].copy_from_slice(bytes);
    file
}

fn written_up_to(generation: u64) -> Vec<u8> {
    let mut file = blank();
    for generation in 1..=generation {
        write(&mut file, &record(generation, 500), generation - 1);
    }
    file
}

fn history(generation: u64) -> Vec<OwnerRecord> {
    (1..=generation).map(|generation| record(generation, 500)).collect()
}

fn write(file: &mut [u8], record: &OwnerRecord, known_durable: u64) -> SlotWrite {
    let write = decode(file).unwrap().next_write(record, known_durable).unwrap();
    apply(file, &write);
    write
}

fn apply(file: &mut [u8], write: &SlotWrite) {
    let start = write.offset as usize;
    file[start..start + SLOT_LEN].copy_from_slice(&write.bytes);
}

/// A record whose bytes differ from those of every other generation in every sector.
fn record(generation: u64, args_len: usize) -> OwnerRecord {
    let program =
        Program { binary: "/opt/kvd-v1".into(), args: vec![], build_id: "0a".into(), directory: None };
    let filler = char::from(b'a' + (generation % 26) as u8).to_string().repeat(args_len);
    OwnerRecord {
        generation,
        standing: Standing::Final,
        owner: Owner {
            pid: 17,
            start_ticks: 99,
            boot_id: "b0071d".into(),
            binary: "/opt/kvd-v2".into(),
            args: vec![filler],
            build_id: "0b".into(),
            directory: None,
        },
        previous: Some(program),
        written_ms: generation,
    }
}
