//! Paths, ports and limits both sides agree on; all are upstream's.

/// TCP port of the forwarder.
pub const FORWARDER_PORT: u16 = 15150;
/// Directory of all files that travel in user data.
pub const RUN_DIR: &str = "/run/peerpod";
/// The forwarder's own configuration.
pub const APF: &str = "/run/peerpod/apf.json";
/// Registry credentials.
pub const AUTH: &str = "/run/peerpod/auth.json";
/// base64 of gzip of the initdata TOML.
pub const INITDATA: &str = "/run/peerpod/initdata";
/// Asks for an encrypted scratch disk.
pub const SCRATCH_MARKER: &str = "/run/peerpod/scratch-space.marker";
/// Everything a worker may send; anything else is skipped and counted.
pub const ALLOWED: [&str; 6] =
    ["/run/peerpod/aa.toml", "/run/peerpod/cdh.toml", APF, AUTH, INITDATA, SCRATCH_MARKER];
/// What may come over the agent link where it has no room in the user data.
pub const TO_FOLLOW: [&str; 2] = [AUTH, INITDATA];
/// Where a NoCloud disk is mounted, and where the user data lie on it.
pub const USER_DATA: &str = "/media/cidata/user-data";
/// The pod's network namespace in the VM.
pub const PODNS: &str = "/run/netns/podns";
/// Where kata-agent listens.
pub const AGENT_SOCKET: &str = "/run/kata-containers/agent.sock";
/// Where the confidential data hub listens.
pub const CDH_SOCKET: &str = "/run/confidential-containers/cdh.sock";
/// Where the pod's volumes are mounted.
pub const VOLUMES: &str = "/run/cloud-volumes";
/// Largest auth.json that is sent, in bytes.
pub const AUTH_LIMIT: usize = 12_288;
/// Largest user data that are read at all, in bytes (Azure's 64 KiB of base64 is the largest a
/// cloud gives; GCP's 256 KiB is the largest of all).
pub const USER_DATA_LIMIT: usize = 256 << 10;
