//! The OCI specification as kata sends it.

use std::collections::HashMap;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Spec {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    #[prost(message, optional, tag = "3")]
    pub root: Option<Root>,
    #[prost(string, tag = "4")]
    pub hostname: String,
    #[prost(message, repeated, tag = "5")]
    pub mounts: Vec<Mount>,
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Linux>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub destination: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub r#type: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(bool, tag = "1")]
    pub terminal: bool,
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub env: Vec<String>,
    #[prost(string, tag = "6")]
    pub cwd: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Root {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(bool, tag = "2")]
    pub readonly: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Linux {
    #[prost(string, tag = "5")]
    pub cgroups_path: String,
    #[prost(message, repeated, tag = "6")]
    pub namespaces: Vec<LinuxNamespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxNamespace {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub path: String,
}
