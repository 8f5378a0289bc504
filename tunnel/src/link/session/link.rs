//! A session for tasks: the [`Machine`] behind one lock, and who waits for what.
//!
//! ```text
//!   Stream ─ call ─▶ Machine ─ something to say ─▶ wakes the driver of the connection
//!   driver ─ bytes ─▶ Machine ─ events ─▶ wakes the streams' readers and writers
//! ```
//!
//! Nothing is awaited and nothing slow is done under the lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::control::{About, Interruption, Message, Taken, Watch};
use super::drive::{Ended, drive};
use super::export::{Export, ExportError};
use super::files::{Arriving, Coming};
use super::frame::{Greeting, SessionId, Violation};
use super::interruption::Word;
use super::machine::{Event, Machine, Over, Side};
use super::stream::Stream;

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stand {
    Apart,
    Joined,
    Over(Over),
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) machine: Machine,
    /// Which connection is driven; those before it have no say any more.
    pub(super) connection: u64,
    driver: Option<Waker>,
    pub(super) waiting: BTreeMap<u32, Waiting>,
    pub(super) opened: Vec<u32>,
    pub(super) about: Option<About>,
    /// The cloud's word, for a VM's session to pass on.
    pub(super) word: Option<Arc<Word>>,
    /// The worker has asked for it, and whether it was told.
    pub(super) asked: bool,
    pub(super) told: bool,
    /// What the VM has passed on.
    interruption: Option<Interruption>,
    /// Files for the VM, for a VM's session to take.
    pub(super) coming: Option<Arc<Coming>>,
    pub(super) arriving: Arriving,
    /// What the VM has said to those of a worker's.
    pub(super) taken: Option<Taken>,
    stand: watch::Sender<Stand>,
}

impl Inner {
    /// Wakes whom the last call concerns. Ends every use of the machine.
    pub(super) fn settle(&mut self) {
        while let Some(event) = self.machine.event() {
            match event {
                Event::Readable(id) => self.wake(id, true, false),
                Event::Writable(id) => self.wake(id, false, true),
                Event::Reset(id) => self.wake(id, true, true),
                Event::Opened(id) => self.opened.push(id),
                Event::Told(Message::About(about)) => {
                    self.about = Some(about);
                    self.nudge();
                }
                Event::Told(Message::Watch(_)) => self.hear_watch(),
                Event::Told(Message::Interruption(said)) => self.hear_interruption(said),
                Event::Told(Message::Taken(taken)) => self.hear_taken(taken),
                Event::Told(Message::Piece(piece)) => self.hear_piece(&piece),
                Event::Told(Message::Closing(_)) => {}
                Event::Over => self.wake_all(),
            }
        }
        let stand = match self.machine.over() {
            Some(over) => Stand::Over(over.clone()),
            None if self.machine.is_joined() => Stand::Joined,
            None => Stand::Apart,
        };
        self.stand.send_if_modified(|now| std::mem::replace(now, stand.clone()) != stand);
        if self.machine.wants_to_say() || self.machine.has_ended() {
            self.wake_driver();
        }
    }

    fn hear_interruption(&mut self, said: Interruption) {
        // A VM has nobody to hear it from.
        if self.word.is_none() {
            self.interruption = Some(said.bounded());
            self.nudge();
        }
    }

    /// Whoever waits for something that was said looks again.
    pub(super) fn nudge(&self) {
        self.stand.send_modify(|_| {});
    }

    fn wake(&mut self, id: u32, reader: bool, writer: bool) {
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        let read = waiting.read.take_if(|_| reader);
        let write = waiting.write.take_if(|_| writer);
        read.into_iter().chain(write).for_each(Waker::wake);
    }

    fn wake_all(&mut self) {
        for waiting in self.waiting.values_mut() {
            let both = [waiting.read.take(), waiting.write.take()];
            both.into_iter().flatten().for_each(Waker::wake);
        }
    }

    fn wake_driver(&mut self) {
        // Taken, so that it is woken once however much there is to say.
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// The driver is at work and will look by itself.
    pub(super) fn at_work(&mut self) {
        self.driver = None;
    }

    pub(super) fn drive_with(&mut self, cx: &Context<'_>) {
        self.driver = Some(cx.waker().clone());
    }

    pub(super) fn next_connection(&mut self) -> u64 {
        self.connection += 1;
        self.wake_driver();
        self.connection
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    begin: Instant,
    inner: Mutex<Inner>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a fault of the machine; the session is of no use then, and the
        // process goes on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    pub(super) fn at(&self, time: Duration) -> Instant {
        self.begin + time
    }
}

/// A session. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Link(pub(super) Arc<Shared>);

impl Link {
    pub(super) fn with(machine: Machine) -> Self {
        let inner = Inner {
            machine,
            connection: 0,
            driver: None,
            waiting: BTreeMap::new(),
            opened: Vec::new(),
            about: None,
            word: None,
            asked: false,
            told: false,
            interruption: None,
            coming: None,
            arriving: Arriving::default(),
            taken: None,
            stand: watch::Sender::new(Stand::Apart),
        };
        Self(Arc::new(Shared { begin: Instant::now(), inner: Mutex::new(inner) }))
    }

    /// A worker's session that has yet to greet. `build` tells the VM who we are; `keep` is how long
    /// it should keep the session without a connection.
    pub fn worker(build: &str, keep: Duration) -> Self {
        Self::new(Side::Worker, None, build, keep)
    }

    pub(super) fn vm(id: SessionId, build: &str, word: &Arc<Word>, coming: &Arc<Coming>) -> Self {
        let link = Self::new(Side::Vm, Some(id), build, Duration::ZERO);
        let mut inner = link.0.lock();
        inner.word = Some(Arc::clone(word));
        inner.coming = Some(Arc::clone(coming));
        drop(inner);
        link
    }

