//! One error for all providers: what was tried, where, what kind of failure it is. What to do
//! about a failure is decided from its [`Kind`] in one place, [`Kind::advice`].

use std::sync::Arc;
use std::time::Duration;

/// What failed, by the only distinction callers act upon (providers.md 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The VM or a part of it is gone.
    NotFound,
    /// A credential, role or policy refuses.
    Denied,
    /// The request or the configuration can never work.
    Invalid,
    /// An account limit.
    Quota,
    /// No room for this type in this zone.
    Capacity,
    /// Too many requests; wait that long, or back off if the cloud did not say.
    Throttled(Option<Duration>),
    /// The effect is unknown: time-out, 5xx, connection lost.
    Unavailable,
    /// Not mapped.
    Other,
}

/// What a failure for want of room says more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This type in this zone and market.
    Place,
    /// Nothing can be made in this zone (its subnet has no address left).
    Zone,
    /// Nothing of this family can be made anywhere (the account's quota for it is used up).
    Family,
}

/// What the caller of `create` does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Repeat the identical request after that time (`None`: back off).
    Repeat(Option<Duration>),
    /// Go on to the next candidate.
    NextCandidate,
    /// Give up.
    Stop,
}

impl Kind {
    /// The one place that decides what a failed create means.
    pub fn advice(self) -> Advice {
        match self {
            Kind::Throttled(after) => Advice::Repeat(after),
            Kind::Unavailable | Kind::Other => Advice::Repeat(None),
            Kind::Capacity | Kind::Quota => Advice::NextCandidate,
            Kind::NotFound | Kind::Denied | Kind::Invalid => Advice::Stop,
        }
    }

    /// Short word for metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::NotFound => "not-found",
            Kind::Denied => "denied",
            Kind::Invalid => "invalid",
            Kind::Quota => "quota",
            Kind::Capacity => "capacity",
            Kind::Throttled(_) => "throttled",
            Kind::Unavailable => "unavailable",
            Kind::Other => "other",
        }
    }
}

/// Characters of an error with its causes.
const WORDS: usize = 700;

/// A failed provider call. Carries no user data and no credential.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{provider} {operation}: {message} ({})", kind.as_str())]
pub struct Error {
    /// What kind of failure.
    pub kind: Kind,
    /// `create`, `delete`, `list`, `check`, with the part where one call has several.
    pub operation: &'static str,
    /// The provider's name.
    pub provider: &'static str,
    /// What was wrong, in words for the user; names the key or field.
    pub message: String,
    /// For want of what there is no room; `None` if that is not what failed.
    pub scope: Option<Scope>,
    /// The cause, if there is one.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause of its own.
    pub fn new(
        provider: &'static str,
        operation: &'static str,
        kind: Kind,
        message: impl Into<String>,
    ) -> Self {
        let scope = match kind {
            Kind::Capacity => Some(Scope::Place),
            Kind::Quota => Some(Scope::Family),
            _ => None,
        };
        Self { kind, operation, provider, message: message.into(), scope, source: None }
    }

    /// The same, where the want of room is about something else than the kind says.
    #[must_use]
    pub fn about(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The message with all causes, as one line of at most 700 characters: one of them may be a
    /// cloud's whole page.
    pub fn in_full(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(&format!(": {e}"));
            cause = e.source();
        }
        text.chars().filter(|c| !c.is_control()).take(WORDS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_full_is_one_line_of_bounded_length() {
        let page = std::io::Error::other(format!("<html>\n{}", "\u{1b}x".repeat(4096)));
        let error = Error::new("test", "check", Kind::Denied, "no token").caused_by(page);
        let text = error.in_full();
        assert!(text.starts_with("no token: <html>xxx"), "{text}");
        assert_eq!((text.chars().count(), text.contains(char::is_control)), (WORDS, false));
    }
}
