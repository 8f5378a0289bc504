//! What the daemon reads: requests of shims, and its own records, which somebody may have changed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpodd::hypervisor::{Failure, FailureKind, Limits, Sandboxes, serve};
use peerpodd::pod::record::{Disk, Records};
use peerpodd::proto::hypervisor::CreateVmRequest;
use peerpodd::request::{self, PodRequest, RequestRules, keys};
use peerpodd::shutdown::Tracker;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::Parts;

/// Where files and sockets of a run lie.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
    static STATE: (tempfile::TempDir, Disk) = {
        let directory = directory();
        let disk = Disk::open(directory.path()).expect("a state directory");
        (directory, disk)
    };
    static EDGE: Edge = Edge::start();
}

const SANDBOX: &str = "0123456789abcdef";

/// Records: a broken one is set aside and never breaks the others; one that is read is saved and
/// read again the same.
pub fn record(data: &[u8]) {
    STATE.with(|(directory, disk)| {
        let pod = directory.path().join("pods").join(SANDBOX);
        std::fs::create_dir_all(&pod).expect("a directory");
        std::fs::write(pod.join("record.json"), data).expect("a record");
        let (loaded, again) = RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let loaded = disk.load().await.expect("the place can be read");
                for record in &loaded.records {
                    disk.save(record).await.expect("saved");
                }
                (loaded, disk.load().await.expect("the place can be read"))
            })
        });
        assert_eq!(loaded.records, again.records);
        assert_eq!(loaded.records.len() + loaded.broken.len(), 1);
        let broken = directory.path().join("broken");
        std::fs::remove_dir_all(&broken).and_then(|()| std::fs::create_dir(&broken)).expect("new");
        let _ = std::fs::remove_dir_all(&pod);
    });
}

/// A CreateVM with the nine annotations, each a line of the bytes; or the bytes as the message.
fn create_request(data: &[u8]) -> Option<CreateVmRequest> {
    let mut parts = Parts(data);
    if parts.byte() == b'p' {
        return CreateVmRequest::decode(parts.rest()).ok();
    }
    let text = std::str::from_utf8(parts.rest()).ok()?;
    let mut lines = text.splitn(11, '\n');
    let id = lines.next()?.to_owned();
    let network_namespace_path = lines.next()?.to_owned();
    let names = [
        keys::NAME,
        keys::NAMESPACE,
        keys::MACHINE_TYPE,
        keys::IMAGE,
        keys::VCPUS,
        keys::MEMORY,
        keys::GPUS,
        keys::GPU_MODEL,
        keys::INITDATA,
    ];
    let annotations: BTreeMap<_, _> =
        names.into_iter().map(str::to_owned).zip(lines.map(str::to_owned)).collect();
    Some(CreateVmRequest { id, annotations, network_namespace_path })
}

/// CreateVM: what is accepted has a harmless id and bounded numbers, and survives a record.
pub fn create_vm(data: &[u8]) {
    let Some(request) = create_request(data) else { return };
    for rs_default_pair_is_unset in [false, true] {
        let rules = RequestRules { rs_default_pair_is_unset, default_initdata: None };
        let Ok(pod) = request::parse(&request, &rules) else { continue };
        let id = pod.sandbox.as_str();
        assert!(
            PathBuf::from("/run/peerpod/pods").join(id).join("agent.ttrpc").as_os_str().len()
                <= 107
        );
        assert!(Path::new(id).components().count() == 1 && !id.starts_with('.'));
        assert!(!pod.pod.is_empty() && pod.netns.is_absolute());
        assert!(pod.vcpus.is_none_or(|n| n > 0) && pod.memory_mib.is_none_or(|n| n > 0));
        let text = serde_json::to_string(&pod).expect("it can be written");
        assert_eq!(serde_json::from_str::<PodRequest>(&text).expect("ours is read"), pod);
    }
}

/// Answers at once.
struct Nobody;

#[async_trait]
impl Sandboxes for Nobody {
    async fn create(&self, request: CreateVmRequest) -> Result<String, Failure> {
        Ok(request.id)
    }
    async fn start(&self, id: &str, _: Option<Duration>) -> Result<(), Failure> {
        Err(Failure::new(FailureKind::NotFound, id))
    }
    async fn stop(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    async fn vm_id(&self, namespace: &str, pod: &str, _: bool) -> Result<String, Failure> {
        Ok(format!("{namespace}/{pod}"))
    }
}

/// The real edge, on a socket.
struct Edge {
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Edge {
    fn start() -> Self {
        let directory = directory();
        let socket = directory.path().join("node.sock");
        RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let listener = UnixListener::bind(&socket).expect("a socket");
                let mode = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(&socket, mode).expect("mode");
                let (tracker, token) = (Tracker::new(), CancellationToken::new());
                tokio::spawn(serve(listener, Arc::new(Nobody), Limits::default(), token, tracker));
            });
        });
        Self { socket, _directory: directory }
    }
}

/// Frames of a shim, by the edge on its socket: only whole frames come back, each an answer on a
/// stream that was asked on, and the connection ends.
pub fn hypervisor(data: &[u8]) {
    let back = EDGE.with(|edge| {
        RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let mut shim = UnixStream::connect(&edge.socket).await.expect("it serves");
                // It may have closed on us already.
                let _ = shim.write_all(data).await;
                let _ = shim.shutdown().await;
                let mut back = Vec::new();
                let read =
                    tokio::time::timeout(Duration::from_secs(60), shim.read_to_end(&mut back));
                // A reset is an end as well.
                let _ = read.await.expect("it ends");
                back
            })
        })
    });
    crate::link::answers_to(data, &back);
}
