//! A guest that boots on libvirt: it reads its user data, has a lease of libvirt's own DHCP, and serves with
//! the key from the user data; then nothing is left of it. Emulated, so it takes a minute; on IBM Z some.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use peerpod_clouds::{INSTALLATION, Leases, Libvirtd};
use peerpod_netlink::Netns;
use peerpod_providers::registry::{self, Context};
use peerpod_providers::settings::Values;
use peerpod_providers::{
    Candidate, Deletion, Market, Provider, UserData, Vm, VmName, VmRef, VmSpec, tags,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// What a boot may take on a busy machine that emulates.
const PATIENCE: Duration = Duration::from_secs(300);
const PORT: u16 = 15150;

/// What the image is made of.
struct Kind {
    /// `LIBVIRT_ARCH`.
    arch: &'static str,
    podvm: PathBuf,
    /// Debian's files for another machine than this one.
    root: Option<PathBuf>,
}

impl Kind {
    /// This machine's own, with the podvm that was built beside the tests.
    fn own() -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        // Tests lie in deps/, one directory below the programs.
        let beside = own.ancestors().nth(2).context("where the programs lie")?;
        Ok(Self { arch: "", podvm: beside.join("podvm"), root: None })
    }

    /// IBM Z, from the directory that `tests/run deep-s390x` names; `None` without it.
    fn z() -> Option<Self> {
        let made = PathBuf::from(std::env::var_os("PEERPODD_S390X")?);
        Some(Self { arch: "s390x", podvm: made.join("podvm"), root: Some(made.join("root")) })
    }
}

/// Makes the image in the pool.
#[allow(clippy::disallowed_methods, reason = "the image is made by a script")]
fn image(libvirtd: &Libvirtd, kind: &Kind) -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = here.ancestors().nth(2).context("top")?.join("tests/.tools/podvm-image");
    let status = Command::new("bash")
        .arg(here.join("double/podvm-image.sh"))
        .arg(cache)
        .arg(libvirtd.directory().join("images/podvm.qcow2"))
        .arg(&kind.podvm)
        .envs(kind.root.as_ref().map(|root| ("PODVM_ROOT", root)))
        .status()?;
    ensure!(status.success(), "podvm-image.sh: {status}");
    libvirtd.virsh(&["pool-refresh", "default"]).map(drop)
}

fn provider(libvirtd: &Libvirtd, kind: &Kind, source: &str) -> anyhow::Result<Arc<dyn Provider>> {
    let context = Context {
        installation: INSTALLATION.to_owned(),
        program: "/nowhere/peerpodd".into(),
        search: String::new(),
        tags: BTreeMap::new(),
        forwarder_port: PORT,
        vxlan_port: 9000,
    };
    let values: Values = [
        ("uri", libvirtd.uri().as_str()),
        ("vol-name", "podvm.qcow2"),
        ("domain-type", "qemu"),
        ("arch", kind.arch),
        ("cpu", "2"),
        ("memory", "512"),
        ("root-volume-size", "0"),
        ("address-source", source),
    ]
    .into_iter()
    .collect();
    Ok(registry::build("libvirt", &context, &values)?)
}

/// User data with a certificate for the forwarder, which is its own anchor.
fn user_data() -> anyhow::Result<(UserData, CertificateDer<'static>)> {
    let made = rcgen::generate_simple_self_signed(vec!["podvm".to_owned()])?;
    let apf = serde_json::json!({
        "tls-server-cert": made.cert.pem(),
        "tls-server-key": made.signing_key.serialize_pem(),
    });
    let file = |path: &str, content: String| serde_json::json!({"path": path, "content": content});
    let all = serde_json::json!({"write_files": [
        file("/run/peerpod/apf.json", apf.to_string()),
        file("/run/peerpod/aa.toml", String::new()),
    ]});
    Ok((UserData(format!("#cloud-config\n{all}\n")), made.cert.der().clone()))
}

