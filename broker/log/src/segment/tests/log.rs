//! Behaviour of a healthy log, and of one that fails.

use super::*;

#[test]
fn entries_are_readable_before_their_fsync_and_after_reopening() {
    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![vote(1, "v1")]).unwrap();
    sim.fail_sync(5);
    let answers = Ledgered::default();
    answers.submit(&log, vec![entries(1, 0, &["a", "b"])]);
    assert_eq!(texts(&log, 1), [(0, "a".into()), (1, "b".into())]);

    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![entries(1, 0, &["a", "b", "c", "d"]), entries(2, 0, &["x"]), vote(2, "v")]).unwrap();
    write(&log, vec![truncate(1, 3), entries(1, 3, &["D", "e"]), purge(1, 0)]).unwrap();
    let expected = [(1, "b".into()), (2, "c".into()), (3, "D".into()), (4, "e".into())];
    assert_eq!(texts(&log, 1), expected);
    log.close();
    let log = open(&sim);
    assert_eq!(texts(&log, 1), expected);
    assert_eq!(log.group(1).read(2..4), [(2, bytes("c")), (3, bytes("D"))]);
    assert_eq!(log.group(1).last_index(), Some(4));
    assert_eq!(log.group(1).purged(), Some((0, bytes("purged 0"))));
    assert_eq!(log.group(2).vote(), Some(bytes("v")));
    assert_eq!(log.group(3).last_index(), None);
}

#[test]
fn a_purge_above_the_last_index_moves_the_log_forward() {
    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![entries(1, 0, &["a"]), purge(1, 99), entries(1, 100, &["z"])]).unwrap();
    log.close();
    let log = open(&sim);
    assert_eq!(texts(&log, 1), [(100, "z".into())]);
    assert_eq!(log.group(1).purged().unwrap().0, 99);
}

