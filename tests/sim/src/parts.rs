//! The small parts of the world: planner, clock, chance, the log.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use async_trait::async_trait;
use peerpod_providers::{Candidate, Market, UserData, VmName, VmSpec, tags};
use peerpod_tunnel::link::tls::ClientTls;
use peerpod_tunnel::network::PodNetwork;
use peerpodd::hypervisor::Failure;
use peerpodd::plan::Plan;
use peerpodd::pod::world::{Clock, Observer, Planner, Random};
use peerpodd::proto::hypervisor::CreateVmRequest;
use peerpodd::request::{self, PodRequest, RequestRules, keys};
use peerpodd::volumes::PodVolumes;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::check::SECRET;
use crate::core::Core;
use crate::machines::{self, INSTALLATION, NODE};
use crate::process::Process;

/// Reads requests as the daemon does; plans three places.
#[derive(Debug)]
pub(crate) struct Plans(pub(crate) Arc<Process>);

#[async_trait]
impl Planner for Plans {
    fn parse(&self, request: &CreateVmRequest) -> Result<PodRequest, Failure> {
        request::parse(request, &RequestRules::default()).map_err(Failure::from)
    }

    async fn plan(
        &self,
        request: &PodRequest,
        _: &PodNetwork,
        _: u32,
        name: VmName,
    ) -> Result<Plan, Failure> {
        self.0.reach("plan.before").await;
        self.0.core.pass_ms("plan", 0, 3).await;
        self.0.reach("plan.after").await;
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let sandbox = request.sandbox.to_string();
        let tags = [
            tag(tags::INSTALLATION, INSTALLATION),
            tag(tags::NODE, NODE),
            tag(tags::SANDBOX, &sandbox),
        ];
        let follow = machines::follow(&sandbox);
        let more = if follow.is_empty() { "" } else { machines::FOLLOWS };
        Ok(Plan {
            spec: VmSpec {
                user_data: UserData(format!("{SECRET} of {sandbox}{more}")),
                tags: tags.into(),
                ..VmSpec::new(name.clone(), sandbox)
            },
            candidates: (0..).zip(["a", "b", "c"]).map(|(n, zone)| candidate(n, zone)).collect(),
            size_reason: "the default".to_owned(),
            edit_methods: Vec::new(),
            server_name: name.to_string(),
            authority: None,
            volumes: PodVolumes::default(),
            follow,
            notes: Vec::new(),
        })
    }

    fn client(&self, _: &str) -> Option<ClientTls> {
        None
    }
}

fn candidate(number: u32, zone: &str) -> Candidate {
    let zone = Some(zone.to_owned());
    Candidate { number, instance_type: "small".to_owned(), zone, market: Market::OnDemand }
}

/// What a shim asks for.
pub(crate) fn request(sandbox: &str, pod: &str) -> CreateVmRequest {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    CreateVmRequest {
        id: sandbox.to_owned(),
        annotations: BTreeMap::from([text(keys::NAME, pod), text(keys::NAMESPACE, "default")]),
        network_namespace_path: netns(sandbox),
    }
}

pub(crate) fn netns(sandbox: &str) -> String {
    format!("/run/netns/{sandbox}")
}

/// The worker's wall clock, which may jump.
#[derive(Debug)]
pub(crate) struct Wall(pub(crate) Arc<Core>);

impl Clock for Wall {
    fn now_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    fn boot_ms(&self) -> u64 {
        self.0.true_ms() - crate::core::BEGAN_MS
    }
}

/// Chance, from the seed. Few VXLAN ids, so that they meet.
#[derive(Debug)]
pub(crate) struct Chance(pub(crate) Arc<Core>);

impl Random for Chance {
    fn next(&self) -> u32 {
        let next = self.0.dice.amount("random", 0, u64::from(u32::MAX));
        u32::try_from(next).unwrap_or(u32::MAX)
    }
}

/// What the daemon counts.
#[derive(Debug)]
pub(crate) struct Counts(pub(crate) Arc<Process>);

impl Observer for Counts {
    fn pod_lost(&self, why: &'static str) {
        self.0.core.trace(format!("{} counts a pod lost: {why}", self.0.id));
    }
}

/// Puts the daemon's log into the trace and looks for secrets in it.
pub(crate) struct Log(pub(crate) Arc<Core>);

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        if line.0.contains(SECRET) {
            self.0.breach("I7", format!("a log line: {}", line.0));
        }
        let level = *event.metadata().level();
        if level <= Level::INFO {
            self.0.trace(format!("  {level}{}", line.0));
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
