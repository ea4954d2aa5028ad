//! A random history compared with a model: appends, truncations, purges, votes, restarts and power cuts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::sim::Unsynced;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append { group: u16, count: usize, size: usize },
    Truncate { group: u16, back: u64 },
    Purge { group: u16, back: u64 },
    PurgeAhead { group: u16, ahead: u64 },
    Vote { group: u16 },
    Wait,
    Restart,
    Crash { kind: u8, bytes: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..3_u16;
    prop_oneof![
        8 => (group.clone(), 1..5_usize, 0..120_usize).prop_map(|(group, count, size)| Step::Append { group, count, size }),
        2 => (group.clone(), 0..4_u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        3 => (group.clone(), 0..4_u64).prop_map(|(group, back)| Step::Purge { group, back }),
        1 => (group.clone(), 0..9_u64).prop_map(|(group, ahead)| Step::PurgeAhead { group, ahead }),
        2 => group.prop_map(|group| Step::Vote { group }),
        3 => Just(Step::Wait),
        1 => Just(Step::Restart),
        2 => (0..5_u8, 0..200_usize).prop_map(|(kind, bytes)| Step::Crash { kind, bytes }),
    ]
}

/// A group in the simplest form: a map.
#[derive(Clone, Debug, Default, PartialEq)]
struct ModelGroup {
    entries: BTreeMap<u64, Bytes>,
    next: u64,
    purged: Option<u64>,
    vote: Option<Bytes>,
}

type Model = BTreeMap<u16, ModelGroup>;

fn apply(model: &mut Model, record: &Record) {
    let group = model.entry(record.group()).or_default();
    match record {
        Record::Entries { first_index, entries, .. } => {
            group.entries.extend((*first_index..).zip(entries.iter().cloned()));
            group.next += entries.len() as u64;
        }
        Record::Truncate { from_index, .. } => {
            group.entries.retain(|index, _| index < from_index);
            group.next = group.next.min(*from_index);
        }
        Record::Purge { up_to_index, .. } => {
            group.entries.retain(|index, _| index > up_to_index);
            group.purged = group.purged.max(Some(*up_to_index));
            group.next = group.next.max(up_to_index + 1);
        }
        Record::Vote { data, .. } => group.vote = Some(data.clone()),
        Record::Committed { .. } => {}
    }
}

fn observe(log: &Log) -> Model {
    let mut model = Model::new();
    for group in 0..3 {
        let view = log.group(group);
        let Summary { last_index, purged, vote, .. } = view.summary();
        let observed = ModelGroup {
            entries: view.read(0..u64::MAX).into_iter().collect(),
            next: last_index.map_or(0, |index| index + 1),
            purged: purged.map(|(index, _)| index),
            vote,
        };
        if observed != ModelGroup::default() {
            model.insert(group, observed);
        }
    }
    model
}

struct Run {
    sim: Sim,
    log: Log,
    /// The model after each submission since the last opening, beginning with what was found then.
    states: Vec<Model>,
    answers: Ledgered,
    counter: u64,
}

impl Run {
    fn open(sim: &Sim) -> Log {
        Log::open(dir(), Options { segment_bytes: 400, batch_bytes: 300, ..options(sim).0 }).unwrap().0
    }

    fn records(&mut self, step: &Step) -> Vec<Record> {
        let model = self.states.last().unwrap();
        let of = |group: &u16| model.get(group).cloned().unwrap_or_default();
        self.counter += 1;
        match step {
            Step::Append { group, count, size } => {
                let text = format!("{} {}", self.counter, "x".repeat(*size));
                let entries = vec![bytes(&text); *count];
                vec![Record::Entries { group: *group, first_index: of(group).next, entries }]
            }
            Step::Truncate { group, back } => {
                let floor = of(group).purged.map_or(0, |index| index + 1);
                vec![truncate(*group, of(group).next.saturating_sub(*back).max(floor))]
            }
            Step::Purge { group, back } => {
                of(group).next.checked_sub(back + 1).map(|index| purge(*group, index)).into_iter().collect()
            }
            Step::PurgeAhead { group, ahead } => vec![purge(*group, of(group).next + ahead)],
            Step::Vote { group } => vec![vote(*group, &self.counter.to_string()), committed(*group, "c")],
            Step::Wait | Step::Restart | Step::Crash { .. } => vec![],
        }
    }

    fn reopen(&mut self, sim: Sim, at_least: usize) {
        self.sim = sim;
        self.log = Self::open(&self.sim);
        let found = observe(&self.log);
        let at = self.states.iter().rposition(|state| *state == found);
        let at = at.unwrap_or_else(|| panic!("not a prefix: {found:?}"));
        assert!(at >= at_least, "{at_least} acknowledged, {at} found");
        self.states = vec![found];
        self.answers = Ledgered::default();
    }

    fn step(&mut self, step: &Step) {
        let records = self.records(step);
        if !records.is_empty() {
            let mut model = self.states.last().unwrap().clone();
            for record in &records {
                apply(&mut model, record);
            }
            model.retain(|_, group| *group != ModelGroup::default());
            self.states.push(model);
            self.answers.submit(&self.log, records);
        }
        match step {
            Step::Wait => write(&self.log, vec![truncate(0, u64::MAX)]).unwrap(),
            Step::Restart => {
                self.log.close();
                assert_eq!(self.answers.acknowledged(), self.states.len() - 1);
                self.reopen(self.sim.clone(), self.states.len() - 1);
            }
            Step::Crash { kind, bytes } => {
                let unsynced = match kind {
                    0 => Unsynced::Lost,
                    1 => Unsynced::Kept,
                    3 => Unsynced::FirstNameBack,
                    2 => Unsynced::Prefix(*bytes),
                    _ => Unsynced::Holes(*bytes % 5 + 1),
                };
                // An acknowledgement just before the power cut counts.
                let acknowledged = self.answers.acknowledged();
                let sim = self.sim.crash(unsynced);
                self.reopen(sim, acknowledged);
            }
            _ => assert_eq!(observe(&self.log), *self.states.last().unwrap()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_random_history_survives_restarts_and_power_cuts(steps in proptest::collection::vec(step(), 1..60)) {
        let sim = Sim::default();
        let log = Run::open(&sim);
        let mut run = Run { sim, log, states: vec![Model::new()], answers: Ledgered::default(), counter: 0 };
        for step in &steps {
            run.step(step);
        }
    }
}
