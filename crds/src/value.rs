//! Scalars of the resources: quantities, durations, percentages. The schema checks their format with CEL rules. The
//! parse functions here check it again, for manifests that did not pass through an API server.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A number of bytes in Kubernetes notation: `256Ki`, `64Mi`, `10Gi`, or a plain number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

/// A number of CPU cores in Kubernetes notation: `500m` or `2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Cpu(String);

/// A duration in whole seconds, such as `90s`, `10m` or `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(String);

/// A percentage such as `10%`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(String);

/// Format of a [`Quantity`], as a regular expression for CEL.
pub(crate) const QUANTITY: &str = "^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$";
/// Format of a [`Cpu`].
pub(crate) const CPU: &str = "^[0-9]+([.][0-9]+)?m?$";
/// Format of a [`Time`] that CEL's `duration` can parse.
pub(crate) const TIME: &str = "^([0-9]+[hms])+$";

/// Returns a CEL rule that requires the quantity `field` to be at least `least`. The rule holds if the field is absent
/// or malformed, which other rules report.
pub(crate) fn at_least(field: &str, least: &str) -> String {
    let value = format!("quantity(string({field}))");
    format!("!has({field}) || !string({field}).matches('{QUANTITY}') || {value}.compareTo(quantity('{least}')) >= 0")
}

/// Returns a CEL rule that requires `field` to be more than 0 cores, with the same exceptions.
pub(crate) fn some_cores(field: &str) -> String {
    let value = format!("quantity(string({field}))");
    format!("!has({field}) || !string({field}).matches('{CPU}') || {value}.compareTo(quantity('0')) > 0")
}

/// Returns a CEL rule that requires `small` times `factor` (1 or 2) not to exceed `large`, with the same exceptions.
/// `form` is [`QUANTITY`] or [`CPU`]: the API server bounds the cost of a rule, so each is tested for one form only.
pub(crate) fn fits(form: &str, small: &str, factor: u8, large: &str) -> String {
    let well_formed = |field: &str| format!("string({field}).matches('{form}')");
    let one = format!("quantity(string({small}))");
    let sum = if factor == 2 { format!("{one}.add({one})") } else { one };
    format!(
        "!has({small}) || !has({large}) || !{} || !{} || {sum}.compareTo(quantity(string({large}))) <= 0",
        well_formed(small),
        well_formed(large)
    )
}

/// Returns a CEL rule that requires the duration `field` to be from `least` to `most`, unless the field is malformed.
pub(crate) fn between(field: &str, least: &str, most: &str) -> String {
    let value = format!("duration({field})");
    format!("!{field}.matches('{TIME}') || {value} >= duration('{least}') && {value} <= duration('{most}')")
}

impl Quantity {
    /// Wraps a text without checking it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the number of bytes, or `None` if the text is not a quantity or exceeds `u64`.
    pub fn bytes(&self) -> Option<u64> {
        let split = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, suffix) = self.0.split_at_checked(split)?;
        let factor: u64 = match suffix {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(factor)
    }
}

impl Cpu {
    /// Wraps a text without checking it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the number of cores. `None` if the text is neither a number of cores nor, with the suffix `m`, of
    /// thousandths of a core.
    pub fn cores(&self) -> Option<f64> {
        let number = self.0.strip_suffix('m').unwrap_or(&self.0);
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        let value: f64 = if is_number(whole) && is_number(part) { number.parse().ok()? } else { return None };
        Some(if self.0.ends_with('m') { value / 1000.0 } else { value })
    }
}

impl Time {
    /// Wraps a text without checking it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the duration, or `None` if the text is not a duration or exceeds `u64` seconds.
    pub fn duration(&self) -> Option<Duration> {
        let mut total: u64 = 0;
        let mut number: Option<u64> = None;
        for c in self.0.chars() {
            if let Some(digit) = c.to_digit(10) {
                number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(u64::from(digit))?);
                continue;
            }
            let unit = match c {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return None,
            };
            total = total.checked_add(number.take()?.checked_mul(unit)?)?;
        }
        (number.is_none() && !self.0.is_empty()).then(|| Duration::from_secs(total))
    }
}

