//! The feature `next-version`: this source as a build of the next version of everything that has one,
//! records, the API between node and relay and the hand-over. For the tests of upgrades.

#[cfg(all(feature = "next-version", not(debug_assertions)))]
compile_error!("next-version is for tests: no daemon of that version is to be released");

/// Added to every version.
pub(crate) const STEP: u32 = if cfg!(feature = "next-version") { 1 } else { 0 };

/// Added to the build's name.
pub(crate) const NAME: &str = if cfg!(feature = "next-version") { "-next" } else { "" };

/// The oldest version that is spoken, `usual` in every real build. The next one can be told by
/// `PEERPODD_NEXT_ALONE` to speak `newest` only, as a build two versions away would.
#[cfg(not(feature = "next-version"))]
pub(crate) fn oldest(usual: u32, _newest: u32) -> u32 {
    usual
}

#[cfg(feature = "next-version")]
#[allow(
    clippy::disallowed_methods,
    missing_docs,
    reason = "not a setting: only a test build reads it"
)]
pub(crate) fn oldest(usual: u32, newest: u32) -> u32 {
    if std::env::var_os("PEERPODD_NEXT_ALONE").is_some() { newest } else { usual }
}
