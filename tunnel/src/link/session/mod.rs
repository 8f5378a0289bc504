//! `peerpod-link/1`: one TLS connection per VM that carries all of a pod's shim connections, and can
//! be made again without a byte lost, repeated or out of order.
//!
//! ```text
//!   worker                                                     VM
//!   Stream ─┐                                                ┌─ Stream ─▶ kata-agent
//!   Stream ─┼─ Machine ─ drive ═══ TLS, ALPN ═══ drive ─ Machine ┼─ Stream ─▶ kata-agent
//!   control ┘   │  keeps what is not acknowledged      │     └─ control
//!               └──── HELLO: session, next offsets ───▶│
//!                ◀─── WELCOME: next offsets, or GONE ──┘
//! ```
//!
//! [`Machine`] is the protocol, without input, output or clock. [`Link`] and [`Stream`] put tasks and
//! wakers around it. [`Sessions`] is the VM's side: it knows the sessions by id and certificate.
//! [`Export`] is a worker's session as bytes, for the process that goes on with it. The format, its
//! limits and its rules stand in tunnel/README.md.

mod clock;
mod control;
mod drive;
mod export;
mod files;
mod flow;
mod frame;
mod interruption;
mod link;
mod machine;
mod queue;
mod receive;
mod resume;
mod stream;
#[cfg(test)]
mod tests;
mod transmit;
mod users;
mod vm;

use std::time::Duration;

pub use control::{About, Closing, Interruption, Message, Piece, Taken, Watch};
pub use drive::Ended;
pub use export::{Export, ExportError};
pub use files::{DeliverError, Files};
pub use frame::{Greeting, HEAD, Head, Refusal, SessionId, Type, Violation};
pub use link::Link;
pub use machine::{Event, Machine, Over, Side};
pub use stream::Stream;
pub use transmit::Burst;
pub use users::Front;
pub use vm::{Owner, Served, Sessions};

/// What is offered and chosen in TLS.
pub const ALPN: &[u8] = b"peerpod-link/1";
/// Of the frames' format, in the greetings.
pub const VERSION: u16 = 1;
/// Bytes of a session's id.
pub const ID: usize = 16;
/// Streams of a session at a time.
pub const MAX_STREAMS: usize = 512;
/// Bytes of a Data frame.
pub const MAX_DATA: usize = 64 << 10;
/// Bytes of Hello and Welcome: every stream's offset fits in.
pub const MAX_GREETING: usize = 8 << 10;
/// Bytes of a control message.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Bytes of a file in one message.
pub const MAX_PIECE: usize = 32 << 10;
/// Bytes of all files that go into a VM: less than the control stream's [`WINDOW`], so that they go at once.
pub const MAX_FILES: usize = 768 << 10;
/// Unacknowledged bytes of a stream and direction. Also what the control stream may have.
pub const WINDOW: usize = 1 << 20;
/// What every stream may have, however full the others are.
pub const FLOOR: usize = 32 << 10;
/// Unacknowledged bytes of all streams of a session and direction, but for the floors.
pub const POOL: usize = 8 << 20;
/// Bytes taken that are acknowledged at once; fewer go with the next frame. A call and its answer are
/// mostly shorter, and need no packet of their own for it.
pub const ACK_EVERY: usize = 64 << 10;
/// The same once so much of all streams is unacknowledged that the other side may be down to the
/// floors: [`POOL`] / 2.
pub const ACK_TIGHT: usize = FLOOR / 2;
/// How much is read from the connection at once.
pub const READ: usize = 64 << 10;

/// The worker asks "are you there?" after this much silence while something is unacknowledged …
pub const ASK_BUSY: Duration = Duration::from_secs(1);
/// … and after this much while nothing is.
pub const ASK_IDLE: Duration = Duration::from_secs(3);
/// Without any sign within this time after asking, the connection is taken for dead.
pub const DEAD: Duration = Duration::from_secs(3);
/// The VM is asked at least every `ASK_IDLE`; after this much silence the worker's end is dead.
pub const DEAD_FOR_VM: Duration = Duration::from_secs(12);
/// Longest time that a VM keeps a session without a connection, whatever the worker wishes.
pub const LONGEST_KEEP: Duration = Duration::from_secs(600);
/// Sessions of a VM at a time; a pod has one.
pub const MAX_SESSIONS: usize = 8;
/// How long the first frame on a connection may take.
pub const GREETING_TIME: Duration = Duration::from_secs(10);
