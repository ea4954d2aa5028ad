//! Assignment of ports to brokers. Client ports are offsets from `--port`; the others are chosen once and kept.

use std::net::{Ipv4Addr, TcpListener};

use covey_contract::config::Listener;

use super::directory::State;

/// The ports of each listener of a cluster are a multiple of this, so that the cluster can grow without moving.
const BLOCK: u16 = 10;
/// Inner ports per purpose (peers, admin, HTTP); a cluster has at most 99 brokers.
const ROOM: u16 = 100;
/// Range of inner ports, below the range that systems use for outgoing connections.
const INNER: std::ops::Range<u16> = 20_000..32_000;
/// Attempts to find free inner ports.
const ATTEMPTS: u32 = 200;

/// Reason why a cluster has no ports.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("port {0} on 127.0.0.1 is in use; choose other ports with --port, or stop the program that uses it")]
    Used(u16),
    #[error("found no free ports between 20000 and 32000 for the connections between brokers")]
    None,
    #[error("there are not enough ports above {0}; choose a lower --port")]
    TooHigh(u16),
    #[error(
        "{replicas} brokers do not fit into the ports assigned when the cluster was created; start it in another --data"
    )]
    NoRoom { replicas: u32 },
}

/// Ports of ordinal 0 for other brokers, the operator's requests and HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) peer: u16,
    pub(super) admin: u16,
    pub(super) http: u16,
}

/// Returns the inner ports of ordinal 0 for a base port.
pub(super) fn inner(base: u16) -> Inner {
    Inner { peer: base, admin: base.saturating_add(ROOM), http: base.saturating_add(2 * ROOM) }
}

/// Returns the distance between the client ports of two listeners.
fn stride(replicas: u32) -> u16 {
    u16::try_from(replicas).unwrap_or(u16::MAX).div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Returns the first offset after all clusters in the directory.
pub(super) fn next_offset(placed: &[State]) -> u16 {
    placed.iter().map(|state| state.end).max().unwrap_or(0)
}

/// Returns the end of a cluster's client ports (exclusive), as an offset.
pub(super) fn end(offset: u16, listeners: usize, replicas: u32) -> u16 {
    let listeners = u16::try_from(listeners).unwrap_or(u16::MAX);
    offset.saturating_add(stride(replicas).saturating_mul(listeners))
}

/// Sets the ports of the listeners: `port` plus the offset of the cluster, one block for each listener.
pub(super) fn place(listeners: &mut [Listener], port: u16, state: &State, replicas: u32) -> Result<(), Error> {
    if end(state.offset, listeners.len(), replicas) > state.end {
        return Err(Error::NoRoom { replicas });
    }
    let stride = stride(replicas);
    port.checked_add(state.end).ok_or(Error::TooHigh(port))?;
    let mut next = port.saturating_add(state.offset);
    for listener in listeners {
        listener.port = next;
        next = next.saturating_add(stride);
    }
    Ok(())
}

/// Checks that the client ports of these ordinals are free.
pub(super) fn check_clients(listeners: &[Listener], ordinals: std::ops::Range<u32>) -> Result<(), Error> {
    for listener in listeners {
        for ordinal in ordinals.clone() {
            let port = at(listener.port, ordinal);
            if !is_free(port) {
                return Err(Error::Used(port));
            }
        }
    }
    Ok(())
}

/// Returns the kept base if its ports are free, else a new one.
pub(super) fn choose_inner(kept: u16, replicas: u32, taken: &[u16]) -> Result<u16, Error> {
    let apart = |base: u16| taken.iter().all(|other| base.abs_diff(*other) >= 3 * ROOM);
    if kept != 0 && apart(kept) && is_usable(kept, replicas) {
        return Ok(kept);
    }
    let candidates = (0..ATTEMPTS).map(|_| rand::random_range(INNER.start..INNER.end - 3 * ROOM));
    candidates.into_iter().find(|base| apart(*base) && is_usable(*base, replicas)).ok_or(Error::None)
}

fn is_usable(base: u16, replicas: u32) -> bool {
    let Inner { peer, admin, http } = inner(base);
    [peer, admin, http].iter().all(|first| (0..replicas).all(|ordinal| is_free(at(*first, ordinal))))
}

/// Returns the port of an ordinal, given that of ordinal 0.
pub(super) fn at(port: u16, ordinal: u32) -> u16 {
    port.saturating_add(u16::try_from(ordinal).unwrap_or(u16::MAX))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(offset: u16, end: u16) -> State {
        State::new(offset, end, 8)
    }

    fn listener(name: &str) -> Listener {
        Listener { name: name.into(), protocol: covey_contract::config::Protocol::Mqtt, port: 1 }
    }

    #[test]
    fn clusters_stand_side_by_side_with_room_to_grow() {
        assert_eq!(next_offset(&[]), 0);
        assert_eq!(end(0, 1, 3), 10);
        assert_eq!(end(10, 2, 11), 50);
        assert_eq!(next_offset(&[state(0, 10), state(10, 50)]), 50);
    }

    #[test]
    fn listeners_follow_the_port_of_the_command_line() {
        let mut listeners = [listener("a"), listener("b")];
        place(&mut listeners, 2000, &state(10, 30), 3).unwrap();
        assert_eq!(listeners.map(|listener| listener.port), [2010, 2020]);
    }

    #[test]
    fn a_cluster_does_not_grow_into_its_neighbour() {
        assert!(place(&mut [listener("a")], 2000, &state(0, 10), 9).is_ok());
        assert!(matches!(place(&mut [listener("a")], 2000, &state(0, 10), 11), Err(Error::NoRoom { replicas: 11 })));
    }

    #[test]
    fn a_kept_base_that_is_taken_is_given_up() {
        let base = choose_inner(0, 3, &[]).unwrap();
        assert_eq!(choose_inner(base, 3, &[]).unwrap(), base);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, inner(base).admin + 1)).unwrap();
        assert_ne!(choose_inner(base, 3, &[]).unwrap(), base);
    }
}
