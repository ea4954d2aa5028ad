//! Messages of commands and reads that are forwarded to the leader.

use bytes::Bytes;
use covey_contract::proto;
use covey_types::NodeId;
use tonic::Status;

use super::super::types::{ProposeError, ReadError, Response};

/// Values of `error` in a reply; empty for success.
const NOT_LEADER: &str = "not-leader";
const UNKNOWN: &str = "unknown";
const NO_QUORUM: &str = "no-quorum";
const STOPPED: &str = "stopped";

/// Encodes the result of a command.
pub(in super::super) fn propose_reply(result: Result<Response, ProposeError>) -> proto::ProposeReply {
    let failed = |error: &str, leader: Option<NodeId>| proto::ProposeReply {
        response: Bytes::new(),
        index: 0,
        error: error.to_owned(),
        leader: leader.map(NodeId::get),
    };
    match result {
        Ok(Response { index, bytes }) => {
            proto::ProposeReply { response: bytes, index, error: String::new(), leader: None }
        }
        Err(ProposeError::NotLeader(leader)) => failed(NOT_LEADER, leader),
        Err(ProposeError::Unknown) => failed(UNKNOWN, None),
        Err(ProposeError::Stopped) => failed(STOPPED, None),
    }
}

/// Decodes the result of a command. If the call itself failed, the fate of the command is unknown.
pub(in super::super) fn read_propose(reply: Result<proto::ProposeReply, Status>) -> Result<Response, ProposeError> {
    let Ok(reply) = reply else { return Err(ProposeError::Unknown) };
    match reply.error.as_str() {
        "" => Ok(Response { index: reply.index, bytes: reply.response }),
        NOT_LEADER | STOPPED => Err(ProposeError::NotLeader(reply.leader.map(NodeId::new))),
        _ => Err(ProposeError::Unknown),
    }
}

/// Encodes a read index.
pub(in super::super) fn read_index_reply(result: &Result<u64, ReadError>) -> proto::ReadIndexReply {
    let failed = |error: &str, leader: Option<NodeId>| proto::ReadIndexReply {
        index: 0,
        error: error.to_owned(),
        leader: leader.map(NodeId::get),
    };
    match *result {
        Ok(index) => proto::ReadIndexReply { index, error: String::new(), leader: None },
        Err(ReadError::NotLeader(leader)) => failed(NOT_LEADER, leader),
        Err(ReadError::NoQuorum) => failed(NO_QUORUM, None),
        Err(ReadError::Stopped) => failed(STOPPED, None),
    }
}

/// Decodes a read index.
pub(in super::super) fn read_read_index(reply: Result<proto::ReadIndexReply, Status>) -> Result<u64, ReadError> {
    let Ok(reply) = reply else { return Err(ReadError::NoQuorum) };
    match reply.error.as_str() {
        "" => Ok(reply.index),
        NOT_LEADER | STOPPED => Err(ReadError::NotLeader(reply.leader.map(NodeId::new))),
        _ => Err(ReadError::NoQuorum),
    }
}
