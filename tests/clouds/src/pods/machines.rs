//! Where the VMs that a double makes really run: each becomes a machine of the local provider, with the
//! real `podvm` and an agent in namespaces, on the worker of a lab. `podvm` gets its user data as in
//! that cloud, from a metadata service that has nothing but what the create carried.
//!
//! ```text
//!   double ── {"boot": key, "name", "user_data"} ──▶ machines ── local provider ──▶ podvm, agent
//!          ◀── {"address": …} ───────────────────────    │                            │
//!                                                        └── metadata service ◀───────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use peerpod_netlink::Netns;
use peerpod_providers::registry::{self, Context};
use peerpod_providers::settings::Values;
use peerpod_providers::{Candidate, Deletion, Market, Provider, UserData, VmName, VmRef, VmSpec};
use peerpod_standin::lab::Lab;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::metadata::{self, Flavour};

/// Tag of the machines; it is not that of the daemon's VMs.
const OWNER: &str = "machines";
/// How long a machine may take to end.
const END: Duration = Duration::from_secs(10);

/// The machines of a lab. They end with the lab.
#[derive(Debug)]
pub struct Machines {
    socket: PathBuf,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    provider: Arc<dyn Provider>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Machine>,
    /// Machines so far.
    started: usize,
    /// Pods that had two at a time.
    doubled: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Machine {
    vm: VmRef,
    address: IpAddr,
    user_data: String,
}

/// What a double says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Boot { boot: String, name: String, user_data: String },
    Halt { halt: String },
}

impl Machines {
    /// Waits for a double's words. `flavour`: how the cloud's metadata service is asked.
    ///
    /// # Errors
    /// When the lab has no room for them.
    pub async fn start(lab: &Lab, flavour: Flavour) -> anyhow::Result<Self> {
        let shared =
            Arc::new(Shared { provider: provider(lab, flavour)?, state: Mutex::default() });
        let directory = lab.dir().path().join("machines");
        std::fs::create_dir(&directory).context("make the machines' directory")?;
        let socket = directory.join("sock");
        let netns = Netns::open(lab.network().worker().path())?;
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (at, all) = (socket.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name(OWNER.to_owned()).spawn(move || {
            let serving = within(&netns, || serve(&at, all, flavour, ready, stopped));
            if let Err(error) = serving {
                eprintln!("machines: {error:#}");
            }
        });
        let thread = Some(thread.context("a thread for the machines")?);
        is_ready.await.context("the machines do not begin")?;
        Ok(Self { socket, shared, stop: Some(stop), thread })
    }

    /// Where they are asked for.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.shared.state().running.len()
    }

    /// How many there have been.
    pub fn started(&self) -> usize {
        self.shared.state().started
    }

    /// Pods that had two at a time.
    pub fn doubled(&self) -> Vec<String> {
        self.shared.state().doubled.iter().cloned().collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into the namespace, and with it all that it starts.
fn within(netns: &Netns, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    netns.enter()?;
    work()
}

fn provider(lab: &Lab, flavour: Flavour) -> anyhow::Result<Arc<dyn Provider>> {
    let binaries = lab.binaries();
    let podvm = format!(
        "{} run --source {} --metadata-address {}:{}",
        binaries.podvm.display(),
        flavour.source(),
        metadata::ADDRESS,
        metadata::PORT
    );
    let mut values = Values::default();
    values.set("local-state-dir", lab.dir().local().display().to_string());
    values.set("local-podvm", podvm);
    values.set("local-agent", binaries.agent.display().to_string());
    values.set("local-cidr", metadata::NETWORK);
    let context = Context {
        installation: OWNER.to_owned(),
        program: binaries.peerpodd.clone(),
        search: String::new(),
        tags: BTreeMap::new(),
        forwarder_port: 15150,
        vxlan_port: 9000,
    };
    Ok(registry::build("local", &context, &values)?)
}

fn serve(
    socket: &Path,
    shared: Arc<Shared>,
    flavour: Flavour,
    ready: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).context("bind the machines' socket")?;
        let lookup = Arc::clone(&shared);
        metadata::serve(flavour, move |address| lookup.user_data(address)).await?;
        let _ = ready.send(());
        let accepting = async {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(Arc::clone(&shared), stream));
            }
        };
        tokio::select! {
            _ = stopped => {}
            () = accepting => {}
        }
        Ok(())
    })
}

/// One question, one answer.
async fn answer(shared: Arc<Shared>, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).await.is_err() || line.is_empty() {
        return;
    }
    let answer = match shared.follow(&line).await {
        Ok(answer) => answer,
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    // A double that has gone needs no answer.
    let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user_data(&self, of: IpAddr) -> Option<String> {
        let state = self.state();
        state.running.values().find(|m| m.address == of).map(|m| m.user_data.clone())
    }

    async fn follow(&self, line: &str) -> anyhow::Result<Value> {
        // Without serde's words: they would quote user data.
        let words = serde_json::from_str(line).map_err(|_| anyhow::anyhow!("not understood"))?;
        match words {
            Words::Boot { boot, name, user_data } => {
                let address = self.boot(boot, &name, user_data).await?;
                Ok(json!({"address": address.to_string()}))
            }
            Words::Halt { halt } => self.halt(&halt).await.map(|()| json!({})),
        }
    }

    async fn boot(&self, key: String, name: &str, user_data: String) -> anyhow::Result<IpAddr> {
        let vm = {
            let state = self.state();
            if let Some(machine) = state.running.get(&key) {
                return Ok(machine.address);
            }
            // Another VM of the same name is somewhere else in the cloud.
            let taken = state.running.values().any(|m| m.vm.name.as_str() == name);
            let own = if taken { format!("x{}-{name}", state.started) } else { name.to_owned() };
            VmRef { name: VmName::from_existing(&own), sandbox: own, native_id: None }
        };
        let spec = VmSpec {
            // What podvm must not find: it asks the metadata service.
            user_data: UserData("#cloud-config\nwrite_files: []\n".to_owned()),
            ..VmSpec::new(vm.name.clone(), vm.sandbox.as_str())
        };
        let at = Candidate {
            number: 0,
            instance_type: "local".to_owned(),
            zone: None,
            market: Market::OnDemand,
        };
        let made = self.provider.create(&spec, &at).await?;
        let address = *made.addresses.first().context("a machine without an address")?;
        let mut state = self.state();
        state.started += 1;
        if state.running.values().any(|m| pod_of(m) == pod(&vm)) {
            state.doubled.insert(pod(&vm).to_owned());
        }
        state.running.insert(key, Machine { vm, address, user_data });
        Ok(address)
    }

    async fn halt(&self, key: &str) -> anyhow::Result<()> {
        let Some(machine) = self.state().running.get(key).cloned() else { return Ok(()) };
        let end = tokio::time::Instant::now() + END;
        while self.provider.delete(&machine.vm).await? == Deletion::Accepted {
            if tokio::time::Instant::now() > end {
                bail!("{} does not end", machine.vm.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.state().running.remove(key);
        Ok(())
    }
}

fn pod_of(machine: &Machine) -> &str {
    pod(&machine.vm)
}

/// The VM's name without the part that comes from the sandbox.
fn pod(vm: &VmRef) -> &str {
    let name = vm.name.as_str();
    let name = name.find("podvm-").and_then(|at| name.get(at..)).unwrap_or(name);
    name.rsplit_once('-').map_or(name, |(pod, _)| pod)
}
