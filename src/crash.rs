//! Crash points: places at which a test build (`--features crash-points`) can be told to die, before
//! and after every effect. The table of their names is in `points`; other builds have none of this.
//!
//! ```text
//!   PEERPODD_CRASH=create.after:2,open.before    dies at the second `create.after`; whoever comes
//!                                                after it dies at its first `open.before`
//!   PEERPODD_CRASH_LOG=<file>                    every point reached is a line there, a death `! <name>`
//!   PEERPODD_CRASH_FAULTS=<file>                 lines `record-fsync EIO`, `record-write short`: steps
//!                                                on the disk that fail for as long as they stand there
//! ```

#[cfg(all(feature = "crash-points", not(debug_assertions)))]
compile_error!("crash-points is for tests: a release build must not be able to kill itself");

#[cfg(feature = "crash-points")]
mod fault;
#[cfg(feature = "crash-points")]
mod points;
#[cfg(feature = "crash-points")]
mod real;

#[cfg(feature = "crash-points")]
pub use fault::{fault, is_short};
#[cfg(feature = "crash-points")]
pub use points::{Place, Point, Side};
#[cfg(feature = "crash-points")]
pub use real::{Sigkill, reached, settle, tunnel};

/// How long "gone" has to hold; a test build can be told otherwise.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn settle(usual: std::time::Duration) -> std::time::Duration {
    usual
}

/// Who is told that a point is reached. In a simulation the daemon ends there.
#[cfg(feature = "crash-points")]
#[async_trait::async_trait]
pub trait Crash: Send + Sync + std::fmt::Debug {
    /// Does not return where the daemon is to die.
    async fn reach(&self, point: Point);
}

/// Looks once whether `call` has its reply already; comes by the point if not.
#[cfg(feature = "crash-points")]
pub(crate) async fn on_its_way<T>(
    crash: &dyn Crash,
    point: Point,
    call: impl Future<Output = T>,
) -> T {
    let mut call = std::pin::pin!(call);
    match futures_util::poll!(&mut call) {
        std::task::Poll::Ready(reply) => reply,
        std::task::Poll::Pending => {
            crash.reach(point).await;
            call.await
        }
    }
}

/// Reaches a point of the pods' world: `reach!(world, CreateVmBefore)`.
macro_rules! reach {
    ($world:expr, $point:ident) => {
        #[cfg(feature = "crash-points")]
        $world.crash.reach($crate::crash::Point::$point).await;
    };
}
pub(crate) use reach;

/// A call that comes by a point when it is on its way and has no reply yet.
macro_rules! sent {
    ($world:expr, $point:ident, $call:expr) => {{
        #[cfg(feature = "crash-points")]
        let call = $crate::crash::on_its_way(&*$world.crash, $crate::crash::Point::$point, $call);
        #[cfg(not(feature = "crash-points"))]
        let call = $call;
        call
    }};
}
pub(crate) use sent;

/// Reaches the point on one side of a step that is known by its name, if it has one.
macro_rules! reach_step {
    ($world:expr, $step:expr, $side:ident) => {
        #[cfg(feature = "crash-points")]
        if let Some(point) = $crate::crash::Point::of($step, $crate::crash::Side::$side) {
            $world.crash.reach(point).await;
        }
    };
}
pub(crate) use reach_step;

/// Reaches the point on one side of the save of a record in that phase.
macro_rules! reach_save {
    ($world:expr, $phase:expr, $side:ident) => {
        #[cfg(feature = "crash-points")]
        $world.crash.reach($crate::crash::Point::of_save($phase, $crate::crash::Side::$side)).await;
    };
}
pub(crate) use reach_save;

/// Reaches a point below the world, or in the relay: `here!(SocketBindBefore)`.
macro_rules! here {
    ($point:ident) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($crate::crash::Point::$point);
    };
}
pub(crate) use here;

/// A step on the disk between its two points, which can be told to fail:
/// `on_disk!(RecordFsyncBefore, RecordFsyncAfter, file.sync_all())`.
macro_rules! on_disk {
    ($before:ident, $after:ident, $work:expr) => {{
        $crate::crash::here!($before);
        #[cfg(feature = "crash-points")]
        let done = $crate::crash::fault($crate::crash::Point::$before).and_then(|()| $work);
        #[cfg(not(feature = "crash-points"))]
        let done = $work;
        $crate::crash::here!($after);
        done
    }};
}
pub(crate) use on_disk;
