//! Clock for leases and shard time. It continues while the machine is suspended, and setting the time of day does not
//! affect it.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was booted (`CLOCK_BOOTTIME`). Values are comparable on one machine until its next boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(Duration);

impl BootTime {
    /// Returns the present time.
    pub fn now() -> Self {
        Self(now())
    }

    /// Returns the time since boot.
    pub fn since_boot(self) -> Duration {
        self.0
    }

    /// Returns the time from `earlier` to `self`; zero if `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Returns the time since the machine was booted.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither part of this clock is negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_and_does_not_go_back() {
        let before = BootTime::now();
        std::thread::sleep(Duration::from_millis(5));
        let after = BootTime::now();
        assert!(after.saturating_since(before) >= Duration::from_millis(5));
        assert_eq!(before.saturating_since(after), Duration::ZERO);
        assert!(before + Duration::from_hours(1) > after);
    }
}
