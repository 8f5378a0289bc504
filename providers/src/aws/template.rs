//! The settings as far as they are part of a create request: what a plan keeps, so that a repeated
//! RunInstances has the same bytes after the settings have changed. EC2 refuses one that differs
//! under the same ClientToken (IdempotentParameterMismatch).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NAME, id};
use crate::{Error, Kind};

/// See above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    pub(super) region: String,
    /// Subnet by zone; a candidate's zone chooses.
    pub(super) subnets: BTreeMap<String, String>,
    pub(super) groups: Vec<String>,
    /// `None` where the launch template decides.
    pub(super) image: Option<String>,
    /// Root device of that image by name, and its size in GiB.
    pub(super) root: Option<(String, u32)>,
    pub(super) key_pair: Option<String>,
    pub(super) launch_template: Option<String>,
    pub(super) volume_type: String,
    pub(super) encrypted: bool,
    /// CpuOptions.AmdSevSnp.
    pub(super) confidential: bool,
    pub(super) public_ip: bool,
}

impl Template {
    /// As it stands in a plan, which may hold anything.
    ///
    /// # Errors
    /// `Kind::Invalid`, naming the field.
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        let invalid = |text: String| Error::new(NAME, "create", Kind::Invalid, text);
        let template: Self = serde_json::from_str(text).map_err(|e| {
            // The line says nothing of the content, which may be anything.
            invalid(format!("the plan's template is not one of AWS's (line {})", e.line()))
        })?;
        let image = template.image.iter().map(|image| ("image", id::id(image, "ami-")));
        let subnets = template.subnets.values().map(|s| ("subnets", id::id(s, "subnet-")));
        let groups = template.groups.iter().map(|group| ("groups", id::id(group, "sg-")));
        let fields = std::iter::once(("region", id::region(&template.region)))
            .chain(image)
            .chain(subnets)
            .chain(groups);
        let problem = fields.filter_map(|(field, result)| Some((field, result.err()?))).next();
        if let Some((field, problem)) = problem {
            return Err(invalid(format!("the plan's template: {field} {problem}")));
        }
        match (&template.image, &template.launch_template) {
            (None, None) => Err(invalid("the plan's template: image is missing".to_owned())),
            _ => Ok(template),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        Template {
            region: "eu-west-1".into(),
            subnets: [("eu-west-1a".to_owned(), "subnet-01234567".to_owned())].into(),
            groups: vec!["sg-01234567".into()],
            image: Some("ami-01234567".into()),
            root: Some(("/dev/sda1".into(), 8)),
            key_pair: None,
            launch_template: None,
            volume_type: "gp3".into(),
            encrypted: true,
            confidential: true,
            public_ip: true,
        }
    }

    #[test]
    fn comes_back_as_it_went() {
        let text = serde_json::to_string(&template()).expect("JSON");
        assert_eq!(Template::read(&text).expect("read"), template());
    }

    #[test]
    fn a_hostile_one_is_refused_by_name() {
        let text = |change: fn(&mut Template)| {
            let mut template = template();
            change(&mut template);
            serde_json::to_string(&template).expect("JSON")
        };
        for (bad, says) in [
            (String::new(), "template is not"),
            ("{}".to_owned(), "template is not"),
            (text(|t| t.region = "../x".into()), "region"),
            (text(|t| t.groups.push("x".into())), "groups"),
            (text(|t| t.image = Some("x".into())), "image"),
            (text(|t| t.image = None), "image is missing"),
        ] {
            let error = Template::read(&bad).expect_err(&bad);
            assert!(error.kind == Kind::Invalid && error.message.contains(says), "{error}");
        }
    }
}
