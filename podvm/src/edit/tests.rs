//! Edited requests, as tables and as anything.

use peerpod_tunnel::link::frame::Request;
use proptest::prelude::*;
use prost::Message;

use super::*;

fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(number, content)| wire::put(&mut out, *number, content));
    out
}

fn namespace(kind: &str, path: &str) -> Vec<u8> {
    message(&[(TYPE, kind.as_bytes()), (PATH, path.as_bytes()), (99, b"unknown")])
}

fn edit(method: &str, payload: Vec<u8>) -> Edited {
    Edits::new("/run/netns/podns".to_owned()).apply(&call(method, payload))
}

fn call(method: &str, payload: Vec<u8>) -> Vec<u8> {
    let request = Request {
        service: "grpc.AgentService".to_owned(),
        method: method.to_owned(),
        payload: payload.into(),
        timeout_nano: 9,
        ..Request::default()
    };
    request.encode_to_vec()
}

fn payload(edited: Edited) -> Vec<u8> {
    let Edited::Other(request) = edited else { panic!("{edited:?}") };
    let request = Request::decode(&request[..]).expect("request");
    assert_eq!(request.timeout_nano, 9);
    request.payload.to_vec()
}

#[test]
fn a_container_gets_the_pods_network_and_keeps_every_unknown_field() {
    let container = |added: &[u8]| {
        let mut linux = message(&[(4, b"res"), (NAMESPACES, &namespace("ipc", "")), (77, b"l")]);
        linux.extend_from_slice(added);
        let spec = message(&[(1, b"1.0"), (LINUX, &linux), (88, b"s")]);
        message(&[(1, b"id"), (OCI, &spec), (99, b"c")])
    };
    let entry = message(&[(TYPE, b"network"), (PATH, b"/run/netns/podns")]);
    let after = payload(edit("CreateContainer", container(&[])));
    assert_eq!(after, container(&message(&[(NAMESPACES, &entry)])));
}

#[test]
fn an_entry_of_another_type_stays_as_it_is_written() {
    // An empty one, whose length is written in four bytes.
    let linux = b"\x32\x80\x80\x80\x00".to_vec();
    let once = edit("CreateContainer", message(&[(OCI, &message(&[(LINUX, &linux)]))]));
    let Edited::Other(once) = once else { panic!("{once:?}") };
    assert!(once.windows(linux.len()).any(|bytes| bytes == linux));
    assert_eq!(Edits::new("/run/netns/podns".to_owned()).apply(&once), Edited::Same);
}

#[test]
fn a_network_that_is_there_gets_the_pods_path() {
    let container = |entry: &[u8]| {
        let linux = message(&[(NAMESPACES, entry), (NAMESPACES, &namespace("ipc", "/i"))]);
        message(&[(OCI, &message(&[(LINUX, &linux)]))])
    };
    let after = payload(edit("CreateContainer", container(&namespace("network", "/proc/1"))));
    let entry = message(&[(TYPE, b"network"), (99, b"unknown"), (PATH, b"/run/netns/podns")]);
    assert_eq!(after, container(&entry));
}

#[test]
fn of_a_spec_in_pieces_the_last_one_gets_the_entry() {
    let piece = |linux: &[u8]| (OCI, message(&[(LINUX, linux)]));
    let pieces = [piece(b""), (OCI, message(&[(1, b"1.0")])), piece(b"")];
    let all: Vec<_> = pieces.iter().map(|(n, c)| (*n, &c[..])).collect();
    let after = payload(edit("CreateContainer", message(&all)));
    let found = look(&after).expect("look");
    assert_eq!((found.linux_parts, found.network), (2, true));
    assert!(after.starts_with(&message(&all[..2])), "only the last piece has changed");
}

#[test]
fn without_oci_or_linux_a_request_passes_as_it_came() {
    assert_eq!(edit("CreateContainer", message(&[(1, b"id")])), Edited::Same);
    let no_linux = message(&[(OCI, &message(&[(1, b"1.0")]))]);
    assert_eq!(edit("CreateContainer", no_linux), Edited::Same);
    assert_eq!(edit("CreateContainer", vec![]), Edited::Same);
}

#[test]
fn a_sandbox_loses_its_dns_and_nothing_else() {
    let sandbox = message(&[(1, b"host"), (DNS, b"a"), (5, b"id"), (DNS, b"b"), (99, b"u")]);
    let after = payload(edit("CreateSandbox", sandbox));
    assert_eq!(after, message(&[(1, b"host"), (5, b"id"), (99, b"u")]));
    assert_eq!(edit("CreateSandbox", message(&[(1, b"host")])), Edited::Same);
}

