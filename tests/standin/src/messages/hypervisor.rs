//! `hypervisor.Hypervisor`.

use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(map = "string, string", tag = "2")]
    pub annotations: HashMap<String, String>,
    #[prost(string, tag = "3")]
    pub network_namespace_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmResponse {
    #[prost(string, tag = "1")]
    pub agent_socket_path: String,
}

/// StartVM and StopVM.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}
