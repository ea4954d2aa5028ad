//! Authenticated gRPC connections between brokers, and from the operator to brokers.
//!
//! The cluster runtime and the node take channels from [`Pool`]; the node serves its gRPC services with [`serve`].
//! Invariant: both ends of every connection hold a certificate of the cluster's CA that carries exactly the URI of
//! their role. On a connection between brokers every call but `Hello` is refused until a `Hello` was accepted on it.
//!
//! ```text
//!  Pool::channel -> DNS -> TCP -> TLS (CA, name, URI) -> Hello -> channel, kept until its connection ends
//!  serve         -> TCP -> TLS (CA, URI) -> Hello accepted? -> services
//! ```

mod client;
mod identity;
mod pool;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use self::client::ConnectError;
pub use self::identity::Role;
pub use self::pool::{Error, Greet, Pool};
pub use self::server::{Caller, serve};
pub use self::tls::{Tls, TlsError};

/// Largest gRPC message between nodes, in bytes: a 16 MiB application message, what is batched with it, and framing.
pub const MAX_MESSAGE: usize = 20 << 20;

/// Traffic class. Each class has its own connection to a peer, to avoid head-of-line blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Votes, heartbeats, log entries.
    Raft,
    /// Forwarded proposals, reads, messages, leases.
    Data,
    /// Snapshots of Raft groups.
    Snapshot,
}
