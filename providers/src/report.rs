//! What [`crate::Provider::check`] found: what there is for the planner, and what is well, doubtful or
//! wrong for people (`peerpodd doctor cloud`).

use serde::{Deserialize, Serialize};

use crate::size::SizeRules;
use crate::tags::TagRoom;
use crate::{Error, InstanceType, Kind, Market, UserData};

/// What [`crate::Provider::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instance types the provider may use.
    pub types: Vec<InstanceType>,
    /// The default type and the permitted ones; see [`crate::size`].
    pub size: SizeRules,
    /// Zones in the order of preference; empty if the cloud has none or chooses itself.
    pub zones: Vec<String>,
    /// Markets in the order of preference; empty is on demand.
    pub markets: Vec<Market>,
    /// Root disk in GiB; 0 is the image's own size.
    pub disk_gib: u32,
    /// How much user data the cloud takes; `None` is any.
    pub user_data: Option<UserDataLimit>,
    /// What room there is for cost tags.
    pub tags: TagRoom,
    /// The provider's settings as far as they are part of a request, in a form of its own. It stands in
    /// every [`crate::VmSpec`], so that a repeated attempt sends the same bytes though the settings
    /// have changed since.
    pub template: String,
    /// Each thing that was looked at.
    pub findings: Vec<Finding>,
}

/// How much user data a cloud takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserDataLimit {
    /// How much, as the cloud counts it.
    pub size: usize,
    /// Whether it counts characters of base64 (Azure, GCP) or raw bytes (AWS).
    pub base64: bool,
}

impl UserDataLimit {
    /// Size of so many bytes, as the cloud counts it.
    pub fn counted(self, bytes: usize) -> usize {
        if self.base64 { bytes.div_ceil(3) * 4 } else { bytes }
    }

    /// What it counts.
    pub fn unit(self) -> &'static str {
        if self.base64 { "characters of base64" } else { "bytes" }
    }

    /// Refuses user data that the cloud would not take, before anything is asked for.
    ///
    /// # Errors
    /// `Invalid`, with both numbers.
    pub fn refuse(self, provider: &'static str, user_data: &UserData) -> Result<(), Error> {
        let (size, limit) = (self.counted(user_data.0.len()), self.size);
        if size <= limit {
            return Ok(());
        }
        let text = format!("user data have {size} {}, at most {limit} are possible", self.unit());
        Err(Error::new(provider, "create", Kind::Invalid, text))
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: `credentials`, `image`, `subnet`, `firewall`, a key of the settings.
    pub subject: String,
    /// Whether it is as it must be.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What to do about it; a command where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Whether something is as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is.
    Fine,
    /// It works, but should be known (`local isolates nothing`), or it could not be looked at.
    Warning,
    /// Every create would fail.
    Problem,
}

impl Finding {
    /// Something that is as it must be.
    pub fn fine(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), state: State::Fine, text: text.into(), remedy: None }
    }

    /// Something that works and should be known.
    pub fn warning(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::fine(subject, text) }
    }

    /// Something that makes every create fail.
    pub fn problem(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { state: State::Problem, ..Self::fine(subject, text) }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl Report {
    /// Of a provider that has these types, may use all, and takes the first unless asked otherwise.
    pub fn of_types(types: Vec<InstanceType>) -> Self {
        let size = SizeRules {
            default_type: types.first().map(|t| t.name.clone()).unwrap_or_default(),
            allowed: types.iter().map(|t| t.name.clone()).collect(),
            ..SizeRules::default()
        };
        Self { types, size, ..Self::default() }
    }

    /// What is in that state.
    pub fn in_state(&self, state: State) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |f| f.state == state)
    }

    /// All that makes every create fail, in one text; `None` if nothing does.
    pub fn problems(&self) -> Option<String> {
        let problems: Vec<String> = self.in_state(State::Problem).map(Finding::to_string).collect();
        if problems.is_empty() { None } else { Some(problems.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_problems_are_told_as_problems() {
        let mut report = Report::default();
        assert_eq!(report.problems(), None);
        report.findings = vec![
            Finding::fine("image", "ami-1 is available"),
            Finding::warning("firewall", "not looked at"),
            Finding::problem("subnet", "AWS_SUBNET_ID \"x\" is not there").remedy("make one"),
            Finding::problem("credentials", "expired"),
        ];
        let text = "subnet: AWS_SUBNET_ID \"x\" is not there (make one); credentials: expired";
        assert_eq!(report.problems().as_deref(), Some(text));
    }
}
