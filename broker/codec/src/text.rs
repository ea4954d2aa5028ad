//! The string type of MQTT: validated UTF-8 that shares the buffer it was read from.
//!
//! Every text field of every packet is an [`MqttStr`]. Invariant: the bytes are well-formed UTF-8 without U+0000 and at
//! most 65,535 bytes long ([MQTT-1.5.4-1], [MQTT-1.5.4-2]). A byte order mark is kept as data ([MQTT-1.5.4-3]).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use bytes::Bytes;

/// Reason why bytes are no MQTT string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The bytes are not well-formed UTF-8, or encode a surrogate.
    #[error("text is not well-formed utf-8 [MQTT-1.5.4-1]")]
    NotUtf8,
    /// The text contains U+0000.
    #[error("text contains the null character [MQTT-1.5.4-2]")]
    Null,
    /// The text exceeds the 65,535 bytes that its two-byte length allows.
    #[error("text is longer than 65535 bytes (1.5.4)")]
    TooLong,
}

/// A UTF-8 encoded string (MQTT 5, 1.5.4). Cloning shares the bytes.
///
/// Decoded text keeps the whole read buffer alive. Text that outlives its packet, such as a client id or a stored
/// topic, should be [`MqttStr::detached`].
#[derive(Clone, Default)]
pub struct MqttStr(Bytes);

impl MqttStr {
    /// Longest text in bytes.
    pub const MAX_LEN: usize = u16::MAX as usize;

    /// Checks the bytes and takes them without a copy.
    ///
    /// # Errors
    /// Fails if the bytes are not well-formed UTF-8, contain U+0000 or are longer than [`MqttStr::MAX_LEN`].
    pub fn from_utf8(bytes: Bytes) -> Result<Self, TextError> {
        let text = std::str::from_utf8(&bytes).map_err(|_| TextError::NotUtf8)?;
        check(text)?;
        Ok(Self(bytes))
    }

    /// Checks the text and copies it.
    ///
    /// # Errors
    /// Fails if the text contains U+0000 or is longer than [`MqttStr::MAX_LEN`].
    pub fn new(text: &str) -> Result<Self, TextError> {
        check(text)?;
        Ok(Self(Bytes::copy_from_slice(text.as_bytes())))
    }

    /// Returns the text. Validates the bytes again; [`MqttStr::as_bytes`] costs nothing.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns the bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a copy with its own allocation, which keeps no read buffer alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// Returns the shared bytes.
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

// `Borrow<str>` requires the hash of `str`.
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
