//! The clock of leases and shard time: it goes on while the machine is suspended and no wall clock moves it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was booted (`CLOCK_BOOTTIME`). Comparable on one machine, until it boots again.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither part of this clock is ever negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
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
