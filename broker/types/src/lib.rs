//! Ids and counters of the broker, each a type of its own, so that the compiler refuses to take one for another.
//!
//! A value is made with `new` and read with `get` where it comes from or goes to something that knows only numbers:
//! protobuf, the keys of rows, packet ids. Everything between passes the type on. Counters have named methods in place
//! of arithmetic. In postcard each is its number and nothing more.
//!
//! This crate is below all others of the broker: it knows no group, no log and no protocol.

mod group;
mod node;
mod session;
pub mod zero_is_none;

pub use group::{GroupId, ShardId};
pub use node::{NodeEpoch, NodeId, Ordinal, ParseNodeIdError};
pub use session::{ConnectionId, InboxSeq, OwnerEpoch};

/// Defines an id: a number that is copied, compared and stored, without arithmetic.
macro_rules! id {
    ($(#[$attribute:meta])* $name:ident($number:ty)) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name($number);

        impl $name {
            /// Returns the id with that number.
            pub const fn new(number: $number) -> Self {
                Self(number)
            }

            /// Returns the number.
            pub const fn get(self) -> $number {
                self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

/// Shows an id as its decimal number.
macro_rules! decimal {
    ($($name:ident),+) => {
        $(impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        })+
    };
}

pub(crate) use {decimal, id};
