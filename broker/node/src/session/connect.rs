//! CONNECT: a session is claimed in its shard and registered on this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use covey_codec::ReasonCode;
use covey_core::shard::{Claim, Claimed, End, Limits, Operation, Outcome, Will};
use covey_mqtt::session::{Close, ConnectRequest, Connected, Message, Sessions};
use covey_types::{ConnectionId, NodeEpoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::context::SessionContext;
use super::inflight::Inflight;
use super::local::{EVENT_CAPACITY, LocalSession, SessionState};
use super::node_session::NodeSession;
use crate::clock::whole_seconds;
use crate::publish::message;
use crate::shard::HeldSession;
use crate::transient::TransientSession;

/// Time that a CONNECT waits for its shard.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// The node's sessions, as connections use them.
#[derive(Debug, Clone)]
pub struct NodeSessions(Arc<SessionContext>);

impl Sessions for NodeSessions {
    type Session = NodeSession;

    fn is_serving(&self) -> bool {
        self.0.lease.valid_epoch().is_some() && !self.0.tasks.shutdown().is_cancelled()
    }

    async fn connect(&self, request: ConnectRequest) -> Result<Connected<NodeSession>, ReasonCode> {
        let context = &self.0;
        let Some(epoch) = context.lease.valid_epoch() else { return Err(ReasonCode::ServerUnavailable) };
        let connection = ConnectionId::new(context.connections.fetch_add(1, Ordering::Relaxed));
        let claimed = match self.claim(self.claim_of(&request, epoch, connection)).await {
            Some(Outcome::Claimed(claimed)) => claimed,
            Some(Outcome::WrongPrincipal) => {
                info!(client_id = %request.client_id, user = %request.principal, "refused: the session belongs to another user");
                return Err(ReasonCode::ClientIdentifierNotValid);
            }
            Some(_) | None => {
                debug!(client_id = %request.client_id, "refused: the session's shard did not answer in time");
                return Err(ReasonCode::ServerUnavailable);
            }
        };
        if claimed.missed > 0 {
            info!(client_id = %request.client_id, missed = claimed.missed, "the session's full queue missed messages");
        }
        let connected = self.open(&request, &claimed, epoch, connection);
        if context.lease.until_valid(epoch).await.is_err() {
            return Err(ReasonCode::ServerUnavailable);
        }
        Ok(connected)
    }
}

impl NodeSessions {
    pub(crate) fn new(context: SessionContext) -> Self {
        Self(Arc::new(context))
    }

    /// Commits a claim. Returns `None` if the shard did not answer in time; a claim that is committed later is ended
    /// at once.
    async fn claim(&self, claim: Claim) -> Option<Outcome> {
        let client = claim.client.clone();
        let until = tokio::time::Instant::now() + CLAIM_TIMEOUT;
        let shard = self.0.shard_client_of(&client).clone();
        let mut answer = shard.call_until(Operation::Claim(claim), Some(until));
        tokio::select! {
            outcome = &mut answer => outcome.ok(),
            () = tokio::time::sleep_until(until) => {
                self.0.tasks.spawn("late claim", async move {
                    if let Ok(Outcome::Claimed(claimed)) = answer.await {
                        let end = End { client, owner: claimed.owner, expiry: None, drop_will: true };
                        drop(shard.call(Operation::End(end)));
                    }
                });
                None
            }
        }
    }

    fn claim_of(&self, request: &ConnectRequest, epoch: NodeEpoch, connection: ConnectionId) -> Claim {
        let sessions = &self.0.config.sessions;
        Claim {
            client: request.client_id.as_str().into(),
            principal: request.principal.as_ref().into(),
            node: self.0.node,
            epoch,
            connection,
            clean_start: request.clean_start,
            expiry: whole_seconds(request.expiry),
            will: request.will.as_ref().map(|will| will_of(will, request.will_delay)),
            limits: Limits {
                messages: sessions.max_queued_messages,
                bytes: sessions.max_queued_bytes,
                subscriptions: sessions.max_subscriptions,
            },
        }
    }

    /// Registers a session whose claim is committed and returns it for the connection.
    fn open(
        &self,
        request: &ConnectRequest,
        claimed: &Claimed,
        epoch: NodeEpoch,
        connection: ConnectionId,
    ) -> Connected<NodeSession> {
        let context = &self.0;
        let (events, receiver) = mpsc::channel(EVENT_CAPACITY);
        let state = if claimed.durable {
            SessionState::Durable(Inflight::default())
        } else {
            SessionState::Transient(TransientSession::new(connection, request.receive_maximum))
        };
        let client: Box<str> = request.client_id.as_str().into();
        let local = Arc::new(LocalSession {
            client: client.clone(),
            principal: request.principal.clone(),
            owner: claimed.owner,
            epoch,
            connection,
            events: Mutex::new(Some(events)),
            state: Mutex::new(state),
        });
        context.registry.insert(local.clone());
        if !context.lease.is_valid(epoch) && context.lease.epoch() != Some(epoch) {
            context.registry.close(&local, Close::Fenced);
        }
        let window = request.receive_maximum;
        context.shard_client_of(&client).hold(HeldSession { client, owner: claimed.owner, window });
        Connected {
            session_present: claimed.present,
            filters: claimed.filters.iter().map(|filter| message::text(filter)).collect(),
            session: NodeSession { context: context.clone(), local, queue: Arc::default() },
            events: receiver,
        }
    }
}

fn will_of(will: &Message, delay: Duration) -> Will {
    Will {
        topic: will.topic.as_str().into(),
        qos: will.qos,
        retain: will.retain,
        delay: whole_seconds(delay),
        body: message::encode(will),
    }
}
