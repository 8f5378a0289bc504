//! The kernel's network objects by netlink alone: namespaces, links, addresses, routes, neighbours
//! and nftables. One short method per kernel operation, blocking (each takes well under a
//! millisecond, a deletion some 10 to 40), on a socket that stays in the namespace it was made in.
//! No program is executed. [`privilege`] is the kernel's other side: what it lets this process do.

pub mod address;
#[cfg(test)]
mod byte_order;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod link;
pub mod neighbour;
pub mod netns;
pub mod nft;
pub mod privilege;
pub mod route;
mod socket;

pub use error::Error;
pub use link::{InfoKind, Link, Mac, NewLink, Vxlan};
pub use neighbour::{Neighbour, NeighbourState};
pub use netns::Netns;
pub use route::{Protocol, Route, Scope};
pub use socket::Handle;
