//! What the program in the VM is sent: user data with all that is in them, and calls to be edited.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use peerpod_standin::messages::agent::{CreateContainerRequest, CreateSandboxRequest};
use peerpod_tunnel::link::frame::{MAX_PAYLOAD, Request};
use peerpod_tunnel::link::wire;
use peerpodd::pod::edit::Has;
use peerpodd::volumes::{PodVolume, PodVolumes};
use podvm::apf::Apf;
use podvm::cloud_config as config;
use podvm::cloud_volumes;
use podvm::edit::{Call, Edited, Edits};
use podvm::initdata::Initdata;
use prost::Message;

use crate::Parts;

const PODNS: &str = "/run/netns/podns";
const METHODS: [&str; 2] = ["CreateContainer", "CreateSandbox"];

/// A request of an edited method with the bytes inside it at one of its levels, or the bytes alone.
fn edited_request(data: &[u8]) -> Vec<u8> {
    let mut parts = Parts(data);
    let how = parts.byte();
    let bytes = parts.rest();
    let wrap = |number, content: &[u8]| {
        let mut out = Vec::new();
        wire::put(&mut out, number, content);
        out
    };
    let payload = match how >> 1 & 7 {
        0 => return bytes.to_vec(),
        1 | 2 => bytes.to_vec(),
        3 => wrap(6, bytes),
        4 | 5 => wrap(6, &wrap(8, bytes)),
        _ => wrap(6, &wrap(8, &[wrap(6, bytes), wrap(6, &wrap(1, b"ipc"))].concat())),
    };
    let mut request = wrap(1, b"grpc.AgentService");
    wire::put(&mut request, 2, METHODS[usize::from(how & 1)].as_bytes());
    wire::put(&mut request, 3, &payload);
    request
}

/// Edited calls: never more than ttrpc allows; a second edit changes nothing; all but the payload
/// stays byte for byte; and, read by another implementation, only what is to change has changed.
pub fn edit(data: &[u8]) {
    worker(data);
    volumes(data);
    let before = edited_request(data);
    let edits = Edits::new(PODNS.to_owned());
    let after = match edits.apply(&before) {
        Edited::Same => before.clone(),
        Edited::Other(after) => after,
        Edited::Refused(..) => return,
    };
    assert!(after.len() <= MAX_PAYLOAD || before.len() > MAX_PAYLOAD);
    let twice = edits.apply(&after);
    assert!(twice == Edited::Same || twice == Edited::Other(after.clone()), "twice is once");
    assert_eq!(wire::without(&before, 3), wire::without(&after, 3));
    let (Ok(before), Ok(after)) = (Request::decode(&before[..]), Request::decode(&after[..]))
    else {
        return;
    };
    if before.method == METHODS[1] {
        sandbox(&before, &after);
    } else {
        container(&before, &after);
    }
}

fn sandbox(before: &Request, after: &Request) {
    let Ok(mut before) = CreateSandboxRequest::decode(before.payload.clone()) else { return };
    before.dns.clear();
    assert_eq!(CreateSandboxRequest::decode(after.payload.clone()), Ok(before));
}