/// Connects from the VMs' own network and looks whether the other end has the key of that certificate.
fn serves(network: &Netns, to: IpAddr, anchor: &CertificateDer<'static>) -> anyhow::Result<()> {
    let mut anchors = RootCertStore::empty();
    anchors.add(anchor.clone())?;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(anchors).with_no_client_auth();
    let at = SocketAddr::new(to, PORT);
    let dial = || TcpStream::connect_timeout(&at, Duration::from_secs(5)).map_err(Dial::from);
    let mut stream = network.run(dial)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from("podvm")?;
    let mut tls = ClientConnection::new(Arc::new(config), name)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Dial {
    #[error(transparent)]
    Namespace(#[from] peerpod_netlink::Error),
    #[error(transparent)]
    Connect(#[from] std::io::Error),
}

async fn in_time(
    what: &str,
    create: impl Future<Output = Result<Vm, peerpod_providers::Error>>,
) -> anyhow::Result<Vm> {
    let begin = Instant::now();
    let vm = tokio::time::timeout(PATIENCE, create).await.context("no address in time")??;
    println!("libvirt: {what} after {} ms", begin.elapsed().as_millis());
    Ok(vm)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_reads_its_user_data_and_serves_at_the_address_of_its_lease()
-> anyhow::Result<()> {
    let test = "a_guest_boots_reads_its_user_data_and_serves_at_the_address_of_its_lease";
    let Some(libvirtd) = Libvirtd::start(test, Leases::Real)? else { return Ok(()) };
    boots(&libvirtd, &Kind::own()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_on_an_emulated_ibm_z() -> anyhow::Result<()> {
    let test = "a_guest_boots_on_an_emulated_ibm_z";
    let Some(kind) = Kind::z() else {
        println!("SKIP {test}: needs what is built for IBM Z: tests/run deep-s390x");
        return Ok(());
    };
    let Some(libvirtd) = Libvirtd::start(test, Leases::Real)? else { return Ok(()) };
    boots(&libvirtd, &kind).await
}

async fn boots(libvirtd: &Libvirtd, kind: &Kind) -> anyhow::Result<()> {
    image(libvirtd, kind)?;
    let before = libvirtd.files()?;
    let ours = provider(libvirtd, kind, "lease")?;
    let report = ours.check().await?;
    ensure!(report.problems().is_none(), "{:?}", report.findings);
    let sandbox = "ab".repeat(32);
    let (data, anchor) = user_data()?;
    let spec = VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), INSTALLATION.to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
        ]),
        user_data: data,
        template: report.template,
        ..VmSpec::new(VmName::first_form("boot", &sandbox), sandbox)
    };
    let (number, zone, market) = (0, None, Market::OnDemand);
    let place = Candidate { number, instance_type: "2x512".to_owned(), zone, market };
    let vm = in_time("a lease", ours.create(&spec, &place)).await?;
    let address = *vm.addresses.first().context("no address")?;
    let leases = libvirtd.virsh(&["net-dhcp-leases", "default"])?;
    ensure!(leases.contains(&address.to_string()), "{address} is none of {leases}");

    let network = Netns::open(libvirtd.network()?)?;
    let begin = Instant::now();
    while let Err(error) = serves(&network, address, &anchor) {
        if begin.elapsed() > PATIENCE {
            let console = ours.console(&reference(&spec)).await;
            bail!("podvm does not serve at {address}: {error:#}; console: {console:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("libvirt: served {} ms after the lease", begin.elapsed().as_millis());

    // Its agent also tells of an interface without a hardware address.
    let by_agent = provider(libvirtd, kind, "agent")?;
    let again = in_time("the agent's address", by_agent.create(&spec, &place)).await?;
    ensure!(again == vm, "{again:?}, and by lease {vm:?}");

    let gone = ours.delete(&reference(&spec)).await?;
    ensure!(gone == Deletion::Gone && ours.list().await?.is_empty(), "{gone:?}");
    let after = libvirtd.files()?;
    ensure!(before == after, "{before:?} was, {after:?} is");
    ensure!(libvirtd.virsh(&["list", "--all", "--name"])?.trim().is_empty(), "a domain stays");
    Ok(())
}

fn reference(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}
