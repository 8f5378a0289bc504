//! The settings: read once, checked, printed redacted. After [`Settings`] nobody reads raw input.

pub mod settings;

pub use settings::{
    ClientFiles, Kubernetes, Link, Log, LogFormat, Paths, Pods, Process, ProviderChoice,
    RelaySettings, Settings, Sweep, Tls, Tunnel,
};
