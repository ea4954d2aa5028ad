//! For fields that store 0 where there is no value. The bytes are those of the number; in memory it is an `Option`.
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
    T: Copy + Default + Serialize,
    S: Serializer,
{
    value.unwrap_or_default().serialize(serializer)
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

    #[test]
    fn none_is_stored_as_zero() {
        for (held, bytes) in [(Held(None), [0]), (Held(Some(OwnerEpoch::new(7))), [7])] {
            assert_eq!(postcard::to_stdvec(&held).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Held>(&bytes), Ok(held));
        }
    }
}
