//! What this identity may do, by dry runs: EC2 answers them as it would the real thing, and does nothing.

use super::Shared;
use super::client::Class;
use super::network::text;
use super::settings::{KEY_PAIR, TEMPLATE};
use super::template::Template;
use crate::{Candidate, Error, Finding, Kind, Market, Token, UserData, VmName, VmSpec, tags};

/// What to do about a right that is missing.
pub(super) const POLICY: &str = "apply deploy/clouds/aws/policy.json";

/// What a launch template decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) image: Option<String>,
    pub(super) instance_type: String,
}

impl Shared {
    pub(super) async fn look_at_rights(
        &self,
        template: &Template,
        at: Candidate,
        findings: &mut Vec<Finding>,
    ) -> Result<(), Error> {
        findings.push(self.may_run(template, &at).await?);
        let vm = match self.list().await {
            Ok(all) => all.into_iter().find_map(|r| r.vm.native_id),
            Err(e) if e.kind == Kind::Denied => {
                findings.push(Finding::problem("rights", e.message).remedy(POLICY));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let Some(vm) = vm else {
            let text = "ec2:TerminateInstances, DeleteVolume and DeleteNetworkInterface cannot be \
                        tried before there is a VM of ours";
            findings.push(Finding::warning("rights", text));
            return Ok(());
        };
        let client = self.ec2.client("check").await?;
        let call = client.terminate_instances().instance_ids(vm).dry_run(true).send();
        findings.push(match self.ec2.dry_run("TerminateInstances", call).await {
            Err(e) if e.kind == Kind::Denied => {
                Finding::problem("rights", e.message).remedy(POLICY)
            }
            Err(e) => Finding::warning("rights", format!("could not be tried: {}", e.message)),
            Ok(()) => Finding::fine("rights", "ec2:TerminateInstances"),
        });
        Ok(())
    }

    /// With all that a real one has, tags included.
    async fn may_run(&self, template: &Template, at: &Candidate) -> Result<Finding, Error> {
        let sandbox = "doctor";
        let ours = [(tags::INSTALLATION, self.installation.as_str()), (tags::SANDBOX, sandbox)];
        let spec = VmSpec {
            tags: ours.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            user_data: UserData("#cloud-config\n".to_owned()),
            disk_gib: self.settings.common.disk_gib,
            ..VmSpec::new(VmName::first_form("doctor", sandbox), sandbox)
        };
        let token = Token::of("check", &self.installation, sandbox, 0);
        let request = match template.request(&spec, at, None, &token) {
            Ok(request) => request.dry_run(true),
            // What is missing has been told already.
            Err(e) => return Ok(Finding::warning("rights", format!("not tried: {}", e.message))),
        };
        let client = self.ec2.client("check").await?;
        Ok(match self.ec2.dry_run("RunInstances", request.send_with(&client)).await {
            Ok(()) => Finding::fine("rights", "ec2:RunInstances with ec2:CreateTags"),
            Err(e) if e.kind == Kind::Denied => {
                Finding::problem("rights", e.message).remedy(POLICY)
            }
            Err(e) if e.kind == Kind::Invalid => Finding::problem("create", e.message),
            Err(e) => Finding::warning("rights", format!("could not be tried: {}", e.message)),
        })
    }

    pub(super) async fn look_at_key_pair(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let Some(name) = &self.settings.key_pair else { return Ok(()) };
        let client = self.ec2.client("check").await?;
        let call = client.describe_key_pairs().key_names(name).send();
        findings.push(
            match self.ec2.call(Class::Describe, "check", "DescribeKeyPairs", call).await {
                Ok(_) => Finding::fine("key pair", name.clone()),
                Err(e) if e.kind == Kind::Invalid => {
                    let text = format!("{} {name:?} is not there", KEY_PAIR.env);
                    Finding::problem("key pair", text).remedy("aws ec2 describe-key-pairs")
                }
                Err(e) => Finding::warning("key pair", format!("could not be looked at: {e}")),
            },
        );
        Ok(())
    }

    /// What the default version of the launch template decides; `None` without one.
    pub(super) async fn look_at_template(
        &self,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Decided>, Error> {
        let Some(name) = &self.settings.launch_template else { return Ok(None) };
        let client = self.ec2.client("check").await?;
        let call = client.describe_launch_template_versions();
        let call = call.launch_template_name(name).versions("$Default").send();
        let what = "DescribeLaunchTemplateVersions";
        let answer = match self.ec2.call(Class::Describe, "check", what, call).await {
            Ok(answer) => answer,
            Err(e) if e.kind == Kind::Invalid => {
                let text = format!("{} {name:?} is not there", TEMPLATE.env);
                let remedy = "aws ec2 describe-launch-templates";
                findings.push(Finding::problem("launch template", text).remedy(remedy));
                return Ok(Some(Decided::default()));
            }
            Err(e) => return Err(e),
        };
        let versions = answer.launch_template_versions();
        let data = versions.first().and_then(|version| version.launch_template_data());
        let decided = Decided {
            image: data.and_then(|data| data.image_id()).map(str::to_owned),
            instance_type: text(data.and_then(|d| d.instance_type()).map(|t| t.as_str()))
                .to_owned(),
        };
        let missing = [
            (decided.image.is_none(), "an image"),
            (decided.instance_type.is_empty(), "an instance type"),
        ];
        let missing: Vec<&str> = missing.iter().filter(|(is, _)| *is).map(|(_, w)| *w).collect();
        findings.push(match missing.is_empty() {
            true => Finding::fine("launch template", name.clone()),
            false => {
                let missing = missing.join(" and ");
                let text = format!("{} {name:?} has not {missing}", TEMPLATE.env);
                Finding::problem("launch template", text)
            }
        });
        Ok(Some(decided))
    }

    /// The place that a dry run asks for.
    pub(super) fn first(&self, instance_type: &str, zone: Option<String>) -> Candidate {
        let market = self.settings.common.markets.first().copied().unwrap_or(Market::OnDemand);
        Candidate { number: 0, instance_type: instance_type.to_owned(), zone, market }
    }
}