    fn new(side: Side, id: Option<SessionId>, build: &str, keep: Duration) -> Self {
        let mut machine = Machine::new(side, id, keep);
        let takes_files = side == Side::Vm;
        let about = About { build: build.to_owned(), pid: std::process::id(), takes_files };
        // The first message of a session always fits.
        machine.tell(&Message::About(about));
        Self::with(machine)
    }

    /// The session that another process has exported; its streams are had by [`Link::stream`].
    ///
    /// # Errors
    /// When the bytes are no session, or one of another version.
    pub fn import(export: &Export) -> Result<Self, ExportError> {
        Machine::import(export).map(Self::with)
    }

    /// The session as bytes for another process; `None` when it is over. Nothing may drive it or use
    /// its streams from then on; dropping those says nothing to the VM.
    pub fn export(&self) -> Option<Export> {
        let mut inner = self.0.lock();
        let export = inner.machine.export()?;
        inner.next_connection();
        inner.machine.part();
        inner.machine.end(Over::Ended("another process goes on with the session".to_owned()));
        inner.settle();
        Some(export)
    }

    /// Opens a stream; `None` when the session is over or has as many as it may.
    pub fn open(&self) -> Option<Stream> {
        let mut inner = self.0.lock();
        let id = inner.machine.open()?;
        inner.settle();
        drop(inner);
        Some(Stream::new(self.0.clone(), id))
    }

    /// A stream of an imported session, once.
    pub fn stream(&self, id: u32) -> Option<Stream> {
        let known = self.0.lock().machine.streams.contains_key(&id);
        known.then(|| Stream::new(self.0.clone(), id))
    }

    /// Speaks over a new connection until it breaks, another takes its place or the session is over.
    /// Dropping the future parts from the connection as well.
    pub async fn run<C: AsyncRead + AsyncWrite + Unpin>(&self, connection: C) -> Ended {
        let number = {
            let mut inner = self.0.lock();
            let now = self.0.now();
            inner.machine.connect(now);
            let number = inner.next_connection();
            inner.settle();
            number
        };
        drive(&self.0, number, connection, BytesMut::new(), drop).await
    }

    pub(super) fn join(&self, hello: &Greeting, attempt: u64) -> Result<u64, Violation> {
        let mut inner = self.0.lock();
        let number = inner.next_connection();
        let joined = inner.machine.join(hello, attempt, self.0.now());
        inner.settle();
        joined.map(|()| number)
    }

    /// Waits until both sides have greeted on a connection.
    ///
    /// # Errors
    /// When the session is over instead.
    pub async fn joined(&self) -> Result<(), Over> {
        let mut stand = self.0.lock().stand.subscribe();
        loop {
            match &*stand.borrow_and_update() {
                Stand::Joined => return Ok(()),
                Stand::Over(over) => return Err(over.clone()),
                Stand::Apart => {}
            }
            // The sender lives in the session itself.
            let _ = stand.changed().await;
        }
    }

    /// Whether it stands: a connection is there and both have greeted.
    pub fn is_joined(&self) -> bool {
        self.0.lock().machine.is_joined()
    }

    /// Why the session is over, if it is.
    pub fn over(&self) -> Option<Over> {
        self.0.lock().machine.over().cloned()
    }

    /// Ends the session for the other side too, as far as a connection is there to tell it; see
    /// [`Ended`].
    pub fn close(&self, reason: &str) {
        let mut inner = self.0.lock();
        inner.machine.close(reason);
        inner.settle();
    }

    /// Ends the session here, without a word.
    pub fn end(&self, over: Over) {
        let mut inner = self.0.lock();
        inner.machine.end(over);
        inner.settle();
    }

    /// What the other side has said of itself.
    pub fn peer(&self) -> Option<About> {
        self.0.lock().about.clone()
    }

    /// A worker's wish to hear when the cloud takes the VM back; once more changes nothing. A VM that
    /// does not know the wish passes over it.
    pub fn watch(&self) {
        let mut inner = self.0.lock();
        if !std::mem::replace(&mut inner.asked, true) {
            inner.machine.tell(&Message::Watch(Watch {}));
            inner.settle();
        }
    }

    /// What the VM last said of its being taken back, cut to what a cloud would say.
    pub fn interruption(&self) -> Option<Interruption> {
        self.0.lock().interruption.clone()
    }

    /// Waits until the VM says that it is taken back, other than in the words that are `known`.
    pub async fn interrupted(&self, known: Option<&Interruption>) -> Interruption {
        let mut stand = self.0.lock().stand.subscribe();
        loop {
            stand.mark_unchanged();
            if let Some(said) = self.interruption().filter(|said| Some(said) != known) {
                return said;
            }
            // The sender lives in the session itself.
            let _ = stand.changed().await;
        }
    }

    /// Waits until the other side has said what `look` finds.
    pub(super) async fn wait_for<T>(&self, look: impl Fn(&Inner) -> Option<T>) -> Result<T, Over> {
        let mut stand = self.0.lock().stand.subscribe();
        loop {
            stand.mark_unchanged();
            let (found, over) = {
                let inner = self.0.lock();
                (look(&inner), inner.machine.over().cloned())
            };
            match (found, over) {
                (Some(found), _) => return Ok(found),
                (None, Some(over)) => return Err(over),
                (None, None) => {}
            }
            // The sender lives in the session itself.
            let _ = stand.changed().await;
        }
    }

    /// Streams, and bytes kept for both sides.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.0.lock();
        (inner.machine.streams(), inner.machine.memory())
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn keep(&self) -> Duration {
        self.0.lock().machine.keep
    }

    pub(super) fn attempt(&self) -> u64 {
        self.0.lock().machine.attempt
    }
}
