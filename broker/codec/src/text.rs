//! The string of MQTT: validated UTF-8 that shares the buffer it was read from.
//!
//! Every text field of every packet is an [`MqttStr`]. Invariant: the bytes are well-formed UTF-8 without U+0000 and at
//! most 65,535 bytes long ([MQTT-1.5.4-1], [MQTT-1.5.4-2]); a byte order mark is data and stays ([MQTT-1.5.4-3]).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use bytes::Bytes;

/// Why bytes are not an MQTT string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The bytes are not well-formed UTF-8, or encode a surrogate.
    #[error("text is not well-formed utf-8 [MQTT-1.5.4-1]")]
    NotUtf8,
    /// The text contains U+0000.
    #[error("text contains the null character [MQTT-1.5.4-2]")]
    Null,
    /// The text needs more bytes than its two-byte length can say.
    #[error("text is longer than 65535 bytes (1.5.4)")]
    TooLong,
}

/// A UTF-8 encoded string as MQTT 1.5.4 defines it; cloning shares the bytes.
///
/// Text that was decoded keeps the whole read buffer alive; what outlives its packet (a client id, a stored topic) is
/// better kept as [`MqttStr::detached`].
#[derive(Clone, Default)]
pub struct MqttStr(Bytes);

impl MqttStr {
    /// The longest text in bytes.
    pub const MAX_LEN: usize = u16::MAX as usize;

    /// Checks the bytes and takes them as they are.
    pub fn from_utf8(bytes: Bytes) -> Result<Self, TextError> {
        let text = std::str::from_utf8(&bytes).map_err(|_| TextError::NotUtf8)?;
        check(text)?;
        Ok(Self(bytes))
    }

    /// Copies a text that was checked to be short enough and free of U+0000.
    pub fn new(text: &str) -> Result<Self, TextError> {
        check(text)?;
        Ok(Self(Bytes::copy_from_slice(text.as_bytes())))
    }

    /// The text as `str`. Costs one pass over the bytes: where bytes do, [`MqttStr::as_bytes`] is free.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The text's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the text has no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A copy that owns exactly its own bytes and keeps no read buffer alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// The shared bytes themselves.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

fn check(text: &str) -> Result<(), TextError> {
    if text.len() > MqttStr::MAX_LEN {
        return Err(TextError::TooLong);
    }
    if text.as_bytes().contains(&0) {
        return Err(TextError::Null);
    }
    Ok(())
}

impl Deref for MqttStr {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for MqttStr {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for MqttStr {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl TryFrom<&str> for MqttStr {
    type Error = TextError;

    fn try_from(text: &str) -> Result<Self, TextError> {
        Self::new(text)
    }
}

impl TryFrom<String> for MqttStr {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        check(&text)?;
        Ok(Self(Bytes::from(text)))
    }
}

impl TryFrom<Bytes> for MqttStr {
    type Error = TextError;

    fn try_from(bytes: Bytes) -> Result<Self, TextError> {
        Self::from_utf8(bytes)
    }
}

impl PartialEq for MqttStr {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for MqttStr {}

impl PartialEq<str> for MqttStr {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for MqttStr {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialOrd for MqttStr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MqttStr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

// As `str` hashes, which `Borrow<str>` demands.
impl Hash for MqttStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for MqttStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for MqttStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