#[test]
fn volumes_are_seen_and_their_mounts_bound_and_nothing_else_changes() {
    let mount = |destination: &str, source: &str| {
        let fields: [(u32, &[u8]); 4] = [
            (DESTINATION, destination.as_bytes()),
            (SOURCE, source.as_bytes()),
            (MOUNT_TYPE, b"ext4"),
            (4, b"rw"),
        ];
        message(&fields)
    };
    let entry = message(&[(KEY, b"a"), (VALUE, b"b")]);
    let spec = |moved: &[u8]| {
        let other = mount("/etc/hosts", "/run/kata/hosts");
        message(&[(MOUNTS, &other), (ANNOTATIONS, &entry), (MOUNTS, moved), (88, b"s")])
    };
    let request = call("CreateContainer", message(&[(OCI, &spec(&mount("/data", "/csi")))]));
    let Ok(Call::Container(found)) = super::call(&request) else { panic!("{request:?}") };
    assert_eq!(found.timeout_nano, 9);
    assert_eq!(found.annotations, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    let [_, data] = &found.mounts[..] else { panic!("{found:?}") };
    assert_eq!((&*data.destination, &*data.source, &*data.kind), ("/data", "/csi", "ext4"));
    let of = |m: &Mount| (m.destination == "/data").then(|| "/run/cloud-volumes/v".to_owned());
    let bound = message(&[
        (DESTINATION, b"/data"),
        (4, b"rw"),
        (SOURCE, b"/run/cloud-volumes/v"),
        (MOUNT_TYPE, b"bind"),
    ]);
    let wanted = call("CreateContainer", message(&[(OCI, &spec(&bound))]));
    assert_eq!(bind(&request, of).expect("edits"), wanted);
    assert_eq!(bind(&request, |_| None).expect("edits"), request);
}

#[test]
fn a_container_whose_mount_is_broken_does_not_parse() {
    let whole = message(&[(MOUNTS, &message(&[(SOURCE, b"/data")]))]);
    let broken = message(&[(MOUNTS, b"\x00\xa8\xff")]);
    for (spec, parses) in [(whole, true), (broken, false)] {
        let request = call("CreateContainer", message(&[(OCI, &spec)]));
        let read = super::call(&request);
        assert_eq!(read.is_ok(), parses, "{read:?}");
        assert_eq!(bind(&request, |_| Some("/run/v".to_owned())).is_ok(), parses);
    }
}

#[test]
fn the_end_of_a_sandbox_passes_as_it_came() {
    let request = call("DestroySandbox", message(&[(OCI, &message(&[(LINUX, b"")]))]));
    assert_eq!(super::call(&request), Ok(Call::Destroy));
    assert_eq!(Edits::new("/p".to_owned()).apply(&request), Edited::Same);
    assert!(wanted(b"grpc.AgentService", b"DestroySandbox"));
}

#[test]
fn what_does_not_parse_or_grows_too_long_is_answered_here() {
    let broken = edit("CreateContainer", b"\x32\x7f".to_vec());
    assert!(matches!(broken, Edited::Refused(INVALID_ARGUMENT, _)), "{broken:?}");
    let spec = message(&[(LINUX, b"")]);
    let filler = vec![0; MAX_PAYLOAD - 80];
    let long = edit("CreateContainer", message(&[(OCI, &spec), (1, &filler)]));
    assert!(matches!(long, Edited::Refused(RESOURCE_EXHAUSTED, _)));
}

proptest! {
    #[test]
    fn hostile_requests_never_panic(bytes: Vec<u8>, sandbox: bool) {
        let method = if sandbox { "CreateSandbox" } else { "CreateContainer" };
        let edits = Edits::new("/p".to_owned());
        edits.apply(&bytes);
        edits.apply(&call(method, bytes.clone()));
        edits.apply(&call(method, message(&[(OCI, &message(&[(LINUX, &bytes)]))])));
        let _ = super::call(&bytes);
        let spec = message(&[(MOUNTS, &bytes), (ANNOTATIONS, &bytes)]);
        let request = call(method, message(&[(OCI, &spec)]));
        let bound = bind(&request, |_| Some("/v".to_owned()));
        let container = matches!(super::call(&request), Ok(Call::Container(_)));
        prop_assert!(!container || bound.is_ok(), "what is read can be bound");
    }
}