impl From<Duration> for Time {
    fn from(duration: Duration) -> Self {
        let seconds = duration.as_secs();
        Self(match (seconds % 3600, seconds % 60) {
            (0, _) if seconds > 0 => format!("{}h", seconds / 3600),
            (_, 0) if seconds > 0 => format!("{}m", seconds / 60),
            _ => format!("{seconds}s"),
        })
    }
}

impl Percent {
    /// Wraps a text without checking it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the percentage, 0 to 99, or `None` if the text is not one.
    pub fn value(&self) -> Option<u8> {
        let digits = self.0.strip_suffix('%').filter(|digits| digits.len() <= 2)?;
        digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    }
}

/// A quantity as YAML may spell it: a text or a bare number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(u64),
    Float(f64),
    Text(String),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer).map(|scalar| Self(scalar.text()))
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer).map(|scalar| Self(scalar.text()))
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": format!("string(self).matches('{QUANTITY}')"),
                "message": "must be a number of bytes such as 256Ki, 64Mi or 10Gi"
            }]
        })
    }
}

impl JsonSchema for Cpu {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cpu".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": format!("string(self).matches('{CPU}')"),
                "message": "must be a number of cores such as 500m or 2"
            }]
        })
    }
}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,9}s)?$') && size(self) > 0",
                "message": "must be a duration in whole seconds such as 90s, 10m or 1h30m"
            }]
        })
    }
}

impl JsonSchema for Percent {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 8,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[0-9]{1,2}%$')",
                "message": "must be a percentage from 0% to 99%"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bytes() {
        for (text, bytes) in [("256Ki", 262_144), ("10Gi", 10 << 30), ("1k", 1000), ("7", 7), ("0", 0)] {
            assert_eq!(Quantity::new(text).bytes(), Some(bytes), "{text}");
        }
        for bad in ["", "Gi", "10GiB", "-1", "1.5Gi", "99999999999999999999", "20000000Ti"] {
            assert_eq!(Quantity::new(bad).bytes(), None, "{bad}");
        }
    }

    #[test]
    fn a_bare_number_is_a_quantity() {
        assert_eq!(serde_json::from_str::<Quantity>("1024").unwrap().bytes(), Some(1024));
        assert_eq!(serde_json::from_str::<Cpu>("2").unwrap().as_str(), "2");
        assert_eq!(serde_json::from_str::<Cpu>("0.5").unwrap().as_str(), "0.5");
    }

    #[test]
    fn durations_are_whole_seconds() {
        for (text, seconds) in [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("168h", 604_800), ("0s", 0)] {
            assert_eq!(Time::new(text).duration(), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "500ms", "h", "1d", "-1s", "1.5h"] {
            assert_eq!(Time::new(bad).duration(), None, "{bad}");
        }
        assert_eq!(Time::from(Duration::from_hours(168)).as_str(), "168h");
        assert_eq!(Time::from(Duration::from_secs(90)).as_str(), "90s");
        assert_eq!(Time::from(Duration::from_mins(10)).as_str(), "10m");
    }

    #[test]
    fn percentages_have_two_digits() {
        assert_eq!(Percent::new("10%").value(), Some(10));
        for bad in ["", "%", "100%", "10", "+1%", "a%"] {
            assert_eq!(Percent::new(bad).value(), None, "{bad}");
        }
    }

    #[test]
    fn cores_are_numbers() {
        for (good, cores) in [("500m", 0.5), ("2", 2.0), ("0.5", 0.5), ("0", 0.0)] {
            assert_eq!(Cpu::new(good).cores(), Some(cores), "{good}");
        }
        for bad in ["", "m", "two", "1.", "NaN", "inf"] {
            assert_eq!(Cpu::new(bad).cores(), None, "{bad}");
        }
    }
}
