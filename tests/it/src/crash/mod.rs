//! Deaths at crash points, over `local`: a daemon that was built with them is told where to die, lives
//! through a scenario, and must have lost, leaked and doubled nothing.
//!
//! ```text
//!   plan (point, time)… ─▶ lab ─▶ scenario ─▶ converge ─▶ survey ─▶ end ─▶ survey
//!                             the log says which points came, and after which death
//! ```

mod plan;
mod run;
mod scenario;

pub use plan::{Death, Log, Plan};
pub use run::{Outcome, binaries, run};
pub use scenario::Scenario;
