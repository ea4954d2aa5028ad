//! A power cut at every single operation of a run with new segments, purges and a restart.

use super::sim::Unsynced;
use super::*;

const STRATEGIES: [Unsynced; 8] = [
    Unsynced::Lost,
    Unsynced::FirstNameBack,
    Unsynced::Kept,
    Unsynced::Prefix(1),
    Unsynced::Prefix(13),
    Unsynced::Prefix(40),
    Unsynced::Holes(2),
    Unsynced::Holes(3),
];

fn story() -> Vec<Vec<Record>> {
    let mut story = vec![vec![vote(1, "first vote"), vote(2, "other vote")]];
    for index in 0..16 {
        story.push(vec![entries(1, index, &["an entry of some length"])]);
        match index {
            5 => story.push(vec![entries(2, 0, &["x", "y"]), committed(2, "c")]),
            7 => story.push(vec![purge(1, 5)]),
            9 => story.push(vec![truncate(1, 8), entries(1, 8, &["again", "and again"])]),
            11 => story.push(vec![purge(1, 10), purge(2, 1)]),
            13 => story.push(vec![purge(1, 12), vote(1, "second vote")]),
            _ => {}
        }
    }
    story
}

/// Returns the content of a log after each number of submissions.
fn prefixes(story: &[Vec<Record>]) -> Vec<Content> {
    let log = open(&Sim::default());
    let mut contents = vec![content(&log, 0..4)];
    for records in story {
        log.submit(records.clone(), Box::new(|_| ()));
        contents.push(content(&log, 0..4));
    }
    contents
}

/// Runs all submissions with a restart in the middle, and returns how many were acknowledged.
fn run(sim: &Sim, story: &[Vec<Record>]) -> usize {
    let answers = Ledgered::default();
    for half in story.chunks(story.len() / 2 + 1) {
        let options = Options { segment_bytes: 150, ..options(sim).0 };
        let Ok((log, _)) = Log::open(dir(), options) else { break };
        for records in half {
            // One at a time, so that each run has the same operations.
            answers.submit(&log, records.clone()).recv().unwrap();
        }
        log.close();
    }
    answers.acknowledged()
}

#[test]
fn a_power_cut_at_any_operation_keeps_what_was_acknowledged() {
    let story = story();
    let prefixes = prefixes(&story);
    let sim = Sim::default();
    assert_eq!(run(&sim, &story), story.len());
    let operations = sim.operations();
    assert!(operations > 100, "{operations}");
    for cut in 0..operations {
        for strategy in STRATEGIES {
            let sim = Sim::default();
            sim.cut_after(cut);
            let acknowledged = run(&sim, &story);
            let after = sim.crash(strategy);
            let log = match Log::open(dir(), options(&after).0) {
                Ok((log, _)) => log,
                Err(error) => panic!("cut at {cut}, {strategy:?}: {error}"),
            };
            let found = content(&log, 0..4);
            let at = prefixes.iter().rposition(|prefix| *prefix == found);
            let at = at.unwrap_or_else(|| panic!("cut at {cut}, {strategy:?}: not a prefix: {found:?}"));
            assert!(at >= acknowledged, "cut at {cut}, {strategy:?}: {acknowledged} acknowledged, {at} left");
        }
    }
}
