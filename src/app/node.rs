//! `peerpodd node`, put together.
//!
//! ```text
//!   state dir (lock) ─▶ probes ─▶ keys, provider ─▶ records ─▶ node.sock ─▶ relay ─▶ pods ─▶ serving
//!                                     └─ check, in the background: sizes for the planner, readiness
//! ```

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use anyhow::{Context, bail};
use async_trait::async_trait;
use peerpod_providers::{Provider, Report, registry};
use peerpod_tunnel::network::InspectSettings;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::keys;
use super::look::{Look, Rules};
use super::planner::LatePlanner;
use super::{BadSetting, notify};
use crate::admin::{self, About, Guard, Insight, Pages, Readiness};
use crate::config::{self, Epochs, Settings, StateDir, Tls};
use crate::crash::here;
use crate::hypervisor;
use crate::labels::Bundles;
use crate::metrics::{Counted, Metrics, Now};
use crate::pki::Pki;
use crate::plan::PlanRules;
use crate::pod::record::Disk;
use crate::pod::world::{Chance, Clock as _, Host, Seen, Tcp, WallClock, World};
use crate::pods::{Options, Pods};
use crate::relay::{Control, Event, RelayClient, raise_files};
use crate::request::RequestRules;
use crate::shutdown::Shutdown;

/// Events that may wait for the pods, as in the relay's client.
const EVENTS: usize = 1024;

/// Runs until told to end.
pub(super) async fn run(settings: Settings, held: String, program: &Path) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().context("install signal handlers")?;
    // A pod takes two: its agent's connection, and the watch on its filter.
    if let Err(error) = raise_files() {
        tracing::info!(%error, "the number of descriptors stays as it is");
    }
    let state = open_state(&settings).await?;
    let listener = admin::bind(settings.process.probe_port).await?;
    let node = Node::new(settings, held, state, shutdown.clone());
    // Before anybody can ask.
    let starting = node.readiness.guard("start");
    node.serve_probes(listener);
    let up = tokio::select! {
        up = Box::pin(node.start(program, starting)) => up,
        () = shutdown.told() => Ok(()),
    };
    if up.is_ok() {
        shutdown.told().await;
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.drain(node.settings.process.drain_timeout).await;
    if let Some(socket) = node.live.socket.get() {
        // Still under the lock of the state directory, so it cannot be a successor's.
        tokio::fs::remove_file(socket).await.ok();
    }
    up
}

/// File system calls, away from the runtime's threads.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a blocking step panicked")?
}

struct State {
    dir: StateDir,
    installation: String,
    epochs: Epochs,
    boot_id: String,
}

async fn open_state(settings: &Settings) -> anyhow::Result<State> {
    let (paths, given) = (settings.paths.clone(), settings.process.installation_id.clone());
    apart(move || {
        let dir = StateDir::open(&paths.state_dir, paths.allow_volatile_state).map_err(|e| {
            if e.is_setting() { BadSetting(e.into()).into() } else { anyhow::Error::from(e) }
        })?;
        if let Some(kind) = dir.volatile() {
            let path = dir.path().display();
            tracing::warn!(%path, kind, "the state directory does not outlive a reboot or the container");
        }
        let installation = config::installation_id(dir.path(), given.as_deref())?;
        let epochs = Epochs::begin(dir.path(), WallClock.now_ms())?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("read the kernel's boot id")?;
        Ok(State { dir, installation, epochs, boot_id: boot_id.trim().to_owned() })
    })
    .await
}

/// What there is to tell; filled while the process comes up.
#[derive(Default)]
struct Live {
    /// Our own socket, once it is bound.
    socket: OnceLock<PathBuf>,
    pods: OnceLock<Arc<Pods>>,
    relay: OnceLock<Arc<RelayClient>>,
    tunnels: Seen,
}

#[async_trait]
impl Insight for Live {
    async fn now(&self) -> Now {
        let all = self.pods.get().map(|pods| (pods.snapshot(), pods.ended()));
        let (pods, ended) = all.unwrap_or_default();
        let tunnels = self.tunnels.all();
        let Some(relay) = self.relay.get() else {
            return Now { pods, ended, tunnels, ..Now::default() };
        };
        let asked = async { (relay.list().await.ok(), relay.totals().await.ok()) };
        let asked = tokio::time::timeout(admin::ASK_RELAY, asked).await;
        let (relay, totals) = asked.unwrap_or_default();
        Now { pods, ended, relay, totals, tunnels }
    }
}

struct Node {
    settings: Settings,
    /// Privileges this process still has, in words.
    held: String,
    state: State,
    shutdown: Shutdown,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
}

impl Node {
    fn new(settings: Settings, held: String, state: State, shutdown: Shutdown) -> Self {
        let (readiness, metrics) = (Readiness::new(), Arc::new(Metrics::new()));
        Self { settings, held, state, shutdown, readiness, metrics, live: Arc::default() }
    }

