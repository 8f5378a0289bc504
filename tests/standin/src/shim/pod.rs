//! A pod's whole life as one shim lives it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::health;
use super::rpc::CallError;
use super::{AgentClient, Exec, Health, Hypervisor, Profile};

/// Seconds that RemoveContainer may take, as the shims ask.
const REMOVE: u32 = 10;

/// Why a shim cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// A socket could not be dialled.
    #[error("connect to {path}: {source}")]
    Connect {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The daemon refused.
    #[error("remote hypervisor call failed: {source}")]
    Hypervisor {
        /// The method called.
        method: &'static str,
        /// Its answer.
        source: CallError,
    },
    /// CreateVM gave no path.
    #[error("CreateVM answered with an empty agent socket path")]
    NoAgentPath,
    /// The agent refused.
    #[error("agent: {0}")]
    Agent(#[from] CallError),
    /// A step was taken before the one it needs.
    #[error("{0} comes first")]
    Order(&'static str),
}

impl ShimError {
    /// The google.rpc code, if somebody answered with one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Hypervisor { source, .. } | Self::Agent(source) => source.code(),
            _ => None,
        }
    }
}

/// What is asked for a pod; everything that is not set is not asked for.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Sandbox id.
    pub sandbox: String,
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Instance type by annotation.
    pub machine_type: String,
    /// VM image by annotation.
    pub image: String,
    /// CPUs by annotation.
    pub vcpus: Option<u32>,
    /// Memory by annotation, MiB.
    pub memory_mib: Option<u64>,
    /// Sum of the containers' CPU limits.
    pub cpu_limit: Option<f64>,
    /// Sum of the containers' memory limits, MiB.
    pub memory_limit_mib: Option<u64>,
    /// Initdata TOML.
    pub initdata: String,
    /// GPUs.
    pub gpus: u32,
    /// GPU model.
    pub gpu_model: String,
    /// Lines of the pod's resolv.conf.
    pub dns: Vec<String>,
}

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Command line; `standin-agent tool …` needs nothing else in the VM.
    pub args: Vec<String>,
    /// Image reference, for guest pull.
    pub image: String,
    /// Further OCI annotations.
    pub annotations: BTreeMap<String, String>,
    /// Bind mounts: destination and source, as the kubelet has it.
    pub mounts: Vec<(String, String)>,
}

impl Container {
    /// A container that runs one of the stand-in's own programs.
    pub fn tool(id: &str, args: &[&str]) -> Self {
        let args = ["standin-agent", "tool"].iter().chain(args).map(|a| (*a).to_owned());
        let image = "example.org/standin:1".to_owned();
        Self { id: id.to_owned(), args: args.collect(), image, ..Self::default() }
    }

    fn pause(sandbox: &str) -> Self {
        let args = vec!["/pause".to_owned()];
        Self { id: sandbox.to_owned(), args, image: "pause".to_owned(), ..Self::default() }
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.image == "pause" { "sandbox" } else { "container" }
    }
}

/// How long a step took.
#[derive(Clone, Debug)]
pub struct Took {
    /// `CreateVM`, `StartVM`, …
    pub step: &'static str,
    /// Its time.
    pub time: Duration,
}

/// A shim and its sandbox. Dropping it is what SIGKILL does to the real one: all of its connections
/// close and nothing is said.
#[derive(Debug)]
pub struct Shim {
    profile: Profile,
    spec: PodSpec,
    hypervisor: Arc<Hypervisor>,
    path: PathBuf,
    agent: Option<AgentClient>,
    containers: Vec<String>,
    background: JoinSet<()>,
    health: watch::Receiver<Health>,
    took: Vec<Took>,
}

type Result<T> = std::result::Result<T, ShimError>;

