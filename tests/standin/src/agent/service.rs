//! The calls, as kata.md's table has them. What is not known is UNIMPLEMENTED, and noted.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use peerpod_tunnel::link::frame::Request;
use prost::Message;

use super::process::{Output, Process};
use super::record::{ContainerSeen, FileSeen};
use super::sandbox::{Container, Missing};
use super::server::Shared;
use crate::messages::{AGENT, CONTROL, HEALTH, agent, code, oci};

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: i32,
    pub(super) message: String,
}

type Answer = Result<Bytes, Refusal>;

fn refuse(code: i32, message: impl ToString) -> Refusal {
    Refusal { code, message: message.to_string() }
}

fn internal(error: impl ToString) -> Refusal {
    refuse(code::INTERNAL, error)
}

fn parse<M: Message + Default>(request: &Request) -> Result<M, Refusal> {
    M::decode(request.payload.clone()).map_err(|e| refuse(code::INVALID_ARGUMENT, e))
}

fn reply(message: &impl Message) -> Answer {
    Ok(message.encode_to_vec().into())
}

fn missing(which: Missing, container: &str, exec: &str) -> Refusal {
    match which {
        Missing::Container => refuse(code::INVALID_ARGUMENT, format!("no container {container:?}")),
        Missing::Process => {
            refuse(code::NOT_FOUND, format!("no process {exec:?} in container {container:?}"))
        }
    }
}

/// Does what is asked.
pub(super) async fn call(shared: &Shared, request: &Request) -> Answer {
    match (request.service.as_str(), request.method.as_str()) {
        (HEALTH, "Check") => reply(&agent::HealthCheckResponse { status: 1 }),
        (HEALTH, "Version") => reply(&agent::VersionCheckResponse {
            grpc_version: "0.0.1".to_owned(),
            agent_version: "4.1.0".to_owned(),
        }),
        (AGENT, method) => shared.agent(method, request).await,
        (CONTROL, method) => shared.control(method, request),
        _ => Err(shared.unknown(request)),
    }
}

impl Shared {
    async fn agent(&self, method: &str, request: &Request) -> Answer {
        match method {
            "CreateSandbox" => self.create_sandbox(&parse(request)?),
            "DestroySandbox" => {
                self.sandbox.destroyed.send_replace(true);
                Ok(Bytes::new())
            }
            "CreateContainer" => self.create_container(parse(request)?),
            "StartContainer" => self.start_container(&parse(request)?),
            "RemoveContainer" => self.remove_container(&parse(request)?).await,
            "ExecProcess" => self.exec(parse(request)?),
            "SignalProcess" => self.signal(&parse(request)?),
            "WaitProcess" => self.wait(&parse(request)?).await,
            "ReadStdout" => self.read(Output::Stdout, &parse(request)?).await,
            "ReadStderr" => self.read(Output::Stderr, &parse(request)?).await,
            "WriteStdin" => self.write(&parse(request)?).await,
            "CloseStdin" => self.close_stdin(&parse(request)?).await,
            "TtyWinResize" => self.find(&parse(request)?).map(|_| Bytes::new()),
            "CopyFile" => self.copy_file(parse(request)?),
            "SetPolicy" => {
                let policy: agent::Text = parse(request)?;
                self.record.change(|d| d.policy = Some(policy.text));
                Ok(Bytes::new())
            }
            "GetOOMEvent" => match self.sandbox.oom_event().await {
                Some(event) => reply(&event),
                None => Err(internal("the sandbox is destroyed")),
            },
            _ => self.fixed(method, request),
        }
    }

    /// Calls whose answer never changes.
    fn fixed(&self, method: &str, request: &Request) -> Answer {
        match method {
            "GetGuestDetails" => reply(&agent::GuestDetailsResponse {
                mem_block_size_bytes: 128 << 20,
                agent_details: Some(agent::AgentDetails { version: "4.1.0".to_owned() }),
            }),
            "GetMetrics" => reply(&agent::Text {
                text: "# TYPE kata_agent_scrape_count counter\nkata_agent_scrape_count 1\n"
                    .to_owned(),
            }),
            "StatsContainer" => {
                let network_stats = vec![agent::NetworkStats { name: "eth0".to_owned() }];
                let cgroup_stats = Some(agent::Empty {});
                reply(&agent::StatsContainerResponse { cgroup_stats, network_stats })
            }
            // The answer holds what field 1 of the request does, under the field's own numbers.
            "UpdateInterface" | "UpdateRoutes" => {
                let fields = peerpod_tunnel::link::wire::fields(&request.payload);
                let fields = fields.map_err(|e| refuse(code::INVALID_ARGUMENT, e))?;
                let first = fields.iter().find(|f| f.number == 1).and_then(|f| f.content);
                Ok(Bytes::copy_from_slice(first.unwrap_or_default()))
            }
            "ListInterfaces" | "ListRoutes" | "ReseedRandomDev" | "OnlineCPUMem"
            | "SetGuestDateTime" | "UpdateContainer" | "AddARPNeighbors" => Ok(Bytes::new()),
            _ => Err(self.unknown(request)),
        }
    }