    fn serve_probes(&self, listener: TcpListener) {
        let pages = Pages {
            about: Arc::new(About {
                version: crate::cli::build(),
                node: self.settings.process.node_name.clone(),
                provider: self.settings.provider.name.clone(),
                installation: self.state.installation.clone(),
                pid: std::process::id(),
                privileges: self.held.clone(),
            }),
            readiness: self.readiness.clone(),
            metrics: Arc::clone(&self.metrics),
            insight: self.live.clone(),
        };
        let token = self.shutdown.token();
        self.shutdown.tracker().spawn("probes", admin::serve(listener, pages, token));
    }

    /// Everything up to serving.
    async fn start(&self, program: &Path, starting: Guard) -> anyhow::Result<()> {
        let provider = self.provider(program)?;
        let rules = self.rules().await?;
        self.tend_keys(rules.pki.clone());
        let planner = Arc::new(LatePlanner::new(rules.clone().planning(Report::default())));
        self.look_at(&provider, &planner, rules).await?;
        let state_dir = self.state.dir.path().to_owned();
        let records = apart(move || Ok(Disk::open(&state_dir)?)).await?;
        let socket = self.settings.paths.node_socket();
        here!(NodeSocketBefore);
        let listener = listen(&socket).await?;
        here!(NodeSocketAfter);
        self.live.socket.set(socket).ok();
        let (relay, events) = self.attach();
        let world = World {
            provider,
            relay: relay.clone(),
            network: Arc::new(self.host()),
            records: Arc::new(records),
            guest: Arc::new(Tcp),
            planner,
            clock: Arc::new(WallClock),
            random: Arc::new(Chance),
            observer: self.metrics.clone(),
            #[cfg(feature = "crash-points")]
            crash: Arc::new(crate::crash::Sigkill),
        };
        let (tracker, token) = (self.shutdown.tracker(), self.shutdown.token());
        let pods = Pods::start(world, self.options(), events, tracker.clone(), token.clone())
            .await
            .context("take up the records")?;
        self.live.pods.set(Arc::clone(&pods)).ok();
        let limits = hypervisor::Limits::default();
        let serving = hypervisor::serve(listener, pods, limits, token, tracker.clone());
        tracker.spawn("hypervisor socket", serving);
        drop(starting);
        tracing::info!(socket = %self.settings.paths.node_socket().display(), "node serves");
        Ok(())
    }

    fn provider(&self, program: &Path) -> anyhow::Result<Arc<dyn Provider>> {
        let choice = &self.settings.provider;
        let context = choice.context(&self.state.installation, program);
        let provider = registry::build(&choice.name, &context, &choice.values)
            .map_err(|e| BadSetting(e.into()))?;
        Ok(Arc::new(Counted { provider, metrics: Arc::clone(&self.metrics) }))
    }

    fn tend_keys(&self, pki: Pki) {
        let (state_dir, token) = (self.state.dir.path().to_owned(), self.shutdown.token());
        self.shutdown.tracker().spawn("keys", async move {
            token.run_until_cancelled(keys::tend(pki, state_dir)).await;
        });
    }

    /// Asks the provider what it has, now and until it is well. With `cloud-config-verify` the
    /// process does not go on without a good answer.
    async fn look_at(
        &self,
        provider: &Arc<dyn Provider>,
        planner: &Arc<LatePlanner>,
        rules: Rules,
    ) -> anyhow::Result<()> {
        let guard = self.readiness.guard("provider");
        let (provider, planner) = (Arc::clone(provider), Arc::clone(planner));
        let look = Look { provider, planner, rules };
        if self.settings.provider.verify {
            let name = &self.settings.provider.name;
            return match look.once().await {
                Ok(()) => Ok(()),
                Err((_, reason)) => bail!("--cloud-config-verify: provider {name}: {reason}"),
            };
        }
        let token = self.shutdown.token();
        self.shutdown.tracker().spawn("provider check", async move {
            token.run_until_cancelled(look.until_well(guard)).await;
        });
        Ok(())
    }

    /// The relay's client, and its events, which on their way tell readiness whether it is there.
    fn attach(&self) -> (Arc<RelayClient>, mpsc::Receiver<Event>) {
        let paths = &self.settings.paths;
        let (tracker, token) = (self.shutdown.tracker(), self.shutdown.token());
        let (relay, events) = RelayClient::start(
            paths.control_socket(),
            paths.node_socket(),
            crate::cli::build(),
            &tracker,
            token,
        );
        self.live.relay.set(Arc::clone(&relay)).ok();
        let (pass, passed) = mpsc::channel(EVENTS);
        let away = self.readiness.guard("relay");
        tracker.spawn("relay readiness", pass_on(events, pass, self.readiness.clone(), away));
        (relay, passed)
    }

    fn host(&self) -> Host {
        let tunnel = &self.settings.tunnel;
        let inspect = InspectSettings {
            host_interface: tunnel.host_interface.clone(),
            pod_subnet_cidrs: tunnel.pod_subnets.clone(),
        };
        Host::new(inspect, tunnel.policy.clone(), self.live.tunnels.clone())
    }

