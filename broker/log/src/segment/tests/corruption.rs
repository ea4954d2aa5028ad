//! Damage is an error, a torn tail is cut off, and a refused directory is not changed.

use crate::segment::format;

use super::sim::Unsynced;
use super::*;

const TEXTS: [&str; 3] = ["the first", "the second", "the third"];

/// Returns a log of three records, each fsynced alone, with the offsets at which they begin and the end.
fn three_records() -> (Sim, PathBuf, Vec<usize>) {
    let sim = Sim::default();
    let log = open(&sim);
    let file = dir().join(segment_name(1));
    let mut ends = vec![sim.files()[&file].len()];
    for (index, text) in (0..).zip(TEXTS) {
        write(&log, vec![entries(1, index, &[text]), vote(2, text)]).unwrap();
        ends.push(sim.files()[&file].len());
    }
    log.close();
    (sim, file, ends)
}

fn refuse(sim: &Sim) -> OpenError {
    let before = sim.files();
    let operations = sim.operations();
    let error = Log::open(dir(), options(sim).0).unwrap_err();
    assert_eq!(sim.files(), before, "a refused directory was changed");
    assert_eq!(sim.operations(), operations, "a refused directory was written to");
    error
}

#[test]
fn a_write_torn_at_any_byte_leaves_exactly_what_was_acknowledged() {
    let (sim, file, ends) = three_records();
    let whole = sim.files()[&file].clone();
    for length in ends[0]..=whole.len() {
        let torn = sim.crash(Unsynced::Lost);
        torn.put(&file, whole[..length].to_vec());
        let (log, recovered) = Log::open(dir(), options(&torn).0).unwrap();
        let count = ends.iter().filter(|end| **end <= length).count() - 1;
        let expected: Vec<_> = (0..).zip(TEXTS.iter().map(ToString::to_string)).take(count).collect();
        assert_eq!(texts(&log, 1), expected, "torn at {length}");
        assert_eq!(recovered.cut.map(|cut| cut.bytes), (length > ends[count]).then(|| (length - ends[count]) as u64));
        // The cut is durable, and the log continues after it.
        write(&log, vec![entries(1, count as u64, &["next"])]).unwrap();
        let again = open(&torn.crash(Unsynced::Lost));
        assert_eq!(texts(&again, 1).last(), Some(&(count as u64, "next".to_owned())));
    }
}

