//! MQTT 5 and MQTT 3.1.1 between the sockets of clients and the sessions behind them.
//!
//! This crate owns the protocol: handshakes, the order of packets and acknowledgements, packet ids, limits, and the end
//! of each connection. It does not know how sessions are stored, replicated or routed: [`session`] has the traits that
//! the node implements. [`connection::Guard`] and [`connection::Observer`] are the traits of access control and metrics.
//! `covey-codec` decodes and encodes packets. Start reading in [`connection`].

pub mod connection;
pub mod listener;
pub mod session;
