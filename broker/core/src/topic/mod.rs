//! Topic names, topic filters, and two indexes: filters that match a name, and names that a filter matches.
//!
//! Used for sessions, routes, retained messages and access rules. Invariant: a [`Name`] or [`Filter`] is well formed
//! (MQTT 5, section 4.7), so callers need not check it again. A client may send up to 65,535 levels, therefore nothing
//! here recurses over levels.
//!
//! ```text
//! Tree<K, V>   filters -> values,  queried with a name      (subscriptions that a message matches)
//! Names<V>     names -> value,     queried with a filter    (retained messages that a subscription matches)
//! ```

#[cfg(test)]
pub(crate) mod any;
mod filter;
mod names;
mod tree;

use std::fmt;
use std::str::FromStr;

use covey_codec::topic::{check_filter, check_name, split_shared};
use covey_codec::{MqttStr, TextError};
use serde::{Deserialize, Serialize};

pub use covey_codec::topic::Error as SyntaxError;

pub use self::filter::Filter;
pub use self::names::Names;
pub use self::tree::Tree;

/// Reason why a text is not a name, filter or subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text breaks the syntax of section 4.7.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// The text is a shared subscription where a plain filter is required; parse it as [`Subscription`].
    #[error("filter is a shared subscription")]
    Shared,
}

/// A topic name: the topic of a PUBLISH.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(MqttStr);

impl Name {
    /// Checks and wraps a text. The bytes are shared, not copied.
    ///
    /// # Errors
    /// Returns [`Error`] for a text that is not a topic name.
    pub fn new(text: MqttStr) -> Result<Self, Error> {
        check_name(&text)?;
        Ok(Self(text))
    }

    /// Returns the name as text. Takes one pass over the bytes.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Levels of the name: at least one; a level may be empty.
    pub fn levels(&self) -> impl Iterator<Item = &[u8]> {
        levels(self.as_bytes())
    }

    /// Returns whether the name begins with `$`, so that filters that begin with a wildcard do not match it
    /// ([MQTT-4.7.2-1]).
    pub fn is_reserved(&self) -> bool {
        self.as_bytes().first() == Some(&b'$')
    }

    /// Returns the shared text.
    pub fn into_inner(self) -> MqttStr {
        self.0
    }
}

/// A filter of a SUBSCRIBE, possibly shared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subscription {
    /// Share name of `$share/<name>/<filter>` (section 4.8.2); `None` for a subscription that is not shared.
    pub share: Option<String>,
    /// Filter that is matched.
    pub filter: Filter,
}

impl Subscription {
    /// Parses a filter of SUBSCRIBE or UNSUBSCRIBE.
    ///
    /// # Errors
    /// Returns [`Error`] for a text that is neither a filter nor a shared subscription.
    pub fn new(text: &MqttStr) -> Result<Self, Error> {
        check_filter(text)?;
        match split_shared(text) {
            Some((share, filter)) => Ok(Self { share: Some(share.to_owned()), filter: filter.parse()? }),
            None => Ok(Self { share: None, filter: Filter::new(text.clone())? }),
        }
    }
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.share {
            Some(share) => write!(f, "$share/{share}/{}", self.filter),
            None => self.filter.fmt(f),
        }
    }
}

/// Conversions that both newtypes over text have.
macro_rules! text {
    ($type:ident) => {
        impl TryFrom<MqttStr> for $type {
            type Error = Error;

            fn try_from(text: MqttStr) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let text = MqttStr::new(text).map_err(|error| match error {
                    TextError::TooLong => SyntaxError::TooLong,
                    TextError::Null | TextError::NotUtf8 => SyntaxError::Null,
                })?;
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(topic: $type) -> Self {
                topic.as_str().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

text!(Name);
text!(Filter);

/// Levels of a topic.
fn levels(topic: &[u8]) -> impl Iterator<Item = &[u8]> {
    topic.split(|byte| *byte == b'/')
}

/// Splits a topic into its first level and the text after the slash; `None` if there is no slash.
fn split_level(topic: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = topic.splitn(2, |byte| *byte == b'/');
    (parts.next().unwrap_or_default(), parts.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_filters_are_taken_apart_and_put_together() {
        let text = MqttStr::new("$share/workers/jobs/+/#").unwrap();
        let subscription = Subscription::new(&text).unwrap();
        assert_eq!(subscription.share.as_deref(), Some("workers"));
        assert_eq!(subscription.filter, "jobs/+/#".parse().unwrap());
        assert_eq!(subscription.to_string(), "$share/workers/jobs/+/#");
        for bad in ["$share/", "$share/g", "$share/g/", "$share//a", "$share/g+/a"] {
            assert!(Subscription::new(&MqttStr::new(bad).unwrap()).is_err(), "{bad}");
        }
        assert_eq!("$share/g/a".parse::<Filter>(), Err(Error::Shared));
    }

    #[test]
    fn names_have_no_wildcards_and_something_in_them() {
        for bad in ["", "a/+", "#", "a\0b"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["/", "a//b", "$SYS/x", "部门/消息", " "] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }
}
