//! Ids of nodes: the disk, the place, and the period in which a node may serve.

use std::fmt;
use std::str::FromStr;

use crate::{decimal, id};

id! {
    /// A disk that takes part in a cluster.
    ///
    /// A random number that a node draws when it makes its data directory, and that stays with the directory. A node
    /// that returns with an empty disk has another id, and is another member. In texts it has 16 hexadecimal digits.
    NodeId(u64)
}

id! {
    /// The number at the end of a pod's name, from 0.
    ///
    /// It is a place: addresses and the order of voters follow from it. It stays when the disk, and with it the
    /// [`NodeId`], is replaced.
    Ordinal(u32)
}

id! {
    /// The period in which a node serves without having been away.
    ///
    /// The meta group counts epochs over all nodes, from 1. A node asks for one when it starts, and again when it has
    /// lost its epoch because its lease could not be renewed. The node's sequence numbers begin at 1 with each.
    NodeEpoch(u64)
}

decimal!(Ordinal, NodeEpoch);

impl NodeEpoch {
    /// The first epoch of a cluster.
    pub const FIRST: Self = Self(1);

    /// Returns the epoch that the meta group gives out after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text is no node id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseNodeIdError;

impl fmt::Display for ParseNodeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node id is a number of up to 16 hexadecimal digits")
    }
}

impl std::error::Error for ParseNodeIdError {}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    /// Parses hexadecimal digits; leading zeros may be missing.
    fn from_str(text: &str) -> Result<Self, ParseNodeIdError> {
        u64::from_str_radix(text, 16).map(Self).map_err(|_| ParseNodeIdError)
    }
}

impl FromStr for Ordinal {
    type Err = std::num::ParseIntError;

    /// Parses a decimal number.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_has_sixteen_digits_and_is_read_back() {
        let id = NodeId::new(0xab_cdef);
        assert_eq!(id.to_string(), "0000000000abcdef");
        assert_eq!(format!("{id:?}"), "NodeId(0000000000abcdef)");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("abcdef".parse(), Ok(id));
        for wrong in ["", "n0", "1_0", "10000000000000000"] {
            assert_eq!(wrong.parse::<NodeId>(), Err(ParseNodeIdError), "{wrong}");
        }
    }

    #[test]
    fn an_id_is_stored_as_its_number() {
        let bytes = postcard::to_stdvec(&(NodeId::new(300), Ordinal::new(301), NodeEpoch::new(302))).unwrap();
        assert_eq!(bytes, postcard::to_stdvec(&(300_u64, 301_u32, 302_u64)).unwrap());
    }
}
