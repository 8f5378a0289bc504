//! CreateVM: no cloud call, nothing kept that is not in the record.

use std::sync::Arc;
use std::time::Duration;

use peerpod_providers::VmName;
use peerpod_tunnel::network::PodNetwork;
use tokio::time::{Instant, sleep};

use super::StepError;
use crate::crash::reach;
use crate::plan::Plan;
use crate::pod::Common;
use crate::pod::life::Life;
use crate::pod::phase::Phase;
use crate::pod::record::{LinkPart, Machine, NetworkPart, PodIdentity, Record, VERSION};
use crate::pod::vnis::Reserved;
use crate::request::PodRequest;

/// For how long a relay that does not answer is asked again, and the time in between.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);
/// Name of a pod's socket in its directory; the shim is given the path.
const SOCKET: &str = "agent.ttrpc";

/// Reads the pod's network, takes a VXLAN id and plans the VM. Leaves nothing behind: the id goes
/// with the value that holds it.
pub(crate) async fn draft(
    common: &Arc<Common>,
    request: &PodRequest,
    name: VmName,
) -> Result<(Record, Reserved), StepError> {
    let (world, options) = (&common.world, &common.options);
    let (inspected, _) = common.observe("inspect", world.network.inspect(&request.netns)).await;
    let (found, netns_id) = inspected.map_err(StepError::Inspect)?;
    let (kernel, _) = common.observe("vni", world.network.kernel_vnis()).await;
    let kernel = kernel.map_err(StepError::Kernel)?;
    let start = world.random.next();
    reach!(world, ReserveBefore);
    let reserved = common.vnis.pick(options.vxlan_min_id, kernel, start).map_err(StepError::Vni)?;
    reach!(world, ReserveAfter);
    let plan = world.planner.plan(request, &found, reserved.vni, name);
    let (plan, _) = common.observe("plan", plan).await;
    let plan = plan.map_err(StepError::Plan)?;
    let notes = [plan.volumes.notes(), plan.notes.clone()].concat();
    let mut record = record(common, request, (found, netns_id, reserved.vni), plan);
    for note in notes {
        tracing::info!("{note}");
        record.note(record.created_ms, note, None);
    }
    Ok((record, reserved))
}

/// The first record of a sandbox.
fn record(
    common: &Common,
    request: &PodRequest,
    (found, netns_id, vni): (PodNetwork, (u64, u64), u32),
    plan: Plan,
) -> Record {
    let (world, options) = (&common.world, &common.options);
    let now = world.clock.now_ms();
    let sandbox = request.sandbox.to_string();
    Record {
        version: VERSION,
        boot: options.boot_id.clone(),
        installation: options.installation.clone(),
        pod: PodIdentity {
            namespace: request.namespace.clone(),
            name: request.pod.clone(),
            uid: plan.volumes.uid.clone().or_else(|| request.pod_uid.clone()),
            gpus: request.gpus,
        },
        network: NetworkPart {
            netns: request.netns.clone(),
            netns_id,
            found,
            vni,
            vxlan_port: options.vxlan_port,
        },
        link: LinkPart {
            socket: options.pods_dir.join(&sandbox).join(SOCKET),
            edit_methods: plan.edit_methods,
            port: options.forwarder_port,
            server_name: plan.server_name,
            authority: plan.authority,
        },
        machine: Machine {
            spec: plan.spec,
            candidates: plan.candidates,
            size_reason: plan.size_reason,
            follow: plan.follow,
        },
        volumes: plan.volumes,
        sandbox,
        phase: Phase::Prepared,
        stage: None,
        timeline: Vec::new(),
        last_error: None,
        created_ms: now,
        since_ms: now,
        failed_start: false,
        spot: false,
        interruption: None,
        created_boot_ms: Some(world.clock.boot_ms()),
        #[cfg(feature = "next-version")]
        generation: VERSION,
    }
}

/// Keeps the record, then opens the socket. That the connection to the relay breaks and is made again
/// just then is no reason to refuse a pod.
pub(crate) async fn keep(life: &Life) -> Result<(), StepError> {
    life.save().await?;
    let begin = Instant::now();
    loop {
        match open(life).await {
            Err(StepError::Open(error)) if error.may_pass() && begin.elapsed() < PATIENCE => {
                sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

/// Has the relay listen on the pod's socket; repeating it changes nothing.
pub(crate) async fn open(life: &Life) -> Result<(), StepError> {
    let record = life.record();
    let link = &record.link;
    let relay = &life.common.world.relay;
    let opened = life.step("open", relay.open(&record.sandbox, &link.socket, &link.edit_methods));
    opened.await.map_err(StepError::Open)
}
