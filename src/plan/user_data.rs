//! What the VM is told at boot, as cloud-config, and what has no room there.
//!
//! ```text
//!   apf.json, auth.json, initdata ─ within the limit? ─▶ user data
//!        ▲ promises it                  └ no ─▶ the largest follows over the link
//!        └──────────────────────────────────────┘
//! ```

use peerpod_providers::{UserData, UserDataLimit};
use peerpod_tunnel::link::Secret;
use peerpod_tunnel::link::session::MAX_FILES;
use podvm::apf::{Apf, ApfNetwork, Ours, ToFollow};
use podvm::cloud_config::{self, File};
use podvm::contract;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{PlanError, PlanInput, PlanRules};

/// A file that had no room in the user data and follows over the link, before the pod begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowFile {
    /// Absolute path in the VM.
    pub path: String,
    /// All of it.
    pub content: Secret,
}

impl FollowFile {
    /// For the timeline.
    pub(super) fn note(&self) -> String {
        let (path, size) = (&self.path, self.content.expose().len());
        format!("{path} has no room in the user data ({size} bytes), it follows over the link")
    }
}

/// The files as one text, within the limit, and those that follow.
pub(super) fn make(
    input: &PlanInput<'_>,
    rules: &PlanRules,
) -> Result<(UserData, Vec<FollowFile>), PlanError> {
    let mut files = files(input, rules)?;
    let made = fit(input, rules, &mut files);
    // apf.json holds a key, auth.json credentials.
    files.iter_mut().for_each(|file| file.content.zeroize());
    made
}

fn fit(
    input: &PlanInput<'_>,
    rules: &PlanRules,
    files: &mut Vec<File>,
) -> Result<(UserData, Vec<FollowFile>), PlanError> {
    let mut follow = Vec::new();
    loop {
        let text = UserData(cloud_config::render(files)?);
        match within(text, files, rules.user_data_limit) {
            Ok(text) => return Ok((text, follow)),
            // Without TLS there is no session, and nobody who could be told from others.
            Err(error) if input.issued.is_none() => return Err(error),
            Err(error) => follow.push(largest_that_may_follow(files).ok_or(error)?),
        }
        let size = follow.iter().map(|file| file.content.expose().len()).sum();
        if size > MAX_FILES {
            let parts = follow.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
            return Err(PlanError::FollowTooLarge { parts, size });
        }
        let mut apf = apf(input, rules);
        let promise = |f: &FollowFile| ToFollow::of(&f.path, f.content.expose().as_bytes());
        apf.peerpod = Some(Ours { files: follow.iter().map(promise).collect() });
        let text = apf.render()?;
        if let Some(file) = files.iter_mut().find(|file| file.path == contract::APF) {
            file.content.zeroize();
            file.content = text;
        }
    }
}

fn largest_that_may_follow(files: &mut Vec<File>) -> Option<FollowFile> {
    let may = |file: &File| contract::TO_FOLLOW.contains(&file.path.as_str());
    let largest = files.iter().filter(|file| may(file)).max_by_key(|file| file.content.len())?;
    let path = largest.path.clone();
    let at = files.iter().position(|file| file.path == path)?;
    let File { path, content } = files.remove(at);
    Some(FollowFile { path, content: Secret::new(content) })
}

fn files(input: &PlanInput<'_>, rules: &PlanRules) -> Result<Vec<File>, PlanError> {
    let file = |path: &str, content| File { path: path.to_owned(), content };
    let mut files = vec![file(contract::APF, apf(input, rules).render()?)];
    if let Some(auth) = input.auth {
        let (size, limit) = (auth.expose().len(), contract::AUTH_LIMIT);
        if size > limit {
            return Err(PlanError::Auth { size, limit });
        }
        files.push(file(contract::AUTH, auth.expose().to_owned()));
    }
    if let Some(initdata) = &input.request.initdata {
        files.push(file(contract::INITDATA, initdata.encode()));
    }
    if rules.scratch_space {
        files.push(file(contract::SCRATCH_MARKER, String::new()));
    }
    Ok(files)
}

fn apf(input: &PlanInput<'_>, rules: &PlanRules) -> Apf {
    let network = ApfNetwork {
        external_net_via_pod_vm: rules.external_network_via_podvm,
        ..ApfNetwork::new(input.network, input.vni, rules.vxlan_port)
    };
    let mut apf = Apf {
        pod_network: Some(network),
        pod_namespace: input.request.namespace.clone(),
        pod_name: input.request.pod.clone(),
        ..Apf::default()
    };
    if let Some(issued) = input.issued {
        apf.tls_server_key = issued.server_key_pem.clone();
        apf.tls_server_cert = issued.server_cert_pem.clone();
        apf.tls_client_ca = issued.client_ca_pem.clone();
        apf.tls_min_version = rules.profile.min_version.clone();
        apf.tls_cipher_suites = rules.profile.cipher_suites.clone();
    }
    apf
}

fn within(
    text: UserData,
    files: &[File],
    limit: Option<UserDataLimit>,
) -> Result<UserData, PlanError> {
    let bytes = text.0.len();
    // What our own program in the VM reads at most.
    let own = UserDataLimit { size: contract::USER_DATA_LIMIT, base64: false };
    for limit in limit.into_iter().chain([own]) {
        let size = limit.counted(bytes);
        if size <= limit.size {
            continue;
        }
        let largest = files.iter().max_by_key(|f| f.content.len());
        return Err(PlanError::TooLarge {
            size,
            unit: limit.unit(),
            limit: limit.size,
            part: largest.map(|f| f.path.clone()).unwrap_or_default(),
            part_size: largest.map_or(0, |f| f.content.len()),
        });
    }
    Ok(text)
}
