//! Plans as soon as the provider has said which sizes it has. A provider that cannot be asked yet
//! keeps no running pod from being taken up again; it only keeps new ones from being planned. A
//! request that comes while the first look is under way waits for it: a shim that was replayed to a
//! process just started must not hear that it came too early.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpod_providers::VmName;
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::PodNetwork;
use tokio::sync::watch;

use crate::hypervisor::{Failure, FailureKind};
use crate::plan::Plan;
use crate::pod::world::{Planner, Planning};
use crate::proto::hypervisor::CreateVmRequest;
use crate::request::PodRequest;

/// How long a request waits for the first look at the provider.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// A planner whose catalogue comes later.
#[derive(Debug)]
pub(super) struct LatePlanner(watch::Sender<State>);

#[derive(Clone, Debug)]
struct State {
    planning: Arc<Planning>,
    catalogue: Catalogue,
}

#[derive(Clone, Debug)]
enum Catalogue {
    /// The provider has not answered yet.
    Awaited,
    /// It has answered, and why that is of no use.
    Missing(String),
    /// The planning has it.
    There,
}

impl LatePlanner {
    /// `planning` knows no sizes yet.
    pub(super) fn new(planning: Planning) -> Self {
        let state = State { planning: Arc::new(planning), catalogue: Catalogue::Awaited };
        Self(watch::Sender::new(state))
    }

    /// From now on pods are planned by `planning`.
    pub(super) fn ready(&self, planning: Planning) {
        let planning = Arc::new(planning);
        self.0.send_replace(State { planning, catalogue: Catalogue::There });
    }

    /// Still no sizes, for that reason.
    pub(super) fn missing(&self, reason: String) {
        self.0.send_modify(|state| {
            if !matches!(state.catalogue, Catalogue::There) {
                state.catalogue = Catalogue::Missing(reason);
            }
        });
    }

    fn planning(&self) -> Arc<Planning> {
        Arc::clone(&self.0.borrow().planning)
    }

    /// The state once the provider has answered for the first time, or when that takes too long.
    async fn answered(&self) -> State {
        let mut seen = self.0.subscribe();
        let answered = seen.wait_for(|s| !matches!(s.catalogue, Catalogue::Awaited));
        let _ = tokio::time::timeout(FIRST_LOOK, answered).await;
        self.0.borrow().clone()
    }
}

#[async_trait]
impl Planner for LatePlanner {
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure> {
        self.planning().parse(request)
    }

    async fn plan(
        &self,
        request: &PodRequest,
        network: &PodNetwork,
        vni: u32,
        name: VmName,
    ) -> Result<Plan, Failure> {
        let State { planning, catalogue } = self.answered().await;
        let reason = match catalogue {
            Catalogue::There => return planning.plan(request, network, vni, name).await,
            Catalogue::Missing(reason) => reason,
            Catalogue::Awaited => "the provider has not said yet which sizes it has".to_owned(),
        };
        Err(Failure::new(FailureKind::Unavailable, reason))
    }

    fn client(&self, server_name: &str) -> Option<ClientTls> {
        self.planning().client(server_name)
    }
}
