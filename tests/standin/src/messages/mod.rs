//! The messages of kata's protocols, only the fields that somebody here reads or writes. Names and
//! numbers are Kata 4.1.0's; an agent keeps the raw bytes beside them, so nothing is lost.
#![allow(missing_docs, reason = "the names are the protocol's own")]

pub mod agent;
pub mod hypervisor;
pub mod oci;

/// ttrpc service of the agent.
pub const AGENT: &str = "grpc.AgentService";
/// ttrpc service of the agent's health.
pub const HEALTH: &str = "grpc.Health";
/// ttrpc service of the daemon.
pub const HYPERVISOR: &str = "hypervisor.Hypervisor";
/// ttrpc service by which tests steer the stand-in agent.
pub const CONTROL: &str = "standin.Control";

/// google.rpc codes, as far as they are used here.
pub mod code {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const NOT_FOUND: i32 = 5;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const INTERNAL: i32 = 13;
}