fn container(before: &Request, after: &Request) {
    let Ok(mut before) = CreateContainerRequest::decode(before.payload.clone()) else { return };
    let after = CreateContainerRequest::decode(after.payload.clone()).expect("it still parses");
    let linux = before.oci.as_mut().and_then(|oci| oci.linux.as_mut());
    if let Some(linux) = linux {
        let mut found = false;
        for namespace in linux.namespaces.iter_mut().filter(|n| n.r#type == "network") {
            namespace.path = PODNS.to_owned();
            found = true;
        }
        let there = after.oci.as_ref().and_then(|oci| oci.linux.as_ref()).expect("it is there");
        if !found {
            let added = there.namespaces.last().expect("the entry").clone();
            assert_eq!((added.r#type.as_str(), added.path.as_str()), ("network", PODNS));
            linux.namespaces.push(added);
        }
    }
    assert_eq!(after, before);
}

/// The other edit, on the worker: its annotations are there once, a second edit changes nothing, and the
/// VM reads what they say.
fn worker(data: &[u8]) {
    let volume = PodVolume {
        target: "/k/pods/u/volumes/kubernetes.io~csi/v/mount".to_owned(),
        disk: "disk".to_owned(),
        number: 3,
        fs: "ext4".to_owned(),
        read_only: false,
        fs_group: None,
        encrypt_type: String::new(),
        key_id: String::new(),
    };
    let volumes = PodVolumes { attached: vec![volume], ..PodVolumes::default() };
    let has = Has { gpus: true, volumes: &volumes };
    let request = bytes::Bytes::copy_from_slice(data);
    let Ok(once) = peerpodd::pod::edit::container(&request, &has) else { return };
    let twice = peerpodd::pod::edit::container(&once, &has).expect("ours parses");
    assert_eq!(twice, once);
    assert_eq!(wire::without(&once, 6), wire::without(&request, 6));
    let Ok(read) = CreateContainerRequest::decode(once) else { return };
    let annotations = read.oci.unwrap_or_default().annotations;
    if let Some(text) = annotations.get(cloud_volumes::ANNOTATION)
        && let Ok(all) = cloud_volumes::parse(text)
    {
        assert!(matches!(&all[..], [one] if one.name == "vol-3" && one.disk == "disk"), "{all:?}");
    }
}

/// The annotation as the VM reads it, and mounts bound to what it names: nothing but these changes.
fn volumes(data: &[u8]) {
    if let Ok(all) =
        std::str::from_utf8(data).map_err(drop).and_then(|t| cloud_volumes::parse(t).map_err(drop))
    {
        assert!(all.len() <= cloud_volumes::MOST);
        for volume in all {
            assert!(!volume.name.contains('/') && !volume.name.starts_with('.'), "{volume:?}");
            assert!(volume.mount_point.starts_with('/') && volume.lun < 1024, "{volume:?}");
        }
    }
    let request = edited_request(data);
    if !matches!(podvm::edit::call(&request), Ok(Call::Container(_))) {
        return;
    }
    let bound = podvm::edit::bind(&request, |_| Some("/run/cloud-volumes/v".to_owned()));
    let Ok(Call::Container(after)) = podvm::edit::call(&bound.expect("it parsed")) else {
        panic!("it is a container no more")
    };
    assert!(after.mounts.iter().all(|m| m.source == "/run/cloud-volumes/v" && m.kind == "bind"));
}

/// User data: what is read is written and read again the same, and no file has a path of its own.
pub fn cloud_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(parsed) = config::parse(text) else { return };
    for file in &parsed.files {
        assert!(podvm::contract::ALLOWED.contains(&file.path.as_str()));
    }
    let Ok(rendered) = config::render(&parsed.files) else { return };
    let Ok(again) = config::parse(&rendered) else {
        assert!(rendered.len() > podvm::contract::USER_DATA_LIMIT, "ours is read: {rendered:?}");
        return;
    };
    for (before, after) in parsed.files.iter().zip(&again.files) {
        let content = before.content.trim_end_matches('\n');
        assert_eq!((&after.path, after.content.trim_end_matches('\n')), (&before.path, content));
    }
    assert_eq!(again.files.len(), parsed.files.len());
    for file in parsed.files {
        if file.path == podvm::contract::APF {
            apf(file.content.as_bytes());
        }
    }
}

/// apf.json: what is read is written and read again the same; a network that is accepted has only
/// values that the kernel takes as names and numbers.
pub fn apf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(apf) = Apf::parse(text) else { return };
    let rendered = apf.render().expect("it can be written");
    assert_eq!(Apf::parse(&rendered).expect("ours is read"), apf);
    let Some(network) = &apf.pod_network else { return };
    let Ok(guest) = network.check(PODNS.into()) else { return };
    assert!(guest.interface.len() < 16 && !guest.interface.contains('/'));
    assert!((1..1 << 24).contains(&guest.vni) && guest.mtu <= 65_535);
    assert!(!guest.addresses.is_empty() && !guest.worker.is_empty());
}

/// Initdata, as base64, as gzip or as TOML: never unpacked beyond the limit, and what is accepted
/// comes back the same, digest and all.
pub fn initdata(data: &[u8]) {
    let mut parts = Parts(data);
    let how = parts.byte() % 4;
    let bytes = parts.rest();
    let decoded = match (how, std::str::from_utf8(bytes)) {
        (0, Ok(wrapped)) => Initdata::decode(wrapped),
        (1, _) => Initdata::decode(&STANDARD.encode(bytes)),
        (2, Ok(toml)) => Initdata::from_toml(toml),
        (3, _) => Initdata::decode(&STANDARD.encode(packed(bytes))),
        _ => return,
    };
    let Ok(initdata) = decoded else { return };
    let again = Initdata::decode(&initdata.encode()).expect("ours is read");
    assert_eq!(again, initdata);
    assert_eq!(again.digest(), initdata.digest());
    for (name, _) in initdata.files() {
        assert!(podvm::initdata::EXTRACTED.contains(&name));
    }
}

/// The bytes over and over, packed small: a bomb.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut parts = Parts(bytes);
    let times = parts.number() * 4;
    let bytes = parts.rest();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..times.min((4 << 20) / bytes.len().max(1)) {
        gzip.write_all(bytes).expect("memory takes it");
    }
    gzip.finish().expect("memory takes it")
}
