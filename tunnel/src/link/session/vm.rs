//! The VM's sessions: who may resume which, and when one is forgotten.
//!
//! ```text
//!            HELLO, no id ─▶ a new one, of this certificate
//!   accepted HELLO, an id ─▶ known, same certificate, newer attempt ─▶ goes on here, the old connection ends
//!                            anything else ─▶ GONE
//!   without a connection for as long as the worker wished (bounded) ─▶ forgotten
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::drive::{Ended, drive};
use super::files::Coming;
use super::frame::{Greeting, Head, Refusal, SessionId, Type, Violation};
use super::interruption::Word;
use super::link::Link;
use super::machine::Over;
use super::stream::Stream;
use super::{GREETING_TIME, HEAD, MAX_GREETING, MAX_SESSIONS};
use crate::link::notice::Notices;

static NOTICES: Notices = Notices::new();

/// How long a refusal may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whose a session is: the certificate that the client has shown, whole; or that of nobody, where
/// none is asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Owner(Option<Box<[u8]>>);

impl Owner {
    /// The owner of a client's leaf, in DER.
    pub fn of(certificate: Option<&[u8]>) -> Self {
        Self(certificate.map(Box::from))
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Owner(…)" } else { "Owner(nobody)" })
    }
}

#[derive(Debug)]
struct Entry {
    link: Link,
    owner: Owner,
    /// Since when there is no connection.
    parted: Option<Instant>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Sessions {
    build: String,
    all: Mutex<BTreeMap<SessionId, Entry>>,
    pub(super) word: Arc<Word>,
    pub(super) coming: Arc<Coming>,
}

/// How a connection of the worker's ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// No greeting came, or a broken one.
    NoGreeting(String),
    /// It was not taken up.
    Refused(Refusal),
    /// It was driven.
    Ended(Ended),
}

