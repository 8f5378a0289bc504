//! A provider without a cloud: a "VM" is a set of namespaces on this machine with the real `podvm`
//! program in it, and an agent behind that. For development, the demo and tests; it isolates
//! nothing.
//!
//! ```text
//!   create ─▶ lock the directory ─▶ vm.json ─▶ bridge, user data ─▶ guest starts ─▶ init.json
//!             (half-made or dead: goes on from where it stands; runs: the answer)
//!   delete ─▶ lock the directory ─▶ kill the init, wait ─▶ port, group, directory ─▶ last: bridge
//!   list   ─▶ every directory with our installation's tag
//! ```
//! All state lies in the directories ([`directory`]), so a restarted daemon goes on with them; a
//! VM is no child of the daemon for longer than its start. VMs reach the worker and one another,
//! nothing beyond. The host's objects are those of the network namespace the daemon runs in.

mod cgroup;
mod check;
mod directory;
mod guest;
mod network;
mod process;
mod settings;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::IpNetwork;

pub use guest::guest_main;
pub use settings::{Settings, keys};

use crate::{
    Candidate, Deletion, Error, Kind, Provider, Report, Resource, ResourceKind, UserDataLimit, Vm,
    VmName, VmRef, VmSpec, Volume, tags,
};
use directory::{Directory, LockError, Record};
use guest::Boot;
use network::NetworkError;

/// The provider's name.
pub const NAME: &str = "local";
/// Largest user data that podvm reads at all, in bytes.
pub const USER_DATA_LIMIT: UserDataLimit = UserDataLimit { size: 256 << 10, base64: false };

/// A start takes some ten milliseconds; this long only on a machine that has stopped to breathe.
const START: Duration = Duration::from_secs(20);
/// How long a killed VM may take to end before delete answers `Accepted`.
const END: Duration = Duration::from_secs(5);

/// The provider on this machine.
#[derive(Clone, Debug)]
pub struct Local {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    installation: String,
    /// Held while the bridge is made or removed and while an address is chosen.
    network: Mutex<()>,
    /// Where the search for a free address goes on, so that one that has just become free rests.
    next: AtomicUsize,
}

/// What a create found.
enum Found {
    /// The VM runs; nothing is left to do.
    Running(Vm),
    /// Everything is ready to start it.
    Ready { directory: Directory, console: File, vm: Vm },
}

impl Local {
    /// Touches nothing yet. `installation` is the tag by which `list` knows what is ours.
    pub fn new(settings: Settings, installation: &str) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                installation: installation.to_owned(),
                network: Mutex::new(()),
                next: AtomicUsize::new(0),
            }),
        }
    }

    async fn lock(
        &self,
        operation: &'static str,
        name: &VmName,
        make: bool,
    ) -> Result<Option<Directory>, Error> {
        let path = self.shared.settings.state_dir.join(name.as_str());
        Directory::lock(path, make, START).await.map_err(|e| {
            let kind =
                if matches!(e, LockError::Busy(_)) { Kind::Unavailable } else { Kind::Other };
            Error::new(NAME, operation, kind, e.to_string())
        })
    }

    /// Runs the guest's start and waits for it. A start that is dropped here goes on to its end,
    /// and keeps the directory locked until then.
    #[allow(clippy::disallowed_methods, reason = "a VM begins as a process of our own program")]
    async fn start(&self, directory: &Directory, console: File) -> Result<(), Error> {
        let refuse = |kind, message: String| Err(Error::new(NAME, "create", kind, message));
        let Some((program, arguments)) = self.shared.settings.guest_program.split_first() else {
            return refuse(Kind::Invalid, "the guest program is not set".to_owned());
        };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env_clear().stdout(Stdio::null()).stderr(console);
        command.stdin(directory.share().map_err(|e| io_error("create", e))?);
        let mut child = command.spawn().map_err(|e| io_error("create", e))?;
        match tokio::time::timeout(START, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(_)) => {
                let dir = directory.path().to_owned();
                let said = self.blocking("create", |_| Ok(directory::last_words(dir))).await?;
                refuse(Kind::Other, format!("the VM did not start: {said}"))
            }
            Ok(Err(e)) => Err(io_error("create", e)),
            Err(_) => {
                let _ = child.start_kill();
                let message = format!("the VM did not start within {} s", START.as_secs());
                refuse(Kind::Unavailable, message)
            }
        }
    }

    /// Off the runtime's threads; what it holds it holds to its end, even if the caller has gone.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.unwrap_or_else(|e| Err(io_error(operation, std::io::Error::other(e))))
    }
}

