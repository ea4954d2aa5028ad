//! Parses and checks `spec.networkPolicy` and `listeners[].from`, as the schema and the API server do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use covey_crds::{MqttClusterSpec, format};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::{Map, Value};

use super::Problems;

/// Maximum number of entries of each list and map.
const MOST: usize = 16;

/// From where the ports of the pods can be reached.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValidatedNetwork {
    /// Whether the cluster has a NetworkPolicy.
    pub enabled: bool,
    /// Sources by the name of the listener that they may connect to. The other listeners can be reached from anywhere.
    pub listeners: BTreeMap<String, Vec<NetworkPolicyPeer>>,
    /// Sources that may read the metrics. Absent: anyone.
    pub monitoring: Option<Vec<NetworkPolicyPeer>>,
}

pub(super) fn validate(spec: &MqttClusterSpec, problems: &mut Problems) -> ValidatedNetwork {
    let policy = &spec.network_policy;
    let restricts = policy.monitoring_from.is_some() || spec.listeners.iter().any(|listener| listener.from.is_some());
    problems.expect(
        policy.enabled || !restricts,
        "listeners[].from and networkPolicy.monitoringFrom need networkPolicy.enabled: true",
    );
    let listeners = spec.listeners.iter().filter_map(|listener| {
        let from = listener.from.as_ref()?;
        Some((listener.name.clone(), sources(&format!("listeners[{}].from", listener.name), from, problems)))
    });
    ValidatedNetwork {
        enabled: policy.enabled,
        listeners: listeners.collect(),
        monitoring: policy.monitoring_from.as_ref().map(|from| sources("networkPolicy.monitoringFrom", from, problems)),
    }
}

fn sources(field: &str, given: &[Map<String, Value>], problems: &mut Problems) -> Vec<NetworkPolicyPeer> {
    // An empty list in a NetworkPolicy admits anyone, which is not what it looks like.
    problems.expect(!given.is_empty(), &format!("{field} must not be empty: leave it out to admit anyone"));
    problems.expect(given.len() <= MOST, &format!("{field} must not have more than {MOST} entries"));
    given.iter().filter_map(|one| source(field, &Value::Object(one.clone()), problems)).collect()
}

/// Parses a source. The type leaves out fields that it does not know, so what it wrote is compared with what it read: a
/// selector without its misspelt labels would select every pod.
fn source(field: &str, given: &Value, problems: &mut Problems) -> Option<NetworkPolicyPeer> {
    let source = match serde_json::from_value::<NetworkPolicyPeer>(given.clone()) {
        Ok(source) => source,
        Err(error) => {
            problems.expect(false, &format!("{field}: a source must be a NetworkPolicyPeer: {error}"));
            return None;
        }
    };
    let known = serde_json::to_value(&source).expect("an object of the API server is JSON");
    problems.expect(
        known == *given,
        &format!("{field}: a source has a field that the NetworkPolicyPeer of Kubernetes does not have, or lacks a required one"),
    );
    let selects = source.pod_selector.is_some() || source.namespace_selector.is_some();
    problems.expect(
        selects || source.ip_block.is_some(),
        &format!("{field}: a source has podSelector, namespaceSelector, both, or ipBlock"),
    );
    problems
        .expect(!(selects && source.ip_block.is_some()), &format!("{field}: a source with ipBlock has no selector"));
    for selector in source.pod_selector.iter().chain(&source.namespace_selector) {
        check_selector(field, selector, problems);
    }
    if let Some(block) = &source.ip_block {
        check_block(field, block, problems);
    }
    Some(source)
}

