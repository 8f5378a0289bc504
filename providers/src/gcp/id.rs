//! The forms of Google's names, and what a machine's family says of it, as far as that can be told without
//! asking.

use serde_json::Value;

use crate::common;

/// A service account's key.
pub(super) fn credentials(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|_| "is not JSON".to_owned())?;
    for field in ["client_email", "private_key"] {
        if value.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(format!("is not the key of a service account: it has no {field}"));
        }
    }
    Ok(value)
}

/// `[a-z][a-z0-9-]{4,28}[a-z0-9]`, with an old domain in front perhaps.
pub(super) fn project(text: &str) -> Result<String, String> {
    let bad = "is not the id of a project: 6 to 30 small letters, digits and dashes";
    let (domain, bare) = text.rsplit_once(':').unwrap_or(("google.com", text));
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    match (6..=30).contains(&bare.len()) && is_label(bare) && domain.chars().all(legal) {
        true => Ok(text.to_owned()),
        false => Err(bad.to_owned()),
    }
}

/// Comma list, at least one.
pub(super) fn zones(text: &str) -> Result<Vec<String>, String> {
    let zones = common::list(text);
    match zones.iter().find(|z| !is_zone(z)) {
        Some(bad) => Err(format!("has {bad:?}, which is not a zone such as europe-west1-b")),
        None if zones.is_empty() => Err("names no zone".to_owned()),
        None => Ok(zones),
    }
}

/// `europe-west1-b`.
pub(super) fn is_zone(text: &str) -> bool {
    is_label(text) && text.matches('-').count() >= 2
}

/// `europe-west1` of `europe-west1-b`.
pub(super) fn region(zone: &str) -> &str {
    zone.rsplit_once('-').map_or(zone, |(region, _)| region)
}

/// `global/networks/<name>` or `projects/<project>/global/networks/<name>`.
pub(super) fn network(text: &str) -> Result<String, String> {
    let path = path(text);
    match path.contains('/') {
        true if path.contains("global/networks/") && is_path(path) => Ok(path.to_owned()),
        false if is_label(path) => Ok(format!("global/networks/{path}")),
        _ => Err("is neither the name of a network nor projects/…/global/networks/<name>".into()),
    }
}

/// A bare name, or a path with the region.
pub(super) fn subnetwork(text: &str) -> Result<String, String> {
    let path = path(text);
    match is_label(path) || (path.contains("/subnetworks/") && is_path(path)) {
        true => Ok(path.to_owned()),
        false => {
            Err("is neither the name of a subnetwork nor …regions/<region>/subnetworks/<name>"
                .into())
        }
    }
}

/// `projects/…`, `/projects/…`, `https…`, or a bare name of that project.
pub(super) fn image(text: &str, project: &str) -> Result<String, String> {
    let path = path(text);
    match path.contains('/') {
        true if image_parts(path).is_some() && is_path(path) => Ok(path.to_owned()),
        false if is_label(path) => Ok(format!("projects/{project}/global/images/{path}")),
        _ => {
            Err("is neither the name of an image nor projects/<project>/global/images/<name>"
                .into())
        }
    }
}

/// Project and name of an image; an image of a family has `family/<name>`.
pub(super) fn image_parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("projects/")?.split_once("/global/images/")
}

/// The project that a path names.
pub(super) fn project_of(path: &str) -> Option<&str> {
    path.strip_prefix("projects/")?.split('/').next()
}

/// Name of a machine type, disk type or accelerator.
pub(super) fn resource(text: &str, pattern: bool) -> Result<String, String> {
    let name = if pattern { text.strip_suffix('*').unwrap_or(text) } else { text };
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match (pattern || !name.is_empty()) && name.chars().all(legal) && name.len() <= 63 {
        true => Ok(text.to_owned()),
        false => Err("is not a type's name: small letters, digits and dashes".to_owned()),
    }
}

/// SEV, `SEV_SNP` or TDX, in any case.
pub(super) fn confidential(text: &str) -> Result<String, String> {
    match text.to_ascii_uppercase().as_str() {
        kind @ ("SEV" | "SEV_SNP" | "TDX") => Ok(kind.to_owned()),
        _ => Err("is none of SEV, SEV_SNP, TDX".to_owned()),
    }
}

/// `n2d` of `n2d-standard-2`.
pub(super) fn family(machine_type: &str) -> &str {
    machine_type.split('-').next().unwrap_or_default()
}

/// Whether a machine of that family can be so: cloud.google.com, "Confidential VM supported
/// configurations". A family that is not known there may be new and is left to the cloud.
pub(super) fn can_be(machine_type: &str, kind: &str) -> bool {
    match (family(machine_type), kind) {
        ("n2d", kind) => kind != "TDX",
        ("c2d" | "c3d", kind) => kind == "SEV",
        ("c3" | "a3", kind) => kind == "TDX",
        ("e2" | "n1" | "n2" | "t2d" | "t2a" | "f1" | "g1" | "m1" | "m2" | "a2" | "g2", _) => false,
        _ => true,
    }
}