    fn unknown(&self, request: &Request) -> Refusal {
        let name = format!("{}/{}", request.service, request.method);
        self.record.change(|d| d.unknown.push(name.clone()));
        refuse(code::UNIMPLEMENTED, format!("{name} is not supported"))
    }

    /// What tests ask: `Dump`, `Faults` (a JSON list of rules) and `Oom` (a container id).
    fn control(&self, method: &str, request: &Request) -> Answer {
        match method {
            "Dump" => serde_json::to_vec(&self.record.dump()).map(Bytes::from).map_err(internal),
            "Faults" => {
                let rules = serde_json::from_slice(&request.payload);
                self.faults.set(rules.map_err(|e| refuse(code::INVALID_ARGUMENT, e))?);
                Ok(Bytes::new())
            }
            "Oom" => {
                self.sandbox.inject_oom(&String::from_utf8_lossy(&request.payload));
                Ok(Bytes::new())
            }
            _ => Err(self.unknown(request)),
        }
    }

    fn create_sandbox(&self, request: &agent::CreateSandboxRequest) -> Answer {
        self.record.change(|d| {
            d.sandbox = Some(request.sandbox_id.clone());
            d.dns.clone_from(&request.dns);
        });
        wipe(&self.options.listen);
        Ok(Bytes::new())
    }

