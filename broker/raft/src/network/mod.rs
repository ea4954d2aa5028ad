//! How the groups of different nodes talk: openraft's requests in the gRPC messages of `peer.proto`.
//!
//! [`client`] is what openraft sends with, [`server`] what the node's gRPC service hands requests to. Votes, heartbeats
//! and handovers are single calls; log entries are one stream per group and peer, in order, with a window; snapshots
//! are a stream on a connection of their own. Payloads are postcard, entries as in the log.

pub(super) mod client;
pub(super) mod forward;
mod pipeline;
pub(super) mod rate;
pub(super) mod server;

use covey_contract::proto::peer_client::PeerClient;
use tonic::transport::Channel;

/// Largest gRPC message between nodes, in bytes: a 16 MiB message, what is packed with it, and framing. Stubs set it.
pub const MAX_MESSAGE: usize = 20 << 20;

/// What `RaftRequest.kind` says of the payload.
pub(super) const KIND_APPEND: u32 = 1;
pub(super) const KIND_VOTE: u32 = 2;
pub(super) const KIND_PRE_VOTE: u32 = 3;
pub(super) const KIND_TRANSFER: u32 = 4;

/// A client with the message sizes that every use needs.
pub(super) fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}