fn check_selector(field: &str, selector: &LabelSelector, problems: &mut Problems) {
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    let labels = selector.match_labels.iter().flatten();
    problems.expect(
        labels.clone().count() <= MOST && expressions.len() <= MOST,
        &format!("{field}: a selector must not have more than {MOST} labels or expressions"),
    );
    let known = |key: &str, values: &[String]| {
        format::is_label_key(key) && values.len() <= MOST && values.iter().all(|value| format::is_label_value(value))
    };
    for (key, value) in labels {
        problems.expect(known(key, std::slice::from_ref(value)), &format!("{field}: {key}={value} is not a label"));
    }
    for LabelSelectorRequirement { key, operator, values } in expressions {
        let values = values.as_deref().unwrap_or_default();
        problems.expect(known(key, values), &format!("{field}: the expression about {key} does not have labels"));
        let fits = match operator.as_str() {
            "In" | "NotIn" => !values.is_empty(),
            "Exists" | "DoesNotExist" => values.is_empty(),
            _ => false,
        };
        problems.expect(
            fits,
            &format!("{field}: operators In and NotIn need values, Exists and DoesNotExist have none; no others exist"),
        );
    }
}

fn check_block(field: &str, block: &IPBlock, problems: &mut Problems) {
    let except = block.except.as_deref().unwrap_or_default();
    problems.expect(except.len() <= MOST, &format!("{field}: except must not have more than {MOST} entries"));
    let mut parse = |text: &str| {
        let parsed = Block::parse(text);
        problems.expect(
            parsed.is_some(),
            &format!(
                "{field}: {text:?} must be a block of addresses such as 10.0.0.0/8 or fd00::/8, without bits beyond the \
                 prefix"
            ),
        );
        parsed
    };
    let whole = parse(&block.cidr);
    let parts: Vec<_> = except.iter().filter_map(|part| parse(part)).collect();
    let within = whole.is_none_or(|whole| parts.iter().all(|part| whole.has_within(part)));
    problems.expect(within, &format!("{field}: except must be smaller blocks within cidr"));
}

/// A block of addresses.
#[derive(Debug, Clone, Copy)]
struct Block {
    is_v4: bool,
    /// The address in the high bits.
    bits: u128,
    /// Number of bits that all addresses have in common.
    prefix: u8,
}

impl Block {
    /// Parses the notation of RFC 4632 and RFC 4291, with the address in any form and the prefix without leading zeros.
    /// As in the API server, bits beyond the prefix are 0, and IPv4 addresses are not mapped into IPv6.
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let is_plain = prefix == "0" || prefix.starts_with(|digit: char| ('1'..='9').contains(&digit));
        let prefix = prefix.parse().ok().filter(|_| is_plain)?;
        let (is_v4, bits, most) = match address.parse().ok()? {
            IpAddr::V4(address) => (true, u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) if address.to_ipv4_mapped().is_none() => (false, address.to_bits(), 128),
            IpAddr::V6(_) => return None,
        };
        let beyond = bits.checked_shl(u32::from(prefix)).unwrap_or_default();
        (prefix <= most && beyond == 0).then_some(Self { is_v4, bits, prefix })
    }

    /// Returns whether `part` is a smaller block within this one.
    fn has_within(&self, part: &Self) -> bool {
        let differing = (self.bits ^ part.bits).leading_zeros() < u32::from(self.prefix);
        self.is_v4 == part.is_v4 && part.prefix > self.prefix && !differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_from_other_texts() {
        for good in ["10.0.0.0/8", "0.0.0.0/0", "1.2.3.4/32", "::/0", "fd00::/8", "fd00::1/128"] {
            assert!(Block::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.1.2.3/8",
            "fd00::1/64",
            "010.0.0.0/8",
            "::/129",
            "::ffff:10.0.0.0/104",
            "fe80::1%eth0/64",
            "all/8",
        ] {
            assert!(Block::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_part_is_smaller_and_within() {
        let within = |whole: &str, part: &str| Block::parse(whole).unwrap().has_within(&Block::parse(part).unwrap());
        assert!(within("10.0.0.0/8", "10.1.0.0/16") && within("0.0.0.0/0", "10.0.0.0/8") && within("::/0", "fd00::/8"));
        assert!(!within("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!within("10.0.0.0/8", "10.0.0.0/8"));
        assert!(!within("10.1.0.0/16", "10.0.0.0/8"));
        assert!(!within("::/0", "10.0.0.0/8"));
    }
}
