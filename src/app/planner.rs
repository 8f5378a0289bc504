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

#[cfg(test)]
mod tests {
    use peerpod_providers::Report;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::pki::{Pki, TlsSource};
    use crate::plan::PlanRules;
    use crate::pod::samples;
    use crate::request::{RequestRules, keys};

    fn planning(types: &[&str]) -> Planning {
        let pki =
            Pki::open("/nowhere".as_ref(), &TlsSource::Disabled, std::time::SystemTime::now());
        let rules = super::super::look::Rules {
            pki: pki.expect("nothing to open"),
            requests: RequestRules::default(),
            plans: PlanRules { installation: "inst-1".to_owned(), ..PlanRules::default() },
            volumes: None,
            labels: None,
        };
        let of = |name: &&str| peerpod_providers::InstanceType {
            name: (*name).to_owned(),
            vcpus: 2,
            memory_mib: 4096,
            gpus: 0,
            price: None,
        };
        rules.planning(Report::of_types(types.iter().map(of).collect()))
    }

    async fn plan(planner: &LatePlanner) -> Result<Plan, Failure> {
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let request = CreateVmRequest {
            id: "s1".to_owned(),
            annotations: [text(keys::NAME, "web"), text(keys::NAMESPACE, "default")].into(),
            network_namespace_path: "/run/netns/web".to_owned(),
        };
        let request = planner.parse(&request).expect("fine");
        let name = VmName::first_form("web", "s1");
        planner.plan(&request, &samples::network(), 600_001, name).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_the_first_look_and_is_planned_by_it() {
        let planner = Arc::new(LatePlanner::new(planning(&[])));
        let waits = {
            let planner = Arc::clone(&planner);
            tokio::spawn(async move { plan(&planner).await })
        };
        sleep(FIRST_LOOK - Duration::from_millis(1)).await;
        assert!(!waits.is_finished(), "it does not come too early");
        planner.ready(planning(&["small"]));
        let plan = waits.await.expect("no panic").expect("planned");
        assert_eq!(plan.candidates[0].instance_type, "small");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_fails_is_told_at_once_and_one_that_never_ends_in_time() {
        let (planner, begin) = (LatePlanner::new(planning(&[])), Instant::now());
        let failure = plan(&planner).await.expect_err("nobody looked");
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert!(failure.message.contains("has not said yet"), "{}", failure.message);
        assert!(begin.elapsed() >= FIRST_LOOK && begin.elapsed() < FIRST_LOOK * 2);
        planner.missing("no credentials".to_owned());
        let begin = Instant::now();
        let failure = plan(&planner).await.expect_err("in vain");
        assert_eq!(
            (failure.kind, failure.message.as_str()),
            (FailureKind::Unavailable, "no credentials")
        );
        assert_eq!(begin.elapsed(), Duration::ZERO, "it has been looked");
    }

    #[tokio::test(start_paused = true)]
    async fn sizes_that_were_once_there_stay_though_a_later_look_fails() {
        let planner = LatePlanner::new(planning(&[]));
        planner.missing("not yet".to_owned());
        planner.ready(planning(&["small"]));
        planner.missing("throttled".to_owned());
        plan(&planner).await.expect("planned all the same");
    }
}