#[test]
fn a_flipped_bit_before_the_last_record_is_refused() {
    let (sim, file, ends) = three_records();
    let whole = sim.files()[&file].clone();
    for offset in 0..ends[2] {
        for bit in 0..8 {
            let damaged = sim.crash(Unsynced::Lost);
            let mut bytes = whole.clone();
            bytes[offset] ^= 1 << bit;
            damaged.put(&file, bytes);
            let error = refuse(&damaged);
            let OpenError::Corrupt { offset: found, .. } = &error else { panic!("{error}") };
            let frame = ends.iter().rfind(|end| **end <= offset).copied();
            let header = if offset < format::HEADER_BYTES { 0 } else { format::HEADER_BYTES };
            assert_eq!(*found, frame.unwrap_or(header) as u64, "flipped at {offset}");
            let text = error.to_string();
            assert!(text.contains("/data/log/log-00000000000000000001.seg is damaged at byte"), "{text}");
            assert!(text.contains("move the directory /data/log aside"), "{text}");
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_record_cuts_only_that_record() {
    let (sim, file, ends) = three_records();
    let whole = sim.files()[&file].clone();
    for offset in ends[2]..ends[3] {
        let damaged = sim.crash(Unsynced::Lost);
        let mut bytes = whole.clone();
        bytes[offset] ^= 0x10;
        damaged.put(&file, bytes);
        let (log, recovered) = Log::open(dir(), options(&damaged).0).unwrap();
        assert_eq!(texts(&log, 1), [(0, "the first".into()), (1, "the second".into())]);
        let bytes = (ends[3] - ends[2]) as u64;
        assert_eq!(recovered.cut, Some(Cut { file: file.clone(), offset: ends[2] as u64, bytes }));
    }
}

#[test]
fn a_tail_of_zeros_or_garbage_is_cut() {
    let (sim, file, ends) = three_records();
    for tail in [vec![0; 5000], vec![0xff; 77], b"COVEYLOG".to_vec()] {
        let torn = sim.crash(Unsynced::Lost);
        torn.put(&file, [sim.files()[&file].clone(), tail.clone()].concat());
        let (log, recovered) = Log::open(dir(), options(&torn).0).unwrap();
        assert_eq!(texts(&log, 1).len(), 3);
        assert_eq!(recovered.cut.map(|cut| (cut.offset, cut.bytes)), Some((ends[3] as u64, tail.len() as u64)));
    }
}

#[test]
fn a_client_cannot_forge_a_record_inside_a_torn_one() {
    // The payload is a copy of a valid frame of this file. If its frame is torn, it must still be cut off.
    let (sim, file, ends) = three_records();
    let forged = [&sim.files()[&file][ends[1]..ends[2]], b"and the end that is torn off"].concat();
    let log = open(&sim);
    write(&log, vec![Record::Entries { group: 1, first_index: 3, entries: vec![forged.into()] }]).unwrap();
    log.close();
    let mut bytes = sim.files()[&file].clone();
    bytes.pop();
    sim.put(&file, bytes);
    let log = open(&sim);
    assert_eq!(texts(&log, 1).len(), 3);
}

/// Returns a log of several segments, with a vote and an entry in each.
fn several_segments() -> (Sim, Options) {
    let sim = Sim::default();
    let options = Options { segment_bytes: 160, ..options(&sim).0 };
    let log = Log::open(dir(), options.clone()).unwrap().0;
    for index in 0..20 {
        write(&log, vec![entries(1, index, &["an entry of some length"])]).unwrap();
        write(&log, vec![vote(1, &index.to_string())]).unwrap();
    }
    log.close();
    assert!(log.metrics().segments >= 4);
    (sim, options)
}

#[test]
fn damage_in_an_earlier_segment_is_refused_even_at_its_end() {
    let (sim, _) = several_segments();
    let file = dir().join(segment_name(2));
    let whole = sim.files()[&file].clone();
    let salt = format::Header::decode(&whole).unwrap().salt;
    let mut ends = vec![format::HEADER_BYTES];
    while let Some((_, end)) = format::frame_at(&whole, salt, *ends.last().unwrap()) {
        ends.push(end);
    }
    for length in 0..whole.len() {
        let damaged = sim.crash(Unsynced::Lost);
        damaged.put(&file, whole[..length].to_vec());
        let OpenError::Corrupt { damage, .. } = refuse(&damaged) else { panic!("cut at {length}") };
        let expected = match length {
            _ if length < ends[0] => Damage::Header,
            _ if length < ends[1] => Damage::Checkpoint,
            // After a cut between two records the next checkpoint shows what is missing.
            _ if ends.contains(&length) => Damage::Disagrees,
            _ => Damage::Middle,
        };
        assert_eq!(damage, expected, "cut at {length}");
    }
}

#[test]
fn a_missing_segment_is_refused_wherever_it_was() {
    let (sim, _) = several_segments();
    let count = sim.files().len() as u64;
    for seq in 1..count {
        let damaged = sim.crash(Unsynced::Lost);
        damaged.delete(&dir().join(segment_name(seq)));
        let error = refuse(&damaged);
        let OpenError::Corrupt { damage, .. } = error else { panic!("{error}") };
        let expected =
            if seq == 1 { matches!(damage, Damage::Entries { group: 1, index: 0 }) } else { damage == Damage::Absent };
        assert!(expected, "{damage:?}");
    }
}

#[test]
fn a_swapped_segment_is_refused() {
    let (sim, _) = several_segments();
    let (second, third) = (dir().join(segment_name(2)), dir().join(segment_name(3)));
    sim.put(&third, sim.files()[&second].clone());
    assert!(matches!(refuse(&sim), OpenError::Corrupt { damage: Damage::Header, .. }));
}

#[test]
fn a_newer_format_is_refused_with_its_number() {
    let (sim, file, _) = three_records();
    let mut bytes = sim.files()[&file].clone();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    sim.put(&file, bytes);
    assert!(matches!(refuse(&sim), OpenError::Version { found: 9, supported: 1, .. }));
}

#[test]
fn a_member_without_its_log_is_refused() {
    let sim = Sim::default();
    let options = Options { expect: Expect::Member, ..options(&sim).0 };
    assert!(matches!(Log::open(dir(), options), Err(OpenError::Missing { .. })));
    assert_eq!(sim.operations(), 0);
}

#[test]
fn the_last_segment_is_synced_again_before_open_returns() {
    // After EIO the cache has a record that is not on disk.
    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![entries(1, 0, &["synced"])]).unwrap();
    sim.fail_sync(5);
    write(&log, vec![entries(1, 1, &["only cached"])]).unwrap_err();
    sim.heal();
    // The process restarts on the same machine and reads the record; then the power is cut.
    let log = open(&sim);
    assert_eq!(texts(&log, 1).len(), 2);
    let log = open(&sim.crash(Unsynced::Lost));
    assert_eq!(texts(&log, 1).len(), 2);
}

#[test]
fn a_failed_rewrite_at_boot_loses_nothing() {
    let (sim, _, _) = three_records();
    sim.fail_append(10, 28);
    assert!(matches!(Log::open(dir(), options(&sim).0), Err(OpenError::Io { .. })));
    sim.heal();
    assert_eq!(texts(&open(&sim), 1).len(), 3);
    assert_eq!(sim.files().len(), 1);
}

#[test]
fn a_newcomer_with_a_log_is_refused() {
    let (sim, _, _) = three_records();
    let before = sim.files();
    let options = Options { expect: Expect::Newcomer, ..options(&sim).0 };
    assert!(matches!(Log::open(dir(), options.clone()), Err(OpenError::Orphan { .. })));
    assert_eq!(sim.files(), before);
    // A log that was created and never used is valid: the node stopped before it joined.
    let sim = Sim::default();
    let options = Options { disk: Arc::new(sim), ..options };
    Log::open(dir(), options.clone()).unwrap().0.close();
    assert!(Log::open(dir(), options).is_ok());
}
