//! Authenticated gRPC connections between brokers, and from the operator to brokers.
//!
//! `covey-raft` and `covey-node` take channels from [`Pool`]; the node serves its gRPC services with [`serve`].
//! Invariant: both ends of every connection hold a certificate of the cluster's CA that carries exactly the URI of
//! their role. On a connection between brokers every call but `Hello` is refused until a `Hello` was accepted on it.
//!
//! ```text
//!  Pool::channel -> DNS -> TCP -> TLS (CA, name, URI) -> Hello -> channel, kept until its connection ends
//!  serve         -> TCP -> TLS (CA, URI) -> Hello accepted? -> services
//! ```
//!
//! This crate owns the connections and their certificates. It does not own the services that run over them, and it does
//! not decide who is a member of the cluster: the node answers `Hello`. Start reading at [`Pool`].

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
