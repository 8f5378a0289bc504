//! Where VMs are made: the subnets and groups of the settings, else those of this machine.

use super::settings::{GROUPS, SUBNET};
use super::{Shared, id};
use crate::Finding;

/// Before anything is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) subnets: Vec<String>,
    pub(super) groups: Vec<String>,
}

impl Shared {
    /// What is neither set nor told by this machine is a problem, and empty.
    pub(super) async fn place(&self, findings: &mut Vec<Finding>) -> Place {
        let mut place =
            Place { subnets: self.settings.subnets.clone(), groups: self.settings.groups.clone() };
        if self.settings.launch_template.is_some() {
            if !place.subnets.is_empty() || !place.groups.is_empty() {
                let text = "the launch template decides the network; AWS_SUBNET_ID and AWS_SG_IDS \
                            are not used";
                findings.push(Finding::warning("subnet", text));
            }
            return Place::default();
        }
        let missing =
            [(place.subnets.is_empty(), SUBNET.env), (place.groups.is_empty(), GROUPS.env)];
        let missing = missing.map(|(missing, key)| missing.then_some(key));
        if missing == [None, None] {
            return place;
        }
        match self.own_place().await {
            Ok(own) => {
                if place.subnets.is_empty() {
                    findings.push(Finding::fine("subnet", "this machine's own"));
                    place.subnets = own.subnets;
                }
                if place.groups.is_empty() {
                    findings.push(Finding::fine("security group", "this machine's own"));
                    place.groups = own.groups;
                }
            }
            Err(e) => {
                let keys: Vec<&str> = missing.into_iter().flatten().collect();
                let (keys, e) = (keys.join(" and "), e.message);
                findings.push(Finding::problem("subnet", format!("{keys} not set, and {e}")));
            }
        }
        place
    }

    async fn own_place(&self) -> Result<Place, crate::Error> {
        let mac = self.ec2.metadata("mac").await?;
        let interface = format!("network/interfaces/macs/{mac}");
        let subnet = self.ec2.metadata(&format!("{interface}/subnet-id")).await?;
        let groups = self.ec2.metadata(&format!("{interface}/security-group-ids")).await?;
        let ids = |text: &str, prefix: &str| {
            let all = text.split_whitespace().filter(|one| id::id(one, prefix).is_ok());
            all.map(str::to_owned).collect::<Vec<_>>()
        };
        Ok(Place { subnets: ids(&subnet, "subnet-"), groups: ids(&groups, "sg-") })
    }
}
