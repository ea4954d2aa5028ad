//! Parses and checks `spec.rollout`.

use std::time::Duration;

use covey_contract::config;
use covey_crds::{Day, Rollout, RolloutPolicy};
use jiff::SignedDuration;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;

use super::Problems;
use crate::cluster::postponement::Window;

/// When and how pods are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedRollout {
    pub policy: RolloutPolicy,
    pub windows: Vec<Window>,
    /// Time that a pod of a new template must have been ready before the next one is evicted.
    pub min_ready: Duration,
    /// Time for which a pod that is to stop goes on serving, until no new client is sent to it.
    pub wait_endpoint_removal: Duration,
}

/// Parses and checks all but `drain`.
pub(super) fn validate(rollout: &Rollout, problems: &mut Problems) -> ValidatedRollout {
    problems.expect(rollout.min_ready_seconds <= 3600, "rollout.minReadySeconds must not exceed 3600");
    let wait = problems.time("rollout.drain.waitEndpointRemoval", &rollout.drain.wait_endpoint_removal);
    problems.expect(wait <= Duration::from_mins(5), "rollout.drain.waitEndpointRemoval must not exceed 5m");
    problems.expect(rollout.windows.len() <= 16, "rollout.windows must not have more than 16 entries");
    ValidatedRollout {
        policy: rollout.policy,
        windows: rollout.windows.iter().filter_map(|window| self::window(window, problems)).collect(),
        min_ready: Duration::from_secs(rollout.min_ready_seconds.into()),
        wait_endpoint_removal: wait,
    }
}

/// Parses and checks `drain`.
pub(super) fn drain(rollout: &Rollout, problems: &mut Problems) -> config::Drain {
    let drain = &rollout.drain;
    let deadline = problems.time("rollout.drain.deadline", &drain.deadline);
    problems.expect(deadline <= Duration::from_hours(1), "rollout.drain.deadline must not exceed 1h");
    problems.range("rollout.drain.rate", drain.rate, 100_000);
    config::Drain { rate: drain.rate, deadline }
}

fn window(window: &covey_crds::Window, problems: &mut Problems) -> Option<Window> {
    let from = Time::strptime("%H:%M", &window.from).ok().filter(|_| window.from.len() == 5);
    problems.expect(from.is_some(), "rollout.windows: from must be a time of day from 00:00 to 23:59");
    let duration = problems.time("rollout.windows.duration", &window.duration);
    problems.expect(
        (Duration::from_mins(1)..=Duration::from_hours(24)).contains(&duration),
        "the duration of a rollout window must be between 1m and 24h",
    );
    let zone = TimeZone::get(&window.time_zone).ok();
    let name = &window.time_zone;
    problems.expect(
        zone.is_some(),
        &format!("rollout.windows: {name:?} is no time zone; use a name such as Europe/Berlin"),
    );
    Some(Window {
        days: window.days.iter().copied().map(weekday).collect(),
        from: from?,
        duration: SignedDuration::try_from(duration).ok()?,
        zone: zone?,
        zone_name: name.clone(),
    })
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}
