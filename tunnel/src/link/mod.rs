//! The agent link: what runs over TCP 15150 between the worker node and the pod VM.
//!
//! ```text
//!   shim ─unix─▶ relay ═══ TLS, one connection per shim connection ═══▶ forwarder ─unix─▶ kata-agent
//!                        └ ttrpc frames from the first byte (raw mode: no ALPN)
//! ```

pub mod call;
pub mod frame;
pub mod gate;
pub mod secret;
pub mod tls;
pub mod wire;

pub use secret::Secret;
