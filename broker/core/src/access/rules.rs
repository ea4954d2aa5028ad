//! The compiled rules of one user.

use covey_codec::QoS;

use super::Identity;
use super::template::Template;
use crate::topic::{self, Filter, Name};

/// Effect of a rule that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// Action to which a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Publish,
    Subscribe,
}

/// A rule as in the access document.
#[derive(Debug, Clone, Copy)]
pub struct RuleParts<'a> {
    /// Effect of the rule.
    pub effect: Effect,
    /// Actions to which it applies.
    pub actions: &'a [Action],
    /// Topic filters; `{username}` and `{clientId}` stand for one whole level.
    pub topics: &'a [String],
    /// Highest QoS to which the rule applies; `None` for all.
    pub max_qos: Option<QoS>,
    /// Retain flag of the messages to which the rule applies; `None` for both. For publishes only.
    pub retain: Option<bool>,
}

/// Error in a rule; the rules are not enforced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("failed to compile topic {topic:?} of rule {rule}: {source}")]
    /// A topic filter of the rule is malformed.
    Topic { rule: usize, topic: String, source: topic::Error },
    #[error("failed to compile topic {topic:?} of rule {rule}: a placeholder must stand alone in its level")]
    /// A placeholder is only a part of a level.
    Placeholder { rule: usize, topic: String },
}

/// Result of a check, with the position of the deciding rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Allowed by the rule at this position.
    Allowed(usize),
    /// Denied by the rule at this position.
    Denied(usize),
    /// No rule applies: denied.
    NoMatch,
}

impl Decision {
    /// Returns whether the action is allowed.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// Returns the position of the deciding rule; `None` if no rule applied.
    pub fn rule(self) -> Option<usize> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) => Some(rule),
            Self::NoMatch => None,
        }
    }
}

/// All rules of one user.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// In the order of the document: positions are rule numbers.
    rules: Vec<Rule>,
}

/// A compiled rule. Its fields are those of [`RuleParts`].
#[derive(Debug, Clone)]
struct Rule {
    effect: Effect,
    publish: bool,
    subscribe: bool,
    topics: Vec<Template>,
    max_qos: Option<QoS>,
    retain: Option<bool>,
}

impl Rules {
    /// Compiles the rules, all or none.
    ///
    /// # Errors
    /// Returns [`Error`] for the first rule with a topic filter that cannot be compiled.
    pub fn compile<'a>(parts: impl IntoIterator<Item = RuleParts<'a>>) -> Result<Self, Error> {
        let rules = parts.into_iter().enumerate().map(|(number, parts)| Rule::compile(number, parts));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// Returns the number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Returns whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Returns whether the message may be published.
    pub fn decide_publish(&self, identity: Identity<'_>, topic: &Name, qos: QoS, retain: bool) -> Decision {
        self.decide(|rule| {
            rule.publish
                && rule.max_qos.is_none_or(|max| qos <= max)
                && rule.retain.is_none_or(|flag| flag == retain)
                && rule.any_topic(identity, |filter| filter.matches(topic))
        })
    }

    /// Returns whether the subscription is allowed: one allow rule covers every topic that the filter can match, and
    /// no deny rule matches any of them. A shared subscription is checked by its filter.
    pub fn decide_subscribe(&self, identity: Identity<'_>, asked: &Filter, qos: QoS) -> Decision {
        self.decide(|rule| {
            rule.subscribe
                && match rule.effect {
                    Effect::Allow => {
                        rule.max_qos.is_none_or(|max| qos <= max)
                            && rule.any_topic(identity, |filter| filter.contains(asked))
                    }
                    // A subscription of any QoS also delivers messages at QoS 0, to which every deny rule applies.
                    Effect::Deny => rule.any_topic(identity, |filter| filter.intersects(asked)),
                }
        })
    }

    fn decide(&self, applies: impl Fn(&Rule) -> bool) -> Decision {
        let mut decision = Decision::NoMatch;
        for (number, rule) in self.rules.iter().enumerate() {
            match rule.effect {
                Effect::Deny if applies(rule) => return Decision::Denied(number),
                Effect::Allow if decision == Decision::NoMatch && applies(rule) => decision = Decision::Allowed(number),
                Effect::Deny | Effect::Allow => {}
            }
        }
        decision
    }
}

