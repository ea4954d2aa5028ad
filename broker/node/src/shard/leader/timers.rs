//! Periodic work of the leader: it ends sessions that have expired, publishes wills, and notices that entries are stuck.

use std::time::Duration;

use covey_core::shard::{Operation, Will};
use tracing::warn;

use super::batch::Waiter;
use super::{Leader, Term};

/// If an entry has no result within this time, the leader drops its state and closes all links, so that nodes resend.
/// Resends are deduplicated.
const ENTRY_STALL_TIMEOUT: Duration = Duration::from_secs(10);

impl Leader {
    /// Publishes the queued wills whose publishing has not begun.
    pub(super) fn publish_wills(&self, term: &mut Term) {
        if !term.routes.is_serving() {
            return;
        }
        let due: Vec<(u64, Will)> = {
            let state = self.replica.state.lock();
            let is_new = |number: &u64| !term.wills_begun.contains(number);
            state.wills().filter(|(number, _)| is_new(number)).map(|(n, will)| (n, will.clone())).collect()
        };
        for (number, will) in due {
            term.wills_begun.insert(number);
            let key = format!("w:{}:{number}", self.shard).into_boxed_str();
            let published = self.context.publish_will(key, will);
            term.wills.push(Box::pin(async move {
                published.await;
                number
            }));
        }
    }

    /// Proposes the end of expired sessions and the wills that are due; again each second until applied, which is
    /// idempotent.
    pub(super) fn watch_timers(&self, term: &mut Term) {
        let now = term.batch.time();
        let state = self.replica.state.lock();
        for (_, session) in state.sessions() {
            let profile = &session.profile;
            let (client, owner) = (profile.client.clone(), profile.owner);
            if session.is_expired(now) {
                term.batch.push(Operation::Expire { client, owner }, Waiter::None);
            } else if session.is_will_due(now) {
                term.batch.push(Operation::WillDue { client, owner }, Waiter::None);
            }
        }
        drop(state);
        self.publish_wills(term);
    }

    /// Returns whether the oldest entry in flight has waited too long for its result.
    pub(super) fn is_stuck(&self, term: &Term) -> bool {
        let stuck = term.batch.oldest().is_some_and(|waited| waited > ENTRY_STALL_TIMEOUT);
        if stuck {
            warn!(
                shard = self.shard.get(),
                term = term.number,
                "no result for an entry within {ENTRY_STALL_TIMEOUT:?}; closing the links so that nodes resend"
            );
        }
        stuck
    }

    /// Proposes the end of epochs that meta has ended and this shard does not know to be over.
    pub(super) fn watch_nodes(&self, term: &mut Term) {
        let meta = self.meta.state.read();
        let state = self.replica.state.lock();
        for (node, member) in meta.members() {
            let known = state.ended_epoch(node);
            if let Some(epoch) = member.ended.filter(|ended| Some(*ended) > known) {
                term.batch.push(Operation::NodeDown { node, epoch }, Waiter::None);
            }
        }
    }
}
