//! Topics for property tests.

use proptest::prelude::*;

use super::{Filter, Name};

/// Few levels, so that names and filters match often.
pub(crate) const LEVELS: [&str; 5] = ["", "a", "b", "$x", "é"];

pub(crate) fn any_name() -> impl Strategy<Value = Name> {
    let levels = prop::collection::vec(prop::sample::select(&LEVELS[..]), 1..5);
    levels.prop_map(|levels| levels.join("/")).prop_filter_map("empty", |text| text.parse().ok())
}

pub(crate) fn any_filter() -> impl Strategy<Value = Filter> {
    let level = prop_oneof![3 => prop::sample::select(&LEVELS[..]), 2 => Just("+")];
    (prop::collection::vec(level, 0..5), any::<bool>()).prop_filter_map("empty", |(mut levels, rest)| {
        if rest {
            levels.push("#");
        }
        levels.join("/").parse().ok()
    })
}
