//! The rules of the house that a machine can keep: which crate may use which, what stands at the
//! top, and that versions stand in one file.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a test that asks cargo")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use peerpod_it::top;
use serde_json::Value;

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(top())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

/// package name → our packages it depends on, tests' own (dev) dependencies left out.
fn edges(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    packages
        .iter()
        .map(|p| {
            let deps = p["dependencies"].as_array().expect("dependencies").iter();
            let used = deps
                .filter(|d| d["kind"].as_str() != Some("dev"))
                .filter_map(|d| d["name"].as_str())
                .filter(|name| ours.contains(name))
                .map(str::to_owned)
                .collect();
            (p["name"].as_str().expect("name").to_owned(), used)
        })
        .collect()
}

#[test]
fn dependencies_run_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("peerpodd", &["peerpod-providers", "peerpod-tunnel", "podvm"] as &[&str]),
        ("peerpod-providers", &["peerpod-netlink"]),
        ("peerpod-tunnel", &["peerpod-netlink"]),
        ("podvm", &["peerpod-tunnel"]),
        ("peerpod-netlink", &[]),
    ]);
    let metadata = metadata();
    for (package, used) in edges(&metadata) {
        let Some(may) = allowed.get(package.as_str()) else {
            let at = metadata["packages"]
                .as_array()
                .and_then(|all| all.iter().find(|p| p["name"] == package.as_str()))
                .and_then(|p| p["manifest_path"].as_str())
                .unwrap_or_default();
            assert!(at.contains("/tests/"), "{package} is no test and has no place in the picture");
            continue;
        };
        for other in used {
            assert!(may.contains(&other.as_str()), "{package} may not depend on {other}");
        }
    }
}

#[test]
fn every_version_stands_in_the_root_manifest() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages") {
        let path = package["manifest_path"].as_str().expect("path");
        let text = std::fs::read_to_string(path).expect("manifest");
        let root = path == top().join("Cargo.toml").to_str().expect("utf-8");
        let own = if root { text.split("[package]").nth(1).unwrap_or_default() } else { &text };
        let mut in_dependencies = false;
        for line in own.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') && !line.starts_with('#') {
                assert!(line.contains("workspace = true"), "{path}: {line}");
            }
        }
    }
}

#[test]
fn the_top_level_is_as_it_was_fixed() {
    let out = Command::new("git").args(["ls-files"]).current_dir(top()).output().expect("git runs");
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "providers",
        "tunnel",
        "podvm",
        "tests",
        "deploy",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "deny.toml",
    ];
    for file in String::from_utf8_lossy(&out.stdout).lines() {
        let first = file.split('/').next().unwrap_or_default();
        assert!(
            first.starts_with('.') || allowed.contains(&first),
            "{first} has no place at the top level"
        );
    }
}

#[test]
fn nothing_of_the_tests_is_in_the_shipped_binary() {
    let shipped = edges(&metadata());
    for name in ["peerpodd", "podvm"] {
        for used in &shipped[name] {
            assert!(!used.contains("standin"), "{name} uses {used}");
        }
    }
}

#[test]
fn the_readme_lists_every_setting() {
    let program = peerpod_standin::lab::Binaries::find().expect("built").peerpodd;
    let out = Command::new(program).args(["node", "--help"]).env_clear().output().expect("starts");
    let help = String::from_utf8_lossy(&out.stdout).into_owned();
    let readme = std::fs::read_to_string(top().join("README.md")).expect("README");
    let flags: Vec<&str> =
        help.lines().filter_map(|l| l.trim().strip_prefix("--")?.strip_suffix(" <v>")).collect();
    assert!(flags.len() > 40, "{help}");
    for flag in flags {
        assert!(readme.contains(&format!("| `--{flag}` |")), "README.md does not list --{flag}");
    }
}
