//! Filters of rules, with placeholders that are replaced for each identity.

use std::borrow::Cow;

use super::{Effect, Identity};
use crate::topic::{self, Filter};

const USERNAME: &str = "{username}";
const CLIENT_ID: &str = "{clientId}";

/// The filter of a rule.
#[derive(Debug, Clone)]
pub(super) enum Template {
    /// Without placeholders.
    Plain(Filter),
    /// With placeholders: the levels of the filter.
    Levels(Vec<Level>),
}

/// A level of a filter: a text or a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Level {
    Text(Box<str>),
    Username,
    ClientId,
}

/// The filter of a rule for one identity.
#[derive(Debug)]
pub(super) enum Filled<'a> {
    /// Matches what this filter matches.
    Filter(Cow<'a, Filter>),
    /// Matches no topic.
    Nothing,
    /// Matches every topic.
    Everything,
}

impl Filled<'_> {
    /// Returns whether `relation` holds for the filter.
    pub(super) fn is(&self, relation: impl FnOnce(&Filter) -> bool) -> bool {
        match self {
            Filled::Filter(filter) => relation(filter),
            Filled::Nothing => false,
            Filled::Everything => true,
        }
    }
}

impl Template {
    /// Parses a filter; a whole level may be a placeholder.
    pub(super) fn parse(text: &str) -> Result<Self, topic::Error> {
        let levels: Vec<Level> = text.split('/').map(Level::parse).collect();
        if levels.iter().all(|level| matches!(level, Level::Text(_))) {
            return Ok(Self::Plain(text.parse()?));
        }
        // The syntax does not depend on the names: an error with `x` in their place is an error with any name.
        join(&levels, |_| Some("x")).unwrap_or_default().parse::<Filter>()?;
        Ok(Self::Levels(levels))
    }

    /// Replaces the placeholders. If a name is not usable as a level, an allow rule matches nothing and a deny rule
    /// matches as it would for every name, so that no choice of a name evades it.
    pub(super) fn fill<'a>(&'a self, identity: Identity<'_>, effect: Effect) -> Filled<'a> {
        let levels = match self {
            Self::Plain(filter) => return Filled::Filter(Cow::Borrowed(filter)),
            Self::Levels(levels) => levels,
        };
        let filled = join(levels, |level| level.name(identity).filter(|name| is_one_level(name, effect)));
        let literal = filled.and_then(|text| text.parse().ok());
        match (literal, effect) {
            (Some(filter), _) => Filled::Filter(Cow::Owned(filter)),
            (None, Effect::Allow) => Filled::Nothing,
            (None, Effect::Deny) => match join(levels, |_| Some("+")).and_then(|text| text.parse().ok()) {
                Some(filter) => Filled::Filter(Cow::Owned(filter)),
                None => Filled::Everything,
            },
        }
    }
}

impl Level {
    fn parse(text: &str) -> Self {
        match text {
            USERNAME => Self::Username,
            CLIENT_ID => Self::ClientId,
            text => Self::Text(text.into()),
        }
    }

    fn name<'a>(&self, identity: Identity<'a>) -> Option<&'a str> {
        match self {
            Self::Text(_) => None,
            Self::Username => Some(identity.username),
            Self::ClientId => Some(identity.client_id),
        }
    }
}

/// Returns whether a name, as a level of a filter, matches only itself. For an allow rule it also must not begin with
/// `$`, as a wildcard would not match such a topic.
fn is_one_level(name: &str, effect: Effect) -> bool {
    let special = name.starts_with('$') || name.contains("$share");
    let refused = name.is_empty() || name.contains(['/', '+', '#', '\0']) || (special && effect == Effect::Allow);
    !refused
}

/// Returns the filter's text with the placeholders replaced by `fill`; `None` if `fill` returns `None` for one of
/// them.
fn join<'a>(levels: &'a [Level], fill: impl Fn(&Level) -> Option<&'a str>) -> Option<String> {
    let levels: Option<Vec<&str>> = levels
        .iter()
        .map(|level| match level {
            Level::Text(text) => Some(&**text),
            placeholder => fill(placeholder),
        })
        .collect();
    levels.map(|levels| levels.join("/"))
}