#[test]
fn a_submission_that_does_not_fit_is_refused_whole() {
    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![entries(1, 0, &["a"]), purge(2, 9)]).unwrap();
    for (records, expected) in [
        (vec![vote(1, "no"), entries(1, 2, &["c"])], Misuse::Gap { group: 1, first: 2, expected: 1 }),
        (vec![entries(1, 1, &["b"]), entries(1, 1, &["b"])], Misuse::Gap { group: 1, first: 1, expected: 2 }),
        (vec![vote(1, "no"), truncate(2, 9)], Misuse::TruncatePurged { group: 2, from: 9, purged: 9 }),
        (vec![vote(1, "no"), purge(1, u64::MAX)], Misuse::Range { group: 1 }),
    ] {
        match write(&log, records) {
            Err(Error::Misuse(misuse)) => assert_eq!(misuse, expected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(log.group(1).vote(), None);
    write(&log, vec![entries(1, 1, &["b"])]).unwrap();
    assert_eq!(texts(&log, 1), [(0, "a".into()), (1, "b".into())]);
}

#[test]
fn a_committed_mark_alone_costs_no_fsync_and_is_written_by_the_next_one() {
    let sim = Sim::default();
    let log = open(&sim);
    write(&log, vec![entries(1, 0, &["a"])]).unwrap();
    let before = sim.syncs();
    write(&log, vec![committed(1, "c0")]).unwrap();
    write(&log, vec![committed(1, "c1")]).unwrap();
    assert_eq!((sim.syncs(), log.group(1).committed()), (before, Some(bytes("c1"))));
    write(&log, vec![vote(2, "v"), committed(2, "d")]).unwrap();
    assert_eq!(sim.syncs(), before + 1);
    let after = open(&sim.crash(sim::Unsynced::Lost));
    assert_eq!(after.group(1).committed(), Some(bytes("c1")));
    assert_eq!(after.group(2).committed(), Some(bytes("d")));

    let log = open(&sim.crash(sim::Unsynced::Lost));
    drop(log);
    let sim = sim.crash(sim::Unsynced::Lost);
    let log = open(&sim);
    write(&log, vec![committed(1, "c2")]).unwrap();
    log.close();
    assert_eq!(open(&sim).group(1).committed(), Some(bytes("c2")));
}

#[test]
fn one_fsync_covers_all_that_is_queued() {
    let sim = Sim::default();
    let log = open(&sim);
    let before = sim.syncs();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    // The writer is blocked in the first callback while the rest is queued.
    log.submit(vec![vote(1, "hold")], Box::new(move |_| receiver.recv().unwrap()));
    let answers = Ledgered::default();
    for index in 0..100 {
        answers.submit(&log, vec![entries(1, index, &["entry"])]);
    }
    sender.send(()).unwrap();
    log.close();
    assert_eq!(answers.acknowledged(), 100);
    assert!(sim.syncs() - before <= 3, "{} fsyncs", sim.syncs() - before);
}

#[test]
fn after_a_failed_fsync_nothing_is_acknowledged_ever_again() {
    let sim = Sim::default();
    let (options, fatal) = options(&sim);
    let log = Log::open(dir(), options).unwrap().0;
    write(&log, vec![entries(1, 0, &["a"])]).unwrap();
    sim.fail_sync(5);
    let answers = Ledgered::default();
    answers.submit(&log, vec![entries(1, 1, &["b"])]);
    answers.submit(&log, vec![vote(1, "v")]);
    let error = write(&log, vec![entries(1, 2, &["c"])]).unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error}");
    assert!(write(&log, vec![committed(1, "c")]).is_err());
    log.close();
    assert_eq!(*answers.0.lock(), [Some(false), Some(false)]);
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    assert!(log.metrics().failed);
}

#[test]
fn a_full_disk_fails_the_log_and_loses_nothing_acknowledged() {
    for after in 0..40 {
        let sim = Sim::default();
        let (options, fatal) = options(&sim);
        let log = Log::open(dir(), options).unwrap().0;
        write(&log, vec![entries(1, 0, &["a"])]).unwrap();
        sim.fail_append(after, 28);
        let error = write(&log, vec![entries(1, 1, &["b"])]).unwrap_err();
        let Error::Failed { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fatal.load(Ordering::SeqCst), 1);
        let log = open(&sim.crash(sim::Unsynced::Kept));
        let texts = texts(&log, 1);
        assert_eq!(texts.first(), Some(&(0, "a".into())));
        assert!(texts.len() <= 2);
    }
}

#[test]
fn purged_segments_are_unlinked_and_an_idle_group_pins() {
    let sim = Sim::default();
    let options = Options { segment_bytes: 300, ..options(&sim).0 };
    let log = Log::open(dir(), options.clone()).unwrap().0;
    write(&log, vec![entries(7, 0, &["idle"]), vote(7, "old vote"), committed(7, "old mark")]).unwrap();
    for index in 0..100 {
        write(&log, vec![entries(1, index, &["an entry of some length"])]).unwrap();
    }
    assert!(log.metrics().segments > 10);
    write(&log, vec![purge(1, 98)]).unwrap();
    write(&log, vec![vote(1, "v")]).unwrap();
    let pins = log.pinned(1000);
    assert_eq!(pins.iter().map(|pin| (pin.group, pin.up_to_index)).collect::<Vec<_>>(), [(7, 0)]);
    assert!(pins[0].behind_bytes > 1000);
    assert!(log.metrics().segments > 10);

    write(&log, vec![purge(7, 0)]).unwrap();
    log.close();
    let stats = log.metrics();
    assert!(stats.segments <= 2, "{stats:?}");
    assert_eq!(sim.files().len(), stats.segments);
    assert_eq!(sim.files().values().map(|file| file.len() as u64).sum::<u64>(), stats.bytes);
    assert_eq!(log.pinned(0).len(), usize::from(stats.segments == 2));

    let (log, recovered) = Log::open(dir(), options).unwrap();
    assert_eq!(log.metrics(), stats);
    assert_eq!(recovered.groups[&7].vote, Some(bytes("old vote")));
    assert_eq!(recovered.groups[&7].committed, Some(bytes("old mark")));
    assert_eq!(recovered.groups[&7].purged, Some((0, bytes("purged 0"))));
    assert_eq!(texts(&log, 1), [(99, "an entry of some length".into())]);
}

#[test]
fn a_panic_in_a_callback_fails_the_log() {
    let sim = Sim::default();
    let (options, fatal) = options(&sim);
    let log = Log::open(dir(), options).unwrap().0;
    log.submit(vec![vote(1, "v")], Box::new(|_| panic!("planted")));
    let error = write(&log, vec![vote(1, "w")]);
    log.close();
    assert!(error.is_err());
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
}

#[test]
fn groups_that_submit_at_once_keep_their_order() {
    let sim = Sim::default();
    let options = Options { segment_bytes: 1000, batch_bytes: 200, ..options(&sim).0 };
    let log = Log::open(dir(), options).unwrap().0;
    let heard = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for group in 0..4 {
            let (log, heard) = (&log, &heard);
            scope.spawn(move || {
                for index in 0..200 {
                    let heard = Arc::clone(heard);
                    let done = move |result: Result<(), Error>| heard.lock().push((group, index, result.is_ok()));
                    log.submit(vec![entries(group, index, &["entry"])], Box::new(done));
                }
            });
        }
    });
    log.close();
    let log = open(&sim.crash(sim::Unsynced::Lost));
    for group in 0..4 {
        let of_group: Vec<_> = heard.lock().iter().copied().filter(|(of, ..)| *of == group).collect();
        assert_eq!(of_group, (0..200).map(|index| (group, index, true)).collect::<Vec<_>>());
        assert_eq!(texts(&log, group).len(), 200);
    }
}

#[test]
fn works_on_a_real_file_system() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("log");
    let options = Options { segment_bytes: 4096, ..Options::new(Arc::new(|_| ())) };
    let log = Log::open(&dir, options.clone()).unwrap().0;
    for index in 0..200 {
        write(&log, vec![entries(3, index, &["an entry of some length, on a real disk this time"])]).unwrap();
        if index % 50 == 49 {
            write(&log, vec![purge(3, index - 10)]).unwrap();
        }
    }
    log.close();
    let before = content(&log, 0..5);
    std::fs::write(dir.join("log-00000000000000000099.seg.tmp"), b"left over").unwrap();
    let (log, recovered) = Log::open(&dir, Options { expect: Expect::Member, ..options }).unwrap();
    assert_eq!(content(&log, 0..5), before);
    assert_eq!(recovered.cut, None);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), log.metrics().segments);
}

#[tokio::test]
async fn write_waits_for_the_fsync() {
    let sim = Sim::default();
    let log = open(&sim);
    log.write(vec![entries(1, 0, &["a"])]).await.unwrap();
    assert_eq!(texts(&open(&sim.crash(sim::Unsynced::Lost)), 1).len(), 1);
    log.close();
    assert!(matches!(log.write(vec![vote(1, "v")]).await, Err(Error::Closed)));
}
