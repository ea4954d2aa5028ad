//! Nodes of a cluster in one process, over real sockets, certificates and files: what sessions see of them.

mod herd;
mod sessions;
