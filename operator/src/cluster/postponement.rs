//! Decides whether the replacement of pods that serve is postponed. Pure.
//!
//! It is postponed until a person approves the template, until one of the windows begins, or until other clusters have
//! replaced their pods. A pod that cannot run its broker is not postponed: it serves nothing, and its replacement repairs
//! the cluster.

use covey_crds::condition::reason;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};

/// Why the replacement of pods is postponed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Postponement {
    /// The policy is Manual, and the template with this revision is not approved.
    Approval { revision: String },
    /// No window is open. Start of the next one, such as `Sun 2026-11-29 22:00 Europe/Berlin`, or `never`.
    Windows { next: String },
    /// The clusters that have all turns, as `namespace/name`.
    Fleet { others: Vec<String> },
}

impl Postponement {
    /// The reason of condition UpgradePending.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Approval { .. } => reason::APPROVAL_NEEDED,
            Self::Windows { .. } => reason::OUTSIDE_WINDOWS,
            Self::Fleet { .. } => reason::OTHER_CLUSTERS_ROLL,
        }
    }
}

/// A weekly time in which pods are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Days on which it begins; empty for every day.
    pub days: Vec<Weekday>,
    /// Time of day at which it begins.
    pub from: Time,
    /// Length, at most 24 hours.
    pub duration: SignedDuration,
    pub zone: TimeZone,
    /// Name of the zone, for messages.
    pub zone_name: String,
}

impl Window {
    /// Returns the start of the window that begins on the day `days` after that of `now`, if one begins there. A time
    /// that the clock skips on that day is taken as the one after the gap.
    fn begin(&self, now: &Zoned, days: i32) -> Option<Zoned> {
        let date = now.date().checked_add(days.days()).ok()?;
        let begins = self.days.is_empty() || self.days.contains(&date.weekday());
        begins.then(|| date.to_datetime(self.from).to_zoned(self.zone.clone()).ok()).flatten()
    }

    fn is_open(&self, now: Timestamp) -> bool {
        let now = now.to_zoned(self.zone.clone());
        // A window of at most a day that is open began today or yesterday, or the day before if a day has 23 hours.
        [-2, -1, 0].into_iter().filter_map(|days| self.begin(&now, days)).any(|begin| {
            let since = now.duration_since(&begin);
            !since.is_negative() && since < self.duration
        })
    }

    fn next(&self, now: Timestamp) -> Option<Zoned> {
        let now = now.to_zoned(self.zone.clone());
        (0..=7).filter_map(|days| self.begin(&now, days)).find(|begin| *begin > now)
    }
}

/// Returns why pods cannot be replaced now because of the windows. There is no reason if there is no window.
pub fn outside(windows: &[Window], now: Timestamp) -> Option<Postponement> {
    if windows.is_empty() || windows.iter().any(|window| window.is_open(now)) {
        return None;
    }
    let begins = windows.iter().filter_map(|window| window.next(now).map(|begin| (begin, window)));
    let next = begins.min_by(|(one, _), (other, _)| one.cmp(other));
    let next = next.map_or_else(
        || "never".to_owned(),
        |(begin, window)| format!("{} {}", begin.strftime("%a %Y-%m-%d %H:%M"), window.zone_name),
    );
    Some(Postponement::Windows { next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &[Weekday], hour: i8, hours: i64, zone: &str) -> Window {
        Window {
            days: days.to_vec(),
            from: Time::constant(hour, 0, 0, 0),
            duration: SignedDuration::from_hours(hours),
            zone: TimeZone::get(zone).unwrap(),
            zone_name: zone.into(),
        }
    }

    fn next(windows: &[Window], now: &str) -> Option<String> {
        match outside(windows, now.parse().unwrap())? {
            Postponement::Windows { next } => Some(next),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_windows_pods_are_replaced_at_any_time() {
        assert_eq!(next(&[], "2026-11-28T12:00:00Z"), None);
    }

    #[test]
    fn a_window_is_open_from_its_begin_to_its_end_and_may_pass_midnight() {
        // 2026-11-28 is a Saturday.
        let night = [window(&[Weekday::Saturday], 22, 4, "UTC")];
        for (now, is_open) in [
            ("2026-11-28T21:59:59Z", false),
            ("2026-11-28T22:00:00Z", true),
            ("2026-11-29T01:59:59Z", true),
            ("2026-11-29T02:00:00Z", false),
            ("2026-11-29T22:00:00Z", false),
        ] {
            assert_eq!(next(&night, now).is_none(), is_open, "{now}");
        }
    }

    #[test]
    fn the_next_begin_is_the_earliest_of_all_windows_in_their_own_time() {
        let windows = [window(&[Weekday::Monday], 3, 1, "UTC"), window(&[Weekday::Sunday], 22, 1, "Europe/Berlin")];
        assert_eq!(next(&windows, "2026-11-28T12:00:00Z").unwrap(), "Sun 2026-11-29 22:00 Europe/Berlin");
        assert_eq!(next(&windows, "2026-11-29T23:00:00Z").unwrap(), "Mon 2026-11-30 03:00 UTC");
        assert_eq!(next(&windows[..1], "2026-11-30T03:30:00Z"), None);
        assert_eq!(next(&windows[..1], "2026-11-30T04:00:00Z").unwrap(), "Mon 2026-12-07 03:00 UTC");
    }

    #[test]
    fn a_begin_that_the_clock_skips_is_not_lost() {
        // On 2027-03-28 the clock of Berlin goes from 02:00 to 03:00.
        let skipped = [window(&[], 2, 1, "Europe/Berlin")];
        assert_eq!(next(&skipped, "2027-03-28T01:30:00Z"), None);
    }
}
