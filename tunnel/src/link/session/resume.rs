//! How two sides find together on a new connection.
//!
//! ```text
//!   HELLO  ─ session, attempt, offsets ─▶   the VM has it:      what the worker does not name is over
//!   ◀──────────────── offsets ─ WELCOME     the worker reads:   what the VM does not name was never
//!                                           heard of (newer than its last) or is over (older)
//! ```

use std::time::Duration;

use super::LONGEST_KEEP;
use super::frame::{Greeting, Type, Violation};
use super::machine::{CONTROL, Event, Machine, Side};

impl Machine {
    /// Worker: a new connection stands.
    pub fn connect(&mut self, now: Duration) {
        self.greet(now, false);
        self.attempt += 1;
        let greeting = self.greeting();
        greeting.put(Type::Hello, self.attempt, &mut self.small);
    }

    /// VM: the worker has greeted on a new connection.
    ///
    /// # Errors
    /// When the two do not agree on what was said; the session is over then.
    pub fn join(&mut self, hello: &Greeting, attempt: u64, now: Duration) -> Result<(), Violation> {
        self.greet(now, true);
        self.attempt = attempt;
        self.keep = Duration::from_millis(hello.keep_ms.into()).min(LONGEST_KEEP);
        let greeting = self.greeting();
        greeting.put(Type::Welcome, 0, &mut self.small);
        self.agree_on(hello)
    }

    pub(super) fn welcome(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if self.side == Side::Vm || !self.is_greeting() {
            return Err(Violation::OutOfPlace(Type::Welcome));
        }
        let welcome = Greeting::parse(payload)?;
        if welcome.session.is_none() || self.id.is_some_and(|id| welcome.session != Some(id)) {
            return Err(Violation::Greeting);
        }
        self.id = welcome.session;
        self.joined();
        self.agree_on(&welcome)
    }

    fn greeting(&self) -> Greeting {
        let keep_ms = match self.side {
            Side::Worker => u32::try_from(self.keep.as_millis()).unwrap_or(u32::MAX),
            Side::Vm => 0,
        };
        // A stream that is not announced is not known over there.
        let told = self.streams.iter().filter(|(_, flow)| flow.announced);
        let next = told.map(|(id, flow)| (*id, flow.inn.next())).collect();
        Greeting { session: self.id, keep_ms, last: self.last, next }
    }

    fn agree_on(&mut self, greeting: &Greeting) -> Result<(), Violation> {
        let agreed = self.agree(greeting);
        if let Err(violation) = &agreed {
            self.end(violation.clone().into());
        }
        agreed
    }

    fn agree(&mut self, greeting: &Greeting) -> Result<(), Violation> {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(flow) = self.streams.get_mut(&id) else { continue };
            match greeting.of(id) {
                Some(next) => {
                    flow.out.resume(id, next)?;
                    flow.announced = true;
                }
                None if id == CONTROL => return Err(Violation::Greeting),
                None if self.side == Side::Worker && id > greeting.last => {
                    flow.out.resume(id, 0)?;
                    flow.announced = false;
                }
                None => {
                    self.forget(id);
                    self.events.push_back(Event::Reset(id));
                    continue;
                }
            }
            // What was said on the last connection may not have arrived.
            flow.ack_due = flow.announced;
            self.queue(id);
        }
        Ok(())
    }
}
