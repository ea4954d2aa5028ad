//! Requests between the nodes of a group: openraft's requests in the gRPC messages of `peer.proto`.
//!
//! openraft sends with [`client`]; the node's gRPC service passes requests to [`server`]. Votes, heartbeats and
//! leadership transfers are single calls. Log entries are one stream per group and peer, in order, with a window.
//! Snapshots are a stream on a connection of their own. Payloads are postcard, entries as in the log.

pub(super) mod client;
pub(super) mod forward;
mod pipeline;
pub(super) mod rate;
pub(super) mod server;

use covey_contract::proto::peer_client::PeerClient;
use tonic::transport::Channel;

/// Largest gRPC message between nodes, in bytes: a 16 MiB application message, what is batched with it, and framing.
pub const MAX_MESSAGE: usize = 20 << 20;

/// Values of `RaftRequest.kind`: the type of the payload.
pub(super) const KIND_APPEND: u32 = 1;
pub(super) const KIND_VOTE: u32 = 2;
pub(super) const KIND_PRE_VOTE: u32 = 3;
pub(super) const KIND_TRANSFER: u32 = 4;

/// Returns a client with the message limits between nodes.
pub(super) fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}
