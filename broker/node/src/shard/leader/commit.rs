//! Handles committed entries: answers to nodes, effects of the state machine, and steps of the routes.

use covey_core::shard::{Effect, Operation, Outcome, Publication, Subscribed};

use super::batch::{Completed, Waiter};
use super::routes::{Step, Waiting};
use super::{Found, Leader, Term, schedule_flush, send, send_all};
use crate::shard::link::LinkId;
use crate::shard::wire::{FromShard, ToShard};

/// Most retained messages in one operation.
const RETAINED_MESSAGES: usize = 64;
/// Most bytes of retained messages in one operation, unless a single message is larger.
const RETAINED_BYTES: usize = 1 << 20;

impl Leader {
    /// Answers the operations of an entry. Returns `false` if the entry was not committed, or if
    /// that is unknown.
    pub(super) fn on_completed(&self, term: &mut Term, completed: Completed) -> bool {
        let Some(outcomes) = completed else { return false };
        for (waiter, outcome) in outcomes {
            match waiter {
                Waiter::None => {}
                Waiter::Call { link, id } => send(term, link, FromShard::Answer { id, outcome }),
                Waiter::Enqueue { link, number } => send(term, link, FromShard::Enqueued { number, outcome }),
                Waiter::Subscribe { link, id, client, owner, filters } => {
                    let retained = match &outcome {
                        Outcome::Subscribed(granted) => filters
                            .iter()
                            .zip(granted)
                            .filter(|(_, granted)| matches!(granted, Subscribed::Granted { awaits_retained: true, .. }))
                            .map(|(filter, _)| (client.clone(), owner, filter.clone()))
                            .collect(),
                        _ => Vec::new(),
                    };
                    term.routes.wait(Waiting { filters, answer: Some((link, id, outcome)), retained });
                }
                Waiter::Will(will) => {
                    term.wills_begun.remove(&will);
                }
            }
        }
        self.advance(term);
        true
    }

    /// Publishes changed routes and releases what waited for confirmed ones.
    pub(super) fn advance(&self, term: &mut Term) {
        let ready = {
            let state = self.replica.state.lock();
            term.routes.publish(&state);
            term.routes.ready(&state)
        };
        for waiting in ready {
            if let Some((link, id, outcome)) = waiting.answer {
                send(term, link, FromShard::Answer { id, outcome });
            }
            for (client, owner, filter) in waiting.retained {
                let found = self.context.retained(filter.clone());
                term.retained_reads.push(Box::pin(async move { (client, owner, filter, found.await) }));
            }
        }
    }

    /// Handles a step of the routes. Returns `false` if meta knows a later leader.
    pub(super) fn on_step(&self, term: &mut Term, step: Step) -> bool {
        if matches!(step, Step::Refused) {
            return false;
        }
        let fenced = matches!(step, Step::Fenced);
        {
            let state = self.replica.state.lock();
            term.routes.on_step(step, &state, &self.meta);
        }
        if fenced {
            let early: Vec<(LinkId, Vec<ToShard>)> =
                term.links.iter_mut().map(|(link, state)| (*link, std::mem::take(&mut state.early))).collect();
            for (link, frames) in early {
                for frame in frames {
                    self.on_frame(term, link, frame);
                }
            }
            self.watch_nodes(term);
            self.watch_timers(term);
        }
        self.advance(term);
        true
    }

    /// Handles the effects of applied entries.
    pub(super) fn on_effects(&self, term: &mut Term, effects: Vec<Effect>) {
        let (mut output, mut has_will) = (Vec::new(), false);
        {
            let state = self.replica.state.lock();
            for effect in effects {
                match effect {
                    Effect::Ready(id) => output.extend(term.deliveries.pump(id, &state, &term.rows)),
                    Effect::Route(filter) => term.routes.touch(filter),
                    Effect::Lost { client, owner, holder } => {
                        term.deliveries.close(&client, owner);
                        let links =
                            term.links.iter().filter(|(_, state)| state.node == Some((holder.node, holder.epoch)));
                        output
                            .extend(links.map(|(link, _)| (*link, FromShard::Lost { client: client.clone(), owner })));
                    }
                    Effect::Will(_) => has_will = true,
                    Effect::Missed(count) => self.context.on_missed(count),
                }
            }
        }
        schedule_flush(term);
        if has_will {
            self.publish_wills(term);
        }
        self.advance(term);
        send_all(term, output);
    }
}

/// Commits retained messages for a subscription, in chunks.
pub(super) fn on_retained(term: &mut Term, (client, owner, filter, messages): Found) {
    let (mut chunks, mut bytes): (Vec<Vec<Publication>>, usize) = (vec![], 0);
    for message in messages {
        bytes += message.body.len();
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < RETAINED_MESSAGES && bytes <= RETAINED_BYTES => chunk.push(message),
            _ => {
                bytes = message.body.len();
                chunks.push(vec![message]);
            }
        }
    }
    let last = chunks.pop().unwrap_or_default();
    let operation = |messages, last| {
        let (client, filter) = (client.clone(), filter.clone());
        Operation::DeliverRetained { client, owner, filter, messages, last }
    };
    for chunk in chunks {
        term.batch.push(operation(chunk, false), Waiter::None);
    }
    term.batch.push(operation(last, true), Waiter::None);
}
