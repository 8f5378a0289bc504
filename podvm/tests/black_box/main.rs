//! The real binary, from outside: certificates of the shapes that travel, a byte-level stand-in for the
//! agent, metadata services on the loopback, network namespaces.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "tests start our own binary and may fail loudly"
)]

mod bounds;
mod calls;
mod certs;
mod follow;
mod hostile;
mod interruption;
mod lab;
mod network;
mod session;
mod standin;
mod userdata;
mod volumes;
