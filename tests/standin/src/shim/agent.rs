//! The shim's calls to the agent, many at once over one connection.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::rpc::{CallError, Connection};
use super::{Container, Exec, PodSpec, Profile, ShimError};
use crate::agent::{Dump, Rule};
use crate::messages::agent::{
    ContainerRequest, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, Empty,
    ExecProcessRequest, GuestDetailsResponse, HealthCheckResponse, OomEvent, ProcessRequest,
    RemoveContainerRequest, SignalProcessRequest, Storage, Text, VersionCheckResponse,
    WaitProcessResponse,
};
use crate::messages::{AGENT, CONTROL, HEALTH, oci};

/// Bytes of one CopyFile call, as the shims send them.
const COPY_CHUNK: usize = 1 << 20;

/// The agent as one shim sees it.
#[derive(Clone, Debug)]
pub struct AgentClient {
    profile: Profile,
    rpc: Arc<Connection>,
}

type Result<T> = std::result::Result<T, CallError>;

impl AgentClient {
    /// Connects to the path that CreateVM gave. Nothing is sent.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(profile: Profile, path: &Path) -> std::result::Result<Self, ShimError> {
        let failed = |source| ShimError::Connect { path: path.to_owned(), source };
        let rpc = Connection::connect(path).await.map_err(failed)?;
        Ok(Self { profile, rpc })
    }

    /// Speaks over a connection that is there.
    pub fn over(profile: Profile, rpc: Arc<Connection>) -> Self {
        Self { profile, rpc }
    }

    /// The connection itself.
    pub fn rpc(&self) -> &Arc<Connection> {
        &self.rpc
    }

    /// Any AgentService call, with the shim's deadline.
    ///
    /// # Errors
    /// By [`CallError`], as all calls here.
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A> {
        self.rpc.call((AGENT, method), request, self.profile.agent_deadline(method)).await
    }

    async fn run<Q: Message>(&self, method: &str, request: &Q) -> Result<()> {
        self.call::<Q, Empty>(method, request).await.map(drop)
    }

    /// Health/Check: whether it says SERVING.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn check(&self) -> Result<bool> {
        let limit = self.profile.agent_deadline("Check");
        let answer: HealthCheckResponse =
            self.rpc.call((HEALTH, "Check"), &Empty {}, limit).await?;
        Ok(answer.status == 1)
    }

    /// Health/Version.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn version(&self) -> Result<VersionCheckResponse> {
        let limit = self.profile.agent_deadline("Version");
        self.rpc.call((HEALTH, "Version"), &Empty {}, limit).await
    }

    /// CreateSandbox, with DNS lines as a shim takes them from the pod.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn create_sandbox(&self, pod: &PodSpec) -> Result<()> {
        let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"];
        let shm = Storage {
            driver: "ephemeral".to_owned(),
            source: "shm".to_owned(),
            fstype: "tmpfs".to_owned(),
            options: options.map(str::to_owned).to_vec(),
            mount_point: "/run/kata-containers/sandbox/shm".to_owned(),
            ..Storage::default()
        };
        let request = CreateSandboxRequest {
            hostname: pod.name.clone(),
            dns: pod.dns.clone(),
            storages: vec![shm],
            sandbox_pidns: false,
            sandbox_id: pod.sandbox.clone(),
        };
        self.run("CreateSandbox", &request).await
    }

    /// DestroySandbox.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn destroy_sandbox(&self) -> Result<()> {
        self.run("DestroySandbox", &Empty {}).await
    }

    /// GetGuestDetails.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn guest_details(&self) -> Result<GuestDetailsResponse> {
        self.call("GetGuestDetails", &Empty {}).await
    }

    /// GetOOMEvent: the container's id.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn oom_event(&self) -> Result<String> {
        let event: OomEvent = self.call("GetOOMEvent", &Empty {}).await?;
        Ok(event.container_id)
    }

    /// SetPolicy.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn set_policy(&self, policy: &str) -> Result<()> {
        self.run("SetPolicy", &Text { text: policy.to_owned() }).await
    }

    /// CopyFile, in chunks.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn copy_file(&self, path: &str, content: &[u8]) -> Result<()> {
        let empty: &[&[u8]] = &[&[]];
        let chunks: Vec<&[u8]> = content.chunks(COPY_CHUNK).collect();
        let chunks = if chunks.is_empty() { empty } else { &chunks };
        let mut offset = 0;
        for chunk in chunks {
            let request = CopyFileRequest {
                path: path.to_owned(),
                file_size: i64::try_from(content.len()).unwrap_or(i64::MAX),
                file_mode: 0o100_644,
                dir_mode: 0o755,
                offset,
                data: Bytes::copy_from_slice(chunk),
            };
            self.run("CopyFile", &request).await?;
            offset += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        }
        Ok(())
    }

    /// CreateContainer. The shim has taken the network entry and all paths out of the namespaces.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn create_container(&self, pod: &PodSpec, container: &Container) -> Result<()> {
        let request = CreateContainerRequest {
            container_id: container.id.clone(),
            exec_id: container.id.clone(),
            storages: vec![container.guest_pull()],
            oci: Some(container.oci(pod)),
            sandbox_pidns: false,
        };
        self.run("CreateContainer", &request).await
    }

    /// StartContainer.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.run("StartContainer", &ContainerRequest { container_id: id.to_owned() }).await
    }

    /// RemoveContainer; 0 seconds is no limit.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn remove_container(&self, id: &str, seconds: u32) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.run("RemoveContainer", &request).await
    }

    /// ExecProcess: `args` run in the container.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn exec(&self, container: &str, exec: &str, args: &[&str]) -> Result<Exec> {
        let process = oci::Process {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            cwd: "/".to_owned(),
            ..oci::Process::default()
        };
        let request = ExecProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process: Some(process),
        };
        self.run("ExecProcess", &request).await?;
        Ok(self.process(container, exec))
    }

    /// A process that runs already; an empty `exec` is the container's first.
    pub fn process(&self, container: &str, exec: &str) -> Exec {
        Exec::new(self.clone(), container, exec)
    }

    /// SignalProcess; an empty `exec` and signal 9 mean all of the container.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            signal,
        };
        self.run("SignalProcess", &request).await
    }

    /// WaitProcess: the exit status.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn wait(&self, container: &str, exec: &str) -> Result<i32> {
        let request =
            ProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned() };
        let answer: WaitProcessResponse = self.call("WaitProcess", &request).await?;
        Ok(answer.status)
    }

    /// GetMetrics.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn metrics(&self) -> Result<String> {
        let answer: Text = self.call("GetMetrics", &Empty {}).await?;
        Ok(answer.text)
    }

    /// What the stand-in agent has seen; a real one refuses.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn dump(&self) -> Result<Dump> {
        let limit = Some(Duration::from_secs(10));
        let bytes = self.rpc.raw((CONTROL, "Dump"), Bytes::new(), limit).await?;
        let broken = |e: serde_json::Error| CallError::Parse {
            method: "Dump".to_owned(),
            reason: e.to_string(),
        };
        serde_json::from_slice(&bytes).map_err(broken)
    }

    /// Gives the stand-in agent other fault rules.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn set_faults(&self, rules: &[Rule]) -> Result<()> {
        let rules = serde_json::to_vec(rules).unwrap_or_default();
        let limit = Some(Duration::from_secs(10));
        self.rpc.raw((CONTROL, "Faults"), rules.into(), limit).await.map(drop)
    }

    /// Makes the stand-in agent report that a container ran out of memory.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn inject_oom(&self, container: &str) -> Result<()> {
        let id = Bytes::copy_from_slice(container.as_bytes());
        self.rpc.raw((CONTROL, "Oom"), id, Some(Duration::from_secs(10))).await.map(drop)
    }
}

