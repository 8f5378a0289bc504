//! A look, by a process of its own, for what a daemon should not have left.

/// The arguments of `standin-agent survey`.
#[derive(Debug, Default, clap::Args)]
pub struct Survey {}

impl Survey {
    /// Prints the findings as JSON; status 1 if there are any.
    ///
    /// # Errors
    /// When something cannot be looked at.
    pub fn print(&self) -> anyhow::Result<u8> {
        Ok(0)
    }
}
