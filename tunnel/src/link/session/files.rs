//! Files that had no room in the VM's user data, on their way from the worker into the VM.
//!
//! ```text
//!   worker: deliver ─ Piece, Piece, … ─▶ each session by itself ─ all there ─▶ Sessions::files ─▶ looked
//!              ◀──────── Taken, or what is wrong ◀─────────────────── Sessions::taken ◀──── at, written
//! ```
//!
//! A session that broke off in the middle is of no more use; the next one begins again, and may send what is
//! there already: it hears that it is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::control::{Message, Piece, Taken};
use super::link::{Inner, Link};
use super::machine::Over;
use super::vm::Sessions;
use super::{MAX_FILES, MAX_PIECE};

/// Files by their path in the VM.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Why files were not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The VM's program is older than this message.
    #[error("the VM's program ({0}) takes no files over its link")]
    Unknown(String),
    /// More than may be under way.
    #[error("{0} bytes of files, at most {MAX_FILES} go over the link")]
    TooLarge(usize),
    /// The VM says that they are not what it waits for.
    #[error("the VM does not take the files: {0}")]
    Refused(String),
    /// The session ended before the VM had them all.
    #[error("the session ended before the VM had the files: {0}")]
    Over(#[from] Over),
}

/// What the sessions of a VM share.
#[derive(Debug, Default)]
pub(super) struct Coming {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug)]
struct State {
    /// Sizes of what is waited for, by path.
    wanted: BTreeMap<String, usize>,
    /// The last whole set, if nobody has looked at it yet; one before it makes room.
    whole: Option<Files>,
    /// All is there, once it is.
    taken: Option<Taken>,
}

impl Default for State {
    /// Nothing is waited for.
    fn default() -> Self {
        let taken = Some(Taken::default());
        Self { wanted: BTreeMap::new(), whole: None, taken }
    }
}

impl Coming {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session has sent so far.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    files: Files,
    /// It waits for an answer.
    asks: bool,
    /// It has its answer; what else it sends is passed over.
    answered: bool,
}

impl Arriving {
    /// Adds a piece; true once every file of `wanted` is whole.
    fn add(&mut self, piece: &Piece, wanted: &BTreeMap<String, usize>) -> Result<bool, String> {
        let Some(size) = wanted.get(&piece.path) else {
            return Err("a file that is not waited for".to_owned());
        };
        let file = self.files.entry(piece.path.clone()).or_default();
        if file.len() as u64 != piece.offset || file.len() + piece.content.len() > *size {
            let (path, there) = (&piece.path, file.len());
            return Err(format!("{path}: {piece:?} came after {there} of {size} bytes"));
        }
        file.extend_from_slice(&piece.content);
        let whole = |(path, size): (&String, &usize)| {
            self.files.get(path).is_some_and(|file| file.len() == *size)
        };
        Ok(wanted.iter().all(whole))
    }
}

impl Inner {
    /// The worker has sent a piece; a worker has nobody to get one from.
    pub(super) fn hear_piece(&mut self, piece: &Piece) {
        let Some(coming) = self.coming.clone() else { return };
        if self.arriving.answered {
            return;
        }
        let mut state = coming.lock();
        self.arriving.asks = true;
        if let Some(taken) = state.taken.clone() {
            return self.answer(taken);
        }
        match self.arriving.add(piece, &state.wanted) {
            Ok(false) => {}
            Ok(true) => {
                state.whole = Some(std::mem::take(&mut self.arriving.files));
                coming.news.notify_one();
            }
            Err(problem) => {
                self.arriving.files = Files::new();
                self.answer(Taken { problem });
            }
        }
    }

    #[cfg(test)]
    pub(super) fn asks_for_answer(&self) -> bool {
        self.arriving.asks && self.arriving.files.is_empty()
    }

    fn answer(&mut self, taken: Taken) {
        if self.arriving.asks {
            self.arriving.answered = self.machine.tell(&Message::Taken(taken));
            self.arriving.asks = !self.arriving.answered;
        }
    }

    /// The VM's answer; a VM has sent nothing that it could be one to.
    pub(super) fn hear_taken(&mut self, taken: Taken) {
        if self.coming.is_none() {
            self.taken = Some(taken.bounded());
            self.nudge();
        }
    }
}

impl Link {
    /// Sends the files and waits until the VM has taken them. Once for a session; to be dropped with it
    /// when it takes too long.
    ///
    /// # Errors
    /// By [`DeliverError`].
    pub async fn deliver(&self, files: &[(&str, &[u8])]) -> Result<(), DeliverError> {
        let size = files.iter().map(|(_, content)| content.len()).sum();
        if size > MAX_FILES {
            return Err(DeliverError::TooLarge(size));
        }
        let about = self.wait_for(|inner| inner.about.clone()).await?;
        if !about.takes_files {
            return Err(DeliverError::Unknown(about.bounded_build()));
        }
        {
            let mut inner = self.0.lock();
            for message in pieces(files) {
                // There is room: no more than `MAX_FILES` is under way, and little else.
                if !inner.machine.tell(&message) {
                    return Err(DeliverError::TooLarge(size));
                }
            }
            inner.settle();
        }
        let taken = self.wait_for(|inner| inner.taken.clone()).await?;
        if taken.problem.is_empty() { Ok(()) } else { Err(DeliverError::Refused(taken.problem)) }
    }
}

/// An empty file is a piece, too.
fn pieces<'a>(files: &'a [(&'a str, &'a [u8])]) -> impl Iterator<Item = Message> + 'a {
    files.iter().flat_map(|(path, content)| {
        let count = content.len().div_ceil(MAX_PIECE).max(1);
        (0..count).map(move |number| {
            let from = number * MAX_PIECE;
            let to = content.len().min(from + MAX_PIECE);
            let content = Bytes::copy_from_slice(content.get(from..to).unwrap_or_default());
            Message::Piece(Piece { path: (*path).to_owned(), offset: from as u64, content })
        })
    })
}

impl Sessions {
    /// Waits for these files from now on: paths and sizes in bytes. Before the first session.
    pub fn want(&self, files: impl IntoIterator<Item = (String, usize)>) {
        let mut state = self.coming.lock();
        state.wanted = files.into_iter().collect();
        state.taken = state.wanted.is_empty().then(Taken::default);
    }

    /// Waits until some worker has sent all of them, of the right sizes. For one task.
    pub async fn files(&self) -> Files {
        loop {
            if let Some(files) = self.coming.lock().whole.take() {
                return files;
            }
            self.coming.news.notified().await;
        }
    }

    /// They are there: workers that have sent them, or will, are told.
    pub fn taken(&self) {
        *self.coming.lock() = State::default();
        self.answer(&Taken::default());
    }

    /// They are not what was wanted; who has sent them is told, and what comes next is waited for.
    pub fn refused(&self, problem: String) {
        self.answer(&Taken { problem });
    }

    fn answer(&self, taken: &Taken) {
        for link in self.links() {
            let mut inner = link.0.lock();
            inner.answer(taken.clone());
            inner.settle();
        }
    }
}