impl Shim {
    /// The whole start: CreateVM, StartVM, the agent, the sandbox and its pause container. A failure
    /// ends with the StopVM calls the shim would make.
    ///
    /// # Errors
    /// At the first step that fails.
    pub async fn boot(profile: Profile, socket: &Path, spec: PodSpec) -> Result<Self> {
        let mut shim = Self::create(profile, socket, spec).await?;
        match shim.finish_boot().await {
            Ok(()) => Ok(shim),
            Err(error) => {
                let _ = shim.hypervisor.stop_vm(&shim.spec.sandbox).await;
                Err(error)
            }
        }
    }

    async fn finish_boot(&mut self) -> Result<()> {
        self.start_vm().await?;
        self.connect().await?;
        self.start_sandbox().await
    }

    /// CreateVM.
    ///
    /// # Errors
    /// When the daemon refuses; the Go shim then leaves, the Rust one sends a StopVM first.
    pub async fn create(profile: Profile, socket: &Path, spec: PodSpec) -> Result<Self> {
        let hypervisor = Arc::new(Hypervisor::new(profile, socket));
        let begin = Instant::now();
        let path = match hypervisor.create_vm(&spec).await {
            Ok(path) => path,
            Err(error) => {
                if profile == Profile::RsLike {
                    let _ = hypervisor.stop_vm(&spec.sandbox).await;
                }
                return Err(error);
            }
        };
        Ok(Self {
            profile,
            spec,
            hypervisor,
            path,
            agent: None,
            containers: Vec::new(),
            background: JoinSet::new(),
            health: watch::channel(Health::Alive).1,
            took: vec![Took { step: "CreateVM", time: begin.elapsed() }],
        })
    }

