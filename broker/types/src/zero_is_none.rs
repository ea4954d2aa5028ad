//! For fields that store 0, or an empty text, where there is no value. The bytes are those of the number or the text;
//! in memory it is an `Option`.
//!
//! ```
//! use covey_types::NodeEpoch;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Member {
//!     #[serde(with = "covey_types::zero_is_none")]
//!     epoch: Option<NodeEpoch>,
//! }
//! ```

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes the value, or its default for `None`.
///
/// # Errors
/// Returns the error of the serializer.
pub fn serialize<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Default + Serialize,
    S: Serializer,
{
    match value {
        Some(value) => value.serialize(serializer),
        None => T::default().serialize(serializer),
    }
}

/// Reads a value; the default becomes `None`.
///
/// # Errors
/// Returns the error of the deserializer.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Default + PartialEq + Deserialize<'de>,
    D: Deserializer<'de>,
{
    let value = T::deserialize(deserializer)?;
    Ok((value != T::default()).then_some(value))
}

#[cfg(test)]
mod tests {
    use crate::OwnerEpoch;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Held(#[serde(with = "super")] Option<OwnerEpoch>);

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Named(#[serde(with = "super")] Option<Box<str>>);

    #[test]
    fn none_is_stored_as_an_empty_text() {
        for (named, bytes) in [(Named(None), &[0][..]), (Named(Some("a".into())), &[1, b'a'])] {
            assert_eq!(postcard::to_stdvec(&named).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Named>(bytes), Ok(named));
        }
    }

    #[test]
    fn none_is_stored_as_zero() {
        for (held, bytes) in [(Held(None), [0]), (Held(Some(OwnerEpoch::new(7))), [7])] {
            assert_eq!(postcard::to_stdvec(&held).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Held>(&bytes), Ok(held));
        }
    }
}