impl Rule {
    fn compile(number: usize, parts: RuleParts<'_>) -> Result<Self, Error> {
        let compile = |topic: &String| {
            let alone = |level: &str| matches!(level, "{username}" | "{clientId}");
            let inside = |level: &str| level.contains("{username}") || level.contains("{clientId}");
            if topic.split('/').any(|level| inside(level) && !alone(level)) {
                return Err(Error::Placeholder { rule: number, topic: topic.clone() });
            }
            Template::parse(topic).map_err(|source| Error::Topic { rule: number, topic: topic.clone(), source })
        };
        Ok(Self {
            effect: parts.effect,
            publish: parts.actions.contains(&Action::Publish),
            subscribe: parts.actions.contains(&Action::Subscribe),
            topics: parts.topics.iter().map(compile).collect::<Result<_, _>>()?,
            max_qos: parts.max_qos,
            retain: parts.retain,
        })
    }

    fn any_topic(&self, identity: Identity<'_>, relation: impl Fn(&Filter) -> bool) -> bool {
        self.topics.iter().any(|template| template.fill(identity, self.effect).is(&relation))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::any::{any_filter, any_name};

    const BOTH: &[Action] = &[Action::Publish, Action::Subscribe];
    const ME: Identity<'static> = Identity { username: "ann", client_id: "c1" };

    fn rules(parts: &[(Effect, &str)]) -> Rules {
        try_rules(parts).unwrap()
    }

    fn try_rules(parts: &[(Effect, &str)]) -> Result<Rules, Error> {
        let topics: Vec<[String; 1]> = parts.iter().map(|(_, topic)| [(*topic).to_owned()]).collect();
        Rules::compile(parts.iter().zip(&topics).map(|((effect, _), topics)| RuleParts {
            effect: *effect,
            actions: BOTH,
            topics,
            max_qos: None,
            retain: None,
        }))
    }

    fn publish(rules: &Rules, identity: Identity<'_>, topic: &str) -> Decision {
        rules.decide_publish(identity, &topic.parse().unwrap(), QoS::AtMostOnce, false)
    }

    fn subscribe(rules: &Rules, identity: Identity<'_>, filter: &str) -> Decision {
        rules.decide_subscribe(identity, &filter.parse().unwrap(), QoS::AtMostOnce)
    }

    #[test]
    fn deny_wins_and_no_match_is_deny() {
        let rules = rules(&[(Effect::Allow, "a/#"), (Effect::Allow, "b"), (Effect::Deny, "a/secret/#")]);
        assert_eq!(publish(&rules, ME, "a/x"), Decision::Allowed(0));
        assert_eq!(publish(&rules, ME, "b"), Decision::Allowed(1));
        assert_eq!(publish(&rules, ME, "a/secret"), Decision::Denied(2));
        assert_eq!(publish(&rules, ME, "c"), Decision::NoMatch);
        assert_eq!(publish(&Rules::default(), ME, "a"), Decision::NoMatch);
    }

    #[test]
    fn a_subscription_passes_only_as_a_whole() {
        let rules = rules(&[(Effect::Allow, "a/#"), (Effect::Allow, "b/+"), (Effect::Deny, "a/+/secret")]);
        assert_eq!(subscribe(&rules, ME, "a/x"), Decision::Allowed(0));
        assert_eq!(subscribe(&rules, ME, "b/+"), Decision::Allowed(1));
        assert_eq!(subscribe(&rules, ME, "b/#"), Decision::NoMatch);
        assert_eq!(subscribe(&rules, ME, "#"), Decision::Denied(2));
        assert_eq!(subscribe(&rules, ME, "a/x/+"), Decision::Denied(2));
        assert_eq!(subscribe(&rules, ME, "a/+/public"), Decision::Allowed(0));
    }

    #[test]
    fn qos_and_retain_narrow_a_rule() {
        let topics = ["t".to_owned()];
        let part = |effect, max_qos, retain| RuleParts { effect, actions: BOTH, topics: &topics, max_qos, retain };
        let name: Name = "t".parse().unwrap();
        let filter: Filter = "t".parse().unwrap();

        let allow = Rules::compile([part(Effect::Allow, Some(QoS::AtLeastOnce), Some(false))]).unwrap();
        assert!(allow.decide_publish(ME, &name, QoS::AtLeastOnce, false).is_allowed());
        assert!(!allow.decide_publish(ME, &name, QoS::ExactlyOnce, false).is_allowed());
        assert!(!allow.decide_publish(ME, &name, QoS::AtMostOnce, true).is_allowed());
        assert!(allow.decide_subscribe(ME, &filter, QoS::AtLeastOnce).is_allowed());
        assert!(!allow.decide_subscribe(ME, &filter, QoS::ExactlyOnce).is_allowed());

        let deny = [part(Effect::Allow, None, None), part(Effect::Deny, Some(QoS::AtMostOnce), None)];
        let deny = Rules::compile(deny).unwrap();
        assert_eq!(deny.decide_publish(ME, &name, QoS::AtMostOnce, false), Decision::Denied(1));
        assert!(deny.decide_publish(ME, &name, QoS::AtLeastOnce, false).is_allowed());
        assert_eq!(deny.decide_subscribe(ME, &filter, QoS::ExactlyOnce), Decision::Denied(1));
    }

    #[test]
    fn actions_are_apart() {
        let topics = ["t".to_owned()];
        let actions = &[Action::Publish];
        let part = RuleParts { effect: Effect::Allow, actions, topics: &topics, max_qos: None, retain: None };
        let rules = Rules::compile([part]).unwrap();
        assert!(publish(&rules, ME, "t").is_allowed());
        assert_eq!(subscribe(&rules, ME, "t"), Decision::NoMatch);
    }

    #[test]
    fn placeholders_stand_for_one_level() {
        let rules = rules(&[(Effect::Allow, "dev/{username}/{clientId}/#")]);
        assert!(publish(&rules, ME, "dev/ann/c1/up").is_allowed());
        assert!(!publish(&rules, ME, "dev/bob/c1/up").is_allowed());
        assert!(!publish(&rules, ME, "dev/ann/c2").is_allowed());
        assert!(subscribe(&rules, ME, "dev/ann/c1/+").is_allowed());
        assert!(!subscribe(&rules, ME, "dev/+/c1/x").is_allowed());
    }

    #[test]
    fn hostile_names_get_nothing_and_escape_nothing() {
        let allow = rules(&[(Effect::Allow, "dev/{username}/#"), (Effect::Allow, "{username}/#")]);
        let deny = rules(&[(Effect::Allow, "#"), (Effect::Allow, "$SYS/#"), (Effect::Deny, "dev/{username}/x")]);
        let long = "n".repeat(65_535);
        for username in ["", "a/b", "+", "#", "a+", "$share", "x$share", "$SYS", "a\0", &long] {
            let who = Identity { username, client_id: "c" };
            for topic in ["dev/a", "dev/a/b", "dev//x", "a/b", "$SYS/x", "$share/x", "dev/"] {
                assert!(!publish(&allow, who, topic).is_allowed(), "{username:?} {topic}");
            }
            for filter in ["dev/#", "dev/+/x", "#", "+/#", "$SYS/#"] {
                assert!(!subscribe(&allow, who, filter).is_allowed(), "{username:?} {filter}");
            }
            if !username.contains('$') {
                assert_eq!(publish(&deny, who, "dev/any/x"), Decision::Denied(2), "{username:?}");
            }
        }
        for username in ["$SYS", "x$share"] {
            let who = Identity { username, client_id: "c" };
            assert_eq!(publish(&deny, who, &format!("dev/{username}/x")), Decision::Denied(2));
        }
    }

    #[test]
    fn rules_that_cannot_be_read_are_refused() {
        for bad in ["a/#/b", "{username}x", "a+", "", "{clientId}/#/b", "$share/g/a", "a{username}/b"] {
            assert!(try_rules(&[(Effect::Allow, bad)]).is_err(), "{bad}");
        }
    }

    fn any_effect() -> impl Strategy<Value = Effect> {
        prop_oneof![Just(Effect::Allow), Just(Effect::Deny)]
    }

    fn any_username() -> impl Strategy<Value = String> {
        prop_oneof!["[ab/+#$]{0,4}", Just("$share".to_owned()), Just("a".to_owned())]
    }

    proptest! {
        #[test]
        fn a_deny_rule_never_widens(
            list in prop::collection::vec((any_effect(), any_filter()), 0..6),
            denied in any_filter(),
            at in 0..6usize,
            name in any_name(),
            asked in any_filter(),
        ) {
            let list: Vec<_> = list.into_iter().map(|(effect, filter)| (effect, filter.to_string())).collect();
            let before: Vec<_> = list.iter().map(|(effect, text)| (*effect, text.as_str())).collect();
            let text = denied.to_string();
            let mut after = before.clone();
            after.insert(at.min(after.len()), (Effect::Deny, &text));
            let (before, after) = (rules(&before), rules(&after));
            prop_assert!(publish(&before, ME, name.as_str()).is_allowed() || !publish(&after, ME, name.as_str()).is_allowed());
            prop_assert!(!denied.matches(&name) || !publish(&after, ME, name.as_str()).is_allowed());
            let passes = subscribe(&after, ME, asked.as_str()).is_allowed();
            prop_assert!(!passes || subscribe(&before, ME, asked.as_str()).is_allowed());
            prop_assert!(!passes || !asked.matches(&name) || !denied.matches(&name));
        }

        #[test]
        fn a_subscription_that_passes_covers_allowed_topics_only(
            list in prop::collection::vec((any_effect(), any_filter()), 0..6),
            name in any_name(),
            asked in any_filter(),
        ) {
            let list: Vec<_> = list.into_iter().map(|(effect, filter)| (effect, filter.to_string())).collect();
            let parts: Vec<_> = list.iter().map(|(effect, text)| (*effect, text.as_str())).collect();
            let rules = rules(&parts);
            if asked.matches(&name) && subscribe(&rules, ME, asked.as_str()).is_allowed() {
                prop_assert!(publish(&rules, ME, name.as_str()).is_allowed(), "{:?} {:?}", asked, name);
            }
        }

        #[test]
        fn a_name_reaches_only_its_own_level(username in any_username(), name in any_name(), first in any::<bool>()) {
            let template = if first { "{username}/#" } else { "a/{username}/#" };
            let rules = rules(&[(Effect::Allow, template)]);
            let who = Identity { username: &username, client_id: "c" };
            if publish(&rules, who, name.as_str()).is_allowed() {
                let level = name.levels().nth(usize::from(!first));
                prop_assert_eq!(level, Some(username.as_bytes()));
                prop_assert!(!name.is_reserved());
            }
        }

        #[test]
        fn nobody_escapes_a_deny_by_its_name(username in any_username(), name in any_name()) {
            let rules = rules(&[(Effect::Allow, "#"), (Effect::Deny, "a/{username}/#")]);
            let who = Identity { username: &username, client_id: "c" };
            let mut levels = name.levels();
            if levels.next() == Some(b"a") && levels.next() == Some(username.as_bytes()) {
                prop_assert!(!publish(&rules, who, name.as_str()).is_allowed());
            }
        }
    }
}
