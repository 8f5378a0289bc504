//! What is printed while the demo runs: one line per event, for people or as JSON.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Prints events with the time since the start. Clones share the clock.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    begin: Instant,
    step: Arc<std::sync::Mutex<&'static str>>,
    json: bool,
    colour: bool,
}

/// An event as a JSON line.
#[derive(Debug, Serialize)]
struct Event<'a> {
    at_ms: u64,
    step: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    ok: bool,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
}

impl Timeline {
    pub(crate) fn new(json: bool) -> Self {
        let colour = !json
            && std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { begin: Instant::now(), step: Arc::default(), json, colour }
    }

    /// Whether lines are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Names the step that the next events belong to.
    pub(crate) fn enter(&self, step: &'static str) {
        *self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = step;
    }

    /// Something that is so.
    pub(crate) fn say(&self, text: &str) {
        self.event(None, true, text, None);
    }

    /// Something that took its time.
    pub(crate) fn took(&self, pod: Option<&str>, text: &str, took: Duration) {
        self.event(pod, true, text, Some(took));
    }

    /// Something about a pod.
    pub(crate) fn of(&self, pod: &str, text: &str) {
        self.event(Some(pod), true, text, None);
    }

    /// Something that is not as it should be.
    pub(crate) fn fail(&self, text: &str) {
        self.event(None, false, text, None);
    }

    fn event(&self, pod: Option<&str>, ok: bool, text: &str, took: Option<Duration>) {
        let step = *self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (at_ms, took_ms) = (millis(self.elapsed()), took.map(millis));
        let line = if self.json {
            let event = Event { at_ms, step, pod, ok, text, took_ms };
            serde_json::to_string(&event).unwrap_or_default()
        } else {
            let took = took_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
            let mark = if ok { ' ' } else { '!' };
            let line = format!(
                "{at_ms:>7} ms {mark} {step:<8} {:<8} {took:>8}  {text}",
                pod.unwrap_or("")
            );
            self.paint(&line, if ok { "" } else { "31" })
        };
        self.line(&line);
    }

    /// Text in a colour, where there are colours.
    pub(crate) fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour && !colour.is_empty() {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A line as it is. A reader that has gone is no reason to fail.
    pub(crate) fn line(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
