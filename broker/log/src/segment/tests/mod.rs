//! Tests of the log: the format, faults, power cuts at every operation, and a model under random crashes.

mod corruption;
mod crashes;
mod layout;
mod log;
mod model;
mod sim;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use sim::Sim;

fn dir() -> &'static Path {
    Path::new("/data/log")
}

/// Returns options with a simulated disk, and the number of calls of the fatal hook.
fn options(sim: &Sim) -> (Options, Arc<AtomicUsize>) {
    let fatal = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fatal);
    let options = Options {
        disk: Arc::new(sim.clone()),
        ..Options::new(Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }))
    };
    (options, fatal)
}

fn open(sim: &Sim) -> Log {
    Log::open(dir(), options(sim).0).unwrap().0
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn entries(group: u16, first_index: u64, texts: &[&str]) -> Record {
    Record::Entries { group, first_index, entries: texts.iter().map(|text| bytes(text)).collect() }
}

fn truncate(group: u16, from_index: u64) -> Record {
    Record::Truncate { group, from_index }
}

fn purge(group: u16, up_to_index: u64) -> Record {
    Record::Purge { group, up_to_index, meta: bytes(&format!("purged {up_to_index}")) }
}

fn vote(group: u16, text: &str) -> Record {
    Record::Vote { group, data: bytes(text) }
}

fn committed(group: u16, text: &str) -> Record {
    Record::Committed { group, data: bytes(text) }
}

/// Submits records and waits for the result.
fn write(log: &Log, records: Vec<Record>) -> Result<(), Error> {
    let (sender, receiver) = std::sync::mpsc::channel();
    log.submit(records, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap()
}

/// Returns the entries of a group as texts, with their indexes.
fn texts(log: &Log, group: u16) -> Vec<(u64, String)> {
    let read = log.group(group).read(0..u64::MAX);
    read.into_iter().map(|(index, entry)| (index, String::from_utf8(entry.to_vec()).unwrap())).collect()
}

/// Marks and entries of some groups.
type Content = Vec<(Summary, Vec<(u64, Bytes)>)>;

/// Returns everything that is readable of some groups.
fn content(log: &Log, groups: std::ops::Range<u16>) -> Content {
    groups.map(|group| (log.group(group).summary(), log.group(group).read(0..u64::MAX))).collect()
}

type Answers = Arc<Mutex<Vec<Option<bool>>>>;

/// Records the result of each submission; `None` while there is none.
#[derive(Clone, Default)]
struct Ledgered(Answers);

impl Ledgered {
    /// Submits records; the receiver is notified after the callback.
    fn submit(&self, log: &Log, records: Vec<Record>) -> std::sync::mpsc::Receiver<()> {
        let slot = {
            let mut answers = self.0.lock();
            answers.push(None);
            answers.len() - 1
        };
        let answers = Arc::clone(&self.0);
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |result: Result<(), Error>| {
            answers.lock()[slot] = Some(result.is_ok());
            sender.send(()).ok();
        };
        log.submit(records, Box::new(done));
        receiver
    }

    /// Returns the number of acknowledged submissions, which must be the first ones.
    fn acknowledged(&self) -> usize {
        let answers = self.0.lock();
        let count = answers.iter().take_while(|answer| **answer == Some(true)).count();
        assert!(answers[count..].iter().all(|answer| *answer != Some(true)), "acknowledged out of order");
        count
    }
}
