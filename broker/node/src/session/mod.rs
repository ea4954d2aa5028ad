//! Sessions whose connections are on this node.
//!
//! ```text
//! NodeSessions (CONNECT: claims the session) -> NodeSession, one per connection
//!                                                 |-- PublishQueue: publishes in order
//!                                                 '-- LocalSession: Inflight, or TransientSession
//! Registry: all LocalSessions, for deliveries
//! ```

mod connect;
mod context;
mod inflight;
mod local;
mod node_session;
mod publish_queue;
mod registry;
mod subscribe;

pub use connect::NodeSessions;
pub(crate) use context::SessionContext;
pub(crate) use inflight::{Full, PACKET_IDS, Queue};
pub use node_session::NodeSession;
pub(crate) use registry::Registry;
