//! A laboratory: network namespaces on one machine in which a real daemon runs.

pub mod survey;
