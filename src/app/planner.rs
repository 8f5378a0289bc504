//! Plans as soon as the provider has said which sizes it has. A provider that cannot be asked yet
//! keeps no running pod from being taken up again; it only keeps new ones from being planned.

use std::sync::{Arc, Mutex, PoisonError};

use peerpod_providers::VmName;
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::PodNetwork;

use crate::hypervisor::{Failure, FailureKind};
use crate::plan::Plan;
use crate::pod::world::{Planner, Planning};
use crate::proto::hypervisor::CreateVmRequest;
use crate::request::PodRequest;

/// A planner whose catalogue comes later.
#[derive(Debug)]
pub(super) struct LatePlanner(Mutex<State>);

#[derive(Debug)]
struct State {
    planning: Arc<Planning>,
    /// Why there is no catalogue, for whoever asks for a pod meanwhile.
    missing: Option<String>,
}

impl LatePlanner {
    /// `planning` knows no sizes yet.
    pub(super) fn new(planning: Planning) -> Self {
        let missing = Some("the provider has not been asked yet which sizes it has".to_owned());
        Self(Mutex::new(State { planning: Arc::new(planning), missing }))
    }

    /// From now on pods are planned by `planning`.
    pub(super) fn ready(&self, planning: Planning) {
        *self.lock() = State { planning: Arc::new(planning), missing: None };
    }

    /// Still no sizes, for that reason.
    pub(super) fn missing(&self, reason: String) {
        let mut state = self.lock();
        if state.missing.is_some() {
            state.missing = Some(reason);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planning(&self) -> Arc<Planning> {
        Arc::clone(&self.lock().planning)
    }
}

impl Planner for LatePlanner {
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure> {
        self.planning().parse(request)
    }

    fn plan(
        &self,
        request: &PodRequest,
        network: &PodNetwork,
        vni: u32,
        name: VmName,
    ) -> Result<Plan, Failure> {
        if let Some(reason) = self.lock().missing.clone() {
            return Err(Failure::new(FailureKind::Unavailable, reason));
        }
        self.planning().plan(request, network, vni, name)
    }

    fn client(&self, server_name: &str) -> Option<ClientTls> {
        self.planning().client(server_name)
    }
}
