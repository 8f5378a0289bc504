//! Pseudo-random payloads, and the line of JSON that says how a transfer went.

use std::time::Instant;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// How a transfer went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Everything came back byte for byte.
    pub ok: bool,
    /// Bytes that came back right.
    pub bytes: u64,
    /// Milliseconds from the first try to the last byte.
    pub ms: u64,
    /// Datagrams that had to be sent again.
    pub repeated: u64,
    /// What went wrong.
    pub error: Option<String>,
}

/// The same bytes for the same seed.
pub(super) fn payload(bytes: usize, seed: u64) -> Vec<u8> {
    let mut all = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut all);
    all
}

/// Measures `transfer`, which counts what came back right and what was repeated.
pub(super) fn measure(transfer: impl FnOnce(&mut u64, &mut u64) -> anyhow::Result<()>) -> Report {
    let begin = Instant::now();
    let (mut bytes, mut repeated) = (0, 0);
    let error = transfer(&mut bytes, &mut repeated).err().map(|e| format!("{e:#}"));
    let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report { ok: error.is_none(), bytes, ms, repeated, error }
}

/// Prints the report and makes an exit status of it.
pub(super) fn report(report: &Report) -> anyhow::Result<u8> {
    println!("{}", serde_json::to_string(report).context("print the report")?);
    Ok(u8::from(!report.ok))
}