    /// StartVM.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub async fn start_vm(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.hypervisor.start_vm(&self.spec.sandbox).await?;
        self.note("StartVM", begin);
        Ok(())
    }

    /// Dials the agent: the Go shim once, the Rust one twice; the second only listens.
    ///
    /// # Errors
    /// When nobody listens on the path.
    pub async fn connect(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.agent = Some(AgentClient::connect(self.profile, &self.path).await?);
        if self.profile == Profile::RsLike {
            let failed = |source| ShimError::Connect { path: self.path.clone(), source };
            let mut log = UnixStream::connect(&self.path).await.map_err(failed)?;
            self.background.spawn(async move {
                let mut buffer = [0; 1024];
                while matches!(log.read(&mut buffer).await, Ok(1..)) {}
            });
        }
        self.note("connect", begin);
        Ok(())
    }

    /// The agent calls of a sandbox's start, in the shim's order, up to the running pause container;
    /// from then on its health is watched.
    ///
    /// # Errors
    /// At the first refusal.
    pub async fn start_sandbox(&mut self) -> Result<()> {
        let begin = Instant::now();
        let agent = self.agent()?.clone();
        if self.profile == Profile::GoLike {
            agent.check().await?;
        }
        agent.create_sandbox(&self.spec).await?;
        agent.guest_details().await?;
        let oom = agent.clone();
        self.background.spawn(async move { while oom.oom_event().await.is_ok() {} });
        if self.profile == Profile::RsLike {
            let lines = self.spec.dns.join("\n");
            let path = "/run/kata-containers/shared/containers/resolv.conf";
            agent.copy_file(path, lines.as_bytes()).await?;
        }
        let pause = Container::pause(&self.spec.sandbox);
        self.run_container(&pause).await?;
        let (tell, health) = watch::channel(Health::Alive);
        self.health = health;
        let sandbox = self.spec.sandbox.clone();
        let hypervisor = self.hypervisor.clone();
        self.background.spawn(health::watch(self.profile, sandbox, agent, hypervisor, tell));
        self.note("sandbox", begin);
        Ok(())
    }

    /// CreateContainer and StartContainer; its exit is waited for in the background, as the shims
    /// do. Returns its first process.
    ///
    /// # Errors
    /// At the first refusal.
    pub async fn run_container(&mut self, container: &Container) -> Result<Exec> {
        let agent = self.agent()?.clone();
        agent.create_container(&self.spec, container).await?;
        self.containers.push(container.id.clone());
        agent.start_container(&container.id).await?;
        let process = agent.process(&container.id, "");
        let waited = process.clone();
        self.background.spawn(async move { drop(waited.wait().await) });
        Ok(process)
    }

    /// The agent, once connected.
    ///
    /// # Errors
    /// [`ShimError::Order`] before [`Shim::connect`].
    pub fn agent(&self) -> Result<&AgentClient> {
        self.agent.as_ref().ok_or(ShimError::Order("connect"))
    }

    /// Runs `standin-agent` with `args` in a container of the pod; the pause container has the
    /// sandbox's id.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn exec_tool(&self, exec: &str, args: &[&str]) -> Result<Exec> {
        let all: Vec<&str> = ["standin-agent", "tool"].iter().chain(args).copied().collect();
        Ok(self.agent()?.exec(&self.spec.sandbox, exec, &all).await?)
    }

    /// The normal end: the containers, then (Go) DestroySandbox, then StopVM once or three times.
    /// Agent errors do not matter any more then.
    ///
    /// # Errors
    /// When a StopVM fails.
    pub async fn stop(mut self) -> Result<Vec<Took>> {
        let begin = Instant::now();
        if let Some(agent) = self.agent.clone() {
            self.end_containers(&agent).await;
            if self.profile == Profile::GoLike {
                let _ = agent.destroy_sandbox().await;
            }
        }
        self.note("end containers", begin);
        // The monitor ends before the connections do, or it would see a death here.
        self.background.abort_all();
        let begin = Instant::now();
        self.hypervisor.stop_vm_as_shim(&self.spec.sandbox).await?;
        self.note("StopVM", begin);
        Ok(std::mem::take(&mut self.took))
    }

    async fn end_containers(&self, agent: &AgentClient) {
        for id in self.containers.iter().rev() {
            let _ = agent.signal(id, "", 9).await;
            let _ = agent.wait(id, "").await;
            if self.profile == Profile::RsLike {
                let _ = agent.signal(id, "", 9).await;
            }
            let _ = agent.remove_container(id, REMOVE).await;
        }
    }

    /// The shim is killed, and containerd calls its `delete`: the Go one calls CreateVM with the
    /// same id, then the agent, then StopVM; the Rust one does nothing at all.
    ///
    /// # Errors
    /// When the daemon refuses CreateVM (StopVM is never sent then) or StopVM.
    pub async fn crash(self) -> Result<()> {
        let (profile, spec, socket) = (self.profile, self.spec.clone(), self.hypervisor.clone());
        let containers = self.containers.clone();
        drop(self);
        socket.close().await;
        if profile == Profile::RsLike {
            return Ok(());
        }
        let path = socket.create_vm(&spec).await?;
        if let Ok(agent) = AgentClient::connect(profile, &path).await {
            for id in containers.iter().rev() {
                let _ = agent.signal(id, "", 9).await;
                let _ = agent.remove_container(id, REMOVE).await;
            }
            let _ = agent.destroy_sandbox().await;
        }
        socket.stop_vm(&spec.sandbox).await
    }

    /// What the shim thinks of its sandbox.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Returns when the shim has given its sandbox up.
    pub async fn died(&self) -> Health {
        let mut health = self.health.clone();
        match health.wait_for(|h| *h != Health::Alive).await {
            Ok(health) => health.clone(),
            Err(_) => Health::Dead { reason: "not watched".to_owned(), stop_sent: false },
        }
    }

    /// Steps so far, with their times.
    pub fn took(&self) -> &[Took] {
        &self.took
    }

    /// Which shim this is.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// What was asked for.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The agent's socket path.
    pub fn agent_path(&self) -> &Path {
        &self.path
    }

    /// The daemon, for calls out of turn.
    pub fn hypervisor(&self) -> &Arc<Hypervisor> {
        &self.hypervisor
    }

    fn note(&mut self, step: &'static str, begin: Instant) {
        self.took.push(Took { step, time: begin.elapsed() });
    }
}
