//! The one request this process edits on its way to the VM: CreateContainer of a pod with GPUs gets
//! the annotation that makes the agent hand them in. Pure.

use bytes::Bytes;
use peerpod_tunnel::link::wire::{self, WireError};

/// Field of CreateContainerRequest: the OCI spec.
const OCI: u32 = 6;
/// Field of the OCI spec: annotations, a map.
const ANNOTATIONS: u32 = 7;
/// Fields of a map's entry.
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// The method that is edited.
pub const METHOD: &str = "CreateContainer";
const CDI_KEY: &str = "cdi.k8s.io/peer-pods";
const CDI_VALUE: &str = "nvidia.com/gpu=all";

/// Adds the annotation to a CreateContainer request; every other byte stays as it came. A request
/// without an OCI spec is the agent's to refuse and stays as it is.
///
/// # Errors
/// When the request is no protobuf message.
pub fn add_gpu_annotation(request: &Bytes) -> Result<Bytes, WireError> {
    let mut entry = Vec::new();
    wire::put(&mut entry, KEY, CDI_KEY.as_bytes());
    wire::put(&mut entry, VALUE, CDI_VALUE.as_bytes());
    let mut added = false;
    let edited = wire::map(request, OCI, |oci| -> Result<_, WireError> {
        // A spec cut into several occurrences is merged by the reader: one entry is enough.
        let mut oci = without_entry(oci)?;
        if !added {
            wire::put(&mut oci, ANNOTATIONS, &entry);
            added = true;
        }
        Ok(oci)
    })?;
    Ok(edited.into())
}

/// The spec without an entry of our key, should a shim have sent one.
fn without_entry(oci: &[u8]) -> Result<Vec<u8>, WireError> {
    let ours = |f: &wire::Field<'_>| {
        f.number == ANNOTATIONS && f.content.and_then(|c| wire::text(c, KEY)) == Some(CDI_KEY)
    };
    let mut out = Vec::with_capacity(oci.len() + 64);
    for field in wire::walk(oci) {
        let field = field?;
        if !ours(&field) {
            out.extend_from_slice(field.raw);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(key: &str, value: &str) -> Vec<u8> {
        let mut entry = Vec::new();
        wire::put(&mut entry, KEY, key.as_bytes());
        wire::put(&mut entry, VALUE, value.as_bytes());
        entry
    }

    fn annotations(request: &[u8]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for field in wire::fields(request).expect("parses").iter().filter(|f| f.number == OCI) {
            let oci = wire::fields(field.content.expect("a message")).expect("parses");
            for entry in oci.iter().filter(|f| f.number == ANNOTATIONS) {
                let entry = entry.content.expect("a message");
                let text = |n| wire::text(entry, n).expect("text").to_owned();
                found.push((text(KEY), text(VALUE)));
            }
        }
        found
    }

    #[test]
    fn a_container_of_a_pod_with_gpus_gets_the_annotation_once() {
        let (mut oci, mut request) = (Vec::new(), Vec::new());
        wire::put(&mut oci, 1, b"1.0.2");
        wire::put(&mut oci, ANNOTATIONS, &entry("a", "b"));
        wire::put(&mut request, 1, b"container");
        wire::put(&mut request, OCI, &oci);
        wire::put(&mut request, 99, b"from a newer Kata");
        let once = add_gpu_annotation(&request.clone().into()).expect("edits");
        let wanted = [("a", "b"), (CDI_KEY, CDI_VALUE)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(annotations(&once), wanted);
        assert_eq!(wire::without(&once, OCI), wire::without(&request, OCI));
        assert_eq!(add_gpu_annotation(&once).expect("edits again"), once);
    }

    #[test]
    fn a_request_without_a_spec_stays_as_it_is() {
        let mut request = Vec::new();
        wire::put(&mut request, 1, b"container");
        assert_eq!(add_gpu_annotation(&request.clone().into()).expect("edits"), request);
    }

    proptest! {
        #[test]
        fn hostile_requests_never_panic(request: Vec<u8>) {
            let _ = add_gpu_annotation(&request.into());
        }
    }
}
