//! Encoding of the frames between nodes: postcard in gRPC messages. Each protocol has its frames in its own module
//! `wire`.

use covey_contract::proto::Frame;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encodes a value into a frame.
pub(crate) fn encode<T: Serialize>(value: &T) -> Frame {
    Frame { data: covey_core::encode(value).into() }
}

/// Decodes a frame.
///
/// # Errors
/// Returns `INVALID_ARGUMENT` for a frame that cannot be decoded; it ends the stream.
pub(crate) fn decode<T: DeserializeOwned>(frame: &Frame) -> Result<T, tonic::Status> {
    postcard::from_bytes(&frame.data).map_err(|_| tonic::Status::invalid_argument("unreadable frame"))
}
