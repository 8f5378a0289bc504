//! The shim's calls to the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::Mutex;

use super::rpc::{CallError, Connection};
use super::{PodSpec, Profile, ShimError, annotations};
use crate::messages::HYPERVISOR;
use crate::messages::agent::Empty;
use crate::messages::hypervisor::{CreateVmRequest, CreateVmResponse, IdRequest};

/// The daemon as one shim sees it.
#[derive(Debug)]
pub struct Hypervisor {
    profile: Profile,
    socket: PathBuf,
    /// The Rust shim's one connection; opened at CreateVM, never again.
    standing: Mutex<Option<Arc<Connection>>>,
}

impl Hypervisor {
    /// Nothing is dialled before the first call.
    pub fn new(profile: Profile, socket: &Path) -> Self {
        Self { profile, socket: socket.to_owned(), standing: Mutex::new(None) }
    }

    /// CreateVM: returns the agent's socket path.
    ///
    /// # Errors
    /// When the daemon refuses, or answers with an empty path.
    pub async fn create_vm(&self, pod: &PodSpec) -> Result<PathBuf, ShimError> {
        let request = CreateVmRequest {
            id: pod.sandbox.clone(),
            annotations: annotations(self.profile, pod),
            network_namespace_path: pod.netns.display().to_string(),
        };
        let answer: CreateVmResponse = self.call("CreateVM", &request).await?;
        if answer.agent_socket_path.is_empty() {
            return Err(ShimError::NoAgentPath);
        }
        Ok(PathBuf::from(answer.agent_socket_path))
    }

    /// StartVM: returns when the VM can be talked to.
    ///
    /// # Errors
    /// When the daemon refuses or the shim's deadline passes.
    pub async fn start_vm(&self, sandbox: &str) -> Result<(), ShimError> {
        self.call::<_, Empty>("StartVM", &IdRequest { id: sandbox.to_owned() }).await.map(drop)
    }

    /// One StopVM.
    ///
    /// # Errors
    /// When the daemon refuses or the shim's deadline passes.
    pub async fn stop_vm(&self, sandbox: &str) -> Result<(), ShimError> {
        self.call::<_, Empty>("StopVM", &IdRequest { id: sandbox.to_owned() }).await.map(drop)
    }

    /// StopVM as often as this shim sends it at the end of a pod: once, or three times at once.
    ///
    /// # Errors
    /// The first refusal; all calls have been made then.
    pub async fn stop_vm_as_shim(&self, sandbox: &str) -> Result<(), ShimError> {
        match self.profile {
            Profile::GoLike => self.stop_vm(sandbox).await,
            Profile::RsLike => {
                let one = || self.stop_vm(sandbox);
                let (a, b, c) = tokio::join!(one(), one(), one());
                a.and(b).and(c)
            }
        }
    }

    /// Any call, with the shim's connection pattern and deadline.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses.
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
    ) -> Result<A, ShimError> {
        let deadline = self.profile.hypervisor_deadline(method);
        self.call_within(method, request, deadline).await
    }

    async fn call_within<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, ShimError> {
        let failed = |source: CallError| ShimError::Hypervisor { method, source };
        let connection = self.connection().await?;
        connection.call((HYPERVISOR, method), request, deadline).await.map_err(failed)
    }

    async fn connection(&self) -> Result<Arc<Connection>, ShimError> {
        let failed = |source| ShimError::Connect { path: self.socket.clone(), source };
        if self.profile == Profile::GoLike {
            return Connection::connect(&self.socket).await.map_err(failed);
        }
        let mut standing = self.standing.lock().await;
        if let Some(connection) = standing.as_ref() {
            return Ok(connection.clone());
        }
        let made = Connection::connect(&self.socket).await.map_err(failed)?;
        Ok(standing.insert(made).clone())
    }

    /// Closes the standing connection, as the end of the shim's process does.
    pub async fn close(&self) {
        self.standing.lock().await.take();
    }

    /// Whether the standing connection was closed by the daemon; never so for [`Profile::GoLike`].
    pub async fn is_cut(&self) -> bool {
        self.standing.lock().await.as_ref().is_some_and(|c| c.is_closed())
    }
}
