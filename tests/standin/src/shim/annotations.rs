//! The nine annotations of CreateVM in each shim's value formats (kata.md 3.3 and 3.4).

use std::collections::HashMap;

use super::{PodSpec, Profile};

/// The keys, always all of them.
pub const KEYS: [&str; 9] = [
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.katacontainers.config.hypervisor.machine_type",
    "io.katacontainers.config.hypervisor.image",
    "io.katacontainers.config.hypervisor.default_vcpus",
    "io.katacontainers.config.hypervisor.default_memory",
    "io.katacontainers.config.hypervisor.cc_init_data",
    "io.katacontainers.config.hypervisor.default_gpus",
    "io.katacontainers.config.hypervisor.default_gpu_model",
];

/// What a shim would send for the pod.
pub fn annotations(profile: Profile, pod: &PodSpec) -> HashMap<String, String> {
    let image = match profile {
        Profile::GoLike => pod.image.clone(),
        // Not among the annotations the shipped configuration lets through.
        Profile::RsLike => String::new(),
    };
    let values = [
        pod.name.clone(),
        pod.namespace.clone(),
        pod.machine_type.clone(),
        image,
        vcpus(profile, pod),
        memory(profile, pod),
        pod.initdata.clone(),
        pod.gpus.to_string(),
        pod.gpu_model.clone(),
    ];
    KEYS.iter().map(|k| (*k).to_owned()).zip(values).collect()
}

/// Go: annotation plus limit, rounded up. Rust: the limit replaces the default of 1, at least 1,
/// printed as Rust prints a float.
fn vcpus(profile: Profile, pod: &PodSpec) -> String {
    let (asked, limit) = (pod.vcpus.unwrap_or_default(), pod.cpu_limit.unwrap_or_default());
    match profile {
        Profile::GoLike => format!("{}", (f64::from(asked) + limit).ceil()),
        Profile::RsLike if limit > 0.0 => format!("{}", limit.max(1.0)),
        Profile::RsLike => format!("{}", pod.vcpus.unwrap_or(1)),
    }
}

/// In MiB; "0" and "2048" are what is sent when nothing was asked.
fn memory(profile: Profile, pod: &PodSpec) -> String {
    let (asked, limit) = (pod.memory_mib.unwrap_or_default(), pod.memory_limit_mib);
    match (profile, limit) {
        (Profile::GoLike, limit) => (asked + limit.unwrap_or_default()).to_string(),
        (Profile::RsLike, Some(limit)) => limit.to_string(),
        (Profile::RsLike, None) => pod.memory_mib.unwrap_or(2048).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(profile: Profile, pod: &PodSpec) -> (String, String) {
        let all = annotations(profile, pod);
        assert_eq!(all.len(), 9);
        (all[KEYS[4]].clone(), all[KEYS[5]].clone())
    }

    #[test]
    fn values_are_the_measured_ones() {
        let (go, rs) = (Profile::GoLike, Profile::RsLike);
        let pod = |cpu_limit, memory_limit_mib| PodSpec {
            cpu_limit,
            memory_limit_mib,
            ..PodSpec::default()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(sizes(go, &pod(None, None)), pair("0", "0"));
        assert_eq!(sizes(rs, &pod(None, None)), pair("1", "2048"));
        assert_eq!(sizes(go, &pod(Some(1.5), Some(128))), pair("2", "128"));
        assert_eq!(sizes(rs, &pod(Some(1.5), Some(128))), pair("1.5", "128"));
        assert_eq!(sizes(go, &pod(Some(12.5), None)).0, "13");
        assert_eq!(sizes(rs, &pod(Some(12.5), None)).0, "12.5");
        assert_eq!(sizes(go, &pod(Some(0.5), None)).0, "1");
        assert_eq!(sizes(rs, &pod(Some(0.5), None)).0, "1");
    }
}
