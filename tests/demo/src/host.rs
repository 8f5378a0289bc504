//! `--provider libvirt`: a real libvirtd with QEMU in the namespace behind the worker, and an image made on
//! the spot with our podvm and the demo's agent.
//!
//! ```text
//!   outside the namespaces: image ─▶ beside the programs     (Debian's packages come from the network)
//!   inside: worker ─ peerpodd ── libvirt's socket ──▶ cluster ─ libvirtd, dnsmasq, QEMU ─ pool with that image
//!             └──────────── agent link, tunnel ──── libvirt's network 10.97.0.0/16 ──▶ VM
//! ```

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use peerpod_standin::lab::network::spawn_in;
use peerpod_standin::lab::{Binaries, Lab, blocking};

use crate::programs::{directory, top};

/// The image, beside the programs that are in it.
const IMAGE: &str = "podvm-demo.qcow2";
/// MiB of a VM: the firmware has the whole image in memory.
const MEMORY: &str = "768";
/// The provider's default.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// Says what the machine lacks for it, before anything is built.
pub(crate) fn needed() -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "--provider libvirt needs root: libvirtd makes bridges and devices"
    );
    let programs =
        ["libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img", "dnsmasq", "objcopy"];
    let there = |program: &&str| {
        let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
        dirs.iter().any(|dir| dir.join(program).is_file())
    };
    let mut missing: Vec<&str> = programs.into_iter().filter(|p| !there(p)).collect();
    missing.extend(Some(FIRMWARE).filter(|path| !Path::new(path).is_file()));
    ensure!(
        missing.is_empty(),
        "{} not there; apt-get install --no-install-recommends libvirt-dev pkg-config \
         libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base ovmf binutils",
        missing.join(", ")
    );
    Ok(())
}

/// Makes the image anew, so that it has the programs as they are. Once Debian's packages are there it takes
/// a second or two.
pub(crate) fn make_image() -> anyhow::Result<()> {
    let directory = directory()?;
    let binaries = Binaries::beside(&directory);
    #[allow(clippy::disallowed_methods, reason = "the image is made by a script")]
    let status = Command::new("bash")
        .arg(top().join("tests/clouds/double/podvm-image.sh"))
        .arg(top().join("tests/.tools/podvm-image"))
        .arg(directory.join(IMAGE))
        .args([&binaries.podvm, &binaries.agent])
        .stdin(Stdio::null())
        .status();
    let status = status.context("start podvm-image.sh")?;
    ensure!(status.success(), "podvm-image.sh: {status}");
    Ok(())
}

/// A host with libvirt; it ends with this value, and its VMs with it.
#[derive(Debug)]
pub(crate) struct Host {
    process: Child,
    directory: PathBuf,
    /// What the pool and the domains' files were at the beginning.
    before: BTreeSet<PathBuf>,
}

impl Host {
    /// Starts it in the namespace behind the worker.
    pub(crate) async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let name: u32 = rand::random();
        let directory = PathBuf::from(format!("/tmp/libvirt-demo-{name:08x}"));
        let image = crate::programs::directory()?.join(IMAGE);
        let network = lab.network().clone();
        blocking(move || {
            std::fs::create_dir(&directory).context("make libvirt's directory")?;
            #[allow(clippy::disallowed_methods, reason = "the host of the VMs is a process")]
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
                .arg(top().join("tests/clouds/double/libvirt.sh"))
                .args([directory.as_path(), Path::new("real")])
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            let process = spawn_in(network.cluster(), &mut command)?;
            let mut host = Self { process, directory, before: BTreeSet::new() };
            let output = host.process.stdout.take().context("libvirt's output")?;
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            ensure!(lines.any(|l| l.starts_with("listening ")), "libvirtd does not come up");
            let to = host.directory.join("images").join(IMAGE);
            std::fs::copy(&image, &to).with_context(|| format!("copy {}", image.display()))?;
            host.virsh(&["pool-refresh", "default"])?;
            host.before = host.files();
            Ok(host)
        })
        .await
    }

    fn uri(&self) -> String {
        let socket = self.directory.join("run/libvirt/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// What the daemon is told, by the names of the users' guide.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        [
            ("CLOUD_PROVIDER", "libvirt"),
            ("LIBVIRT_URI", self.uri().as_str()),
            ("LIBVIRT_POOL", "default"),
            ("LIBVIRT_NET", "default"),
            ("LIBVIRT_VOL_NAME", IMAGE),
            ("LIBVIRT_CPU", "2"),
            ("LIBVIRT_MEMORY", MEMORY),
            ("LIBVIRT_DOMAIN_TYPE", "qemu"),
            ("ROOT_VOLUME_SIZE", "0"),
            ("DISABLECVM", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    /// Domains and files that were not there at the beginning.
    pub(crate) fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = self.domains()?;
        let files = self.files();
        left.extend(files.difference(&self.before).map(|path| path.display().to_string()));
        Ok(left)
    }

    /// Names of all domains.
    pub(crate) fn domains(&self) -> anyhow::Result<Vec<String>> {
        let names = self.virsh(&["list", "--all", "--name"])?;
        let names = names.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// Copies what VMs have written to their consoles to the daemon's logs.
    pub(crate) fn save_consoles(&self, logs: &Path) {
        for path in self.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "log")) {
            let copied = path.file_name().map(|name| std::fs::copy(&path, logs.join(name)));
            if let Some(Err(error)) = copied {
                eprintln!("{} not copied: {error}", path.display());
            }
        }
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        let folders = ["images", "var/qemu/nvram", "etc/qemu"].map(|f| self.directory.join(f));
        let entries = folders.iter().flat_map(std::fs::read_dir).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
    }

    fn virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        #[allow(clippy::disallowed_methods, reason = "virsh is a process")]
        let mut command = Command::new("virsh");
        let output = command.args(["-q", "-c", &self.uri()]).args(arguments).output();
        let output = output.context("start virsh")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "virsh {arguments:?}: {}", errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