impl Shared {
    /// All of a create but the start.
    fn prepare(
        &self,
        directory: Directory,
        spec: &VmSpec,
        candidate: &Candidate,
    ) -> Result<Found, Error> {
        let io = |e| io_error("create", e);
        let known = directory.record().map_err(io)?;
        if let Some(record) = &known {
            refuse_other(record, spec)?;
            if directory.runs().map_err(io)? {
                self.network(|_| Ok(()))?;
                return Ok(Found::Running(record.as_vm()));
            }
        }
        if let Some(problem) = check::programs(&self.settings).into_iter().next() {
            return Err(Error::new(NAME, "create", Kind::Invalid, problem));
        }
        let (record, mtu) = match known {
            Some(record) => self.network(|_| Ok(record))?,
            None => self.settle(&directory, spec, candidate)?,
        };
        // A guest that was killed halfway may have left it.
        network::remove_port(&record.name).map_err(|e| network_error("create", &e))?;
        let boot = self.boot(&record, spec, mtu)?;
        let console = directory.prepare_start(&spec.user_data.0, &boot).map_err(io)?;
        Ok(Found::Ready { vm: record.as_vm(), directory, console })
    }

    /// Chooses an address and writes down whose it is.
    fn settle(
        &self,
        directory: &Directory,
        spec: &VmSpec,
        candidate: &Candidate,
    ) -> Result<(Record, u32), Error> {
        let io = |e| io_error("create", e);
        self.network(|used| {
            let record = Record::new(spec, candidate, self.free_address(used)?).map_err(io)?;
            directory.set_record(&record).map_err(io)?;
            Ok(record)
        })
    }

    /// Makes or mends the bridge, and does something about the addresses in use while nobody else
    /// can. Returns what that gave and the MTU of the VMs.
    fn network<T>(
        &self,
        choose: impl FnOnce(&BTreeSet<IpAddr>) -> Result<T, Error>,
    ) -> Result<(T, u32), Error> {
        let _held = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        let records = directory::records(&self.settings.state_dir);
        let records = records.map_err(|e| io_error("create", e))?;
        let used: BTreeSet<IpAddr> = records.into_iter().map(|(_, r)| r.address).collect();
        let mtu = network::ensure(self.settings.cidr, self.settings.gateway(), &used)
            .map_err(|e| network_error("create", &e))?;
        Ok((choose(&used)?, mtu))
    }

    fn free_address(&self, used: &BTreeSet<IpAddr>) -> Result<IpAddr, Error> {
        let next = self.next.load(Ordering::Relaxed);
        let all = || self.settings.vm_addresses().enumerate();
        let found = all().skip(next).chain(all().take(next)).find(|(_, a)| !used.contains(a));
        let full = || network_error("create", &NetworkError::Full(self.settings.cidr));
        let (n, address) = found.ok_or_else(full)?;
        self.next.store(n + 1, Ordering::Relaxed);
        Ok(address)
    }

    fn boot(&self, record: &Record, spec: &VmSpec, mtu: u32) -> Result<Boot, Error> {
        let address = IpNetwork::new(record.address, self.settings.cidr.prefix());
        Ok(Boot {
            name: record.name.clone(),
            address: address.map_err(|e| io_error("create", std::io::Error::other(e)))?,
            gateway: self.settings.gateway(),
            mtu,
            podvm: with_disks(self.settings.podvm.clone(), &spec.volumes),
            agent: self.settings.agent.clone(),
            boot_delay: self.settings.boot_delay,
        })
    }

    fn take_away(&self, directory: Directory, vm: &VmRef) -> Result<Deletion, Error> {
        let io = |e| io_error("delete", e);
        if directory.record().map_err(io)?.is_some_and(|r| r.sandbox != vm.sandbox) {
            // Ours is absent; that of another sandbox is left alone.
            return Ok(Deletion::Gone);
        }
        let init = directory.init().map_err(io)?;
        if let Some(process) = init.map(|i| i.open()).transpose().map_err(io)?.flatten()
            && !process.kill(END).map_err(io)?
        {
            return Ok(Deletion::Accepted);
        }
        network::remove_port(&vm.name).map_err(|e| network_error("delete", &e))?;
        if let Err(e) = cgroup::remove(&vm.name) {
            tracing::warn!(vm = %vm.name, error = %e, "an empty control group stays behind");
        }
        self.tidy(Some(directory))
    }

    /// Removes the last of a VM, and the bridge with the last VM. The bridge first: no one comes back to
    /// a VM whose directory has gone, as a daemon that was killed in between would have to.
    fn tidy(&self, directory: Option<Directory>) -> Result<Deletion, Error> {
        let io = |e| io_error("delete", e);
        let _held = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        let own = directory.as_ref().map(Directory::path);
        if !directory::others(&self.settings.state_dir, own).map_err(io)? {
            network::remove_bridge().map_err(|e| network_error("delete", &e))?;
        }
        directory.map_or(Ok(()), Directory::remove).map_err(io)?;
        Ok(Deletion::Gone)
    }

    fn resources(&self) -> Result<Vec<Resource>, Error> {
        let io = |e| io_error("list", e);
        let mut found = Vec::new();
        for (path, record) in directory::records(&self.settings.state_dir).map_err(io)? {
            if record.tags.get(tags::INSTALLATION) == Some(&self.installation) {
                found.push(resource(record, directory::runs(&path).map_err(io)?));
            }
        }
        Ok(found)
    }

    fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let io = |e| io_error("console", e);
        let all = directory::records(&self.settings.state_dir).map_err(io)?;
        let is_it = |record: &Record| record.name == vm.name && record.sandbox == vm.sandbox;
        let path = all.into_iter().find(|(_, record)| is_it(record)).map(|(path, _)| path);
        path.map_or(Ok(None), |path| directory::console(&path).map_err(io))
    }
}

fn resource(record: Record, runs: bool) -> Resource {
    let native_id = Some(record.as_vm().native_id);
    let vm = VmRef { name: record.name, sandbox: record.sandbox, native_id };
    Resource {
        created: Some(record.created),
        running: Some(runs),
        ..Resource::new(ResourceKind::Vm, vm, record.tags)
    }
}

/// A disk of this machine is the VM's because its podvm is told of it, and of no other.
fn with_disks(mut podvm: Vec<OsString>, volumes: &[Volume]) -> Vec<OsString> {
    if podvm.len() == 1 && !volumes.is_empty() {
        podvm.push("run".into());
    }
    podvm.extend(volumes.iter().map(|v| format!("--disk={0}={0}", v.disk).into()));
    podvm
}

/// What can be said before anything is touched.
fn refuse_malformed(spec: &VmSpec) -> Result<(), Error> {
    let refuse = |message| Err(Error::new(NAME, "create", Kind::Invalid, message));
    let name = &spec.name;
    if !name.is_legal() {
        return refuse(format!("the name {:?} is not a VM's", name.as_str()));
    }
    for volume in &spec.volumes {
        let found = std::fs::metadata(&volume.disk);
        let is_device = found.is_ok_and(|f| f.file_type().is_block_device());
        if !volume.disk.starts_with("/dev/") || !is_device {
            return refuse(format!("volume {:?} is no block device of this machine", volume.disk));
        }
    }
    USER_DATA_LIMIT.refuse(NAME, &spec.user_data)
}

/// A VM that is there is the answer only to the very spec that made it.
fn refuse_other(record: &Record, spec: &VmSpec) -> Result<(), Error> {
    let refuse = |message| Err(Error::new(NAME, "create", Kind::Invalid, message));
    let name = &spec.name;
    if record.sandbox != spec.sandbox {
        return refuse(format!("VM {name} is there already and belongs to another sandbox"));
    }
    let digest = directory::digest(spec).map_err(|e| io_error("create", e))?;
    if record.digest != digest {
        return refuse(format!("VM {name} is there already, made from another specification"));
    }
    Ok(())
}

fn io_error(operation: &'static str, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Other,
    };
    Error::new(NAME, operation, kind, error.to_string())
}

fn network_error(operation: &'static str, error: &NetworkError) -> Error {
    let kind = match error {
        NetworkError::Overlap { .. } | NetworkError::Changed(_) | NetworkError::Taken => {
            Kind::Invalid
        }
        NetworkError::Full(_) => Kind::Capacity,
        NetworkError::Kernel(_) => Kind::Other,
    };
    Error::new(NAME, operation, kind, error.to_string())
}

impl std::fmt::Display for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

#[async_trait::async_trait]
impl Provider for Local {
    async fn check(&self) -> Result<Report, Error> {
        self.blocking("check", |shared| Ok(check::report(&shared.settings))).await
    }

    async fn create(&self, spec: &VmSpec, candidate: &Candidate) -> Result<Vm, Error> {
        refuse_malformed(spec)?;
        let gone = || Error::new(NAME, "create", Kind::Unavailable, "the VM's directory has gone");
        let directory = self.lock("create", &spec.name, true).await?.ok_or_else(gone)?;
        let (wanted, at) = (spec.clone(), candidate.clone());
        let prepare = move |shared: &Shared| shared.prepare(directory, &wanted, &at);
        match self.blocking("create", prepare).await? {
            Found::Running(vm) => Ok(vm),
            Found::Ready { directory, console, vm } => {
                self.start(&directory, console).await?;
                Ok(vm)
            }
        }
    }

    async fn delete(&self, vm: &VmRef) -> Result<Deletion, Error> {
        if !vm.name.is_legal() {
            // Nothing of that name can have been made.
            return Ok(Deletion::Gone);
        }
        let Some(directory) = self.lock("delete", &vm.name, false).await? else {
            // An earlier delete may have died before it could remove the bridge.
            return self.blocking("delete", |shared| shared.tidy(None)).await;
        };
        let vm = vm.clone();
        self.blocking("delete", move |shared| shared.take_away(directory, &vm)).await
    }

    async fn list(&self) -> Result<Vec<Resource>, Error> {
        self.blocking("list", Shared::resources).await
    }

    async fn console(&self, vm: &VmRef) -> Result<Option<String>, Error> {
        let vm = vm.clone();
        self.blocking("console", move |shared| shared.console(&vm)).await
    }
}