impl Sessions {
    /// None yet. `build` tells workers who we are.
    pub fn new(build: &str) -> Self {
        let (word, coming) = Default::default();
        Self { build: build.to_owned(), all: Mutex::default(), word, coming }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<SessionId, Entry>> {
        // Each change is one statement.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection on which [`super::ALPN`] was chosen, to its end. `opened` gets the streams
    /// that the worker opens.
    pub async fn serve<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut connection: C,
        owner: &Owner,
        opened: impl FnMut(Stream),
    ) -> Served {
        let mut input = BytesMut::new();
        let hello = timeout(GREETING_TIME, hello(&mut connection, &mut input)).await;
        let refusal = match hello {
            Err(_) => return Served::NoGreeting(format!("none within {GREETING_TIME:?}")),
            Ok(Err(NoHello::Io(why))) => return Served::NoGreeting(why),
            Ok(Err(NoHello::Violation(Violation::Version(_)))) => Refusal::Version,
            Ok(Err(NoHello::Violation(why))) => return Served::NoGreeting(why.to_string()),
            Ok(Ok((hello, attempt))) => match self.admit(&hello, attempt, owner) {
                Ok((link, number)) => {
                    let ended = drive(&link.0, number, connection, input, opened).await;
                    self.parted(&link, &ended);
                    return Served::Ended(ended);
                }
                Err(refusal) => refusal,
            },
        };
        let mut gone = BytesMut::new();
        Head::bare(Type::Gone, 0, refusal.number()).put(&mut gone);
        let farewell = async {
            connection.write_all(&gone).await?;
            connection.shutdown().await
        };
        // A worker that does not hear it asks again.
        let _ = timeout(FAREWELL, farewell).await;
        Served::Refused(refusal)
    }

    fn admit(&self, hello: &Greeting, attempt: u64, owner: &Owner) -> Result<(Link, u64), Refusal> {
        let mut all = self.all();
        let (id, link) = match hello.session {
            None => {
                make_room(&mut all)?;
                let id = SessionId::random();
                let link = Link::vm(id, &self.build, &self.word, &self.coming);
                let entry = Entry { link: link.clone(), owner: owner.clone(), parted: None };
                all.insert(id, entry);
                (id, link)
            }
            Some(id) => {
                // Another's session is no more known than one that never was.
                let entry = all.get_mut(&id).filter(|entry| entry.owner == *owner);
                let entry = entry.ok_or(Refusal::Unknown)?;
                if attempt <= entry.link.attempt() {
                    return Err(Refusal::Stale);
                }
                entry.parted = None;
                (id, entry.link.clone())
            }
        };
        match link.join(hello, attempt) {
            Ok(number) => Ok((link, number)),
            Err(violation) => {
                NOTICES.say(|| tracing::warn!("a session is over: {violation}"));
                all.remove(&id);
                Err(Refusal::Unknown)
            }
        }
    }

    fn parted(&self, link: &Link, ended: &Ended) {
        let mut all = self.all();
        match ended {
            Ended::Over(_) => all.retain(|_, entry| !entry.link.same(link)),
            Ended::Broken(_) => {
                let entry = all.values_mut().find(|entry| entry.link.same(link));
                // Another connection may have taken over in the meantime.
                if let Some(entry) = entry.filter(|entry| !entry.link.is_joined()) {
                    entry.parted = Some(Instant::now());
                }
            }
            Ended::Replaced => {}
        }
    }

    /// Forgets sessions that have been without a connection for too long. To be called every few
    /// seconds. Returns how many it were.
    pub fn expire(&self) -> usize {
        let mut all = self.all();
        let before = all.len();
        all.retain(|_, entry| {
            let old = entry.parted.is_some_and(|since| since.elapsed() > entry.link.keep());
            if old {
                entry.link.end(Over::Ended("no connection for too long".to_owned()));
            }
            !old
        });
        before - all.len()
    }

    /// Ends all sessions in order; their connections tell the workers and end.
    pub fn close(&self, reason: &str) {
        let all = std::mem::take(&mut *self.all());
        all.into_values().for_each(|entry| entry.link.close(reason));
    }

    pub(super) fn links(&self) -> Vec<Link> {
        self.all().values().map(|entry| entry.link.clone()).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Streams of all of them.
    pub fn streams(&self) -> usize {
        self.all().values().map(|entry| entry.link.size().0).sum()
    }

    /// Bytes kept for all of them.
    pub fn memory(&self) -> usize {
        self.all().values().map(|entry| entry.link.size().1).sum()
    }
}

/// The one that has been without a connection for longest makes room.
fn make_room(all: &mut BTreeMap<SessionId, Entry>) -> Result<(), Refusal> {
    if all.len() < MAX_SESSIONS {
        return Ok(());
    }
    let oldest = all.iter().filter_map(|(id, entry)| Some((entry.parted?, *id))).min();
    let (_, id) = oldest.ok_or(Refusal::Busy)?;
    if let Some(entry) = all.remove(&id) {
        entry.link.end(Over::Ended("another session needed the room".to_owned()));
    }
    Ok(())
}

enum NoHello {
    Io(String),
    Violation(Violation),
}

impl From<Violation> for NoHello {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Reads the first frame; what stands behind it stays in `input`.
async fn hello<C: AsyncRead + Unpin>(
    connection: &mut C,
    input: &mut BytesMut,
) -> Result<(Greeting, u64), NoHello> {
    loop {
        if let Some(head) = input.first_chunk::<HEAD>() {
            let head = Head::parse(head)?;
            if head.kind != Type::Hello {
                return Err(Violation::OutOfPlace(head.kind).into());
            }
            let length = HEAD + head.length;
            if input.len() >= length {
                let whole = input.split_to(length);
                let greeting = Greeting::parse(whole.get(HEAD..).unwrap_or_default())?;
                return Ok((greeting, head.number));
            }
        }
        input.reserve(HEAD + MAX_GREETING);
        match connection.read_buf(input).await {
            Ok(0) => return Err(NoHello::Io("closed before it".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(NoHello::Io(error.to_string())),
        }
    }
}
