//! Rate limit on failed authentications per client address: a token bucket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures allowed in a burst.
const BURST: u32 = 20;
/// Time after which one more failure is allowed.
const REFILL: Duration = Duration::from_secs(1);
/// Addresses that are tracked. Further ones are bounded only by the hashing queue.
const ADDRESSES: usize = 10_000;

/// Failures by address. IPv6 addresses count by their /64, since one host has many addresses in it.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Time at which the address has its whole burst again.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Failures {
    /// Returns whether the address failed too often.
    pub(super) fn is_limited(&self, address: IpAddr) -> bool {
        let now = Instant::now();
        self.full_at.lock().get(&network(address)).is_some_and(|full_at| *full_at > now + REFILL * (BURST - 1))
    }

    /// Records a failure.
    pub(super) fn note(&self, address: IpAddr) {
        let now = Instant::now();
        let mut full_at = self.full_at.lock();
        if full_at.len() >= ADDRESSES {
            full_at.retain(|_, full_at| *full_at > now);
            if full_at.len() >= ADDRESSES && !full_at.contains_key(&network(address)) {
                return;
            }
        }
        let at = full_at.entry(network(address)).or_insert(now);
        // Bounded by the burst, so that an address recovers within `BURST * REFILL`.
        *at = ((*at).max(now) + REFILL).min(now + REFILL * BURST);
    }
}

/// Returns the key of an address: IPv4 as it is, IPv6 by its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_is_limited_after_its_burst_and_recovers() {
        let failures = Failures::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..BURST {
            assert!(!failures.is_limited(one));
            failures.note(one);
        }
        assert!(failures.is_limited(one));
        assert!(!failures.is_limited(other));
        assert!(failures.is_limited("::ffff:10.0.0.1".parse().unwrap()));
        failures.note(one);
        tokio::time::advance(REFILL + Duration::from_millis(1)).await;
        assert!(!failures.is_limited(one));
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_ipv6_is_one_address() {
        let failures = Failures::default();
        for host in 0..BURST {
            failures.note(format!("2001:db8::{host:x}").parse().unwrap());
        }
        assert!(failures.is_limited("2001:db8::ffff".parse().unwrap()));
        assert!(!failures.is_limited("2001:db8:0:1::1".parse().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let failures = Failures::default();
        for number in 0..=ADDRESSES {
            failures.note(IpAddr::V4(std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap())));
        }
        assert_eq!(failures.full_at.lock().len(), ADDRESSES);
        tokio::time::advance(REFILL * 2).await;
        failures.note("10.0.0.1".parse().unwrap());
        assert_eq!(failures.full_at.lock().len(), 1);
    }
}
