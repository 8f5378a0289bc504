//! Which providers there are, and how each is made. A further cloud is one folder and one line
//! here.

use std::sync::Arc;

use crate::settings::{Key, SettingsError, Values};
use crate::{Error, Provider};

pub use crate::context::Context;

/// Why there is no provider.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nobody has heard of it.
    #[error("cloud provider {name:?} is not known; this build has: {}", list(built))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        built: Vec<&'static str>,
    },
    /// It exists, but was left out.
    #[error(
        "cloud provider {name:?} is not in this build, which has: {}; a build has it with the cargo \
         feature {name:?}",
        list(built)
    )]
    NotBuilt {
        /// What was asked for; also the name of its feature.
        name: &'static str,
        /// What there is.
        built: Vec<&'static str>,
    },
    /// Its settings are wrong.
    #[error("cloud provider {name:?}: {problems}")]
    Settings {
        /// The provider.
        name: &'static str,
        /// All that is wrong.
        problems: SettingsError,
    },
    /// It could not be made.
    #[error("cloud provider could not be set up")]
    Build(#[from] Error),
}

fn list(names: &[&'static str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

type Build = fn(&Context, &Values) -> Result<Arc<dyn Provider>, RegistryError>;

struct Entry {
    name: &'static str,
    keys: fn() -> &'static [Key],
    build: Build,
}

/// Everything that peerpodd may be built with, whether this build has it or not.
const KNOWN: [&str; 5] = ["aws", "azure", "gcp", "libvirt", "local"];

const BUILT: &[Entry] = &[
    #[cfg(feature = "libvirt")]
    Entry { name: crate::libvirt::NAME, keys: crate::libvirt::keys, build: libvirt },
    #[cfg(feature = "local")]
    Entry { name: crate::local::NAME, keys: crate::local::keys, build: local },
    #[cfg(feature = "aws")]
    Entry { name: crate::aws::NAME, keys: crate::aws::keys, build: aws },
    #[cfg(feature = "azure")]
    Entry { name: crate::azure::NAME, keys: crate::azure::keys, build: azure },
    #[cfg(feature = "gcp")]
    Entry { name: crate::gcp::NAME, keys: crate::gcp::keys, build: gcp },
];

#[cfg(feature = "local")]
fn local(context: &Context, values: &Values) -> Result<Arc<dyn Provider>, RegistryError> {
    use crate::local::{Local, NAME, Settings};
    let settings = Settings::from_values(values, &context.program, &context.search)
        .map_err(|problems| RegistryError::Settings { name: NAME, problems })?;
    Ok(Arc::new(Local::new(settings, &context.installation)))
}

#[cfg(feature = "gcp")]
fn gcp(context: &Context, values: &Values) -> Result<Arc<dyn Provider>, RegistryError> {
    use crate::gcp::{Gcp, NAME, Settings};
    let settings = Settings::from_values(values, context)
        .map_err(|problems| RegistryError::Settings { name: NAME, problems })?;
    Ok(Arc::new(Gcp::new(settings, context)))
}

#[cfg(feature = "aws")]
fn aws(context: &Context, values: &Values) -> Result<Arc<dyn Provider>, RegistryError> {
    use crate::aws::{Aws, NAME, Settings};
    let settings = Settings::from_values(values, &context.tags)
        .map_err(|problems| RegistryError::Settings { name: NAME, problems })?;
    Ok(Arc::new(Aws::new(settings, context)))
}

#[cfg(feature = "azure")]
fn azure(context: &Context, values: &Values) -> Result<Arc<dyn Provider>, RegistryError> {
    use crate::azure::{Azure, NAME, Settings};
    let settings = Settings::from_values(values, &context.tags)
        .map_err(|problems| RegistryError::Settings { name: NAME, problems })?;
    Ok(Arc::new(Azure::new(settings, context)))
}

#[cfg(feature = "libvirt")]
fn libvirt(context: &Context, values: &Values) -> Result<Arc<dyn Provider>, RegistryError> {
    use crate::libvirt::{Libvirt, NAME, Settings};
    let settings = Settings::from_values(values)
        .map_err(|problems| RegistryError::Settings { name: NAME, problems })?;
    Ok(Arc::new(Libvirt::new(settings, context)))
}

/// The providers of this build.
pub fn names() -> Vec<&'static str> {
    BUILT.iter().map(|e| e.name).collect()
}

/// The settings a provider takes.
///
/// # Errors
/// When there is no such provider in this build.
pub fn keys(name: &str) -> Result<&'static [Key], RegistryError> {
    find(name).map(|e| (e.keys)())
}

/// Makes a provider.
///
/// # Errors
/// When there is no such provider in this build, or its settings are wrong.
pub fn build(
    name: &str,
    context: &Context,
    values: &Values,
) -> Result<Arc<dyn Provider>, RegistryError> {
    (find(name)?.build)(context, values)
}

fn find(name: &str) -> Result<&'static Entry, RegistryError> {
    if let Some(entry) = BUILT.iter().find(|e| e.name == name) {
        return Ok(entry);
    }
    match KNOWN.into_iter().find(|known| *known == name) {
        Some(name) => Err(RegistryError::NotBuilt { name, built: names() }),
        None => Err(RegistryError::Unknown { name: name.to_owned(), built: names() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn context() -> Context {
        Context {
            installation: "test".to_owned(),
            program: "/nowhere/peerpodd".into(),
            search: String::new(),
            tags: BTreeMap::new(),
            forwarder_port: 15150,
            vxlan_port: 9000,
        }
    }

    fn refusal(name: &str) -> String {
        build(name, &context(), &Values::default()).expect_err("refused").to_string()
    }

    #[test]
    fn an_unknown_name_is_told_what_there_is() {
        let text = refusal("aqs");
        assert!(text.contains("\"aqs\" is not known"), "{text}");
        assert!(names().iter().all(|name| text.contains(name)), "{text}");
    }

    #[test]
    fn a_known_name_that_is_not_built_in_names_its_cargo_feature() {
        for name in KNOWN.into_iter().filter(|n| !names().contains(n)) {
            let text = refusal(name);
            assert!(text.contains(&format!("cargo feature \"{name}\"")), "{text}");
            assert!(keys(name).is_err());
        }
    }

    #[cfg(feature = "local")]
    #[test]
    fn local_is_made_by_name_and_prints_it() {
        let provider = build("local", &context(), &Values::default()).expect("built");
        assert_eq!(provider.to_string(), "local");
        let shared = crate::common::SPOT.env;
        let known = |env: &str| env.starts_with("LOCAL_") || env == shared;
        assert!(keys("local").expect("keys").iter().all(|k| known(k.env)));
    }

    #[cfg(feature = "local")]
    #[test]
    fn wrong_settings_name_the_provider_and_the_key() {
        let values = [("local-cidr", "nonsense")].into_iter().collect();
        let error = build("local", &context(), &values).expect_err("refused").to_string();
        assert!(error.contains("\"local\": LOCAL_CIDR (--local-cidr) \"nonsense\" "), "{error}");
    }
}
