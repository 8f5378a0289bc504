//! The agent link: what runs over TCP 15150 between the worker node and the pod VM.
//!
//! ```text
//!   shim ─unix─▶ relay ═══ TLS, one connection per shim connection ═══▶ forwarder ─unix─▶ kata-agent
//!                        └ ttrpc frames from the first byte (plain mode: no ALPN)
//!   shim ─unix─▶ relay ═══ TLS, one connection for all of them ═══════▶ forwarder ─unix─▶ kata-agent
//!                        └ frames of `session` (ALPN peerpod-link/1): goes on after a break
//! ```

pub mod ahead;
pub mod call;
pub mod frame;
pub mod gate;
pub mod notice;
pub mod secret;
pub mod session;
pub mod strangers;
pub mod tls;
pub mod wire;

pub use secret::Secret;
