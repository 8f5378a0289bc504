//! The cloud as the daemon's provider: a request that was sent goes on when its sender has died.

use std::sync::Arc;

use async_trait::async_trait;
use peerpod_providers::{
    Candidate, Deletion, Error, Kind, Provider, Report, Resource, Vm, VmRef, VmSpec,
};
use tokio::sync::oneshot;

use crate::check;
use crate::cloud::{Cloud, Reply, fails};
use crate::core::lock;
use crate::process::Process;

/// The cloud as one daemon calls it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) process: Arc<Process>,
}

impl Client {
    /// Sends a request, which goes on without us, and waits for its reply.
    async fn send<T: Send + 'static>(
        &self,
        operation: &'static str,
        what: String,
        request: impl Future<Output = Reply<T>> + Send + 'static,
    ) -> Result<T, Error> {
        let (process, core) = (&self.process, &self.cloud.core);
        core.trace(format!("{} {operation} {what}", process.id));
        let (tell, reply) = oneshot::channel();
        tokio::spawn(async move {
            let _ = tell.send(request.await);
        });
        process.reach(&format!("{operation}.sent")).await;
        let reply = reply.await.unwrap_or_else(|_| fails(Kind::Unavailable, "gone"));
        let shown = reply.as_ref().map_or_else(|e| format!("{e:?}"), |_| "ok".to_owned());
        core.trace(format!("{} {operation} {what}: {shown}", process.id));
        process.reach(&format!("{operation}.after")).await;
        reply.map_err(|(kind, message)| Error::new("sim", operation, kind, message))
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sim")
    }
}

/// A create that is under way, for the budget.
struct UnderWay(Arc<Cloud>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.0.state).under_way -= 1;
    }
}

#[async_trait]
impl Provider for Client {
    async fn check(&self) -> Result<Report, Error> {
        Ok(Report::default())
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        self.process.reach("create.before").await;
        check::create(&self.cloud, spec, candidate);
        let under_way = {
            let mut state = lock(&self.cloud.state);
            state.under_way += 1;
            state.under_way
        };
        let _ends = UnderWay(Arc::clone(&self.cloud));
        if under_way > check::CREATES {
            self.cloud.core.breach("I4", format!("{under_way} creates under way"));
        }
        let what = format!("{} at {}", spec.name, candidate.number);
        let request = Arc::clone(&self.cloud).create(spec.clone(), candidate.clone());
        self.send("create", what, request).await
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        self.process.reach("delete.before").await;
        check::ends(&self.cloud.core, &vm.sandbox, "its VM is deleted");
        check::swept(&self.cloud, vm);
        let request = Arc::clone(&self.cloud).delete(vm.clone());
        self.send("delete", vm.name.to_string(), request).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        self.process.reach("list.before").await;
        self.send("list", String::new(), Arc::clone(&self.cloud).list()).await
    }
}
