//! `grpc.AgentService` and `grpc.Health`.

use bytes::Bytes;

use super::oci;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Storage {
    #[prost(string, tag = "1")]
    pub driver: String,
    #[prost(string, repeated, tag = "2")]
    pub driver_options: Vec<String>,
    #[prost(string, tag = "3")]
    pub source: String,
    #[prost(string, tag = "4")]
    pub fstype: String,
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
    #[prost(string, tag = "6")]
    pub mount_point: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub hostname: String,
    #[prost(string, repeated, tag = "2")]
    pub dns: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub storages: Vec<Storage>,
    #[prost(bool, tag = "4")]
    pub sandbox_pidns: bool,
    #[prost(string, tag = "5")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(message, repeated, tag = "5")]
    pub storages: Vec<Storage>,
    #[prost(message, optional, tag = "6")]
    pub oci: Option<oci::Spec>,
    #[prost(bool, tag = "7")]
    pub sandbox_pidns: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(message, optional, tag = "4")]
    pub process: Option<oci::Process>,
}

/// StartContainer, StatsContainer, PauseContainer, ResumeContainer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub timeout: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub signal: u32,
}

/// WaitProcess, CloseStdin, TtyWinResize (its size is not looked at).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitProcessResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteStreamResponse {
    #[prost(uint32, tag = "1")]
    pub len: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub exec_id: String,
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadStreamResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentDetails {
    #[prost(string, tag = "1")]
    pub version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsResponse {
    #[prost(uint64, tag = "1")]
    pub mem_block_size_bytes: u64,
    #[prost(message, optional, tag = "2")]
    pub agent_details: Option<AgentDetails>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct OomEvent {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CopyFileRequest {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int64, tag = "2")]
    pub file_size: i64,
    #[prost(uint32, tag = "3")]
    pub file_mode: u32,
    #[prost(uint32, tag = "4")]
    pub dir_mode: u32,
    #[prost(int64, tag = "7")]
    pub offset: i64,
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
}

/// SetPolicy's request and GetMetrics' answer: one string.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionCheckResponse {
    #[prost(string, tag = "1")]
    pub grpc_version: String,
    #[prost(string, tag = "2")]
    pub agent_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsContainerResponse {
    #[prost(message, optional, tag = "1")]
    pub cgroup_stats: Option<Empty>,
    #[prost(message, repeated, tag = "2")]
    pub network_stats: Vec<NetworkStats>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkStats {
    #[prost(string, tag = "1")]
    pub name: String,
}