    /// Opens the keys. Nothing damaged is replaced.
    async fn rules(&self) -> anyhow::Result<Rules> {
        let (dir, tls) =
            (self.state.dir.path().join(keys::DIRECTORY), self.settings.link.tls.clone());
        let pki = apart(move || {
            let given = !matches!(tls, Tls::Disabled | Tls::Automatic { client: None });
            let pki = Pki::open(&dir, &tls, SystemTime::now()).context("certificates");
            if given { pki.map_err(|e| BadSetting(e).into()) } else { pki }
        });
        let pki = pki.await?.with_profile(self.settings.link.profile.clone());
        let pods = &self.settings.pods;
        Ok(Rules {
            pki,
            requests: RequestRules {
                rs_default_pair_is_unset: pods.rs_default_pair_is_unset,
                default_initdata: pods.default_initdata.clone(),
            },
            plans: PlanRules {
                installation: self.state.installation.clone(),
                node_name: self.settings.process.node_name.clone(),
                epoch: self.state.epochs.own(),
                user_tags: self.settings.provider.tags.clone(),
                cost_tags: pods.cost_tags.clone(),
                vxlan_port: self.settings.tunnel.vxlan_port,
                profile: self.settings.link.profile.clone(),
                scratch_space: pods.scratch_space,
                ..PlanRules::default()
            },
            labels: Some(Arc::new(Bundles(pods.volumes.bundles.clone()))),
            volumes: Some(pods.volumes.clone()),
        })
    }

    fn options(&self) -> Options {
        let Settings { paths, process, link, tunnel, pods, sweep, .. } = &self.settings;
        Options {
            installation: self.state.installation.clone(),
            node_name: process.node_name.clone(),
            epochs: self.state.epochs.clone(),
            boot_id: self.state.boot_id.clone(),
            pods_dir: paths.pods_dir.clone(),
            vxlan_min_id: tunnel.vxlan_min_id,
            vxlan_port: tunnel.vxlan_port,
            forwarder_port: link.forwarder_port,
            limit: pods.limit.and_then(|n| usize::try_from(n).ok()),
            concurrent_creates: pods.max_concurrent_creates,
            keep_failed: pods.keep_failed,
            capacity_cooldown: pods.capacity_cooldown,
            start_deadline: pods.start_timeout,
            expiry: pods.sandbox_expiry,
            orphan_grace: pods.orphan_grace,
            liveness: link.liveness_timeout,
            give_up: link.give_up,
            ready: link.proxy_timeout,
            sweep_interval: sweep.interval,
            sweep_grace: sweep.grace,
            sweep_dry_run: sweep.dry_run,
            settle: crate::crash::settle(Options::default().settle),
        }
    }
}

/// Passes events on; while the relay is away, `relay` is missing. With its first word this process
/// serves.
async fn pass_on(
    mut events: mpsc::Receiver<Event>,
    pass: mpsc::Sender<Event>,
    ready: Readiness,
    away: Guard,
) {
    let mut away = Some(away);
    while let Some(event) = events.recv().await {
        match &event {
            Event::Attached { epoch, pending } => {
                tracing::info!(epoch, pending = pending.len(), "relay is there");
                away = None;
                if !ready.started() {
                    ready.serving();
                    notify(&[sd_notify::NotifyState::Ready]);
                }
            }
            Event::Lost => {
                tracing::warn!("relay is away");
                away = Some(ready.guard("relay"));
            }
            _ => {}
        }
        if pass.send(event).await.is_err() {
            break;
        }
    }
    drop(away);
}

/// A socket that nobody serves any more is replaced; one that is served is an error.
async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if UnixStream::connect(path).await.is_ok() {
        bail!("{shown} is served by another node process");
    }
    let path: PathBuf = path.to_owned();
    apart(move || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(&path).context("remove old socket")?;
            }
            // Somebody's data, perhaps, or a way to have us bind elsewhere.
            Ok(_) => bail!("something that is no socket stands there"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context("look for an old socket"),
        }
        let listener = std::os::unix::net::UnixListener::bind(&path).context("bind socket")?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).context("close socket")?;
        listener.set_nonblocking(true).context("socket")?;
        Ok(listener)
    })
    .await
    .and_then(|listener| Ok(UnixListener::from_std(listener)?))
    .with_context(|| format!("--run-dir: serve {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_nodes_socket_takes_the_place_of_a_dead_one_and_of_nothing_else() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("run/node.sock");
        let first = listen(&path).await.expect("served");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = format!("{:#}", listen(&path).await.expect_err("served"));
        assert!(second.contains("another node process"), "{second}");
        drop(first);
        drop(listen(&path).await.expect("the first one is dead"));
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "data").expect("written");
        let data = format!("{:#}", listen(&path).await.expect_err("somebody's data"));
        assert!(data.contains("--run-dir") && data.contains("no socket"), "{data}");
        assert_eq!(std::fs::read(&path).expect("kept"), b"data");
    }
}
