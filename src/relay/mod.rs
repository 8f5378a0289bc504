//! The data process: it holds the connections that kata shims open once and never again.

pub mod api;

pub use api::{Control, ControlError, Event, Held, Totals};