    fn create_container(&self, request: agent::CreateContainerRequest) -> Answer {
        let id = request.container_id;
        let spec = request.oci.unwrap_or_default();
        let Some(linux) = spec.linux else {
            return Err(internal("no Linux part in the OCI specification"));
        };
        let mut init = spec.process.unwrap_or_default();
        self.record.change(|d| {
            let namespaces = linux.namespaces.iter();
            let storages = request.storages.iter();
            let mounts = spec.mounts.into_iter();
            let seen = ContainerSeen {
                namespaces: namespaces.map(|n| (n.r#type.clone(), n.path.clone())).collect(),
                annotations: spec.annotations.into_iter().collect(),
                args: init.args.clone(),
                storages: storages.map(|s| (s.driver.clone(), s.source.clone())).collect(),
                mounts: mounts.map(|m| (m.destination, m.source, m.r#type)).collect(),
            };
            d.containers.insert(id.clone(), seen);
        });
        if init.args.first().is_none_or(|a| a == "/pause") {
            init.args = ["standin-agent", "tool", "sleep"].map(str::to_owned).to_vec();
        }
        let network = linux.namespaces.into_iter().find(|n| n.r#type == "network");
        let netns = network.map(|n| n.path).filter(|p| !p.is_empty());
        let container = Container { netns, init, ..Container::default() };
        let mut all = self.sandbox.containers();
        if all.contains_key(&id) {
            return Err(internal(format!("container {id:?} exists")));
        }
        all.insert(id, container);
        Ok(Bytes::new())
    }

    fn start_container(&self, request: &agent::ContainerRequest) -> Answer {
        let what = self.sandbox.containers().get(&request.container_id).map(|c| c.init.clone());
        let what = what.ok_or_else(|| missing(Missing::Container, &request.container_id, ""))?;
        self.launch(&request.container_id, "", &what)
    }

    fn exec(&self, request: agent::ExecProcessRequest) -> Answer {
        self.launch(&request.container_id, &request.exec_id, &request.process.unwrap_or_default())
    }

    fn launch(&self, container: &str, exec: &str, what: &oci::Process) -> Answer {
        let mut all = self.sandbox.containers();
        let found = all.get_mut(container);
        let found = found.ok_or_else(|| missing(Missing::Container, container, exec))?;
        if found.processes.contains_key(exec) {
            return Err(internal(format!("process {exec:?} exists")));
        }
        let executable = self.options.executable.as_deref();
        let process = Process::spawn(executable, found.netns.as_deref(), what);
        let process = process.map_err(|e| internal(format!("start {:?}: {e}", what.args)))?;
        found.processes.insert(exec.to_owned(), process);
        Ok(Bytes::new())
    }

    async fn remove_container(&self, request: &agent::RemoveContainerRequest) -> Answer {
        let id = &request.container_id;
        let gone = self.sandbox.containers().remove(id);
        let gone = gone.ok_or_else(|| missing(Missing::Container, id, ""))?;
        let ended = async {
            for process in gone.processes.values() {
                process.signal(9).map_err(internal)?;
                process.wait().await;
            }
            Ok(Bytes::new())
        };
        match request.timeout {
            0 => ended.await,
            seconds => tokio::time::timeout(Duration::from_secs(seconds.into()), ended)
                .await
                .unwrap_or_else(|_| Err(refuse(code::DEADLINE_EXCEEDED, "container goes on"))),
        }
    }

    fn signal(&self, request: &agent::SignalProcessRequest) -> Answer {
        let (container, exec) = (&request.container_id, &request.exec_id);
        if exec.is_empty() && request.signal == 9 {
            let all = self.sandbox.containers();
            let found = all.get(container);
            let found = found.ok_or_else(|| missing(Missing::Container, container, exec))?;
            for process in found.processes.values() {
                process.signal(9).map_err(internal)?;
            }
            return Ok(Bytes::new());
        }
        let process = self.sandbox.process(container, exec);
        let process = process.map_err(|m| missing(m, container, exec))?;
        process.signal(request.signal).map_err(internal)?;
        Ok(Bytes::new())
    }

    fn find(&self, request: &agent::ProcessRequest) -> Result<std::sync::Arc<Process>, Refusal> {
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.sandbox.process(container, exec).map_err(|m| missing(m, container, exec))
    }

    async fn wait(&self, request: &agent::ProcessRequest) -> Answer {
        let status = self.find(request)?.wait().await;
        self.sandbox.forget(&request.container_id, &request.exec_id);
        reply(&agent::WaitProcessResponse { status })
    }

    async fn read(&self, which: Output, request: &agent::ReadStreamRequest) -> Answer {
        let (container, exec) = (&request.container_id, &request.exec_id);
        let process = self.sandbox.process(container, exec);
        let process = process.map_err(|m| missing(m, container, exec))?;
        let data = process.read(which, request.len).await.map_err(internal)?;
        reply(&agent::ReadStreamResponse { data: data.into() })
    }

    async fn write(&self, request: &agent::WriteStreamRequest) -> Answer {
        let (container, exec) = (&request.container_id, &request.exec_id);
        let process = self.sandbox.process(container, exec);
        let process = process.map_err(|m| missing(m, container, exec))?;
        process.write(&request.data).await.map_err(internal)?;
        let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
        reply(&agent::WriteStreamResponse { len })
    }

    async fn close_stdin(&self, request: &agent::ProcessRequest) -> Answer {
        self.find(request)?.close_stdin().await;
        Ok(Bytes::new())
    }

    fn copy_file(&self, request: agent::CopyFileRequest) -> Answer {
        let bad = |what: &str| refuse(code::INVALID_ARGUMENT, format!("{}: {what}", request.path));
        let size = u64::try_from(request.file_size).map_err(|_| bad("size"))?;
        let offset = u64::try_from(request.offset).map_err(|_| bad("offset"))?;
        let mut files = self.sandbox.files.lock().unwrap_or_else(PoisonError::into_inner);
        let file = files.entry(request.path.clone()).or_default();
        file.bytes.insert(offset, request.data);
        let whole = file.whole(size);
        let text = whole.as_deref().map(|b| String::from_utf8_lossy(b).into_owned());
        let seen = FileSeen { size, complete: whole.is_some(), text: text.unwrap_or_default() };
        self.record.change(|d| drop(d.files.insert(request.path, seen)));
        Ok(Bytes::new())
    }
}

/// Deletes the socket's directory with all in it and makes it again, as the real agent does: who
/// is connected stays so, nobody else can connect. Only a directory of the right name is touched.
fn wipe(socket: &Path) {
    let Some(dir) = socket.parent().filter(|d| d.ends_with("kata-containers")) else { return };
    let _ = std::fs::remove_dir_all(dir);
    let _ = std::fs::create_dir_all(dir);
}
