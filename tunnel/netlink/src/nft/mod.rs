//! nftables by netlink: one atomic batch makes or unmakes everything, so that no packet ever meets
//! half a filter.
//!
//! ```text
//!   Batch::new() .table(…) .chain(…) .set(…) .rule(…)  ──send──▶ all of it, or an error and nothing
//! ```

pub(crate) mod attribute;
mod batch;
pub(crate) mod dump;
pub mod expression;
mod watch;
pub(crate) mod whole;

pub use batch::{Batch, Chain, Committed, Family, Hook, Set, Table};
pub use dump::{Counter, Nft};
pub use watch::Watch;
pub use whole::{Found, Whole};