/// Whether GPUs are attached to machines of that family one by one; other families have theirs, or none
/// (cloud.google.com, "GPU machine types").
pub(super) fn takes_accelerators(machine_type: &str) -> bool {
    family(machine_type) == "n1"
}

/// Whether machines of that family have GPUs of their own, so that they cannot be moved while they run.
pub(super) fn has_accelerators(machine_type: &str) -> bool {
    matches!(family(machine_type), "a2" | "a3" | "a4" | "a4x" | "g2" | "g4")
}

/// Whether machines of that family cannot have a disk of that type: cloud.google.com, "Choose a disk type".
pub(super) fn refuses_disk(machine_type: &str, disk_type: &str) -> bool {
    match family(machine_type) {
        "a4" | "a4x" | "c4" | "c4a" | "c4d" | "g4" | "h4d" | "m4" | "n4" | "n4a" | "n4d" | "x4" => {
            disk_type.starts_with("pd-")
        }
        "a3" | "c3" | "c3d" | "g2" | "h3" | "m3" | "z3" => disk_type == "pd-standard",
        "e2" | "f1" | "g1" | "n1" | "t2a" | "t2d" => disk_type == "hyperdisk-balanced",
        _ => false,
    }
}

/// Whether it is a number as Google gives to everything.
pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit())
}

/// The last part of a path or URL.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// A part of a query, with `%` for all that may mean something there.
pub(super) fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    let byte = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}

/// A URL without what all of them begin with.
fn path(text: &str) -> &str {
    let text = match text.strip_prefix("https://") {
        Some(url) => url.split_once("/projects/").map_or(text, |(host, _)| &url[host.len()..]),
        None => text,
    };
    text.trim_start_matches('/')
}

fn is_path(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    text.split('/').all(|part| !part.is_empty() && part != ".." && part.chars().all(legal))
}

/// RFC 1035, as nearly all names are.
fn is_label(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_networks_come_in_all_the_forms_that_people_write() {
        let whole = "projects/images-1/global/images/podvm-1";
        for text in [
            whole,
            "/projects/images-1/global/images/podvm-1",
            "https://www.googleapis.com/compute/v1/projects/images-1/global/images/podvm-1",
        ] {
            assert_eq!(image(text, "mine-1").as_deref(), Ok(whole), "{text}");
        }
        let own = image("podvm", "mine-1").expect("an image");
        assert_eq!(image_parts(&own), Some(("mine-1", "podvm")));
        let family = image("projects/p-1/global/images/family/podvm", "").expect("a family");
        assert_eq!(image_parts(&family), Some(("p-1", "family/podvm")));
        for bad in ["", "Podvm", "projects/p", "projects/p/global/images/../x", "a/b", "https://x"]
        {
            assert!(image(bad, "mine-1").is_err(), "{bad}");
        }
        assert_eq!(network("default").as_deref(), Ok("global/networks/default"));
        let shared = "projects/host-1/global/networks/pods";
        assert_eq!(network(&format!("https://x.com/compute/v1/{shared}")).as_deref(), Ok(shared));
        assert_eq!(project_of(shared), Some("host-1"));
        assert!(network("regions/r/subnetworks/s").is_err() && network("a b").is_err());
        assert!(subnetwork("pods").is_ok() && subnetwork("projects/p/x").is_err());
    }

    #[test]
    fn zones_and_projects_have_their_form() {
        assert_eq!(zones("us-east1-b, us-east1-c").expect("two"), ["us-east1-b", "us-east1-c"]);
        for bad in ["us-east1", "", "US-east1-b", "a-b-c/d"] {
            assert!(zones(bad).is_err(), "{bad}");
        }
        assert_eq!(region("us-east1-b"), "us-east1");
        assert!(project("example.com:pods-1").is_ok());
        for bad in ["pods", "Pods-12", "pods-1/x", "a b:pods-1"] {
            assert!(project(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_family_says_what_its_machines_cannot_be() {
        assert!(can_be("n2d-standard-2", "SEV_SNP") && !can_be("n2d-standard-2", "TDX"));
        assert!(can_be("c3-standard-4", "TDX") && !can_be("e2-medium", "SEV"));
        assert!(can_be("z9-standard-4", "SEV"), "what is new is left to the cloud");
        assert!(takes_accelerators("n1-standard-4") && !takes_accelerators("g2-standard-4"));
        assert!(refuses_disk("n4-standard-2", "pd-ssd") && refuses_disk("c3-metal", "pd-standard"));
        assert!(!refuses_disk("e2-medium", "pd-standard"));
    }

    #[test]
    fn a_query_keeps_its_parts_apart() {
        assert_eq!(encoded("labels.a=b&c d/é"), "labels.a%3Db%26c%20d%2F%C3%A9");
    }
}
