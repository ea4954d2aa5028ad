//! Free space of a volume, and the level that follows from it.
//!
//! The broker does not act on levels yet. Invariant: a level depends only on the present figures, so a volume returns
//! to normal when space is freed.

use std::io;
use std::path::{Path, PathBuf};

use covey_contract::config;

/// Volumes smaller than this have no minimum reserve in bytes, which would take too much of them.
const SMALL_VOLUME_BYTES: u64 = 5 << 30;
const CRITICAL_PERCENT: u64 = 2;

/// The file system did not return its figures.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the free space of {}", path.display())]
pub struct Error {
    /// A path on the volume.
    pub path: PathBuf,
    source: io::Error,
}

/// Level of free space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// More than the reserve is free.
    Normal,
    /// Less than the reserve is free. The broker is to refuse new messages, retained messages, sessions and
    /// subscriptions.
    BelowReserve,
    /// Less than 2 % is free. The node is to move its leaderships to nodes with more space, too.
    Critical,
}

/// Figures of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process can still write.
    pub free: u64,
    /// Size of the volume in bytes.
    pub capacity: u64,
}

impl Space {
    /// Reads the figures of the file system that contains `path`.
    ///
    /// # Errors
    /// Returns [`Error`] if the file system does not return them.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let stat = rustix::fs::statvfs(path).map_err(|errno| Error { path: path.to_owned(), source: errno.into() })?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { free: bytes(stat.f_bavail), capacity: bytes(stat.f_blocks) })
    }

    /// Returns the reserve in bytes: the larger of `reserve_percent` of the volume and `reserve_min_bytes`.
    pub fn reserve(&self, config: &config::Storage) -> u64 {
        let least = if self.capacity < SMALL_VOLUME_BYTES { 0 } else { config.reserve_min_bytes };
        self.percent(u64::from(config.reserve_percent)).max(least)
    }

    /// Returns the level of the present figures.
    pub fn level(&self, config: &config::Storage) -> Level {
        if self.free < self.percent(CRITICAL_PERCENT) {
            Level::Critical
        } else if self.free < self.reserve(config) {
            Level::BelowReserve
        } else {
            Level::Normal
        }
    }

    fn percent(&self, percent: u64) -> u64 {
        (self.capacity / 100).saturating_mul(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn level(free: u64, capacity: u64) -> Level {
        Space { free, capacity }.level(&config::Storage::default())
    }

    #[test]
    fn the_reserve_is_the_larger_of_percent_and_bytes() {
        let default = config::Storage::default();
        let reserve = |capacity, config: &_| Space { free: 0, capacity }.reserve(config);
        assert_eq!(reserve(100_000 * MIB, &default), 10_000 * MIB);
        assert_eq!(reserve(5 * GIB, &default), 512 * MIB);
        assert_eq!(reserve(6_000 * MIB, &config::Storage { reserve_percent: 1, ..default }), 512 * MIB);
        // Half of a small volume would be too much.
        assert_eq!(reserve(1_000 * MIB, &default), 100 * MIB);
        assert_eq!(reserve(u64::MAX, &config::Storage { reserve_percent: 100, ..default }), u64::MAX / 100 * 100);
    }

    #[test]
    fn levels_change_exactly_at_their_bounds() {
        let capacity = 100_000 * MIB;
        assert_eq!(level(capacity, capacity), Level::Normal);
        assert_eq!(level(10_000 * MIB, capacity), Level::Normal);
        assert_eq!(level(10_000 * MIB - 1, capacity), Level::BelowReserve);
        assert_eq!(level(2_000 * MIB, capacity), Level::BelowReserve);
        assert_eq!(level(2_000 * MIB - 1, capacity), Level::Critical);
        assert_eq!(level(0, capacity), Level::Critical);
        assert!(Level::Normal < Level::BelowReserve && Level::BelowReserve < Level::Critical);
    }

    #[test]
    fn a_real_volume_has_figures_and_an_absent_path_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let space = Space::read(temporary.path()).unwrap();
        assert!(0 < space.capacity && space.free <= space.capacity, "{space:?}");
        let absent = temporary.path().join("absent");
        let error = Space::read(&absent).unwrap_err();
        assert!(error.to_string().contains(absent.to_str().unwrap()));
    }
}
