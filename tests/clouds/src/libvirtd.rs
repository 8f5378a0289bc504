//! A libvirtd of a test's own: `double/libvirt.sh` in new namespaces, with a pool, a network and QEMU.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

/// It ends with this value, and all of its VMs with it.
#[derive(Debug)]
pub struct Libvirtd {
    process: Child,
    directory: tempfile::TempDir,
}

/// Who gives the VMs of a [`Libvirtd`] their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leases {
    /// The script: guests without a system have one, too.
    Pretended,
    /// libvirt's own DHCP.
    Real,
}

impl Libvirtd {
    /// `None` where it cannot be; says why.
    ///
    /// # Errors
    /// When it does not come up.
    #[allow(clippy::disallowed_methods, reason = "libvirtd is a process")]
    pub fn start(test: &str, leases: Leases) -> anyhow::Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            println!("SKIP {test}: needs root, for namespaces");
            return Ok(None);
        }
        let directory = tempfile::Builder::new().prefix("libvirt-").tempdir_in("/tmp")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("double/libvirt.sh");
        let mut process = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
            .arg(script)
            .arg(directory.path())
            .arg(if leases == Leases::Real { "real" } else { "pretended" })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let libvirtd = Self { process, directory };
        let up = lines.map_while(Result::ok).any(|line| line.starts_with("listening "));
        ensure!(up, "libvirtd does not come up");
        Ok(Some(libvirtd))
    }

    /// A URI of its socket `libvirt-sock` or `libvirt-sock-ro`.
    pub fn uri_of(&self, socket: &str) -> String {
        let path = self.directory.path().join("run/libvirt").join(socket);
        format!("qemu+unix:///system?socket={}", path.display())
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        self.uri_of("libvirt-sock")
    }

    /// What the script has made: `run`, `etc`, `images`, `log` and more.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The network namespace in which the VMs' network is.
    ///
    /// # Errors
    /// When it has ended.
    pub fn network(&self) -> anyhow::Result<PathBuf> {
        let pid = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_whitespace().next().context("it has ended")?;
        Ok(PathBuf::from(format!("/proc/{child}/ns/net")))
    }

    /// Names of all files that VMs have in the pool and beside it.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn files(&self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        for folder in ["images", "var/qemu/nvram", "etc/qemu"] {
            let Ok(entries) = std::fs::read_dir(self.directory.path().join(folder)) else {
                continue;
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    files.insert(entry.path());
                }
            }
        }
        Ok(files)
    }

    /// Lets go wrong what the script's hook knows: makes the file `etc/<flag>`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flag(&self, flag: &str) -> std::io::Result<()> {
        std::fs::write(self.directory.path().join("etc").join(flag), "")
    }

    /// Whether a flag is there still.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.directory.path().join("etc").join(flag).exists()
    }

    /// Takes a flag away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn unflag(&self, flag: &str) -> std::io::Result<()> {
        std::fs::remove_file(self.directory.path().join("etc").join(flag))
    }

    /// Runs virsh and gives what it prints.
    ///
    /// # Errors
    /// When it fails, with its words.
    #[allow(clippy::disallowed_methods, reason = "virsh is a process")]
    pub fn virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output =
            Command::new("virsh").args(["-q", "-c", &self.uri()]).args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "virsh {arguments:?}: {text}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
