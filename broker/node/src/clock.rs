//! Time. The clock of leases and shard time goes on while the machine is suspended and no wall clock moves it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was booted (`CLOCK_BOOTTIME`). Comparable on one machine, until it boots again.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither part of this clock is ever negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns whole seconds, at most `u32::MAX`: how expiry and delays go to shards.
pub(crate) fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_and_does_not_go_back() {
        let before = now();
        std::thread::sleep(Duration::from_millis(5));
        assert!(now() >= before + Duration::from_millis(5));
    }
}
