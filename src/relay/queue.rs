//! The requests of one shim connection that have no answer yet, in the order they came.
//!
//! ```text
//!   push ─▶ unsent ──send──▶ sent ──answered──▶ gone
//!             ▲               │
//!             └── node gone ──┘    before anything newer, with the same stream ids
//!
//!   shim gone ─▶ only requests that outlive their shim are left
//! ```

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use peerpod_tunnel::link::frame::{Frame, Kind};
use tokio::sync::Notify;

use super::hub::PendingGuard;

/// Requests without an answer, and their bytes, after which nothing more is read from the shim.
const ROOM: (usize, usize) = (64, 8 << 20);

#[derive(Debug)]
struct Item {
    frame: Frame,
    sent: bool,
    /// Is to be done though the shim that asked has gone.
    outlives: bool,
    /// Tells a node process that attaches of this request.
    _pending: Option<PendingGuard>,
}

#[derive(Debug, Default)]
struct Items {
    all: VecDeque<Item>,
    bytes: usize,
    answers: u64,
    /// A frame is given out and not yet written.
    writing: bool,
}

impl Items {
    fn forget(&mut self, at: usize) -> Option<Item> {
        let item = self.all.remove(at)?;
        self.bytes -= item.frame.payload.len();
        Some(item)
    }

    fn all_sent(&self) -> bool {
        !self.writing && self.unsent().is_none()
    }

    fn unsent(&self) -> Option<usize> {
        self.all.iter().position(|item| !item.sent)
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: Mutex<Items>,
    room: Notify,
    work: Notify,
    /// Something was written, or answered.
    progress: Notify,
}

impl Queue {
    /// One that holds what another relay's has held; `writing` says that the last frame given out is
    /// not written to its end.
    pub(super) fn restore(
        calls: impl IntoIterator<Item = (Frame, bool, bool, Option<PendingGuard>)>,
        writing: bool,
    ) -> Self {
        let items = calls.into_iter().map(|(frame, sent, outlives, _pending)| Item {
            frame,
            sent,
            outlives,
            _pending,
        });
        let all: VecDeque<Item> = items.collect();
        let bytes = all.iter().map(|item| item.frame.payload.len()).sum();
        let items = Items { all, bytes, answers: 0, writing };
        Self { items: Mutex::new(items), ..Self::default() }
    }

    /// What it holds: frame, whether it was sent, whether it outlives its shim.
    pub(super) fn calls(&self) -> Vec<(Frame, bool, bool)> {
        let items = self.items();
        items.all.iter().map(|item| (item.frame.clone(), item.sent, item.outlives)).collect()
    }

    fn items(&self) -> MutexGuard<'_, Items> {
        // Changes are whole before anything could panic.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more frame may be taken in.
    pub(super) async fn room(&self) {
        loop {
            {
                let items = self.items();
                if items.all.len() < ROOM.0 && items.bytes < ROOM.1 {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// Takes a frame in. One that `outlives` its shim stays with [`Queue::shim_gone`].
    pub(super) fn push(&self, frame: Frame, pending: Option<PendingGuard>, outlives: bool) {
        let mut items = self.items();
        items.bytes += frame.payload.len();
        items.all.push_back(Item { frame, sent: false, outlives, _pending: pending });
        drop(items);
        self.work.notify_one();
    }

    /// Waits until there is something to send.
    pub(super) async fn work(&self) {
        while self.items().unsent().is_none() {
            self.work.notified().await;
        }
    }

    /// The next frame to send; [`Queue::written`] must follow. A request stays until its answer; anything else is forgotten.
    pub(super) async fn next(&self) -> Frame {
        loop {
            self.work().await;
            let mut items = self.items();
            let Some(at) = items.unsent() else { continue };
            let Some(item) = items.all.get_mut(at) else { continue };
            item.sent = true;
            let frame = item.frame.clone();
            items.writing = true;
            if frame.kind != Kind::Request {
                // Has no pending guard, whose end would take the hub's lock under ours.
                items.forget(at);
                self.room.notify_one();
            }
            return frame;
        }
    }

    /// Waits until nothing is left to send.
    pub(super) async fn all_sent(&self) {
        while !self.items().all_sent() {
            self.progress.notified().await;
        }
    }

    /// The frame that [`Queue::next`] gave is written.
    pub(super) fn written(&self) {
        self.items().writing = false;
        self.progress.notify_one();
    }

    /// A response has come whole.
    pub(super) fn answered(&self, stream: u32) {
        let mut items = self.items();
        let at = items.all.iter().position(|item| item.sent && item.frame.stream == stream);
        if let Some(item) = at.and_then(|at| items.forget(at)) {
            items.answers += 1;
            drop(items);
            // Takes the hub's lock, so not under ours.
            drop(item);
            self.room.notify_one();
            self.progress.notify_one();
        }
    }

    /// Nobody waits for answers any more: forgets what does not outlive the shim. Returns how much
    /// is left.
    pub(super) fn shim_gone(&self) -> usize {
        let mut items = self.items();
        let all = std::mem::take(&mut items.all);
        let (left, forgotten) = all.into_iter().partition(|item| item.outlives);
        items.all = left;
        items.bytes = items.all.iter().map(|item| item.frame.payload.len()).sum();
        let left = items.all.len();
        drop(items);
        // Takes the hub's lock, so not under ours.
        drop(forgotten);
        left
    }

    /// Waits until nothing is left to send or to be answered.
    pub(super) async fn all_answered(&self) {
        while !self.items().all.is_empty() {
            self.progress.notified().await;
        }
    }

    /// The node is gone: everything is to be sent (again). Returns how many had been sent.
    pub(super) fn send_again(&self) -> u64 {
        let mut items = self.items();
        items.writing = false;
        items.all.iter_mut().map(|item| u64::from(std::mem::take(&mut item.sent))).sum()
    }

    /// Answers so far.
    pub(super) fn answers(&self) -> u64 {
        self.items().answers
    }
}
