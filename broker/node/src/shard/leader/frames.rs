//! Frames of nodes.

use bytes::Bytes;
use covey_core::shard::{Enqueue, Operation};

use super::batch::Waiter;
use super::routes::Waiting;
use super::{Leader, Term, flush_acknowledgements, schedule_flush, send, send_all};
use crate::shard::link::LinkId;
use crate::shard::wire::{Acknowledgement, FromShard, HeldSession, ToShard};

impl Leader {
    pub(super) fn on_frame(&self, term: &mut Term, link: LinkId, frame: ToShard) {
        match frame {
            ToShard::Attach { node, epoch, sessions, .. } => {
                if let Some(state) = term.links.get_mut(&link) {
                    state.node = Some((node, epoch));
                }
                send(term, link, FromShard::Attached);
                for held in sessions {
                    self.open(term, link, held);
                }
            }
            ToShard::Open(held) => self.open(term, link, held),
            ToShard::Call { id, operation } => on_call(term, link, id, operation),
            ToShard::Enqueue(enqueue) => on_enqueue(term, link, enqueue),
            ToShard::Qos0 { topic, publisher, retain, below, expiry, body } => {
                let message = Qos0 { topic, publisher, retain, below, expiry, body };
                self.on_qos0(term, &message);
            }
            ToShard::Acknowledge { client, owner, sequences } => {
                self.on_acknowledge(term, Acknowledgement { client, owner, sequences });
            }
        }
    }

    /// Delivers a message to sessions that match at QoS 0, from the applied state.
    fn on_qos0(&self, term: &mut Term, message: &Qos0) {
        let state = self.replica.state.lock();
        let mut output = Vec::new();
        let publisher = message.publisher.as_deref();
        state.qos0_matches(&message.topic, publisher, message.below, |id, retain_as_published, identifiers| {
            let Some((link, owner)) = term.deliveries.link_of(id) else { return };
            let Some(session) = state.session(id) else { return };
            output.push((
                link,
                FromShard::Qos0 {
                    client: session.profile.client.clone(),
                    owner,
                    retain: message.retain && retain_as_published,
                    identifiers: identifiers.to_vec(),
                    expiry: message.expiry,
                    body: message.body.clone(),
                },
            ));
        });
        drop(state);
        send_all(term, output);
    }

    /// Notes acknowledgements, which are committed later, and continues the deliveries.
    fn on_acknowledge(&self, term: &mut Term, Acknowledgement { client, owner, sequences }: Acknowledgement) {
        let output = {
            let state = self.replica.state.lock();
            term.deliveries.acknowledge(client, owner, sequences, &state, &term.rows)
        };
        schedule_flush(term);
        send_all(term, output);
    }

    /// Starts deliveries to a session's holder.
    fn open(&self, term: &mut Term, link: LinkId, held: HeldSession) {
        let (output, awaiting) = {
            let state = self.replica.state.lock();
            let awaiting: Vec<Box<str>> = state.awaiting(&held.client, held.owner);
            let (client, owner) = (held.client.clone(), held.owner);
            let waits: Vec<_> = awaiting.into_iter().map(|filter| (client.clone(), owner, filter)).collect();
            (term.deliveries.open(link, held, &state, &term.rows), waits)
        };
        // Retained messages that an earlier leader or connection did not deliver.
        if !awaiting.is_empty() {
            let filters = awaiting.iter().map(|(_, _, filter)| filter.clone()).collect();
            term.routes.wait(Waiting { filters, answer: None, retained: awaiting });
            self.advance(term);
        }
        schedule_flush(term);
        send_all(term, output);
    }
}

/// Fields of [`ToShard::Qos0`].
struct Qos0 {
    topic: Box<str>,
    publisher: Option<Box<str>>,
    retain: bool,
    below: u8,
    expiry: Option<u32>,
    body: Bytes,
}

/// Queues an operation for the log, with the receiver of its outcome.
fn on_call(term: &mut Term, link: LinkId, id: u64, operation: Operation) {
    let waiter = match &operation {
        Operation::Subscribe { client, owner, subscriptions } => Waiter::Subscribe {
            link,
            id,
            client: client.clone(),
            owner: *owner,
            filters: subscriptions.iter().map(|wanted| wanted.filter.clone()).collect(),
        },
        Operation::End(_) | Operation::Claim(_) => {
            // Acknowledgements of the former connection are committed before the session changes hands.
            flush_acknowledgements(term);
            Waiter::Call { link, id }
        }
        _ => Waiter::Call { link, id },
    };
    term.batch.push(operation, waiter);
}

fn on_enqueue(term: &mut Term, link: LinkId, enqueue: Enqueue) {
    let waiter = Waiter::Enqueue { link, number: enqueue.sender.number };
    term.batch.push(Operation::Enqueue(enqueue), waiter);
}
