//! The access rule that `MqttUser` and the anonymous rules of `MqttCluster` share.

use covey_contract::access;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Action that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    Publish,
    Subscribe,
}

/// Allows or denies actions on topics. Rules have no order: a deny wins over any allow, and what no rule allows is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = json!([
    {"rule": "has(self.allow) != has(self.deny)",
     "message": "a rule has either allow or deny, with a list of Publish and Subscribe"},
    {"rule": "!(has(self.allow) && self.allow.exists(a, a == 'Publish') || has(self.deny) && self.deny.exists(a, a == 'Publish')) || !self.topics.exists(t, t == '$share' || t.startsWith('$share/'))",
     "message": "clients cannot publish to $share: name the topic itself, without $share/<name>/"},
    {"rule": "has(self.allow) && self.allow.exists(a, a == 'Publish') || has(self.deny) && self.deny.exists(a, a == 'Publish') || !self.topics.exists(t, t == '$share' || t.startsWith('$share/'))",
     "message": "a shared subscription is checked against its filter: leave out $share/<name>/"},
    {"rule": "!has(self.retain) || has(self.allow) && self.allow.exists(a, a == 'Publish') || has(self.deny) && self.deny.exists(a, a == 'Publish')",
     "message": "retain applies to published messages: it needs Publish among the actions"},
])))]
pub struct AclRule {
    /// Actions that this rule allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub allow: Option<Vec<Action>>,
    /// Actions that this rule denies. A deny wins over every allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub deny: Option<Vec<Action>>,
    /// Topic filters, 1 to 32. `+` matches one level, a final `#` all further levels. `{username}` and `{clientId}` stand for one whole level.
    #[schemars(length(min = 1, max = 32), schema_with = "topics")]
    pub topics: Vec<String>,
    /// Highest QoS that the rule applies to, 0 to 2. Absent: every QoS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2))]
    pub max_qos: Option<u8>,
    /// Retain flag of the messages that the rule applies to. Absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
}

fn topics(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 32,
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 512,
            "x-kubernetes-validations": [
                {"rule": "!self.contains('\\u0000')", "message": "a topic cannot contain NUL"},
                {"rule": "!self.matches('[^/]#|#[^/]|#/')",
                 "message": "# must be the last level and stand alone: write plant/#, not plant/#/x or plant#"},
                {"rule": "!self.matches('[^/][+]|[+][^/]')",
                 "message": "+ must stand alone in its level: write plant/+/state, not plant/line+/state"},
                {"rule": "!self.matches('[^/][{]username[}]|[{]username[}][^/]')",
                 "message": "{username} must stand alone in its level: write user/{username}/in, not user/x{username}/in"},
                {"rule": "!self.matches('[^/][{]clientId[}]|[{]clientId[}][^/]')",
                 "message": "{clientId} must stand alone in its level: write client/{clientId}/in, not client/x{clientId}/in"}
            ]
        }
    })
}

impl AclRule {
    /// Converts the rule for the access document. `has_pattern` is whether the user has a client id pattern.
    ///
    /// # Errors
    /// A sentence for the author of the rule if it has neither or both of `allow` and `deny`, or cannot be enforced.
    pub fn to_access(&self, has_pattern: bool) -> Result<access::Rule, String> {
        let (effect, actions) = match (&self.allow, &self.deny) {
            (Some(actions), None) => (access::Effect::Allow, actions),
            (None, Some(actions)) => (access::Effect::Deny, actions),
            _ => return Err("a rule has either allow or deny, with a list of Publish and Subscribe".into()),
        };
        let actions = actions.iter().map(|action| match action {
            Action::Publish => access::Action::Publish,
            Action::Subscribe => access::Action::Subscribe,
        });
        let rule = access::Rule {
            effect,
            actions: actions.collect(),
            topics: self.topics.clone(),
            max_qos: self.max_qos,
            retain: self.retain,
        };
        rule.check(has_pattern)?;
        Ok(rule)
    }
}
