//! What is asked of EC2, field by field. That EC2's own model takes it is shown by the double.

use std::collections::BTreeMap;

use super::*;
use crate::{UserData, VmName};

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
        confidential: false,
        public_ip: false,
    }
}

fn spec() -> VmSpec {
    let tags = [(tags::SANDBOX, "s"), (tags::POD, "p\u{7}d")];
    let tags: BTreeMap<String, String> =
        tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let user_data = UserData("#cloud-config\n".into());
    VmSpec { tags, user_data, ..VmSpec::new(VmName::first_form("p", "s"), "s") }
}

fn at(market: Market) -> Candidate {
    let zone = Some("eu-west-1a".to_owned());
    Candidate { number: 3, instance_type: "m6a.large".into(), zone, market }
}

fn request(template: &Template, market: Market) -> RunInstancesInputBuilder {
    let token = Token::new("i", "s", 3);
    template.request(&spec(), &at(market), None, &token).expect("a request")
}

#[test]
fn a_plain_vm_has_its_token_subnet_disk_and_tags_on_every_part() {
    let request = request(&template(), Market::OnDemand);
    assert_eq!(request.get_client_token().as_deref(), Some(&*Token::new("i", "s", 3).hex()));
    assert_eq!(request.get_subnet_id().as_deref(), Some("subnet-01234567"));
    assert!(request.get_network_interfaces().is_none() && request.get_cpu_options().is_none());
    assert!(request.get_instance_market_options().is_none() && request.get_key_name().is_none());
    let disks = request.get_block_device_mappings().clone().unwrap_or_default();
    let disk = disks[0].ebs().expect("a disk");
    assert_eq!((disk.volume_size(), disk.encrypted(), disk.iops()), (Some(8), Some(true), None));
    assert_eq!(disk.delete_on_termination(), Some(true));
    let all = request.get_tag_specifications().clone().unwrap_or_default();
    let kinds: Vec<_> = all.iter().filter_map(|t| t.resource_type()).map(|k| k.as_str()).collect();
    assert_eq!(kinds, ["instance", "volume", "network-interface"]);
    let tags = super::super::tags_of(all[2].tags());
    assert_eq!(tags.get(NAME_TAG).map(String::as_str), Some("podvm-p-s"));
    assert_eq!(tags.get(tags::POD).map(String::as_str), Some("p-d"));
}

#[test]
fn a_public_address_moves_subnet_and_groups_into_the_interface() {
    let public = Template { public_ip: true, ..template() };
    let request = request(&public, Market::OnDemand);
    assert!(request.get_subnet_id().is_none() && request.get_security_group_ids().is_none());
    let all = request.get_network_interfaces().clone().unwrap_or_default();
    assert_eq!(
        (all[0].subnet_id(), all[0].groups()),
        (Some("subnet-01234567"), &["sg-01234567".into()][..])
    );
    assert_eq!(
        (all[0].associate_public_ip_address(), all[0].delete_on_termination()),
        (Some(true), Some(true))
    );
}

#[test]
fn confidential_spot_and_provisioned_disks_are_asked_for_by_name() {
    let own =
        Template { confidential: true, volume_type: "io2".into(), encrypted: false, ..template() };
    let request = request(&own, Market::Spot);
    let cpu = request.get_cpu_options().clone().expect("options");
    assert_eq!(cpu.amd_sev_snp(), Some(&AmdSevSnpSpecification::Enabled));
    let market = request.get_instance_market_options().clone().expect("a market");
    assert_eq!(market.market_type(), Some(&MarketType::Spot));
    let disks = request.get_block_device_mappings().clone().unwrap_or_default();
    let disk = disks[0].ebs().expect("a disk");
    assert_eq!((disk.iops(), disk.encrypted()), (Some(400), None));
}

#[test]
fn a_launch_template_decides_all_but_user_data_tags_and_token() {
    let own = Template { launch_template: Some("kata".into()), image: None, ..template() };
    let request = request(&own, Market::OnDemand);
    assert!(request.get_image_id().is_none() && request.get_instance_type().is_none());
    assert!(request.get_subnet_id().is_none() && request.get_block_device_mappings().is_none());
    assert!(request.get_client_token().is_some() && request.get_user_data().is_some());
}

#[test]
fn an_image_of_the_pods_own_brings_its_own_root_disk() {
    let spec = VmSpec { image: Some("ami-89abcdef".into()), disk_gib: 6, ..spec() };
    let (root, token) = (("/dev/xvda".to_owned(), 40), Token::new("i", "s", 0));
    let request = template().request(&spec, &at(Market::OnDemand), Some(&root), &token);
    let request = request.expect("a request");
    assert_eq!(request.get_image_id().as_deref(), Some("ami-89abcdef"));
    let disks = request.get_block_device_mappings().clone().unwrap_or_default();
    assert_eq!(disks[0].device_name(), Some("/dev/xvda"));
    assert_eq!(disks[0].ebs().and_then(|d| d.volume_size()), Some(40));
}

#[test]
fn a_zone_without_a_subnet_is_named() {
    let elsewhere = Candidate { zone: Some("eu-west-1c".into()), ..at(Market::OnDemand) };
    let error = template().request(&spec(), &elsewhere, None, &Token::new("i", "s", 0));
    let error = error.expect_err("refused");
    assert!(error.kind == Kind::Invalid && error.message.contains("eu-west-1c"), "{error}");
}
