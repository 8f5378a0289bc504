//! Puts the parts together, in the order in which a VM comes up, and takes them down again.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::session;
use peerpod_tunnel::link::tls::{Profile, ServerTls};
use peerpod_tunnel::network::guest::GuestNetwork;
use podvm::apf::{Apf, ToFollow};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Missing};
use crate::forwarder::{Forwarder, Settings};
use crate::volumes::hand::Hand;
use crate::volumes::{self, Volumes};
use crate::{cli, interruption, listener, network, provision, userdata};

/// Cancels `stop` at the first SIGTERM or SIGINT; a second one leaves at once.
pub(crate) fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if stop.is_cancelled() {
                tracing::warn!("second signal: leaving at once");
                std::process::exit(1);
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// `podvm process-user-data`.
pub(crate) async fn process_user_data(
    args: cli::ProcessUserData,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    match args.job {
        cli::ProvisionJob::Version => print_version(),
        cli::ProvisionJob::ProvisionFiles(args) => tokio::select! {
            done = provision::provision(&args, None) => done?,
            () = stop.cancelled() => {}
        },
    }
    Ok(())
}

/// `podvm forwarder`.
pub(crate) async fn forwarder(
    args: cli::Forwarder,
    hand: Option<Hand>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if args.job.is_some() {
        print_version();
        return Ok(());
    }
    let early = listener::early(args.serve.listen).await?;
    serve(&args.serve, &args.config, Begun { early, hand }, stop).await
}

/// `podvm run`.
pub(crate) async fn run(
    args: cli::Run,
    hand: Option<Hand>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let early = listener::early(args.serve.listen).await?;
    let config = args.user_data.run_dir.join("apf.json");
    tokio::select! {
        done = provision::provision(&args.user_data, Some(config.clone())) => done?,
        () = stop.cancelled() => return Ok(()),
    }
    serve(&args.serve, &config, Begun { early, hand }, stop).await
}

/// What was begun before the VM's files were there.
struct Begun {
    early: Option<TcpListener>,
    hand: Option<Hand>,
}

fn print_version() {
    println!("podvm {}", env!("CARGO_PKG_VERSION"));
}

async fn serve(
    args: &cli::Serve,
    config: &Path,
    begun: Begun,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let apf = read_apf(config).await?;
    tracing::info!(namespace = %apf.pod_namespace, pod = %apf.pod_name, "configuration read");
    let tls = server_tls(args, &apf).await?;
    let sessions = if args.plain_link { &[][..] } else { &[session::ALPN] };
    let tls = tls.map(|tls| tls.config_offering(sessions)).transpose();
    let tls = tls.context("the forwarder's TLS")?;
    let network = guest_network(args, &apf)?;
    let settings = settings(args, config, apf.to_follow()?);
    raise_file_limit();
    if let Some(guest) = &network {
        let Some(underlay) = network::up(guest, args.network_wait, &stop).await? else {
            return Ok(());
        };
        tracing::info!(worker = %underlay.worker, vni = guest.vni, "pod network stands");
    }
    let served = listen_and_serve(args, settings, begun, tls, stop).await;
    if let Some(guest) = network {
        network::down(guest).await?;
        tracing::info!("pod network taken away");
    }
    served
}

async fn listen_and_serve(
    args: &cli::Serve,
    settings: Settings,
    begun: Begun,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = match begun.early {
        Some(listener) => listener,
        None => listener::listen(args.listen).await?,
    };
    let address = listener::name(&listener);
    let volumes = Volumes::new(volumes(&args.volumes), begun.hand);
    let forwarder = Forwarder::new(listener, settings, tls, volumes);
    tracing::info!(%address, "forwarder serves");
    forwarder.serve(stop, ready).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// All files are there; no more secrets are to come.
fn ready() {
    peerpod_tunnel::wipe::end();
    notify(&[sd_notify::NotifyState::Ready]);
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("telling the service manager: {error}");
    }
}

fn settings(args: &cli::Serve, config: &Path, promised: &[ToFollow]) -> Settings {
    let dir = config.parent().unwrap_or(Path::new("/"));
    let missing = Missing { files: follow::missing(dir, promised), run_dir: dir.to_owned() };
    Settings {
        agent_socket: args.kata_agent_socket.clone(),
        kept_socket: dir.join("agent.kept.sock"),
        podns: args.pod_namespace.display().to_string(),
        agent_wait: args.agent_wait,
        frame_stall: args.frame_stall,
        notices: interruption::Settings {
            source: args.notices.spot_notice,
            address: args.notices.spot_notice_address.clone(),
        },
        missing,
    }
}

fn volumes(args: &cli::Volumes) -> volumes::Settings {
    let (azure, confidential) = userdata::machine();
    volumes::Settings {
        base: args.volume_dir.clone(),
        cdh: args.cdh_socket.clone(),
        wait: args.disk_wait,
        confidential: match args.confidential {
            cli::Confidential::Auto => confidential,
            cli::Confidential::Yes => true,
            cli::Confidential::No => false,
        },
        azure,
        disks: args.disk.iter().cloned().collect(),
    }
}

async fn read_apf(path: &Path) -> anyhow::Result<Apf> {
    let text = tokio::fs::read_to_string(path).await;
    let text = Secret::new(text.with_context(|| format!("reading {}", path.display()))?);
    Ok(Apf::parse(text.expose())?)
}

/// The tunnel's description, checked; `None` for a VM without a tunnel.
fn guest_network(args: &cli::Serve, apf: &Apf) -> anyhow::Result<Option<GuestNetwork>> {
    let Some(network) = &apf.pod_network else {
        tracing::warn!("apf.json has no pod-network: the pod gets none");
        return Ok(None);
    };
    let mut guest = network.check(args.pod_namespace.clone())?;
    if network.dedicated && args.host_interface.is_none() {
        tracing::warn!(
            "the worker's tunnel has an interface of its own; without --host-interface the VM's \
             is that of the default route"
        );
    }
    if network.external_net_via_pod_vm {
        tracing::warn!("external-net-via-pod-vm is ignored: all of the pod's traffic is tunnelled");
    }
    guest.host_interface = args.host_interface.clone();
    Ok(Some(guest))
}

/// Flags stand over apf.json. `None` serves without TLS.
async fn server_tls(args: &cli::Serve, apf: &Apf) -> anyhow::Result<Option<ServerTls>> {
    if args.disable_tls {
        tracing::warn!("TLS is disabled: whoever reaches the port commands the pod");
        return Ok(None);
    }
    let mut tls = ServerTls {
        cert_pem: apf.tls_server_cert.clone(),
        key_pem: apf.tls_server_key.clone(),
        client_ca_pem: apf.tls_client_ca.clone(),
        profile: Profile {
            min_version: apf.tls_min_version.clone(),
            cipher_suites: apf.tls_cipher_suites.clone(),
        },
    };
    if let (Some(cert), Some(key)) = (&args.cert_file, &args.cert_key) {
        tls.cert_pem = read(cert).await?;
        tls.key_pem = Secret::new(read(key).await?);
    }
    if let Some(ca) = &args.ca_cert_file {
        tls.client_ca_pem = read(ca).await?;
    }
    if args.tls_skip_verify {
        tls.client_ca_pem.clear();
    }
    if tls.client_ca_pem.is_empty() {
        tracing::warn!("no client CA is known: any client that reaches the port is served");
    }
    Ok(Some(tls))
}

async fn read(path: &Path) -> anyhow::Result<String> {
    let text = tokio::fs::read_to_string(path).await;
    text.with_context(|| format!("reading {}", path.display()))
}

/// Each connection needs two files, and the usual soft limit is 1024 in all.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("raising the limit of open files: {error}");
    }
}
