//! What the VM is told at boot, as cloud-config.

use peerpod_providers::{UserData, UserDataLimit};
use podvm::apf::{Apf, ApfNetwork};
use podvm::cloud_config::{self, File};
use podvm::contract;
use zeroize::Zeroize;

use super::{PlanError, PlanInput, PlanRules};

/// The files as one text, within the limit.
pub(super) fn make(input: &PlanInput<'_>, rules: &PlanRules) -> Result<UserData, PlanError> {
    let mut files = files(input, rules)?;
    let made = cloud_config::render(&files).map_err(PlanError::from);
    let made = made.map(UserData).and_then(|text| within(text, &files, rules.user_data_limit));
    // apf.json holds a key, auth.json credentials.
    files.iter_mut().for_each(|file| file.content.zeroize());
    made
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