fn bind((destination, source): &(String, String)) -> oci::Mount {
    oci::Mount {
        destination: destination.clone(),
        source: source.clone(),
        r#type: "bind".to_owned(),
        options: vec!["rbind".to_owned()],
    }
}

impl Container {
    fn guest_pull(&self) -> Storage {
        let metadata = serde_json::json!({ "metadata": self.annotations });
        Storage {
            driver: "image_guest_pull".to_owned(),
            driver_options: vec![format!("image_guest_pull={metadata}")],
            source: self.image.clone(),
            fstype: "overlay".to_owned(),
            mount_point: format!("/run/kata-containers/{}/rootfs", self.id),
            ..Storage::default()
        }
    }

    fn oci(&self, pod: &PodSpec) -> oci::Spec {
        let mut annotations: HashMap<String, String> = HashMap::from([
            ("io.kubernetes.cri.container-type".to_owned(), self.kind().to_owned()),
            ("io.kubernetes.cri.sandbox-id".to_owned(), pod.sandbox.clone()),
            ("io.kubernetes.cri.sandbox-name".to_owned(), pod.name.clone()),
            ("io.kubernetes.cri.sandbox-namespace".to_owned(), pod.namespace.clone()),
            ("io.kubernetes.cri.image-name".to_owned(), self.image.clone()),
        ]);
        annotations.extend(self.annotations.clone());
        let namespaces = ["ipc", "uts", "mount"];
        let namespaces = namespaces
            .map(|t| oci::LinuxNamespace { r#type: t.to_owned(), path: String::new() })
            .to_vec();
        oci::Spec {
            version: "1.2.0".to_owned(),
            process: Some(oci::Process {
                args: self.args.clone(),
                env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
                cwd: "/".to_owned(),
                ..oci::Process::default()
            }),
            root: Some(oci::Root {
                path: format!("/run/kata-containers/{}/rootfs", self.id),
                readonly: false,
            }),
            hostname: pod.name.clone(),
            mounts: self.mounts.iter().map(bind).collect(),
            annotations,
            linux: Some(oci::Linux { cgroups_path: format!("/kubepods/{}", self.id), namespaces }),
        }
    }
}
